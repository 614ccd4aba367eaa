"""Decoding by recorded steps writes what plain steps write, and only where nothing needs Python.

There is no GPU here. What stands in for a CUDA graph calls the step instead of repeating kernels;
that the step can be recorded at all (nothing waits for a number, nothing is copied from elsewhere,
everything stays where it is) is tested by watching the kernels that it asks for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from oracle import SIZES, randomize, tokens
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import neox_lab as nl
from neox_lab.errors import NeoxLabWarning
from neox_lab.generation import captured, captured_stepper
from neox_lab.generation.captured import StaticStep, difference
from neox_lab.model.key_value_cache import KeyValueCache

NEW = 24


class StandIn:
    """Counts what is recorded and played; ``broken`` spoils each playing."""

    def __init__(self) -> None:
        self.recordings = self.plays = 0
        self.broken: Callable[[], None] | None = None

    def recorded(self, run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """As ``captured.recorded``, which also runs the step some times before."""
        self.recordings += 1
        for _ in range(4):
            run()

        def play() -> None:
            self.plays += 1
            run()
            if self.broken is not None:
                self.broken()

        return play


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    made = StandIn()
    monkeypatch.setattr(captured, "DEVICES", ("cpu",))
    monkeypatch.setattr(captured, "recorded", made.recorded)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NeoxLabWarning)
        yield made
    captured_stepper._KEPT.clear()
    captured_stepper._GIVEN_UP.clear()


def model_of(parallel: bool = True, seed: int = 0, **more: Any) -> Any:
    sizes = SIZES | {"use_parallel_residual": parallel, "max_position_embeddings": 2048} | more
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes)).eval()
    randomize(model, seed=seed)
    return model


def padded() -> dict[str, Tensor]:
    ids = tokens(3, 9)
    mask = torch.ones_like(ids)
    ids[0, :4] = mask[0, :4] = 0
    ids[2, :1] = mask[2, :1] = 0
    return {"input_ids": ids, "attention_mask": mask}


def plainly(model: Any, **arguments: Any) -> Any:
    """``generate`` without any recording."""
    before, captured.DEVICES = captured.DEVICES, ()
    try:
        return written(model, **arguments)
    finally:
        captured.DEVICES = before


def written(model: Any, **arguments: Any) -> Any:
    torch.manual_seed(5)
    settings = {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 1} | arguments
    return model.generate(**settings)


def assert_same_text(model: Any, **arguments: Any) -> None:
    torch.testing.assert_close(written(model, **arguments), plainly(model, **arguments))


CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "unpadded": {"do_sample": True, "temperature": 3.0},
    "sampled": {"do_sample": True, "temperature": 3.0, "top_k": 40, "top_p": 0.9},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 8},
    "positions": {"position_ids": torch.arange(5, 14)[None]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parallel", [True, False])
def test_the_same_tokens(stand_in: StandIn, parallel: bool, case: str) -> None:
    inputs = {"input_ids": tokens(3, 9)} if case == "unpadded" else padded()
    assert_same_text(model_of(parallel), **inputs, **CASES[case])
    # The first token comes from reading the prompt.
    assert (stand_in.recordings, stand_in.plays) == (1, NEW - 1)


def test_rows_that_end_at_different_steps(stand_in: StandIn) -> None:
    model = model_of()
    whole = plainly(model, **padded())
    ends = [int(whole[row, 9 + step]) for row, step in ((0, 5), (1, 12), (2, 20))]
    found = written(model, **padded(), eos_token_id=ends)
    torch.testing.assert_close(found, plainly(model, **padded(), eos_token_id=ends))
    assert len({int((row == 1).sum()) for row in found}) > 1, "rows are filled up differently"
    assert stand_in.plays > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(stand_in: StandIn, dtype: torch.dtype) -> None:
    model = model_of().to(dtype)
    given = {"return_dict_in_generate": True, "output_logits": True}
    ours, plain = written(model, **padded(), **given), plainly(model, **padded(), **given)
    assert stand_in.plays == NEW - 1
    same = (ours.sequences == plain.sequences).all(dim=0)
    steps = int((~same).float().argmax()) - 9 if not bool(same.all()) else NEW
    assert steps >= 5, "only where two tokens are nearly as likely may texts part"
    bound = 8 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    for here, there in zip(ours.logits[:steps], plain.logits[:steps], strict=True):
        assert (here - there).abs().max() <= bound * there.abs().max()


def test_buffers_grow_with_the_text(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_stepper, "_room", lambda past, end: 2 * past)
    model = model_of().double()
    # From 9 tokens on: room for 18, 36, 72 and 144.
    assert_same_text(model, **padded(), max_new_tokens=80)
    assert (stand_in.recordings, stand_in.plays) == (4, 79)
    # With less than 16 tokens to come nothing new is recorded.
    assert_same_text(model, **padded(), max_new_tokens=70)
    assert (stand_in.recordings, stand_in.plays) == (7, 79 + 63)


def test_room() -> None:
    assert captured_stepper._room(17, 80) == 128
    assert captured_stepper._room(17, 1000) == 512
    assert captured_stepper._room(512, 1000) == 1024
    for past in range(1, 3000, 7):
        assert captured_stepper._room(past, past + 16) >= past + captured_stepper.SPARE


def test_a_recording_serves_later_calls(stand_in: StandIn) -> None:
    model = model_of()
    for ids in (tokens(2, 9), tokens(2, 30, seed=1), tokens(2, 3, seed=2)):
        assert_same_text(model, input_ids=ids)
    assert stand_in.recordings == 1
    assert_same_text(model, input_ids=tokens(2, 9), max_new_tokens=4)  # there is one already
    assert stand_in.plays == 3 * (NEW - 1) + 3


def test_what_was_there_before_is_forgotten(stand_in: StandIn) -> None:
    """What is hidden is multiplied by 0, and NaN times 0 is NaN."""
    model = model_of()
    written(model, input_ids=tokens(2, 9))
    for layer in captured_stepper._KEPT[model].step._layers:
        for buffer in layer.buffers:
            buffer.fill_(float("nan"))
    assert_same_text(model, input_ids=tokens(2, 3))
    assert stand_in.recordings == 1


def _moved(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _halved(model: Any) -> None:
    model.half()
    model.float()


def _replaced(model: Any) -> None:
    model.gpt_neox.layers[1].mlp.dense_h_to_4h = nn.Linear(64, 96).eval()


def _rescaled(model: Any) -> None:
    model.gpt_neox.layers[1].attention.scale *= 2


@pytest.mark.parametrize("change", [_moved, _halved, _replaced, _rescaled])
def test_a_changed_model_is_recorded_again(
    stand_in: StandIn, change: Callable[[Any], None]
) -> None:
    model = model_of()
    written(model, input_ids=tokens(2, 9))
    change(model)
    assert_same_text(model, input_ids=tokens(2, 9))
    assert stand_in.recordings == 2


def test_what_is_recorded_again_and_what_is_not(stand_in: StandIn) -> None:
    model, other = model_of(), model_of(seed=1)
    for _ in range(2):  # each model has its own
        assert_same_text(model, input_ids=tokens(2, 9))
        assert_same_text(other, input_ids=tokens(2, 9))
    assert stand_in.recordings == 2
    randomize(model, seed=3)  # the numbers in the weights are read where they are
    assert_same_text(model, input_ids=tokens(2, 9))
    assert stand_in.recordings == 2
    assert_same_text(model, input_ids=tokens(3, 9))
    assert stand_in.recordings == 3, "another batch"
    assert_same_text(model, input_ids=tokens(3, 120))
    assert stand_in.recordings == 4, "more than there was room for"


def test_scores_and_cache_are_the_callers_own(stand_in: StandIn) -> None:
    model = model_of().double()
    given = {
        "return_dict_in_generate": True,
        "output_logits": True,
        "output_scores": True,
        **padded(),
    }
    ours = written(model, **given)
    written(model, **padded(), do_sample=True)  # plays into the same memory
    plain = plainly(model, **given)
    torch.testing.assert_close(ours.logits, plain.logits)
    torch.testing.assert_close(ours.scores, plain.scores)
    assert type(ours.past_key_values) is KeyValueCache
    torch.testing.assert_close(list(ours.past_key_values), list(plain.past_key_values))


def test_goes_on_from_a_cache_and_extends_it(stand_in: StandIn) -> None:
    model = model_of().double()
    ids = tokens(2, 12)

    def cache() -> KeyValueCache:
        with torch.no_grad():
            return model(ids[:, :11], use_cache=True).past_key_values

    ours, plain = cache(), cache()
    first = written(model, input_ids=ids, past_key_values=ours)
    torch.testing.assert_close(first, plainly(model, input_ids=ids, past_key_values=plain))
    assert stand_in.plays == NEW
    torch.testing.assert_close(list(ours), list(plain))
    assert ours.get_seq_length() == first.shape[1] - 1


def test_a_cache_that_nobody_wants_is_not_copied(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy at the end could be what there is no memory for."""

    def refuse(self: StaticStep, cache: KeyValueCache) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(StaticStep, "give_back", refuse)
    model = model_of()
    for _ in range(2):
        assert_same_text(model, **padded())
    assert stand_in.recordings == 1


