"""Attribution_Patching_Demo: gradients at every hook, and what they say about patching."""

import torch

from steps.registry import step

PAIR = (
    "Martin and Carl came to the tower. Then Carl showed a watch to",
    "Martin and Carl came to the tower. Then Martin showed a watch to",
)


def metric_of(model):
    right, other = model.to_single_token(" Martin"), model.to_single_token(" Carl")
    return lambda logits: (logits[:, -1, right] - logits[:, -1, other]).mean()


def not_an_input(name):
    return not name.endswith(("_input", "_in"))


def both_ways(tl, model, tokens, metric):
    """Values, activations and gradients by caching hooks, as the demo takes them."""
    model.reset_hooks()
    model.set_use_attn_result(True)
    forward, backward = {}, {}

    def keep(activation, hook):
        forward[hook.name] = activation.detach()

    def keep_gradient(gradient, hook):
        backward[hook.name] = gradient.detach()

    model.add_hook(not_an_input, keep, "fwd")
    model.add_hook(not_an_input, keep_gradient, "bwd")
    value = metric(model(tokens))
    value.backward()
    model.reset_hooks()
    return (
        value.item(),
        tl.ActivationCache(forward, model),
        tl.ActivationCache(backward, model),
    )


def caches(tl, model):
    metric = metric_of(model)
    clean = both_ways(tl, model, model.to_tokens(PAIR[0]), metric)
    corrupted = both_ways(tl, model, model.to_tokens(PAIR[1]), metric)
    return clean, corrupted


@step(grad=True)
def flags(tl, model):
    model.set_use_attn_result(True)
    cfg = model.cfg
    result = [cfg.use_attn_result]
    model.set_use_attn_result(False)
    return result, cfg.use_attn_result


@step(grad=True)
def values_forward_and_backward(tl, model):
    clean, corrupted = caches(tl, model)
    return clean[0], corrupted[0]


@step(grad=True)
def gradients_of_the_stream(tl, model):
    _, (_, _, gradients) = caches(tl, model)
    return gradients["resid_pre", 0], gradients["resid_post", 2]


@step(grad=True)
def gradients_of_heads(tl, model):
    _, (_, _, gradients) = caches(tl, model)
    return gradients["z", 1], gradients["q", 2], gradients["k", 3], gradients["v", 0]


@step(grad=True)
def gradients_of_patterns(tl, model):
    _, (_, _, gradients) = caches(tl, model)
    return gradients["pattern", 1], gradients["pattern", 3]


@step(grad=True)
def gradients_of_mlps(tl, model):
    _, (_, _, gradients) = caches(tl, model)
    return gradients["mlp_out", 1], gradients["post", 1], gradients["pre", 2]


@step(grad=True)
def attention_attribution(tl, model):
    clean, _ = caches(tl, model)
    value = torch.stack([clean[1]["pattern", layer] for layer in range(4)])
    gradient = torch.stack([clean[2]["pattern", layer] for layer in range(4)])
    return (value * gradient).transpose(0, 1)


@step(grad=True)
def names_of_heads(tl, model):
    names = [f"L{layer}H{head}" for layer in range(model.cfg.n_layers) for head in range(4)]
    return names == model.all_head_labels()


@step(grad=True)
def streams(tl, model):
    (_, clean, _), (_, corrupted, gradients) = caches(tl, model)
    clean_stack, labels = clean.accumulated_resid(-1, incl_mid=False, return_labels=True)
    corrupted_stack = corrupted.accumulated_resid(-1, incl_mid=False)
    gradient_stack = gradients.accumulated_resid(-1, incl_mid=False)
    return ((clean_stack - corrupted_stack) * gradient_stack).sum(dim=(1, 3)), labels


@step(grad=True)
def layers(tl, model):
    (_, clean, _), (_, corrupted, gradients) = caches(tl, model)
    clean_stack, labels = clean.decompose_resid(-1, return_labels=True)
    corrupted_stack = corrupted.decompose_resid(-1)
    gradient_stack = gradients.decompose_resid(-1)
    return ((clean_stack - corrupted_stack) * gradient_stack).sum(dim=(1, 3)), labels


