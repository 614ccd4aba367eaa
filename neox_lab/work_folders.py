"""Folders that one piece of work has for itself, and in which it goes on after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from neox_lab.errors import CheckpointError
from neox_lab.files import alone


@contextmanager
def work_folder(folder: Path, mark: str, work: str) -> Iterator[None]:
    """Keep a folder to oneself for the time of a block.

    Args:
        folder: made if need be.
        mark: the file that all work of this kind has there; without it, anything but hidden files
            is somebody else's.
        work: what the work is called in messages, such as ``"training"``.

    Raises:
        CheckpointError: it holds something else, or another process works in it.
        OSError: it cannot be made, read or locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others and mark not in others:
        raise CheckpointError(
            f"{str(folder)!r} holds other things ({', '.join(others[:3])}); give a new or empty "
            f"folder, or that of an earlier {work}."
        )
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(folder / ".lock"))
        except BlockingIOError as error:
            raise CheckpointError(
                f"Another {work} writes into {str(folder)!r}; wait for it, or give another folder."
            ) from error
        yield
