"""From views to what the browser draws: the same scripts as in a saved notebook, in a live frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neox_lab.views import View
from neox_lab.views.live import json_text, source

ASSETS = Path(__file__).parent / "assets"


def panel(key: str, view: View) -> dict[str, Any]:
    """One picture of a widget.

    ``key`` is its name within the widget: a panel with the same key and data is left as it is.
    """
    return {"key": key, "asset": view.asset, "data": json.loads(json_text(view.data()))}


def script(kinds: tuple[str, ...]) -> str:
    """The module a widget sends to the browser: ``live.js`` and the views' scripts of ``kinds``."""
    style = json.dumps((ASSETS / "live.css").read_text(encoding="utf-8"))
    mounts = ",\n".join(
        f"{json.dumps(kind)}: (() => {{\n{source(kind)}\nreturn mount;\n}})()" for kind in kinds
    )
    live = (ASSETS / "live.js").read_text(encoding="utf-8")
    return f'"use strict";\nconst LIVE_STYLE = {style};\nconst MOUNTS = {{{mounts}}};\n{live}'
