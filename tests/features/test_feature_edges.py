"""Edges of feature circuits against Jacobians written out, every other site held by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import random_dictionary
from hand_spliced import Hands, mean_slopes, padded
from patching_oracle import prompts, small
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError, InputError
from neox_lab.features import FeatureCircuit, FeatureEdges

D = 24
MLP, RESID, ATTN = "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post", "blocks.1.hook_attn_out"
IN, OUT, LAST = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"
SITES = [MLP, RESID, ATTN, OUT, LAST]
METRIC = nl.patching.logit_difference(3, 7)
pytestmark = pytest.mark.filterwarnings("ignore::neox_lab.errors.NeoxLabWarning")


def dictionaries() -> list[Any]:
    """One at each site, not in the order of the forward pass."""
    made = [
        random_dictionary(D, LAST, latents=9, kind="JumpReLU", seed=40),
        random_dictionary(D, IN, site_out=OUT, latents=10, kind="ReLU", skip=True, seed=20),
        random_dictionary(D, MLP, latents=12, kind="TopK scaled"),
        random_dictionary(D, ATTN, latents=7, kind="Gated", seed=30),
        random_dictionary(D, RESID, latents=8, kind="ReLU", seed=10),
    ]
    return [each.double() for each in made]


def asked(*, parallel: bool, pairs: bool) -> tuple[Any, Any, FeatureCircuit, Hands, Hands | None]:
    model = small(use_parallel_residual=parallel).double()
    clean, corrupted = map(padded, prompts(2, 5, 2))
    ours = dictionaries()
    found = nl.features.circuit(model, ours, clean, METRIC, corrupted if pairs else None, steps=3)
    hands, other = Hands(model, ours, clean, METRIC), None
    if pairs:
        other = Hands(model, ours, corrupted, METRIC)
        other.run()
    return model, ours, found, hands, other


def short(site: str) -> str:
    return site.removeprefix("blocks.").replace("hook_", "")


def by_hand(hands: Hands, other: Hands | None, *, stop: bool = True) -> dict[Any, float]:
    """Every edge, by a run for each site upstream and a run back for each node downstream."""
    found: dict[Any, float] = {}
    moved = {site: mean_slopes(hands, other, site) for site in SITES}
    mask = hands.inputs["attention_mask"][..., None]
    for at, begin in enumerate(SITES):
        hands.run()
        leaves = [x[begin].detach().requires_grad_() for x in (hands.acts, hands.errors)]

        def held(site: str, acts: Tensor, error: Tensor, here: Any = (begin, leaves)) -> Any:
            if site == here[0]:
                return here[1]
            return (acts.detach(), error.detach()) if stop else (acts, error)

        metric = hands.run(held)
        rows = len(metric)
        put(found, begin, "metric", "", leaves, moved[begin][0], metric.sum(), rows)
        for end in SITES[at + 1 :]:
            slopes = [slope * mask for slope in moved[end][1]]
            acts, error = hands.acts[end], hands.errors[end]
            numbers = {str(k): acts[..., k] * slopes[0][..., k] for k in range(acts.shape[-1])}
            numbers["error"] = error * slopes[1]
            for name, value in numbers.items():
                put(found, begin, short(end), name, leaves, moved[begin][0], value, rows)
    return found


def put(
    found: dict[Any, float],
    begin: str,
    end: str,
    name: str,
    leaves: list[Tensor],
    changes: tuple[Tensor, Tensor],
    value: Tensor,
    rows: int,
) -> None:
    """Derivatives of what a node downstream counts for, times changes, added up."""
    total = [torch.zeros_like(leaf) for leaf in leaves]
    if value.requires_grad:
        total = list(
            torch.autograd.grad(
                value.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )
    features = (total[0] * changes[0]).sum(dim=(0, 1)) / rows
    for latent, effect in enumerate(features.tolist()):
        found[short(begin), str(latent), end, name] = effect
    found[short(begin), "error", end, name] = float((total[1] * changes[1]).sum()) / rows


def table(edges: FeatureEdges) -> dict[Any, float]:
    frame = edges.frame
    columns = [frame[name].tolist() for name in frame.columns]
    return {(a, b, c, d): effect for a, b, c, d, effect in zip(*columns, strict=True)}


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_edges_are_direct_effects_times_slopes(pairs: bool, parallel: bool) -> None:
    _, _, found, hands, other = asked(parallel=parallel, pairs=pairs)
    ours = table(found.edges(0, node_threshold=0))
    expected = by_hand(hands, other)
    for edge, effect in expected.items():
        assert ours.pop(edge, 0.0) == pytest.approx(effect, abs=1e-9), edge
    assert not ours
    joined = {(a, c) for (a, _, c, _), effect in expected.items() if effect}
    assert ((short(ATTN), short(OUT)) in joined) == (not parallel)
    assert (short(MLP), short(OUT)) not in joined  # resid_post stands in between
    without = by_hand(hands, other, stop=False)
    assert max(abs(without[edge] - expected[edge]) for edge in expected) > 0.01


@pytest.mark.parametrize("pairs", [True, False])
def test_along_the_stream_alone_an_edge_is_decoder_times_encoder(pairs: bool) -> None:
    model = small().double()
    block = model.backbone.layers[1]
    for linear in (block.attention.dense, block.mlp.dense_4h_to_h):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    clean, corrupted = map(padded, prompts(2, 5, 2))
    ours = [
        random_dictionary(D, site, latents=11, kind="ReLU", seed=seed).double()
        for site, seed in ((RESID, 3), (LAST, 8))
    ]
    found = nl.features.circuit(model, ours, clean, METRIC, corrupted if pairs else None, steps=3)
    edges = table(found.edges(0, node_threshold=0))
    hands, other = Hands(model, ours, clean, METRIC), None
    if pairs:
        other = Hands(model, ours, corrupted, METRIC)
        other.run()
    changes, _ = mean_slopes(hands, other, RESID)
    _, slopes = mean_slopes(hands, other, LAST)
    hands.run()
    product = ours[0].W_dec @ ours[1].W_enc
    slope = slopes[0] * (hands.acts[LAST] > 0)
    expected = torch.einsum("bpu,ud,bpd->ud", changes[0], product, slope) / 2
    for (u, d), effect in zip(
        [(u, d) for u in range(11) for d in range(11)], expected.flatten().tolist(), strict=True
    ):
        got = edges.get((short(RESID), str(u), short(LAST), str(d)), 0.0)
        assert got == pytest.approx(effect, abs=1e-10)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("parallel", [True, False])
def test_the_check_exchanges_the_node_upstream_and_holds_every_other_site(parallel: bool) -> None:
    _, _, found, hands, other = asked(parallel=parallel, pairs=True)
    assert other is not None
    edges = found.edges(0.001, node_threshold=0)
    agreement = edges.check(edges=40)
    assert len(agreement.frame) == 40
    moved = {short(site): mean_slopes(hands, other, site) for site in SITES}
    mask = hands.inputs["attention_mask"][..., None]
    hands.run()
    held = {short(site): (hands.acts[site], hands.errors[site]) for site in SITES}

    def counted(name: str, metric: Tensor) -> Tensor:
        if name == "metric":
            return metric.mean()
        site, latent = name.split()
        full = f"blocks.{site[0]}.hook_{site[2:]}"
        slopes = [slope * mask for slope in moved[site][1]]
        if latent == "error":
            return (hands.errors[full] * slopes[1]).sum() / len(metric)
        at = int(latent[1:])
        return (hands.acts[full][..., at] * slopes[0][..., at]).sum() / len(metric)

    for _, row in agreement.frame.iterrows():
        begin, end = row["component"].split(" → ")
        site, latent = begin.split()

        def put(
            at: str, acts: Tensor, error: Tensor, site: str = site, latent: str = latent
        ) -> Any:
            acts, error = (x.clone() for x in held[short(at)])
            if short(at) == site and latent == "error":
                error = error + moved[site][0][1]
            elif short(at) == site:
                acts[..., int(latent[1:])] += moved[site][0][0][..., int(latent[1:])]
            return acts, error

        with torch.no_grad():
            before = counted(end, hands.run())
            after = counted(end, hands.run(put))
        assert row["exact"] == pytest.approx(float(after - before), abs=1e-6)
    with pytest.raises(InputError, match="edges"):
        edges.check(edges=0)
    with pytest.raises(InputError, match="no edge"):
        found.edges(1e6).check()


def test_with_one_dictionary_an_edge_to_the_metric_is_the_effect_by_gradient() -> None:
    model = small(use_parallel_residual=False).double()
    clean, corrupted = map(padded, prompts(2, 5, 2))
    dictionary = random_dictionary(D, RESID, latents=11, kind="ReLU").double()

    def metric(logits: Tensor) -> Tensor:
        return logits[..., 3].mean()  # reads padding too

    given = (model, dictionary, clean, metric, corrupted)
    edges = nl.features.circuit(*given, steps=1).edges(0, node_threshold=0).frame
    effects = nl.features.effects(*given, method="gradient", summed=True)
    shares = dict(zip(effects.labels["latent"], effects.values.tolist(), strict=True))
    features = edges[edges["upstream_latent"] != "error"]
    assert set(features["downstream"]) == {"metric"}
    assert len(features) > 5
    for latent, effect in zip(features["upstream_latent"], features["effect"], strict=True):
        assert effect == pytest.approx(shares[latent], abs=1e-7)


def test_only_nodes_and_edges_above_their_thresholds_are_listed() -> None:
    model, ours, found, *_ = asked(parallel=True, pairs=True)
    every = table(found.edges(0, node_threshold=0))
    least = float(found.values.abs().median())
    edges = found.edges(0.005, node_threshold=least)
    kept = set(found.nodes(least)["component"])
    called = {"error": "error", "": ""} | {str(n): f"f{n}" for n in range(20)}

    def listed(site: str, latent: str) -> bool:
        return site == "metric" or f"{site} {called[latent]}" in kept

    expected = {
        (a, b, c, d): effect
        for (a, b, c, d), effect in every.items()
        if listed(a, b) and listed(c, d) and abs(effect) > 0.005
    }
    assert table(edges) == pytest.approx(expected, abs=1e-12)
    assert 5 < len(expected) < len(every)
    assert edges.frame["effect"].abs().is_monotonic_decreasing
    assert edges.view().frame["value"].tolist() == edges.frame["effect"].tolist()
    assert edges.to_png().startswith(b"\x89PNG")
    site, latent = next(
        (a, b) for a, b in zip(edges.frame["upstream"], edges.frame["upstream_latent"], strict=True)
        if b.isdigit()
    )  # fmt: skip
    view = edges.view({site: "there/"})
    linked = dict(zip(view.names, view.pages, strict=True))
    assert linked[f"{site} f{latent}"] == f"there/{latent}.html"
    assert {name.split()[0] for name, page in linked.items() if page} == {site}
    assert not any(page for name, page in linked.items() if name.endswith("error"))
    for wrong in ("there", {site: 3}, {"nowhere": "there"}):
        with pytest.raises(InputError, match="pages"):
            edges.view(wrong)  # type: ignore[arg-type]
    assert not model.hook_stack.placements
    assert all(parameter.grad is None for each in [model, *ours] for parameter in each.parameters())


def test_frozen_models_a_metric_without_rows_and_inference_mode_are_the_same() -> None:
    model, ours, found, *_ = asked(parallel=False, pairs=True)
    expected = table(found.edges(0, node_threshold=0))
    for each in [model, *ours]:
        each.requires_grad_(False)
    clean, corrupted = map(padded, prompts(2, 5, 2))

    def metric(logits: Tensor) -> Tensor:
        return (logits[:, -1, 3] - logits[:, -1, 7]).mean()

    with torch.inference_mode():
        again = nl.features.circuit(model, ours, clean, metric, corrupted, steps=3)
        got = table(again.edges(0, node_threshold=0))
    assert got == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    model, ours, found, *_ = asked(parallel=True, pairs=False)
    for wrong in (-1, "much", None, float("nan")):
        with pytest.raises(InputError, match=r"^threshold"):
            found.edges(wrong)
        with pytest.raises(InputError, match="node_threshold"):
            found.edges(node_threshold=wrong)
    with pytest.raises(HookError, match="Other functions"), model.spliced(ours[0]):
        found.edges()
    nothing = found.edges(node_threshold=1e6)
    assert list(nothing.frame.columns) == list(found.edges(1e6).frame.columns)
    assert nothing.frame.empty
    with pytest.raises(InputError, match="no edge"):
        nothing.view()
    found.save(tmp_path / "circuit.safetensors")
    with pytest.raises(InputError, match="file"):
        FeatureCircuit.load(tmp_path / "circuit.safetensors").edges()
