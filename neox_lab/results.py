"""What every answer does: it is seen, read and saved.

A question of this package is a function and its answer a ``Result``. In a notebook a result is its
picture with tables, in a terminal text; ``.frame`` has its numbers, tidy, and ``to_png``,
``to_svg``, ``to_pdf``, ``to_html`` and ``to_csv`` make files for a paper:

    result = nl.patching.sweep(model, clean, corrupted, metric)
    result                     # the picture
    result.frame               # the numbers
    result.to_svg("sweep.svg")

A class of results says what its ``frame`` and its ``view()`` are; the rest comes with the base.

Most answers are numbers over named axes, such as layers and positions: each is a ``GridResult``,
with the largest cells (``top``) and with ``save`` and ``load``. A saved result is a safetensors
file: its tensors, and in the header ``kind`` (the class) and ``fields`` (everything that is no
tensor, as JSON, where a number may be ``NaN``). Reading one runs no code.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import check, name_not_finite, whole
from neox_lab.errors import CheckpointError, InputError
from neox_lab.frames import csv_text, make_frame
from neox_lab.safetensors_files import FileFormat

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import View


class Result(ABC):
    """An answer, shown as its ``view()``. Nothing is drawn before it is asked for."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Keep what results do: a dataclass writes methods of its own where a class has none.

        Args:
            arguments: those of the class statement.
        """
        super().__init_subclass__(**arguments)
        for name in ("__repr__", "__eq__", "__hash__"):
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))

    if TYPE_CHECKING:  # a property in some subclasses and a field in others, so not of this class

        @property
        def frame(self) -> pd.DataFrame:
            """The numbers, one row for each (tidy)."""

    @abstractmethod
    def view(self) -> View:
        """The picture."""

    def to_png(self, path: str | os.PathLike[str] | None = None, dpi: float = 200) -> bytes:
        """The picture as PNG.

        Args:
            path: where to write it too (``*.png``).
            dpi: dots an inch.

        Raises:
            InputError: ``path`` has another ending, or ``dpi`` is no number from 10 to 1200.
        """
        return self.view().to_png(path, dpi)

    def to_svg(self, path: str | os.PathLike[str] | None = None) -> str:
        """The picture as SVG, its letters as outlines.

        Args:
            path: where to write it too (``*.svg``).

        Raises:
            InputError: ``path`` has another ending.
        """
        return self.view().to_svg(path)

    def to_pdf(self, path: str | os.PathLike[str] | None = None) -> bytes:
        """The picture as PDF with embedded TrueType.

        Args:
            path: where to write it too (``*.pdf``).

        Raises:
            InputError: ``path`` has another ending.
        """
        return self.view().to_pdf(path)

    def to_html(self, path: str | os.PathLike[str] | None = None, standalone: bool = False) -> str:
        """The live view, picture and tables as HTML that fetches nothing.

        Args:
            path: where to write it too (``*.html``), as a whole page.
            standalone: a whole page rather than a fragment to put into one.

        Raises:
            InputError: ``path`` has another ending.
        """
        return self.view().to_html(path, standalone)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The numbers of the picture as CSV.

        Args:
            path: where to write it too (``*.csv``).

        Raises:
            InputError: ``path`` has another ending.
        """
        return self.view().to_csv(path)

    def __repr__(self) -> str:
        """The view's text."""
        return repr(self.view())

    def __eq__(self, other: object) -> bool:
        """Whether the other is the same answer: one of its kind, with equal fields.

        NaN equals NaN. What a result only holds on to, such as a model, does not count.
        """
        if type(self) is not type(other) or not dataclasses.is_dataclass(self):
            return NotImplemented
        return all(
            _equal(getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
            if not field.name.startswith("_") and field.compare
        )

    def __hash__(self) -> int:
        """The same for all results of a kind, since numbers in arrays may change."""
        return hash(type(self))

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, Any]:
        """What a notebook stores: the view, with the text of the result itself."""
        bundle = self.view()._repr_mimebundle_(include, exclude)
        return bundle | {"text/plain": repr(self)} if "text/plain" in bundle else bundle


class FrameResult(Result):
    """An answer whose ``frame`` says more than its picture: that is what ``to_csv`` writes."""

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """``frame`` as CSV.

        Args:
            path: where to write it too (``*.csv``).

        Raises:
            InputError: ``path`` has another ending.
        """
        from neox_lab.views.base import utf8, write_file

        text = csv_text(self.frame)
        if path is not None:
            write_file(path, ".csv", utf8(text))
        return text


