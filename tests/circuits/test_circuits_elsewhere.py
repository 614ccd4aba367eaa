"""Circuits that workers run: the numbers of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backwards import Backwards
from torch import Tensor

import neox_lab as nl
from neox_lab.circuits import runs
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import logit_difference

pytestmark = pytest.mark.usefixtures("one_thread")
CLEAN = ["The cat saw the dog", "The bird saw the dog"]
CORRUPTED = ["The dog saw the cat", "The dog saw the bird"]


def largest(logits: Tensor) -> Tensor:
    return logits[:, -1].max(dim=-1).values.mean()


def circuit_of(model: Any) -> Any:
    metric = logit_difference([" a"] * 2, [" the"] * 2)
    found = nl.circuits.scores(model, CLEAN, CORRUPTED, metric)
    return found.circuit(edges=40)


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_the_numbers_are_those_of_one_process(
    ablation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "NUMBERS_AT_ONCE", 2**16)
    circuit = circuit_of(nl.load())
    settings: dict[str, Any] = {"random": 12, "seed": 3, "ablation": ablation}
    executor = Backwards()
    there = circuit.evaluate(**settings, executor=executor)
    here = circuit.evaluate(**settings)
    assert there == here
    assert torch.equal(there.samples, here.samples)
    assert len(executor.sent) > 2
    assert max(map(len, executor.sent)) < 30_000
    settings |= {"clean": CLEAN, "corrupted": CORRUPTED, "metric": largest}
    assert circuit.evaluate(**settings, executor=Backwards()) == circuit.evaluate(**settings)


def test_what_cannot_be_sent() -> None:
    circuit = circuit_of(nl.load())
    with pytest.raises(InputError, match="executor=3; expected an executor"):
        circuit.evaluate(executor=3)
    with pytest.raises(InputError, match=r"metric=<function .* cannot be sent to workers"):
        circuit.evaluate(CLEAN, CORRUPTED, lambda logits: logits.mean(), executor=Backwards())
    made = nl.gym.planted()
    found = nl.circuits.scores(made, ["qwertyqw"], ["qwXrtyqw"], logit_difference(["e"], ["X"]))
    with pytest.raises(InputError, match="made here and came from no folder"):
        found.circuit(edges=5).evaluate(executor=Backwards())
