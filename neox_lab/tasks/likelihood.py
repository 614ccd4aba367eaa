"""How likely a model finds texts: perplexity, continuations, multiple choice.

All of it is sums of log p(token | tokens before it), in nats. Where a text is cut into context and
continuation, tokens follow the rule of the usual evaluation harness (Gao et al., the Language Model
Evaluation Harness): spaces at the end of the context belong to the continuation, both are encoded
together, and the continuation is what is left after the context's own tokens. Where nothing is left
because the last token reaches across the boundary, which stops the harness, the continuation is
encoded by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from neox_lab.checks import check, name_not_finite, one_of, one_or_several_texts, whole
from neox_lab.data.encoding import start_of_text, token_ids, tokenizer_of
from neox_lab.data.tables import refuse
from neox_lab.errors import DataError, InputError
from neox_lab.executors import AnyExecutor
from neox_lab.frames import make_frame
from neox_lab.tasks.result import TaskResult, metrics_view
from neox_lab.tasks.scoring import Scored, log_probabilities

__all__ = [
    "Scored",
    "choose",
    "continuations",
    "encoded_pair",
    "last_word",
    "log_probabilities",
    "perplexity",
    "windows",
]

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import LanguageModel
    from neox_lab.views import StripView


def windows(ids: Sequence[int], context: int, stride: int, first: int | None) -> Iterator[Scored]:
    """Cut a text so that each token is scored once, after as much context as fits.

    Args:
        ids: the text's tokens.
        context: the most tokens read at once.
        stride: how many new tokens each window scores.
        first: a token to put in front, so that the first one is scored as well; None to skip it.
    """
    whole = list(ids) if first is None else [first, *ids]
    start = 1
    while start < len(whole):
        end = min(len(whole), start + (context if start == 1 else stride))
        begin = max(0, end - context - 1)
        yield Scored(whole[begin:start], whole[start:end])
        start = end


def perplexity(
    model: LanguageModel,
    texts: str | Sequence[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    executor: AnyExecutor | None = None,
) -> TaskResult:
    """How surprised the model is by texts.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        texts: one or several; each is scored by itself, its first token excepted.
        context: the most tokens read at once; None for all positions of the model.
        stride: new tokens scored by each window; None for half of ``context``. Smaller means more
            context for each token, and more work.
        batch_size: windows in one forward pass.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers score the
            batches (``docs/many-machines.md``); None scores here.

    Returns:
        ``metrics``: ``loss`` in nats per token, ``perplexity`` = exp(loss), ``bits_per_byte`` and
        ``tokens``. A frame with a row for each scored token (text, position, token, loss); the
        picture marks the first text's tokens by their loss.

    Raises:
        DataError: a text has fewer than two tokens, or no text is given.
        InputError: ``stride`` or ``context`` makes no sense, or workers could not load the model.
        LostWorkerError: a worker was lost again and again.
    """
    listed = one_or_several_texts("texts", texts)
    context, stride = _sizes(model, context, stride)
    rows = token_ids(model, listed)
    short = [(at, f"{len(row)} tokens") for at, row in enumerate(rows) if len(row) < 2]
    refuse("Too short to predict anything", short, "A text needs two tokens at least.")
    if not rows:
        raise DataError("there is no text to score")
    requests, owner = [], []
    for number, row in enumerate(rows):
        cut = list(windows(row, context, stride, None))
        requests += cut
        owner += [number] * len(cut)
    losses: list[list[float]] = [[] for _ in rows]
    scored = log_probabilities(model, requests, batch_size, executor)
    for number, (values, _) in zip(owner, scored, strict=True):
        losses[number] += (-values).tolist()
    pieces = [tokenizer_of(model).pieces(row) for row in rows]
    frame = make_frame(
        [
            {"text": number, "position": at, "token": pieces[number][at], "loss": loss}
            for number, line in enumerate(losses)
            for at, loss in enumerate(line, 1)
        ]
    )
    bad = [f"text {number}" for number, line in enumerate(losses) if not np.isfinite(line).all()]
    name_not_finite("The loss", bad)
    total = float(frame["loss"].to_numpy().sum())  # pandas would leave NaN out
    scored_bytes = sum(
        _bytes_behind(text, [*map(tokenizer_of(model).token_bytes, row)])
        for text, row in zip(listed, rows, strict=True)
    )
    mean = total / len(frame)
    metrics = {
        "loss": mean,
        "perplexity": _perplexity(mean),
        "bits_per_byte": total / math.log(2) / max(1, scored_bytes),
        "tokens": float(len(frame)),
    }
    return TaskResult(frame, metrics, lambda: _view(pieces[0], losses[0], metrics))


def continuations(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    batch_size: int = 16,
    executor: AnyExecutor | None = None,
) -> pd.DataFrame:
    """How likely each continuation is after its context.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        pairs: context and continuation; an empty context stands for the start of a text.
        batch_size: pairs in one forward pass.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers score the
            batches (``docs/many-machines.md``); None scores here.

    Returns:
        One row a pair: ``log_probability`` (sum over its tokens, nats), ``greedy`` (whether greedy
        decoding would write it), ``tokens``, ``characters``.

    Raises:
        DataError: a continuation has no token, or more than the model has positions; by number.
        InputError: dropout is on, or workers could not load the model.
        LostWorkerError: a worker was lost again and again.
    """
    requests = [encoded_pair(model, *pair) for pair in pairs]
    empty = [(row, repr(pairs[row])) for row, r in enumerate(requests) if not r.target]
    refuse("There is nothing to score", empty, "A continuation needs a token at least.")
    longest = model.config.max_position_embeddings
    counts = [len(request.target) for request in requests]
    long = [(row, f"{count} tokens") for row, count in enumerate(counts) if count > longest]
    refuse("Too long to be scored", long, f"The model has {longest} positions.")
    rows = [
        {
            "context": context,
            "continuation": continuation,
            "log_probability": float(values.sum()),
            "greedy": bool(greedy.all()),
            "tokens": len(values),
            "characters": len(continuation),
        }
        for (context, continuation), (values, greedy) in zip(
            pairs, log_probabilities(model, requests, batch_size, executor), strict=True
        )
    ]
    frame = make_frame(rows)
    bad = np.flatnonzero(~np.isfinite(frame["log_probability"].to_numpy(dtype=float)))
    name_not_finite("The log probability", (f"pair {row}" for row in bad))
    return frame


def _perplexity(loss: float) -> float:
    """exp(loss), which may be infinite or NaN."""
    return math.exp(loss) if loss < 700 else loss if math.isnan(loss) else math.inf


def encoded_pair(model: LanguageModel, context: str, continuation: str) -> Scored:
    """Tokens of context and continuation by the harness's rule.

    The start of a context that is too long for the model's positions is left out. A continuation
    without text has no target.

    Args:
        model: whose tokenizer and positions.
        context: the text before.
        continuation: the text that is scored.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    alone = token_ids(model, [continuation], special=False)[0]
    if not context:
        first = start_of_text(model)
        before, target = [first], alone[1:] if alone[:1] == [first] else alone
    else:
        whole, before = token_ids(model, [context + continuation, context])
        target = whole[len(before) :] or alone
    room = max(1, model.config.max_position_embeddings + 1 - len(target))
    return Scored(before[-room:], target)


