"""The losses of the five classes.

All of them ignore targets of -100. Formulas and edge cases are those of Hugging Face's classes,
so that a model trained with either library sees the same numbers.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError

IGNORED = -100
"""A target that does not count."""


class Loss(Protocol):
    """A loss as ``model.loss_function`` is: arguments by class, what it does not use is ignored."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, a scalar."""


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED,
    shift_labels: Tensor | None = None,
    **_: object,
) -> Tensor:
    """Cross entropy of each next token, in nats.

    Args:
        logits: ``[batch, pos, vocab]``.
        labels: the input tokens again, ``[batch, pos]``; position t is asked for token t + 1.
        vocab_size: not needed; transformers' functions are told.
        num_items_in_batch: divide the sum by this instead of by the number of targets (for
            batches split over several steps).
        ignore_index: a target that does not count.
        shift_labels: targets already moved by one, instead of ``labels``.

    Returns:
        A scalar, computed in float32.

    Raises:
        InputError: logits and labels cover different positions.
    """
    if shift_labels is None:
        assert labels is not None
        labels = _as_targets(labels, logits.dim() - 1)
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    if logits.shape[:-1] != shift_labels.shape:
        raise InputError(
            f"labels cover {list(shift_labels.shape)} positions, logits {list(logits.shape[:-1])}. "
            "With labels, leave logits_to_keep at 0."
        )
    targets = shift_labels.reshape(-1).to(logits.device)
    flat = logits.float().reshape(-1, logits.shape[-1])
    return _cross_entropy(flat, targets, num_items_in_batch, ignore_index)


def text_loss(
    logits: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    per_token: bool = False,
) -> Tensor:
    """How surprising the tokens of texts are to the model that read them, in nats.

    Args:
        logits: ``[batch, pos, vocab]``.
        input_ids: what was read, ``[batch, pos]``.
        attention_mask: 0 for padding ``[batch, pos]``; a token counts if it and the one before it
            are text.
        per_token: the loss of each token but the first, ``[batch, pos - 1]``, 0 where none counts.

    Returns:
        The mean over the tokens that count, a scalar, unless ``per_token``; in float32.

    Raises:
        InputError: logits and tokens cover different positions.
    """
    targets = _as_targets(input_ids, 2)
    if attention_mask is not None:
        text = attention_mask.bool()
        counts = F.pad(text[:, :-1] & text[:, 1:], (1, 0))
        targets = targets.masked_fill(~counts.to(targets.device), IGNORED)
    if not per_token:
        return next_token_loss(logits, targets)
    asked = logits[:, :-1].float().mT  # [batch, vocab, pos - 1]
    return F.cross_entropy(
        asked, targets[:, 1:].to(logits.device), ignore_index=IGNORED, reduction="none"
    )


def next_token_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the likeliest next token is the one that follows, ``[batch, pos - 1]``.

    Args:
        logits: ``[batch, pos, vocab]``, also with other leading axes.
        labels: the input tokens again, ``[batch, pos]``.

    Raises:
        InputError: logits and labels cover different positions.
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError(
            f"labels cover {list(labels.shape)} positions, logits {list(logits.shape[:-1])}."
        )
    return logits[..., :-1, :].argmax(dim=-1) == labels[..., 1:].to(logits.device)


def _as_targets(labels: Tensor, axes: int) -> Tensor:
    """Labels as whole numbers that a loss takes.

    Raises:
        InputError: they are none, or have another number of axes.
    """
    if labels.dtype is torch.int64 and labels.dim() == axes and labels.layout is torch.strided:
        return labels
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.dim() != axes or labels.layout is not torch.strided:
        raise InputError(
            f"labels is a {labels.dtype} tensor of shape {list(labels.shape)}; expected whole "
            "numbers, one for each position."
        )
    return labels.long()


def _cross_entropy(
    logits: Tensor,
    targets: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Mean over the targets that count, or the sum divided by ``num_items_in_batch``."""
    if num_items_in_batch is None:
        return F.cross_entropy(logits, targets, ignore_index=ignore_index)
    total = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def sequence_loss(
    labels: Tensor,
    pooled_logits: Tensor,
    config: GPTNeoXConfig,
    num_items_in_batch: Tensor | int | None = None,
    **_: object,
) -> Tensor:
    """Loss of ``pooled_logits`` ``[batch, label]``: regression, one of many, or several labels.

    ``config.problem_type`` decides; where it is None it is set from the labels: one output means
    regression, integer labels mean one of many, others several at once. ``num_items_in_batch``
    is for one of many, see ``next_token_loss``.
    """
    logits, labels = pooled_logits, labels.to(pooled_logits.device)
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.int64, torch.int32):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "regression":
        # One output or several: [batch, 1] and [batch] mean the same.
        if config.num_labels == 1:
            return F.mse_loss(logits.squeeze(), labels.squeeze())
        return F.mse_loss(logits, labels)
    if config.problem_type == "single_label_classification":
        flat, targets = logits.view(-1, config.num_labels), labels.view(-1).long()
        return _cross_entropy(flat, targets, num_items_in_batch)
    return F.binary_cross_entropy_with_logits(logits, labels)


def token_loss(
    logits: Tensor,
    labels: Tensor,
    config: GPTNeoXConfig | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **_: object,
) -> Tensor:
    """Cross entropy of ``logits`` ``[batch, pos, label]`` against ``labels [batch, pos]``.

    ``config`` is not needed; for ``num_items_in_batch`` see ``next_token_loss``.

    Returns:
        The mean over all targets but those of -100, computed in float32.
    """
    flat = logits.float().reshape(-1, logits.shape[-1])
    return _cross_entropy(flat, labels.reshape(-1).to(logits.device), num_items_in_batch)


def span_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    **_: object,
) -> Tensor:
    """Mean of the cross entropies of where the answer starts and where it ends.

    Args:
        start_logits: ``[batch, pos]``.
        end_logits: ``[batch, pos]``.
        start_positions: first token of the answer ``[batch]`` or ``[batch, 1]``; a position
            outside the text is ignored.
        end_positions: last token of the answer, likewise.
        num_items_in_batch: see ``next_token_loss``.
    """
    outside = start_logits.shape[1]

    def one_side(logits: Tensor, positions: Tensor) -> Tensor:
        positions = positions.squeeze(-1) if positions.dim() > 1 else positions
        positions = positions.to(logits.device).clamp(0, outside)
        return _cross_entropy(logits, positions, num_items_in_batch, outside)

    return (one_side(start_logits, start_positions) + one_side(end_logits, end_positions)) / 2


LOSSES: dict[str, Loss] = {
    "ForCausalLM": next_token_loss,
    "ForSequenceClassification": sequence_loss,
    "ForTokenClassification": token_loss,
    "ForQuestionAnswering": span_loss,
}
"""The losses by transformers' names of them, which its Trainer asks models for."""
