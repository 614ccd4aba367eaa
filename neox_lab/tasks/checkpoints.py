"""A training run on disk, so that a run that was killed goes on where it was.

One file holds everything: weights that learn, the best ones so far, the optimiser's state, random
numbers, and what was measured. It is written under another name and renamed when complete; the one
before is deleted only then. It is read with ``weights_only=True``: no code in it can run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox_lab.data.batches import Example
from neox_lab.errors import CheckpointError
from neox_lab.files import staged_file
from neox_lab.tasks.settings import TrainingSettings

PREFIX = "training-"


def fingerprint(
    settings: TrainingSettings,
    examples: Sequence[Example],
    names: Iterable[str],
    fixed: Mapping[str, Tensor],
) -> str:
    """A checksum of what decides a run.

    Args:
        settings: all but how often it is saved.
        examples: in order.
        names: of the weights that learn.
        fixed: the other weights.
    """
    # How often a run is saved does not change it.
    kept = dataclasses.asdict(dataclasses.replace(settings, save_every=1))
    digest = hashlib.sha256(json.dumps([kept, sorted(names)]).encode())
    for example in examples:
        digest.update(json.dumps(dict(example), sort_keys=True, default=str).encode())
    for name, weight in sorted(fixed.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after a step and remove older ones.

    Args:
        directory: is made if need be.
        step: how many were taken.
        state: what ``torch.save`` can write and ``weights_only`` read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{PREFIX}{step:08d}.pt"
    with staged_file(target) as temporary:
        torch.save(state, temporary)
    for old in directory.glob(f"{PREFIX}*.pt"):
        if old != target:
            old.unlink()


def latest(directory: Path, print_of_run: str) -> dict[str, Any] | None:
    """The newest state in a directory, or None if there is none.

    Args:
        directory: where ``save`` wrote.
        print_of_run: the ``fingerprint`` of the run that wants to go on.

    Raises:
        CheckpointError: it is damaged, or it is that of another run.
    """
    found = sorted(directory.glob(f"{PREFIX}*.pt"))
    if not found:
        return None
    try:
        state: dict[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
        same = state["fingerprint"] == print_of_run
    except Exception as error:
        raise CheckpointError(
            f"{found[-1].name} is not a readable training state ({error}). Delete it to start anew."
        ) from error
    if not same:
        raise CheckpointError(
            f"{str(directory)!r} holds a run with other settings, other examples or another "
            "model. Give the same ones to go on with it, or another directory to start anew."
        )
    return state