def test_an_interruption_keeps_whole_steps(stand_in: StandIn) -> None:
    model = model_of().double()

    def interrupt() -> None:
        if stand_in.plays == 20:
            raise KeyboardInterrupt

    stand_in.broken = interrupt
    given = {**padded(), "return_dict_in_generate": True}
    found = written(model, **given)
    stand_in.broken = None
    length = found.sequences.shape[1]
    assert length == 9 + 20
    plain = plainly(model, **given, max_new_tokens=20)
    torch.testing.assert_close(found.sequences, plain.sequences)
    torch.testing.assert_close(list(found.past_key_values), list(plain.past_key_values))
    assert_same_text(model, **padded())


def test_under_inference_mode_and_outside(stand_in: StandIn) -> None:
    model = model_of()
    for mode in (torch.inference_mode, nullcontext, torch.inference_mode):
        with mode():
            assert_same_text(model, **padded())
    assert stand_in.recordings == 1


class _Mine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


def _hooked(model: Any) -> Any:
    return model.hooks([("blocks.1.hook_resid_post", lambda tensor, hook: tensor * 2)])


def _after(prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def prepared(model: Any) -> Any:
        prepare(model)
        return nullcontext()

    return prepared


WATCHED: dict[str, Callable[[Any], Any]] = {
    "hooks": _hooked,
    "torch hooks": _after(
        lambda model: model.gpt_neox.layers[1].mlp.register_forward_hook(lambda m, i, o: 2 * o)
    ),
    "a module": _after(lambda model: setattr(model.gpt_neox.layers[1], "mlp", _Mine())),
    "a forward": _after(
        lambda model: setattr(model.gpt_neox.layers[1].mlp, "forward", lambda x, tap=None: 0 * x)
    ),
    "training": _after(lambda model: model.gpt_neox.layers[1].train()),
    "autocast": lambda model: torch.autocast("cpu", torch.bfloat16),
    "attentions": _after(lambda model: setattr(model.config, "output_attentions", True)),
}


@pytest.mark.parametrize("case", WATCHED)
def test_what_is_watched_goes_the_plain_way(stand_in: StandIn, case: str) -> None:
    model = model_of()
    with WATCHED[case](model):
        assert_same_text(model, input_ids=tokens(2, 9))
    assert stand_in.plays == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 2},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"logits_processor": [lambda ids, scores: scores + 1]},
        {"stopping_criteria": [lambda ids, scores: False]},
        {"prefix_allowed_tokens_fn": lambda row, ids: [5, 6, 7]},
        {"guidance_scale": 1.5},
        {"use_cache": False},
        {"max_new_tokens": 10},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_needs_more_goes_the_plain_way(stand_in: StandIn, arguments: dict[str, Any]) -> None:
    written(model_of(), input_ids=tokens(1, 9), **arguments)
    assert (stand_in.recordings, stand_in.plays) == (0, 0)


