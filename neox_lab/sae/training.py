"""Training a dictionary.

    trained = nl.sae.train(model, texts, site=("resid_post", 2), latents=1024, k=16)
    trained                    # the curves, in a notebook
    trained.dictionary         # the dictionary
    trained.save("kept")       # with its curves; nl.sae.load("kept") reads the dictionary alone
    nl.sae.train(model, texts, site=..., latents=..., to="run")     # goes on if it was stopped

What is done in a step is in ``recipes``. The order of rows follows from the seed and the epoch
alone, so a run that goes on from a folder ends with the numbers of one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from neox_lab import interrupts
from neox_lab.activations import Stored
from neox_lab.checks import COUNT, SEED, SWITCH, check, number, one_of, shown
from neox_lab.errors import CheckpointError, InputError, TrainingError
from neox_lab.family.contract import HookedModel
from neox_lab.files import StrPath, path_of, taken_apart
from neox_lab.other_dictionary_names import DICTIONARY_ARGUMENTS
from neox_lab.other_names import names_ours_of
from neox_lab.progress import Progress
from neox_lab.sae.recipes import KINDS, Kind, Recipe, Trainee
from neox_lab.sae.rows import SAMPLE, Rows, Site, Texts, rows_of
from neox_lab.sae.training_result import COLUMNS, TrainedDictionary, measured
from neox_lab.safetensors_files import FileFormat
from neox_lab.work_folders import work_folder

_FORMAT = FileFormat("training of a dictionary", "neox_lab dictionary training 1")
_FILE = "state.safetensors"
SAVE_EVERY = 200  # steps


@names_ours_of(*DICTIONARY_ARGUMENTS)
@torch.inference_mode(False)
@torch.enable_grad()
def train(
    source: HookedModel | Stored | Tensor | tuple[Tensor, Tensor],
    texts: Texts | None = None,
    *,
    site: Site | None = None,
    site_out: Site | None = None,
    latents: int,
    kind: Kind = "topk",
    k: int = 32,
    skip: bool = False,
    steps: int = 2000,
    batch_size: int = 2048,
    held_out: float = 0.1,
    seed: int = 0,
    to: StrPath | None = None,
    recipe: Recipe | None = None,
) -> TrainedDictionary:
    """Train a dictionary on activations.

    Rows are scaled to a mean norm of √d while it is trained, and the scale is folded into the
    weights at the end: the dictionary reads activations as they are.

    Args:
        source: a model that reads ``texts``; or activations collected by ``nl.activations``; or a
            tensor of them ``[row, d]``; or a pair of tensors for a transcoder.
        texts: what the model reads, or lists of token ids; every token is a row.
        site: hook point that is read, such as ``("resid_post", 2)``; a name of your own for
            tensors.
        site_out: hook point that is written, for a transcoder, such as ``("mlp_out", 2)``; None
            for an autoencoder.
        latents: how many features.
        kind: ``topk``, ``batchtopk``, ``jumprelu`` or ``relu``.
        k: active features of a row: with topk at most, with batchtopk on average, with jumprelu
            what the penalty aims at. relu has ``recipe.sparsity`` instead.
        skip: with a linear path beside the features, in transcoders.
        steps: of Adam.
        batch_size: rows of a step.
        held_out: share of the documents (of a tensor: rows) that are measured and not trained on.
        seed: of the first weights, the order of rows, and what is held out.
        to: folder to keep the run in; the same call goes on where it was.
        recipe: what is seldom changed; None for the defaults.

    Returns:
        The dictionary, the curves, and what was measured on held-out rows.

    Raises:
        InputError: an argument is not what it can be.
        HookNameError: the model has no such site.
        TrainingError: the loss is not a number.
        CheckpointError: ``to`` holds something else, another run, a damaged file, or cannot be
            written.
    """
    recipe = Recipe() if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe={shown(recipe)}; expected nl.sae.Recipe(...).")
    settings = {
        "latents": check("latents", latents, COUNT, InputError),
        "kind": check("kind", kind, one_of(*KINDS), InputError),
        "k": check("k", k, COUNT, InputError),
        "skip": check("skip", skip, SWITCH, InputError),
        "steps": check("steps", steps, COUNT, InputError),
        "batch_size": check("batch_size", batch_size, COUNT, InputError),
        "seed": check("seed", seed, SEED, InputError),
        "held_out": check("held_out", held_out, number(above=0, below=1), InputError),
        "recipe": dataclasses.asdict(recipe),
    }
    k, latents = cast(int, settings["k"]), cast(int, settings["latents"])
    held_out, seed = cast(float, settings["held_out"]), cast(int, settings["seed"])
    if k > latents:
        raise InputError(f"k={k} of latents={latents}; fewer are active than there are.")
    folder = None if to is None else path_of("to", to)
    rows = rows_of(source, texts, site, site_out, held_out, seed)
    if skip and rows.site_in == rows.site_out:
        raise InputError("skip=True is for transcoders; give site_out.")
    if folder is None:
        return _Run(rows, settings, recipe, None).all_steps()
    try:
        with work_folder(folder, _FILE, "training"):
            return _Run(rows, settings, recipe, folder).all_steps()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"Cannot train in {str(folder)!r}: {error}") from error


class _Run:
    """One training: where it is, and how to take the next step."""

    def __init__(
        self, rows: Rows, settings: dict[str, object], recipe: Recipe, folder: Path | None
    ) -> None:
        self.rows, self.settings, self.recipe, self.folder = rows, settings, recipe, folder
        self.steps, self.batch_size = (cast(int, settings[n]) for n in ("steps", "batch_size"))
        self.seed, latents = cast(int, settings["seed"]), cast(int, settings["latents"])
        sample = self._sample()
        x, y = sample
        self.scales = _scale(x, rows.site_in), _scale(y, rows.site_out)
        if bool((y == y[0]).all()):
            raise InputError(f"all rows at {rows.site_out!r} are the same; nothing is to be learnt")
        total = self.steps * min(self.batch_size, len(rows))
        dead_after = recipe.dead_after or max(1, min(10_000_000, total // 10))
        self.trainee = Trainee(
            cast(Kind, settings["kind"]),
            cast(int, settings["k"]),
            latents,
            x * self.scales[0],
            y * self.scales[1],
            autoencoder=rows.site_in == rows.site_out,
            skip=bool(settings["skip"]),
            recipe=recipe,
            dead_after=dead_after,
            generator=torch.Generator().manual_seed(self.seed),
        )
        self.optimizer = torch.optim.Adam(self.trainee.parameters(), eps=6.25e-10)
        self.history = torch.zeros(self.steps, len(COLUMNS), dtype=torch.float64)
        self.step, self.at = 0, (0, 0)  # at: the epoch, and the batch in it that comes next
        self.seconds_before, self.start = 0.0, time.monotonic()
        described = json.dumps(settings, sort_keys=True) + rows.site_in + rows.site_out
        digest = hashlib.sha256(described.encode())
        for tensor in (*sample, torch.tensor([len(rows), len(rows.held_out.x)])):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        if folder is not None and (folder / _FILE).exists():
            self._resume(folder / _FILE)

    def _sample(self) -> tuple[Tensor, Tensor]:
        """Rows from which means and norms are estimated."""
        x, y = next(self.rows.epoch(0, SAMPLE, self.seed))
        for name, tensor in ((self.rows.site_in, x), (self.rows.site_out, y)):
            if not tensor.isfinite().all():
                raise InputError(f"activations at {name!r} are NaN or infinite in some rows")
        return x.float(), y.float()

    def all_steps(self) -> TrainedDictionary:
        """Take all steps that are left, and measure."""
        interrupted, welcome = False, interrupts.part_is_welcome()
        with Progress(total=self.steps, unit="step", done=self.step) as bar:
            try:
                for place, x, y in self._batches():
                    with interrupts.held():  # no interrupt leaves half a step
                        self._take(place, x, y)
                        if self.folder is not None and self.step % SAVE_EVERY == 0:
                            self._save(self.folder / _FILE)
                    bar.update(note=f"FVU {self.history[self.step - 1, 2]:.3f}")
            except KeyboardInterrupt:
                interrupted = True
        if self.folder is not None:
            self._save(self.folder / _FILE)
        if interrupted and not welcome:
            raise KeyboardInterrupt
        return self._result(interrupted)

    def _batches(self) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
        """The batches of the steps that are left, each with the ``at`` that comes after it."""
        epoch, skipped = self.at
        while self.step < self.steps:
            index = 0
            for x, y in self.rows.epoch(epoch, self.batch_size, self.seed):
                index += 1
                if index <= skipped:
                    continue
                yield (epoch, index), x, y
                if self.step == self.steps:
                    return
            epoch, skipped = epoch + 1, 0

    def _take(self, after: tuple[int, int], x: Tensor, y: Tensor) -> None:
        """One step; ``after`` is where the next begins, which a batch not taken does not move."""
        trainee = self.trainee
        trainee.train()
        device, (scale_in, scale_out) = trainee.b_dec.device, self.scales
        x, y = x.to(device).float() * scale_in, y.to(device).float() * scale_out
        risen = self.recipe.penalty(self.step, self.steps, trainee.kind)
        terms = trainee.terms(x, y, risen)
        loss = float(terms.loss.detach())
        self.optimizer.zero_grad()
        terms.loss.backward()  # type: ignore[no-untyped-call]
        trainee.before_step()
        norm = float(torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0))
        if not math.isfinite(norm + loss):
            raise TrainingError(
                f"At step {self.step + 1} the loss is {loss} and the gradient's norm {norm}. Try "
                "a lower learning_rate, and look at the activations."
            )
        rate = self.recipe.rate(self.step, self.steps, len(trainee.b_enc))
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        trainee.after_step(len(x), terms.active)
        self.step, self.at = self.step + 1, after
        fvu, l0 = float(terms.fvu.detach()), float(terms.l0)
        numbers = (self.step, loss, fvu, l0, trainee.dead, rate)  # as COLUMNS names them
        self.history[self.step - 1] = torch.tensor(numbers, dtype=torch.float64)

    def _result(self, interrupted: bool) -> TrainedDictionary:
        trainee, rows = self.trainee.eval(), self.rows
        sources = {
            "weights": f"trained on {rows.what}, {self.step} steps of {self.batch_size} rows, "
            f"seed {self.seed}",
            "site": "given to train",
        }
        dictionary = trainee.dictionary(
            *self.scales, site_in=rows.site_in, site_out=rows.site_out, sources=sources
        )
        return TrainedDictionary(
            dictionary=dictionary,
            history=self.history[: self.step].clone(),
            held_out=measured(dictionary, rows.held_out, self.seed),
            settings=self.settings,
            interrupted=interrupted,
            seconds=self.seconds_before + time.monotonic() - self.start,
        )

    def _save(self, path: Path) -> None:
        tensors = {f"weights.{n}": t for n, t in self.trainee.state_dict().items()}
        names = [name for name, _ in self.trainee.named_parameters()]
        for name, parameter in zip(names, self.trainee.parameters(), strict=True):
            for what, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{what}.{name}"] = value
        tensors["history"] = self.history[: self.step]
        _FORMAT.write(
            path,
            tensors,
            {
                "fingerprint": self.fingerprint,
                "settings": self.settings,
                "step": self.step,
                "at": list(self.at),
                "seconds": self.seconds_before + time.monotonic() - self.start,
            },
        )

    def _differing(self, earlier: object) -> str:
        """What an earlier run had otherwise, in words."""
        if not isinstance(earlier, dict):
            return "settings or other activations"
        own = self.settings | cast(dict[str, object], self.settings["recipe"])
        earlier = earlier | (earlier["recipe"] if isinstance(earlier.get("recipe"), dict) else {})
        other = [
            f"{name}={shown(earlier.get(name))} (now {shown(value)})"
            for name, value in own.items()
            if name != "recipe" and earlier.get(name) != value
        ]
        return f"settings: {', '.join(other)}" if other else "activations or sites"

    def _resume(self, path: Path) -> None:
        """Go on from a file.

        Raises:
            CheckpointError: it is of another run, or damaged.
        """
        tensors, description = _FORMAT.read(path)
        if description.get("fingerprint") != self.fingerprint:
            raise CheckpointError(
                f"{os.fspath(path)!r} is of a training with other "
                f"{self._differing(description.get('settings'))}. Give another folder, or the same "
                "arguments."
            )
        with taken_apart(f"a training from {os.fspath(path)!r}"):
            weights = {n.removeprefix("weights."): t for n, t in tensors.items() if "weights." in n}
            self.trainee.load_state_dict(weights)
            for name, parameter in self.trainee.named_parameters():
                state = {
                    what: tensors[f"adam.{what}.{name}"]
                    .clone()
                    .to(parameter.device if what != "step" else "cpu")
                    for what in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{what}.{name}" in tensors
                }
                if state:
                    self.optimizer.state[parameter] = state
            self.step = int(cast(int, description["step"]))
            epoch, index = cast(list[int], description["at"])
            self.at = epoch, index
            self.seconds_before = float(cast(float, description["seconds"]))
            self.history[: self.step] = tensors["history"]


def _scale(rows: Tensor, name: str) -> float:
    """What brings the mean norm of rows to √d.

    Raises:
        InputError: all are zero, or so large or so small that float32 does not hold what follows.
    """
    norm = float(rows.double().norm(dim=1).mean())
    if not norm:
        raise InputError(f"activations at {name!r} are all zero")
    if not 1e-30 < norm < 1e30:
        raise InputError(
            f"activations at {name!r} have a mean norm of {norm:.3g}; multiply them by a number "
            "that brings it nearer to 1."
        )
    return math.sqrt(rows.shape[1]) / norm
