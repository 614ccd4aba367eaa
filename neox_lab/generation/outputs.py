"""What ``generate`` returns with ``return_dict_in_generate=True``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neox_lab.model.key_value_cache import KeyValueCache
from neox_lab.model.outputs import ModelOutput

PerStep = tuple[tuple[Tensor, ...], ...]


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """Result of greedy search and sampling.

    Attributes:
        sequences: token ids ``[batch, pos]``, prompt included.
        scores: per new token, what was chosen from: float32 ``[batch, vocab]``.
        logits: per new token, what the model said: float32 ``[batch, vocab]``.
        attentions: per step and layer ``[batch, head, query_pos, key_pos]``.
        hidden_states: per step and layer ``[batch, pos, d_model]``; the first step reads the
            whole prompt, later ones one token.
        past_key_values: the cache, one position shorter than ``sequences``.
    """

    kin_module: ClassVar[str] = "transformers.generation.utils"

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: PerStep | None = None
    hidden_states: PerStep | None = None
    past_key_values: KeyValueCache | None = None


@dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Result of beam search and beam sampling.

    Attributes:
        sequences: token ids ``[batch * num_return_sequences, pos]``, best first.
        sequences_scores: sum of log probabilities (in nats) over length to the power of
            ``length_penalty``, ``[batch * num_return_sequences]``.
        scores: per new token, processed log probabilities ``[batch * num_beams, vocab]``.
        logits: per new token, what the model said ``[batch * num_beams, vocab]``.
        beam_indices: which row of ``scores`` each new token came from
            ``[batch * num_return_sequences, new_pos]``, -1 where there is none.
        attentions: per step and layer.
        hidden_states: per step and layer.
        past_key_values: the cache, ``batch * num_beams`` rows.
    """

    kin_module: ClassVar[str] = "transformers.generation.utils"

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: PerStep | None = None
    hidden_states: PerStep | None = None
    past_key_values: KeyValueCache | None = None


Generated = Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput
"""Token ids, or with ``return_dict_in_generate=True`` an object that holds more."""
