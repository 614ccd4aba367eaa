"""Edge pruning: masks against the network written out by hand, and the planted circuit found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from circuit_oracle import ByHand
from patching_oracle import prompts, small
from test_circuit_runs import METRIC, replaced, texts
from test_circuits import names
from torch import Tensor

import neox_lab as nl
from neox_lab.circuits import prune_edges
from neox_lab.circuits.masked_runs import distance_to_clean, logits_under
from neox_lab.circuits.pruning_search import masks_of, open_probability
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.errors import InputError, NeoxLabWarning
from neox_lab.experiments.metrics import logit_difference, span_logit
from neox_lab.experiments.prompt_pairs import pair

WORDS = ["qwerty", "asdfgh", "zxcvbn", "plmokn"]
CLEAN = [word + word[:2] for word in WORDS]


def masked_by_hand(runs: CircuitRuns, masks: Tensor, wrote: dict[str, Tensor]) -> Any:
    """What a reader sees, edge by edge."""
    place = {
        (writer.name, reader.name): masks[row, column]
        for row, writer in enumerate(runs.writers)
        for column, reader in enumerate(runs.readers)
    }

    def seen(reader: str, before: dict[str, Tensor]) -> Tensor:
        total = torch.zeros_like(before["embed"])
        for writer, value in before.items():
            mask = place[writer, reader]
            total = total + mask * value + (1 - mask) * wrote[writer]
        return total

    return seen


@pytest.mark.parametrize("objective", ["metric", "kl"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("ablation", ["resample", "mean_by_pos"])
def test_value_and_gradient_are_those_of_autograd_by_hand(
    parallel: bool, ablation: str, objective: str
) -> None:
    model = small(use_parallel_residual=parallel, num_hidden_layers=3).double()
    clean, corrupted, clean_side, corrupted_side = texts()
    runs = CircuitRuns(pair(model, corrupted_side, clean_side, METRIC), ablation)
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(runs.table.shape, generator=generator, dtype=torch.float64)
    masks.requires_grad_()
    found = distance_to_clean(runs, objective)(logits_under(runs, masks))
    (slope,) = torch.autograd.grad(found, masks)

    hand, expected = ByHand(model), torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        wrote = [hand.run(ids)[0] for ids in corrupted]
        whole = [hand.run(ids)[1][-1] for ids in clean]
    for row, ids in enumerate(clean):
        seen = masked_by_hand(runs, masks, replaced(ablation, wrote, row))
        logits = hand.run(ids, seen)[1][-1]
        if objective == "metric":
            moved = (logits[7] - logits[11]) - (whole[row][7] - whole[row][11])
            expected = expected + moved.abs() / len(clean)
        else:
            p, q = whole[row].softmax(-1), logits.softmax(-1)
            expected = expected + (p * (p.log() - q.log())).sum() / len(clean)
    (want,) = torch.autograd.grad(expected, masks)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope, want, rtol=1e-6, atol=1e-6)
    assert slope[runs.table].abs().max() > 1e-2 and not slope[~runs.table].any()


@pytest.mark.parametrize("parallel", [True, False])
def test_masks_of_zero_and_one_are_a_circuit(parallel: bool) -> None:
    model = small(use_parallel_residual=parallel, num_hidden_layers=3).double()
    _, _, clean, corrupted = texts()
    runs = CircuitRuns(pair(model, corrupted, clean, METRIC), "zero")
    some = torch.rand(runs.table.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    logits = logits_under(runs, (some & runs.table).double())
    found = runs.batch.measure(logits)[1]
    torch.testing.assert_close(found, runs.measure((some & runs.table)[None])[0])


def test_hard_concrete_masks_are_what_the_paper_says() -> None:
    """The chance to be open is counted, and a mask is what the formula gives in plain floats."""
    generator = torch.Generator().manual_seed(0)
    for location in (-3.0, -1.0, 0.5, 2.0):
        drawn = torch.rand(200_000, generator=generator, dtype=torch.float64)
        masks = masks_of(torch.tensor(location), drawn)
        expected = float(open_probability(torch.tensor(location)))
        assert float((masks > 0).double().mean()) == pytest.approx(expected, abs=5e-3)
        u = float(drawn[0])
        soft = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + location) * 1.5))
        assert float(masks[0]) == pytest.approx(min(1, max(0, soft * 1.2 - 0.1)))
    assert masks_of(torch.tensor([-9.0, 0.0, 9.0]), None).tolist() == pytest.approx([0, 0.5, 1])


PLANTED: dict[str, tuple[Callable[[str], str], Callable[[str], str], set[tuple[str, str]]]] = {
    "another answer": (
        lambda w: w[:2] + "X" + w[3:] + w[:2],
        lambda w: "X",
        {("embed", "L1H2.v"), ("L1H2", "logits")},
    ),
    "answers swapped": (
        lambda w: w[0] + w[3] + w[2] + w[1] + w[4:] + w[:2],
        lambda w: w[4],
        {("embed", "L0H1.v"), ("L0H1", "L1H2.k"), ("L1H2", "logits")},
    ),
    "another text": (
        lambda w: w.swapcase()[2:] + w.swapcase()[:2] + w.swapcase()[3:5],
        lambda w: w.swapcase()[5],
        {("embed", "L0H1.v"), ("L0H1", "L1H2.k"), ("embed", "L1H2.q"), ("embed", "L1H2.v")}
        | {("L1H2", "logits")},
    ),
}


@pytest.mark.parametrize(
    ("question", "given"),
    [
        ("another answer", {"steps": 150}),
        pytest.param(
            "another answer", {"steps": 150, "objective": "metric"}, marks=pytest.mark.slow
        ),
        pytest.param("answers swapped", {"steps": 300}, marks=pytest.mark.slow),
        pytest.param("another text", {"steps": 600}, marks=pytest.mark.slow),
    ],
)
def test_the_planted_circuit_is_recovered_exactly(question: str, given: dict[str, Any]) -> None:
    other, wrong, edges = PLANTED[question]
    metric = logit_difference([word[2] for word in WORDS], [wrong(word) for word in WORDS])
    asked: Any = (nl.gym.planted(), CLEAN, [other(word) for word in WORDS], metric)
    result = prune_edges(*asked, len(edges), progress=False, **given)
    assert names(result.circuit, result.circuit.kept) == edges
    assert result.circuit.evaluate(random=0).faithfulness == pytest.approx(1, abs=1e-3)


def test_the_record_and_the_seed() -> None:
    model = small(num_hidden_layers=3)
    clean, corrupted = prompts(4, 8, first=2)
    state = torch.get_rng_state()
    given: Any = {"share": 0.2, "steps": 60, "progress": False}
    result = prune_edges(model, clean, corrupted, METRIC, **given)
    assert torch.equal(torch.get_rng_state(), state)
    assert prune_edges(model, clean, corrupted, METRIC, **given) == result
    other = prune_edges(model, clean, corrupted, METRIC, seed=1, **given)
    assert other.frame["distance"].tolist() != result.frame["distance"].tolist()
    frame, table = result.frame, result.circuit.all_edges
    assert frame["step"].tolist() == list(range(60)) and result.complete
    assert frame["target"].iloc[0] == table and frame["target"].iloc[-1] == int(0.2 * table)
    assert frame["expected_edges"].iloc[-1] < frame["expected_edges"].iloc[0]
    assert 0 < result.circuit.edges <= int(0.2 * table)
    masks, kept = result.masks, result.circuit.kept
    assert (masks[kept] > 0.5).all() and result.circuit.values.equal(masks)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "how far the mask is open" in result.circuit.to_html()
    assert "expected edges" in result.to_html()
    before = model(clean).logits
    assert torch.equal(before, model(clean).logits)


def test_several_seeds_are_searches_of_their_own_with_their_overlaps() -> None:
    model = small(num_hidden_layers=3)
    clean, corrupted = prompts(4, 8, first=2)
    given: Any = {"share": 0.2, "steps": 60, "progress": False, "ablation": "zero"}
    several = prune_edges(model, clean, corrupted, METRIC, seed=3, seeds=3, **given)
    alone = [prune_edges(model, clean, corrupted, METRIC, seed=seed, **given) for seed in (3, 4, 5)]
    assert [each.circuit for each in alone] == list(several.circuits)
    assert several.circuit == several.circuits[0] and torch.equal(several.masks, alone[0].masks)
    assert several.frame["seed"].tolist() == [3] * 60 + [4] * 60 + [5] * 60
    assert several.frame["distance"].tolist() == [
        distance for each in alone for distance in each.frame["distance"]
    ]
    overlaps = several.overlaps
    assert overlaps[["first", "second"]].to_numpy().tolist() == [[3, 4], [3, 5], [4, 5]]
    total = several.circuit.all_edges
    for row in overlaps.itertuples():
        one, other = (names(c, c.kept) for c in (alone[row.first - 3].circuit,
                                                 alone[row.second - 3].circuit))  # fmt: skip
        assert row.shared == len(one & other)
        assert row.jaccard == pytest.approx(len(one & other) / len(one | other))
        chance = len(one) * len(other) / total
        assert row.expected == pytest.approx(chance / (len(one) + len(other) - chance))
    mean = overlaps["jaccard"].mean()
    assert f"3 seeds: mean Jaccard index {mean:.2f} (by chance" in several.view().title
    assert alone[0].overlaps.empty and "Jaccard" not in alone[0].view().title


def test_what_was_pruned_is_evaluated_as_its_circuit() -> None:
    clean, corrupted = prompts(4, 8, first=2)
    found = prune_edges(
        small(), clean, corrupted, METRIC, 20, steps=40, ablation="zero", progress=False
    )
    own = found.evaluate(random=2)
    assert own.ablation == "zero" and own.seen == 4
    assert own == found.circuit.evaluate(random=2, ablation="zero")
    held_out = prompts(4, 8, first=2, seed=1)
    given: Any = {"ablation": "mean", "random": 1, "seed": 4}
    assert found.evaluate(*held_out, METRIC, **given) == found.circuit.evaluate(
        *held_out, METRIC, **given
    )


def test_interrupted_and_told() -> None:
    def report(done: int, total: int) -> None:
        assert total == 50
        if done == 7:
            raise KeyboardInterrupt

    clean, corrupted = prompts(2, 6, first=1)
    result = prune_edges(small(), clean, corrupted, METRIC, 20, steps=50, progress=report)
    assert len(result.frame) == 7 and not result.complete

    def later(done: int, total: int) -> None:
        assert total == 150
        if done == 57:
            raise KeyboardInterrupt

    asked: Any = {"steps": 50, "seeds": 3, "progress": later}
    result = prune_edges(small(), clean, corrupted, METRIC, 60, **asked)
    assert len(result.circuits) == 2 and result.frame["seed"].tolist() == [0] * 50 + [1] * 7
    assert not result.complete


def test_a_search_that_was_too_short_is_told() -> None:
    clean, corrupted = prompts(4, 8, first=2)
    with pytest.warns(NeoxLabWarning, match=r"20 wanted.*more steps than 30"):
        prune_edges(small(), clean, corrupted, METRIC, 20, steps=30, progress=False)


def test_what_makes_no_sense_is_refused() -> None:
    model = small()
    clean, corrupted = prompts(2, 6, first=1)

    def asked(metric: Any = METRIC, **given: Any) -> None:
        prune_edges(model, clean, corrupted, metric, progress=False, **{"edges": 5} | given)

    with pytest.raises(InputError, match="either edges"):
        asked(edges=None)
    with pytest.raises(InputError, match="objective"):
        asked(objective="loss")
    with pytest.raises(InputError, match="learning_rate"):
        asked(learning_rate=0)
    with pytest.raises(InputError, match="gradient"):
        asked(objective="metric", metric=lambda logits: logits.argmax(-1).float().mean())
    with pytest.raises(InputError, match="every edge cut"):
        asked(objective="metric", metric=lambda logits: 0 * logits.mean())
    with pytest.raises(InputError, match="Nothing is left"):
        asked(learning_rate=50.0, steps=40, edges=1)
    answers = small("question-answering")
    with pytest.raises(InputError, match="objective='metric'"):
        prune_edges(answers, clean, corrupted, span_logit(1, 2), 5, progress=False)
