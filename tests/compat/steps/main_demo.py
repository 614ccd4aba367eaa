"""Main_Demo: load, run, cache, hook, tokenise, take weights apart, generate."""

from functools import partial

import torch

from steps.registry import MODEL, step

TEXT = "The old church stood near the river. Martin and Carl walked to the church in the morning."
CLEAN = "Martin and Carl came to the tower. Then Carl showed a watch to"
CORRUPTED = "Martin and Carl came to the tower. Then Martin showed a watch to"


@step
def load_on_a_device(tl):
    model = tl.HookedTransformer.from_pretrained(MODEL, device="cpu")
    return model(TEXT, return_type="loss")


@step
def loss_of_a_text(tl, model):
    return model(TEXT, return_type="loss")


@step
def logits_are_the_default(tl, model):
    return model(TEXT).log_softmax(-1)


@step
def both(tl, model):
    logits, loss = model(TEXT, return_type="both")
    return logits.log_softmax(-1), loss


@step
def nothing_is_returned(tl, model):
    return model(TEXT, return_type=None) is None


@step
def loss_per_token(tl, model):
    return model(TEXT, return_type="loss", loss_per_token=True)


@step
def logits_of_tokens(tl, model):
    tokens = model.to_tokens(TEXT)
    return model(tokens, return_type="logits").softmax(-1)


@step
def cache_without_batch(tl, model):
    tokens = model.to_tokens(TEXT)
    logits, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    return logits.softmax(-1), cache["pattern", 0, "attn"], cache["resid_post", 2]


@step
def shape_of_a_pattern(tl, model):
    _, cache = model.run_with_cache(model.to_tokens(TEXT), remove_batch_dim=True)
    pattern = cache["pattern", 0, "attn"]
    return pattern.shape[0] == model.cfg.n_heads, pattern


@step
def string_tokens_beside_a_pattern(tl, model):
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    return model.to_str_tokens(TEXT), cache["blocks.1.attn.hook_pattern"]


@step
def cache_by_short_name(tl, model):
    _, cache = model.run_with_cache(TEXT)
    return cache["k3"], cache["embed"], cache["scale", 1, "ln1"], cache["ln_final.hook_scale"]


@step
def ablate_a_head(tl, model):
    tokens = model.to_tokens(TEXT)

    def switch_off(value, hook):
        value[:, :, 2, :] = 0.0
        return value

    before = model(tokens, return_type="loss")
    after = model.run_with_hooks(
        tokens, return_type="loss", fwd_hooks=[(tl.utils.get_act_name("v", 0), switch_off)]
    )
    return before, after


@step
def mean_ablate_a_head(tl, model):
    def by_its_mean(z, hook):
        z[:, :, 1, :] = z[:, :, 1, :].mean(dim=(0, 1), keepdim=True)
        return z

    return model.run_with_hooks(
        TEXT, return_type="loss", fwd_hooks=[("blocks.1.attn.hook_z", by_its_mean)]
    )


@step
def logit_difference(tl, model):
    def difference(logits, correct=" Martin", wrong=" Carl"):
        right, other = model.to_single_token(correct), model.to_single_token(wrong)
        return logits[0, -1, right] - logits[0, -1, other]

    return difference(model(model.to_tokens(CLEAN))), difference(model(model.to_tokens(CORRUPTED)))


@step
def patch_the_residual_stream(tl, model):
    clean, corrupted = model.to_tokens(CLEAN), model.to_tokens(CORRUPTED)
    right, other = model.to_single_token(" Martin"), model.to_single_token(" Carl")
    _, cache = model.run_with_cache(clean)

    def put_clean(resid, hook, position):
        resid[:, position, :] = cache[hook.name][:, position, :]
        return resid

    results = torch.zeros(model.cfg.n_layers, clean.shape[1])
    for layer in range(model.cfg.n_layers):
        for position in range(clean.shape[1]):
            logits = model.run_with_hooks(
                corrupted,
                fwd_hooks=[
                    (
                        tl.utils.get_act_name("resid_pre", layer),
                        partial(put_clean, position=position),
                    )
                ],
            )
            results[layer, position] = logits[0, -1, right] - logits[0, -1, other]
    return results


@step
def labels_with_positions(tl, model):
    return [f"{token} {i}" for i, token in enumerate(model.to_str_tokens(CLEAN))]


def repeated(model):
    generator = torch.Generator().manual_seed(3)
    half = torch.randint(100, 1500, (4, 12), generator=generator)
    return torch.cat([half, half], dim=-1)


