"""From views to what the browser draws: the scripts of saved notebooks, in a live frame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neox_lab.views import View
from neox_lab.views.live import json_text, source

ASSETS = Path(__file__).parent / "assets"


def panel(
    key: str, view: View, on: Mapping[str, str] | None = None, beside: bool = False
) -> dict[str, Any]:
    """One picture of a widget.

    Args:
        key: its name within the widget: a panel with the same key and data is left as it is.
        view: what is drawn.
        on: what the widget is asked for, by what the picture emits (see the views' scripts).
        beside: whether it stands beside others where there is room.
    """
    data = json.loads(json_text(view.data()))
    return {"key": key, "asset": view.asset, "data": data, "on": dict(on or {}), "beside": beside}


def choices(key: str, title: str, names: Sequence[str], chosen: int, action: str) -> dict[str, Any]:
    """A row of buttons, one of them pressed; another one asks for ``action(choice=number)``."""
    data = {"title": title, "names": list(names), "chosen": chosen}
    return {"key": key, "asset": "choices", "data": data, "on": {"choose": action}, "beside": False}


def script(kinds: tuple[str, ...]) -> str:
    """The module a widget sends to the browser: ``live.js`` and the views' scripts of ``kinds``."""
    style = json.dumps((ASSETS / "live.css").read_text(encoding="utf-8"))
    mounts = ",\n".join(
        f"{json.dumps(kind)}: (() => {{\n{source(kind)}\nreturn mount;\n}})()" for kind in kinds
    )
    live = (ASSETS / "live.js").read_text(encoding="utf-8")
    return f'"use strict";\nconst LIVE_STYLE = {style};\nconst MOUNTS = {{{mounts}}};\n{live}'
