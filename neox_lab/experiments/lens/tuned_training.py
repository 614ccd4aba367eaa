"""Training of tuned lenses: what there is of it beside the loss."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, check, number, one_of, or_none, whole
from neox_lab.errors import CheckpointError, DataError, InputError
from neox_lab.experiments.lens.divergence import divergence, slope
from neox_lab.experiments.lens.streams import End, piece_length, pieces, streams
from neox_lab.experiments.lens.tuned_files import Stored, unembed_hash, write
from neox_lab.files import path_of, taken_apart
from neox_lab.model.identity import Identity, identity
from neox_lab.notices import tell
from neox_lab.progress import Progress
from neox_lab.safetensors_files import FileFormat
from neox_lab.work_folders import work_folder

if TYPE_CHECKING:
    from neox_lab.experiments.patching.progress_report import ProgressReport
    from neox_lab.family.contract import LanguageModel

MOMENTUM, CLIP = 0.9, 1.0
EVERY = 10  # steps between two states in a folder
STATE = "training.safetensors"
FORMAT = FileFormat("state of a tuned lens' training", "neox_lab tuned lens training 1")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a lens is trained; see ``TunedLens.train``."""

    steps: int
    tokens_per_step: int
    length: int | None
    learning_rate: float
    weight_decay: float
    held_out: float
    batch_size: int
    seed: int
    precision: str = "float32"

    def checked(self) -> Recipe:
        """The recipe with numbers that are Python's own.

        Raises:
            InputError: one is out of range.
        """
        share, above = number(above=0, below=1), number(above=0, below=math.inf)
        kinds = {
            "steps": whole(least=0),
            "tokens_per_step": COUNT,
            "length": or_none(COUNT),
            "learning_rate": above,
            "weight_decay": number(least=0, below=math.inf),
            "held_out": share,
            "batch_size": COUNT,
            "seed": SEED,
            "precision": one_of("float32", "bfloat16"),
        }
        made = {n: check(n, getattr(self, n), kind, InputError) for n, kind in kinds.items()}
        return Recipe(**made)  # type: ignore[arg-type]


class Translators:
    """The parameters in training, those of each layer by themselves, and their optimiser."""

    def __init__(self, layers: int, end: End, recipe: Recipe) -> None:
        """Nothing is translated yet.

        Args:
            layers: how many.
            end: of the model, for width, dtype and place.
            recipe: how they are trained.
        """
        width = len(end.weight)
        self.weights = [end.weight.new_zeros(width, width) for _ in range(layers)]
        self.biases = [end.weight.new_zeros(width) for _ in range(layers)]
        self.parameters = [p.requires_grad_() for p in (*self.weights, *self.biases)]
        self.optimiser = torch.optim.SGD(
            self.parameters,
            lr=recipe.learning_rate,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )

    def translated(self, stream: Tensor, layer: int) -> Tensor:
        """The stream before a layer, ``[token, d_model]``, in the language of the last one."""
        return stream + torch.addmm(self.biases[layer], stream, self.weights[layer].T)

    def step(self, learning_rate: float) -> None:
        """Use the gradient that was gathered, and forget it."""
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """All numbers that the next step depends on."""
        found = {str(n): p.detach() for n, p in enumerate(self.parameters)}
        for n, p in enumerate(self.parameters):
            momentum = self.optimiser.state.get(p, {}).get("momentum_buffer")
            if momentum is not None:
                found[f"{n}.momentum"] = momentum
        return found

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what ``state`` gave.

        Raises:
            CheckpointError: it is of other shapes.
        """
        for n, p in enumerate(self.parameters):
            found, momentum = state.get(str(n)), state.get(f"{n}.momentum")
            if any(each is not None and each.shape != p.shape for each in (found, momentum)):
                found = None
            if found is None:
                raise CheckpointError(f"{STATE} does not hold the state of this training.")
            p.copy_(found)
            if momentum is not None:
                self.optimiser.state[p]["momentum_buffer"] = momentum.to(p).clone()


def gradients(
    translators: Translators, end: End, found: Sequence[Tensor], share: float
) -> list[float]:
    """Add to the gradients what some tokens say; the loss of each layer, summed over them, nats.

    Args:
        translators: in training.
        end: of the model.
        found: streams before each layer and after the last, ``[token, d_model]``.
        share: what a token counts.
    """
    final = end.said(end.norm(found[-1]))
    sums = []
    for layer, stream in enumerate(found[:-1]):
        x = end.norm(translators.translated(stream, layer))
        read = end.said(x)
        sums.append(float(divergence(final, read).sum()))
        x.backward(slope(final, read) * share)  # type: ignore[no-untyped-call]
    return sums


class Trained(NamedTuple):
    """What training ends with.

    Attributes:
        lens: what is stored of the lens.
        losses: of each step, in bits.
        held_out: documents that were not trained on.
    """

    lens: Stored
    losses: list[float]
    held_out: list[list[int]]


def train(
    model: LanguageModel,
    rows: list[list[int]],
    recipe: Recipe,
    to: str | os.PathLike[str] | None,
    progress: bool | ProgressReport,
) -> Trained:
    """Train on token ids of documents; see ``TunedLens.train`` for the rest.

    Args:
        model: with an unembedding, without dropout.
        rows: the documents.
        recipe: checked.
        to: as there.
        progress: as there.

    Raises:
        NeoxLabError: as there.
    """
    kept, held = _parts(len(rows), recipe)
    length = piece_length(model, recipe.length)
    parts = [piece for _, piece in pieces([rows[n] for n in kept], length)]
    _tell_of_few_tokens(sum(len(p) for p in parts), recipe)
    end, whose = End.of(model, recipe.precision), identity(model)
    translators = Translators(model.config.num_hidden_layers, end, recipe)
    hooks = model.hook_stack.changing  # a state of other streams would be another training's
    text = json.dumps([dataclasses.asdict(recipe), whose, rows, *([hooks] if hooks else [])])
    plan = hashlib.sha256(text.encode()).hexdigest()
    with _folder(to) as folder:
        losses = _resumed(folder, plan, translators)
        told = progress if callable(progress) else None
        silent = told is not None or not progress
        with Progress(recipe.steps, "step", done=len(losses), silent=silent) as bar:
            for step, chosen in enumerate(_plan([len(p) for p in parts], recipe)):
                if step < len(losses):
                    continue
                losses.append(_step(model, translators, end, [parts[n] for n in chosen], recipe))
                if not math.isfinite(losses[-1]):
                    raise InputError(
                        f"The loss is {losses[-1]} at step {step}; a smaller learning_rate may "
                        "help. model.check() names weights that are not finite."
                    )
                translators.step(recipe.learning_rate * (1 - step / recipe.steps))
                bar.update(note=f"{losses[-1]:.3g} bits")
                if told is not None:
                    told(len(losses), recipe.steps)
                if len(losses) % EVERY == 0:
                    _save(folder, plan, translators, losses)
        lens = _stored(model, translators, whose)
        if folder is not None:
            _save(folder, plan, translators, losses)
            write(folder, lens, published=False)
    return Trained(lens, losses, [rows[n] for n in held])


def _tell_of_few_tokens(tokens: int, recipe: Recipe) -> None:
    """Tell of documents that are read again within a step, which costs time and teaches nothing."""
    if recipe.steps and tokens < recipe.tokens_per_step:
        tell(
            f"The documents to train on have {tokens:,} tokens together, and each of the "
            f"{recipe.steps} steps reads {recipe.tokens_per_step:,}: every step reads them "
            f"{recipe.tokens_per_step / tokens:.1f} times over. Give more documents, or a smaller "
            "tokens_per_step."
        )


def _stored(model: LanguageModel, translators: Translators, whose: Identity) -> Stored:
    """What is stored of a lens of a model."""
    told = {
        "base_model_name_or_path": model.config.name_or_path or None,
        "unembed_hash": unembed_hash(model.output_map.weight),
    }
    return Stored(
        torch.stack([p.detach().cpu().float() for p in translators.weights]),
        torch.stack([p.detach().cpu().float() for p in translators.biases]),
        told,
        whose,
    )


def _parts(count: int, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Documents to train on, and those held out, both in their own order."""
    if count < 2:
        raise DataError(
            f"{count} documents with tokens; expected two at least, to train on one and to measure "
            "on another."
        )
    generator = torch.Generator().manual_seed(recipe.seed)
    held = max(1, min(count - 1, round(count * recipe.held_out)))
    order = torch.randperm(count, generator=generator).tolist()
    return sorted(order[held:]), sorted(order[:held])