@step
def loss_on_repeated_tokens(tl, model):
    tokens = repeated(model)
    logits = model(tokens)
    losses = tl.utils.lm_cross_entropy_loss(logits, tokens, per_token=True)
    return losses, losses.mean(0)


@step
def induction_scores_by_hooks(tl, model):
    tokens = repeated(model)
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, device=model.cfg.device)

    def read_stripe(pattern, hook):
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - 12)
        scores[hook.layer(), :] = stripe.mean(dim=(0, -1))

    model.run_with_hooks(
        tokens,
        return_type=None,
        fwd_hooks=[(lambda name: name.endswith("pattern"), read_stripe)],
    )
    return scores


@step
def pattern_of_one_head_by_a_hook(tl, model):
    seen = []
    model.run_with_hooks(
        repeated(model),
        return_type=None,
        fwd_hooks=[
            (
                tl.utils.get_act_name("pattern", 1),
                lambda pattern, hook: seen.append(pattern.mean(0)),
            )
        ],
    )
    return seen[0]


@step
def tokens_of_a_text(tl, model):
    return model.to_tokens("Martin walked.")


@step
def tokens_without_a_beginning(tl, model):
    return model.to_tokens("Martin walked.", prepend_bos=False)


@step
def tokens_with_a_beginning(tl, model):
    return model.to_tokens("Martin walked.", prepend_bos=True)


@step
def tokens_of_several_texts(tl, model):
    return model.to_tokens(["Martin walked.", "Carl showed a watch to Martin."])


@step
def string_tokens(tl, model):
    return model.to_str_tokens("Martin walked."), model.to_str_tokens(" Carl", prepend_bos=False)


@step
def string_tokens_of_ids(tl, model):
    return model.to_str_tokens(torch.tensor([5, 300, 1200]))


@step
def string_of_tokens(tl, model):
    return model.to_string([300, 400]), model.to_string(torch.tensor([[300, 400], [500, 600]]))


@step
def single_token(tl, model):
    return model.to_single_token(" Martin"), model.to_single_str_token(400)


@step
def position_of_a_token(tl, model):
    return (
        model.get_token_position(" Carl", CLEAN),
        model.get_token_position(" Carl", CLEAN, mode="last"),
        model.get_token_position(model.to_single_token(" Carl"), model.to_tokens(CLEAN)),
    )


@step
def next_token_of_a_prompt(tl, model):
    logits = model("The capital of Norway is called", prepend_bos=False)
    token = logits[0, -1].argmax(dim=-1)
    return model.to_single_str_token(token.item()), model.to_string(token)


@step
def with_and_without_a_beginning(tl, model):
    return (
        model("The capital of Norway is called", prepend_bos=True)[0, -1].log_softmax(-1),
        model("The capital of Norway is called", prepend_bos=False)[0, -1].log_softmax(-1),
    )


@step
def weights_stacked(tl, model):
    return [
        tuple(getattr(model, name).shape)
        for name in "W_E W_U W_Q W_K W_V W_O W_in W_out b_Q b_K b_V b_O b_in b_out b_U".split()
    ]


@step
def weights_of_one_block(tl, model):
    block = model.blocks[0]
    return (
        [tuple(block.attn.W_Q.shape), tuple(block.mlp.W_in.shape), tuple(block.attn.b_O.shape)],
        block.attn.W_V,
        block.mlp.W_out,
    )


@step
def names_of_parameters(tl, raw):
    names = {name for name, _ in raw.named_parameters()}
    return [
        name in names
        for name in ("embed.W_E", "blocks.0.attn.W_Q", "blocks.3.mlp.b_out", "unembed.W_U")
    ]


@step
def names_of_activations(tl, model):
    _, cache = model.run_with_cache(TEXT)
    wanted = [
        "hook_embed",
        "blocks.0.attn.hook_q",
        "blocks.3.mlp.hook_post",
        "blocks.2.ln1.hook_scale",
    ]
    return [(name in cache, name in cache.keys(), tuple(cache[name].shape)) for name in wanted]


@step
def folding_keeps_probabilities(tl, model, raw):
    return (model(TEXT).log_softmax(-1) - raw(TEXT).log_softmax(-1)).abs().max() < 1e-3


@step
def folded_weights_read_the_unembedding(tl, model):
    return model.W_U.mean(-1).abs().max() < 1e-5, model.W_U.std(), model.b_U


