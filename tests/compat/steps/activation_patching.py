"""Activation_Patching_in_TL_Demo: the ready made sweeps, and the function they are made from."""

import functools

import torch

from steps.registry import step

CLEAN = "When Adam took the lamp, he saw that"
PROMPTS = [
    "Martin and Carl came to the tower. Then Carl showed a watch to",
    "Martin and Carl came to the tower. Then Martin showed a watch to",
]


def setting(model):
    """Clean and corrupted tokens, the clean cache and a normalised metric."""
    clean = model.to_tokens([PROMPTS[0]] * 2)
    corrupted = model.to_tokens([PROMPTS[1]] * 2)
    right, other = model.to_single_token(" Martin"), model.to_single_token(" Carl")

    def difference(logits):
        return (logits[:, -1, right] - logits[:, -1, other]).mean()

    clean_logits, cache = model.run_with_cache(clean)
    high, low = difference(clean_logits).item(), difference(model(corrupted)).item()

    def metric(logits):
        return (difference(logits) - low) / (high - low)

    return clean, corrupted, cache, metric


@step
def baselines(tl, model):
    clean, corrupted, _, metric = setting(model)
    return metric(model(clean)), metric(model(corrupted)), clean.shape[1]


@step
def resid_pre(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_resid_pre(model, corrupted, cache, metric)


@step
def attn_out(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_attn_out(model, corrupted, cache, metric)


@step
def mlp_out(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_mlp_out(model, corrupted, cache, metric)


@step
def every_block(tl, model):
    _, corrupted, cache, metric = setting(model)
    first = corrupted[:, :12], {name: value[:1, :12] for name, value in cache.items()}
    return first[0].shape, [
        tl.patching.get_act_patch_resid_pre(model, corrupted, cache, metric).max(),
        tl.patching.get_act_patch_mlp_out(model, corrupted, cache, metric).min(),
    ]


@step
def head_out_all_pos(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric)


@step
def head_q_all_pos(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_attn_head_q_all_pos(model, corrupted, cache, metric)


@step
def head_k_all_pos(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_attn_head_k_all_pos(model, corrupted, cache, metric)


@step
def head_v_all_pos(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_attn_head_v_all_pos(model, corrupted, cache, metric)


@step
def head_pattern_all_pos(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_attn_head_pattern_all_pos(model, corrupted, cache, metric)


@step
def head_all_pos_every(tl, model):
    _, corrupted, cache, metric = setting(model)
    return tl.patching.get_act_patch_attn_head_all_pos_every(model, corrupted, cache, metric)


def short(model):
    """A pair of five tokens, so that the sweeps over positions are small."""
    clean = model.to_tokens("The capital of Norway is")
    corrupted = model.to_tokens("The capital of Spain is")
    _, cache = model.run_with_cache(clean)
    return corrupted, cache, lambda logits: logits[0, -1, 300] - logits[0, -1, 301]


@step
def head_out_by_pos(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.get_act_patch_attn_head_out_by_pos(model, corrupted, cache, metric)


@step
def head_q_by_pos(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.get_act_patch_attn_head_q_by_pos(model, corrupted, cache, metric)


@step
def head_k_by_pos(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.get_act_patch_attn_head_k_by_pos(model, corrupted, cache, metric)


@step
def head_v_by_pos(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.get_act_patch_attn_head_v_by_pos(model, corrupted, cache, metric)


@step
def head_pattern_by_pos(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.get_act_patch_attn_head_pattern_by_pos(model, corrupted, cache, metric)


@step
def head_pattern_dest_src(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.get_act_patch_attn_head_pattern_dest_src_pos(model, corrupted, cache, metric)


@step
def head_by_pos_every(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.get_act_patch_attn_head_by_pos_every(model, corrupted, cache, metric)


@step
def block_every(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.get_act_patch_block_every(model, corrupted, cache, metric)


@step
def metric_with_arguments_bound(tl, model):
    corrupted, cache, _ = short(model)

    def one_logit(logits, token):
        return logits[0, -1, token]

    metric = functools.partial(one_logit, token=model.to_single_token(" Oslo"))
    return tl.patching.get_act_patch_resid_pre(model, corrupted, cache, metric)


@step
def noising(tl, model):
    clean = model.to_tokens("The capital of Norway is")
    _, cache = model.run_with_cache(model.to_tokens("The capital of Spain is"))
    return tl.patching.get_act_patch_attn_out(
        model, clean, cache, lambda logits: logits[0, -1].log_softmax(-1)[300]
    )


@step
def generic_by_axis_names(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.generic_activation_patch(
        model=model,
        corrupted_tokens=corrupted,
        clean_cache=cache,
        patching_metric=metric,
        patch_setter=tl.patching.layer_pos_patch_setter,
        activation_name="resid_post",
        index_axis_names=("layer", "pos"),
    )


@step
def generic_with_an_index(tl, model):
    corrupted, cache, metric = short(model)
    result, index = tl.patching.generic_activation_patch(
        model,
        corrupted,
        cache,
        metric,
        tl.patching.layer_head_vector_patch_setter,
        "z",
        index_axis_names=("layer", "head"),
        return_index_df=True,
    )
    return result, index.values.tolist(), list(index.columns)


@step
def generic_over_chosen_cells(tl, model):
    corrupted, cache, metric = short(model)
    index = tl.patching.make_df_from_ranges([2, 3], ["layer", "head"])
    return tl.patching.generic_activation_patch(
        model,
        corrupted,
        cache,
        metric,
        tl.patching.layer_head_vector_patch_setter,
        "v",
        index_df=index,
    )


@step
def generic_with_an_own_setter(tl, model):
    corrupted, cache, metric = short(model)

    def two_positions(corrupted_activation, index, clean_activation):
        layer, pos = index
        corrupted_activation[:, pos : pos + 2] = clean_activation[:, pos : pos + 2]
        return corrupted_activation

    return tl.patching.generic_activation_patch(
        model, corrupted, cache, metric, two_positions, "mlp_out", index_axis_names=("layer", "pos")
    )


@step
def generic_on_neurons(tl, model):
    corrupted, cache, metric = short(model)
    return tl.patching.generic_activation_patch(
        model,
        corrupted,
        cache,
        metric,
        tl.patching.layer_pos_patch_setter,
        "post",
        index_axis_names=("layer", "pos"),
    )


@step
def setters_by_themselves(tl):
    torch.manual_seed(0)
    clean, corrupted = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    patterns = torch.randn(2, 2, 3, 4, 4)
    p = tl.patching
    return (
        p.layer_pos_head_vector_patch_setter(corrupted.clone(), (1, 2, 0), clean),
        p.layer_head_pattern_patch_setter(patterns[0].clone(), (0, 1), patterns[1]),
        p.layer_head_pos_pattern_patch_setter(patterns[0].clone(), (0, 2, 3), patterns[1]),
        p.layer_head_dest_src_pos_pattern_patch_setter(
            patterns[0].clone(), (0, 1, 3, 2), patterns[1]
        ),
    )


@step
def induction_prompts(tl, model):
    torch.manual_seed(0)
    half = torch.randint(100, 1900, (1, 6))
    clean = torch.cat([half, half], dim=1)
    corrupted = clean.clone()
    corrupted[:, 2] = 77
    _, cache = model.run_with_cache(clean)
    return tl.patching.get_act_patch_resid_pre(
        model, corrupted, cache, lambda logits: logits[:, -3, clean[0, -3]].mean()
    )


@step
def metric_of_losses(tl, model):
    corrupted, cache, _ = short(model)

    def loss(logits):
        return tl.utils.lm_cross_entropy_loss(logits, corrupted)

    return tl.patching.get_act_patch_mlp_out(model, corrupted, cache, loss)