def _bytes_behind(text: str, tokens: Sequence[bytes]) -> int:
    """Bytes of a text behind those of its first token."""
    data, first = text.encode("utf-8", "surrogatepass"), tokens[0]
    for own in (first, first.removeprefix(b" ")):  # some tokenizers put a space in front
        if data.startswith(own):
            return len(data) - len(own)
    # The text was normalised before it was cut (e and an accent became é), or its first token is
    # no part of it.
    return sum(map(len, tokens[1:]))


def choose(
    model: LanguageModel,
    questions: Sequence[str],
    options: Sequence[Sequence[str]],
    right: Sequence[int] | None = None,
    *,
    per: str = "option",
    executor: AnyExecutor | None = None,
) -> TaskResult:
    """Multiple choice: the likeliest option after each question.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        questions: what stands before the options.
        options: those of each question, with the space they begin with.
        right: number of the right option of each question, if known.
        per: compare the log probability of the whole ``option``, or per ``character`` or
            ``token``, which favours no length.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers score the
            batches (``docs/many-machines.md``); None scores here.

    Returns:
        A row for each option; ``metrics`` has ``accuracy`` if ``right`` is given. Of a question
        with an option whose score is NaN nothing is chosen, and the accuracy is NaN.

    Raises:
        DataError: a question without options, or whose right option is not there; by row.
        InputError: an unknown ``per``, or workers could not load the model.
        LostWorkerError: a worker was lost again and again.
    """
    from neox_lab.views.bars import BarsView

    units = {"option": None, "character": "characters", "token": "tokens"}
    check("per", per, one_of(*units), InputError)
    _check_options(questions, options, right)
    pairs = [(q, o) for q, listed in zip(questions, options, strict=True) for o in listed]
    frame = continuations(model, pairs, executor=executor)
    owners = [number for number, listed in enumerate(options) for _ in listed]
    frame.insert(0, "question", owners)
    unit = units[per]
    frame["score"] = frame["log_probability"] / (1 if unit is None else frame[unit])
    known = frame["score"].notna().groupby(frame["question"]).transform("all")
    best = frame[known].groupby("question")["score"].idxmax()
    frame["chosen"] = frame.index.isin(best)
    metrics = {}
    if right is not None and not known.all():
        metrics["accuracy"] = math.nan
    elif right is not None:
        order = frame.groupby("question").cumcount()
        hits = [int(order[best[n]]) == answer for n, answer in enumerate(right)]
        metrics["accuracy"] = sum(hits) / len(hits)
    first = frame[frame["question"] == 0]
    return TaskResult(
        frame, metrics, lambda: BarsView(list(first["continuation"]), first["score"], questions[0])
    )


