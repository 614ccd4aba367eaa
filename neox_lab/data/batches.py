"""From single examples to batches of similar length, and a model's outputs for each example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from neox_lab.checks import check, name_not_finite, whole
from neox_lab.data.encoding import pad_rows, pad_token
from neox_lab.errors import InputError
from neox_lab.family.contract import HookedModel
from neox_lab.family.losses import IGNORED
from neox_lab.family.structure import evaluating
from neox_lab.model.output_heads import answers_per_text

EncodedExample = Mapping[str, Any]
"""One example as a model reads it: ``input_ids`` and what else ``forward`` takes, as lists and
numbers. Names that begin with an underscore are notes and are not sent to the model."""

Collate = Callable[[Sequence[EncodedExample]], dict[str, Tensor]]
"""From some examples to one batch, as keyword arguments of ``forward``."""


def padded(examples: Sequence[EncodedExample], pad_token_id: int) -> dict[str, Tensor]:
    """One batch: lists are filled up on the right, numbers stacked.

    Args:
        examples: at least one, all with the same names.
        pad_token_id: fills up ``input_ids``.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[batch, pos]``; lists that differ in length from
        example to example (a label for each token) filled with -100; others (a number for each
        label) and numbers as they are.
    """
    ids, mask = pad_rows([example["input_ids"] for example in examples], pad_token_id)
    batch = {"input_ids": ids}
    for name in examples[0]:
        if name == "input_ids" or name.startswith("_"):
            continue
        rows = [example[name] for example in examples]
        differ = isinstance(rows[0], list) and len({len(row) for row in rows}) > 1
        batch[name] = pad_rows(rows, IGNORED)[0] if differ else torch.tensor(rows)
    return batch | {"attention_mask": mask}


def collate_for(model: HookedModel) -> Collate:
    """``padded`` with the model's own padding token, for ``tasks.training.fit``.

    Raises:
        InputError: there is none.
        TokenizerError: the model has no tokenizer to ask.
    """
    return partial(padded, pad_token_id=pad_token(model))


def by_length(model: HookedModel, lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of the rows, the longest first, in batches: neighbours need little padding.

    Rows that the model would read otherwise beside longer ones, because the rotary embedding
    looks at the longest of a batch, are no neighbours.

    Args:
        model: what reads them.
        lengths: how long each row is.
        batch_size: rows in one batch.

    Yields:
        The numbers of the rows of one batch.

    Raises:
        InputError: ``batch_size`` is no number of rows.
    """
    batch_size = check("batch_size", batch_size, whole(above=0), InputError)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for _, alike in groupby(order, lambda row: model.backbone.rotary.regime(lengths[row])):
        together = list(alike)
        for start in range(0, len(together), batch_size):
            yield together[start : start + batch_size]


@torch.inference_mode()
def outputs(
    model: HookedModel, examples: Sequence[EncodedExample], batch_size: int, names: Sequence[str]
) -> list[dict[str, Tensor]]:
    """The model's outputs ``names`` for each example, in evaluation mode.

    Args:
        model: any of the classes with a head.
        examples: of which ``input_ids`` are read.
        batch_size: examples in one forward pass.
        names: attributes of what ``forward`` returns, such as ``logits``.

    Returns:
        For each example, in the given order, its outputs by name, float32 on the CPU. Those with a
        position axis are cut to the example's own length. Texts whose outputs are NaN or infinite
        are named in a warning (by ``_row`` of the example, if it has one).
    """
    pad = pad_token(model)
    rows = [example["input_ids"] for example in examples]
    lengths = [len(row) for row in rows]
    found: list[dict[str, Tensor]] = [{} for _ in examples]
    per_text = answers_per_text(model.head)
    with evaluating(model):
        for chosen in by_length(model, lengths, batch_size):
            ids, mask = pad_rows([rows[row] for row in chosen], pad)
            output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
            for name in names:
                values = output[name].float().cpu()
                for value, row in zip(values, chosen, strict=True):
                    found[row][name] = value if per_text else value[: lengths[row]]
    bad = (not all(bool(v.isfinite().all()) for v in each.values()) for each in found)
    numbers = (example.get("_row", row) for row, example in enumerate(examples))
    wrong = dict.fromkeys(row for row, is_bad in zip(numbers, bad, strict=True) if is_bad)
    name_not_finite("What the model says", (f"text {row}" for row in wrong))
    return found
