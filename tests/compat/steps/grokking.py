"""Grokking_Demo: the calls it makes on a model, its weights and its activations."""

import torch

from steps.registry import step


def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(100, 1000, (20, 3), generator=generator)


@step
def configuration_of_one_layer(tl):
    cfg = tl.HookedTransformerConfig(
        n_layers=1,
        n_heads=4,
        d_model=32,
        d_head=8,
        d_mlp=64,
        act_fn="relu",
        normalization_type=None,
        d_vocab=20,
        d_vocab_out=19,
        n_ctx=3,
        init_weights=True,
        device="cpu",
        seed=999,
    )
    return cfg.d_vocab_out, cfg.n_ctx, cfg.init_weights


@step
def biases_without_gradients(tl, raw):
    for name, parameter in raw.named_parameters():
        if "b_" in name:
            parameter.requires_grad = False
    frozen = sum(not parameter.requires_grad for parameter in raw.parameters())
    for parameter in raw.parameters():
        parameter.requires_grad = True
    return frozen > 0


@step
def loss_at_the_last_position(tl, model):
    logits = model(tokens())[:, -1].to(torch.float64)
    return -logits.log_softmax(dim=-1).gather(dim=-1, index=tokens()[:, :1])[:, 0].mean()


@step
def embedding_and_unembedding(tl, model):
    return model.embed.W_E[:-1], model.unembed.W_U, model.W_E.shape


@step
def effective_weights(tl, model):
    w_out, w_u = model.blocks[0].mlp.W_out, model.unembed.W_U
    return (w_out @ w_u).shape, (w_out @ w_u).norm()


@step
def embedding_through_the_values(tl, model):
    block = model.blocks[0]
    return (model.embed.W_E[:50] @ block.attn.W_V[0] @ block.attn.W_O[0] @ block.mlp.W_in).norm(
        dim=0
    )


@step
def keys_through_the_embedding(tl, model):
    block = model.blocks[0]
    return model.embed.W_E[:30] @ block.attn.W_K @ block.attn.W_Q[0].T


@step
def singular_values_of_the_embedding(tl, model):
    return torch.linalg.svdvals(model.W_E)


@step
def neurons_over_all_inputs(tl, model):
    _, cache = model.run_with_cache(tokens())
    return cache["post", 0, "mlp"][:, -1, :], cache["blocks.0.mlp.hook_pre"][:, -1]


@step
def attention_to_the_first(tl, model):
    _, cache = model.run_with_cache(tokens())
    return cache["blocks.0.attn.hook_pattern"][:, :, -1, 0], cache["attn_scores", 0][:, :, -1]


@step
def stream_in_the_middle(tl, model):
    _, cache = model.run_with_cache(tokens())
    return cache["resid_pre", 1][:, -1] - cache["resid_pre", 0][:, -1]


@step
def approximated_neurons(tl, model):
    def on_average(value, hook):
        return value.mean(0, keepdim=True).expand_as(value).clone()

    logits = model.run_with_hooks(tokens(), fwd_hooks=[("blocks.0.mlp.hook_post", on_average)])
    return logits[:, -1].log_softmax(-1)[:, 500]


@step
def weights_into_a_state_dict(tl, raw):
    state = raw.state_dict()
    return sorted(name for name in state if name.startswith("blocks.0.attn.W"))


@step
def load_a_state_dict(tl, raw):
    state = {name: value.clone() for name, value in raw.state_dict().items()}
    raw.load_state_dict(state)
    return raw(tokens())[:, -1].log_softmax(-1)
