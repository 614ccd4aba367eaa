"""Activations kept from a run, by name.

    output, cache = model.run_with_cache("The cat sat on the mat")
    cache["blocks.0.attn.hook_pattern"]      # or cache["pattern", 0]
    cache.frame                              # what is in it, with shapes and bytes

A cache keeps the network's own tensors without copying them: the network never writes over a
tensor it has shown, and hooks that write get copies of their own (see ``hook_points``). What
follows from a kept tensor by one cheap step (each head's input is the residual stream; each head's
result is its ``z`` times a matrix) is not stored but made when asked for (see ``derived``).
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from neox_lab.errors import HookError, HookNameError, NeoxLabWarning
from neox_lab.frames import make_frame
from neox_lab.hooks import cache_files as files
from neox_lab.hooks.derived import Maker, maker_of, unchanged, weights_seen
from neox_lab.hooks.names import ShortForm, exact
from neox_lab.hooks.residual_decomposition import CacheArithmetic
from neox_lab.hooks.storage import Keeping
from neox_lab.model.hook_points import HookPoint, Watcher
from neox_lab.model.identity import identity, refuse_another
from neox_lab.model.outputs import ModelOutput
from neox_lab.other_names import CACHE, ours
from neox_lab.selections import Selection, read, take
from neox_lab.sizes import size_in_words

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel

_READ_BY_RUN = ("attention_mask", "input_ids", "position_ids")


class ActivationCache(CacheArithmetic, Mapping[str, Tensor]):
    """Activations of one run, by hook name; a read-only mapping from names to tensors.

    Attributes:
        points: every hook point of the model, by name.
        attention_mask: ``[batch, pos]`` with 1 for text and 0 for padding; 4-D where the run had
            such a mask, or texts packed by their positions; or None.
        pieces: the token strings of the first row, or None where no tokenizer was at hand.
        input_ids: ``[batch, pos]``, or None where the run began with vectors.
        position_ids: the positions that were given ``[batch, pos]``, or None.
        has_batch_dim: False for one row without the axis ``batch``, see apply_slice_to_batch_dim.
    """

    def __init__(
        self,
        points: Mapping[str, HookPoint],
        *,
        model: HookedModel | None = None,
        attention_mask: Tensor | None = None,
        pieces: list[str] | None = None,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> None:
        """An empty cache for a model with these hook points."""
        self.points = points
        self._model = model
        self.attention_mask = attention_mask
        self.pieces = pieces
        self.input_ids, self.position_ids = input_ids, position_ids
        self._weights_seen = None if model is None else weights_seen(model.parameters())
        self._stored_identity: object = None  # as it was read from a file
        self._tensors: dict[str, Tensor] = {}
        self._makers: dict[str, Maker] = {}

    def watchers(
        self, points: Sequence[HookPoint], keeping: Keeping, spill: files.SpillFile | None = None
    ) -> list[Watcher]:
        """Watchers that keep what passes ``points`` in this cache, or in a file.

        Args:
            points: where.
            keeping: what is kept of a tensor.
            spill: the file; None for memory.
        """

        def keep(tensor: Tensor, point: HookPoint) -> None:
            kept = keeping(tensor, point)
            if spill is not None:
                kept = spill.put(point.name, kept)
            self._tensors[point.name] = kept

        return [Watcher(point, keep, writes=False) for point in points]

    def gradient_watchers(self, points: Sequence[HookPoint], keeping: Keeping) -> list[Watcher]:
        """Watchers that keep gradients, under the name of the point followed by ``_grad``.

        Args:
            points: where.
            keeping: what is kept of a gradient.
        """

        def keep(gradient: Tensor, point: HookPoint) -> None:
            self._tensors[f"{point.name}_grad"] = keeping(gradient, point)

        return [Watcher(point, keep, direction="backward", writes=False) for point in points]

    def make_on_access(self, name: str, maker: Maker) -> None:
        """Let ``maker`` produce the tensor of ``name`` each time it is asked for."""
        self._makers[name] = maker

    def __getitem__(self, name: str | ShortForm) -> Tensor:
        """The tensor kept at a name, alias or short form such as ``("pattern", 0)``.

        Raises:
            HookNameError: no such hook point, or it was not kept in this run.
        """
        full = name if isinstance(name, str) and name in self._tensors else self._full_name(name)
        if full in self._tensors:
            return self._tensors[full]
        if full in self._makers:
            return self._makers[full](self)
        if full.endswith("_grad"):
            raise HookNameError(
                f"{full!r} is not in this cache: a run keeps gradients if it is told of what, with "
                "run_with_cache(.., incl_bwd=True) of output.loss, or incl_bwd= a function from "
                "the output to a scalar."
            )
        raise HookNameError(
            f"{full!r} is not in this cache, which holds {len(self)} activations. It was left out "
            "by names_filter, or the run did not reach it (start_at_layer, stop_at_layer)."
        )

    def _full_name(self, name: str | ShortForm) -> str:
        short = name[0] if isinstance(name, tuple) and name else name
        if not isinstance(short, str) or not short.endswith("_grad"):
            return exact(name, self.points)
        short = short.removesuffix("_grad")
        asked: Any = (short, *name[1:]) if isinstance(name, tuple) else short
        return exact(asked, self.points) + "_grad"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Called where there is no such attribute.

            Raises:
                AttributeError: always; what TransformerLens calls otherwise is told.
            """
            raise AttributeError(f"ActivationCache has no attribute {name!r}.{ours(name, CACHE)}")

    def __contains__(self, name: object) -> bool:
        """True if the tensor can be had; names, aliases and short forms all count."""
        if not isinstance(name, str | tuple):
            return False
        try:
            full = self._full_name(name)
        except HookNameError:
            return False
        return full in self._tensors or full in self._makers

    def __iter__(self) -> Iterator[str]:
        """Full names, in the order of the forward pass; gradients last."""
        there = self._tensors.keys() | self._makers.keys()
        yield from (name for name in self.points if name in there)
        yield from (name for name in self._tensors if name.endswith("_grad"))

    def __len__(self) -> int:
        """Number of activations that can be had."""
        return len(self._tensors.keys() | self._makers.keys())

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    @property
    def nbytes(self) -> int:
        """Memory the cache holds on to, in bytes; memory that tensors share counts once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor for tensor in self._tensors.values()
        }
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    @property
    def frame(self) -> pd.DataFrame:
        """What can be had: name, shape, axes, dtype, megabytes, and whether it is stored.

        Activations made on access have no shape and size here: asking would make them.
        """
        rows = []
        for name in self:
            tensor = self._tensors.get(name)
            rows.append(
                {
                    "name": name,
                    "axes": " ".join(self._axes(name)),
                    "stored": tensor is not None,
                    "shape": None if tensor is None else tuple(tensor.shape),
                    "dtype": "" if tensor is None else str(tensor.dtype).removeprefix("torch."),
                    "megabytes": 0.0 if tensor is None else tensor.nbytes / 1e6,
                }
            )
        return make_frame(rows)

    def __repr__(self) -> str:
        """Count and size."""
        made = len(self._makers.keys() - self._tensors.keys())
        tail = f", {made} of them made on access" if made else ""
        return f"ActivationCache({len(self)} activations{tail}; {size_in_words(self.nbytes)})"

    def to(self, device: torch.device | str) -> Self:
        """A cache with the stored tensors on ``device``; what is made on access stays as it is."""
        moved = copy.copy(self)
        moved._makers = dict(self._makers)
        moved._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        return moved

    def apply_slice_to_batch_dim(self, batch_slice: Selection) -> Self:
        """A cache of some rows, as views where that is possible; this one stays as it is.

        Args:
            batch_slice: rows to keep. One number gives a cache without the axis ``batch``, which
                all arithmetic takes as well: ``[component, pos, d_model]``.

        Raises:
            HookError: there is no such row, or no axis ``batch``.
        """
        if batch_slice is None:
            return copy.copy(self)
        if not self.has_batch_dim:
            raise HookError("This cache is of one row and has no axis batch to take rows of.")
        which = read("batch_slice", batch_slice, HookError)

        def rows(tensor: Tensor) -> Tensor:
            return take(tensor, 0, which, "batch_slice", HookError)

        def made(maker: Maker, _: Mapping[str, Tensor]) -> Tensor:
            return rows(maker(self))

        part = copy.copy(self)
        part._tensors = {name: rows(tensor) for name, tensor in self._tensors.items()}
        part._makers = {name: partial(made, maker) for name, maker in self._makers.items()}
        for name, given in self.read_by_run().items():  # one row may stand for all
            each = given if len(given) == self._rows else given.expand(self._rows, *given.shape[1:])
            setattr(part, name, rows(each))
        part.has_batch_dim = not isinstance(which, int)
        part.pieces = part._pieces_now() if self._rows > 1 else self.pieces
        return part

    def remove_batch_dim(self) -> Self:
        """A cache without the axis ``batch``, which must have length 1; this one stays as it is.

        Raises:
            HookError: there are several rows.
        """
        if self.has_batch_dim and self._rows != 1:
            raise HookError(
                f"This cache is of {self._rows} rows. Take one with apply_slice_to_batch_dim(row)."
            )
        return self.apply_slice_to_batch_dim(0 if self.has_batch_dim else None)

    @property
    def _rows(self) -> int:
        """Length of the axis ``batch``; 1 in an empty cache."""
        return len(next(iter(self._tensors.values()), (None,)))

    def _pieces_now(self) -> list[str] | None:
        """The token strings of the first row, if they can be known."""
        if self._model is None or self.input_ids is None:
            return None
        rows = self.input_ids if self.has_batch_dim else self.input_ids[None]
        return self._model.pieces_of({"input_ids": rows}) if len(rows) else None

    def __copy__(self) -> Self:
        """A cache that shares its activations with this one."""
        twin = type(self).__new__(type(self))
        twin.__dict__ |= self.__dict__
        return twin

    def __getstate__(self) -> dict[str, object]:
        """For pickle: everything as tensors, for what makes them is not written."""
        tensors = {name: self[name] for name in self}
        known = {"_weights_seen": None, "_stored_identity": self._identity()}
        return self.__dict__ | {"_tensors": tensors, "_makers": {}} | known

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the stored tensors, names and token strings to a safetensors file.

        Activations that are made on access are not written; name them in ``names_filter`` to
        store them.

        Returns:
            The file's path.

        Raises:
            CheckpointError: the file cannot be written.
        """
        files.write(Path(path), self._tensors | self.read_by_run(), self.description())
        return Path(path)

    def read_by_run(self) -> dict[str, Tensor]:
        """What the run read besides weights: ids, positions and mask, those that there are."""
        named = {name: getattr(self, name) for name in _READ_BY_RUN}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def description(self) -> dict[str, object]:
        """What a file needs besides tensors: token strings, hook points, and whose they are."""
        points = [
            [point.name, point.layer, " ".join(point.axes), point.meaning, list(point.aliases)]
            for point in self.points.values()
        ]
        of = self._identity()
        return {
            "pieces": self.pieces,
            "points": points,
            "derived": list(self._makers),
            "model": of,
            "has_batch_dim": self.has_batch_dim,
        }

    def _identity(self) -> object:
        """Which model ran; None where it is not known, or its weights have changed since."""
        if self._model is None or self._weights_seen is None:
            return self._stored_identity
        same = unchanged(self._model.parameters(), self._weights_seen)
        return identity(self._model) if same else None

    @property
    def model(self) -> HookedModel | None:
        """The model that ran; None for a cache loaded from a file without one."""
        return self._model

    def check_model(self, model: HookedModel) -> None:
        """Compare the model that ran with the one that these activations are put into.

        Activations of other weights are taken with a warning, for patching across models is a
        question of its own (Prakash et al., arXiv:2402.14811).

        Args:
            model: where they are put.

        Raises:
            CheckpointError: a model of another structure or with another tokenizer ran.
            HookError: the activations are of one row, without the axis ``batch``.
        """
        if not self.has_batch_dim:
            raise HookError(
                "This cache is of one row, without the axis batch, so nothing can be patched from "
                "it. Give the whole cache, or take one row with apply_slice_to_batch_dim([row])."
            )
        ran: Any = None
        changed = False
        if self._model is not None and self._weights_seen is not None:
            changed = not unchanged(self._model.parameters(), self._weights_seen)
        if not changed:
            if self._model is model:
                return
            ran = self._identity()
            if ran is None:
                return  # nobody knows
            here = identity(model)
            refuse_another([ran[0], None, ran[2]], here, "The cache")
            changed = ran[1] != here.weights
        if changed:
            warnings.warn(
                "The cache is of a run with other weights than those of the model that gets "
                "patched: this patches across models.",
                NeoxLabWarning,
                stacklevel=2,
            )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: HookedModel | None = None
    ) -> ActivationCache:
        """A cache that ``save`` wrote, or that a run spilled; tensors are memory-mapped.

        Args:
            path: the file.
            model: the model that ran, for arithmetic that needs its weights.

        Raises:
            CheckpointError: there is no such file, it is not a cache, or it is of another model.
        """
        tensors, description = files.read(Path(path))
        points = files.described_points(Path(path), description)
        pieces: Any = description["pieces"]
        if model is not None:
            refuse_another(description.get("model"), identity(model), f"The cache {path!s:.200}")
        read_by_run = {name: tensors.pop(name) for name in _READ_BY_RUN if name in tensors}
        mask = read_by_run.get("attention_mask")
        if mask is not None and description.get("has_batch_dim") is False:
            mask = mask[None]
        cache = cls(points, model=model, pieces=pieces, **read_by_run)
        cache._tensors = tensors
        cache.has_batch_dim = description.get("has_batch_dim") is not False
        cache._weights_seen, cache._stored_identity = None, description.get("model")
        if model is not None:
            derived: Any = description["derived"]
            for point in (model.hook_points[name] for name in derived if name in model.hook_points):
                if point.follows_from and all(base in cache for base in point.follows_from):
                    maker = maker_of(point, model, mask)
                    made = maker if cache.has_batch_dim else partial(_of_one_row, maker, point)
                    cache.make_on_access(point.name, made)
        return cache


