"""Which files make a checkpoint.

Weights lie in one file or in several *shards* with an index that says which tensor is in
which shard; either as safetensors or as PyTorch's older ``.bin``. The first of these that
exists is the checkpoint::

    model.safetensors
    model.safetensors.index.json   -> model-00001-of-00002.safetensors, ...
    pytorch_model.bin
    pytorch_model.bin.index.json   -> pytorch_model-00001-of-00002.bin, ...

A *variant* such as ``fp16`` stands before the extension: ``model.fp16.safetensors``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from neox_lab.errors import CheckpointError
from neox_lab.files import read_json
from neox_lab.hub import (
    HubOptions,
    PathOrId,
    check_no_save_was_killed,
    find_file,
    list_files,
)

Format = Literal["safetensors", "bin"]

WHOLE_FILES: dict[Format, str] = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
INDEX_SUFFIX = ".index.json"


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The files of one checkpoint.

    Attributes:
        format: how the files are written.
        paths: the one file, or all shards in the order of their names.
        index: for shards, tensor name -> file name; None for a single file.
    """

    format: Format
    paths: tuple[Path, ...]
    index: dict[str, str] | None = None


def with_variant(filename: str, variant: str | None) -> str:
    """``model.safetensors`` -> ``model.fp16.safetensors``; unchanged without a variant."""
    if not variant:
        return filename
    stem, extension = filename.rsplit(".", 1)
    return f"{stem}.{variant}.{extension}"


def find_weights(
    source: PathOrId,
    options: HubOptions,
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> WeightFiles:
    """Find the weights of a source, downloading them if need be.

    Args:
        source: directory or hub id.
        options: where and how to look, see ``HubOptions``.
        variant: look only for files of this variant.
        use_safetensors: True for safetensors only, False for ``.bin`` only, None for both.

    Raises:
        CheckpointError: no weight file, a missing shard, an index that cannot be trusted, or a
            save that was killed half-way.
    """
    looked_for = []
    for format, filename in WHOLE_FILES.items():
        if use_safetensors is not None and use_safetensors != (format == "safetensors"):
            continue
        whole = with_variant(filename, variant)
        path = find_file(source, whole, options, required=False)
        if path is not None:
            return WeightFiles(format, (path,))
        index_name = with_variant(filename + INDEX_SUFFIX, variant)
        path = find_file(source, index_name, options, required=False)
        if path is not None:
            index = read_index(path)
            return WeightFiles(format, _find_shards(source, options, path, index), index)
        # The other format's weights would be read with a configuration that may not be theirs.
        check_no_save_was_killed(source, options, whole, index_name, "config.json")
        looked_for += [whole, index_name]
    present = list_files(source, options)
    raise CheckpointError(
        f"There are no weights in {str(source)!r}. Looked for {', '.join(looked_for)}; "
        f"there is {', '.join(present) or 'nothing'}."
    )


def read_index(path: Path) -> dict[str, str]:
    """The index of a sharded checkpoint: tensor name -> name of a file in the same directory.

    Only names are judged, not where links lead: the hub's cache keeps its files behind links.

    Raises:
        CheckpointError: it is not such a table, or names files elsewhere.
    """
    try:
        table = read_json(path)["weight_map"]
        names = set(table.values())
    except (CheckpointError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no index of shards: expected JSON with a table 'weight_map' "
            f"({type(error).__name__}: {error})."
        ) from error
    for name in names:
        if not isinstance(name, str) or not _is_plain(name):
            raise CheckpointError(
                f"{path} names the file {name!r}: shards must lie beside their index, so only "
                "plain file names are followed."
            )
    return dict(table)


def _is_plain(name: str) -> bool:
    """Whether the name, read as a path of any system, stays in its directory."""
    same = PurePosixPath(name).name == name == PureWindowsPath(name).name
    return same and name not in ("", "..") and "\0" not in name


def _find_shards(
    source: PathOrId, options: HubOptions, index_path: Path, index: dict[str, str]
) -> tuple[Path, ...]:
    names = sorted(set(index.values()))
    if not names:
        raise CheckpointError(f"{index_path} lists no tensors.")
    paths = {name: find_file(source, name, options, required=False) for name in names}
    found = [path for path in paths.values() if path is not None]
    if len(found) < len(names):
        absent = [name for name, path in paths.items() if path is None]
        raise CheckpointError(
            f"{len(absent)} of {len(names)} shards named in {index_path} are missing: "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}. "
            "Copy or download them again."
        )
    return tuple(found)
