"""Train a language model further: predict each next token of texts.

    language.train(model, ["One text.", "Another one."])
    language.evaluate(model, held_out).metrics["perplexity"]

Texts are joined, ``<|endoftext|>`` after each, and cut into contexts of equal length, so that no
position is wasted on padding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from neox_lab.data.batches import EncodedExample, collate_for
from neox_lab.data.encoding import end_of_text, token_ids
from neox_lab.data.tables import Table, read_table, texts_of
from neox_lab.errors import DataError, InputError
from neox_lab.model.output_heads import require_head
from neox_lab.tasks.likelihood import perplexity
from neox_lab.tasks.result import TaskResult
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import TrainingResult, fit

if TYPE_CHECKING:
    from neox_lab.family import GPTNeoXForCausalLM

Texts: TypeAlias = "Table | Sequence[str]"
"""A text, a list of texts, or a table of them."""


def train(
    model: GPTNeoXForCausalLM,
    data: Texts,
    validation: Texts | None = None,
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
    require_head(model.head, "causal-lm")
    examples = prepare(model, data, text=text, context=context)
    held = None if validation is None else _texts(validation, text)
    return fit(
        model,
        examples,
        collate_for(model),
        settings,
        evaluate=None if held is None else lambda: measure(model, held, context),
        directory=directory,
    )


def evaluate(
    model: GPTNeoXForCausalLM, data: Texts, *, text: str = "text", context: int | None = None
) -> TaskResult:
    """Perplexity of texts; see ``likelihood.perplexity``.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        data: a text, a list of texts, or a table; see ``tables.read_table``.
        text: name of the column with texts.
        context: the most tokens read at once; None for all positions of the model.

    Raises:
        DataError: rows without text, or a text has fewer than two tokens.
        InputError: ``context`` is more than the model can read.
    """
    return perplexity(model, _texts(data, text), context=context)


def measure(model: GPTNeoXForCausalLM, texts: Sequence[str], context: int) -> dict[str, float]:
    """``loss`` and ``perplexity`` of held-out texts, during training."""
    found = perplexity(model, texts, context=context, stride=context).metrics
    return {name: found[name] for name in ("loss", "perplexity")}


def prepare(
    model: GPTNeoXForCausalLM, data: Texts, *, text: str = "text", context: int = 256
) -> list[EncodedExample]:
    """Examples of ``context`` tokens; what is left at the end is an example if it has two.

    Raises:
        DataError: rows without text, or less than two tokens in all.
        InputError: ``context`` is more than the model can read, or there is no end-of-text token.
    """
    end = end_of_text(model)
    longest = model.config.max_position_embeddings
    if not 2 <= context <= longest:
        raise InputError(f"context={context}; expected 2 to {longest} tokens.")
    joined: list[int] = []
    for row in token_ids(model, _texts(data, text)):
        joined += [*row, end]
    cuts = [joined[start : start + context] for start in range(0, len(joined), context)]
    examples: list[EncodedExample] = [
        {"input_ids": cut, "labels": cut} for cut in cuts if len(cut) > 1
    ]
    if not examples:
        raise DataError("there is too little text: less than two tokens")
    return examples


def _texts(data: Texts, column: str) -> list[str]:
    if isinstance(data, str) and not data.endswith((".csv", ".tsv", ".json", ".jsonl")):
        return [data]
    if isinstance(data, list | tuple) and data and all(isinstance(t, str) for t in data):
        return list(data)
    return texts_of(read_table(data, (column,)), column)
