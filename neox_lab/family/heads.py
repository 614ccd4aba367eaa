"""The four classes with a head on top of the network.

Each head is one linear map on the final residual stream, with its own pair of hook points. What
else is known of it stands in the registry, ``neox_lab.model.output_heads``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Unpack

import torch
from torch import Tensor, nn

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.family.backbone import GPTNeoXModel, RunArguments, RunOptions
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.kept_positions import kept_positions
from neox_lab.family.losses import IGNORED, LOSSES, Loss
from neox_lab.generation import GenerationMixin
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


class LossOptions(RunOptions, total=False):
    """Arguments of the language model's ``forward`` that its loss reads.

    They stand in no signature, as in transformers: its Trainer takes every argument with "label"
    in its name for a column of the data.

    Attributes:
        shift_labels: targets already moved by one, ``[batch, pos]``, instead of ``labels``.
        num_items_in_batch: divide the sum of losses by this, see ``next_token_loss``.
        ignore_index: the target that does not count, instead of -100.
    """

    shift_labels: Tensor | None
    num_items_in_batch: Tensor | int | None
    ignore_index: int


_OF_LOSS = ("shift_labels", "num_items_in_batch", "ignore_index")


def split_options(options: LossOptions) -> tuple[RunOptions, dict[str, Any]]:
    """What of ``options`` is the network's, and what is the loss's and given."""
    of_run: Any = dict(options)
    of_loss = {name: of_run.pop(name) for name in _OF_LOSS if name in of_run}
    return of_run, {name: value for name, value in of_loss.items() if value is not None}


class GPTNeoXWithHead(GPTNeoXPreTrainedModel):
    """A network below and one linear map above it.

    A subclass names its entry in the registry of output heads as ``head``, builds that entry's
    module and calls ``_set_up``. Its ``forward`` says what is done with the logits and leaves the
    rest to ``_run_head``.

    Args:
        config: shape of the model.
    """

    loss_type: ClassVar[str]
    _loss_function: Loss | None = None

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.gpt_neox = GPTNeoXModel(config)

    @property
    def loss_function(self) -> Loss:
        """What ``forward`` makes of logits and labels; assign another to train on that.

        It is called with transformers' arguments: see the functions of ``neox_lab.family.losses``.
        """
        return self._loss_function or LOSSES[self.loss_type]

    @loss_function.setter
    def loss_function(self, function: Loss) -> None:
        self.__dict__["_loss_function"] = function  # a module would become a part of the model

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
        run = self.gpt_neox(**arguments, return_dict=True, taps=taps)
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


class GPTNeoXForCausalLM(GenerationMixin, GPTNeoXWithHead):
    """GPT-NeoX with an unembedding: predicts each next token.

    Args:
        config: shape of the model.
    """

    head = "causal-lm"
    loss_type = "ForCausalLM"
    _tied_weights_keys = {"embed_out.weight": "gpt_neox.embed_in.weight"}  # noqa: RUF012

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        bias = bool(getattr(config, "embed_out_bias", False))  # of folded models, see ``folded``
        self.embed_out: nn.Linear = Linear(config.hidden_size, config.vocab_size, bias=bias)
        self._set_up(config)

    @property
    def lm_head(self) -> nn.Linear:
        """The unembedding, by the name transformers 5 gives it."""
        return self.embed_out

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; ``lm_head`` is ``embed_out``."""
        super().__setattr__("embed_out" if name == "lm_head" else name, value)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **more: Any
    ) -> None:
        """Called by ``load_state_dict``: the unembedding may have either name there too."""
        for name in [name for name in state_dict if name.startswith(f"{prefix}lm_head.")]:
            here = f"{prefix}embed_out.{name.removeprefix(f'{prefix}lm_head.')}"
            state_dict.setdefault(here, state_dict.pop(name))
        super()._load_from_state_dict(state_dict, prefix, *rest, **more)

    def get_output_embeddings(self) -> nn.Linear:
        """The unembedding, weight ``[vocab, d_model]``."""
        return self.embed_out

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the unembedding, weight ``[vocab, d_model]``."""
        self.embed_out = new_embeddings

    def tie_weights(self) -> None:
        """Share input and output embeddings if the configuration asks for it.

        What an adapter was put around stays tied as it was.
        """
        output, embedding = self.embed_out, self.gpt_neox.embed_in
        plain = isinstance(output, nn.Linear) and isinstance(embedding, nn.Embedding)
        if self.config.tie_word_embeddings and plain:
            output.weight = embedding.weight

    @classmethod
    def can_generate(cls) -> bool:
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
        past_key_values: KeyValueCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        return_dict: bool | None = None,
        **options: Unpack[LossOptions],
    ) -> CausalLMOutputWithPast | BaseModelOutputWithPast | tuple[Any, ...]:
        """Predict next tokens; arguments not named here are ``GPTNeoXModel.forward``'s.

        Args:
            input_ids: token ids ``[batch, pos]``.
            attention_mask: 1 for text and 0 for padding, ``[batch, past + pos]``.
            position_ids: absolute positions ``[batch or 1, pos]``.
            inputs_embeds: vectors ``[batch, pos, d_model]`` instead of token ids.
            past_key_values: cache of earlier positions.
            labels: the input tokens again ``[batch, pos]``, with -100 where no loss is wanted.
            use_cache: return a cache.
            logits_to_keep: 0 for logits at every position, n for the last n; a tensor selects
                positions ``[kept]``, positions for each row ``[batch, kept]``, or, boolean
                ``[batch, pos]``, a flat set of them (logits ``[kept, vocab]``).
            return_dict: False returns a plain tuple.
            options: see ``LossOptions`` and ``RunOptions``.

        Returns:
            ``logits`` ``[batch, kept, vocab]`` and, with labels, ``loss`` in nats per token.
        """
        run_options, of_loss = split_options(options)

        def select(hidden: Tensor) -> Tensor:
            return kept_positions(hidden, logits_to_keep)

        def answer(logits: Tensor, run: BaseModelOutputWithPast) -> CausalLMOutputWithPast:
            loss = None
            if labels is not None or "shift_labels" in of_loss:
                _require_tensor("labels", labels)
                _require_tensor("shift_labels", of_loss.get("shift_labels"))
                loss = self.loss_function(
                    logits=logits, labels=labels, vocab_size=self.config.vocab_size, **of_loss
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
            **run_options,
        )


class GPTNeoXForSequenceClassification(GPTNeoXWithHead):
    """GPT-NeoX with one answer per text, read at its last token.

    Args:
        config: shape of the model; ``config.num_labels`` outputs.
    """

    head = "sequence-classification"
    loss_type = "ForSequenceClassification"

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
        past_key_values: KeyValueCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        return_dict: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> SequenceClassifierOutputWithPast | BaseModelOutputWithPast | tuple[Any, ...]:
        """Classify texts; arguments not named here are ``GPTNeoXModel.forward``'s.

        Args:
            input_ids: token ids ``[batch, pos]``; the answer is read at the rightmost one that
                is not ``config.pad_token_id``.
            attention_mask: 1 for text and 0 for padding, ``[batch, past + pos]``.
            position_ids: absolute positions ``[batch or 1, pos]``.
            inputs_embeds: vectors ``[batch, pos, d_model]`` instead of token ids; the answer is
                read at the last position.
            past_key_values: cache of earlier positions.
            labels: classes ``[batch]``, numbers ``[batch]`` or ``[batch, label]`` for regression,
                or 0/1 ``[batch, label]`` for several labels; see ``sequence_loss``.
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
            loss = None
            if labels is not None:
                _require_tensor("labels", labels)
                loss = self.loss_function(
                    logits=everywhere, labels=labels, pooled_logits=logits, config=self.config
                )
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
    loss_type = "ForTokenClassification"

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
        past_key_values: KeyValueCache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        return_dict: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> TokenClassifierOutput | BaseModelOutputWithPast | tuple[Any, ...]:
        """Tag tokens; arguments not named here are ``GPTNeoXModel.forward``'s.

        Args:
            input_ids: token ids ``[batch, pos]``.
            past_key_values: cache of earlier positions; second in order, as in transformers.
            attention_mask: 1 for text and 0 for padding, ``[batch, past + pos]``.
            token_type_ids: of any shape; not used, GPT-NeoX has no token types.
            position_ids: absolute positions ``[batch or 1, pos]``.
            inputs_embeds: vectors ``[batch, pos, d_model]`` instead of token ids.
            labels: tags ``[batch, pos]``, with -100 where no loss is wanted.
            use_cache: extend the given cache.
            return_dict: False returns a plain tuple.
            options: see ``RunOptions``.

        Returns:
            ``logits`` ``[batch, pos, label]`` and, with labels, a scalar ``loss``.
        """

        def answer(logits: Tensor, run: BaseModelOutputWithPast) -> TokenClassifierOutput:
            loss = None
            if labels is not None:
                _require_tensor("labels", labels)
                loss = self.loss_function(logits, labels, self.config)
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
            use_cache=False,  # no output holds it; a given one is extended all the same
            **options,
        )


