"""The four classes with a head on top of the network.

Each head is one linear map on the final residual stream, with its own pair of hook points. What
else is known of it stands in the registry, ``neox_lab.model.output_heads``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import torch
from torch import Tensor, nn

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.family.backbone import GPTNeoXModel, RunArguments, RunOptions
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.losses import IGNORED, next_token_loss, sequence_loss, span_loss, token_loss
from neox_lab.generation import Generates
from neox_lab.kernels.linear import Linear
from neox_lab.model.hook_points import Taps
from neox_lab.model.key_value_cache import KeyValueCache
from neox_lab.model.output_heads import OUTPUT_HEADS
from neox_lab.model.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

Output = TypeVar("Output", bound=ModelOutput)


class GPTNeoXWithHead(GPTNeoXPreTrainedModel):
    """A network below and one linear map above it.

    A subclass names its entry in the registry of output heads as ``head``, builds that entry's
    module and calls ``_set_up``. Its ``forward`` says what is done with the logits and leaves the
    rest to ``_run_head``.

    Args:
        config: shape of the model.
    """

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.gpt_neox = GPTNeoXModel(config)

    def _run_head(
        self,
        answer: Callable[[Tensor, BaseModelOutputWithPast], Output],
        return_dict: bool | None,
        select: Callable[[Tensor], Tensor] | None = None,
        **arguments: Unpack[RunArguments],
    ) -> Output | BaseModelOutputWithPast | tuple[Any, ...]:
        """The forward pass of every head: the network, the linear map, and what it answers.

        Args:
            answer: the output, with its loss, from the logits and what the network returned.
            return_dict: False returns a plain tuple.
            select: what the linear map reads of the final residual stream; all if None.
            arguments: of ``GPTNeoXModel.run``; after ``stop_at_layer`` there is no head.
        """
        taps = self.hook_stack.taps()
        run = self.gpt_neox.run(taps, **arguments)
        output: Output | BaseModelOutputWithPast = run
        if arguments.get("stop_at_layer") is None:
            hidden = run.last_hidden_state
            assert hidden is not None
            if select is not None:
                hidden = select(hidden)
            entry = OUTPUT_HEADS[self.head]
            linear = getattr(self, entry.module)  # an adapter may stand in its place
            output = answer(self._project(entry.hook, linear, hidden, taps), run)
        return output if self.gpt_neox.wants_dict(return_dict) else output.to_tuple()

    def _project(self, name: str, linear: nn.Module, hidden: Tensor, taps: Taps) -> Tensor:
        """Apply the head between its two hook points."""
        hidden = taps.outside(f"{name}.hook_in", hidden)
        return taps.outside(f"{name}.hook_out", linear(hidden))


class GPTNeoXForCausalLM(Generates, GPTNeoXWithHead):
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

    @staticmethod
    def count_targets(batch: Mapping[str, Tensor]) -> int:
        """Over how many tokens the loss of a batch is a mean; the first of a text is not asked."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

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

        def select(hidden: Tensor) -> Tensor:
            return kept_positions(hidden, logits_to_keep)

        def answer(logits: Tensor, run: BaseModelOutputWithPast) -> CausalLMOutputWithPast:
            loss = None
            if labels is not None or shift_labels is not None:
                loss = next_token_loss(
                    logits, labels, shift_labels=shift_labels, num_items_in_batch=num_items_in_batch
                )
            return CausalLMOutputWithPast(
                loss, logits, run.past_key_values, run.hidden_states, run.attentions
            )

        return self._run_head(
            answer,
            return_dict,
            select,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )


class GPTNeoXForSequenceClassification(GPTNeoXWithHead):
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

        def answer(
            everywhere: Tensor, run: BaseModelOutputWithPast
        ) -> SequenceClassifierOutputWithPast:
            rows = torch.arange(everywhere.shape[0], device=everywhere.device)
            logits = everywhere[rows, self.last_token(input_ids, everywhere)]
            loss = None if labels is None else sequence_loss(logits, labels, self.config)
            return SequenceClassifierOutputWithPast(
                loss, logits, run.past_key_values, run.hidden_states, run.attentions
            )

        return self._run_head(
            answer,
            return_dict,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )


class GPTNeoXForTokenClassification(GPTNeoXWithHead):
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

    @staticmethod
    def count_targets(batch: Mapping[str, Tensor]) -> int:
        """Over how many tokens the loss of a batch is a mean."""
        return int((batch["labels"] != IGNORED).sum())

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

        def answer(logits: Tensor, run: BaseModelOutputWithPast) -> TokenClassifierOutput:
            loss = None if labels is None else token_loss(logits, labels)
            return TokenClassifierOutput(loss, logits, run.hidden_states, run.attentions)

        return self._run_head(
            answer,
            return_dict,
            self.dropout,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )


class GPTNeoXForQuestionAnswering(GPTNeoXWithHead):
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

        def answer(logits: Tensor, run: BaseModelOutputWithPast) -> QuestionAnsweringModelOutput:
            start, end = (side.contiguous() for side in logits.unbind(dim=-1))
            loss = None
            if start_positions is not None and end_positions is not None:
                loss = span_loss(start, end, start_positions, end_positions)
            return QuestionAnsweringModelOutput(loss, start, end, run.hidden_states, run.attentions)

        return self._run_head(
            answer,
            return_dict,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            **options,
        )


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


CLASSES: dict[str, type[GPTNeoXPreTrainedModel]] = {
    model_class.head: model_class
    for model_class in (
        GPTNeoXModel,
        GPTNeoXForCausalLM,
        GPTNeoXForQuestionAnswering,
        GPTNeoXForSequenceClassification,
        GPTNeoXForTokenClassification,
    )
}
"""From the name of a head to its class; ``base`` is the network alone."""

if TYPE_CHECKING:  # the five classes keep the contract
    from neox_lab.family.contract import HookedModel, LanguageModel

    _language_model: type[LanguageModel] = GPTNeoXForCausalLM
    _models: tuple[type[HookedModel], ...] = (
        GPTNeoXModel,
        GPTNeoXForCausalLM,
        GPTNeoXForQuestionAnswering,
        GPTNeoXForSequenceClassification,
        GPTNeoXForTokenClassification,
    )
