"""One pass over texts: where every feature is highest, how often it is active and how much."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from neox_lab.activations.documents import Chunk, Documents, chunks, documents, mixed, windows
from neox_lab.built_in import is_inside
from neox_lab.checks import (
    COUNT,
    SEED,
    SWITCH,
    check,
    number,
    or_none,
    require_model,
    several,
    whole,
)
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.executors import EXECUTOR, AnyExecutor
from neox_lab.family.contract import HookedModel
from neox_lab.features.corpus import Corpus
from neox_lab.features.sources import OfDictionary, What, source_of
from neox_lab.features.top_reading import Choices, Group, Reading, given, read_elsewhere
from neox_lab.features.top_result import Split, TopExamples
from neox_lab.progress import Progress
from neox_lab.selections import entry

TOGETHER = 2**15
"""Tokens among which chunks of similar length are sought."""
PER_QUANTILE = 5
"""Windows drawn of each latent for each quantile."""


def top_examples(
    model: HookedModel,
    what: What | functools.partial[OfDictionary],
    texts: Documents,
    *,
    top: int = 20,
    window: int = 32,
    quantiles: int = 10,
    held_out: float = 0.0,
    context: int = 256,
    skip_first: int = 1,
    max_tokens: int | None = None,
    batch_size: int = 16,
    together: Sequence[int] | None = None,
    seed: int = 0,
    executor: AnyExecutor | None = None,
    progress: bool = True,
) -> TopExamples:
    """Where features are highest in texts, from one pass over them.

    Each document is read by itself, in chunks of ``context`` tokens; a chunk is divided into
    windows. Of each window and feature the highest activation counts (the earliest of equal ones),
    so that a stretch of text is one example however often the feature is active in it. Examples of
    equal activation stand in the order of the texts.

    What is kept does not grow with the texts, but for the texts themselves: two bytes a token (four
    with more than 65,536 different tokens). The activations around an example are computed again
    when they are looked at.

    Args:
        model: any of the classes, with a tokenizer if there are texts.
        what: a dictionary, a cross-layer transcoder or a ``.layer(2)`` of it, a hook name such as
            ``"blocks.3.mlp.hook_post"``, or a ``Head``, ``Direction`` or ``Source`` of this room;
            or a ``functools.partial`` that loads a dictionary.
        texts: as for ``nl.activations.collect``: a list or an iterator of strings, of token ids, or
            of rows of a data set.
        top: how many highest examples of each feature.
        window: tokens of a window, and of the text shown around an example.
        quantiles: how many further examples, spread over the activations of all windows in which
            the feature is active: of a random sample of five for each quantile.
        held_out: share of the documents, drawn at random, whose examples are kept apart, to test on
            them what was concluded from the others.
        context: tokens the model reads together; no more than it can read.
        skip_first: so many positions at the start of every chunk do not count: neither as examples
            nor in densities and means. Activations at position 0 are unlike all others.
        max_tokens: stop after so many tokens; None for all.
        batch_size: chunks in one forward pass.
        together: features of which it is counted with which others they are active, at every token
            that counts, in four bytes for each pair; None for all features of up to 4,096, and none
            of more. Of the rest ``TopExamples.together`` estimates it.
        seed: which documents and windows are drawn.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers read 32,768
            tokens at a time; they load the model for themselves (``docs/many-machines.md``). A
            dictionary is too large to be sent: give ``functools.partial(nl.sae.load, ...)``.
        progress: show how far it is.

    Returns:
        The examples; ``.frame`` has a row for each feature.

    Raises:
        InputError: ``what`` has no features or does not fit the model, there is no token that
            counts, activations are not finite, an argument is not what it can be, dropout is on, or
            workers could not load the model or what has features.
        HookNameError: the model has no such site.
        LostWorkerError: the worker of some texts was lost again and again.
    """
    check("executor", executor, EXECUTOR, InputError)
    require_model(model)
    refuse_dropout(model)
    source = source_of(model, given(what))
    top, window = check("top", top, COUNT, InputError), check("window", window, COUNT, InputError)
    quantiles = check("quantiles", quantiles, COUNT, InputError)
    held_out = check("held_out", held_out, number(least=0, below=1), InputError)
    longest = model.config.max_position_embeddings
    context = min(check("context", context, COUNT, InputError), longest)
    skip_first = check("skip_first", skip_first, whole(least=0, most=context - 1), InputError)
    max_tokens = check("max_tokens", max_tokens, or_none(COUNT), InputError)
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    progress = check("progress", progress, SWITCH, InputError)
    choices = Choices(
        top,
        PER_QUANTILE * quantiles,
        window,
        skip_first,
        batch_size,
        _of(source.latents, together),
        seed,
    )
    reading = Reading(model, source, choices)
    corpus, held = Corpus(model.config.vocab_size), 0
    read = chunks(documents(model, texts), context, max_tokens)

    def groups() -> Iterator[Group]:
        nonlocal held
        for group in windows((chunk for chunk in read if chunk.ids), TOGETHER):
            drawn = _held_out(group, held_out, seed)
            begins = [chunk.start == 0 for chunk in group]  # a document may be cut off at its end
            held += sum(out and begin for out, begin in zip(drawn, begins, strict=True))
            ids, numbers = [each.ids for each in group], [each.document for each in group]
            yield Group(ids, corpus.add(group), drawn, numbers)

    with Progress(max_tokens, "token", silent=not progress) as bar:
        if executor is None:
            for each in groups():
                reading.read(each, bar.update)
        else:
            for found in read_elsewhere(executor, model, what, choices, groups()):
                reading.add(found)
                bar.update(found["counted"])
    tables, pairs, counted = reading.tables, reading.pairs, reading.counted
    if not counted:
        raise InputError(
            f"there is no token in the texts that counts; skip_first={skip_first} leaves out as "
            "many at the start of every chunk"
        )
    corpus.close()
    tables.close()
    return TopExamples(
        model_name=_name(model),
        source=source,
        splits={
            split: Split.of(tables.top[split], tables.sample[split])
            for split in (("train", "held-out") if held_out else ("train",))
        },
        active=tables.active.cpu(),
        mean=(tables.total / tables.active.clamp(min=1)).cpu(),
        highest=tables.highest.where(tables.active > 0, 0).cpu(),
        histogram=tables.histogram.cpu(),
        counted=counted,
        pairs=pairs.pairs,
        corpus=corpus,
        held_out_documents=held,
        window=window,
        quantiles=quantiles,
        skip_first=skip_first,
        context=context,
        seed=seed,
        _model=model,
        _what=what,
    )


def _of(latents: int, together: Sequence[int] | None) -> tuple[int, ...] | None:
    """The features whose pairs are counted, each once."""
    if together is None:
        return None
    given = several("together", together, "numbers of features, or None", InputError)
    return tuple(dict.fromkeys(entry("together", at, latents, InputError) for at in given))


def _name(model: HookedModel) -> str:
    """What a model is called; of a path its last part, since pages are sent to others."""
    given = str(model.config.name_or_path or "")
    if given and is_inside(given):
        return "the built-in model"
    return Path(given).name if Path(given).is_absolute() else given or type(model).__name__


def _held_out(group: Sequence[Chunk], share: float, seed: int) -> list[bool]:
    """Whether the document of each chunk is held out: drawn by its number alone."""
    numbers = torch.tensor([chunk.document for chunk in group])
    drawn = mixed(mixed(mixed(torch.tensor(seed)) + 1) + numbers) >> 11 & 2**52 - 1
    return [bool(one) for one in drawn.double() / 2**52 < share]