def test_streams_caches_and_scaled_positions_go_the_plain_way(stand_in: StandIn) -> None:
    model = model_of()
    given: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None}
    assert len(list(model.stream(tokens(1, 9), **given))) == NEW
    model.generate_with_cache(tokens(1, 9), **given)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    written(model_of(rope_parameters=rope), input_ids=tokens(1, 9))
    assert (stand_in.recordings, stand_in.plays) == (0, 0)


def _says_so_once(model: Any, **arguments: Any) -> str:
    with pytest.warns(NeoxLabWarning) as told:
        found = written(model, **arguments)
    torch.testing.assert_close(found, plainly(model, **arguments))
    assert_same_text(model, **arguments)  # without a warning
    (one,) = told
    assert one.filename == __file__
    return str(one.message)


def test_a_recording_that_says_something_else_is_not_used(stand_in: StandIn) -> None:
    model = model_of()

    def spoil() -> None:
        model_step = captured_stepper._KEPT  # empty while it is played
        assert not len(model_step)
        for step in steps:
            step.logits[0, 0, 3] += 0.1 * step.logits.abs().max()

    steps: list[StaticStep] = []
    made = StaticStep.load

    def load(self: StaticStep, *given: Any) -> None:
        steps[:] = [self]
        made(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticStep, "load", load)
        stand_in.broken = spoil
        assert "logits differ by 0.1 of the largest" in _says_so_once(model, **padded())
    assert stand_in.plays == 1


