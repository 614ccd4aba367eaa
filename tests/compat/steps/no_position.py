"""No_Position_Experiment: a small model without positions, trained on previous tokens."""

import torch

from steps.registry import step


def configuration(tl, **changes):
    settings = {
        "n_layers": 2,
        "d_model": 16,
        "n_ctx": 24,
        "d_head": 8,
        "n_heads": 2,
        "d_vocab": 30,
        "attn_only": True,
        "act_fn": "relu",
        "seed": 5,
        "device": "cpu",
        "normalization_type": "LN",
    }
    return tl.HookedTransformerConfig(**settings | changes)


def without_positions(tl):
    model = tl.HookedTransformer(configuration(tl))

    def nothing(value, hook):
        value[:] = 0.0
        return value

    model.hook_pos_embed.add_hook(nothing)
    return model


@step
def configuration_of_ones_own(tl):
    cfg = configuration(tl)
    return cfg.n_layers, cfg.d_mlp, cfg.n_params, cfg.attn_only


@step
def configuration_from_a_dictionary(tl):
    cfg = tl.HookedTransformerConfig.from_dict(
        {"n_layers": 1, "d_model": 8, "n_ctx": 10, "d_head": 4, "act_fn": "gelu", "d_vocab": 11}
    )
    return cfg.n_heads, cfg.d_mlp, sorted(cfg.to_dict())[:0]


@step
def model_without_positions(tl):
    torch.manual_seed(0)
    model = without_positions(tl)
    return model(torch.arange(10)[None]).shape


@step(grad=True)
def loss_of_the_previous_token(tl):
    torch.manual_seed(0)
    model = without_positions(tl)
    tokens = torch.randint(1, 30, (4, 12))
    logits = model(tokens)[:, 1:].log_softmax(-1)
    loss = -logits.gather(-1, tokens[:, :-1, None]).mean()
    loss.backward()
    return loss.item() > 0


@step
def permanent_hook_stays(tl, model):
    def nothing(value, hook):
        return torch.zeros_like(value)

    model.add_perma_hook("blocks.0.hook_mlp_out", nothing)
    model.reset_hooks()
    with_it = model("The capital of Norway is", return_type="loss")
    model.reset_hooks(including_permanent=True)
    return with_it, model("The capital of Norway is", return_type="loss")


@step
def patterns_of_the_last_position(tl, model):
    _, cache = model.run_with_cache(torch.arange(100, 120)[None], remove_batch_dim=True)
    return torch.stack([cache["attn", layer][:, -1] for layer in range(4)])
