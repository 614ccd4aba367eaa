"""Recovery of a known circuit: AUROC and the rest as they are counted by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from patching_oracle import prompts, small
from test_circuit_runs import METRIC

import neox_lab as nl
from neox_lab.errors import InputError


@pytest.mark.parametrize("parallel", [True, False])
def test_recovery_by_hand(parallel: bool) -> None:
    model = small(use_parallel_residual=parallel)
    clean, corrupted = prompts(4, 8, first=2)
    scores = nl.circuits.scores(model, clean, corrupted, METRIC, "eap")
    # rounded, so that some scores are equal
    scores = dataclasses.replace(scores, values=(scores.values * 20).round() / 20)
    table = scores.is_computed
    drawn = torch.rand(table.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    true = drawn & table
    writers, readers = scores.labels["writer"], scores.labels["reader"]
    edges = [(writers[w], readers[r]) for w, r in true.nonzero().tolist()]
    own = scores.values[true].abs().tolist()
    others = scores.values[table & ~true].abs().tolist()
    assert set(own) & set(others)
    won = [(a > b) + (a == b) / 2 for a in own for b in others]
    found = scores.recovery(edges)
    assert found["auroc"] == pytest.approx(sum(won) / len(won), abs=1e-12)
    assert found["smallest_true"] == min(own) and found["largest_other"] == max(others)
    least = sorted(own + others)[-len(own)]  # the last of as many largest ones; ties either way
    above = sum(value > least for value in own) / len(own)
    assert above <= found["found"] <= sum(value >= least for value in own) / len(own)


def test_a_circuit_is_a_truth_too() -> None:
    model = small()
    clean, corrupted = prompts(4, 8, first=2)
    scores = nl.circuits.scores(model, clean, corrupted, METRIC, "eap")
    circuit = scores.circuit(edges=9)
    edges = list(zip(*(circuit.frame[side] for side in ("writer", "reader")), strict=True))
    assert scores.recovery(circuit) == scores.recovery(edges)
    other = nl.circuits.scores(small(num_hidden_layers=3), clean, corrupted, METRIC, "eap")
    with pytest.raises(InputError, match="belongs to a model with"):
        scores.recovery(other.circuit(edges=9))


@pytest.mark.parametrize(
    "truth",
    [
        [],
        "embed",
        3,
        [("embed", "L9H0.q")],
        [("MLP0", "MLP0")],
        [("embed",)],
        ["embed"],
        [(torch.ones(2), "logits")],
    ],
)
def test_what_is_no_truth_is_refused(truth: object) -> None:
    clean, corrupted = prompts(4, 8, first=2)
    scores = nl.circuits.scores(small(), clean, corrupted, METRIC, "eap")
    with pytest.raises(InputError, match=r"truth|an edge="):
        scores.recovery(truth)  # type: ignore[arg-type]
