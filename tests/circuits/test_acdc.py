"""ACDC keeps what is needed: the planted circuit, and edges that were missed when tried."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from patching_oracle import prompts, small
from test_circuit_runs import METRIC
from test_circuits import INDUCTION, asked, names

import neox_lab as nl
from neox_lab.circuits import acdc
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.circuits.search import _order
from neox_lab.errors import InputError
from neox_lab.experiments.prompt_pairs import pair


def test_the_planted_circuit_is_what_is_left() -> None:
    model = nl.gym.planted()
    clean, corrupted, metric = asked()
    result = acdc(model, clean, corrupted, metric, 0.01, orders=2, progress=False)  # type: ignore[arg-type]
    for circuit in result.circuits:
        assert names(circuit, circuit.kept) <= INDUCTION
        assert ("L1H2", "logits") in names(circuit, circuit.kept)
    assert result.frame["faithfulness"].round(3).tolist() == [1, 1]
    assert result.jaccard == 1 and result.shared.edges == result.circuits[0].edges


@pytest.mark.parametrize("parallel", [True, False])
def test_the_search_by_hand(parallel: bool) -> None:
    model = small(use_parallel_residual=parallel).double()
    clean, corrupted = prompts(4, 8, first=2)
    threshold = 0.05
    result = acdc(model, clean, corrupted, METRIC, threshold, orders=3, progress=False)
    runs = CircuitRuns(pair(model, corrupted, clean, METRIC), "resample")
    import random

    for order, circuit in enumerate(result.circuits):
        left, distance = runs.table.clone(), 0.0
        for row, column in _order(runs, random.Random(order)):
            left[row, column] = False
            moved = float((runs.measure(left[None])[0] - runs.clean).abs().mean())
            if moved - distance < threshold:  # also where nobody reads the part: nothing moves
                distance = moved
            else:
                left[row, column] = True
        assert torch.equal(circuit.kept, circuit.kept & left)
        left_over = names(circuit, left) - names(circuit, circuit.kept)
        assert not left_over or circuit.edges, "only dangling edges are taken afterwards"
    frame = result.frame
    assert frame["edges"].tolist() == [circuit.edges for circuit in result.circuits]
    assert (frame["runs"] <= int(runs.table.sum())).all()
    found = [
        one.overlap(other)["jaccard"] for one, other in itertools.combinations(result.circuits, 2)
    ]
    assert result.jaccard == pytest.approx(sum(found) / 3)
    again = acdc(model, clean, corrupted, METRIC, threshold, orders=3, progress=False)
    assert again == result


@pytest.mark.parametrize("parallel", [True, False])
def test_the_order_goes_down(parallel: bool) -> None:
    model = small(num_hidden_layers=3, use_parallel_residual=parallel)
    clean, corrupted = prompts(2, 6, first=1)
    runs = CircuitRuns(pair(model, corrupted, clean, METRIC), "resample")
    import random

    order = _order(runs, random.Random(0))
    assert sorted(order) == [tuple(at) for at in runs.table.nonzero().tolist()]
    place = {edge: at for at, edge in enumerate(order)}
    for (row, column), at in place.items():
        reader = runs.readers[column]
        for after, later in enumerate(runs.readers):
            node = runs.writers[row]
            owner = (later.kind, later.layer, later.head) == (node.kind, node.layer, node.head)
            if owner:  # edges into the writer come after all that leave it
                into = [place[w, after] for w in runs.table[:, after].nonzero().flatten().tolist()]
                assert min(into) > at, (node.name, reader.name)


def test_what_makes_no_sense_is_refused() -> None:
    model = small()
    clean, corrupted = prompts(2, 6, first=1)
    given: dict[str, Any] = {"progress": False}
    with pytest.raises(InputError, match="threshold"):
        acdc(model, clean, corrupted, METRIC, 0, **given)
    with pytest.raises(InputError, match="Nothing is left"):
        acdc(model, clean, corrupted, METRIC, 1e6, **given)
