"""What every result can do: show itself as its view, in a notebook, a terminal and a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neox_lab.views import View


class Shown:
    """A result that is shown as its ``view()``.

    ``to_png``, ``to_svg``, ``to_pdf``, ``to_html`` and ``to_csv`` are those of the view. A
    dataclass that inherits this is declared with ``repr=False``.
    """

    def view(self) -> View:
        """The picture."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """The view's text."""
        return repr(self.view())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = self.view()._repr_mimebundle_(include, exclude)
        return bundle | {"text/plain": repr(self)} if "text/plain" in bundle else bundle

    def __getattr__(self, name: str) -> Any:
        """Files are written by the view."""
        if name.startswith("to_"):
            return getattr(self.view(), name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
