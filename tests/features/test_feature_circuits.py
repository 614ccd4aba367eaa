"""Sparse feature circuits against hand-written hooks with dense matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import random_dictionary
from hand_spliced import Hands, mean_slopes, padded
from oracle import same
from patching_oracle import prompts, small
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError, InputError
from neox_lab.features import FeatureCircuit

D = 24
MLP, IN, RESID = "blocks.0.hook_mlp_out", "blocks.1.mlp.hook_in", "blocks.0.hook_resid_post"
OUT = "blocks.1.hook_mlp_out"
METRIC = nl.patching.logit_difference(3, 7)
pytestmark = pytest.mark.filterwarnings("ignore::neox_lab.errors.NeoxLabWarning")


def dictionaries() -> list[Any]:
    """Not in the order of the forward pass."""
    return [
        random_dictionary(D, IN, site_out=OUT, latents=14, kind="ReLU", skip=True, seed=20),
        random_dictionary(D, MLP, latents=18),
        random_dictionary(D, RESID, latents=16, kind="ReLU", seed=10),
    ]


def parsed(name: str) -> tuple[str, int]:
    """Site and feature of a node's name, -1 for an error."""
    layer, rest = name.split(".", 1)
    short, which = rest.split(" ")
    return f"blocks.{layer}.hook_{short}", -1 if which == "error" else int(which[1:])


