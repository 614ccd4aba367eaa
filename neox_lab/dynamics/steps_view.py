"""The steps of training on a line."""

from __future__ import annotations

from typing import Any

from neox_lab.views import StripView
from neox_lab.views.markup import Table


class StepsView(StripView):
    """A strip of steps with sentences below it, whole."""

    def data(self) -> dict[str, Any]:
        """The strip, with the sentences above it."""
        made = super().data()
        return made | {"notes": [*(str(row["finding"]) for row in self.found), *made["notes"]]}

    def tables(self) -> list[Table]:
        """The sentences."""
        rows = [[str(row["finding"])] for row in self.found]
        return [Table(self.caption, [("finding", "l")], rows)]
