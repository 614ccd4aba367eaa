"""Decoding through recorded steps, while nothing needs Python between or in them.

``CapturedStepper`` is a ``ModelStepper`` that takes steps from a recording, see ``captured``, where
``runs_as_built`` and nobody else's code runs between steps (``alone``). All else goes the plain
way, as does everything on a CPU. What is done with the logits (processors, draws, ends of texts)
is the same for both and happens outside.

The first two steps of a new recording are made the plain way as well. Where logits differ by more
than rounding, or nothing can be recorded, a ``NeoxLabWarning`` says so, and the model is decoded
the plain way from then on. Attention over a longer buffer is added up in another order, so in the
last bits logits may differ; where two tokens are equally likely but for these, texts may, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor

from neox_lab.generation import captured
from neox_lab.generation.captured import StaticStep, difference
from neox_lab.generation.model_stepper import ModelStepper, StepOutput
from neox_lab.generation.prompt import Prompt
from neox_lab.generation.recordable import runs_as_built, state_of
from neox_lab.memory import free_memory
from neox_lab.model.key_value_cache import KeyValueCache
from neox_lab.notices import tell

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

LEAST = 128  # positions of the smallest buffers
SPARE = 8  # positions beyond the text that recording may write to
PAYS_FROM = 16  # new tokens: recording takes the time of several plain steps
PROVEN = 2  # steps: the second shows that a recording goes on and does not stand still


@dataclass
class Recording:
    """A step and what plays it.

    Attributes:
        model_state: ``state_of`` the model when it was recorded.
        step: what it reads and writes.
        play: does the step once more.
        proven: how many steps were compared with plain ones.
    """

    model_state: tuple[Any, ...]
    step: StaticStep
    play: Callable[[], None]
    proven: int = 0


# The last recording of each model, while nobody plays it; and models that are not recorded.
_KEPT: WeakKeyDictionary[Any, Recording] = WeakKeyDictionary()
_GIVEN_UP: WeakSet[Any] = WeakSet()


class CapturedStepper(ModelStepper):
    """A ``ModelStepper`` that plays steps from a recording while ``alone``."""

    _cache: KeyValueCache | None = None
    _alone = False
    _recording: Recording | None = None

    def __init__(
        self, model: LanguageModel, prompt: Prompt, new_tokens: int, cache_is_wanted: bool
    ) -> None:
        """Nothing is read yet; see ``ModelStepper``.

        Args:
            model: the model.
            prompt: where the text begins.
            new_tokens: how many may come, at most.
            cache_is_wanted: whether somebody will ask for keys and values at the end.
        """
        super().__init__(model, prompt, new_tokens)
        self._end = self._prompt_length + new_tokens
        self._cache_is_wanted = cache_is_wanted or prompt.cache is not None

    @property
    def cache(self) -> KeyValueCache | None:
        """Keys and values read so far; who asks for them ends the playing, and has them all."""
        if self._recording is not None and self._cache is not None:
            recording, self._recording = self._recording, None
            recording.step.give_back(self._cache)
            _KEPT[self.model] = recording
        return self._cache

    @cache.setter
    def cache(self, cache: KeyValueCache | None) -> None:
        self._cache = cache

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, nobody else's code runs between steps, so that nothing changes but the text."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False
            if self._recording is not None and not self._cache_is_wanted:
                _KEPT[self.model] = self._recording
                self._recording = self._cache = None  # what it lacks need not be copied
            self.cache  # noqa: B018 (ends the playing)

    def step(self, ids: Tensor, keep: int = 1) -> StepOutput:
        """Read on to the end of ``ids``; see ``ModelStepper.step``."""
        recording = self._recording
        if recording is not None and recording.step.past == recording.step.capacity:
            recording = None
        if recording is None and self._alone and keep == 1:
            recording = self._begun(ids)
        if recording is None:
            return super().step(ids, keep)
        if recording.proven < PROVEN:
            return self._proven(recording, ids)
        self.steps += 1
        return StepOutput(self._played(recording, ids), None, None)

    def _played(self, recording: Recording, ids: Tensor) -> Tensor:
        step = recording.step
        step.ids.copy_(ids[:, -1:])
        with self._products():
            recording.play()
        step.past += 1
        return step.logits.clone()

    def _proven(self, recording: Recording, ids: Tensor) -> StepOutput:
        """The plain step, and the same from the recording, which has to say the same."""
        self._recording = None
        plain = super().step(ids)
        try:
            problem = difference(self._played(recording, ids), plain.logits, self.model.dtype)
        except RuntimeError as error:
            problem = str(error)
        if problem is not None:
            self._give_up(problem)
            return plain
        recording.proven += 1
        self._recording = recording
        return plain

    def _begun(self, ids: Tensor) -> Recording | None:
        """A recording that goes on after what was read; None where there can be none."""
        cache, model = self.cache, self.model
        past = 0 if cache is None else cache.get_seq_length()
        if past == 0 or type(cache) is not KeyValueCache:
            return None
        unread = self._unread(ids, past).get("input_ids")
        if unread is None or unread.shape[1] != 1:
            return None
        # Nothing but the text changes inside ``alone``, so one refusal is enough.
        self._alone = False
        if model in _GIVEN_UP or self._prepare is not None or not runs_as_built(model):
            return None
        state, batch = state_of(model), ids.shape[0]
        capacity = _room(past, self._end)
        recording = _KEPT.pop(model, None)
        if recording is not None and not (
            recording.model_state == state
            and recording.step.ids.shape[0] == batch
            and capacity <= recording.step.capacity <= 4 * capacity
        ):
            recording = None
        mask, positions = self._mask_and_positions(past, 1)
        try:
            if recording is None:
                if self._end - past < PAYS_FROM or not _fits(cache, capacity):
                    return None
                step = StaticStep(model, cache, capacity)
                step.load(cache, mask, positions)
                with self._products():
                    play = captured.recorded(lambda: step.run(model), model.device)
                recording = Recording(state, step, play)
            recording.step.load(cache, mask, positions)
        except RuntimeError as error:
            self._give_up(str(error))
            return None
        self._alone = True
        self._recording = recording
        return recording

    def _give_up(self, problem: str) -> None:
        self._alone = False
        _GIVEN_UP.add(self.model)
        tell(
            f"Decoding through a recorded CUDA graph does not work here: {problem}. The plain way "
            "is taken from now on for this model: the same tokens, more slowly."
        )


def _room(past: int, end: int) -> int:
    """How many positions buffers get: a power of two, and not all that a text might ever need."""
    wanted = max(LEAST, past + SPARE, min(end, 2 * past + 256))
    return 1 << (wanted - 1).bit_length()


def _fits(cache: KeyValueCache, capacity: int) -> bool:
    """Whether keys and values of ``capacity`` positions take at most half of the free memory."""
    keys, _ = cache[0]
    assert keys is not None
    needed = 2 * len(cache) * keys[:, :, :1].numel() * capacity * keys.element_size()
    free = free_memory(keys.device)
    return free is None or 2 * needed <= free
