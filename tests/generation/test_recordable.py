"""What a recording depends on: kernels are repeated without any Python, as a CUDA graph does it.

``test_captured`` calls the step instead; here its kernels are written down once and repeated with
the same memory, so whatever Python would have done differently shows in the text.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import tokens
from test_captured import CASES, NEW, assert_same_text, model_of, padded, plainly, written
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neox_lab.errors import NeoxLabWarning
from neox_lab.generation import captured, captured_stepper
from neox_lab.model.block import MLP
from neox_lab.model.rotary import RotaryTable

pytestmark = pytest.mark.usefixtures("one_thread")


class Tape(TorchDispatchMode):
    """Writes down the kernels of a step; ``play`` repeats them with the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, kernel: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = kernel(*args, **(kwargs or {}))
        self.asked.append((kernel, args, kwargs or {}, found))
        return found

    def play(self) -> None:
        for kernel, args, kwargs, before in self.asked:
            made = kernel(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(made), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """Tapes that were recorded, in the place of CUDA graphs."""
    made: list[Tape] = []

    def recorded(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        for _ in range(3):
            run()
        with Tape() as tape:
            run()
        made.append(tape)
        return tape.play

    monkeypatch.setattr(captured, "DEVICES", ("cpu",))
    monkeypatch.setattr(captured, "recorded", recorded)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NeoxLabWarning)
        yield made
    captured_stepper._KEPT.clear()
    captured_stepper._GIVEN_UP.clear()


@pytest.mark.parametrize("case", CASES)
def test_the_same_tokens_from_kernels_alone(tapes: list[Tape], case: str) -> None:
    inputs = {"input_ids": tokens(3, 9)} if case == "unpadded" else padded()
    assert_same_text(model_of(case != "greedy"), **inputs, **CASES[case])
    assert len(tapes) == 1


def test_many_rows_that_end_at_different_steps(tapes: list[Tape]) -> None:
    """32 texts, padded on the left, drawn, and each ending where it likes."""
    ids = tokens(32, 11)
    mask = torch.ones_like(ids)
    for row in range(32):
        ids[row, : row % 10] = mask[row, : row % 10] = 0
    model = model_of()
    given = {"input_ids": ids, "attention_mask": mask, "do_sample": True, "temperature": 3.0}
    ends = list(range(3, 12))
    found = written(model, **given, eos_token_id=ends)
    plain = plainly(model, **given, eos_token_id=ends)
    torch.testing.assert_close(found, plain)
    assert len({int((row == 1).sum()) for row in found[:, 11:]}) > 5
    assert len(tapes) == 1


def test_threads_have_recordings_of_their_own(tapes: list[Tape]) -> None:
    model = model_of()
    plain = [plainly(model, input_ids=tokens(2, 9, seed=seed)) for seed in range(4)]
    found: dict[int, Tensor] = {}

    def write(seed: int) -> None:
        for _ in range(2):
            found[seed] = written(model, input_ids=tokens(2, 9, seed=seed))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(plain):
        torch.testing.assert_close(found[seed], expected)


_STRENGTH = [1.0]


def _layer(model: Any) -> Any:
    return model.gpt_neox.layers[1]


def _act_of_mine(model: Any) -> None:
    _STRENGTH[0] = 1.0
    _layer(model).mlp.act = lambda x: F.gelu(x) * _STRENGTH[0]


def _tensor_for_a_weight(model: Any) -> None:
    linear = _layer(model).mlp.dense_h_to_4h
    weight = linear.weight.detach().clone()
    del linear.weight
    linear.weight = weight


def _negated_tensor(model: Any) -> None:
    _layer(model).mlp.dense_h_to_4h.weight = -_layer(model).mlp.dense_h_to_4h.weight


def _other_angles(model: Any) -> None:
    rotary = model.gpt_neox.rotary
    rotary.angles = lambda ids: RotaryTable.angles(rotary, 2 * ids)


def _last_token_only(model: Any) -> None:
    def prepare(ids: Tensor, **given: Any) -> dict[str, Any]:
        past = given["past_key_values"]
        return {"input_ids": ids if past is None else 0 * ids[:, -1:] + 7, "past_key_values": past}

    model.prepare_inputs_for_generation = prepare


PUT_IN: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "a function of mine that reads a number": (
        _act_of_mine,
        lambda model: _STRENGTH.__setitem__(0, -3.0),
    ),
    "a tensor in a parameter's place": (_tensor_for_a_weight, _negated_tensor),
    "a method of a module": (
        lambda model: None,
        lambda model: setattr(
            _layer(model).attention, "mix", lambda q, k, v, mask, tap=None: 0 * q
        ),
    ),
    "a method of the rotary table": (lambda model: None, _other_angles),
    "how inputs are prepared": (lambda model: None, _last_token_only),
}


