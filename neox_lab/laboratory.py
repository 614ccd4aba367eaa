"""JupyterLab on the notebooks, or on one that explores a prompt.

The notebooks come with the package, so that a wheel is enough: they are copied to a folder of the
user's, where they can be changed. What is there already is left as it is.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from neox_lab.errors import InputError
from neox_lab.files import write_bytes, write_text

FIRST = "00_start_here.ipynb"
FOLDER = Path("neox_lab_notebooks")
PROMPTS = ("The best school of Sweden is in", "The best school of Russia is in")


def notebooks() -> Path | None:
    """Where the notebooks of the package or of its checkout are; None if they are missing."""
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if (folder / FIRST).is_file():
            return folder
    return None


def open_notebooks(folder: Path | None, port: int | None, as_root: bool) -> int:
    """Open ``00_start_here`` in JupyterLab.

    Args:
        folder: where the notebooks are, or are copied to; by default ``notebooks`` of a checkout
            one stands in, else ``neox_lab_notebooks``.
        port: where JupyterLab listens; its own choice by default.
        as_root: let root run it.

    Returns:
        JupyterLab's exit status.

    Raises:
        InputError: JupyterLab is not installed, there are no notebooks, or they cannot be copied.
    """
    _check_installed()
    if folder is None:
        here = Path("notebooks")
        folder = here if (here / FIRST).is_file() else FOLDER
    _copy_missing(folder)
    return _start(folder / FIRST, port, as_root)


def explore(
    model: str | None,
    prompt: str | None,
    second: str | None,
    folder: Path,
    port: int | None,
    as_root: bool,
) -> int:
    """Open a notebook with the explorer in JupyterLab, run already.

    Args:
        model: directory or hub id; None for the built-in model.
        prompt: what it reads; None for an example.
        second: another prompt to compare with.
        folder: where the notebook ``explore.ipynb`` is written.
        port: where JupyterLab listens.
        as_root: let root run it.

    Returns:
        JupyterLab's exit status.

    Raises:
        InputError: JupyterLab is not installed, or the notebook cannot be written.
    """
    _check_installed()
    if prompt == "":
        raise InputError("--prompt is empty: write a text for the model to read.")
    if prompt is None:
        prompt, second = PROMPTS[0], PROMPTS[1] if second is None else second
    texts = [repr(text) for text in (prompt, second) if text]
    load = "nl.load()" if model is None else f"nl.load({model!r})"
    code = f"import neox_lab as nl\n\nnl.explore({', '.join([load, *texts])})"
    path = _free(_made(folder), "explore")
    write_text(path, _notebook(code))
    return _start(path, port, as_root)


def _notebook(code: str) -> str:
    """A notebook of one cell, run once so that it shows something before anybody runs it."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    cell = nbformat.v4.new_code_cell(code)  # type: ignore[no-untyped-call]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(  # type: ignore[no-untyped-call]
        cells=[cell], metadata={"kernelspec": kernel}
    )
    try:
        NotebookClient(made, timeout=None).execute()
    except CellExecutionError as error:
        raise InputError(
            f"The explorer could not be shown: {error.ename}: {error.evalue}"
        ) from None
    made.metadata.pop("widgets", None)
    return str(nbformat.writes(made))  # type: ignore[no-untyped-call]


def _check_installed() -> None:
    if importlib.util.find_spec("jupyterlab") is None:
        raise InputError("JupyterLab is not installed; pip install 'neox_lab[lab]'")


def _made(folder: Path) -> Path:
    """The folder, which is there and can be written to.

    Raises:
        InputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"There can be no folder {str(folder)!r}: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"The folder {str(folder)!r} cannot be written to.")
    return folder


def _free(folder: Path, name: str) -> Path:
    """A path of this name that nothing has yet."""
    path, number = folder / f"{name}.ipynb", 2
    while path.exists():
        path, number = folder / f"{name}-{number}.ipynb", number + 1
    return path


def _copy_missing(folder: Path) -> None:
    """Copy the notebooks that are not in ``folder`` yet.

    Raises:
        InputError: there are none to copy, or the folder cannot be written to.
    """
    source = notebooks()
    if source is None:
        if (folder / FIRST).is_file():
            return
        raise InputError(
            "The notebooks are not part of this installation; get them from the source."
        )
    if folder.resolve() == source.resolve():
        return
    _made(folder)
    missing = [path for path in sorted(source.glob("*.ipynb")) if not (folder / path.name).exists()]
    for path in missing:
        write_bytes(folder / path.name, path.read_bytes())
    if missing:
        print(f"{len(missing)} notebooks copied to {folder}")


def _start(path: Path, port: int | None, as_root: bool) -> int:
    """Run JupyterLab on a notebook until it ends."""
    command = [sys.executable, "-m", "jupyterlab", str(path)]
    if port is not None:
        command.append(f"--port={port}")
    if as_root:
        command.append("--allow-root")
    return subprocess.call(command)
