"""From the steps of a strategy to what ``generate`` returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from neox_lab.generation.beams import BeamSearch
from neox_lab.generation.model_stepper import Reader
from neox_lab.generation.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    PerStep,
)
from neox_lab.generation.sampling import Step
from neox_lab.generation.settings import GenerationConfig


class Record:
    """What the user wants to have kept of every step.

    Attributes:
        ids: the text so far ``[batch, pos]``.
    """

    def __init__(self, ids: Tensor, settings: GenerationConfig) -> None:
        """Before the first step: ``ids`` is the prompt."""
        self.ids = ids
        self.settings = settings
        self._scores: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._hidden_states: list[tuple[Tensor, ...]] = []
        self._attentions: list[tuple[Tensor, ...]] = []

    def add(self, step: Step) -> None:
        """Keep what is wanted of ``step``."""
        self.ids = step.ids
        if self.settings.output_scores:
            self._scores += step.scores
        if self.settings.output_logits:
            self._logits += step.logits
        reading = step.reading
        drafted = reading.logits.shape[1] - 1
        if reading.hidden_states is not None:
            self._hidden_states += _per_token(reading.hidden_states, 1, drafted, step.new)
        if reading.attentions is not None:
            self._attentions += _per_token(reading.attentions, 2, drafted, step.new)

    def result(self, reader: Reader, beams: BeamSearch | None) -> Any:
        """Token ids, or the output object if that was asked for."""
        ids, scores, origins = (self.ids, None, None) if beams is None else beams.best()
        if not self.settings.return_dict_in_generate:
            return ids
        kept: dict[str, Any] = {
            "sequences": ids,
            "scores": self._if(self.settings.output_scores, self._scores),
            "logits": self._if(self.settings.output_logits, self._logits),
            "hidden_states": self._if(self.settings.output_hidden_states, self._hidden_states),
            "attentions": self._if(self.settings.output_attentions, self._attentions),
            "past_key_values": reader.cache,
        }
        if beams is None:
            return GenerateDecoderOnlyOutput(**kept)
        kept["sequences_scores"] = self._if(self.settings.output_scores, scores)
        return GenerateBeamDecoderOnlyOutput(**kept, beam_indices=origins)

    @staticmethod
    def _if(wanted: bool, kept: Any) -> Any:
        if not wanted:
            return None
        return tuple(kept) if isinstance(kept, list) else kept


def _per_token(layers: tuple[Tensor, ...], axis: int, drafted: int, new: int) -> PerStep:
    """One entry for each new token, from tensors over all positions a step has read.

    Args:
        layers: a tensor for each layer.
        axis: of the positions read.
        drafted: how many of the last positions were guesses.
        new: how many tokens the step added; the first entry covers what was read before the
            guesses, each further one covers one accepted guess.
    """
    if drafted == 0:
        return (layers,)
    first = layers[0].shape[axis] - drafted
    # Keys after the query are not part of what a query has seen.
    keys = layers[0].shape[-1] - drafted if axis == 2 else None
    entries = []
    for place in range(new):
        start, length = (0, first) if place == 0 else (first + place - 1, 1)
        cut = tuple(layer.narrow(axis, start, length) for layer in layers)
        if keys is not None:
            cut = tuple(layer[..., : keys + place] for layer in cut)
        entries.append(cut)
    return tuple(entries)
