"""Notebooks as files: what to take out before they are kept, and what is wrong with one.

Widgets do not outlive their kernel, but Jupyter stores their whole state, megabytes of it, and
tools that find it show the dead widget instead of the picture beside it. Timings of cells change
with every run. Pictures, tables and texts are what readers come for, and stay.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, TypeGuard

from neox_lab.checks import check, number, shown
from neox_lab.errors import InputError
from neox_lab.files import parse_json
from neox_lab.views.base import utf8, write_file

LARGEST = 1_500_000  # bytes of a notebook
TIMING = "execution"  # where Jupyter writes when a cell began and ended
# Folders that exist on one machine only.
ABSOLUTE = re.compile(r"(?<![\w/.:<-])/(?:home|Users|root|tmp|var|mnt|private|work)/[^\s\"'<>]+")


def clean_notebook(path: str | os.PathLike[str]) -> bool:
    """Take widget state and timings out of a notebook file, in place; outputs stay.

    Returns:
        Whether there was something to take out. A clean file is not touched.

    Raises:
        InputError: the file is no notebook.
    """
    notebook = _read(path)
    before = json.dumps(notebook)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        cell.get("metadata", {}).pop(TIMING, None)
    if json.dumps(notebook) == before:
        return False
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    write_file(path, ".ipynb", utf8(text))
    return True


def notebook_faults(path: str | os.PathLike[str], largest: int = LARGEST) -> list[str]:
    """What a notebook that others read should not have, in words; an empty list if all is well.

    Widget state, timings, errors, paths of one machine in outputs, cells run out of order or not
    at all, more than ``largest`` bytes.

    Args:
        path: of the file.
        largest: so many bytes are not too many.

    Raises:
        InputError: the file is no notebook.
    """
    check("largest", largest, number(least=0), InputError)
    notebook = _read(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    counts = [cell.get("execution_count") for cell in cells]
    size = Path(path).stat().st_size
    faults = []
    if size > largest:
        faults.append(f"it has {size:,} bytes; at most {largest:,} are read with pleasure")
    if "widgets" in notebook["metadata"]:
        faults.append("it holds the state of widgets; clean_notebook takes it out")
    if any(TIMING in cell.get("metadata", {}) for cell in notebook["cells"]):
        faults.append("it holds timings of cells; clean_notebook takes them out")
    if counts != list(range(1, len(counts) + 1)):
        faults.append(f"its cells were run as {counts}; restart the kernel and run all")
    for cell, count in zip(cells, counts, strict=True):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                named = f"{output.get('ename')}: {output.get('evalue')}"
                faults.append(f"cell {count} ends in {named:.1000}")
    for found in sorted({match for output in outputs for match in _paths(output)}):
        faults.append(f"an output holds a path of this machine: {found}")
    return faults


def _paths(output: dict[str, Any]) -> list[str]:
    """Absolute paths in what an output shows."""
    parts = [output.get("text", ""), output.get("traceback", "")]
    data = output.get("data", {})
    parts += [data[kind] for kind in data if kind.startswith("text/") or kind.endswith("+json")]
    texts = ["".join(map(str, text)) if isinstance(text, list) else str(text) for text in parts]
    # Pictures inside HTML are base64, where any letters may follow a slash.
    return ABSOLUTE.findall("\n".join(re.sub(r"base64,[^\"]*", "", text) for text in texts))


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A notebook in which everything that is looked at here is of the type it should be.

    Raises:
        InputError: the file is no notebook.
    """
    try:
        notebook = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{shown(path)} is no notebook: {error}") from error
    if not _has(notebook, metadata=dict, cells=list) or not all(map(_is_cell, notebook["cells"])):
        raise InputError(
            f"{os.fspath(path)!r} is no notebook: expected metadata and a list of cells; of those "
            "with code each with a list of outputs"
        )
    found: dict[str, Any] = notebook
    return found


def _is_cell(cell: object) -> bool:
    if not _has(cell, cell_type=str) or not isinstance(cell.get("metadata", {}), dict):
        return False
    if cell["cell_type"] != "code":
        return True
    return _has(cell, outputs=list) and all(map(_is_output, cell["outputs"]))


def _is_output(output: object) -> bool:
    return _has(output, output_type=str) and isinstance(output.get("data", {}), dict)


def _has(value: object, **kinds: type) -> TypeGuard[dict[str, Any]]:
    """Whether it is an object of JSON with these entries of these types."""
    return isinstance(value, dict) and all(isinstance(value.get(n), k) for n, k in kinds.items())
