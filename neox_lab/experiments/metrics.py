"""Metrics: the one number that a question asks about.

    logit_difference(" Mary", " John")     a language model: one token against another
    class_logit("positive", "negative")    a text classifier: one class against another
    span_logit(start=7, end=8)             question answering: start and end of one answer
    tag_logit(3, "PER", "O")               a tagger: one tag at one token against another

Each is a sum of a few logits with weights. Because a metric says which logits it reads, whoever
evaluates it computes only those, and knows its value for each row of a batch. Any other function
from logits to a scalar is a metric too; it is given all logits.

    metric = logit_difference(" Mary", " John")
    bound = metric.bind(model, model.prepare_inputs(texts))    # tokens and positions as numbers
    bound(output_logits(model(...)))                           # the mean over rows
    bound.per_row(logits)                                      # [batch]

Positions count each text's own tokens: 0 is its first and -1 its last, on whichever side it is
padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import plain, several, shown
from neox_lab.data.positions import TokenPosition
from neox_lab.errors import InputError, nearest
from neox_lab.model.output_heads import OUTPUT_HEADS
from neox_lab.model.outputs import ModelOutput
from neox_lab.selections import one_each, whole_number

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Output = int | str | Sequence[int] | Sequence[str] | Tensor
"""A token or a label, as text or as id; or one for each row of the batch."""
Metric = Callable[[Tensor], Tensor]
"""From logits to a scalar. Logits are ``[batch, pos, vocab]``, ``[batch, label]`` for a text
classifier, ``[batch, pos, label]`` for a tagger, ``[batch, pos, 2]`` for question answering. Rows
stand there as they are padded: a function of your own reads padding unless it leaves it out."""


@dataclass(frozen=True)
class Term:
    """One logit of a metric.

    Attributes:
        weight: what it is multiplied with.
        output: whose logit: a token or a label.
        pos: where it is read; None is where a text classifier gives its answer.
    """

    weight: float
    output: Output
    pos: TokenPosition | None


@dataclass(frozen=True)
class LogitMetric:
    """A sum of logits with weights; made by the functions of this module.

    Attributes:
        terms: the logits.
        head: which of the output heads has them.
        name: what it is, for titles and axes.
    """

    terms: tuple[Term, ...]
    head: str
    name: str

    def bind(self, model: HookedModel, prepared: Mapping[str, Tensor]) -> BoundMetric:
        """Look up tokens, labels and positions for one batch.

        Args:
            model: the model that will run.
            prepared: what ``model.prepare_inputs`` returned.

        Raises:
            InputError: the model's head has no such logits; an unknown label, a position that a
                text does not have, or lists that do not fit the batch.
            TokenizerError: a string that is not exactly one token.
        """
        if model.head != self.head:
            raise InputError(
                f"The metric {self.name!r} reads logits of {OUTPUT_HEADS[self.head].model}; "
                f"{type(model).__name__} is not one."
            )
        given = prepared.get("input_ids", prepared.get("inputs_embeds"))
        assert given is not None
        batch, device = given.shape[0], given.device
        outputs = [
            _per_row(output_ids(model, t.output), batch, "tokens or labels") for t in self.terms
        ]
        positions = [_columns(model, prepared, term.pos) for term in self.terms]
        return BoundMetric(
            weights=torch.tensor(
                [term.weight for term in self.terms], device=device, dtype=torch.float32
            ),
            outputs=torch.stack(outputs, dim=1).to(device),
            positions=torch.stack(positions, dim=1).to(device),
            name=self.name,
        )

    def __call__(self, logits: Tensor) -> Tensor:
        """The mean over rows, a scalar; tokens must be ids, and no row padded.

        Args:
            logits: see ``Metric``.

        Raises:
            InputError: tokens given as text, which only ``bind`` can look up.
        """
        length = logits.shape[1] if logits.dim() == 3 else 1
        if any(_is_text(term.output) for term in self.terms):
            raise InputError(
                f"The metric {self.name!r} names tokens by their text. Call metric.bind(model, "
                "model.prepare_inputs(inputs)), or give ids."
            )
        batch = logits.shape[0]
        outputs = [
            _per_row(output_ids(None, t.output), batch, "tokens or labels") for t in self.terms
        ]
        everywhere = torch.ones(batch, length, dtype=torch.bool)
        positions = [_places(everywhere, -1 if t.pos is None else t.pos) for t in self.terms]
        bound = BoundMetric(
            weights=torch.tensor(
                [term.weight for term in self.terms], device=logits.device, dtype=torch.float32
            ),
            outputs=torch.stack(outputs, dim=1).to(logits.device),
            positions=torch.stack(positions, dim=1).to(logits.device),
            name=self.name,
        )
        return bound(logits)


@dataclass(frozen=True)
class BoundMetric:
    """A metric whose logits are known by number, for one batch.

    Attributes:
        weights: of the terms, float32 ``[term]``.
        outputs: rows of the head's matrix, ``[batch, term]``.
        positions: columns of the batch at which the head is read, ``[batch, term]``.
        name: what it is.
    """

    weights: Tensor
    outputs: Tensor
    positions: Tensor
    name: str

    def per_row(self, logits: Tensor) -> Tensor:
        """The metric of each row, ``[batch]``.

        Args:
            logits: see ``Metric``; for a classifier also ``[batch, pos, label]``.

        Raises:
            InputError: another batch, or too few positions or outputs.
        """
        rows = torch.arange(len(self.outputs), device=logits.device)[:, None]
        short = logits.dim() == 3 and logits.shape[1] <= int(self.positions.max())
        if len(logits) != len(rows) or short or logits.shape[-1] <= int(self.outputs.max()):
            raise InputError(
                f"Logits of shape {list(logits.shape)} do not fit the metric {self.name!r}, bound "
                f"to {len(rows)} rows, positions up to {int(self.positions.max())}, outputs up to "
                f"{int(self.outputs.max())}."
            )
        at = (rows, self.outputs) if logits.dim() == 2 else (rows, self.positions, self.outputs)
        return (logits[at] * self.weights.to(logits.dtype)).sum(dim=-1)

    def __call__(self, logits: Tensor) -> Tensor:
        """The mean over rows, a scalar; InputError as for ``per_row``."""
        return self.per_row(logits).mean()


def logit_difference(
    correct: Output, wrong: Output | None = None, pos: TokenPosition = -1
) -> LogitMetric:
    """The logit of one token minus that of another, of a language model.

    Args:
        correct: a token, as text or id; or one for each row.
        wrong: the token it competes with; None for the bare logit.
        pos: where the prediction is read, in each text's own tokens; or one for each row.

    Raises:
        InputError: both tokens are given as one tuple.
    """
    return head_logit("causal-lm", correct, wrong, pos)


def class_logit(label: Output, other: Output | None = None) -> LogitMetric:
    """The logit of one class, or minus that of another, of a text classifier.

    Args:
        label: a class, by name or number; or one for each row.
        other: the class it competes with; None for the bare logit.
    """
    return head_logit("sequence-classification", label, other)


def span_logit(start: TokenPosition, end: TokenPosition) -> LogitMetric:
    """The score of one answer: the start logit at its first token plus the end logit at its last.

    Args:
        start: position of the answer's first token; or one for each row.
        end: position of its last token; or one for each row.
    """
    terms = (Term(1.0, 0, start), Term(1.0, 1, end))
    return LogitMetric(terms, "question-answering", "span logit")


def side_logit(side: Output, other: Output | None = None, pos: TokenPosition = -1) -> LogitMetric:
    """The ``"start"`` or the ``"end"`` logit of question answering at one token.

    Args:
        side: ``"start"`` (0) or ``"end"`` (1); or one for each row.
        other: the side whose logit is subtracted; None for the bare logit.
        pos: position of the token; or one for each row.
    """
    return head_logit("question-answering", side, other, pos)


def tag_logit(pos: TokenPosition, tag: Output, other: Output | None = None) -> LogitMetric:
    """The logit of one tag at one token, or minus that of another, of a tagger.

    Args:
        pos: position of the token; or one for each row.
        tag: a tag, by name or number; or one for each row.
        other: the tag it competes with; None for the bare logit.
    """
    return head_logit("token-classification", tag, other, pos)


def head_logit(
    head: str, output: Output, other: Output | None = None, pos: TokenPosition = -1
) -> LogitMetric:
    """The logit of one output of any head, or minus that of another.

    Args:
        head: name of an output head, such as ``model.head``.
        output: a token or a label, by name or number; or one for each row.
        other: what it competes with; None for the bare logit.
        pos: where it is read, in each text's own tokens; or one for each row. A head with one
            answer a text is read where it gives it.

    Raises:
        InputError: there is no such head, or both outputs are given as one tuple.
    """
    if other is None and isinstance(output, tuple) and len(output) == 2:
        raise InputError(
            f"{shown(output)} is a tuple of two: give them as two arguments for their difference, "
            "or as a list for the outputs of two rows."
        )
    if head not in OUTPUT_HEADS:
        raise InputError(
            f"A metric reads logits of a head, and {head!r} is none; expected one of "
            f"{', '.join(OUTPUT_HEADS)}."
        )
    entry = OUTPUT_HEADS[head]
    where = None if entry.per_text else pos
    first = Term(1.0, output, where)
    if other is None:
        return LogitMetric((first,), head, entry.logit)
    return LogitMetric((first, Term(-1.0, other, where)), head, entry.difference)


def output_logits(output: ModelOutput) -> Tensor:
    """The logits that metrics read, from what ``forward`` returned.

    Question answering's start and end logits become ``[batch, pos, 2]``.

    Raises:
        InputError: the output has none.
    """
    if output.get("start_logits") is not None:
        return torch.stack((output["start_logits"], output["end_logits"]), dim=-1)
    logits = output.get("logits")
    if not isinstance(logits, Tensor):
        raise InputError(
            "A metric reads logits, and this model returns none: it has no head. Load it with one, "
            "such as nl.load(name, head='causal-lm')."
        )
    return logits


def evaluate(metric: Metric, logits: Tensor) -> Tensor:
    """``metric(logits)``, checked to be one number.

    Raises:
        InputError: the metric returned something else.
    """
    value = metric(logits)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        got = (
            f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else shown(value)
        )
        raise InputError(
            f"The metric returned {got:.80}; expected a tensor holding one number. Reduce it, for "
            "instance with .mean()."
        )
    return value.reshape(())


def bind(metric: Metric, model: HookedModel, prepared: Mapping[str, Tensor]) -> Metric:
    """``metric`` ready for one batch: bound if it is a LogitMetric, as it is otherwise.

    Raises:
        InputError: not callable, or see ``LogitMetric.bind``.
    """
    if isinstance(metric, LogitMetric):
        return metric.bind(model, prepared)
    if not callable(metric):
        raise InputError(
            f"metric is {shown(metric, 80)}; expected logit_difference(correct, wrong) or a "
            "function from logits to a scalar."
        )
    return metric


def metric_name(metric: Metric) -> str:
    """What a metric is called in titles and on axes."""
    name = getattr(metric, "name", None)
    return name if isinstance(name, str) else "the metric"


def _is_text(output: Output) -> bool:
    if isinstance(output, str):
        return True
    return not isinstance(output, int | Tensor) and any(isinstance(o, str) for o in output)


def output_ids(model: HookedModel | None, output: Output) -> Tensor:
    """Ids of tokens or labels, ``[]`` or ``[batch]``; without a model only ids, not text.

    Raises:
        InputError: an unknown label, or no whole numbers.
    """
    if isinstance(output, str):
        return torch.tensor(_id(model, output))
    given = plain(output)
    listed: object = given
    if not isinstance(given, int | Tensor):
        found = several("tokens or labels", given, "names or whole numbers", InputError)
        listed = [_id(model, o) if isinstance(o, str) else _number(o) for o in found]
    try:
        ids = torch.as_tensor(listed).to_dense().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{shown(output)} are no tokens or labels.") from None
    size = None if model is None else len(model.output_map.weight)
    wrong = (
        ids.is_floating_point()
        or ids.is_complex()
        or ids.dtype == torch.bool
        or bool((ids < 0).any())
    )
    if wrong or ids.dim() > 1 or (size is not None and bool((ids >= size).any())):
        most = "" if size is None else f" below {size}"
        raise InputError(
            f"tokens or labels {ids.flatten()[:8].tolist()} of shape {list(ids.shape)}; expected "
            f"one whole number{most}, or one for each row."
        )
    return ids


def _id(model: HookedModel | None, text: str) -> int:
    """Which of the head's outputs ``text`` names.

    Raises:
        InputError: no label of the model.
        TokenizerError: not exactly one token.
    """
    assert model is not None
    labels = OUTPUT_HEADS[model.head].labels(model.config)
    if labels is None:
        return int(model.to_single_token(text))
    if text not in labels:
        raise InputError(f"No label {text!r}.{nearest(text, labels)} There are {[*labels]}.")
    return int(labels[text])


def _number(output: object) -> int:
    return whole_number("tokens or labels", output, InputError)


def _per_row(values: Tensor, batch: int, what: str) -> Tensor:
    """``[batch]`` from one value or from one for each row.

    Raises:
        InputError: another number of rows.
    """
    if values.dim() == 0:
        return values.expand(batch)
    if len(values) != batch:
        raise InputError(f"The metric has {len(values)} {what} for {batch} rows.")
    return values


def _columns(
    model: HookedModel, prepared: Mapping[str, Tensor], where: TokenPosition | None
) -> Tensor:
    """Columns of the batch that are read, ``[batch]``."""
    ids = prepared.get("input_ids")
    given = ids if ids is not None else prepared["inputs_embeds"]
    batch, length = given.shape[:2]
    if where is None:
        last = model.last_token(ids, given)
        return torch.as_tensor(length - 1 if isinstance(last, int) else last).cpu().expand(batch)
    mask = prepared.get("attention_mask")
    own = torch.ones(batch, length, dtype=torch.bool)
    if mask is not None and mask.shape == own.shape:
        own = mask.bool().cpu()
    return _places(own, where)


def _places(own: Tensor, where: TokenPosition) -> Tensor:
    """The columns ``[batch]`` of positions counted in each row's own tokens ``[batch, pos]``.

    Raises:
        InputError: a text has no such position.
    """
    wanted = one_each("pos", where, len(own), InputError)
    found = []
    for row, (mask, pos) in enumerate(zip(own, wanted, strict=True)):
        columns = mask.nonzero().flatten()
        if not -len(columns) <= pos < len(columns):
            raise InputError(
                f"The metric reads position {pos}; text {row} has {len(columns)} tokens, 0 to "
                f"{len(columns) - 1} or -{len(columns)} to -1."
            )
        found.append(int(columns[pos]))
    return torch.tensor(found)
