"""The command ``neox-lab``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neox_lab.errors import NeoxLabError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``neox-lab tour`` or ``neox-lab lab``; return the exit status."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "tour":
            from neox_lab.tour import run

            run(given.model, given.prompt, given.out)
            return 0
        return _open_lab()
    except NeoxLabError as error:
        print(f"neox-lab: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neox-lab", description="Look inside GPT-NeoX and Pythia models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    tour = commands.add_parser("tour", help="load, generate, cache, look, patch; print and report")
    tour.add_argument("--model", help="directory or hub id; default: the built-in model")
    tour.add_argument("--prompt", help="text for the model to read")
    tour.add_argument(
        "--out", type=Path, default=Path("neox-lab-tour.html"), help="report to write (%(default)s)"
    )
    commands.add_parser("lab", help="open JupyterLab on the notebooks")
    return parser


def _open_lab() -> int:
    """Start JupyterLab in the folder of notebooks, or here if there is none."""
    import importlib.util
    import subprocess

    if importlib.util.find_spec("jupyterlab") is None:
        print("neox-lab: JupyterLab is not installed; pip install 'neox_lab[lab]'", file=sys.stderr)
        return 1
    notebooks = Path("notebooks")
    folder = notebooks if notebooks.is_dir() else Path()
    return subprocess.call([sys.executable, "-m", "jupyterlab", str(folder)])


if __name__ == "__main__":
    sys.exit(main())
