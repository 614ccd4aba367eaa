"""Train a language model further: predict each next token of texts.

    language.train(model, ["One text.", "Another one."])
    language.evaluate(model, held_out).metrics["perplexity"]

Texts are joined, ``<|endoftext|>`` after each, and cut into contexts of equal length, so that no
position is wasted on padding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from neox_lab.data.batches import Example, padded
from neox_lab.data.encoding import pad_token, token_ids, tokenizer_of
from neox_lab.data.tables import read_table, texts_of
from neox_lab.errors import DataError, InputError
from neox_lab.tasks.likelihood import perplexity
from neox_lab.tasks.report import Report
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import TrainingResult, fit


def train(
    model: Any,
    data: Any,
    validation: Any = None,
    settings: TrainingSettings | None = None,
    *,
    text: str = "text",
    context: int = 256,
    directory: str | os.PathLike[str] | None = None,
) -> TrainingResult:
    """Train a language model in place.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        data: a list of texts, or a table; see ``tables.read_table``.
        validation: likewise, to be measured during training; or None.
        settings: see ``TrainingSettings``.
        text: name of the column with texts.
        context: tokens in one example.
        directory: keep the run here and go on with it if it was stopped.

    Raises:
        DataError: rows without text, or too little text for one example.
        InputError: the model has another head, or settings do not fit.
        TrainingError: the loss is not a number.
    """
    if model.head != "causal-lm":
        raise InputError(f"this model's head is {model.head!r}; expected 'causal-lm'")
    examples = prepare(model, data, text=text, context=context)
    held = None if validation is None else _texts(validation, text)
    pad = pad_token(model)
    return fit(
        model,
        examples,
        lambda rows: padded(rows, pad),
        settings,
        evaluate=None if held is None else lambda: measure(model, held, context),
        directory=directory,
    )


def evaluate(model: Any, data: Any, *, text: str = "text", context: int | None = None) -> Report:
    """Perplexity of texts; see ``likelihood.perplexity``."""
    return perplexity(model, _texts(data, text), context=context)


def measure(model: Any, texts: Sequence[str], context: int) -> dict[str, float]:
    """``loss`` and ``perplexity`` of held-out texts, during training."""
    found = perplexity(model, texts, context=context, stride=context).metrics
    return {name: found[name] for name in ("loss", "perplexity")}


def prepare(model: Any, data: Any, *, text: str = "text", context: int = 256) -> list[Example]:
    """Examples of ``context`` tokens; what is left at the end is an example if it has two."""
    tokenizer = tokenizer_of(model)
    longest = model.config.max_position_embeddings
    if not 2 <= context <= longest:
        raise InputError(f"context={context}; expected 2 to {longest} tokens.")
    joined: list[int] = []
    for row in token_ids(model, _texts(data, text)):
        joined += [*row, tokenizer.eos_token_id]
    cuts = [joined[start : start + context] for start in range(0, len(joined), context)]
    examples: list[Example] = [{"input_ids": cut, "labels": cut} for cut in cuts if len(cut) > 1]
    if not examples:
        raise DataError("there is too little text: less than two tokens")
    return examples


def _texts(data: Any, column: str) -> list[str]:
    if isinstance(data, str) and not data.endswith((".csv", ".tsv", ".json", ".jsonl")):
        return [data]
    if isinstance(data, list | tuple) and data and all(isinstance(t, str) for t in data):
        return list(data)
    return texts_of(read_table(data, (column,)), column)
