"""What a run keeps: one record for each revision, in memory or in a folder.

In a folder, ``run.json`` says of which model and measure the records are, and each record is a file
of its own that is whole or absent. A run that was killed goes on from there.
"""

from __future__ import annotations

import json
import os
import types
from collections.abc import Iterator, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from neox_lab.dynamics.sources import Revision
from neox_lab.errors import CheckpointError
from neox_lab.files import read_json, write_text
from neox_lab.work_folders import work_folder

Kind: TypeAlias = "type | types.UnionType"
"""What ``isinstance`` takes."""

FORMAT = "neox_lab dynamics 1"
_MANIFEST = "run.json"
_FAULTS = "faults.json"
_Plain = str | int | float | None
Record = dict[str, Any]
"""What is known of one revision: ``revision``, ``step``, ``tokens``, ``version``, ``weights``,
``rows``, ``map`` and ``error``."""


class Records:
    """Records by the names of revisions.

    Args:
        folder: where to keep them; None for memory alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._found: dict[str, Record] = {}

    def get(self, revision: Revision) -> Record | None:
        """The record of a revision as it is now, if it was measured without an error."""
        record = self._found.get(revision.name)
        if record is None or record.get("version") != revision.version or record.get("error"):
            return None
        return record

    def put(self, record: Record) -> None:
        """Keep a record.

        Raises:
            OSError: it cannot be written.
        """
        if self.folder is not None:
            write_text(self._place(str(record["revision"])), json.dumps(record))
        self._found[str(record["revision"])] = record

    def all(self) -> list[Record]:
        """All records."""
        return list(self._found.values())

    def read(self) -> None:
        """Take what the folder holds; a file that is no record counts as absent."""
        if self.folder is None:
            return
        for path in sorted(self.folder.glob("*.record.json")):
            try:
                record = read_json(path)
            except CheckpointError:
                continue
            if _is_record(record):
                self._found[record["revision"]] = record

    def put_faults(self, faults: Mapping[str, Sequence[str]]) -> None:
        """Keep what is wrong with revisions, by their names.

        Raises:
            OSError: it cannot be written.
        """
        if self.folder is not None:
            write_text(self.folder / _FAULTS, json.dumps(faults))

    def faults(self) -> dict[str, list[str]]:
        """What is known to be wrong with revisions, by their names."""
        if self.folder is None or not (self.folder / _FAULTS).is_file():
            return {}
        try:
            found = read_json(self.folder / _FAULTS)
        except CheckpointError:
            return {}
        return {name: list(told) for name, told in found.items() if _all(told, str)}

    def _place(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{quote(name, safe='')}.record.json"


def _is_record(found: Record) -> bool:
    """Whether everything in a file is what ``Run.record`` puts there."""
    texts = (found.get("revision"), found.get("error"))
    counts = [found[name] for name in ("step", "tokens") if found.get(name) is not None]
    names = {"revision", "step", "tokens", "version", "weights", "rows", "map", "error"}
    return (
        names <= set(found)
        and _all(texts, str)
        and isinstance(found["weights"], str | None)
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and _all(found["rows"], dict)
        and all(_all(row.values(), _Plain) for row in found["rows"])
        and (found["map"] is None or _is_map(found["map"]))
    )


def _is_map(found: object) -> bool:
    """Whether a heat map can be drawn of it."""
    if not isinstance(found, dict):
        return False
    labels = [found.get(name) for name in ("row_labels", "column_labels")]
    if not all(_all(each, str) for each in labels):
        return False
    rows, columns = (len(each) for each in labels if isinstance(each, list))
    texts = ("row_axis", "column_axis", "value_name", "title")
    return (
        all(isinstance(found.get(name), str) for name in texts)
        and type(found.get("centre")) in (int, float, types.NoneType)
        and _is_table(found.get("values"), rows, columns, int | float)
        and _is_table(found.get("measured"), rows, columns, bool)
    )


def _is_table(found: object, rows: int, columns: int, kind: Kind) -> bool:
    if not isinstance(found, list) or len(found) != rows:
        return False
    rows_of = [row for row in found if isinstance(row, list) and len(row) == columns]
    return len(rows_of) == rows and all(_all(row, kind) for row in rows_of)


def _all(found: object, kind: Kind) -> bool:
    """Whether it is a list, a tuple or the values of a mapping, all of one kind."""
    if not isinstance(found, list | tuple | ValuesView):
        return False
    return all(isinstance(one, kind) for one in found)


@contextmanager
def opened(to: str | os.PathLike[str] | None, manifest: dict[str, Any]) -> Iterator[Records]:
    """The records of a run, with those of an earlier one of the same measure and model.

    Args:
        to: the folder; None keeps them in memory.
        manifest: what the run is of.

    Raises:
        CheckpointError: the folder holds something else, another run writes into it, or it cannot
            be written.
    """
    if to is None:
        yield Records(None)
        return
    folder = Path(to).expanduser()
    with work_folder(folder, _MANIFEST, "run"):
        _same_run(folder, manifest)
        records = Records(folder)
        records.read()
        yield records


def _same_run(folder: Path, manifest: dict[str, Any]) -> None:
    """Begin a run in a folder, or see that the one it holds is the same.

    Raises:
        CheckpointError: it is another.
    """
    place = folder / _MANIFEST
    if not place.exists():
        write_text(place, json.dumps({"format": FORMAT, **manifest}, indent=1))
        return
    found = read_manifest(folder)
    wrong = [name for name, value in manifest.items() if found.get(name) != value]
    if wrong:
        told = ", ".join(f"{name} {found.get(name)!r}, now {manifest[name]!r}" for name in wrong)
        raise CheckpointError(
            f"{str(folder)!r} holds a run of another kind: {told}. Give another folder. A measure "
            "counts as another when its code, or a value that it uses, has changed."
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder says about its run.

    Raises:
        CheckpointError: it is no folder of a run.
    """
    found = read_json(folder / _MANIFEST)
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{str(folder)!r} is no folder of a run that this version reads: its format is "
            f"{found.get('format')!r}, expected {FORMAT!r}."
        )
    return found
