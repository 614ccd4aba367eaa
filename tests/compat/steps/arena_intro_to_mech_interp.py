"""ARENA 1.2, introduction: caches, patterns, hooks, induction circuits."""

import functools

import torch

from steps.registry import MODEL, step

TEXT = "Martin saw the lamp in the tower. Carl saw the watch in the market."


def repeated(model, length=10, batch=2, seed=42):
    torch.manual_seed(seed)
    half = torch.randint(100, model.cfg.d_vocab - 100, (batch, length))
    prefix = torch.full((batch, 1), model.tokenizer.bos_token_id)
    return torch.cat([prefix, half, half], dim=-1)


@step
def read_the_configuration(tl, model):
    cfg = model.cfg
    return cfg.n_layers, cfg.n_heads, cfg.n_ctx, cfg.d_model // cfg.n_heads == cfg.d_head


@step
def loss_of_a_description(tl, model):
    return model(TEXT * 3, return_type="loss")


@step
def right_guesses(tl, model):
    tokens = model.to_tokens(TEXT)
    guesses = model(tokens).argmax(dim=-1).squeeze()[:-1]
    right = guesses == tokens[0, 1:]
    return right.sum(), right.shape[0], model.to_str_tokens(tokens[0, 1:][right])


@step
def same_activation_three_ways(tl, model):
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    one, two = cache["pattern", 0], cache["blocks.0.attn.hook_pattern"]
    three = cache[tl.utils.get_act_name("pattern", 0)]
    return torch.equal(one, two) and torch.equal(one, three)


@step
def pattern_from_queries_and_keys(tl, model):
    tokens = model.to_tokens(TEXT)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    q, k = cache["rot_q", 0], cache["rot_k", 0]
    scores = torch.einsum("qhd,khd->hqk", q, k) / model.cfg.d_head**0.5
    mask = torch.triu(torch.ones(q.shape[0], q.shape[0], dtype=torch.bool), 1)
    return scores.masked_fill(mask, -1e9).softmax(-1), cache["pattern", 0]


@step
def patterns_with_their_tokens(tl, model):
    tokens = model.to_tokens(TEXT)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    return model.to_str_tokens(tokens), [cache["pattern", layer] for layer in (0, 1)]


def detector(cache, model, offset, at_first=False):
    found = []
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            pattern = cache["pattern", layer][head]
            score = pattern[:, 0].mean() if at_first else pattern.diagonal(offset).mean()
            if score > 0.3:
                found.append(f"{layer}.{head}")
    return found


@step
def heads_to_the_current_token(tl, model):
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    return detector(cache, model, 0)


@step
def heads_to_the_previous_token(tl, model):
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    return detector(cache, model, -1)


@step
def heads_to_the_first_token(tl, model):
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True, prepend_bos=True)
    return detector(cache, model, 0, at_first=True)


@step
def cache_with_tokens_repeated(tl, model):
    tokens = repeated(model, batch=1)
    logits, cache = model.run_with_cache(tokens)
    cache.remove_batch_dim()
    logs = logits.log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0]
    return logs[:9].mean(), logs[10:].mean(), cache["pattern", 1].shape


@step
def induction_heads_in_a_cache(tl, model):
    _, cache = model.run_with_cache(repeated(model, batch=1), remove_batch_dim=True)
    return detector(cache, model, -9)


@step
def functions_with_arguments_bound(tl, model):
    def scale(value, hook, factor):
        return value * factor

    hook = functools.partial(scale, factor=0.5)
    return model.run_with_hooks(
        TEXT, return_type="loss", fwd_hooks=[("blocks.1.hook_attn_out", hook)]
    )


@step
def hooks_by_a_predicate(tl, model):
    found = []

    def name_of(value, hook):
        found.append((hook.name, hook.layer(), tuple(value.shape)))

    model.run_with_hooks(
        TEXT, return_type=None, fwd_hooks=[(lambda name: name.endswith("hook_pattern"), name_of)]
    )
    return found


@step
def induction_scores(tl, model):
    tokens = repeated(model, length=12, batch=4)
    store = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

    def score(pattern, hook):
        store[hook.layer()] = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - 12).mean((0, -1))

    only = lambda name: name.endswith("pattern")  # noqa: E731
    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(only, score)])
    return store


@step
def pictures_of_patterns_by_hooks(tl, model):
    shown = {}

    def show(pattern, hook):
        shown[hook.layer()] = pattern.mean(0)

    model.run_with_hooks(
        repeated(model),
        return_type=None,
        fwd_hooks=[(tl.utils.get_act_name("pattern", layer), show) for layer in (1, 2)],
    )
    return shown


@step
def logit_attribution_by_hand(tl, model):
    tokens = model.to_tokens(TEXT)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    directions = model.W_U[:, tokens[0, 1:]]
    parts = [torch.einsum("pd,dp->p", cache["embed"][:-1], directions)]
    for layer in range(4):
        result = torch.einsum("phd,hdm->phm", cache["z", layer], model.W_O[layer])
        parts.append(torch.einsum("phm,mp->ph", result[:-1], directions))
    return parts


@step
def results_behind_the_flag(tl, model):
    model.set_use_attn_result(True)
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    model.set_use_attn_result(False)
    return cache["result", 0], cache["result", 3]


