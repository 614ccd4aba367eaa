"""From single examples to tensors: padding, and batches of texts of similar length."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neox_lab.errors import InputError, TokenizerError
from neox_lab.family.losses import IGNORED

Example = Mapping[str, Any]
"""One example: ``input_ids`` and what else ``forward`` takes, as lists and numbers. Names that
begin with an underscore are notes and are not sent to the model."""

Collate = Callable[[Sequence[Example]], dict[str, Tensor]]
"""From some examples to one batch, as keyword arguments of ``forward``."""


def padded(examples: Sequence[Example], pad_token_id: int) -> dict[str, Tensor]:
    """One batch: lists are filled up on the right, numbers stacked.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[batch, pos]``; other lists as long as the ids (such
        as ``labels``) filled with -100, other lists and numbers as they are.
    """
    longest = max(len(example["input_ids"]) for example in examples)
    batch: dict[str, Tensor] = {}
    for name in examples[0]:
        if name.startswith("_"):
            continue
        rows = [example[name] for example in examples]
        if isinstance(rows[0], list) and len(rows[0]) == len(examples[0]["input_ids"]):
            fill = pad_token_id if name == "input_ids" else IGNORED
            rows = [row + [fill] * (longest - len(row)) for row in rows]
        batch[name] = torch.tensor(rows)
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch


def by_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Numbers of the examples, the longest first, in batches: neighbours need little padding."""
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row]["input_ids"]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad_token(model: Any) -> int:
    """The token that fills up short texts; the configuration gets the tokenizer's if it has none.

    Heads that read the last token of a text find it by ``config.pad_token_id``.
    """
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer_of(model).pad_token_id
    if model.config.pad_token_id is None:
        raise InputError("Neither the model nor its tokenizer has a padding token.")
    return int(model.config.pad_token_id)


def tokenizer_of(model: Any) -> Any:
    """The model's tokenizer.

    Raises:
        TokenizerError: it has none.
    """
    if getattr(model, "tokenizer", None) is None:
        raise TokenizerError(
            "This model has no tokenizer. Load both with nl.load(...), or set model.tokenizer = "
            "nl.GPTNeoXTokenizerFast.from_pretrained(...)."
        )
    return model.tokenizer


def encoded(model: Any, texts: str | list[str], **arguments: Any) -> Any:
    """What the model's tokenizer makes of texts, whose length the caller looks after."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A text has .* tokens")
        return tokenizer_of(model)(texts, **arguments)


@torch.inference_mode()
def outputs(
    model: Any, examples: Sequence[Example], batch_size: int, names: Sequence[str]
) -> list[dict[str, Tensor]]:
    """The model's outputs ``names`` for each example, float32 on the CPU, in the given order.

    Outputs with a position axis are cut to the example's own length. The model is in evaluation
    mode meanwhile.
    """
    pad = pad_token(model)
    found: list[dict[str, Tensor]] = [{} for _ in examples]
    per_position = model.head != "sequence-classification"
    training = model.training
    model.eval()
    try:
        for rows in by_length(examples, batch_size):
            bare = [{"input_ids": examples[row]["input_ids"]} for row in rows]
            batch = {name: t.to(model.device) for name, t in padded(bare, pad).items()}
            output = model(**batch)
            for name in names:
                values = output[name].float().cpu()
                for value, row in zip(values, rows, strict=True):
                    length = len(examples[row]["input_ids"])
                    found[row][name] = value[:length] if per_position else value
    finally:
        model.train(training)
    return found