def stack_heads(cache, activation, model):
    """One activation of every head ``[head of any layer, batch, pos, d_head]``."""
    stacked = torch.stack([cache[activation, layer] for layer in range(model.cfg.n_layers)])
    return stacked.permute(0, 3, 1, 2, 4).flatten(0, 1)


def head_vectors(tl, model, activation):
    (_, clean, _), (_, corrupted, gradients) = caches(tl, model)
    parts = [stack_heads(one, activation, model) for one in (clean, corrupted, gradients)]
    return ((parts[0] - parts[1]) * parts[2]).sum(dim=(1, 3))


@step(grad=True)
def head_outputs(tl, model):
    return head_vectors(tl, model, "z")


@step(grad=True)
def head_queries(tl, model):
    return head_vectors(tl, model, "q")


@step(grad=True)
def head_keys(tl, model):
    return head_vectors(tl, model, "k")


@step(grad=True)
def head_values(tl, model):
    return head_vectors(tl, model, "v")


@step(grad=True)
def head_patterns(tl, model):
    (_, clean, _), (_, corrupted, gradients) = caches(tl, model)
    rows = []
    for layer in range(model.cfg.n_layers):
        change = clean["pattern", layer] - corrupted["pattern", layer]
        rows.append((change * gradients["pattern", layer]).sum(dim=(0, 3)))
    return torch.stack(rows)


@step(grad=True)
def gradients_are_cached_with_the_run(tl, model):
    logits, cache = model.run_with_cache(model.to_tokens(PAIR[0]), return_type="logits")
    metric_of(model)(logits).backward()
    return cache["resid_pre", 1], model.W_E.shape


@step(grad=True)
def cache_with_backward(tl, model):
    tokens = model.to_tokens(PAIR[0])
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    names = [name for name in cache.keys() if name.endswith("resid_post_grad")]
    return sorted(names), cache["blocks.1.hook_resid_post_grad"]


@step(grad=True)
def caching_hooks(tl, model):
    cache, forward, backward = model.get_caching_hooks(
        names_filter=lambda name: name.endswith("resid_pre"), incl_bwd=True
    )
    with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
        metric_of(model)(model(model.to_tokens(PAIR[0]))).backward()
    return cache["blocks.0.hook_resid_pre"], cache["blocks.2.hook_resid_pre_grad"]


@step(grad=True)
def loss_backward(tl, model):
    model.zero_grad()
    loss = model(PAIR[0], return_type="loss")
    loss.backward()
    gradient = model.embed.W_E.grad.norm(), model.unembed.W_U.grad.norm()
    model.zero_grad()
    return gradient


@step(grad=True)
def split_inputs(tl, model):
    model.set_use_split_qkv_input(True)
    _, cache = model.run_with_cache(PAIR[0])
    found = cache["q_input", 1], cache["k_input", 2], cache["v_input", 3]
    model.set_use_split_qkv_input(False)
    return found


@step(grad=True)
def results_of_heads(tl, model):
    model.set_use_attn_result(True)
    _, cache = model.run_with_cache(PAIR[0])
    found = cache["result", 1]
    model.set_use_attn_result(False)
    return found


@step(grad=True)
def attention_input(tl, model):
    model.set_use_attn_in(True)
    _, cache = model.run_with_cache(PAIR[0])
    found = cache["attn_in", 2]
    model.set_use_attn_in(False)
    return found


@step(grad=True)
def mlp_input(tl, model):
    model.set_use_hook_mlp_in(True)
    _, cache = model.run_with_cache(PAIR[0])
    found = cache["mlp_in", 2]
    model.set_use_hook_mlp_in(False)
    return found


@step
def against_exact_patching(tl, model):
    _, cache = model.run_with_cache(model.to_tokens(PAIR[0]))
    return tl.patching.get_act_patch_attn_head_out_all_pos(
        model, model.to_tokens(PAIR[1]), cache, metric_of(model)
    )