_FORMAT = FileFormat("result", "neox_lab result 1")
_TOKENS = {"pos": "token", "source_pos": "source_token"}  # what labels of these axes are
_NUMBERED = ("layer", "head", *_TOKENS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridResult(FrameResult):
    """Numbers over named axes.

    Attributes:
        values: a number for each cell ``[*axes]``, float32 or float64 on the CPU; NaN where none
            was computed, and where NaN was. Cells of the latter kind are named in a warning when
            the result is made.
        axes: names of the axes, such as ``("layer", "pos")``.
        labels: of each axis, a name for each index.
        computed: True for each cell that was computed ``[*axes]``; None if all were.
    """

    values: Tensor
    axes: tuple[str, ...]
    labels: dict[str, list[str]]
    computed: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that values, axes and labels fit together.

        Raises:
            InputError: they do not.
        """
        for name in _saved_fields(type(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                object.__setattr__(self, name, _plain(value))
        if not self.values.is_floating_point():
            raise InputError(
                f"values must be floating-point numbers; these are {self.values.dtype}."
            )
        for axis, names in self.labels.items():
            wrong = [name for name in names if not isinstance(name, str)]
            if wrong:
                raise InputError(f"labels[{axis!r}] holds {wrong[0]!r}; expected strings.")
        named = tuple(len(self.labels.get(axis, ())) for axis in self.axes)
        if named != self.values.shape:
            raise InputError(
                f"values have the shape {list(self.values.shape)}, but the labels of the axes "
                f"({', '.join(self.axes)}) name {list(named)} places."
            )
        if self.computed is not None and (
            self.computed.dtype != torch.bool or self.computed.shape != self.values.shape
        ):
            raise InputError(
                f"computed is {self.computed.dtype} {list(self.computed.shape)}; expected True or "
                f"False for each cell, {list(self.values.shape)}."
            )
        bad = (~self.values.isfinite() & self.is_computed).nonzero().tolist()
        if bad:
            name_not_finite(self._what(), map(self._place, bad))

    @property
    def is_computed(self) -> Tensor:
        """True for each cell that was computed."""
        everywhere = torch.ones(self.values.shape, dtype=torch.bool)
        return everywhere if self.computed is None else self.computed

    def _what(self) -> str:
        """What the numbers are, in a warning."""
        return f"A value of this {type(self).__name__}"

    def _place(self, index: Sequence[int]) -> str:
        """A cell in words."""
        named = zip(self.axes, index, strict=True)
        return " ".join(f"{a} {i if a in _NUMBERED else self.labels[a][i]}" for a, i in named)

    def _columns(self) -> dict[str, Tensor]:
        """The numbers of each cell, by the names of their columns in ``frame``."""
        return {"value": self.values}

    def _rank(self, frame: pd.DataFrame) -> pd.Series[float]:
        """How large each row of ``frame`` counts for ``top``."""
        return frame["value"].abs()

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each cell that was computed: its place, and its numbers.

        Places are numbers for ``layer``, ``head``, ``pos`` and ``source_pos`` (with the tokens
        there in ``token`` and ``source_token``), and names for other axes.
        """
        columns: dict[str, object] = {}
        for axis, index in zip(self.axes, np.indices(self.values.shape), strict=True):
            names = np.array(self.labels[axis], dtype=object)[index.ravel()]
            columns[axis] = index.ravel() if axis in _NUMBERED else names
            if axis in _TOKENS:
                columns[_TOKENS[axis]] = names
        columns |= {name: tensor.flatten().numpy() for name, tensor in self._columns().items()}
        frame = make_frame(columns)
        if self.computed is None:
            return frame
        return frame[self.computed.flatten().numpy()].reset_index(drop=True)

    def top(self, count: int = 10) -> pd.DataFrame:
        """The cells with the largest numbers of either sign, the largest first.

        Args:
            count: how many.

        Returns:
            Rows of ``frame``; NaN is no largest number.

        Raises:
            InputError: ``count`` is no number of cells.
        """
        count = check("count", count, whole(least=0), InputError)
        frame = self.frame
        order = self._rank(frame).dropna().sort_values(ascending=False, kind="stable").index
        return frame.loc[order[:count]].reset_index(drop=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything, but no model, to a safetensors file.

        Args:
            path: where; a file that is there is replaced when the new one is complete.

        Returns:
            The file's path.

        Raises:
            CheckpointError: the file cannot be written.
        """
        content = {name: getattr(self, name) for name in _saved_fields(type(self))}
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        fields = {name: value for name, value in content.items() if name not in tensors}
        _FORMAT.write(path, tensors, {"kind": type(self).__name__, "fields": fields})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """A result that ``save`` wrote. It no longer knows its model.

        Args:
            path: the file.

        Raises:
            CheckpointError: there is no such file, it is damaged, or it is something else.
        """
        path = Path(path)
        try:
            earlier = cls._read_earlier(path)
            content = _read(cls, path) if earlier is None else earlier
            values = content.get("values")
            if "computed" not in content and isinstance(values, Tensor):
                content["computed"] = ~values.isnan() if bool(values.isnan().any()) else None
            return cls(**typed(cls, _saved_fields(cls), content))
        except CheckpointError:
            raise
        except (ArithmeticError, OSError, ValueError, TypeError, KeyError) as error:
            what = f"Cannot read a {cls.__name__} from {str(path)!r}"
            raise CheckpointError(f"{what}: {error}") from error

    @classmethod
    def _read_earlier(cls, path: Path) -> dict[str, object] | None:
        """What a file of an earlier format holds, by the names of fields; None if it is none."""
        return None


def _plain(tensor: Tensor) -> Tensor:
    """A tensor as results keep it: on the CPU, without gradient, and no narrower than float32."""
    tensor = tensor.detach().cpu()
    narrow = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.float() if narrow else tensor


def _equal(one: object, other: object) -> bool:
    """Whether two values of fields are equal, whatever they are."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        one, other = one.detach().cpu().numpy(), cast(Tensor, other).detach().cpu().numpy()
    if isinstance(one, np.ndarray):
        rest = cast("np.ndarray[Any, Any]", other)
        numbers = one.dtype.kind in "fc"
        return one.dtype == rest.dtype and np.array_equal(one, rest, equal_nan=numbers)
    if isinstance(one, Mapping):
        rest_of = cast(Mapping[Any, Any], other)
        return list(one) == list(rest_of) and all(_equal(one[k], rest_of[k]) for k in one)
    if isinstance(one, list | tuple):
        items = cast(Sequence[object], other)
        return len(one) == len(items) and all(map(_equal, one, items))
    if dataclasses.is_dataclass(one) and not isinstance(one, Result | type):
        names = [field.name for field in dataclasses.fields(one)]
        return all(_equal(getattr(one, name), getattr(other, name)) for name in names)
    if hasattr(one, "equals"):  # a table
        return bool(one.equals(other))
    return one is other or bool(one == other) or (one != one and other != other)


def bad_rows(numbers: Tensor, computed: Tensor) -> list[str]:
    """Which rows of ``[row, *axes]`` hold NaN or infinity in a cell that was computed.

    Args:
        numbers: of each pair or text.
        computed: which cells were, ``[*axes]``.
    """
    if numbers.shape[1:] != computed.shape:  # an error in words comes after this
        return []
    bad = ~numbers.isfinite() & computed
    return [str(row) for row, cells in enumerate(bad) if bool(cells.any())]


def _saved_fields(kind: type[GridResult]) -> dict[str, dataclasses.Field[Any]]:
    """The fields that go into a file: all but private ones, which hold on to a model."""
    return {f.name: f for f in dataclasses.fields(kind) if not f.name.startswith("_")}


def _read(kind: type[GridResult], path: Path) -> dict[str, object]:
    """What ``save`` wrote, by the names of fields.

    Raises:
        CheckpointError: it is something else than a result of this kind.
    """
    tensors, description = _FORMAT.read(path)
    if description.get("kind") != kind.__name__:
        raise CheckpointError(
            f"{str(path)!r} holds a result of the kind {description.get('kind')}; it is not a "
            f"saved {kind.__name__}. Each kind is read by its own load."
        )
    fields = description.get("fields")
    if not isinstance(fields, dict):
        raise TypeError("it has no fields")
    # Copies: a tensor that stays in the file changes with it.
    return fields | {name: tensor.clone() for name, tensor in tensors.items()}


def typed(
    kind: type[object],
    fields: Mapping[str, dataclasses.Field[Any]],
    content: Mapping[str, object],
) -> dict[str, Any]:
    """Arguments for a class of data, each checked against the type of its field.

    Args:
        kind: the class.
        fields: those of its fields that are wanted, by name.
        content: what was read.

    Raises:
        TypeError: a field is missing, unknown or of another type.
    """
    hints = typing.get_type_hints(kind)
    for name in content:
        if name not in fields:
            raise TypeError(f"there is no field {name!r}")
    arguments = {}
    for name, field in fields.items():
        if name in content:
            try:
                arguments[name] = _as(content[name], hints[name])
            except TypeError:
                expected = str(hints[name]).removeprefix("<class '").removesuffix("'>")
                raise TypeError(f"{name!r} should be {expected}") from None
        elif field.default is dataclasses.MISSING:
            raise TypeError(f"the field {name!r} is missing")
    return arguments


def _as(value: object, hint: object) -> Any:
    """What was read, as the type ``hint``; lists of JSON become tuples where one is expected.

    Raises:
        TypeError: it is of another type.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is object:
        return value
    if origin is types.UnionType:
        if value is None and types.NoneType in inner:
            return None
        (hint,) = (each for each in inner if each is not types.NoneType)
        return _as(value, hint)
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_as(each, inner[0]) for each in value)
    if origin is dict and isinstance(value, dict):
        return {_as(key, inner[0]): _as(each, inner[1]) for key, each in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError
    return value
