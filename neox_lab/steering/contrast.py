"""What a direction is found in: activations of positive and of negative examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from neox_lab.activations.stored import Stored
from neox_lab.checks import one_or_several_texts, plain, several, shown
from neox_lab.data.activations import read_batch
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import token_ids
from neox_lab.data.tables import check_lengths, refuse
from neox_lab.errors import DataError, InputError
from neox_lab.experiments.probing_stored import of_documents, vectors_of
from neox_lab.family.contract import HookedModel
from neox_lab.selections import one_each

_TOGETHER = 2**14  # stored rows that are read at a time


@dataclass(frozen=True)
class Token:
    """The last place of a token in each text; see ``token``."""

    texts: tuple[str, ...]


def token(text: str | Sequence[str]) -> Token:
    """Read a direction where a token stands: the last one of it in each text.

        nl.steering.direction(model, pairs, site=..., positions=nl.steering.token(" A"))

    Args:
        text: a text that is exactly one token, such as an answer letter; or one for each text,
            those of the positive texts first.

    Raises:
        InputError: no text.
    """
    given = one_or_several_texts("text", text)
    if not given:
        raise InputError(f"text={shown(text)}; expected a token as text, or several.")
    return Token(tuple(given))


Reading = str | int | Sequence[int] | Tensor | Token
"""Where texts are read: ``"last"``, ``"all"`` and ``"mean"`` (of all positions but the first), a
position in each text's own tokens or one for each text, or ``token(...)``."""


@dataclass(frozen=True)
class Contrast:
    """Activations of two kinds of examples.

    Attributes:
        positive: rows ``[row, d]`` of each site, float32 on the CPU.
        negative: likewise.
        paired: row i of one belongs to row i of the other.
        norms: mean norm of the activations at each site, first positions left out.
        positions: where they were read, in words.
    """

    positive: dict[str, Tensor]
    negative: dict[str, Tensor]
    paired: bool
    norms: dict[str, float]
    positions: str


def sides(
    positive: object, negative: object, labels: Sequence[object] | None
) -> tuple[list[str], list[str]]:
    """The positive and the negative texts.

    Args:
        positive: texts, pairs of texts, or texts of both kinds if there are labels.
        negative: texts, or None.
        labels: one for each text, of two kinds, or None.

    Raises:
        InputError: these are no texts, or both were given twice.
        DataError: one side is empty, all labels are the same, or there are more than two kinds.
    """
    words = "a list of texts, or of pairs (positive, negative)"
    listed = several("positive", positive, words, InputError)
    if labels is not None:
        if negative is not None:
            raise InputError("give negative texts or labels, not both")
        second = by_label(labels, len(listed))
        pair = ([t for t, s in zip(listed, second, strict=True) if s is want] for want in (1, 0))
        first, other = pair
    elif negative is None:
        if any(not isinstance(one, tuple | list) or len(one) != 2 for one in listed):
            raise InputError(
                "without negative texts positive must hold pairs (positive, negative), or give "
                "labels="
            )
        first, other = [one[0] for one in listed], [one[1] for one in listed]
    else:
        first, other = listed, several("negative", negative, "a list of texts", InputError)
    for name, texts in (("positive", first), ("negative", other)):
        if not texts:
            raise DataError(f"there is no {name} text, so nothing to tell the others from")
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise InputError(f"{name} holds {shown(wrong[0], 80)}; expected texts.")
    return first, other


def by_label(labels: object, count: int) -> list[int]:
    """1 for each text of the second kind, by the order of their names, and 0 for the first.

    Raises:
        InputError: no list.
        DataError: another number of labels, one kind only, or more than two.
    """
    listed = several("labels", labels, "a label for each text", InputError)
    if len(listed) != count:
        raise DataError(f"{count} texts and {len(listed)} labels; expected one for each")
    values = [plain(one) for one in listed]
    names = [shown(one) for one in values]
    sizes = {n: v if isinstance(v, int | float) else 0 for n, v in zip(names, values, strict=True)}
    kinds = sorted(sizes, key=lambda name: (sizes[name], name))
    if len(kinds) != 2:
        found = f"all labels are {kinds[0]}" if len(kinds) == 1 else f"{len(kinds)} kinds of labels"
        raise DataError(f"{found}; a direction leads from one of two kinds to the other")
    return [kinds.index(name) for name in names]


