"""Short names for the parts of a model that an attribution speaks of."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

from neox_lab.head_names import head_name
from neox_lab.views.tokens import label

if TYPE_CHECKING:
    import pandas as pd


def part_names(frame: pd.DataFrame) -> list[str]:
    """A short name for each row of a frame: ``L2H1``, ``L2 ·the@3``, ``L0H1 → MLP3``."""
    return [_part_name(row) for row in frame.to_dict("records")]


def _part_name(row: Mapping[Hashable, object]) -> str:
    if "writer" in row:
        where = f" {label(str(row['token']))}" if "token" in row else ""
        return f"{row['writer']} → {row['reader']}{where}"
    parts = [str(row["component"])] if "component" in row else []
    if "layer" in row:
        layer = row["layer"]
        parts.append(head_name(layer, row["head"]) if "head" in row else f"L{layer}")
    if "latent" in row:
        parts.append(f"f{row['latent']}")
    for pos, token in (("pos", "token"), ("source_pos", "source_token")):
        if pos in row:
            parts.append(f"{label(str(row[token]))}@{row[pos]}")
    return " ".join(parts)
