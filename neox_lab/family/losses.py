"""The losses of the five classes.

All of them ignore targets of -100. Formulas and edge cases are those of Hugging Face's classes,
so that a model trained with either library sees the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError

IGNORED = -100
"""A target that does not count."""


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Cross entropy of each next token, in nats.

    Args:
        logits: ``[batch, pos, vocab]``.
        labels: the input tokens again, ``[batch, pos]``; position t is asked for token t + 1.
        shift_labels: targets already moved by one, instead of ``labels``.
        num_items_in_batch: divide the sum by this instead of by the number of targets (for
            batches split over several steps).

    Returns:
        A scalar, computed in float32.

    Raises:
        InputError: logits and labels cover different positions.
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    if logits.shape[:-1] != shift_labels.shape:
        raise InputError(
            f"labels cover {list(shift_labels.shape)} positions, logits {list(logits.shape[:-1])}. "
            "With labels, leave logits_to_keep at 0."
        )
    targets = shift_labels.reshape(-1).to(logits.device)
    flat = logits.float().reshape(-1, logits.shape[-1])
    if num_items_in_batch is None:
        return F.cross_entropy(flat, targets, ignore_index=IGNORED)
    total = F.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def sequence_loss(logits: Tensor, labels: Tensor, config: GPTNeoXConfig) -> Tensor:
    """Loss of ``logits`` ``[batch, label]``: regression, one label of many, or several labels.

    ``config.problem_type`` decides; where it is None it is set from the labels: one output means
    regression, integer labels mean one of many, others several at once.
    """
    labels = labels.to(logits.device)
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
        return F.cross_entropy(logits.view(-1, config.num_labels), labels.view(-1).long())
    return F.binary_cross_entropy_with_logits(logits, labels)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of ``logits`` ``[batch, pos, label]`` against ``labels [batch, pos]``."""
    flat = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, labels.reshape(-1).to(logits.device), ignore_index=IGNORED)


def span_loss(
    start_logits: Tensor, end_logits: Tensor, start_positions: Tensor, end_positions: Tensor
) -> Tensor:
    """Mean of the cross entropies of where the answer starts and where it ends.

    Args:
        start_logits: ``[batch, pos]``.
        end_logits: ``[batch, pos]``.
        start_positions: first token of the answer ``[batch]`` or ``[batch, 1]``; a position
            outside the text is ignored.
        end_positions: last token of the answer, likewise.
    """
    outside = start_logits.shape[1]

    def one_side(logits: Tensor, positions: Tensor) -> Tensor:
        positions = positions.squeeze(-1) if positions.dim() > 1 else positions
        positions = positions.to(logits.device).clamp(0, outside)
        return F.cross_entropy(logits, positions, ignore_index=outside)

    return (one_side(start_logits, start_positions) + one_side(end_logits, end_positions)) / 2
