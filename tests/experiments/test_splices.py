"""What experiments other than sweeps make of spliced functions: exact numbers, or refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import same
from test_attribution import LM_METRIC, build, close, prompts, value
from test_paths import Runs
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError
from neox_lab.experiments.paths.path_patching import edge_sweep, path_patch
from neox_lab.hooks import SplicedPoint

INSIDE = ("blocks.1.hook_mlp_out", "blocks.0.mlp.hook_post", "blocks.1.attn.hook_z")
BETWEEN = (
    "hook_embed",
    "blocks.1.hook_resid_pre",
    "blocks.1.hook_attn_out",
    "blocks.1.attn.hook_in",
    "blocks.1.attn.hook_result",
    "ln_final.hook_normalized",
)


def bend(x: Tensor, tap: Any) -> Tensor:
    """Another tensor of the same shape, by way of sparse activations."""
    return tap("hook_acts", torch.relu(x * 1.3 - 0.2)) - 0.4 * x.flip(-1)


def bent(x: Tensor, _: Any) -> Tensor:
    """The same as an ordinary hook."""
    return torch.relu(x * 1.3 - 0.2) - 0.4 * x.flip(-1)


def spliced(model: Any, site: str) -> Any:
    axes = " ".join(model.hook_points[site].axes)
    point = SplicedPoint("hook_acts", axes, "sparse activations")
    return model.spliced_function(site, bend, [point], must_fire=False)


@pytest.mark.parametrize("site", INSIDE)
@pytest.mark.parametrize("parallel", [True, False])
def test_every_edge(parallel: bool, site: str) -> None:
    model = build(use_parallel_residual=parallel, num_hidden_layers=2, num_attention_heads=2)
    clean, corrupted = prompts(1), prompts(0)
    plain = edge_sweep(model, clean, corrupted, LM_METRIC)
    with spliced(model, site):
        runs = Runs(model, LM_METRIC, clean, corrupted)
        result = edge_sweep(model, clean, corrupted, LM_METRIC)
        assert result.samples is not None
        for row, writer in enumerate(result.labels["writer"]):
            for column, reader in enumerate(result.labels["reader"]):
                found = result.samples[:, row, column]
                if not found.isnan().all():
                    close(found, runs.along_edge(writer, reader))
    assert float((result.values - plain.values).nan_to_num().abs().max()) > 0.01


@pytest.mark.parametrize("site", INSIDE)
@pytest.mark.parametrize("through", ["nothing", "mlps"])
@pytest.mark.parametrize("parallel", [True, False])
def test_paths_as_defined(parallel: bool, through: Any, site: str) -> None:
    model = build(use_parallel_residual=parallel)
    clean, corrupted = prompts(1), prompts(0)
    senders = ["embed", "L0H0", "MLP0", "L1H2", ["L0H1", "MLP0", "L1H0"]]
    with spliced(model, site):
        runs = Runs(model, LM_METRIC, clean, corrupted)
        for receivers in (["logits"], ["L1H0.v", "MLP1", "L2H3.q"]):
            result = path_patch(
                model, clean, corrupted, LM_METRIC, senders, receivers, through=through
            )
            assert result.samples is not None
            for at, sender in enumerate(senders):
                group = [sender] if isinstance(sender, str) else sender
                close(result.samples[:, at], runs.wang(group, receivers, through == "mlps"))


@pytest.mark.parametrize("site", [*INSIDE, "blocks.0.hook_resid_post"])
def test_attribution_of_nodes(site: str) -> None:
    model = build(double=True)
    clean, corrupted = prompts(1, "right"), prompts(0, "right")
    with spliced(model, site):
        result = nl.attribution.attribution_patch(model, clean, corrupted, LM_METRIC, "mlp_out")
        hook = "blocks.1.hook_mlp_out"
        _, there = model.run_with_cache(clean["input_ids"], [hook], **clean)
        _, here = model.run_with_cache(corrupted["input_ids"], [hook], **corrupted)

        def moved(step: float) -> Tensor:
            goal = here[hook].clone()
            goal[:, 4] += step * (there[hook] - here[hook])[:, 4]
            return value(model, LM_METRIC, corrupted, fwd_hooks=[(hook, lambda t, _: goal)])

        slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
        assert result.per_row is not None
        close(result.per_row[:, 1, 4], slope, 5e-4)
        exact = nl.patching.sweep(
            model, clean, corrupted, LM_METRIC, "mlp_out", progress=False
        ).effect()
        agreement = result.check()
        found = torch.tensor(agreement.frame.sort_values(["layer", "pos"])["exact"])
        close(found, exact.flatten())
    with pytest.raises(HookError, match="with block"):
        result.check()


@pytest.mark.parametrize("site", INSIDE)
@pytest.mark.parametrize("parallel", [True, False])
def test_attribution_of_edges_sums_to_nodes(parallel: bool, site: str) -> None:
    model = build(use_parallel_residual=parallel)
    given = (model, prompts(1), prompts(0), LM_METRIC)
    with spliced(model, site):
        edges = nl.attribution.attribution_patch(*given, "edges")
        sums = dict(zip(edges.labels["writer"], edges.values.nansum(dim=1).tolist(), strict=True))
        heads = nl.attribution.attribution_patch(*given, "z_all_pos").values
        mlps = nl.attribution.attribution_patch(*given, "mlp_out").values.sum(dim=1)
        embed = nl.attribution.attribution_patch(*given, "resid_pre").values[0].sum()
    expected = {f"L{at}H{head}": float(heads[at, head]) for at in range(3) for head in range(4)}
    expected |= {f"MLP{at}": float(mlps[at]) for at in range(3)}
    assert sums == pytest.approx(expected | {"embed": float(embed)}, abs=1e-4)
    with pytest.raises(HookError, match="with block"):
        edges.check()


@pytest.mark.parametrize("by", ["component", "layer", "neuron"])
@pytest.mark.parametrize("site", INSIDE)
def test_direct_shares_sum_to_the_metric(site: str, by: Any) -> None:
    model, given = build(), prompts()
    with spliced(model, site):
        if by == "neuron" and site.endswith("mlp_out"):
            with pytest.raises(HookError, match=site):
                nl.attribution.direct_logit_attribution(model, given, 3, 7, by=by)
            return
        result = nl.attribution.direct_logit_attribution(model, given, 3, 7, by=by)
        metric = nl.patching.logit_difference(3, 7)
        total = float(value(model, metric, given).mean())
        _, cache = model.run_with_cache(given["input_ids"], **given)
    assert result.total == pytest.approx(total, abs=1e-5)
    assert float(result.values.sum()) == pytest.approx(total, abs=1e-4)
    if by == "layer":
        scale = cache["ln_final.hook_scale"][:, -1]
        weight = model.output_head.weight
        along = (weight[3] - weight[7]) * model.backbone.final_layer_norm.weight
        written = cache["mlp_out", 1][:, -1]
        share = ((written - written.mean(-1, keepdim=True)) / scale * along).sum(-1).mean()
        assert float(result.values[result.labels["component"].index("MLP1")]) == pytest.approx(
            float(share.detach()), abs=1e-5
        )


@pytest.mark.parametrize("site", [*INSIDE, "blocks.0.hook_resid_post"])
def test_tokens_and_lens_and_detection_as_with_an_ordinary_hook(site: str) -> None:
    """What a function without activations does, a hook does, and these always saw hooks."""
    model, given = build(), prompts()
    ids = given["input_ids"]
    questions: list[Callable[[], Tensor]] = [
        lambda: nl.attribution.integrated_gradients(model, given, LM_METRIC, steps=8).values,
        lambda: nl.attribution.occlusion(model, given, LM_METRIC).values,
        lambda: nl.lens.logit_lens(model, ids).entropy,
        lambda: nl.lens.logit_lens(model, ids, "mlp_out").entropy,
        lambda: nl.detect.heads(model, "previous_token", ids).values,
    ]
    for question in questions:
        plain = question()
        with model.hooks([(site, bent)]):
            wanted = question()
        with spliced(model, site):
            got = question()
        same(got.nan_to_num(), wanted.nan_to_num())
        assert float((wanted - plain).nan_to_num().abs().max()) > 1e-4 or "blocks.1" in site
    with spliced(model, site):
        result = nl.attribution.integrated_gradients(model, given, LM_METRIC, steps=8)
        result.check()
    with pytest.raises(HookError, match="with block"):
        result.check()


@pytest.mark.parametrize("site", BETWEEN)
def test_what_would_be_wrong_is_refused_by_name(site: str) -> None:
    model, clean, corrupted = build(), prompts(1), prompts(0)
    given = (model, clean, corrupted, LM_METRIC)
    questions: list[Callable[[], Any]] = [
        lambda: edge_sweep(*given),
        lambda: path_patch(*given),
        lambda: nl.attribution.attribution_patch(*given, "edges"),
        lambda: nl.attribution.direct_logit_attribution(model, clean, 3, 7),
        lambda: nl.lens.direct(model, clean["input_ids"], 3, 7),
    ]
    if not site.startswith("blocks"):
        questions += [
            lambda: nl.attribution.integrated_gradients(model, clean, LM_METRIC),
            lambda: nl.attribution.occlusion(model, clean, LM_METRIC),
        ]
    if site.startswith("ln_final"):
        questions += [
            lambda: nl.lens.logit_lens(model, clean["input_ids"]),
            lambda: nl.patching.sweep(*given, progress=False),
        ]
    with spliced(model, site):
        for question in questions:
            with pytest.raises(HookError, match=site.replace(".", r"\.")):
                question()


def test_direct_paths_of_transformer_lens_are_refused() -> None:
    model = build()
    ids = [prompts(seed, "none")["input_ids"] for seed in (1, 0)]
    with spliced(model, INSIDE[0]):
        caches = [model.run_with_cache(side)[1] for side in ids]
        with pytest.raises(HookError, match="hook_mlp_out"):
            nl.patching.get_act_patch_direct_path(model, ids[1], *caches, LM_METRIC, 0, 0)
        found = nl.patching.get_act_patch_mlp_out(model, ids[1], caches[0], LM_METRIC)
        wanted = nl.patching.sweep(model, *ids, LM_METRIC, "mlp_out", progress=False)
        same(found, wanted.values)
