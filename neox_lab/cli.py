"""The command ``neox-lab``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from neox_lab import __version__
from neox_lab.errors import NeoxLabError

INTERRUPTED = 130  # as shells count: 128 and the signal's number
UNREAD = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; return the exit status."""
    given = _parser().parse_args(arguments)
    _print_anything()
    try:
        return _run(given)
    except NeoxLabError as error:
        print(f"neox-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("neox-lab: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except OSError as error:
        print(f"neox-lab: {error}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    if given.command == "tour":
        from neox_lab.tour import run

        run(given.model, given.prompt, given.out)
        sys.stdout.flush()
        return 0
    from neox_lab import laboratory

    if given.command == "explore":
        return laboratory.explore(
            given.model, given.prompt, given.second, given.folder, given.port, given.allow_root
        )
    return laboratory.open_notebooks(given.folder, given.port, given.allow_root)


def _print_anything() -> None:
    """Print what a terminal's character set lacks as escapes instead of failing at it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neox-lab", description="Look inside GPT-NeoX and Pythia models."
    )
    parser.add_argument("--version", action="version", version=f"neox_lab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    tour = commands.add_parser("tour", help="load, generate, cache, look, patch; print and report")
    tour.add_argument("--model", help="directory or hub id; default: the built-in model")
    tour.add_argument("--prompt", help="text for the model to read")
    tour.add_argument(
        "--out", type=Path, default=Path("neox-lab-tour.html"), help="report to write (%(default)s)"
    )
    lab = commands.add_parser("lab", help="open JupyterLab on the notebooks")
    lab.add_argument(
        "--folder",
        type=Path,
        help="where they are or are copied to; default: notebooks of a "
        "checkout one stands in, else neox_lab_notebooks",
    )
    explore = commands.add_parser("explore", help="open JupyterLab on the explorer")
    explore.add_argument("--model", help="directory or hub id; default: the built-in model")
    explore.add_argument("--prompt", help="text for the model to read")
    explore.add_argument("--second", help="another one to compare with")
    explore.add_argument(
        "--folder", type=Path, default=Path(), help="where its notebook is written (%(default)s)"
    )
    for command in (lab, explore):
        command.add_argument("--port", type=int, help="where JupyterLab listens")
        command.add_argument("--allow-root", action="store_true", help="let root run JupyterLab")
    return parser


if __name__ == "__main__":
    sys.exit(main())