class Other:
    """Values of the other run at some nodes."""

    def __init__(self, hands: Hands | None, names: list[str], *, exchange: bool) -> None:
        self.hands, self.exchange = hands, exchange
        self.nodes = {parsed(name) for name in names}

    def __call__(self, site: str, acts: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        other_acts = torch.zeros_like(acts) if self.hands is None else self.hands.acts[site]
        other_error = torch.zeros_like(error) if self.hands is None else self.hands.errors[site]
        acts = acts.clone()
        for latent in range(acts.shape[-1]):
            if ((site, latent) in self.nodes) == self.exchange:
                acts[..., latent] = other_acts[..., latent]
        return acts, other_error if ((site, -1) in self.nodes) == self.exchange else error


def both_sides(pairs: bool, parallel: bool = True) -> tuple[Any, Any, Any, Hands, Hands | None]:
    model = small(use_parallel_residual=parallel)
    clean, corrupted = map(padded, prompts(2, 6, 2))
    ours = dictionaries()
    hands = Hands(model, ours, clean, METRIC)
    if not pairs:
        return (model, ours), clean, None, hands, None
    other = Hands(model, ours, corrupted, METRIC)
    other.run()
    return (model, ours), clean, corrupted, hands, other


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_effects_are_integrated_gradients_of_one_site_at_a_time(
    pairs: bool, parallel: bool
) -> None:
    (model, ours), clean, corrupted, hands, other = both_sides(pairs, parallel)
    found = nl.features.circuit(model, ours, clean, METRIC, corrupted, steps=3)
    with torch.no_grad():
        plain = hands.run()
    expected: dict[str, Tensor] = {}
    for site in (MLP, RESID, OUT):
        changes, slopes = mean_slopes(hands, other, site)
        acts, error = (change * slope for change, slope in zip(changes, slopes, strict=True))
        short = site.removeprefix("blocks.").replace("hook_", "")
        expected[f"{short} error"] = error.sum(dim=(1, 2))
        for latent in range(acts.shape[-1]):
            expected[f"{short} f{latent}"] = acts[..., latent].sum(dim=1)
    assert found.per_row is not None
    names = found.labels["component"]
    for name, values in zip(names, found.per_row.T, strict=True):
        same(values, expected[name], 1e-4)
    for name in set(expected) - set(names):
        assert expected[name].abs().max() == 0, "a node is missing"
    assert found.facts["base"] == pytest.approx(float(plain.mean()), abs=1e-4)
    with torch.no_grad():
        nothing = hands.run(Other(other, [], exchange=False))
    assert found.total == pytest.approx(float((nothing - plain).mean()), abs=1e-4)
    assert all(parameter.grad is None for each in ours for parameter in each.parameters())


def test_effects_of_a_site_sum_to_exchanging_it() -> None:
    (model, ours), clean, corrupted, hands, other = both_sides(True)
    found = nl.features.circuit(model, ours, clean, METRIC, corrupted, steps=32)
    frame = found.frame
    with torch.no_grad():
        plain = hands.run()
        for site in (MLP, RESID, OUT):
            short = site.removeprefix("blocks.").replace("hook_", "")
            own = frame[frame["component"].str.startswith(f"{short} ")]
            exact = hands.run(Other(other, own["component"].tolist(), exchange=True)) - plain
            assert found.facts[f"all of {site}"] == pytest.approx(float(exact.mean()), abs=1e-4)
            assert own["value"].sum() == pytest.approx(float(exact.mean()), abs=2e-3)


@pytest.mark.parametrize("pairs", [True, False])
@torch.no_grad()
def test_the_check_exchanges_one_node_at_a_time(pairs: bool) -> None:
    (model, ours), clean, corrupted, hands, other = both_sides(pairs)
    found = nl.features.circuit(model, ours, clean, METRIC, corrupted, steps=4)
    agreement = found.check(nodes=9)
    plain = hands.run()
    assert len(agreement.frame) == 9
    assert set(agreement.frame["component"]) == set(found.top(9)["component"])
    for _, row in agreement.frame.iterrows():
        exact = hands.run(Other(other, [row["component"]], exchange=True)) - plain
        assert row["exact"] == pytest.approx(float(exact.mean()), abs=1e-4)
    nodes = found.nodes(0.02)
    assert (nodes["value"].abs() > 0.02).all()
    assert len(nodes) == int((found.values.abs() > 0.02).sum())


@pytest.mark.parametrize("errors", ["nodes", "kept", "exchanged"])
@pytest.mark.parametrize("pairs", [True, False])
@torch.no_grad()
def test_curves_are_runs_under_circuits(pairs: bool, errors: Any) -> None:
    (model, ours), clean, corrupted, hands, other = both_sides(pairs)
    found = nl.features.circuit(model, ours, clean, METRIC, corrupted, steps=4)
    every = found.labels["component"]
    mistakes = [name for name in every if name.endswith("error")]
    ranked = [n for n in found.top(999)["component"] if errors == "nodes" or n not in mistakes]
    curves = found.faithfulness([0, 3, 10, len(ranked)], errors, random=3)
    kept = mistakes if errors == "kept" else []
    plain = hands.run().mean()
    nothing = hands.run(Other(other, kept, exchange=False)).mean()
    assert curves.ends["nothing"] == pytest.approx(float(nothing), abs=1e-4)
    for _, row in curves.frame.iterrows():
        chosen = ranked[: int(row["nodes"])]
        value = hands.run(Other(other, [*chosen, *kept], exchange=False)).mean()
        share = float((value - nothing) / (plain - nothing))
        assert row["faithfulness"] == pytest.approx(share, abs=2e-3)
        rest = [name for name in ranked if name not in chosen]
        value = hands.run(Other(other, [*rest, *kept], exchange=False)).mean()
        share = float((value - nothing) / (plain - nothing))
        assert row["completeness"] == pytest.approx(share, abs=2e-3)
    last = curves.frame.iloc[-1]
    if errors != "exchanged":
        assert last["faithfulness"] == pytest.approx(1, abs=1e-3)
    assert last["completeness"] == pytest.approx(0, abs=1e-3)
    assert last["random"] == pytest.approx(last["faithfulness"], abs=1e-3)
    assert curves.frame["faithfulness"][0] == pytest.approx(0, abs=1e-3)
    again = found.faithfulness([0, 3, 10, len(ranked)], errors, random=3)
    assert again == curves
    other_draws = found.faithfulness([3], errors, random=3, seed=1)
    assert other_draws.frame["random"][0] != curves.frame["random"][1]


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    (model, ours), clean, corrupted, *_ = both_sides(True)
    found = nl.features.circuit(model, ours[1], clean, METRIC, corrupted, steps=2)
    found.save(tmp_path / "circuit.safetensors")
    again = FeatureCircuit.load(tmp_path / "circuit.safetensors")
    assert again == found
    for ask in (again.check, again.faithfulness):
        with pytest.raises(InputError, match="file"):
            ask()
    curves = found.faithfulness(random=2)
    assert curves.frame["nodes"].is_monotonic_increasing
    for shown in (found, curves):
        assert shown.to_png().startswith(b"\x89PNG")
    assert "0.mlp_out" in repr(found)


def test_what_cannot_be_asked() -> None:
    (model, ours), clean, corrupted, *_ = both_sides(True)
    twice = [ours[1], random_dictionary(D, MLP, seed=3)]
    for given, error, message in (
        (3, InputError, "expected a Dictionary"),
        ([], InputError, "expected a Dictionary"),
        ([3], InputError, "expected a Dictionary"),
        (twice, InputError, "Two dictionaries"),
        (random_dictionary(32, MLP), HookError, "belongs to another model"),
    ):
        with pytest.raises(error, match=message):
            nl.features.circuit(model, given, clean, METRIC)
        assert not model.hook_stack.placements
    with pytest.raises(InputError, match="steps"):
        nl.features.circuit(model, ours, clean, METRIC, steps=0)
    found = nl.features.circuit(model, ours, clean, METRIC, steps=1)
    wrong: list[dict[str, Any]] = [
        {"sizes": [999]},
        {"sizes": []},
        {"sizes": 3},
        {"errors": "none"},
        {"random": -1},
        {"seed": -1},
    ]
    for given in wrong:
        with pytest.raises(InputError, match=next(iter(given))):
            found.faithfulness(**given)
    with pytest.raises(InputError, match="threshold"):
        found.nodes(-1)
    for ask in (found.check, found.faithfulness):
        with pytest.raises(HookError, match="Other functions"), model.spliced(ours[0]):
            ask()


def test_dictionaries_by_name_are_as_good_as_a_list() -> None:
    model = small()
    clean, _ = prompts(2, 6, 2)
    listed, named = dictionaries(), {str(n): each for n, each in enumerate(dictionaries())}
    expected = nl.features.circuit(model, listed, clean, METRIC).frame
    assert nl.features.circuit(model, named, clean, METRIC).frame.equals(expected)
    with model.spliced(named):
        points = [name for name in model.hook_points if name.endswith("hook_sae_acts")]
    assert len(points) == len(named)


def test_what_holds_a_dictionary_says_where() -> None:
    model = small()
    named = {"first": dictionaries()[0]}
    with pytest.raises(InputError, match=r"Give one of the mapping's, such as \['first'\]"):
        nl.features.active(model, named, "a")  # type: ignore[arg-type]
    trained = nl.sae.train(torch.randn(64, 8), site="x", latents=16, k=2, steps=1, batch_size=32)
    with pytest.raises(InputError, match=r"\.dictionary") as told:
        nl.features.active(model, trained, "a")  # type: ignore[arg-type]
    assert "\n" not in str(told.value)
