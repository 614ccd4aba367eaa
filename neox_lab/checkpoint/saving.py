"""A model into a directory that Hugging Face's tools read too.

Everything is first written under temporary names in the same directory. Only when all of it
is on disk do the files take their real names, each in one step, and only then do files of an
earlier save go. So a failed save leaves the old checkpoint as it was, and the files from which
a model's weights are mapped are never written to: they live on until the model is gone.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neox_lab.checkpoint.files import INDEX_SUFFIX, WHOLE_FILES, with_variant
from neox_lab.checkpoint.names import INPUT_EMBEDDING, OUTPUT_EMBEDDING, on_disk
from neox_lab.checkpoint.reading import WEIGHT_DTYPES
from neox_lab.errors import CheckpointError, ConfigError
from neox_lab.hub import Source

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{letter}I": 1024**power for power, letter in enumerate("KMGT", start=1)}
_DTYPE_NAMES = {dtype: name for name, dtype in WEIGHT_DTYPES.items()}
_ALIGNMENT = 64  # bytes; mapped tensors then start where vector instructions like them


def save(
    model: nn.Module,
    directory: Source,
    *,
    max_shard_size: int | str = "50GB",
    state_dict: Mapping[str, Tensor] | None = None,
    variant: str | None = None,
) -> None:
    """Write a model's configuration and weights.

    Args:
        model: one of the five classes.
        directory: made if absent.
        max_shard_size: bytes, or ``"500MB"``, ``"2GiB"``; weights that take more are split. A
            single tensor is never split.
        state_dict: tensors to write instead of the model's own.
        variant: written into the names of the weight files, see ``checkpoint.files``.

    Raises:
        CheckpointError: the directory cannot be written, or a tensor cannot be stored. A
            checkpoint that the directory held before is kept.
        ConfigError: ``max_shard_size`` is not a size.
    """
    tensors = _to_store(model, state_dict)
    shards = split(tensors, size_in_bytes(max_shard_size))
    whole = with_variant(WHOLE_FILES["safetensors"], variant)
    stem = whole.removesuffix(".safetensors")
    names = [whole]
    if len(shards) > 1:
        count = len(shards)
        names = [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    index_name = with_variant(WHOLE_FILES["safetensors"] + INDEX_SUFFIX, variant)

    folder = Path(directory)
    if folder.is_file():
        raise CheckpointError(f"{str(directory)!r} is a file: give a directory to save into.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _staged(folder) as stage:
            for name, shard in zip(names, shards, strict=True):
                write_safetensors(stage(name), shard)
            if len(shards) > 1:
                _write_text(stage(index_name), _index(names, shards))
            _write_text(stage("config.json"), _config_text(model, tensors))
        kept = {*names, index_name} if len(shards) > 1 else set(names)
        _remove_stale(folder, stem, index_name, kept)
    except OSError as error:
        raise CheckpointError(
            f"Saving to {str(directory)!r} failed: {error}. "
            "A checkpoint that was there before is kept."
        ) from error


def size_in_bytes(size: int | str) -> int:
    """``"5GB"`` -> 5 * 10**9, ``"2MiB"`` -> 2 * 2**20; raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(size).strip().upper())
    count = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if count < 1:
        raise ConfigError(f"max_shard_size={size!r} is not a size such as 10**9, '5GB' or '2MiB'.")
    return count


def split(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, cut into groups of at most ``limit`` bytes (one tensor at least)."""
    shards: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one ``.safetensors`` file, making one tensor contiguous at a time.

    The format is the length of the header as 8 bytes, little-endian; the header as JSON; the
    tensors' bytes in row-major order (https://github.com/huggingface/safetensors#format).
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            rows = tensor.detach().to("cpu").contiguous()
            file.write(rows.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _to_store(model: nn.Module, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Tensors under their names on disk; one that the configuration ties is left out."""
    config: Any = model.config
    tensors = {}
    for name, tensor in (model.state_dict() if state_dict is None else state_dict).items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPE_NAMES or tensor.is_meta:
            what = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else tensor
            raise CheckpointError(
                f"{name!r} cannot be stored: expected a tensor of "
                f"{', '.join(str(dtype) for dtype in _DTYPE_NAMES)} that holds data, got {what!r}."
            )
        tensors[on_disk(name)] = tensor
    if config.tie_word_embeddings and {INPUT_EMBEDDING, OUTPUT_EMBEDDING} <= tensors.keys():
        first, second = tensors[INPUT_EMBEDDING], tensors[OUTPUT_EMBEDDING]
        if first.data_ptr() == second.data_ptr() and first.shape == second.shape:
            del tensors[OUTPUT_EMBEDDING]
    return tensors


def _config_text(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    config: Any = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(tensors.values())).dtype if tensors else config.dtype
    text: str = config.to_json_string()
    return text


def _index(names: list[str], shards: list[dict[str, Tensor]]) -> str:
    stored = [tensor for shard in shards for tensor in shard.values()]
    metadata = {
        "total_parameters": sum(tensor.numel() for tensor in stored),
        "total_size": sum(tensor.nbytes for tensor in stored),
    }
    table = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    content = {"metadata": metadata, "weight_map": table}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _write_text(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _staged(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Give files temporary names that become the real ones when the block ends without error."""
    real_names: dict[Path, Path] = {}

    def stage(name: str) -> Path:
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        real_names[temporary] = folder / name
        return temporary

    try:
        yield stage
        for temporary, real in real_names.items():
            os.replace(temporary, real)
    finally:
        for temporary in real_names:
            temporary.unlink(missing_ok=True)


def _remove_stale(folder: Path, stem: str, index_name: str, kept: set[str]) -> None:
    """Remove weight files of an earlier save of the same variant, which would be read instead."""
    ours = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors")
    for path in folder.iterdir():
        if path.name not in kept and (ours.fullmatch(path.name) or path.name == index_name):
            path.unlink()