def _of_one_row(maker: Maker, point: HookPoint, kept: Mapping[str, Tensor]) -> Tensor:
    """What ``maker`` makes of activations without the axis ``batch``."""
    return maker({name: kept[name][None] for name in point.follows_from})[0]


def run_backward(
    output: ModelOutput, target: bool | Callable[[Any], Tensor], weights: Iterable[Tensor]
) -> None:
    """Backpropagate from the scalar that ``incl_bwd`` names, for the hooks on the way.

    Gradients of leaves are handed back instead of added up in ``.grad``, so nothing has to be put
    back there, and threads that backpropagate through one model do not meet.

    Args:
        output: what the model returned.
        target: True for ``output.loss``, or a function from the output to a scalar.
        weights: leaves whose ``.grad`` stays what it is; those of others are added up.

    Raises:
        HookError: there is no such scalar, or it has no gradient.
    """
    scalar = target(output) if callable(target) else output.get("loss")
    if scalar is None:
        raise HookError(
            "incl_bwd=True backpropagates from output.loss, and this run computed none. Pass "
            "labels=, or incl_bwd= a function from the output to a scalar."
        )
    if not isinstance(scalar, Tensor):
        raise HookError(f"incl_bwd needs a scalar; got a {type(scalar).__name__}.")
    if scalar.dim() != 0:
        raise HookError(f"incl_bwd needs a scalar; got a tensor of shape {list(scalar.shape)}.")
    leaves = _leaves(scalar)
    if not leaves:
        raise HookError(
            "incl_bwd has nothing to backpropagate to: neither a weight nor what was given wants a "
            "gradient (requires_grad)."
        )
    own = {id(weight) for weight in weights}
    found = torch.autograd.grad(scalar, leaves, allow_unused=True)
    for leaf, gradient in zip(leaves, found, strict=True):
        if id(leaf) not in own and gradient is not None:
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _leaves(scalar: Tensor) -> list[Tensor]:
    """The tensors at which gradients of ``scalar`` would be added up."""
    if scalar.grad_fn is None:
        return [scalar] if scalar.requires_grad else []
    ahead, seen, found = [scalar.grad_fn], {scalar.grad_fn}, []
    while ahead:
        node = ahead.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                ahead.append(before)
    return found