def last_word(
    model: LanguageModel, texts: Sequence[str], *, executor: AnyExecutor | None = None
) -> TaskResult:
    """Predict the last word of each text from all before it (LAMBADA, arXiv:1606.06031).

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        texts: each of two words at least.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers score the
            batches (``docs/many-machines.md``); None scores here.

    Returns:
        ``metrics``: ``accuracy``, the share of texts whose last word greedy decoding would write,
        and ``perplexity`` of the last words, exp(mean of -log p(word)).

    Raises:
        DataError: a text has fewer than two words; by number.
        InputError: dropout is on, or workers could not load the model.
        LostWorkerError: a worker was lost again and again.
    """
    cuts = [text.rstrip().rpartition(" ") for text in texts]
    wrong = [(row, f"{text!r:.40}") for row, text in enumerate(texts) if not cuts[row][0]]
    refuse("A text needs two words at least", wrong, "Leave these texts out.")
    pairs = [(before, space + word) for before, space, word in cuts]
    frame = continuations(model, pairs, executor=executor)
    found = frame["log_probability"].to_numpy(dtype=float)
    metrics = {
        "accuracy": math.nan if np.isnan(found).any() else float(frame["greedy"].mean()),
        "perplexity": _perplexity(-float(found.mean())),
    }
    return TaskResult(frame, metrics, partial(metrics_view, metrics, "Last words"))


def _check_options(
    questions: Sequence[str], options: Sequence[Sequence[str]], right: Sequence[int] | None
) -> None:
    counts = [len(options)] + ([] if right is None else [len(right)])
    if not questions or any(count != len(questions) for count in counts):
        raise DataError(
            f"{len(questions)} questions, {len(options)} lists of options"
            + ("" if right is None else f" and {len(right)} right ones")
            + "; expected as many of each, at least one"
        )
    answers = [0] * len(options) if right is None else right
    wrong = [
        (row, f"{len(listed)} options, of which number {answer} is right")
        for row, (listed, answer) in enumerate(zip(options, answers, strict=True))
        if not 0 <= answer < len(listed)
    ]
    refuse("Questions cannot be used", wrong, "Options are numbered from 0.")


def _sizes(model: LanguageModel, context: int | None, stride: int | None) -> tuple[int, int]:
    longest = model.config.max_position_embeddings
    context = longest if context is None else check("context", context, whole(), InputError)
    stride = (
        max(1, context // 2) if stride is None else check("stride", stride, whole(), InputError)
    )
    if not 1 <= stride <= context <= longest:
        raise InputError(
            f"stride={stride}, context={context}; expected 1 ≤ stride ≤ context ≤ {longest}."
        )
    return context, stride


def _view(pieces: list[str], losses: list[float], metrics: dict[str, float]) -> StripView:
    """A text whose tokens are the deeper the less they were expected."""
    from neox_lab.views.strips import Piece, StripView

    marked = [
        Piece(piece, f"{loss:.1f}", "loss", min(1.0, loss / 10))
        for piece, loss in zip(pieces[1:], losses, strict=True)
    ]
    title = f"{metrics['loss']:.2f} nats a token, perplexity {metrics['perplexity']:.1f}"
    note = "Below each token its loss in nats; the deeper, the less it was expected."
    return StripView([Piece(pieces[0]), *marked], title, note)
