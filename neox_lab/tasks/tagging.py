"""Tag the words of a text: names, places, dates, or whatever the tags say.

    model = nl.load(head="token-classification", labels=["O", "B-PERSON", "I-PERSON"])
    tagging.train(model, "train.conll")
    tagging.predict(model, "Mary Stone went home.")

A word may be several tokens. GPT-NeoX sees only what came before, so a word's tag is read at its
*last* token, the only one that has seen the whole word; the others do not count in the loss.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from neox_lab.checks import one_or_several_texts
from neox_lab.data import conll
from neox_lab.data.batches import EncodedExample, collate_for, outputs
from neox_lab.data.encoding import token_spans
from neox_lab.data.sentences import Sentence, TaggedTexts, read_sentences, words_of
from neox_lab.data.tables import check_lengths, refuse
from neox_lab.errors import DataError, InputError, nearest
from neox_lab.family.losses import IGNORED
from neox_lab.frames import make_frame
from neox_lab.model.output_heads import require_head
from neox_lab.tasks.metrics import entity_metrics, unknown
from neox_lab.tasks.result import TaskResult, metrics_view
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import TrainingResult, fit

if TYPE_CHECKING:
    from neox_lab.family import GPTNeoXForTokenClassification
    from neox_lab.views import StripView


def train(
    model: GPTNeoXForTokenClassification,
    data: TaggedTexts,
    validation: TaggedTexts | None = None,
    settings: TrainingSettings | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
) -> TrainingResult:
    """Fine-tune a tagger in place.

    Args:
        model: a GPTNeoXForTokenClassification with a tokenizer; its labels are BIO tags.
        data: see ``read_sentences``.
        validation: likewise, to be measured during training; or None.
        settings: see ``TrainingSettings``.
        directory: keep the run here and go on with it if it was stopped.

    Raises:
        DataError: rows are wrong; the message names them.
        InputError: the model has another head, or settings do not fit.
    """
    _check_head(model)
    examples = prepare(model, read_sentences(data))
    held = None if validation is None else read_sentences(validation)
    return fit(
        model,
        examples,
        collate_for(model),
        settings,
        evaluate=None if held is None else lambda: _measure(model, held)[0],
        best="f1",
        directory=directory,
    )


def evaluate(model: GPTNeoXForTokenClassification, data: TaggedTexts) -> TaskResult:
    """Measure entities as seqeval does; see ``metrics.entity_metrics``.

    Args:
        model: a GPTNeoXForTokenClassification with a tokenizer; its labels are BIO tags.
        data: see ``read_sentences``.

    Returns:
        A row for each text with its tags and those predicted; the picture shows the metrics.

    Raises:
        DataError: rows are wrong; the message names them.
        InputError: the model has another head, or labels that are no tags.
    """
    _check_head(model)
    sentences = read_sentences(data)
    metrics, predicted, _ = _measure(model, sentences)
    rows = [
        {"text": sentence.text, "tags": sentence.tags, "predicted": tags}
        for sentence, tags in zip(sentences, predicted, strict=True)
    ]
    title = f"Entities in {len(rows)} texts"
    picture = partial(metrics_view, metrics, title, "1 is perfect")
    return TaskResult(make_frame(rows), metrics, picture)


def predict(model: GPTNeoXForTokenClassification, texts: str | Sequence[str]) -> TaskResult:
    """Find entities in texts.

    Args:
        model: a GPTNeoXForTokenClassification with a tokenizer; its labels are BIO tags.
        texts: one or several.

    Returns:
        A row for each entity: number of the text, entity, label, first and last character
        (exclusive), score (mean probability of its tags). The picture shows the texts, each from
        a new line, with their entities marked.

    Raises:
        DataError: no text, or texts without a word or longer than the model can read.
        InputError: the model has another head, or labels that are no tags.
    """
    _check_head(model)
    listed_texts = one_or_several_texts("texts", texts)
    sentences = [Sentence(text, words_of(text), []) for text in listed_texts]
    empty = [(row, "has no word") for row, s in enumerate(sentences) if not s.words]
    refuse("There is nothing to tag", empty, "Leave these texts out.")
    if not sentences:
        raise DataError("there is no text to tag")
    predicted, scores = _predicted(model, sentences)
    rows = [
        {"text": number, **entity}
        for number, sentence in enumerate(sentences)
        for entity in _found(sentence, predicted[number], scores[number])
    ]
    names = ["text", "entity", "label", "start", "end", "score"]
    return TaskResult(
        make_frame(rows, columns=names),
        {},
        partial(_view, listed_texts, rows, _entity_kinds(model)),
    )


def prepare(
    model: GPTNeoXForTokenClassification, sentences: Sequence[Sentence]
) -> list[EncodedExample]:
    """Examples with ``input_ids`` and ``labels``: a tag at each word's last token, -100 elsewhere.

    Raises:
        DataError: a tag that the model does not have, or a text that is too long.
    """
    known = {str(name): number for number, name in model.config.id2label.items()}
    wrong = [
        (row, f"{tag!r}.{nearest(tag, known)}")
        for row, sentence in enumerate(sentences)
        for tag in dict.fromkeys(sentence.tags)
        if tag not in known
    ]
    refuse("The model has no such tag", wrong, f"It has {', '.join(known)}.")
    examples: list[EncodedExample] = []
    for sentence in sentences:
        ids, last = _tokens(model, sentence)
        labels = [IGNORED] * len(ids)
        for at, tag in zip(last, sentence.tags, strict=False):
            labels[at] = known[tag]
        examples.append({"input_ids": ids, "labels": labels, "_last": last})
    check_lengths(
        [example["input_ids"] for example in examples],
        model.config.max_position_embeddings,
        "Split these texts.",
    )
    return examples


def _check_head(model: GPTNeoXForTokenClassification) -> None:
    require_head(model.head, "token-classification")
    other = [name for name in model.config.id2label.values() if not conll.is_tag(str(name))]
    if other:
        raise InputError(
            f"this model's labels include {other[0]!r}; expected 'O' and tags such as 'B-PERSON' "
            "and 'I-PERSON': nl.load(..., labels=['O', 'B-PERSON', 'I-PERSON'])"
        )


def _tokens(
    model: GPTNeoXForTokenClassification, sentence: Sentence
) -> tuple[list[int], list[int]]:
    """Token ids of a text, and the number of each word's last token."""
    read = token_spans(model, sentence.text)
    last = []
    for _, end in sentence.words:
        # Several tokens may share the last character (its bytes); the last of them ends the word.
        at = max(i for i, (low, high) in enumerate(read.spans) if low < end and low < high)
        last.append(at)
    return read.ids, last


