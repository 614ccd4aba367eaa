"""A stand-in for a model where only its hook table is looked at."""

from __future__ import annotations

from typing import Any


class TableModel:
    """Stands for a model: something with a hook table."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def hook_table(self) -> Any:
        import pandas as pd

        rows = [(name, "[batch, pos]", f"what {name} is", "none") for name in self.names]
        return pd.DataFrame(rows, columns=["name", "shape", "meaning", "aliases"])
