"""Parts of several notebooks about Pythia: checkpoints, caches, evaluation, generation."""

import pickle

import torch

from steps.registry import MODEL, step

TEXT = "We saw Tom in the bakery. We saw Nancy in the library."


@step
def name_with_its_organisation(tl):
    model = tl.HookedTransformer.from_pretrained("EleutherAI/pythia-70m", device="cpu")
    return model.cfg.n_layers, model(TEXT, return_type="loss")


@step
def half_of_the_name_in_an_attribute(tl, raw):
    return raw.cfg.model_name


@step
def dtype_when_loading(tl):
    model = tl.HookedTransformer.from_pretrained_no_processing(
        MODEL, device="cpu", dtype=torch.bfloat16
    )
    return str(model.W_E.dtype), str(model(TEXT).dtype)


@step
def value_biases_kept(tl):
    model = tl.HookedTransformer.from_pretrained(MODEL, fold_value_biases=False, device="cpu")
    return model.b_V, model.b_O, model(TEXT, return_type="loss")


@step
def value_biases_folded(tl, model):
    return model.b_V, model.b_O


@step
def centred_writing_weights(tl, model):
    return model.W_E.mean(-1).abs().max() < 1e-5, model.W_O.mean(-1).abs().max() < 1e-5


@step
def evaluation_by_a_text(tl, model):
    return tl.evals.sanity_check(model)


@step
def loss_function(tl, model):
    tokens = model.to_tokens(TEXT)
    return model.loss_fn(model(tokens), tokens), model.loss_fn(
        model(tokens), tokens, per_token=True
    )


@step
def accumulated_biases(tl, model):
    return model.accumulated_bias(2), model.accumulated_bias(3, mlp_input=True)


@step
def names_of_a_filter_as_a_list(tl, model):
    names = ["blocks.0.hook_resid_pre", "blocks.2.attn.hook_pattern"]
    _, cache = model.run_with_cache(TEXT, names_filter=names)
    return sorted(cache.keys()), cache["pattern", 2]


@step
def cache_of_a_dictionary(tl, model):
    _, cache = model.run_with_cache(TEXT)
    again = tl.ActivationCache({name: value * 2 for name, value in cache.items()}, model)
    return again["resid_post", -1], again.has_batch_dim, len(again) == len(cache)


@step
def cache_as_a_dictionary(tl, model):
    _, cache = model.run_with_cache(TEXT, return_cache_object=False)
    return type(cache).__name__, cache["blocks.1.hook_mlp_out"]


@step
def dictionary_of_a_cache(tl, model):
    _, cache = model.run_with_cache(TEXT)
    return cache.cache_dict["hook_embed"], cache.model is model


@step
def cache_sliced_by_batch(tl, model):
    _, cache = model.run_with_cache(torch.arange(100, 140).reshape(4, 10))
    return cache.apply_slice_to_batch_dim((1, 3))["resid_pre", 2]


@step
def cache_to_a_device(tl, model):
    _, cache = model.run_with_cache(TEXT)
    return cache.to("cpu")["v", 1], [name for name in cache][:1]


@step
def stack_of_one_activation(tl, model):
    _, cache = model.run_with_cache(TEXT)
    return cache.stack_activation("z").shape, cache.stack_activation("q", layer=2)


@step
def full_decomposition_with_neurons(tl, model):
    _, cache = model.run_with_cache(TEXT)
    stack, labels = cache.get_full_resid_decomposition(
        layer=2, expand_neurons=True, pos_slice=-1, return_labels=True
    )
    return stack.shape, stack.sum(0), len(labels), labels[:2], labels[-3:]


@step
def decomposition_of_heads_alone(tl, model):
    _, cache = model.run_with_cache(TEXT)
    attention = cache.decompose_resid(layer=3, mode="attn", return_labels=True)
    neurons = cache.decompose_resid(layer=3, mode="mlp", return_labels=True)
    return attention, neurons


@step
def logit_attributions_by_text(tl, model):
    _, cache = model.run_with_cache(TEXT)
    stack = cache.accumulated_resid(layer=-1)
    return cache.logit_attrs(stack, " library"), cache.logit_attrs(stack, " library", " bakery")


@step
def two_halves_of_the_network(tl, model):
    stream = model(TEXT, stop_at_layer=2)
    return stream, model(stream, start_at_layer=2).log_softmax(-1)


@step
def from_embeddings(tl, model):
    stream, _, _, _ = model.input_to_embed(TEXT)
    return stream, model(stream, start_at_layer=0).log_softmax(-1)


