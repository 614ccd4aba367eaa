"""From the steps of a strategy to what ``generate`` returns."""

from __future__ import annotations

from torch import Tensor

from neox_lab.generation.beams import BeamSearch
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.model_stepper import ModelStepper
from neox_lab.generation.outputs import (
    GenerateBeamDecoderOnlyOutput,
    Generated,
    GenerateDecoderOnlyOutput,
    PerStep,
)
from neox_lab.generation.sampling import Step


class OutputBuilder:
    """Keeps what the user wants to have of every step, and makes the output of it.

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
        output = step.output
        drafted = output.logits.shape[1] - 1
        if output.hidden_states is not None:
            self._hidden_states += _per_token(output.hidden_states, 1, drafted, step.new)
        if output.attentions is not None:
            self._attentions += _per_token(output.attentions, 2, drafted, step.new)

    def build(self, stepper: ModelStepper, beams: BeamSearch | None) -> Generated:
        """Token ids, or the output object if that was asked for.

        Args:
            stepper: which made the steps; has the cache.
            beams: the beam search, if it was one.
        """
        ids, sums, origins = (self.ids, None, None) if beams is None else beams.best()
        wanted = self.settings
        if not wanted.return_dict_in_generate:
            return ids
        scores = tuple(self._scores) if wanted.output_scores else None
        logits = tuple(self._logits) if wanted.output_logits else None
        hidden_states = tuple(self._hidden_states) if wanted.output_hidden_states else None
        attentions = tuple(self._attentions) if wanted.output_attentions else None
        if beams is None:
            return GenerateDecoderOnlyOutput(
                sequences=ids,
                scores=scores,
                logits=logits,
                attentions=attentions,
                hidden_states=hidden_states,
                past_key_values=stepper.cache,
            )
        return GenerateBeamDecoderOnlyOutput(
            sequences=ids,
            sequences_scores=sums if wanted.output_scores else None,
            scores=scores,
            logits=logits,
            beam_indices=origins,
            attentions=attentions,
            hidden_states=hidden_states,
            past_key_values=stepper.cache,
        )


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
