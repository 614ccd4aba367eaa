"""A patching site is one row of a table, and what stands at its hook can come from anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import same
from patching_oracle import one_by_one, prompts, put, small
from torch import Tensor

import neox_lab as nl
from neox_lab.experiments.patching.effects import ChangedTokens, PatchedLayer
from neox_lab.experiments.patching.sites import BY_POS, SITES, Site

difference = nl.patching.logit_difference(3, 7)


def any_function(logits: Tensor) -> Tensor:
    """Reads everything."""
    return (logits.softmax(dim=-1)[..., 3] * torch.arange(logits.shape[1])).sum(dim=1).mean()


def as_mlp_pre(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """What is replaced is what the MLP's first matrix makes."""
    mlp, run = layer.block.mlp, layer.own
    mlp_out: Tensor = mlp.dense_4h_to_h(mlp.act(tokens.of(layer.source)))
    return mlp_out + tokens.of(run.attn_out) + tokens.of(run.resid_pre)


def as_mlp_post(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """What is replaced is what the MLP's second matrix reads."""
    mlp_out: Tensor = layer.block.mlp.dense_4h_to_h(tokens.of(layer.source))
    return mlp_out + tokens.of(layer.own.attn_out) + tokens.of(layer.own.resid_pre)


NEW = {
    site.name: site
    for site in (
        Site("mlp_pre", BY_POS, "mlp.hook_pre", "one", as_mlp_pre),
        Site("mlp_post", BY_POS, "mlp.hook_post", "one", as_mlp_post),
    )
}


@pytest.fixture(params=NEW)
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a site that is in the table for the time of a test."""
    monkeypatch.setitem(SITES, request.param, NEW[request.param])
    return str(request.param)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("metric", [difference, any_function])
def test_a_new_row_is_a_new_site(site: str, parallel: bool, metric: Any) -> None:
    model = small(use_parallel_residual=parallel)
    clean, corrupted = prompts(2, 5, 1)
    got = nl.patching.sweep(model, clean, corrupted, metric, site, progress=False)
    wanted = one_by_one(model, clean, corrupted, metric, site)
    same(got.values, wanted)
    assert float(wanted.max() - wanted.min()) > 0.01
    _, cache = model.run_with_cache(clean)
    same(nl.patching.sweep(model, cache, corrupted, metric, site, progress=False).values, wanted)
    named = nl.patching.sweep(
        model, clean, corrupted, metric, site, positions={"third": 2}, progress=False
    )
    same(named.values, wanted[:, 2:3])
    both = nl.patching.sweep(model, clean, corrupted, metric, [site, "mlp_out"], progress=False)
    same(both.values[0], wanted)


def test_a_new_site_can_be_ablated_and_estimated(site: str) -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    got = nl.patching.ablate(model, clean, difference, site, "zero", progress=False)
    hook = f"blocks.1.{NEW[site].hook}"

    def clear(tensor: Tensor, _: object) -> None:
        tensor[:, 3] = 0

    output = model.run_with_hooks(clean, [(hook, clear)])
    same(got.values[1, 3], difference(output.logits))
    estimate = nl.attribution.attribution_patch(model, clean, corrupted, difference, site)
    assert estimate.values.shape == got.values.shape


@pytest.mark.parametrize("read", [-1, 2])
@pytest.mark.parametrize("value", ["zero", "mean_by_pos"])
@pytest.mark.parametrize("name", ["pattern_all_pos", "pattern_by_dest", "pattern_by_dest_source"])
def test_patterns_are_ablated_in_models_with_more_heads_than_tokens(
    name: str, value: Any, read: int
) -> None:
    model = small(num_attention_heads=6)
    texts, _ = prompts(2, 4, 1)
    metric = nl.patching.logit_difference(3, 7, pos=read)
    got = nl.patching.ablate(model, texts, metric, name, value, progress=False)
    site = SITES[name]
    _, cache = model.run_with_cache(texts)
    for cell in ((0, 5, 2, 1), (1, 3, 2, 2)):
        at = dict(zip(("layer", "head", "pos", "source_pos"), cell, strict=True))
        at = {axis: at[axis] for axis in site.axes}
        hook = f"blocks.{at['layer']}.{site.hook}"
        own = cache[hook]
        source = own.mean(dim=0, keepdim=True).expand_as(own)
        if value == "zero":
            source = torch.zeros_like(own)
        output = model.run_with_hooks(
            texts, [(hook, lambda x, _, s=source, a=at: put(x, s, site, a))]
        )
        same(got.values[tuple(at.values())], metric(output.logits))


def test_each_run_of_a_classifier_is_read_at_its_own_last_token() -> None:
    model = small("sequence-classification")
    clean, corrupted = prompts(2, 7, 1)[0], prompts(2, 5, 1, seed=3)[1]

    def metric(logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)[:, 2].mean()

    got = nl.patching.sweep(
        model, clean, corrupted, metric, "mlp_out", positions={"second": 1}, progress=False
    )
    with torch.no_grad():
        assert got.clean == pytest.approx(float(metric(model(clean).logits)), abs=1e-6)
        assert got.corrupted == pytest.approx(float(metric(model(corrupted).logits)), abs=1e-6)
