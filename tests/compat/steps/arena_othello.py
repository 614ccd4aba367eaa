"""ARENA 1.5.3, OthelloGPT: linear probes in the residual stream, neurons, interventions."""

import torch

from steps.registry import step


def games():
    generator = torch.Generator().manual_seed(7)
    return torch.randint(100, 160, (6, 14), generator=generator)


def probe(model):
    generator = torch.Generator().manual_seed(8)
    return torch.randn(model.cfg.d_model, 4, 4, 3, generator=generator)


@step
def configuration_of_the_game(tl):
    cfg = tl.HookedTransformerConfig(
        n_layers=8, d_model=512, d_head=64, n_heads=8, d_mlp=2048, d_vocab=61, n_ctx=59,
        act_fn="gelu", normalization_type="LNPre", device="cpu",
    )  # fmt: skip
    return cfg.n_layers, cfg.d_vocab, cfg.normalization_type


@step
def logits_of_games(tl, model):
    logits, cache = model.run_with_cache(games())
    return logits.log_softmax(-1)[:, -1], cache["resid_post", 3].shape


@step
def probe_outputs(tl, model):
    _, cache = model.run_with_cache(games())
    out = torch.einsum("dxyo,bpd->bpxyo", probe(model), cache["resid_post", 2])
    return out.softmax(-1)[:, :, 0]


@step
def probe_by_layer(tl, model):
    _, cache = model.run_with_cache(games()[:1], remove_batch_dim=True)
    states = [cache["resid_post", layer] for layer in range(4)]
    return torch.stack([state @ probe(model)[:, 1, 2] for state in states])


@step
def contributions_of_layers(tl, model):
    _, cache = model.run_with_cache(games()[:1], remove_batch_dim=False)
    attention = torch.stack([cache["attn_out", layer][0] for layer in range(3)])
    neurons = torch.stack([cache["mlp_out", layer][0] for layer in range(3)])
    return attention @ probe(model)[:, 0, 0, 0], neurons @ probe(model)[:, 0, 0, 0]


@step
def flip_a_square(tl, model):
    direction = probe(model)[:, 2, 1, 1]

    def flip(resid, hook):
        along = resid[0, 6] @ direction / direction.norm()
        resid[0, 6] -= 2 * along * direction / direction.norm()

    logits = model.run_with_hooks(
        games()[:1], fwd_hooks=[(tl.utils.get_act_name("resid_post", 1), flip)]
    )
    return logits[0, 6].log_softmax(-1)


@step
def input_weights_of_neurons(tl, model):
    weights = model.W_in[2][:, 40].detach().clone()
    weights /= weights.norm()
    return torch.einsum("d,dxyo->xyo", weights, probe(model))


@step
def output_weights_of_neurons(tl, model):
    weights = model.blocks[2].mlp.W_out[40, :].detach().clone()
    return weights @ model.W_U[:, 100:160], weights @ probe(model)[:, 3, 3]


@step
def activations_of_neurons(tl, model):
    _, cache = model.run_with_cache(
        games(), names_filter=lambda name: name.endswith("mlp.hook_post")
    )
    activations = cache["post", 3][:, :, 77]
    return activations, activations.flatten().topk(4).values


@step
def ablate_a_neuron(tl, model):
    def off(value, hook):
        value[:, :, 40] = value[:, :, 40].mean()
        return value

    return model.run_with_hooks(games(), fwd_hooks=[("blocks.2.mlp.hook_post", off)])[
        :, -1
    ].log_softmax(-1)


@step
def patch_one_game_into_another(tl, model):
    clean, corrupted = games()[:1], games()[1:2]
    _, cache = model.run_with_cache(clean)

    def metric(logits):
        return logits[0, -1, 120] - logits[0, -1, 121]

    return tl.patching.get_act_patch_resid_pre(model, corrupted, cache, metric)


@step
def only_some_positions(tl, model):
    _, cache = model.run_with_cache(games(), pos_slice=-1)
    return cache["resid_post", 1], cache["z", 2]


@step
def caching_without_a_return(tl, model):
    _, cache = model.run_with_cache(games(), return_type=None, stop_at_layer=2)
    return sorted(name for name in cache.keys() if name.startswith("blocks.2")), cache[
        "resid_post", 1
    ]
