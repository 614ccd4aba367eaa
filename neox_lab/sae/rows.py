"""What dictionaries are trained on: rows of activations, in batches whose order a seed decides.

rows_of(tensor, ...)                  [row, d], in memory
rows_of((x, y), ...)                  what is read and what is written, for transcoders
rows_of(model, ..., texts=texts)      every token of texts, computed now, kept in memory
rows_of(stored, ...)                  nl.activations on the disk
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from neox_lab.activations import Stored
from neox_lab.checks import require_model, several, shown
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import pad_rows, token_ids
from neox_lab.data.tables import check_lengths
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.family.contract import HookedModel
from neox_lab.hooks.names import ShortForm, exact

Site = str | ShortForm
Texts = Sequence[str] | Sequence[list[int]]
_TEXTS = "at least two texts for the model to read"
SAMPLE = 16_384  # rows from which means and norms are estimated


class Part(NamedTuple):
    """Rows in memory.

    Attributes:
        x: what is read ``[row, d_in]``.
        y: what is to be written ``[row, d_out]``.
        document: of each row ``[row]``.
    """

    x: Tensor
    y: Tensor
    document: Tensor

    def take(self, rows: Tensor) -> Part:
        """Some rows, by number or mask."""
        return Part(self.x[rows], self.y[rows], self.document[rows])


class Rows(Protocol):
    """Rows to train on and rows to measure on.

    Attributes:
        site_in: hook point, or what the user called it.
        site_out: likewise.
        held_out: rows of documents that are not trained on, in memory.
        what: where they come from, in words.
    """

    site_in: str
    site_out: str
    held_out: Part
    what: str

    def __len__(self) -> int:
        """How many there are to train on."""

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Each once, in an order of this epoch's own: what is read and what is to be written."""


class InMemory:
    """Rows in memory, see ``Rows``."""

    def __init__(self, part: Part, held_out: Part, sites: tuple[str, str], what: str) -> None:
        self.part, self.held_out, self.what = part, held_out, what
        self.site_in, self.site_out = sites

    def __len__(self) -> int:
        return len(self.part.x)

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Rows``."""
        generator = torch.Generator().manual_seed(_of_epoch(seed, number))
        for rows in torch.split(torch.randperm(len(self), generator=generator), batch_size):
            x = self.part.x[rows]
            yield x, x if self.part.y is self.part.x else self.part.y[rows]


class OnDisk:
    """Rows of ``nl.activations``, see ``Rows``."""

    def __init__(self, train: Stored, held_out: Stored, sites: tuple[str, str], what: str) -> None:
        self.train, self.what = train, what
        self.site_in, self.site_out = sites
        names: list[str | tuple[str, int]] = list(dict.fromkeys(sites))
        parts = list(held_out.batches(names, SAMPLE, seed=None))
        x, y = (torch.cat([part[name].float().flatten(1) for part in parts]) for name in sites)
        self.held_out = Part(x, y, held_out.document)

    def __len__(self) -> int:
        return len(self.train)

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Rows``."""
        names: list[str | tuple[str, int]] = list(dict.fromkeys((self.site_in, self.site_out)))
        for batch in self.train.batches(names, batch_size, seed=_of_epoch(seed, number)):
            yield batch[self.site_in].flatten(1), batch[self.site_out].flatten(1)


def _of_epoch(seed: int, number: int) -> int:
    """The seed of an epoch's order, which large seeds do not take out of int64."""
    return (seed * 1_000_003 + number) % 2**63


def rows_of(
    source: object,
    texts: Texts | None,
    site: Site | None,
    site_out: Site | None,
    held_out: float,
    seed: int,
) -> Rows:
    """The rows of a source; see ``train`` for the arguments.

    Raises:
        InputError: nothing that has rows, or rows that are not finite or too few.
        HookNameError: the model has no such site.
    """
    if isinstance(source, Tensor | tuple | list):
        if texts is not None:
            raise InputError("texts are read by a model; the source is activations already.")
        return _of_tensors(source, site, site_out, held_out, seed)
    if not isinstance(source, Stored):
        require_model(source)
    if site is None:
        raise InputError("site is missing: which hook point, such as ('resid_post', 2)?")
    if isinstance(source, Stored):
        sites = (source.site_name(site), source.site_name(site if site_out is None else site_out))
        what = f"{len(source):,} rows of {source.manifest.model}"
        return OnDisk(*source.split(held_out, seed), sites, what)
    model: HookedModel = source  # type: ignore[assignment]
    given: Texts = several("texts", texts, _TEXTS, InputError)
    if len(given) < 2:
        raise InputError(f"texts={shown(texts)}; expected {_TEXTS}.")
    sites = (
        exact(site, model.hook_points),
        exact(site if site_out is None else site_out, model.hook_points),
    )
    for name in sites:
        axes = model.hook_points[name].axes
        if axes[:2] != ("batch", "pos") or len(axes) < 3:
            raise InputError(f"{name!r} is [{', '.join(axes)}]; a row is what a token has there.")
    part = tokens_of(model, given, *sites)
    name = str(model.config.name_or_path or "a model")
    return _divided(part, sites, f"{len(given):,} texts of {name}", held_out, seed)