@step
def load_without_folding(tl):
    model = tl.HookedTransformer.from_pretrained(
        MODEL, fold_ln=False, center_unembed=False, center_writing_weights=False, device="cpu"
    )
    return model(TEXT), model.W_E


@step
def load_without_processing(tl):
    model = tl.HookedTransformer.from_pretrained_no_processing(MODEL, device="cpu")
    return model(TEXT), model.W_U


@step
def factored_matrix(tl):
    torch.manual_seed(0)
    a, b = torch.randn(5, 2), torch.randn(2, 5)
    product = tl.FactoredMatrix(a, b)
    return product.AB, product.norm(), (product.AB - a @ b).norm(), product.shape[-1], product.rdim


@step
def factored_matrix_singular_values(tl):
    torch.manual_seed(1)
    matrix = tl.FactoredMatrix(torch.randn(6, 3), torch.randn(3, 6))
    u, s, v = matrix.svd()
    return s, matrix.S, torch.linalg.norm(u, dim=0), (u @ torch.diag(s) @ v.T)


@step
def factored_matrix_eigenvalues(tl):
    torch.manual_seed(2)
    matrix = tl.FactoredMatrix(torch.randn(6, 3), torch.randn(3, 6))
    values = matrix.eigenvalues
    return values.real.sum(), (values**2).real.sum(), matrix.AB.trace()


@step
def factored_matrix_products(tl):
    torch.manual_seed(3)
    matrix = tl.FactoredMatrix(torch.randn(5, 2), torch.randn(2, 5))
    other = torch.randn(5, 100)
    right = matrix @ other
    left = other.T @ matrix
    both = matrix @ matrix
    return right.AB, left.AB, both.AB, both.shape, matrix.T.AB, (2 * matrix).AB, matrix.pair[0]


@step
def copying_of_all_heads(tl, model):
    ov = model.OV
    full = model.W_E @ ov @ model.W_U
    values = full.eigenvalues
    return ov.shape, full.shape, values.sum(dim=-1).real / values.abs().sum(dim=-1)


@step
def one_head_of_a_circuit(tl, model):
    return model.OV[1, 2].AB, model.QK[0, 0].AB, model.QK.norm()


@step
def generate_a_text(tl, model):
    return model.generate(
        "The capital of Norway is", max_new_tokens=8, temperature=0, verbose=False
    )


@step
def generate_without_a_cache(tl, model):
    return model.generate(
        "The capital of Norway is",
        max_new_tokens=8,
        do_sample=False,
        use_past_kv_cache=False,
        prepend_bos=True,
        verbose=False,
    )


@step
def generate_tokens(tl, model):
    tokens = model.to_tokens("Martin and Carl came to the")
    return model.generate(
        tokens, max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False
    )


@step
def hook_points_of_an_own_module(tl):
    class Twice(tl.hook_points.HookedRootModule):
        def __init__(self):
            super().__init__()
            self.hook_square = tl.hook_points.HookPoint()
            self.hook_sum = tl.hook_points.HookPoint()
            self.setup()

        def forward(self, x):
            return self.hook_sum(self.hook_square(x * x) + 3)

    module = Twice()
    output, cache = module.run_with_cache(torch.tensor(5.0))

    def seven(tensor, hook):
        return torch.tensor(7.0)

    changed = module.run_with_hooks(torch.tensor(5.0), fwd_hooks=[("hook_square", seven)])
    return output, cache["hook_square"], changed


@step
def labels_of_checkpoints(tl):
    labels, kind = tl.loading_from_pretrained.get_checkpoint_labels(MODEL)
    return labels[:4], labels[-1], len(labels), kind


@step
def configuration(tl, model):
    cfg = model.cfg
    return (
        [cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head, cfg.d_mlp, cfg.d_vocab, cfg.n_ctx],
        [cfg.act_fn, cfg.positional_embedding_type, cfg.rotary_dim, cfg.parallel_attn_mlp],
        [cfg.normalization_type, cfg.device, cfg.d_vocab_out, cfg.attn_only, cfg.eps],
    )


@step
def device_to_use(tl):
    return str(tl.utils.get_device())


@step
def cache_on_a_device(tl, model):
    _, cache = model.run_with_cache(TEXT, device="cpu", names_filter=lambda n: "hook_z" in n)
    return sorted(cache.keys()), cache["z", 3]


@step
def reset_after_hooks(tl, model):
    model.add_hook("blocks.0.hook_attn_out", lambda value, hook: torch.zeros_like(value))
    changed = model(TEXT, return_type="loss")
    model.reset_hooks()
    return changed, model(TEXT, return_type="loss")
