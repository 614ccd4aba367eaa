"""ARENA 1.1, transformer from scratch: the calls to the reference model."""

import torch

from steps.registry import MODEL, step

TEXT = "The old church stood near the river."


@step
def reference_model(tl):
    model = tl.HookedTransformer.from_pretrained(
        MODEL, fold_ln=False, center_unembed=False, center_writing_weights=False
    )
    return model.cfg.n_layers, model(TEXT)


@step
def vocabulary(tl, raw):
    items = sorted(raw.tokenizer.vocab.items(), key=lambda item: item[1])
    return items[2:12], len(items)


@step
def string_and_ids(tl, raw):
    return raw.to_str_tokens("Martin"), raw.to_tokens("Martin"), raw.tokenizer.decode([300, 301])


@step
def several_spellings(tl, raw):
    return [raw.to_str_tokens(text) for text in ("Martin", " Martin", " martin", "martin")]


@step
def numbers_as_tokens(tl, raw):
    return raw.to_str_tokens("56873+3184623=123456789-1000000000")


@step
def logits_and_probabilities(tl, raw):
    tokens = raw.to_tokens(TEXT)
    logits, cache = raw.run_with_cache(tokens)
    return logits.shape, logits.softmax(dim=-1), len(cache) > 40


@step
def greedy_beside_the_text(tl, raw):
    tokens = raw.to_tokens(TEXT)
    best = raw(tokens).softmax(dim=-1).argmax(dim=-1)[0]
    return list(
        zip(raw.to_str_tokens(tokens), [raw.tokenizer.decode(token) for token in best], strict=True)
    )


@step
def append_the_next_token(tl, raw):
    tokens = raw.to_tokens(TEXT)
    for _ in range(4):
        next_token = raw(tokens)[0, -1].argmax(dim=-1)
        tokens = torch.cat([tokens, next_token[None, None]], dim=-1)
    return raw.to_string(tokens[0]), raw.tokenizer.decode(tokens[0, -1])


@step
def names_and_shapes_of_activations(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    return {
        name: tuple(value.shape)
        for name, value in cache.items()
        if (".0." in name and "ln" in name) or name in ("hook_embed", "blocks.0.hook_mlp_out")
    }


@step
def names_and_shapes_of_weights(tl, raw):
    return {
        name: tuple(value.shape)
        for name, value in raw.named_parameters()
        if ".0.attn." in name or ".0.mlp." in name or "embed" in name
    }


@step
def configuration_printed(tl, raw):
    return "n_layers" in str(raw.cfg) and "d_model" in str(raw.cfg)


@step
def final_layer_norm(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    return raw.ln_final(cache["resid_post", -1])


@step
def layer_norm_weights(tl, raw):
    return raw.ln_final.w, raw.ln_final.b, raw.blocks[1].ln1.w, raw.blocks[1].ln2.b, raw.cfg.eps


@step
def embedding(tl, raw):
    return raw.embed(raw.to_tokens(TEXT))


@step
def attention_called(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    normalised = cache["normalized", 0, "ln1"]
    x = normalised * raw.blocks[0].ln1.w + raw.blocks[0].ln1.b
    return raw.blocks[0].attn(x, x, x), cache["attn_out", 0]


@step
def first_layer_norm_called(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    return raw.blocks[0].ln1(cache["resid_pre", 0])


@step
def mlp_called(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    block = raw.blocks[1]
    return block.mlp(block.ln2(cache["resid_pre", 1])), cache["mlp_out", 1]


@step
def block_called(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    return raw.blocks[0](cache["resid_pre", 0]), cache["resid_post", 0]


@step
def unembedding_called(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    return raw.unembed(cache["ln_final.hook_normalized"] * raw.ln_final.w + raw.ln_final.b)


@step
def attention_by_hand(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    value, pattern = cache["v", 2], cache["pattern", 2]
    z = torch.einsum("bkhd,bhqk->bqhd", value, pattern)
    out = torch.einsum("bqhd,hdm->bqm", z, raw.blocks[2].attn.W_O) + raw.blocks[2].attn.b_O
    return out, cache["attn_out", 2]


@step
def queries_by_hand(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    attn, ln = raw.blocks[1].attn, raw.blocks[1].ln1
    x = cache["normalized", 1, "ln1"] * ln.w + ln.b
    queries = torch.einsum("bpm,hmd->bphd", x, attn.W_Q) + attn.b_Q
    return queries, cache["q", 1]


@step
def rotated_keys(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    scores = torch.einsum("bqhd,bkhd->bhqk", cache["rot_q", 1], cache["rot_k", 1])
    scores = scores / raw.cfg.d_head**0.5
    return scores.tril(), cache["attn_scores", 1].tril()


@step
def mlp_by_hand(tl, raw):
    _, cache = raw.run_with_cache(TEXT)
    mlp = raw.blocks[0].mlp
    return cache["post", 0] @ mlp.W_out + mlp.b_out, cache["mlp_out", 0]


@step
def loss_by_hand(tl, raw):
    tokens = raw.to_tokens(TEXT)
    logs = raw(tokens).log_softmax(dim=-1)
    loss = -logs[:, :-1].gather(dim=-1, index=tokens[:, 1:, None])[..., 0].mean()
    return loss, raw(tokens, return_type="loss")


@step
def sampling_with_temperature(tl, raw):
    logits = raw(TEXT)[:, -1]
    greedy = tl.utils.sample_logits(logits, temperature=0.0)
    torch.manual_seed(0)
    return greedy, tl.utils.sample_logits(logits, top_k=1, temperature=1.0)


@step
def sampling_among_the_best(tl, raw):
    logits = raw(TEXT)[:, -1]
    best = set(logits[0].topk(5).indices.tolist())
    torch.manual_seed(0)
    drawn = [int(tl.utils.sample_logits(logits, top_k=5)) for _ in range(20)]
    return all(token in best for token in drawn)


@step
def sampling_a_nucleus(tl, raw):
    logits = raw(TEXT)[:, -1]
    torch.manual_seed(0)
    return int(tl.utils.sample_logits(logits, top_p=1e-4)), int(logits.argmax())


@step
def sampling_with_a_penalty(tl, raw):
    logits = raw(TEXT)[:, -1]
    return tl.utils.sample_logits(
        logits, temperature=0.0, freq_penalty=2.0, tokens=raw.to_tokens(TEXT)
    )


@step
def accuracy(tl, raw):
    tokens = raw.to_tokens(TEXT)
    logits = raw(tokens)
    return tl.utils.lm_accuracy(logits, tokens), tl.utils.lm_accuracy(logits, tokens, True)
