"""A frame whose texts are there to be read: it prints them whole."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

SHOWN = ("display.max_colwidth", None, "display.max_columns", None, "display.width", 200)


class WholeTexts(pd.DataFrame):
    """A ``pandas.DataFrame``, and what is taken from it; cells are printed uncut.

    pandas cuts texts after 50 characters, and leaves out columns on narrow screens.
    """

    @property
    def _constructor(self) -> Callable[..., WholeTexts]:
        return WholeTexts

    def __repr__(self) -> str:
        with pd.option_context(*SHOWN):
            return super().__repr__()

    def _repr_html_(self) -> str | None:
        with pd.option_context(*SHOWN):
            html: str | None = super()._repr_html_()  # type: ignore[misc]
            return html