def tokens_of(
    model: HookedModel, texts: Texts, site: str, site_out: str, batch_size: int = 32
) -> Part:
    """Activations of every token of texts, in the order of the texts.

    Args:
        model: with a tokenizer, if there are texts.
        texts: what it reads, or its token ids, at most as long as it can.
        site: hook name of what is read.
        site_out: and of what is written.
        batch_size: texts in one forward pass.

    Raises:
        InputError: dropout is on, or there is no token.
        DataError: a text is longer than the model can read.
    """
    found, document = activations_of(model, texts, (site, site_out), batch_size)
    return Part(found[site], found[site_out], document)


def activations_of(
    model: HookedModel, texts: Texts, names: Sequence[str], batch_size: int = 32
) -> tuple[dict[str, Tensor], Tensor]:
    """Activations of every token of texts at several sites, in the order of the texts.

    Args:
        model: with a tokenizer, if there are texts.
        texts: what it reads, or its token ids, at most as long as it can.
        names: hook names.
        batch_size: texts in one forward pass.

    Returns:
        By hook name ``[token, d]``, float32, axes after pos joined; and the text of each token.

    Raises:
        InputError: dropout is on, or there is no token.
        DataError: a text is longer than the model can read.
    """
    refuse_dropout(model)
    ids = ids_of(model, texts)
    check_lengths(ids, model.config.max_position_embeddings, "Shorten these texts.")
    lengths = [len(row) for row in ids]
    names = list(dict.fromkeys(names))
    layers = [model.hook_points[name].layer for name in names]
    last = None if None in layers else max(layer for layer in layers if layer is not None) + 1
    found: dict[str, list[Tensor]] = {
        name: [torch.empty(0, dtype=torch.float32)] * len(ids) for name in names
    }
    for rows in by_length(model, [max(1, length) for length in lengths], batch_size):
        rows = [row for row in rows if lengths[row]]
        if not rows:
            continue
        batch, _ = pad_rows([ids[row] for row in rows], 0)  # where causal attention never looks
        _, cache = model.run_with_cache(batch.to(model.device), names, stop_at_layer=last)
        for name in names:
            for row, values in zip(rows, cache[name].float().flatten(2), strict=True):
                found[name][row] = values[: lengths[row]].clone()
    kept = [row for row, length in enumerate(lengths) if length]
    if not kept:
        raise InputError("no text has a token")
    counts = torch.tensor([lengths[row] for row in kept])
    joined = {name: torch.cat([found[name][row] for row in kept]) for name in names}
    return joined, torch.tensor(kept).repeat_interleave(counts)


def ids_of(model: HookedModel, texts: Texts) -> list[list[int]]:
    """Token ids of texts that are texts or token ids.

    Raises:
        InputError: they are something else, or tokens that the model does not have.
    """
    if all(isinstance(text, str) for text in texts):
        return token_ids(model, cast(Sequence[str], texts))
    size = model.config.vocab_size
    for row, text in enumerate(texts):
        good = isinstance(text, list) and all(type(i) is int and 0 <= i < size for i in text)
        if not good:
            raise InputError(
                f"text {row} is {shown(text)}; expected texts, or lists of token ids below {size}."
            )
    return cast(list[list[int]], list(texts))


def _of_tensors(
    source: object, site: Site | None, site_out: Site | None, held_out: float, seed: int
) -> Rows:
    """Rows of one tensor, or of a pair of them; each is a document of its own."""
    pair = source if isinstance(source, tuple | list) else (source, source)
    if len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        raise InputError(f"source={shown(source)}; expected a tensor, or a pair (x, y) of tensors.")
    x, y = pair
    same = x is y
    for name, tensor in (("x", x), ("y", y)):
        kept = tensor.layout == torch.strided and not tensor.is_meta
        if tensor.dim() != 2 or not tensor.is_floating_point() or not tensor.shape[1] or not kept:
            what = f"{tensor.dtype} {list(tensor.shape)}"
            what += "" if kept else f", {tensor.layout}, on {tensor.device}"
            raise InputError(
                f"{name} is {what}; expected floating-point activations [row, d], dense."
            )
    x, y = x.detach(), y.detach()
    if len(x) != len(y):
        raise InputError(f"x has {len(x)} rows and y {len(y)}; a row of one belongs to one.")
    for name, value in (("site", site), ("site_out", site_out)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{name}={shown(value)}; of tensors, a site is a name.")
    first = str(site or "activations")
    second = str(site_out or (first if same else "outputs"))
    if same != (first == second):
        raise InputError("An autoencoder has one tensor and one site, a transcoder two of each.")
    document = torch.arange(len(x))
    return _divided(Part(x, y, document), (first, second), "a tensor", held_out, seed)


def _divided(part: Part, sites: tuple[str, str], what: str, held_out: float, seed: int) -> InMemory:
    """Rows to train on and rows of other documents to measure on.

    Raises:
        InputError: rows that are not finite, or too few documents.
    """
    for tensor in (part.x, part.y):
        finite = torch.isfinite(tensor).all(1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise InputError(
                f"{int((~finite).sum())} of {len(tensor)} rows are NaN or infinite, the first is "
                f"row {row}"
            )
    documents = torch.unique(part.document)
    count = max(1, round(held_out * len(documents)))
    if count >= len(documents):
        raise InputError(f"{len(documents)} documents; some to train on and some to measure on.")
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    tested = torch.isin(part.document, documents[order[:count]])
    train, test = part.take(~tested), part.take(tested)
    if sites[0] == sites[1]:
        train, test = train._replace(y=train.x), test._replace(y=test.x)
    return InMemory(train, test, sites, what)
