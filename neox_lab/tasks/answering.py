"""Answer questions with a stretch of a text.

    model = nl.load(head="question-answering")
    answering.train(model, "train-v2.0.json")
    answering.predict(model, "Who wrote it?", "It was written by Ada in 1843.")

The model reads ``question ⏎ text <|endoftext|>``. GPT-NeoX sees only what came before, so the
question stands in front, where every token of the text can see it; and "no answer" is a span at the
closing token, the only one that has seen everything. Texts that are too long are read in windows
that overlap.
"""

from __future__ import annotations

import math
import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neox_lab.data import squad
from neox_lab.data.batches import EncodedExample, collate_for, outputs
from neox_lab.data.encoding import end_of_text, token_ids, token_spans
from neox_lab.data.squad import Questions
from neox_lab.errors import DataError
from neox_lab.frames import make_frame
from neox_lab.model.output_heads import require_head
from neox_lab.tasks import metrics
from neox_lab.tasks.result import TaskResult, metrics_view
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import TrainingResult, fit

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family import GPTNeoXForQuestionAnswering
    from neox_lab.views import StripView

HEAD = "question-answering"
LONGEST_ANSWER = 30  # tokens
VISIBLE = 0.005  # the least probability that gets bars in the picture
CANDIDATES = 400  # spans of a window that are considered, the best ones


class Window(NamedTuple):
    """One stretch of a text as the model reads it.

    Attributes:
        row: which question.
        ids: question, stretch and closing token.
        first: position of the first token of the stretch.
        offsets: first and last character (exclusive) of each of its tokens, in the whole text.
    """

    row: int
    ids: list[int]
    first: int
    offsets: list[tuple[int, int]]


class Answer(NamedTuple):
    """A possible answer: its score (start logit plus end logit), text and characters."""

    score: float
    text: str
    start: int
    end: int


def train(
    model: GPTNeoXForQuestionAnswering,
    data: Questions,
    validation: Questions | None = None,
    settings: TrainingSettings | None = None,
    *,
    max_length: int | None = None,
    stride: int = 64,
    directory: str | os.PathLike[str] | None = None,
) -> TrainingResult:
    """Fine-tune a model for extractive question answering in place.

    Args:
        model: a GPTNeoXForQuestionAnswering with a tokenizer.
        data: SQuAD JSON or a table; see ``squad.read_squad``.
        validation: likewise, to be measured during training; or None.
        settings: see ``TrainingSettings``.
        max_length: tokens in one window; None for all positions of the model.
        stride: tokens that neighbouring windows share.
        directory: keep the run here and go on with it if it was stopped.

    Raises:
        DataError: rows are wrong; the message names them.
        InputError: the model has another head, or settings do not fit.
    """
    require_head(model.head, HEAD)
    examples = prepare(model, data, max_length=max_length, stride=stride)
    held = None if validation is None else squad.read_squad(validation)
    return fit(
        model,
        examples,
        collate_for(model),
        settings,
        evaluate=None
        if held is None
        else lambda: evaluate(model, held, max_length=max_length, stride=stride).metrics,
        best="f1",
        directory=directory,
    )


def evaluate(
    model: GPTNeoXForQuestionAnswering,
    data: Questions,
    *,
    max_length: int | None = None,
    stride: int = 64,
) -> TaskResult:
    """Measure by SQuAD's rules.

    Args:
        model: a GPTNeoXForQuestionAnswering with a tokenizer.
        data: SQuAD JSON or a table; see ``squad.read_squad``.
        max_length: tokens in one window; None for all positions of the model.
        stride: tokens that neighbouring windows share.

    Returns:
        ``metrics``: ``exact_match`` and ``f1`` (0 to 1), both also over questions with and without
        an answer, where there are such. A row for each question; the picture shows the metrics.

    Raises:
        DataError: rows are wrong; the message names them.
        InputError: the model has another head.
    """
    require_head(model.head, HEAD)
    frame = squad.read_squad(data)
    found = _best(model, frame, max_length, stride)
    answers = [[text for _, text in spans] for spans in frame["answers"]]
    predicted = [None if math.isnan(best[0].score) else best[0].text for best in found]
    result = frame.assign(prediction=np.array(predicted, dtype=object))
    pairs = list(zip(predicted, answers, strict=True))
    for name, score in (("exact_match", metrics.exact_match), ("f1", metrics.answer_f1)):
        result[name] = [math.nan if said is None else score(said, given) for said, given in pairs]
    measured = {name: float(result[name].mean(skipna=False)) for name in ("exact_match", "f1")}
    answerable = frame["answers"].map(bool)
    for name, part in (("answerable", answerable), ("unanswerable", ~answerable)):
        if part.any() and not part.all():
            measured |= {
                f"{m}_{name}": float(result[part][m].mean(skipna=False))
                for m in ("exact_match", "f1")
            }
    title = f"Answers to {len(frame)} questions"
    return TaskResult(result, measured, partial(metrics_view, measured, title, "1 is perfect"))