def of_texts(
    model: HookedModel,
    positive: Sequence[str],
    negative: Sequence[str],
    names: Sequence[str],
    positions: object,
    batch_size: int,
) -> Contrast:
    """Read two lists of texts, in one pass.

    Args:
        model: what reads them.
        positive: at least one.
        negative: at least one; pairs, if there are as many.
        names: hook names of the sites.
        positions: see ``Reading``.
        batch_size: texts in one forward pass.

    Raises:
        DataError: texts without a token, or longer than the model can read.
        InputError: a position that a text does not have, or activations that are not finite.
    """
    ids = token_ids(model, [*positive, *negative])
    empty = [(row, "has no token") for row, line in enumerate(ids) if not line]
    refuse("There is nothing to read", empty, "Leave these texts out.")
    check_lengths(ids, model.config.max_position_embeddings, "Shorten these texts.")
    pick, said = _places(model, ids, positions)
    found: dict[str, list[Tensor]] = {
        name: [torch.empty(0, dtype=torch.float32)] * len(ids) for name in names
    }
    sums, count = dict.fromkeys(names, 0.0), 0
    with torch.no_grad():
        for rows in by_length(model, [len(line) for line in ids], batch_size):
            cache, mask = read_batch(model, [ids[row] for row in rows], names)
            later = mask.bool() & (torch.arange(mask.shape[1]) > 0)
            count += int(later.sum())
            for name in names:
                values = cache[name].float().flatten(2).cpu()
                sums[name] += float(values.norm(dim=-1)[later].double().sum())
                for line, row in zip(values, rows, strict=True):
                    found[name][row] = pick(line[: len(ids[row])], row)
    for name, lines in found.items():
        bad = [row for row, line in enumerate(lines) if not bool(line.isfinite().all())]
        if bad:
            raise InputError(
                f"activations at {name!r} are NaN or infinite in {len(bad)} of {len(ids)} texts, "
                f"the first is text {bad[0]}; model.check() names weights that are"
            )
    half = len(positive)
    norms = {name: total / count if count else float("nan") for name, total in sums.items()}
    return Contrast(
        {name: torch.cat(lines[:half]) for name, lines in found.items()},
        {name: torch.cat(lines[half:]) for name, lines in found.items()},
        paired=half == len(negative) and said != "all",
        norms=norms,
        positions=said,
    )


def _places(
    model: HookedModel, ids: Sequence[Sequence[int]], positions: object
) -> tuple[Callable[[Tensor, int], Tensor], str]:
    """From a text's vectors ``[pos, d]`` and its number to the rows wanted; and where, in words."""
    if isinstance(positions, Token):
        tokens = [model.to_single_token(text) for text in positions.texts]
        wanted = one_each("token", tokens[0] if len(tokens) == 1 else tokens, len(ids), InputError)
        at = []
        for row, (line, one) in enumerate(zip(ids, wanted, strict=True)):
            if one not in line:
                raise InputError(f"text {row} has no token {model.to_string(one)!r}")
            at.append(len(line) - 1 - list(line)[::-1].index(one))
        return (lambda values, row: values[at[row]][None]), f"token {positions.texts[0]!r}"
    if isinstance(positions, str):
        if positions == "last":
            return (lambda values, _row: values[-1:]), "last"
        if positions == "all":
            return (lambda values, _row: values[1:] if len(values) > 1 else values), "all"
        if positions == "mean":
            return (lambda values, _row: values[min(1, len(values) - 1) :].mean(0)[None]), "mean"
        raise InputError(
            f"positions={shown(positions)}; expected 'last', 'all', 'mean', a position, one for "
            "each text, or nl.steering.token(...)."
        )
    lengths = [len(line) for line in ids]
    given = one_each("positions", positions, len(ids), InputError)
    for row, (place, length) in enumerate(zip(given, lengths, strict=True)):
        if not -length <= place < length:
            raise InputError(f"text {row} has {length} tokens and no position {place}")
    said = f"position {given[0]}" if len(set(given)) == 1 else "a position of each text"
    return (lambda values, row: values[given[row]][None]), said