def _plan(lengths: Sequence[int], recipe: Recipe) -> Iterator[list[int]]:
    """The pieces of each step: all in a random order, then all in another."""
    generator = torch.Generator().manual_seed(recipe.seed)
    waiting: list[int] = []
    for _ in range(recipe.steps):
        chosen: list[int] = []
        while sum(lengths[n] for n in chosen) < recipe.tokens_per_step:
            if not waiting:
                waiting = torch.randperm(len(lengths), generator=generator).tolist()
            chosen.append(waiting.pop())
        yield chosen


def _step(
    model: LanguageModel,
    translators: Translators,
    end: End,
    rows: Sequence[Sequence[int]],
    recipe: Recipe,
) -> float:
    """Gather the gradient of a step; its loss, a mean over tokens and layers, in bits."""
    share = 1 / sum(map(len, rows))
    loss = 0.0
    for found, _ in streams(model, rows, recipe.batch_size):
        loss += sum(gradients(translators, end, found, share)) / (len(found) - 1)
    return loss * share / math.log(2)


@contextmanager
def _folder(to: str | os.PathLike[str] | None) -> Iterator[Path | None]:
    """The folder of a training, which nobody else uses meanwhile.

    Raises:
        CheckpointError: somebody does, it holds something else, or it cannot be used.
    """
    if to is None:
        yield None
        return
    folder = path_of("to", to).expanduser()
    try:
        with work_folder(folder, STATE, "training"):
            yield folder
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{str(folder)!r} cannot be used: {error}") from error


def _resumed(folder: Path | None, plan: str, translators: Translators) -> list[float]:
    """The losses so far, after the state of an earlier call was restored.

    Raises:
        CheckpointError: the folder holds another training.
    """
    if folder is None or not (folder / STATE).exists():
        return []
    tensors, told = FORMAT.read(folder / STATE)
    losses = told.get("losses")
    if told.get("plan") != plan or not isinstance(losses, list):
        raise CheckpointError(
            f"{str(folder)!r} holds a training with another recipe, model, hooks or documents; "
            "give another folder."
        )
    with taken_apart(f"the state of a training from {str(folder / STATE)!r}"):
        translators.restore(tensors)
        return [float(loss) for loss in losses]


def _save(folder: Path | None, plan: str, translators: Translators, losses: list[float]) -> None:
    if folder is not None:
        FORMAT.write(folder / STATE, translators.state(), {"plan": plan, "losses": losses})
