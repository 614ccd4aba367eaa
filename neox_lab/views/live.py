"""The JavaScript that brings a picture to life, and how data reaches it.

A fragment is a picture and tables, its data as JSON, then a script: ``assets/common.js``, the asset
of its kind and what that needs, and ``boot.js``, which calls ``mount(element, data)``. No file is
fetched, nothing is built, no library is needed; a widget takes the same ``source(kind)`` and calls
the same function with a third argument, its host. A script's text is the same for every view of its
kind and never holds data, so a page can name the scripts it allows by their hashes and the browser
refuses others.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ASLEEP = (
    "Scripts are off here: this is a picture, and its numbers. In JupyterLab the command “Trust "
    "Notebook” brings it to life."
)

Nested = float | list["Nested"]
"""Numbers in lists of lists, as deep as an array has axes."""

ASSETS = Path(__file__).parent / "assets"
BUDGET, LIMIT = 1_000_000, 2_000_000  # bytes of a fragment: what it should and what it may have


_PARTS = {
    "attention": ("maps",),
    "attribution_graph": ("saving",),
    "curves": ("plot",),
    "examples": ("pieces",),
    "explorer": (
        *("maps", "saving", "plot", "wiring", "explorer_panels", "explorer_answers"),
        *("explorer_opened", "explorer_drawn", "explorer_steps"),
    ),
    "grid": ("cells",),
    "lens_pair": ("cells",),
    "network": ("maps", "saving", "wiring"),
    "slider": ("cells",),
    "strip": ("pieces",),
}
"""What a kind's script needs beside ``common``, in this order."""

_SHARED = {"boot", "common", *(name for names in _PARTS.values() for name in names)}


def kinds() -> tuple[str, ...]:
    """The names of the assets that have a ``mount`` function."""
    names = sorted(path.stem for path in ASSETS.glob("*.js"))
    return tuple(name for name in names if name not in _SHARED)


@cache
def source(kind: str) -> str:
    """The JavaScript of a kind with its styles; it defines ``mount(element, data, host)``."""
    sheets = ["style.css", *(path.name for path in ASSETS.glob(f"{kind}.css"))]
    style = json.dumps("\n".join(map(_bare, sheets)))
    parts = [_bare(f"{name}.js") for name in ("common", *_PARTS.get(kind, ()), kind)]
    return "\n".join([f"const STYLE = {style};", *parts])


@cache
def script(kind: str) -> str:
    """What stands between ``<script>`` and ``</script>`` in a fragment of a kind."""
    boot = _bare("boot.js")
    return f'(() => {{\n"use strict";\nconst KIND = "{kind}";\n{source(kind)}\n{boot}\n}})();'


def _bare(name: str) -> str:
    """An asset without indentation, empty lines and lines of comment: each view carries it."""
    lines = map(str.strip, (ASSETS / name).read_text(encoding="utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*", "*")))


def fragment(kind: str, data: Mapping[str, Any], picture: str, tables: str) -> str:
    """A view's HTML: what needs no script first, then what makes it answer to a pointer.

    The tables are open until the script runs; then the view tells each number where it is.
    """
    numbers = (
        f'<details class="neox-tables" open><summary>The numbers</summary>\n{tables}\n</details>'
        if tables
        else ""
    )
    return (
        f'<div class="neox-view" data-kind="{kind}">\n<div class="neox-picture">{picture}</div>\n'
        f'{numbers}\n<p class="neox-asleep"><small>{ASLEEP}</small></p>\n'
        f'<script type="application/json">{json_text(data)}</script>\n'
        f"<script>{script(kind)}</script>\n</div>"
    )


def json_text(data: object) -> str:
    """``data`` as JSON that can stand inside a script element; what is not finite becomes null."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _finite(data: object) -> object:
    """Plain lists, dictionaries and numbers without NaN and infinity, which JSON does not have."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, np.ndarray):
        return _finite(data.tolist())
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, np.generic):
        return _finite(data.item())
    return None if isinstance(data, float) and not math.isfinite(data) else data


def rounded(values: NDArray[Any], digits: int = 4) -> list[Any]:
    """``values`` with so many significant digits: what a picture needs, in a third of the bytes."""
    nested: list[Any] = values.astype(np.float64).tolist()
    return [_significant(value, digits) for value in nested]


def _significant(values: Nested, digits: int) -> object:
    if isinstance(values, list):
        return [_significant(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if math.isfinite(values) else None


def packed(levels: NDArray[np.uint8]) -> str:
    """Bytes deflated, as base64 text; ``unpack`` in ``common.js`` reads them.

    Where values hardly repeat, looking for repetitions costs time and space; both ways are tried.
    """
    found = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_FILTERED):
        deflate = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
        found.append(deflate.compress(levels.tobytes()) + deflate.flush())
    return base64.b64encode(min(found, key=len)).decode("ascii")


@cache
def policy() -> str:
    """What a page may do (Content-Security-Policy): run these scripts, fetch nothing."""
    hashes = (hashlib.sha256(script(kind).encode("utf-8")).digest() for kind in kinds())
    allowed = " ".join(f"'sha256-{base64.b64encode(h).decode('ascii')}'" for h in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