def ablated(tl, model, by):
    tokens = repeated(model)
    base = model(tokens, return_type="loss")
    scores = torch.zeros(4, 4)
    for layer in range(4):
        for head in range(4):
            hook = functools.partial(by, head=head)
            loss = model.run_with_hooks(
                tokens,
                return_type="loss",
                fwd_hooks=[(tl.utils.get_act_name("z", layer), hook)],
            )
            scores[layer, head] = loss - base
    return scores


@step
def ablation_to_zero(tl, model):
    def zero(z, hook, head):
        z[:, :, head, :] = 0.0
        return z

    return ablated(tl, model, zero)


@step
def ablation_to_the_mean(tl, model):
    def mean(z, hook, head):
        z[:, :, head, :] = z[:, :, head, :].mean(0)
        return z

    return ablated(tl, model, mean)


@step
def loss_on_the_second_half(tl, model):
    def zero(result, hook):
        result[:, :, 1] = 0

    logits = model.run_with_hooks(
        repeated(model), return_type="logits", fwd_hooks=[("blocks.2.attn.hook_z", zero)]
    )
    return tl.utils.lm_cross_entropy_loss(logits[:, 11:], repeated(model)[:, 11:])


@step
def full_ov_circuit(tl, model):
    head = 2
    w_o, w_v, w_e, w_u = model.W_O[1, head], model.W_V[1, head], model.W_E, model.W_U
    circuit = tl.FactoredMatrix(w_v, w_o)
    full = w_e @ circuit @ w_u
    some = full[200:210, 200:210]
    return full.shape, some.AB, full.norm()


@step
def copies_on_its_diagonal(tl, model):
    full = tl.FactoredMatrix(model.W_E @ model.W_V[1, 2], model.W_O[1, 2] @ model.W_U)
    best = full.AB.argmax(dim=1)
    return (best == torch.arange(model.cfg.d_vocab)).float().mean()


@step
def circuit_of_two_heads(tl, model):
    w_v = torch.cat([model.W_V[1, 0], model.W_V[1, 2]], dim=-1)
    w_o = torch.cat([model.W_O[1, 0], model.W_O[1, 2]], dim=0)
    both = tl.FactoredMatrix(model.W_E @ w_v, w_o @ model.W_U)
    return both.mdim, both.ldim, both.rdim, both.get_corner(4)


@step
def query_key_circuit(tl, model):
    qk = tl.FactoredMatrix(model.W_Q[0, 1], model.W_K[0, 1].T)
    full = model.W_E[:40] @ qk @ model.W_E[:40].T
    return full.AB / model.cfg.d_head**0.5


@step
def decomposed_inputs(tl, model):
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    outs = [cache["z", 0][:, head] @ model.W_O[0, head] for head in range(4)]
    parts = torch.stack([cache["embed"], *outs, cache["mlp_out", 0]])
    rest = cache["resid_pre", 1] - parts.sum(0)
    return parts @ model.W_Q[1, 0], rest


@step
def composition_scores(tl, model):
    def score(a, b):
        return (a @ b).norm() / (a.norm() * b.norm())

    scores = torch.zeros(4, 4)
    for first in range(4):
        for second in range(4):
            scores[first, second] = score(model.OV[0, first].AB, model.QK[1, second].AB.T)
    return scores


@step
def composition_scores_of_the_library(tl, model):
    left = tl.FactoredMatrix(model.W_V[0], model.W_O[0])
    right = tl.FactoredMatrix(model.W_Q[1], model.W_K[1].transpose(-1, -2))
    return tl.utils.composition_scores(left, right, broadcast_dims=True)


@step
def several_heads_by_index(tl, model):
    ov = model.OV
    return ov[0].shape, ov[:, 1].norm(), ov[2, 3, :5].shape, ov[1, 2].U.abs(), ov[1, 2].S


@step
def hooks_stay_until_they_are_reset(tl, model):
    model.reset_hooks()
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    first = model(TEXT, return_type="loss")
    second = model(TEXT, return_type="loss")
    model.reset_hooks()
    return first, second, model(TEXT, return_type="loss")


@step
def hooks_with_their_context(tl, model):
    def remember(value, hook):
        hook.ctx["norm"] = value.norm()

    model.add_hook("blocks.2.hook_resid_pre", remember)
    model(TEXT)
    norm = model.blocks[2].hook_resid_pre.ctx["norm"].clone()
    model.reset_hooks()
    return norm


@step
def two_hooks_on_one_point(tl, model):
    return model.run_with_hooks(
        TEXT,
        return_type="loss",
        fwd_hooks=[
            ("blocks.0.hook_mlp_out", lambda value, hook: value + 1),
            ("blocks.0.hook_mlp_out", lambda value, hook: value * 2),
        ],
    )


@step
def caching_by_a_hook_point(tl, model):
    seen = []
    model.blocks[1].attn.hook_pattern.add_hook(lambda pattern, hook: seen.append(pattern.clone()))
    model(TEXT)
    model.reset_hooks()
    return seen[0]


@step
def hook_dict(tl, model):
    points = model.hook_dict
    return "blocks.0.attn.hook_z" in points, points["blocks.3.hook_resid_post"].name


@step
def load_a_second_time(tl):
    model = tl.HookedTransformer.from_pretrained(
        MODEL, center_unembed=True, center_writing_weights=True, fold_ln=True, device="cpu"
    )
    return model.W_Q, model.b_U
