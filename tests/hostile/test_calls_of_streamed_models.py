"""Every public function, asked of a model whose layers are read from a file: the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import calls
import numpy as np
import pytest
import torch
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError
from neox_lab.streaming import store_of

LAYERS = 3
PLAIN = (str, int, float, bool, type(None), torch.Size)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.setitem(calls.SIZES, "num_hidden_layers", LAYERS)
    model = calls.reading()
    model.save_pretrained(tmp_path / "model")
    on_disk = {"": "cpu", **dict.fromkeys(range(LAYERS), "disk")}
    made = [
        nl.GPTNeoXForCausalLM.from_pretrained(tmp_path / "model", device_map=where)
        for where in (None, on_disk)
    ]
    for each in made:
        each.tokenizer, each.generation_config = model.tokenizer, model.generation_config
    assert store_of(made[1]) is not None
    # What is prepared for the calls saves the model it is given, and prunes to few edges.
    save, prune = nl.GPTNeoXForCausalLM.save_pretrained, nl.circuits.prune_edges
    monkeypatch.setattr(
        nl.GPTNeoXForCausalLM,
        "save_pretrained",
        lambda self, *given, **more: save(made[0] if self is made[1] else self, *given, **more),
    )
    monkeypatch.setattr(
        nl.circuits, "prune_edges", lambda *given, **more: prune(*given, **more | {"edges": 60})
    )
    return made[0], made[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_public_function(
    models: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[dict[str, Any]] = []
    for number, model in enumerate(models):
        monkeypatch.setattr(calls, "MODEL", model)
        monkeypatch.setitem(calls.BOTH, "model", model)
        monkeypatch.setitem(calls.ABOUT, "model", model)
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        found = {}
        for name, (function, given) in calls.calls(tmp_path / str(number)).items():
            torch.manual_seed(0)
            try:
                found[name] = function(**given)
            except Exception as error:  # some are asked in vain, whatever the model
                found[name] = error
            assert not model.hook_stack.placements, name
        answers.append(found)
    assert len(answers[0]) > 150
    compared = [name for name in answers[0] if same(name, *(found[name] for found in answers))]
    assert len(compared) > 100


def same(name: str, one: Any, two: Any) -> bool:
    """Whether two answers could be compared; they are asserted to be equal then."""
    if name == "from_transformers":  # it would copy all weights
        assert isinstance(two, CheckpointError)
        return False
    assert type(one) is type(two), (name, one, two)
    if hasattr(one, "frame"):
        one, two = one.frame, two.frame
    if hasattr(one, "equals"):
        one, two = (each.drop(columns="place", errors="ignore") for each in (one, two))
        assert one.equals(two), name
    elif isinstance(one, Tensor):
        assert torch.equal(one.nan_to_num(9e9), two.nan_to_num(9e9)), name
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, two, name)
    elif isinstance(one, list | tuple) and not isinstance(one, torch.Size):
        assert len(one) == len(two), name
        return all([same(name, *each) for each in zip(one, two, strict=True)])
    elif isinstance(one, PLAIN):
        assert one == two, name
    else:
        return False
    return True
