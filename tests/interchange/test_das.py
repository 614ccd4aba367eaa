"""Training of subspaces: gradients against dense matrices, and a planted variable that is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from patching_oracle import small
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.gym.planting import tokenizer
from neox_lab.interchange import InterchangeMap, Pairs, Site, accuracy, boundless, das, mask, sweep
from neox_lab.interchange.cached_runs import CachedRuns
from neox_lab.interchange.outcomes import InterchangeResult
from neox_lab.interchange.pairs import read_pairs
from neox_lab.interchange.subspaces import BoundedRotation, CoordinateMask, Rotation
from neox_lab.interchange.training import loss

GRADIENT_SITES = {
    "resid_post": Site(("resid_post", 0), -2),
    "two places": Site(("resid_pre", 1), {"one": 1, "two": -1}),
    "q": Site(("q", 1), -1, heads=[0, 2]),
    "k": Site(("k", 1), 2, heads=1),
    "v": Site(("v", 0), 1),
    "z": Site(("z", 0), -1, heads=[1]),
    "pattern": Site(("pattern", 1), -1),
    "mlp_out": Site(("mlp_out", 0), -3),
}


def random_pairs(count: int = 6, length: int = 7, seed: int = 0) -> Pairs:
    """Pairs of random ids."""
    generator = torch.Generator().manual_seed(seed)
    base, source = torch.randint(2, 50, (2, count, length), generator=generator)
    return Pairs(base, source, list(range(3, 3 + count)), list(range(20, 20 + count)))  # type: ignore


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", GRADIENT_SITES)
def test_gradients_equal_those_of_a_full_rotation(parallel: bool, name: str) -> None:
    model, site = small(use_parallel_residual=parallel).double(), GRADIENT_SITES[name]
    pairs = random_pairs()
    read = read_pairs(model, pairs)
    runs = CachedRuns(model, read, site)
    subspace = Rotation(runs.width, 3, torch.Generator().manual_seed(0), torch.float64)
    with torch.no_grad():
        subspace.free.add_(torch.randn_like(subspace.free))  # not orthonormal any more
    own = loss(runs, read.labels, subspace, torch.arange(6))
    (found,) = torch.autograd.grad(own, [subspace.free])
    free = subspace.free.detach().clone().requires_grad_()
    projector = free @ torch.linalg.inv(free.T @ free) @ free.T  # [width, width], without QR
    base, source = torch.tensor(pairs.base), torch.tensor(pairs.source)
    placed = runs.placed
    _, cache = model.run_with_cache(source)
    other = placed.read(cache[placed.point.name], placed.source_columns).detach()

    def put(x: Tensor, hook: Any) -> None:
        stood = placed.read(x, placed.columns)
        placed.write(x, placed.columns, stood + (other - stood) @ projector)

    logits = model.run_with_hooks(base, [(placed.point.name, put)]).logits[:, -1]
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor(pairs.labels))
    (expected,) = torch.autograd.grad(plain, [free])
    torch.testing.assert_close(own, plain, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
    assert float(expected.abs().max()) > 1e-5


PLANTED = Site(("resid_post", 1), -1)
FEW: dict[str, Any] = {"epochs": 6, "progress": False}


@pytest.fixture(scope="module")
def planted() -> tuple[Any, Pairs, Pairs]:
    """A model with known variables, pairs to train on, and pairs to test on."""
    pairs = nl.gym.CAUSAL["planted"].pairs("c_is_capital", 500)
    return nl.gym.planted_variable(), *pairs.split()


def test_the_planted_variable_is_found(planted: tuple[Any, Pairs, Pairs]) -> None:
    model, pairs, held_out = planted
    result = das(model, pairs, held_out, PLANTED, 1, **FEW)
    assert result.accuracy >= 0.98
    assert result.base_accuracy == 1
    assert set(result.nulls) == {"random subspace", "permuted labels", "random model"}
    assert all(abs(null - result.chance) <= 0.05 for null in result.nulls.values())
    assert (result.null_frame["reached"] == 0).all()
    assert result.null_frame["p"].tolist() == [1 / 11, 1 / 6, 1 / 6]
    assert result.pairs + result.unchanged == len(held_out)
    assert result.pairs == len(held_out.changing) < len(held_out)
    truth = nl.gym.planted_variable.DIRECTIONS[:, 2]  # type: ignore[attr-defined]
    assert float((truth @ result.site.subspace).abs()) > 0.8  # type: ignore[operator]
    again = accuracy(model, held_out, result.site)
    assert again.accuracy == result.accuracy


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_every_null_stays_by_chance(seed: int) -> None:
    """Other pairs, other splits, other draws."""
    pairs = nl.gym.CAUSAL["planted"].pairs("c_is_capital", 500, seed=seed).split(seed=seed)
    found = das(nl.gym.planted_variable(), *pairs, PLANTED, 1, seed=100 * seed, **FEW)
    nulls = found.null_frame
    assert found.accuracy >= 0.98
    assert ((nulls["mean"] - found.chance).abs() <= 0.05).all()
    assert (nulls["reached"] == 0).all() and nulls["largest"].max() < 0.5
    assert (nulls["low"] <= nulls["mean"]).all() and (nulls["mean"] <= nulls["high"]).all()


def test_the_truth_follows_and_the_whole_site_does_not(planted: tuple[Any, Pairs, Pairs]) -> None:
    model, held_out = planted[0], planted[2].rows(range(60))
    truth = nl.gym.planted_variable.DIRECTIONS  # type: ignore[attr-defined]
    for layer in range(3):
        site = Site(("resid_post", layer), -1, subspace=truth[:, 2:3])
        assert accuracy(model, held_out, site).accuracy == 1
    other = Site(("resid_post", 0), -1, subspace=truth[:, 3:4])
    assert accuracy(model, held_out, other).accuracy == 0
    assert accuracy(model, held_out, Site(("resid_post", 0), -1)).accuracy < 0.05
    # Where the letter itself stands, it is all there is, until it has been read.
    assert accuracy(model, held_out, Site(("resid_pre", 0), 2)).accuracy == 1
    assert accuracy(model, held_out, Site(("resid_post", 0), 2)).accuracy == 0


def test_boundless_finds_few_directions(planted: tuple[Any, Pairs, Pairs]) -> None:
    model, pairs, held_out = planted
    result = boundless(model, pairs, held_out, PLANTED, 8, nulls=0, **FEW)
    assert result.accuracy >= 0.98
    assert result.rank < 8


def test_a_mask_finds_coordinates() -> None:
    """Where a variable is one number of the site, the mask finds that number."""
    model, found = nl.gym.planted_variable(), None
    pairs, held_out = nl.gym.CAUSAL["planted"].pairs("c_is_capital", 500).split()
    site = Site(("z", 0), -1, heads=1)  # the head writes its first ten numbers
    found = mask(model, pairs, held_out, site, nulls=0, **FEW)
    assert found.accuracy >= 0.98
    assert found.site.subspace is not None
    assert found.site.subspace.nonzero().tolist()[0] == [2, 0]


def test_training_leaves_no_trace(
    planted: tuple[Any, Pairs, Pairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs, held_out = planted[0], planted[1].rows(range(60)), planted[2].rows(range(40))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's state"))
    one = das(model, pairs, held_out, PLANTED, 1, epochs=1, seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    other = das(model, pairs, held_out, PLANTED, 1, epochs=1, seed=3, progress=False)
    assert one == other
    assert torch.equal(one.site.subspace, other.site.subspace)  # type: ignore[arg-type]
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())
    assert all(w.grad is None for w in model.parameters())
    assert not model.hook_stack.placements


def test_boundary_and_mask_are_those_of_the_papers() -> None:
    bounded = BoundedRotation(12, 4, torch.Generator().manual_seed(0), torch.float64)
    own, other = torch.randn(2, 5, 12, dtype=torch.float64)
    bounded.progress = 1.0
    places = torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=torch.float64)
    weights = torch.sigmoid(places / 0.1) * torch.sigmoid((0.5 * 4 - places) / 0.1)
    rotation = torch.linalg.qr(bounded.free.detach()).Q
    expected = own + (other - own) @ rotation @ torch.diag(weights) @ rotation.T
    torch.testing.assert_close(bounded(own, other).detach(), expected)
    assert bounded.penalty().item() == 0.5
    assert bounded.directions().shape == (12, 2)
    masked = CoordinateMask(12, 0.2, torch.float64)
    torch.testing.assert_close(masked(own, other).detach(), (own + other) / 2)
    assert masked.penalty().item() == pytest.approx(0.1)


CALL: dict[str, Any] = {"site": Site(("resid_post", 0), -1), "rank": 1}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "rank above width": ({"rank": 25}, "there are 24 numbers at this site"),
    "rank": ({"rank": 0}, "rank=0"),
    "subspace": ({"site": Site(("resid_post", 0), -1, subspace=torch.eye(24))}, "already"),
    "above": ({"site": Site("ln_final.hook_normalized", -1)}, "above all blocks"),
    "no positions": ({"site": Site("blocks.0.attn.hook_attn_scores", -1, heads=4)}, "heads"),
    "no site": ({"site": "resid_post"}, "expected nl.interchange.Site"),
    "epochs": ({"epochs": 0}, "epochs=0"),
    "shared": ({"held_out": random_pairs()}, "one of the pairs to train on"),
    "one label": ({"pairs": Pairs([[3, 4]] * 2, [[5, 6]] * 2, [7, 8], [9, 9])}, "All labels"),
    "no pairs": ({"pairs": ["ab"]}, "expected nl.interchange.Pairs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_explained(name: str) -> None:
    given, message = BAD[name]
    model, other = small(), random_pairs(seed=1)
    with pytest.raises(InputError, match=message):
        das(model, **{"pairs": random_pairs(), "held_out": other, **CALL, "epochs": 1, **given})
    assert not model.hook_stack.placements


def test_a_text_and_its_tokens_are_one_pair() -> None:
    """What training has seen is not held out, however it was written."""
    model = small(vocab_size=96)
    model.tokenizer = tokenizer()
    texts, ids = ["abc", "bca"], [model.tokenizer(text).input_ids for text in ("abc", "bca")]
    pairs = Pairs(texts, texts[::-1], ["a", "b"], ["c", "d"])
    with pytest.raises(InputError, match="Pair 0 of held_out"):
        das(model, pairs, Pairs(ids[1:], ids[:1], [5], [6]), CALL["site"], epochs=1)


def test_two_pairs_have_a_null() -> None:
    """Permuted labels may be those of the bases; they are trained on all the same."""
    pairs = Pairs([[3, 4, 5], [4, 4, 5]], [[5, 6, 7], [4, 6, 6]], [2, 3], [3, 2])
    held_out, given = random_pairs(seed=1), {"epochs": 1, "progress": False}
    for seed in range(4):
        found = das(small(), pairs, held_out, CALL["site"], seed=seed, **given)  # type: ignore
        assert "permuted labels" in found.nulls


def test_permuted_labels_tell_nothing_of_the_true_ones() -> None:
    """Pairs of each label get all labels, in their shares, whether labels are few or many."""
    for names, seeds in (("aab", 6), ("abcdefghijklmnopqrstuvwxyz", 3), ("ab", 6)):
        for seed in range(seeds):
            chosen = Random(seed)
            labels, base = chosen.choices(names, k=211), chosen.choices(names, k=211)
            pairs = Pairs(["t"] * 211, ["s"] * 211, base, labels)
            given = pairs.permuted(seed).labels
            assert sorted(given) == sorted(labels)  # type: ignore[type-var]
            assert given != pairs.permuted(seed + 1).labels
            for label in set(labels):
                own = [new for new, old in zip(given, labels, strict=True) if old == label]
                for new in set(labels):
                    expected = labels.count(label) * labels.count(new) / 211
                    assert abs(own.count(new) - expected) < 3
    one = Pairs(["t"] * 40, ["s"] * 40, ["a"] * 40, list(map(str, range(40))))
    same = [old == new for old, new in zip(one.labels, one.permuted().labels, strict=True)]
    assert sum(same) <= 2


def test_pairs_that_show_nothing_are_refused() -> None:
    model = small()
    same = Pairs([[3, 4]], [[5, 6]], [7], [7])
    with pytest.raises(InputError, match="In none of the 1 pairs does the label change"):
        accuracy(model, same, CALL["site"])
    with pytest.raises(InputError, match="2 base, 1 source"):
        Pairs([[3, 4], [5, 6]], [[5, 6]], [7, 8], [8, 7])
    with pytest.raises(InputError, match="below 53"):
        accuracy(model, Pairs([[3, 4]], [[5, 6]], [7], [70]), CALL["site"])
    with pytest.raises(InputError, match="rows of token ids of one length"):
        accuracy(model, Pairs([[3, 4], [1]], [[5, 6], [2]], [7, 7], [8, 8]), CALL["site"])
    with pytest.raises(InputError, match="neither"):
        accuracy(small("token-classification"), same, CALL["site"])


def test_the_map_shows_where_the_variable_is(
    planted: tuple[Any, Pairs, Pairs], tmp_path: Path
) -> None:
    model, pairs, held_out = planted[0], planted[1], planted[2].rows(range(60))
    places = {"its letter": 2, "last": -1}
    found = sweep(model, pairs, held_out, places, layers=[0, 2], nulls=0, **FEW)
    assert found.values.shape == (2, 2)
    assert found.values[:, 1].min() >= 0.98
    assert found.values[:, 0].max() == 0  # read already
    assert found.nulls.max() == 0
    assert (found.whole[:, 1] < 0.1).all()
    site = Site(("resid_post", 2), -1, subspace=found.directions[1, 1])
    assert accuracy(model, held_out, site).accuracy == found.values[1, 1]
    assert list(found.frame.columns[:3]) == ["layer", "pos", "token"]
    assert found.frame["accuracy"].max() == found.top(1)["accuracy"].item()
    found.save(tmp_path / "map.safetensors")
    assert InterchangeMap.load(tmp_path / "map.safetensors") == found
    assert "Chance 0." in found.view().note
    with pytest.raises(InputError, match="expected places by name"):
        sweep(model, pairs, held_out, {})
    with pytest.raises(InputError, match="layers"):
        sweep(model, pairs, held_out, places, layers=[7])


def test_a_subspace_that_lacks_much_of_its_site_says_so() -> None:
    frame = make_frame({
        "run": ["subspace", "random subspace", "whole site"], "accuracy": [0.1, 0.0, 0.96],
        "low": [0.0, 0.0, 0.9], "high": [0.2, 0.1, 1.0], "kept_base": [0.9, 1.0, 0.0],
        "other": [0.0, 0.0, 0.04],
    })  # fmt: skip
    site = Site("resid_post.1", -1, subspace=torch.eye(8)[:, :2])
    found = InterchangeResult(frame, site, "giver", 50, 3, 0.1, 0.9, torch.empty(0))
    assert "whole site gives 0.96" in found.view().note and "rank=" in repr(found)
    frame = frame.assign(accuracy=[0.9, 0.0, 0.96])
    assert "whole site" not in dataclasses.replace(found, frame=frame).view().note
