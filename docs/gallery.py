"""The gallery's pictures: what each block of ``docs/gallery.md`` ends with, drawn.

``python docs/gallery.py`` draws them into ``docs/gallery/``, which git does not keep. ``make docs``
calls it, and the site shows each below its block.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
from pathlib import Path

from PIL import Image

from neox_lab.results import Result
from neox_lab.views import View

PAGE = Path(__file__).with_suffix(".md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DPI = 110


def shown(page: Path = PAGE) -> dict[int, View | Result]:
    """What the blocks of a page end with, by their number; they go on from each other."""
    names: dict[str, object] = {}
    found = {}
    for at, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
        *lines, last = ast.parse(block).body
        ends = isinstance(last, ast.Expr)
        exec(compile(ast.Module(lines if ends else [*lines, last], []), page.name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), page.name, "eval"), names)
            if not isinstance(value, View | Result):
                raise TypeError(f"block {at} ends with {type(value).__name__}: no picture")
            found[at] = value
    return found


def small(picture: bytes) -> bytes:
    """A PNG in no more colours than it needs."""
    coverage = Image.Quantize.MAXCOVERAGE  # small areas keep their colour
    coloured = Image.open(io.BytesIO(picture)).convert("RGB")
    out = io.BytesIO()
    coloured.quantize(256, coverage, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def draw(folder: Path) -> None:
    """Write ``00.png`` and so on, and what each shows in words to ``words.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {}
    for at, value in shown().items():
        view = value.view() if isinstance(value, Result) else value
        (folder / f"{at:02}.png").write_bytes(small(view.to_png(dpi=DPI)))
        words[f"{at:02}"] = view.alt_text
    (folder / "words.json").write_text(json.dumps(words), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    folder = PAGE.with_suffix("")
    parser.add_argument("--to", type=Path, default=folder, help="folder (%(default)s)")
    draw(parser.parse_args().to)
