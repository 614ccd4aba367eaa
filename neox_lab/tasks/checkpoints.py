"""A training run on disk, so that a run that was killed goes on where it was.

One file holds everything: weights that learn, the best ones so far, the optimiser's state, random
numbers, and what was measured. It is written under another name and renamed when complete; the one
before is deleted only then. Its name holds the step and a checksum of its content, as in
``training-00000500-0123456789abcdef.pt``: what is damaged is not gone on with, and files of other
names are left alone. It is read with ``weights_only=True``: no code in it can run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from neox_lab.checkpoint.saving import write_with_torch
from neox_lab.data.batches import EncodedExample
from neox_lab.errors import CheckpointError
from neox_lab.family.contract import HookedModel
from neox_lab.files import staged_files
from neox_lab.model.identity import Identity, identity, refuse_another, weights_print
from neox_lab.tasks.settings import TrainingSettings

PREFIX = "training-"
_LEFT: WeakKeyDictionary[HookedModel, tuple[object, str]] = WeakKeyDictionary()
"""Models that a run has trained: the model it began with, and the weights as it left them."""


def trained_model(model: HookedModel, state: Mapping[str, Tensor] | None = None) -> Identity:
    """Which model a run trains.

    Its weights are those that came from a checkpoint: a task's head and adapters are drawn anew
    whenever a model is loaded that lacks them.

    Args:
        model: the model as it is given to the run.
        state: weights to look at instead of the model's own.
    """
    known = {
        name: weight if state is None else state.get(name, weight)
        for name, weight in model.named_parameters()
        if "lora_" not in name and (model.head == "causal-lm" or name.startswith("gpt_neox."))
    }
    return identity(model)._replace(weights=weights_print(known.items()))


def left(model: HookedModel, began_with: object) -> None:
    """Note that a run leaves ``model`` as it is now, perhaps within a step that no state holds.

    Args:
        model: what was trained.
        began_with: which model the run began with, as its states say it.
    """
    _LEFT[model] = began_with, trained_model(model).weights


def fingerprint(
    settings: TrainingSettings,
    examples: Sequence[EncodedExample],
    names: Iterable[str],
    fixed: Mapping[str, Tensor],
    dropout: Mapping[str, float],
) -> str:
    """A checksum of what decides a run.

    Args:
        settings: all but how often it is saved.
        examples: in order.
        names: of the weights that learn.
        fixed: the other weights.
        dropout: how much is dropped, by name; of earlier versions' runs only none is known.
    """
    # How often a run is saved does not change it.
    kept = dataclasses.asdict(dataclasses.replace(settings, save_every=1))
    dropped = [{name: share for name, share in dropout.items() if share}]
    decided = [kept, sorted(names), *filter(None, dropped)]
    digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps(dict(example), sort_keys=True, default=str).encode())
    for name, weight in sorted(fixed.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def prepare(directory: Path) -> None:
    """Make a directory and see that files can be made in it, before hours go into a run.

    Raises:
        CheckpointError: they cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise CheckpointError(f"Cannot keep the run in {str(directory)!r}: {error}") from error


def save(directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after a step and remove older ones.

    Args:
        directory: where.
        step: how many were taken.
        state: what ``torch.save`` can write and ``weights_only`` read.

    Raises:
        CheckpointError: the file cannot be written; the one before is kept.
    """
    try:
        with staged_files() as stage:
            temporary = stage(directory / f"{PREFIX}state.pt")
            write_with_torch(temporary, state)
            target = directory / f"{PREFIX}{step:08d}-{_checksum(temporary)}.pt"
            stage.rename(temporary, target)
        for old in states(directory):
            if old != target:
                old.unlink()
    except OSError as error:
        raise CheckpointError(
            f"Cannot save the run in {str(directory)!r}: {error}. The model has the weights of "
            f"step {step}; a state saved before is kept."
        ) from error


def states(directory: Path) -> list[Path]:
    """The states that ``save`` wrote into a directory, and nobody else, by steps."""
    ours = re.compile(rf"{PREFIX}\d{{8,}}-[0-9a-f]{{16}}\.pt")
    found = [path for path in directory.glob(f"{PREFIX}*.pt") if ours.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def latest(
    directory: Path, print_of_run: str, model: HookedModel, chosen: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """The newest state in a directory, or None if there is none; nothing is changed.

    Args:
        directory: where ``save`` wrote.
        print_of_run: the ``fingerprint`` of the run that wants to go on.
        model: what it would train: as it was when the run began, or as the run left it.
        chosen: its weights that learn.

    Raises:
        CheckpointError: it is damaged, or it is that of another run or another model.
    """
    earlier = sorted(directory.glob(f"{PREFIX}{8 * '[0-9]'}.pt"))  # written without a checksum
    found = states(directory) or earlier
    if not found:
        return None
    path = found[-1]
    try:
        if path not in earlier and not path.stem.endswith(_checksum(path)):
            raise ValueError("its content is not what was written")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        same = state["fingerprint"] == print_of_run
        shapes = {name: weight.shape for name, weight in state["weights"].items()}
    except Exception as error:
        raise CheckpointError(
            f"{path.name} is not a readable training state ({error!s:.300}). Give another "
            "directory, or delete it to start anew."
        ) from error
    _check_model(state, model, f"The training run in {str(directory)!r}")
    if not same or shapes != {name: weight.shape for name, weight in chosen.items()}:
        raise CheckpointError(
            f"{str(directory)!r} holds a run with other settings, other examples or another "
            "model. Give the same ones to go on with it, or another directory to start anew."
        )
    return state


def _check_model(state: Mapping[str, Any], model: HookedModel, what: str) -> None:
    """Raise CheckpointError unless a state is of a run that began with ``model``, or left it."""
    stored, now = state.get("model"), trained_model(model)
    for kept in (state["weights"], state.get("best_weights")):
        if isinstance(stored, list) and kept and trained_model(model, kept) == now:
            stored = [stored[0], now.weights, *stored[2:]]
    if isinstance(stored, list) and _LEFT.get(model) == (state.get("model"), now.weights):
        stored = [stored[0], now.weights, *stored[2:]]
    refuse_another(stored, now, what)