@pytest.mark.parametrize("case", PUT_IN)
def test_what_is_put_in_is_heard(tapes: list[Tape], case: str) -> None:
    before, after = PUT_IN[case]
    model = model_of()
    before(model)
    first = written(model, input_ids=tokens(2, 9))
    after(model)
    second = written(model, input_ids=tokens(2, 9))
    torch.testing.assert_close(second, plainly(model, input_ids=tokens(2, 9)))
    assert not torch.equal(first, second), "the change must matter"


def test_a_method_put_into_a_class_is_heard(
    tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    first = written(model, input_ids=tokens(2, 9))
    monkeypatch.setattr(MLP, "forward", lambda self, x, tap=None: 0 * x)
    assert_same_text(model, input_ids=tokens(2, 9))
    assert not torch.equal(first, written(model, input_ids=tokens(2, 9)))
    monkeypatch.undo()


class _Halving(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        return found / 2 if function is F.layer_norm else found


def test_modes_of_torch_are_heard(tapes: list[Tape]) -> None:
    model = model_of()
    first = written(model, input_ids=tokens(2, 9))
    with _Halving():
        assert_same_text(model, input_ids=tokens(2, 9))
        assert not torch.equal(first, written(model, input_ids=tokens(2, 9)))
    with Tape() as shown:
        written(model, input_ids=tokens(2, 9))
    assert len(shown.asked) > 60 * NEW, "it is shown every step"
    assert len(tapes) == 1


def test_a_default_device_is_no_obstacle(tapes: list[Tape]) -> None:
    with torch.device("cpu"):
        assert_same_text(model_of(), input_ids=tokens(2, 9))
    assert len(tapes) == 1


SETTINGS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "precision": (
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "sums in half precision": (
        lambda: setattr(
            torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False
        ),
        lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "attention": (
        lambda: torch.backends.cuda.enable_flash_sdp(False),
        lambda: torch.backends.cuda.enable_flash_sdp(True),
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_kernels_are_those_that_are_asked_for_now(tapes: list[Tape], case: str) -> None:
    """TF32 that was allowed at first must not be taken once it no longer is."""
    model = model_of()
    change, back = SETTINGS[case]
    try:
        written(model, input_ids=tokens(2, 9))
        change()
        assert_same_text(model, input_ids=tokens(2, 9))
        assert len(tapes) == 2
    finally:
        back()
    assert_same_text(model, input_ids=tokens(2, 9))
    assert len(tapes) == 3


class _Generator:
    """A device's generator before PyTorch 2.13: what fails in a recording leaves its mark."""

    def __init__(self, marked: bool) -> None:
        self.given: list[object] = []
        self.marked = marked

    def clone_state(self) -> _Generator:
        return _Generator(False)

    def get_state(self) -> str:
        return "numbers"

    def set_state(self, state: object) -> None:
        self.given.append(state)

    def graphsafe_set_state(self, other: _Generator) -> None:
        self.given.append(other)
        self.marked = other.marked


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_random_numbers_after_a_recording_that_fails(
    monkeypatch: pytest.MonkeyPatch, marked: bool, error: type[BaseException]
) -> None:
    generator = _Generator(marked)

    def draw(self: Tensor) -> Tensor:
        if generator.marked:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        return self

    monkeypatch.setattr(torch.cuda, "default_generators", [generator])
    monkeypatch.setattr(torch.Tensor, "uniform_", draw)
    where = torch.device("cpu", 0)
    with pytest.raises(error), captured.draws_go_on(where):
        raise error
    assert not generator.marked
    assert generator.given == ["numbers"] or isinstance(generator.given[0], _Generator) == marked
    with captured.draws_go_on(where):
        pass
    assert len(generator.given) == 1, "nothing is touched where nothing failed"