class GPTNeoXForQuestionAnswering(GPTNeoXWithHead):
    """GPT-NeoX with two scores per token: the answer starts here, the answer ends here.

    Args:
        config: shape of the model.
    """

    head = "question-answering"
    loss_type = "ForQuestionAnswering"

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self._set_up(config)

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch in which no answer begins or ends at padding.

        ``forward`` gives padding a share of the probability, as in transformers: the loss of a
        text then depends on what it is padded to. Here it is the loss of the text by itself.

        Args:
            batch: arguments of ``forward``, with both positions.

        Returns:
            A scalar, in nats.
        """
        positions = ("start_positions", "end_positions")
        output = self(**{name: given for name, given in batch.items() if name not in positions})
        padding = batch["attention_mask"] == 0
        sides, targets = [], []
        for logits, name in zip((output.start_logits, output.end_logits), positions, strict=True):
            sides.append(logits.masked_fill(padding, torch.finfo(logits.dtype).min))
            length = padding.shape[1]
            at = batch[name].view(-1, 1).clamp(0, length)
            in_padding = torch.nn.functional.pad(padding, (0, 1)).gather(1, at)
            targets.append(at.masked_fill(in_padding, length)[:, 0])  # which does not count
        return self.loss_function(*sides, *targets)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        *,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> QuestionAnsweringModelOutput | BaseModelOutputWithPast | tuple[Any, ...]:
        """Find an answer span; arguments not named here are ``GPTNeoXModel.forward``'s.

        Args:
            input_ids: token ids ``[batch, pos]``.
            attention_mask: 1 for text and 0 for padding, ``[batch, past + pos]``.
            token_type_ids: of any shape; not used, GPT-NeoX has no token types.
            position_ids: absolute positions ``[batch or 1, pos]``.
            inputs_embeds: vectors ``[batch, pos, d_model]`` instead of token ids.
            start_positions: first token of each answer ``[batch]``.
            end_positions: last token of each answer ``[batch]``.
            past_key_values: cache of earlier positions, extended in place.
            use_cache: extend the given cache; the output holds none.
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
                _require_tensor("start_positions", start_positions)
                _require_tensor("end_positions", end_positions)
                loss = self.loss_function(start, end, start_positions, end_positions)
            return QuestionAnsweringModelOutput(loss, start, end, run.hidden_states, run.attentions)

        return self._run_head(
            answer,
            return_dict,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=False,  # no output holds it; a given one is extended all the same
            **options,
        )


def _require_tensor(name: str, value: object) -> None:
    if not (value is None or isinstance(value, Tensor)):
        raise InputError(f"{name} is a {type(value).__name__}; expected a tensor: torch.tensor(..)")


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
