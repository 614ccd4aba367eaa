"""What every picture of a result can do: be seen, be read, be saved.

A ``View`` holds plain arrays and labels. Shown in a notebook it is a picture and a table, and a
script that lets a reader point at them; none needs a kernel or a network, so they are still there
when the file is opened a year later, and where scripts are cut picture and table remain. Shown in a
terminal it is an aligned summary. ``.frame`` has every number behind it, and
``.to_png``, ``.to_svg``, ``.to_pdf``, ``.to_html`` and ``.to_csv`` make files for a paper. The same
view gives the same bytes each time.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from neox_lab.checks import TEXT, check, number, or_none, several, shown
from neox_lab.errors import InputError
from neox_lab.files import write_bytes
from neox_lab.frames import csv_text
from neox_lab.sizes import size_in_words
from neox_lab.views.drawing import FormatName, Sheet, encode, plain_style, preview
from neox_lab.views.live import fragment
from neox_lab.views.markup import Table, image, page
from neox_lab.views.tokens import html_text, sentence

if TYPE_CHECKING:
    import pandas as pd

PREVIEW_BYTES = 90_000
TITLE_LIMIT = 120


class View(ABC):
    """One result as picture, table and text. Subclasses say what is drawn and what is said.

    ``asset`` is the script in ``assets/`` that brings ``data()`` to life.
    """

    asset: ClassVar[str]
    note: str = ""  # a line below the headline

    def __init__(self, title: str | None, otherwise: str = "") -> None:
        """Name the view.

        Args:
            title: the headline.
            otherwise: the headline where ``title`` is None or empty.

        Raises:
            InputError: it is no text.
        """
        given = check("title", title, or_none(TEXT), InputError)
        self.title = sentence(given or otherwise, TITLE_LIMIT)

    @property
    @abstractmethod
    def frame(self) -> pd.DataFrame:
        """Every number behind the picture, one row for each (tidy), tokens as they are."""

    @property
    @abstractmethod
    def alt_text(self) -> str:
        """What the picture shows, in words, for readers who do not see it."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """The numbers worth reading, as small tables."""

    @abstractmethod
    def _draw(self) -> Sheet:
        """The picture."""

    @abstractmethod
    def data(self) -> dict[str, Any]:
        """What the script gets, in the shape that the head of its file describes."""

    def _sketch(self) -> Sheet:
        """The picture for a notebook, where files must stay small; with less in it if need be."""
        return self._draw()

    def _running_text(self) -> str:
        """HTML between the picture and the tables; nothing, unless a subclass has some."""
        return ""

    def to_png(self, path: str | os.PathLike[str] | None = None, dpi: float = 200) -> bytes:
        """The picture as PNG at ``dpi`` dots an inch; also written to ``path`` (``*.png``).

        Raises:
            InputError: ``dpi`` is no number from 10 to 1200, or ``path`` has another ending.
        """
        dpi = check("dpi", dpi, number(least=10, most=1200), InputError)
        return FileBytes(self._saved(path, ".png", self._encoded("png", dpi)))

    def to_svg(self, path: str | os.PathLike[str] | None = None) -> str:
        """The picture as SVG, its letters as outlines; also written to ``path`` (``*.svg``)."""
        return FileText(self._saved(path, ".svg", self._encoded("svg", 144)), "utf-8")

    def to_pdf(self, path: str | os.PathLike[str] | None = None) -> bytes:
        """The picture as PDF with embedded TrueType; also written to ``path`` (``*.pdf``)."""
        return FileBytes(self._saved(path, ".pdf", self._encoded("pdf", 144)))

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """``.frame`` as CSV; also written to ``path`` (``*.csv``)."""
        text = csv_text(self.frame)
        self._saved(path, ".csv", utf8(text))
        return text

    def to_html(self, path: str | os.PathLike[str] | None = None, standalone: bool = False) -> str:
        """The live view, picture and tables as HTML that fetches nothing; also written to ``path``.

        A fragment to put into a page, or with ``standalone`` (and always in a file) a whole page
        for light and dark.
        """
        text = self._fragment(*self._preview())
        if standalone or path is not None:
            text = page(self.title, f"<h1>{html_text(self.title)}</h1>\n{text}")
        self._saved(path, ".html", utf8(text))
        return FileText(text)

    def _repr_mimebundle_(
        self,
        include: Container[str] | None = None,
        exclude: Container[str] | None = None,
    ) -> dict[str, Any]:
        """What a notebook stores: text for terminals, HTML for pages, PNG for everything else."""

        def wanted(kind: str) -> bool:
            return (include is None or kind in include) and (exclude is None or kind not in exclude)

        bundle: dict[str, Any] = {}
        if wanted("text/plain"):
            bundle["text/plain"] = repr(self)
        if wanted("text/html") or wanted("image/png"):
            png, width = self._preview()
            if wanted("text/html"):
                bundle["text/html"] = self._fragment(png, width)
            if wanted("image/png"):
                bundle["image/png"] = png
        return bundle

    def __repr__(self) -> str:
        tables = [table.to_text() for table in self.tables()]
        return "\n\n".join(filter(None, [self.title, self.note, self.alt_text, *tables]))

    def _encoded(self, form: FormatName, dpi: float) -> bytes:
        """The picture's bytes in one of matplotlib's formats."""
        with plain_style():
            return encode(self._draw().figure, form, dpi)

    def _preview(self) -> tuple[bytes, int]:
        """A PNG small enough for a notebook, with its width on a page in pixels."""
        with plain_style():
            return preview(self._sketch().figure, PREVIEW_BYTES)

    def _fragment(self, png: bytes, width: int) -> str:
        """The picture first, then what can be read, then the script."""
        tables = "\n".join(table.to_html() for table in self.tables())
        picture = image(png, f"{self.title}. {self.alt_text}", width)
        return fragment(self.asset, self.data(), f"{picture}\n{self._running_text()}", tables)

    def _saved(self, path: str | os.PathLike[str] | None, ending: str, content: bytes) -> bytes:
        """``content``, written to ``path`` if there is one and its ending is the right one."""
        if path is not None:
            write_file(path, ending, content)
        return content


class FileBytes(bytes):
    """What is in a file, as bytes: a notebook that shows it gets its size and not all of it."""

    def __repr__(self) -> str:
        """How much it is."""
        return f"<{size_in_words(len(self))}>"


class FileText(str):
    """What is in a file, as text: a notebook that shows it gets its size and not all of it."""

    __slots__ = ()

    def __repr__(self) -> str:
        """How much it is."""
        return f"<{len(self):,} characters>"


def write_file(path: str | os.PathLike[str], ending: str, content: bytes) -> Path:
    """Write ``content`` to ``path`` so that nobody ever sees half of it; its folder is made.

    Raises:
        InputError: ``path`` does not end in ``ending``.
        OSError: as ``open`` does.
    """
    target = Path(path)
    if target.suffix.lower() != ending:
        raise InputError(
            f"this writes {ending[1:].upper()} and needs a path ending in {ending!r}; got "
            f"{str(target)!r}. Files: to_png .png, to_svg .svg, to_pdf .pdf, to_html .html, "
            f"to_csv .csv"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content)
    return target


def utf8(text: str) -> bytes:
    """``text`` as UTF-8; half of a surrogate pair, which UTF-8 cannot hold, is spelled out."""
    return text.encode("utf-8", "backslashreplace")


def array(values: object, axes: str, name: str) -> NDArray[np.float32]:
    """``values`` (NumPy, a tensor on any device, nested lists) as float32 with the named axes.

    Args:
        values: what somebody gave.
        axes: such as ``"layer head query key"``.
        name: what it is, for messages.

    Raises:
        InputError: it holds no numbers, or has another number of axes.
    """
    try:
        if hasattr(values, "detach"):
            values = cast(Any, values).detach().float().cpu().numpy()
        result = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{name} must be numbers with the axes [{axes.replace(' ', ', ')}]; got "
            f"{shown(values)} ({shown(error)})"
        ) from error
    if result.ndim != len(axes.split()):
        raise InputError(
            f"{name} must have the axes [{axes.replace(' ', ', ')}]; got shape {result.shape}"
        )
    return result


def texts(values: object, count: int, name: str, what: str) -> list[str]:
    """``values`` as a list of ``count`` texts.

    Raises:
        InputError: one string, something else than strings, or another number of them.
    """
    listed = several(name, values, f"a list of strings, one for each {what}", InputError)
    if not all(isinstance(entry, str) for entry in listed):
        raise InputError(f"{name} must be a list of strings, one for each {what}")
    if len(listed) != count:
        raise InputError(f"{name} has {len(listed)} entries; needed: {count}, one for each {what}")
    return listed