def _predicted(
    model: GPTNeoXForTokenClassification, sentences: Sequence[Sentence]
) -> tuple[list[list[str]], list[list[float]]]:
    """A tag for each word of each text, and its probability; "O" where that is NaN."""
    bare = [sentence._replace(tags=[]) for sentence in sentences]
    examples = prepare(model, bare)
    names = [str(model.config.id2label[n]) for n in range(model.config.num_labels)]
    tags, scores = [], []
    for example, found in zip(examples, outputs(model, examples, 32, ["logits"]), strict=True):
        best = found["logits"][torch.tensor(example["_last"])].softmax(dim=-1).max(dim=-1)
        scores.append(best.values.tolist())
        said = zip(best.indices.tolist(), scores[-1], strict=True)
        tags.append(["O" if math.isnan(score) else names[number] for number, score in said])
    return tags, scores


def _measure(
    model: GPTNeoXForTokenClassification, sentences: Sequence[Sentence]
) -> tuple[dict[str, float], list[list[str]], list[list[float]]]:
    predicted, scores = _predicted(model, sentences)
    measured = entity_metrics([s.tags for s in sentences], predicted)
    if any(math.isnan(score) for line in scores for score in line):
        measured = unknown(measured)
    return measured, predicted, scores


def _found(sentence: Sentence, tags: list[str], scores: list[float]) -> list[dict[str, Any]]:
    """The entities of one text."""
    rows = []
    for label, first, end in conll.entities(tags):
        low, high = sentence.words[first][0], sentence.words[end - 1][1]
        score = sum(scores[first:end]) / (end - first)
        place = {"start": low, "end": high}
        rows.append({"entity": sentence.text[low:high], "label": label, **place, "score": score})
    return rows


def _entity_kinds(model: GPTNeoXForTokenClassification) -> list[str]:
    """What the model's tags can say of a word, in the order of its labels."""
    names = [str(model.config.id2label[n]) for n in range(model.config.num_labels)]
    return list(dict.fromkeys(name.split("-", 1)[-1] for name in names if name != "O"))


def _view(texts: list[str], found: list[dict[str, Any]], kinds: Sequence[str] = ()) -> StripView:
    """The texts with their entities marked."""
    from neox_lab.views.strips import Piece, StripView

    pieces = []
    for number, text in enumerate(texts):
        at = 0
        for row in (row for row in found if row["text"] == number):
            pieces.append(Piece(text[at : row["start"]]))
            name, more = row["label"], len(words_of(row["entity"])) - 1
            tags = " ".join([f"B-{name}", *[f"I-{name}"] * more])
            told = {"tags": tags, "score": f"{row['score']:.2f}"}
            pieces.append(Piece(row["entity"], name, name, row["score"], told))
            at = row["end"]
        pieces.append(Piece(text[at:] + "\n" * (number + 1 < len(texts))))
    note = f"{len(found)} found; the deeper the colour, the surer."
    return StripView([p for p in pieces if p.text], "Entities", note, found, kinds=kinds)