def predict(
    model: GPTNeoXForQuestionAnswering,
    question: str,
    context: str,
    *,
    best: int = 5,
    max_length: int | None = None,
    stride: int = 64,
) -> TaskResult:
    """Answer one question.

    Args:
        model: a GPTNeoXForQuestionAnswering with a tokenizer.
        question: what is asked.
        context: the text that may hold the answer.
        best: how many answers to list.
        max_length: tokens in one window; None for all positions of the model.
        stride: tokens that neighbouring windows share.

    Returns:
        A frame with the ``best`` answers: text ("" for no answer), first and last character
        (exclusive) in ``context``, score (start logit plus end logit), and probability among the
        answers considered. The picture marks the answer in the text, with two bars below each
        token: how likely the answer starts and ends there.

    Raises:
        DataError: no question or no context, or a question that leaves no room for the text.
        InputError: the model has another head.
    """
    require_head(model.head, HEAD)
    row = {"question": question, "context": context, "answers": []}
    frame = squad.read_squad([row])
    windows = _windows(model, frame, max_length, stride)
    logits = _logits(model, windows)
    found = _ranked(windows, logits, frame)[0]
    heat = _heat(windows, logits)
    chances = (
        torch.tensor([answer.score for answer in found], dtype=torch.float32)
        .softmax(dim=0)
        .tolist()
    )
    rows = [
        {"answer": a.text, "start": a.start, "end": a.end, "score": a.score, "probability": p}
        for a, p in zip(found, chances, strict=True)
    ]
    return TaskResult(make_frame(rows[:best]), {}, lambda: _view(question, context, found, heat))


def prepare(
    model: GPTNeoXForQuestionAnswering,
    data: Questions,
    *,
    max_length: int | None = None,
    stride: int = 64,
) -> list[EncodedExample]:
    """Examples with ``input_ids``, ``start_positions`` and ``end_positions``, one a window.

    A window without the answer has "no answer" as its target.
    """
    frame = squad.read_squad(data)
    examples: list[EncodedExample] = []
    for window in _windows(model, frame, max_length, stride):
        start = end = len(window.ids) - 1
        for first_character, text in frame["answers"][window.row][:1]:
            first_character += len(text) - len(text.lstrip())  # blanks are no token's characters
            inside = _tokens_of(window, first_character, first_character + len(text.strip()))
            start, end = inside or (start, end)
        positions = {"start_positions": start, "end_positions": end}
        examples.append({"input_ids": window.ids, **positions, "_row": window.row})
    return examples


def _windows(
    model: GPTNeoXForQuestionAnswering, frame: pd.DataFrame, max_length: int | None, stride: int
) -> list[Window]:
    """Every question with its text, cut into overlapping windows where it is too long."""
    closing = end_of_text(model)
    longest = max_length or model.config.max_position_embeddings
    windows: list[Window] = []
    for row, (question, context) in enumerate(
        zip(frame["question"], frame["context"], strict=True)
    ):
        asked = token_ids(model, [f"{question}\n"])[0]
        read = token_spans(model, context)
        room = longest - len(asked) - 1
        if room <= stride:
            raise DataError(
                f"row {row}: the question has {len(asked)} tokens, which leaves {room} of "
                f"{longest} for the text; expected more than stride={stride}. Shorten the "
                "question, or choose a smaller stride or a larger max_length."
            )
        for start in range(0, max(1, len(read.ids) - stride), room - stride):
            part = slice(start, start + room)
            ids = [*asked, *read.ids[part], closing]
            windows.append(Window(row, ids, len(asked), read.spans[part]))
    return windows


def _tokens_of(window: Window, start: int, end: int) -> tuple[int, int] | None:
    """Positions of the first and last token of characters ``start`` to ``end``, if all inside."""
    touched = [at for at, (low, high) in enumerate(window.offsets) if low < end and high > start]
    if not touched or window.offsets[touched[0]][0] > start or window.offsets[touched[-1]][1] < end:
        return None
    return window.first + touched[0], window.first + touched[-1]


def _best(
    model: GPTNeoXForQuestionAnswering, frame: pd.DataFrame, max_length: int | None, stride: int
) -> list[list[Answer]]:
    """For each question its answers, the best first; "" stands for no answer."""
    windows = _windows(model, frame, max_length, stride)
    return _ranked(windows, _logits(model, windows), frame)


