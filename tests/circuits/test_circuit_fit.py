"""A circuit goes with models of its own shape and wiring, and says what it cannot do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from patching_oracle import prompts, small

from neox_lab.circuits import read_circuit, scores
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import logit_difference

METRIC = logit_difference(7, 11)
CLEAN, CORRUPTED = prompts(2, 6, first=1)


def found(parallel: bool) -> Any:
    model = small(use_parallel_residual=parallel)
    return scores(model, CLEAN, CORRUPTED, METRIC, "eap")


@pytest.mark.parametrize("parallel", [True, False])
def test_a_circuit_of_the_other_wiring_is_refused(parallel: bool) -> None:
    result, other_result = found(parallel), found(not parallel)
    other = other_result.circuit(edges=12)
    model = small(use_parallel_residual=parallel)
    tries: list[Any] = [
        lambda: result.circuit(edges=12).overlap(other),
        lambda: result.recovery(other),
        lambda: other.evaluate(model=model, random=1),
        lambda: other_result.faithfulness([0.5, 1.0], model=model, random=1),
    ]
    words = {True: "parallel", False: "sequential"}
    says = f"with {words[not parallel]} blocks; this one's are {words[parallel]}"
    for one in tries:
        with pytest.raises(InputError, match=says):
            one()


def test_one_size_has_no_area() -> None:
    curve = found(True).faithfulness([0.5], random=0)
    assert all(math.isnan(area) for area in (curve.cpr, curve.cmd, curve.cpr_log, curve.cmd_log))
    assert math.isfinite(found(True).faithfulness([0.5, 1.0], random=0).cmd)


def test_what_cannot_be_asked_of_a_circuit_is_said(tmp_path: Path) -> None:
    circuit = found(True).circuit(edges=12)
    circuit.to_eap_ig(tmp_path / "circuit.json")
    with pytest.raises(InputError, match=r"evaluate\(clean, corrupted, metric, model=model\) can"):
        read_circuit(tmp_path / "circuit.json").minimality()
    with pytest.raises(InputError, match="other=3; expected a circuit"):
        circuit.overlap(3)  # type: ignore[arg-type]
    empty = found(True).circuit(edges=1)
    assert not empty.edges
    for one in (empty.view, empty.evaluate, empty.minimality):
        with pytest.raises(InputError, match="The circuit has no edge"):
            one()
