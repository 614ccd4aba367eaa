"""What every answer does: it is seen, read and saved.

A question of this package is a function and its answer a ``Result``. In a notebook a result is its
picture with tables, in a terminal text; ``.frame`` has its numbers, tidy, and ``to_png``,
``to_svg``, ``to_pdf``, ``to_html`` and ``to_csv`` make files for a paper:

    result = nl.patching.sweep(model, clean, corrupted, metric)
    result                     # the picture
    result.frame               # the numbers
    result.to_svg("sweep.svg")

A class of results says what its ``frame`` and its ``view()`` are; the rest comes with the base.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Container
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import View


class Result(ABC):
    """An answer, shown as its ``view()``. Nothing is drawn before it is asked for."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Keep the text of results: a dataclass writes its own ``__repr__`` where a class has none.

        Args:
            arguments: those of the class statement.
        """
        super().__init_subclass__(**arguments)
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

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
            InputError: ``path`` has another ending.
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

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, Any]:
        """What a notebook stores: the view, with the text of the result itself."""
        bundle = self.view()._repr_mimebundle_(include, exclude)
        return bundle | {"text/plain": repr(self)} if "text/plain" in bundle else bundle
