"""The four classes with a head on top of the network.

Each head is one linear map on the final residual stream, with its own pair of hook points.
"""

from __future__ import annotations

import logging
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.family.backbone import GPTNeoXModel, RunOptions
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.losses import next_token_loss, sequence_loss, span_loss, token_loss
from neox_lab.generation import Generates
from neox_lab.kernels.linear import Linear
from neox_lab.model.hook_points import Taps
from neox_lab.model.key_value_cache import KeyValueCache
from neox_lab.model.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

_log = logging.getLogger("neox_lab")


class _WithHead(GPTNeoXPreTrainedModel):
    """A network below and one linear map above it."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.gpt_neox = GPTNeoXModel(config)

    def _project(self, name: str, linear: nn.Module, hidden: Tensor, taps: Taps) -> Tensor:
        """Apply the head between its two hook points."""
        hidden = taps.outside(f"{name}.hook_in", hidden)
        return taps.outside(f"{name}.hook_out", linear(hidden))

    def _finish(self, output: ModelOutput, return_dict: bool | None) -> Any:
        return output if self.gpt_neox.wants_dict(return_dict) else output.to_tuple()


class GPTNeoXForCausalLM(Generates, _WithHead):
    """GPT-NeoX with an unembedding: predicts each next token.

    Args:
        config: shape of the model.
    """

    head = "causal-lm"

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.embed_out: nn.Linear = Linear(config.hidden_size, config.vocab_size, bias=False)
        self._set_up(config)

    @property
    def lm_head(self) -> nn.Linear:
        """The unembedding, by the name transformers 5 gives it."""
        return self.embed_out

    def get_output_embeddings(self) -> nn.Linear:
        """The unembedding, weight ``[vocab, d_model]``."""
        return self.embed_out

    def set_output_embeddings(self, linear: nn.Linear) -> None:
        """Replace the unembedding, weight ``[vocab, d_model]``."""
        self.embed_out = linear

    def tie_weights(self) -> None:
        """Share input and output embeddings if the configuration asks for it."""
        if self.config.tie_word_embeddings:
            self.embed_out.weight = self.gpt_neox.embed_in.weight

    def can_generate(self) -> bool:
        """True."""
        return True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        *,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Unpack[RunOptions],
    ) -> CausalLMOutputWithPast | BaseModelOutputWithPast | tuple[Any, ...]:
        """Predict next tokens; arguments not named here are ``GPTNeoXModel.forward``'s.

        Args:
            input_ids: token ids ``[batch, pos]``.
            attention_mask: 1 for text and 0 for padding.
            position_ids: absolute positions.
            inputs_embeds: vectors instead of token ids.
            labels: the input tokens again ``[batch, pos]``, with -100 where no loss is wanted.
            past_key_values: cache of earlier positions.
            use_cache: return a cache.
            logits_to_keep: 0 for logits at every position, n for the last n; a tensor selects
                positions ``[kept]``, positions for each row ``[batch, kept]``, or, boolean
                ``[batch, pos]``, a flat set of them (logits ``[kept, vocab]``).
            return_dict: False returns a plain tuple.
            shift_labels: targets already moved by one, instead of ``labels``.
            num_items_in_batch: see ``next_token_loss``.
            options: see ``RunOptions``.

        Returns:
            ``logits`` ``[batch, kept, vocab]`` and, with labels, ``loss`` in nats per token.
        """
        taps = self.hook_stack.taps()
        run = self.gpt_neox.run(
            taps,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )
        if options.get("stop_at_layer") is not None:
            return self._finish(run, return_dict)
        hidden = kept_positions(_hidden(run), logits_to_keep)
        logits = self._project("unembed", self.embed_out, hidden, taps)
        loss = None
        if labels is not None or shift_labels is not None:
            loss = next_token_loss(
                logits, labels, shift_labels=shift_labels, num_items_in_batch=num_items_in_batch
            )
        output = CausalLMOutputWithPast(
            loss, logits, run.past_key_values, run.hidden_states, run.attentions
        )
        return self._finish(output, return_dict)


class GPTNeoXForSequenceClassification(_WithHead):
    """GPT-NeoX with one answer per text, read at its last token.

    Args:
        config: shape of the model; ``config.num_labels`` outputs.
    """

    head = "sequence-classification"

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self._set_up(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> SequenceClassifierOutputWithPast | BaseModelOutputWithPast | tuple[Any, ...]:
        """Classify texts; arguments not named here are ``GPTNeoXModel.forward``'s.

        Args:
            input_ids: token ids ``[batch, pos]``; the answer is read at the rightmost one that
                is not ``config.pad_token_id``.
            attention_mask: 1 for text and 0 for padding.
            position_ids: absolute positions.
            inputs_embeds: vectors instead of token ids; the answer is read at the last position.
            labels: classes ``[batch]``, numbers ``[batch]`` or ``[batch, label]`` for regression,
                or 0/1 ``[batch, label]`` for several labels; see ``sequence_loss``.
            past_key_values: cache of earlier positions.
            use_cache: return a cache.
            return_dict: False returns a plain tuple.
            options: see ``RunOptions``.

        Returns:
            ``logits`` ``[batch, label]`` and, with labels, a scalar ``loss``.

        Raises:
            InputError: several texts and no ``config.pad_token_id`` to find their ends.
        """
        taps = self.hook_stack.taps()
        run = self.gpt_neox.run(
            taps,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )
        if options.get("stop_at_layer") is not None:
            return self._finish(run, return_dict)
        everywhere = self._project("score", self.score, _hidden(run), taps)
        rows = torch.arange(everywhere.shape[0], device=everywhere.device)
        logits = everywhere[rows, self.last_token(input_ids, everywhere)]
        loss = None if labels is None else sequence_loss(logits, labels, self.config)
        output = SequenceClassifierOutputWithPast(
            loss, logits, run.past_key_values, run.hidden_states, run.attentions
        )
        return self._finish(output, return_dict)

    def last_token(self, input_ids: Tensor | None, logits: Tensor) -> Tensor | int:
        """Where each text is read: position of its last token ``[batch]``, or -1 for every end.

        Args:
            input_ids: token ids ``[batch, pos]``; None if vectors were given.
            logits: anything with as many rows.

        Raises:
            InputError: several texts and no ``config.pad_token_id`` to find their ends.
        """
        pad = self.config.pad_token_id
        if pad is None and logits.shape[0] > 1:
            raise InputError(
                "Cannot handle batch sizes > 1 if no padding token is defined: where each text "
                "ends is unknown. Set model.config.pad_token_id."
            )
        if pad is None:
            return -1
        if input_ids is None:
            _log.warning(
                "Classifying inputs_embeds: padding cannot be seen, so each answer is read at the "
                "last position."
            )
            return -1
        ids = input_ids.to(logits.device)
        positions = torch.arange(ids.shape[1], device=logits.device, dtype=torch.int32)
        return (positions * (ids != pad)).argmax(dim=-1)


class GPTNeoXForTokenClassification(_WithHead):
    """GPT-NeoX with one answer per token.

    Args:
        config: shape of the model; ``config.num_labels`` tags, ``config.classifier_dropout``.
    """

    head = "token-classification"

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._set_up(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> TokenClassifierOutput | BaseModelOutputWithPast | tuple[Any, ...]:
        """Tag tokens; arguments not named here are ``GPTNeoXModel.forward``'s.

        Args:
            input_ids: token ids ``[batch, pos]``.
            attention_mask: 1 for text and 0 for padding.
            token_type_ids: accepted and not used; GPT-NeoX has no token types.
            position_ids: absolute positions.
            inputs_embeds: vectors instead of token ids.
            labels: tags ``[batch, pos]``, with -100 where no loss is wanted.
            past_key_values: cache of earlier positions.
            use_cache: extend the given cache.
            return_dict: False returns a plain tuple.
            options: see ``RunOptions``.

        Returns:
            ``logits`` ``[batch, pos, label]`` and, with labels, a scalar ``loss``.
        """
        taps = self.hook_stack.taps()
        run = self.gpt_neox.run(
            taps,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )
        if options.get("stop_at_layer") is not None:
            return self._finish(run, return_dict)
        hidden = self.dropout(_hidden(run))
        logits = self._project("classifier", self.classifier, hidden, taps)
        loss = None if labels is None else token_loss(logits, labels)
        output = TokenClassifierOutput(loss, logits, run.hidden_states, run.attentions)
        return self._finish(output, return_dict)


class GPTNeoXForQuestionAnswering(_WithHead):
    """GPT-NeoX with two scores per token: the answer starts here, the answer ends here.

    Args:
        config: shape of the model.
    """

    head = "question-answering"

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self._set_up(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> QuestionAnsweringModelOutput | BaseModelOutputWithPast | tuple[Any, ...]:
        """Find an answer span; arguments not named here are ``GPTNeoXModel.forward``'s.

        Args:
            input_ids: token ids ``[batch, pos]``.
            attention_mask: 1 for text and 0 for padding.
            token_type_ids: accepted and not used; GPT-NeoX has no token types.
            position_ids: absolute positions.
            inputs_embeds: vectors instead of token ids.
            start_positions: first token of each answer ``[batch]``.
            end_positions: last token of each answer ``[batch]``.
            return_dict: False returns a plain tuple.
            options: see ``RunOptions``.

        Returns:
            ``start_logits`` and ``end_logits`` ``[batch, pos]`` and, with both positions given, a
            scalar ``loss``.
        """
        taps = self.hook_stack.taps()
        run = self.gpt_neox.run(
            taps,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            **options,
        )
        if options.get("stop_at_layer") is not None:
            return self._finish(run, return_dict)
        logits = self._project("qa_outputs", self.qa_outputs, _hidden(run), taps)
        start, end = (side.contiguous() for side in logits.unbind(dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        output = QuestionAnsweringModelOutput(loss, start, end, run.hidden_states, run.attentions)
        return self._finish(output, return_dict)


def kept_positions(hidden: Tensor, keep: int | Tensor) -> Tensor:
    """The positions of ``hidden`` ``[batch, pos, d_model]`` whose logits are wanted.

    Args:
        hidden: final residual stream.
        keep: see ``GPTNeoXForCausalLM.forward``.

    Raises:
        InputError: a selection of wrong kind.
    """
    if isinstance(keep, int):
        return hidden[:, -keep:] if keep else hidden
    keep = keep.to(hidden.device)
    if keep.dtype == torch.bool and keep.dim() == 2:
        return hidden[keep]
    if keep.dim() == 1 and not keep.is_floating_point():
        return hidden[:, keep]
    if keep.dim() == 2 and not keep.is_floating_point():
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return hidden[rows, keep]
    raise InputError(
        f"logits_to_keep has shape {list(keep.shape)} and dtype {keep.dtype}; expected an int, "
        "positions [kept] or [batch, kept], or a boolean [batch, pos]."
    )


def _hidden(run: BaseModelOutputWithPast) -> Tensor:
    assert run.last_hidden_state is not None
    return run.last_hidden_state