def of_stored(
    model: HookedModel,
    positive: Stored,
    negative: Stored | None,
    labels: Sequence[object] | None,
    names: Sequence[str],
    positions: object,
) -> Contrast:
    """Take the rows of activations that were collected before; nothing is run.

    Args:
        model: which they must be of.
        positive: of the positive documents, or of both kinds if there are labels.
        negative: of the negative documents, or None.
        labels: one for each document, of two kinds, or None.
        names: hook names of the sites.
        positions: see ``Reading``; tokens cannot be named.

    Raises:
        CheckpointError: they are of another model.
        InputError: a site was not collected, a document has no row there, or ``negative`` is no
            collection.
        DataError: labels of one kind only, or more than two.
    """
    if (negative is None) == (labels is None):
        raise InputError("beside collected activations give negative ones, or labels=")
    if negative is not None and not isinstance(negative, Stored):
        raise InputError("positive are collected activations and negative are not; give both alike")
    if isinstance(positions, Token):
        raise InputError("tokens cannot be looked for in collected activations; give a position")
    everything = positions == "all" if isinstance(positions, str) else False
    pos = -1 if isinstance(positions, str) and positions == "last" else positions
    if negative is not None:
        both = [_rows(model, stored, names, pos, everything) for stored in (positive, negative)]
        (first, one), (other, two) = both
        norms = {name: (one[name] + two[name]) / 2 for name in names}
    else:
        rows, norms = _rows(model, positive, names, pos, everything)
        numbers = torch.unique_consecutive(positive.document, return_counts=True)[1]
        listed = several("labels", labels, "a label for each document", InputError)
        kinds = torch.tensor(by_label(of_documents("labels", listed, positive), len(numbers)))
        if everything:
            kinds = kinds.repeat_interleave(numbers)[positive.pos > 0]
        first = {name: line[kinds == 1] for name, line in rows.items()}
        other = {name: line[kinds == 0] for name, line in rows.items()}
    said = positions if isinstance(positions, str) else f"position {shown(positions, 40)}"
    if any(not len(line) for line in (*first.values(), *other.values())):
        raise DataError("one side has no row, so there is nothing to tell the other from")
    return Contrast(first, other, paired=False, norms=norms, positions=said)


def _rows(
    model: HookedModel, stored: Stored, names: Sequence[str], pos: object, everything: bool
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Rows ``[row, d]`` of each site, and the site's mean norm."""
    stored.refuse_another(model)
    later = (stored.pos > 0).nonzero()[:, 0]
    norms = {}
    for name in names:
        site, total = stored[name], 0.0
        for start in range(0, len(later), _TOGETHER):
            part = site[later[start : start + _TOGETHER]].float().flatten(1)
            total += float(part.norm(dim=-1).double().sum())
        norms[name] = total / len(later) if len(later) else float("nan")
    if everything:
        return {name: stored[name][later].float().flatten(1) for name in names}, norms
    vectors: Mapping[str, object] = vectors_of(model, stored, names, cast(int, pos))
    if isinstance(pos, str):
        return {name: _later_means(stored, name) for name in names}, norms
    return {name: torch.tensor(vectors[name]) for name in names}, norms


def _later_means(stored: Stored, name: str) -> Tensor:
    """The mean of each document at a site ``[document, d]``: of all rows but the first, if any."""
    counts = torch.unique_consecutive(stored.document, return_counts=True)[1]
    number = torch.arange(len(counts)).repeat_interleave(counts)
    kept = ((stored.pos > 0) | (counts[number] == 1)).nonzero()[:, 0]
    site, number = stored[name], number[kept]
    total = torch.zeros(len(counts), *site.shape[1:], dtype=torch.float32)
    for start in range(0, len(kept), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        total.index_add_(0, number[part], site[kept[part]].float())
    return total.flatten(1) / number.bincount(minlength=len(counts))[:, None]
