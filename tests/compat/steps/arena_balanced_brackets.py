"""ARENA 1.5.1, balanced brackets: masks by hooks, layer norms, heads and their inputs."""

import torch

from steps.registry import step


def tokens():
    generator = torch.Generator().manual_seed(9)
    return torch.randint(100, 1500, (5, 9), generator=generator)


def activations(model, names):
    """One activation, or several by name."""
    _, cache = model.run_with_cache(
        tokens(), return_type=None, names_filter=lambda name: name in names
    )
    return cache[names] if isinstance(names, str) else {name: cache[name] for name in names}


@step
def one_activation(tl, model):
    return activations(model, tl.utils.get_act_name("pattern", 0))


@step
def several_activations(tl, model):
    names = [tl.utils.get_act_name("z", 1), tl.utils.get_act_name("scale", 1, "ln1")]
    return activations(model, names)


@step
def names_by_shorthand(tl):
    name = tl.utils.get_act_name
    return [
        name("resid_pre", 0), name("attn", 2), name("scale", 4, "ln1"), name("k6"),
        name("embed"), name("scale"), name("normalized", 27, "ln2"), name("k", 6), name("post", 3),
        name("mlp_out", 3), name("scores", 1), name("attn_scores", 1), name("q_input", 2),
        name("pre5"), name("result", 1, "attn"), name("blocks.1.hook_resid_pre"),
    ]  # fmt: skip


@step
def layer_norm_as_a_line(tl, model):
    before = activations(model, tl.utils.get_act_name("resid_post", 3))
    after = activations(model, tl.utils.get_act_name("normalized"))
    return before[:, -1], after[:, -1]


@step
def output_of_heads_from_z(tl, model):
    z = activations(model, tl.utils.get_act_name("z", 2))
    return torch.einsum("bphd,hdm->bphm", z, model.W_O[2])


@step
def attention_masked_for_some_keys(tl, model):
    def no_middle(scores, hook):
        scores[:, :, :, 4] = scores[:, :, :, 4].masked_fill(torch.arange(9) != 4, -1e5)
        return scores

    model.add_hook("blocks.0.attn.hook_attn_scores", no_middle)
    logits = model(tokens())
    model.reset_hooks(clear_contexts=True)
    return logits[:, -1].log_softmax(-1)


@step
def masks_of_every_layer_by_permanent_hooks(tl, model):
    def first_two(scores, hook):
        scores[..., 2:7] = -1e5
        return scores

    for layer in range(model.cfg.n_layers):
        model.blocks[layer].attn.hook_attn_scores.add_perma_hook(first_two)
    logits = model(tokens())
    model.reset_hooks(including_permanent=True)
    return logits[:, -1].log_softmax(-1)


@step
def query_of_one_position(tl, model):
    w_q, b_q, w_k = model.W_Q[0, 1], model.b_Q[0, 1], model.W_K[0, 1]
    stream = activations(model, tl.utils.get_act_name("normalized", 0, "ln1"))
    return ((stream[0, 0] @ w_q + b_q) @ w_k.T) @ stream[0].T


@step
def out_of_a_head_to_the_unembedding(tl, model):
    return model.W_V[1, 0] @ model.W_O[1, 0] @ model.ln_final(model.W_U.T[:4]).T


@step
def gradient_free_parameters(tl, model):
    return [bool(parameter.requires_grad) for parameter in list(model.parameters())[:3]] != []


@step
def evaluation_mode(tl, model):
    return model.eval() is model, model.training