def test_a_recording_that_stands_still_is_found_out(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        play = stand_in.recorded(run, device)
        step = run.__closure__[1].cell_contents if run.__closure__ else None
        assert isinstance(step, StaticStep)

        def still() -> None:  # as where a place had been a number of Python's
            step._place.fill_(9)
            play()

        return still

    monkeypatch.setattr(captured, "recorded", recorded)
    assert "logits differ" in _says_so_once(model_of(), **padded())
    assert stand_in.plays == 2


def test_what_cannot_be_recorded_is_not_tried_again(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        stand_in.recordings += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "recorded", refuse)
    assert "not permitted" in _says_so_once(model_of(), **padded())
    assert stand_in.recordings == 1


def test_difference() -> None:
    plain = torch.tensor([[[1.0, -8.0, 2.0]]])
    assert difference(plain * (1 + 2**-11), plain, torch.float16) is None
    assert difference(plain + 0.2, plain, torch.float16) is not None
    assert difference(plain + 0.2, plain, torch.bfloat16) is None
    assert difference(plain + 0.02, plain, torch.float32) is not None
    nan = plain.clone()
    nan[0, 0, 0] = float("nan")
    assert difference(nan, plain, torch.float32) is not None
    assert difference(nan, nan, torch.float32) is None


_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class Recordable(TorchDispatchMode):
    """Refuses what a CUDA graph cannot have; keeps what was asked for, with its numbers."""

    def __init__(self, outside: set[int]) -> None:
        super().__init__()
        self.asked: list[tuple[Any, ...]] = []
        self.outside, self.made = outside, set[int]()

    def __torch_dispatch__(
        self, kernel: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(kernel)
        assert not any(waits in name for waits in _WAITS), f"{name} waits for a number"
        assert "lift" not in name, f"{name} brings numbers of Python's"
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs or {}))
        told: list[Any] = []
        for value in flat:
            if isinstance(value, Tensor):
                place = value.untyped_storage().data_ptr()
                assert place in self.outside or place in self.made, f"{name} reads what is new"
                told.append((tuple(value.shape), value.stride(), place in self.outside and place))
            else:
                told.append(value)
        found = kernel(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(found):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.outside:
                self.made.add(value.untyped_storage().data_ptr())
        self.asked.append((name, *told))
        return found


def _ready(model: Any, dtype: torch.dtype) -> StaticStep:
    inputs = padded()
    cache = model(**inputs, use_cache=True).past_key_values
    step = StaticStep(model, cache, 32)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    step.load(cache, mask, None)
    return step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("parallel", [True, False])
@torch.no_grad()
def test_every_step_asks_for_the_same(parallel: bool, dtype: torch.dtype) -> None:
    """No number decides, no number of Python's changes, and all that is kept stays in its place."""
    model = model_of(parallel).to(dtype)
    step = _ready(model, dtype)
    kept = [*model.parameters(), *model.buffers(), step.ids, step.logits, step._positions]
    kept += [step._place, step._text, step._index, model.gpt_neox.rotary.angles(step.ids)[0]]
    kept += [buffer for layer in step._layers for buffer in layer.buffers]
    kept += [frequencies for frequencies, _ in model.gpt_neox.rotary._by_device.values()]
    outside = {tensor.untyped_storage().data_ptr() for tensor in kept}
    asked = []
    for token in (3, 5, 7):
        step.ids.fill_(token)
        with Recordable(outside) as mode:
            step.run(model)
        asked.append(mode.asked)
    assert len(asked[0]) > 60
    assert asked[0] == asked[1] == asked[2]


@torch.no_grad()
def test_a_step_stays_on_its_device() -> None:
    """The same step with tensors that have no numbers: none that has some may come to them."""
    with torch.device("meta"):
        model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES)).eval()
        cache = model(torch.zeros(2, 9, dtype=torch.long), use_cache=True).past_key_values
    step = StaticStep(model, cache, 32)
    step.load(cache, None, None)
    step.run(model)
    assert step.logits.is_meta
