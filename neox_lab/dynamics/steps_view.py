"""The steps of training on a line."""

from __future__ import annotations

from neox_lab.views import StripView
from neox_lab.views.markup import Table


class StepsView(StripView):
    """A strip of steps with sentences below it, whole."""

    def tables(self) -> list[Table]:
        """The sentences."""
        rows = [[str(row["finding"])] for row in self.found]
        return [Table(self.caption, [("finding", "l")], rows)]
