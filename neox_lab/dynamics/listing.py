"""The revisions of a model as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from neox_lab.dynamics.sources import Revision, digest, source_of
from neox_lab.frames import make_frame
from neox_lab.hub import PathOrId
from neox_lab.hub_revisions import Files

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["revision", "step", "tokens", "weights", "files", "sizes", "hashes", "place"]


def revisions(name: PathOrId | None = None) -> pd.DataFrame:
    """Which revisions there are, and what each holds; no weights are fetched.

    Of a repository on the hub this asks for metadata alone: one request for the names, and one for
    each commit that nobody asked about before. Files in a directory are hashed,
    large ones in parts unless these are equal in two revisions.

    Args:
        name: an id on the hub, a directory whose folders are checkpoints (``step1000``,
            ``checkpoint-500``), or None for the built-in model.

    Returns:
        One row a revision, by step: ``revision``; ``step``, missing where the name says none;
        ``tokens`` seen in training: 2,097,152 a step for Pythia, elsewhere what the checkpoint
        itself says (``num_input_tokens_seen`` in ``trainer_state.json``, ``tokens_per_step`` in
        ``config.json``), missing where nothing says so; ``weights``, 12 digits that are equal for
        equal files of weights; ``files``, ``sizes`` and ``hashes``, a list each; ``place``, the
        commit or the directory.

    Raises:
        CheckpointError: there is no such model, it has no revisions, or it cannot be reached.
    """
    source = source_of(name)
    found = source.revisions()
    return _frame(found, source.contents(found))


def _frame(found: Iterable[Revision], contents: Mapping[str, Files]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for each in found:
        files = contents.get(each.name, {})
        rows.append(
            {
                "revision": each.name,
                "step": each.step,
                "tokens": each.tokens,
                "weights": digest(files),
                "files": list(files),
                "sizes": [file.size for file in files.values()],
                "hashes": [file.content for file in files.values()],
                "place": each.place,
            }
        )
    return whole_numbers(make_frame(rows, COLUMNS), "step", "tokens")


def whole_numbers(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The frame with columns of whole numbers that may be missing.

    Args:
        frame: any.
        columns: their names.
    """
    return frame.astype(dict.fromkeys(columns, "Int64"))
