"""A model into a directory that Hugging Face's tools read too.

Everything is first written under temporary names in the same directory. Only when all of it is on
disk do the files take their real names and files of an earlier save go, all or none of them: see
``files.staged_files``. So a failed save leaves the old checkpoint as it was, and the files from
which a model's weights are mapped are never written to: they live on until the model is gone.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from neox_lab.checkpoint.files import INDEX_SUFFIX, WHOLE_FILES, with_variant
from neox_lab.checkpoint.loading import skeleton
from neox_lab.checkpoint.names import INPUT_EMBEDDING, OUTPUT_EMBEDDING, in_transformers, on_disk
from neox_lab.checkpoint.reading import WEIGHT_DTYPES
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import CheckpointError, ConfigError
from neox_lab.files import StrPath, staged_files
from neox_lab.safetensors_files import write as write_safetensors
from neox_lab.sizes import parse_size

_DTYPES = tuple(WEIGHT_DTYPES.values())
_METADATA = {"format": "pt"}


def write_with_torch(temporary: Path, content: object) -> None:
    """Write one file with ``torch.save``, in place.

    Given a path, PyTorch writes by itself and says of a full disk ``iostream error`` alone.

    Args:
        temporary: where, as ``files.staged_file`` gives it.
        content: tensors and containers of them.

    Raises:
        OSError: it cannot be written.
    """
    with open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of PyTorch's writer, which hides why it could not write
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError | KeyboardInterrupt):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None


class Saveable(Protocol):
    """What is written of a model.

    Attributes:
        config: goes into ``config.json``.
    """

    config: GPTNeoXConfig

    def state_dict(self) -> dict[str, Any]:
        """The weights by name."""


def save(
    model: Saveable,
    directory: StrPath,
    *,
    max_shard_size: int | str = "50GB",
    state_dict: Mapping[str, Tensor] | None = None,
    variant: str | None = None,
    save_original_format: bool = True,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write a model's configuration and weights.

    Args:
        model: one of the five classes.
        directory: made if absent.
        max_shard_size: bytes, or ``"500MB"``, ``"2GiB"``; weights that take more are split. A
            single tensor is never split.
        state_dict: tensors to write instead of the model's own.
        variant: written into the names of the weight files, see ``checkpoint.files``.
        save_original_format: False writes the names of transformers 5, ``lm_head`` for
            ``embed_out``.
        beside: further files of text to write, by name.

    Raises:
        CheckpointError: the directory cannot be written, or a tensor cannot be stored or holds
            no numbers. A checkpoint that the directory held before is kept.
        ConfigError: ``max_shard_size`` is not a size.
    """
    tensors = _to_store(model, state_dict)
    if not save_original_format:
        tensors = {in_transformers(name): tensor for name, tensor in tensors.items()}
    shards = split(tensors, shard_limit(max_shard_size))
    whole = with_variant(WHOLE_FILES["safetensors"], variant)
    stem = whole.removesuffix(".safetensors")
    names = [whole]
    if len(shards) > 1:
        count = len(shards)
        names = [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    index_name = with_variant(WHOLE_FILES["safetensors"] + INDEX_SUFFIX, variant)

    kept = {*names, index_name} if len(shards) > 1 else {*names}
    folder = Path(directory)
    if folder.is_file():
        raise CheckpointError(f"{str(directory)!r} is a file: give a directory to save into.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staged_files() as stage:
            for name in (whole, index_name, *_shards(folder, stem)):
                if name not in kept:  # it would be read instead
                    stage.remove(folder / name)
            texts = {"config.json": _config_text(model, tensors), **(beside or {})}
            for name, text in texts.items():
                stage(folder / name).write_text(text, encoding="utf-8")
            for name, shard in zip(names, shards, strict=True):
                write_safetensors(stage(folder / name), shard, _METADATA)
            if len(shards) > 1:  # last, for without it the shards are not read
                index = _index(names, shards)
                stage(folder / index_name).write_text(index, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"Saving to {str(directory)!r} failed: {error}. "
            "A checkpoint that was there before is kept."
        ) from error


def check_names(model: nn.Module, config: GPTNeoXConfig) -> None:
    """Raise if a model of the same class and configuration would not find its weights again.

    Args:
        model: one of the five classes.
        config: its configuration.

    Raises:
        CheckpointError: some have other names, because modules were put in others' places.
    """
    wanted = skeleton(type(model), copy.deepcopy(config)).state_dict()
    stored = model.state_dict()
    lost = [name for name in wanted if name not in stored]
    if not lost:
        return
    place = lost[0].rpartition(".")[0]
    found = [name for name in stored if name.startswith(f"{place}.")]
    raise CheckpointError(
        f"{len(lost)} weights of {type(model).__name__} would be missing after loading, such as "
        f"{lost[0]!r}; in its place there is {found[:3]}. If this is an adapter (PEFT), merge it "
        "first (merge_and_unload()) or save it by itself with PEFT. Otherwise give the tensors to "
        "write: state_dict=."
    )


def shard_limit(size: int | str) -> int:
    """Bytes in a shard, at most.

    Raises:
        ConfigError: it is no size, or room for nothing.
    """
    limit = parse_size(size, "max_shard_size", ConfigError)
    if limit < 1:
        raise ConfigError(f"max_shard_size={size!r} is not a size that a tensor fits into.")
    return limit


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


def _to_store(model: Saveable, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Tensors under their names on disk; one that the configuration ties is left out."""
    tensors = {}
    for name, tensor in (model.state_dict() if state_dict is None else state_dict).items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES or tensor.is_meta:
            what = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else tensor
            raise CheckpointError(
                f"{name!r} cannot be stored: expected a tensor of "
                f"{', '.join(str(dtype) for dtype in _DTYPES)} that holds data, got {what!r}."
            )
        if tensor.numel() == 0:
            raise CheckpointError(
                f"{name!r} holds no numbers: its shape is {list(tensor.shape)}. Where weights are "
                "split over processes (ZeRO-3, FSDP) a process has them for a moment only: gather "
                "them first and give them as state_dict=."
            )
        tensors[on_disk(name)] = tensor
    if model.config.tie_word_embeddings and {INPUT_EMBEDDING, OUTPUT_EMBEDDING} <= tensors.keys():
        first, second = tensors[INPUT_EMBEDDING], tensors[OUTPUT_EMBEDDING]
        if first.data_ptr() == second.data_ptr() and first.shape == second.shape:
            del tensors[OUTPUT_EMBEDDING]
    return tensors


def _config_text(model: Saveable, tensors: Mapping[str, Tensor]) -> str:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(tensors.values())).dtype if tensors else config.dtype
    return config.to_json_string()


def _index(names: list[str], shards: list[dict[str, Tensor]]) -> str:
    stored = [tensor for shard in shards for tensor in shard.values()]
    metadata = {
        "total_parameters": sum(tensor.numel() for tensor in stored),
        "total_size": sum(tensor.nbytes for tensor in stored),
    }
    table = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    content = {"metadata": metadata, "weight_map": table}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _shards(folder: Path, stem: str) -> list[str]:
    """Shards of an earlier save of the same variant."""
    shard = re.compile(re.escape(stem) + r"-\d{5}-of-\d{5}\.safetensors")
    return [path.name for path in folder.iterdir() if shard.fullmatch(path.name)]