def _logits(model: GPTNeoXForQuestionAnswering, windows: list[Window]) -> list[dict[str, Tensor]]:
    """Start and end logits of each window."""
    bare: list[EncodedExample] = [{"input_ids": w.ids, "_row": w.row} for w in windows]
    return outputs(model, bare, 32, ["start_logits", "end_logits"])


def _ranked(
    windows: list[Window], logits: list[dict[str, Tensor]], frame: pd.DataFrame
) -> list[list[Answer]]:
    """For each question its answers, from the logits of its windows; one of NaN if one is NaN."""
    found: list[dict[tuple[int, int], Answer]] = [{} for _ in range(len(frame))]
    nothing = {(0, 0): Answer(math.nan, "", 0, 0)}
    for window, row in zip(windows, logits, strict=True):
        if any(bool(row[name].isnan().any()) for name in ("start_logits", "end_logits")):
            found[window.row] = nothing
        if found[window.row] is nothing:
            continue
        context = frame["context"][window.row]
        there = found[window.row]
        for answer in _answers(window, context, row["start_logits"], row["end_logits"]):
            place = (answer.start, answer.end)
            # A text has no answer only if none of its windows has one.
            pick = max if answer.text else min
            there[place] = pick(there.get(place, answer), answer)
    return [sorted(there.values(), reverse=True) for there in found]


def _answers(window: Window, context: str, start: Tensor, end: Tensor) -> list[Answer]:
    """The best spans of one window that hold more than blanks, and no answer."""
    first, count = window.first, len(window.offsets)
    begins = torch.arange(count)[:, None].expand(count, LONGEST_ANSWER)
    stops = begins + torch.arange(LONGEST_ANSWER)
    begins, stops = begins[stops < count], stops[stops < count]
    low, high = torch.tensor(window.offsets).unbind(dim=1)
    written = _written(context)
    told = written[high[stops]] > written[low[begins]]
    begins, stops = begins[told], stops[told]
    scores = start[first + begins] + end[first + stops]
    answers = [Answer(float(start[-1] + end[-1]), "", 0, 0)]
    for at in scores.topk(min(CANDIDATES, len(scores))).indices.tolist():
        place = window.offsets[int(begins[at])][0], window.offsets[int(stops[at])][1]
        answers.append(Answer(float(scores[at]), context[slice(*place)], *place))
    return answers


def _written(text: str) -> Tensor:
    """How many characters that are no blanks stand before each place ``[len(text) + 1]``."""
    return torch.tensor([0, *(not character.isspace() for character in text)]).cumsum(dim=0)


def _heat(
    windows: list[Window], logits: list[dict[str, Tensor]]
) -> dict[tuple[int, int], tuple[float, float]]:
    """How likely an answer starts and ends at each token, by its first and last character.

    Where windows overlap, the larger of what they say.
    """
    heat: dict[tuple[int, int], tuple[float, float]] = {}
    for window, row in zip(windows, logits, strict=True):
        starts, ends = (
            row[name].float().softmax(dim=-1) for name in ("start_logits", "end_logits")
        )
        for at, place in enumerate(window.offsets, window.first):
            before = heat.get(place, (0.0, 0.0))
            heat[place] = max(before[0], float(starts[at])), max(before[1], float(ends[at]))
    return dict(sorted(heat.items()))


def _view(
    question: str,
    context: str,
    found: list[Answer],
    heat: dict[tuple[int, int], tuple[float, float]],
) -> StripView:
    """The text with its best answer marked, and the runners-up as a table."""
    from neox_lab.views.strips import Piece, StripView

    chances = (
        torch.tensor([answer.score for answer in found], dtype=torch.float32)
        .softmax(dim=0)
        .tolist()
    )
    table = [
        {"answer": a.text or "(no answer)", "start": a.start, "end": a.end, "probability": p}
        for a, p in zip(found[:5], chances, strict=False)
    ]
    best, at, pieces = found[0], 0, []
    for (low, high), (start, end) in heat.items():
        kind = "answer" if best.start <= low and high <= best.end else None
        marks = {"start": start, "end": end} if max(start, end) >= VISIBLE else {}
        # Several tokens can share one character; its bytes are shown once.
        pieces.append(Piece(context[max(at, low) : high], "", kind, chances[0], marks=marks))
        if at < low:
            pieces.insert(-1, Piece(context[at:low]))
        at = max(at, high)
    pieces.append(Piece(context[at:]))
    said = "The answer is marked." if best.text else "The text has no answer."
    note = f"{said} Bars below each token: how likely the answer starts (blue) or ends (orange)."
    return StripView([p for p in pieces if p.text], title=question, note=note, found=table)