@step
def keep_for_other_tokens(tl, model):
    tokens = model.to_tokens(TEXT)
    cache = tl.TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
    model(tokens[:, :5], past_kv_cache=cache)
    return model(tokens[:, 5:], past_kv_cache=cache).log_softmax(-1)


@step
def attention_mask(tl, model):
    tokens = model.to_tokens(["Tom saw Nancy", "Tom saw Nancy in the library"])
    mask = tl.utils.get_attention_mask(model.tokenizer, tokens, prepend_bos=False)
    return mask, model(tokens, attention_mask=mask)[1, -1].log_softmax(-1)


@step
def pickled_tensors_of_a_cache(tl, model):
    _, cache = model.run_with_cache(TEXT, names_filter="hook_embed")
    return pickle.loads(pickle.dumps(dict(cache.items())))["hook_embed"]


@step
def generation_that_samples(tl, model):
    torch.manual_seed(0)
    tokens = model.generate(
        model.to_tokens(TEXT), max_new_tokens=6, top_k=20, temperature=0.8, verbose=False,
        stop_at_eos=False,
    )  # fmt: skip
    return tokens.shape


@step
def generation_of_a_batch(tl, model):
    tokens = model.to_tokens(["The capital of Norway is", "The capital of Spain is"])
    return model.generate(tokens, max_new_tokens=3, do_sample=False, verbose=False)


@step
def generation_returning_tokens(tl, model):
    return model.generate(
        "The capital of Norway is", max_new_tokens=3, do_sample=False, return_type="tokens",
        verbose=False,
    )  # fmt: skip


@step
def generation_with_a_penalty(tl, model):
    return model.generate(
        "Tom saw Tom saw Tom saw", max_new_tokens=5, temperature=0.0, freq_penalty=1.5,
        verbose=False,
    )  # fmt: skip


@step
def corner_of_a_tensor(tl):
    tensor = torch.arange(60.0).reshape(3, 4, 5)
    return tl.utils.get_corner(tensor, 2), tl.utils.transpose(tensor), tl.utils.is_square(tensor)


@step
def numbers_as_arrays(tl):
    to_numpy = tl.utils.to_numpy
    return [to_numpy(torch.ones(2)).sum().item(), to_numpy([1, 2]).tolist(), to_numpy(3.5).item()]


@step
def slices(tl):
    tensor = torch.arange(24.0).reshape(2, 12)
    one, two = tl.utils.Slice((2, 8)), tl.utils.Slice(-1)
    return one.apply(tensor, dim=1), two.apply(tensor, dim=-1), one.indices(12).tolist()


@step
def lower_triangles(tl):
    return [tl.utils.is_lower_triangular(torch.ones(3, 3).tril()),
            tl.utils.remove_batch_dim(torch.ones(1, 4)).shape]  # fmt: skip


@step
def beginnings_by_a_context(tl, model):
    with tl.utils.LocallyOverridenDefaults(model, prepend_bos=True):
        inside = model.to_tokens("Tom")
    return inside, model.to_tokens("Tom")


@step
def default_beginning_set_on_the_configuration(tl, model):
    before = model.cfg.default_prepend_bos
    model.cfg.default_prepend_bos = True
    tokens = model.to_tokens("Tom")
    model.cfg.default_prepend_bos = before
    return tokens, before


@step
def tokenizer_of_the_model(tl, model):
    return (
        model.tokenizer.bos_token,
        model.tokenizer.encode("Tom saw"),
        model.tokenizer.padding_side,
    )


@step
def moved(tl, raw):
    return raw.to("cpu") is raw, str(raw.cfg.device)


@step
def frozen(tl, raw):
    for parameter in raw.parameters():
        parameter.requires_grad_(False)
    logits = raw(TEXT)
    for parameter in raw.parameters():
        parameter.requires_grad_(True)
    return logits.requires_grad


@step
def checkpoint_of_training(tl):
    model = tl.HookedTransformer.from_pretrained(MODEL, checkpoint_value=512, device="cpu")
    return model.cfg.checkpoint_value, model(TEXT, return_type="loss")


@step
def hooks_taken_away_by_their_level(tl, model):
    model.add_hook("blocks.0.hook_mlp_out", lambda value, hook: 0 * value, level=1)
    model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: 0 * value, "fwd", False, 2)
    both = model(TEXT, return_type="loss")
    model.reset_hooks(level=2)
    one = model(TEXT, return_type="loss")
    model.reset_hooks()
    return both, one, model(TEXT, return_type="loss")
