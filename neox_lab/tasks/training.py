"""One training loop for every head.

    result = nl.tasks.classification.train(model, "reviews.csv")
    result                    # the curves, in a notebook
    result.frame              # one row a step: loss, learning rate, tokens, seconds, metrics

``fit`` is all there is: draw examples, average their loss, step downhill, look at the validation
data from time to time. The order of examples follows from the seed and the epoch alone, so a run
that goes on from a checkpoint is the run that was never stopped, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab import interrupts
from neox_lab.data.batches import Collate, EncodedExample
from neox_lab.dropout import dropout_of
from neox_lab.errors import InputError, TrainingError
from neox_lab.frames import make_frame
from neox_lab.progress import Progress
from neox_lab.results import Result
from neox_lab.tasks import checkpoints
from neox_lab.tasks.checkpoints import trained_model
from neox_lab.tasks.optimisation import optimizer_for, rate, trainable
from neox_lab.tasks.settings import TrainingSettings

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.base import GPTNeoXPreTrainedModel
    from neox_lab.views.curves import CurvesView

Evaluate = Callable[[], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class TrainingResult(Result):
    """What a training run was like. The model itself was trained in place.

    Attributes:
        history: one record a step: ``step``, ``epoch``, ``loss`` (as the head defines it),
            ``learning_rate``, ``gradient_norm`` (before clipping), ``tokens`` (padding not
            counted), ``seconds`` since the start; and, where there was an evaluation,
            ``validation_loss`` and the like.
        steps: how many steps were taken.
        interrupted: True if the user stopped it; the model is as it was then.
        best: metrics of the weights the model now has, if validation data was given.
        seconds: wall time, earlier parts of a resumed run included.
        watched: the metric that early stopping would watch.
    """

    history: list[dict[str, float]]
    steps: int
    interrupted: bool
    best: dict[str, float]
    seconds: float
    watched: str = "loss"

    @property
    def frame(self) -> pd.DataFrame:
        """One row a step; metrics are missing where nothing was evaluated."""
        return make_frame(self.history, columns=None if self.history else ["step", "loss"])

    def view(self) -> CurvesView:
        """Loss over steps, and of the validation metrics the watched one and the accuracy.

        Each has a panel and a scale of its own; losses share theirs.
        """
        from neox_lab.views.curves import CurvesView, Line

        frame = self.frame
        smooth = frame["loss"].ewm(span=max(1, len(frame) // 25)).mean()
        lines = {"loss, smoothed": Line(frame["step"], smooth, y_label="loss")}
        lines["loss, each step"] = Line(frame["step"], frame["loss"], faint=True, y_label="loss")
        for name in (self.watched, "accuracy"):
            if f"validation_{name}" not in frame:
                continue
            there = frame.dropna(subset=[f"validation_{name}"])
            values = there[f"validation_{name}"]
            lines[f"validation {name}"] = Line(
                there["step"], values, y_label="loss" if name.endswith("loss") else name
            )
        stopped = ", interrupted" if self.interrupted else ""
        title = f"Training: {self.steps} steps in {self.seconds:.0f} s{stopped}"
        return CurvesView(title, lines, "step", "value")


def fit(
    model: GPTNeoXPreTrainedModel,
    examples: Sequence[EncodedExample],
    collate: Collate,
    settings: TrainingSettings | None = None,
    *,
    evaluate: Evaluate | None = None,
    best: str = "loss",
    directory: str | os.PathLike[str] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train ``model`` in place; it is in evaluation mode afterwards.

    Args:
        model: any of the classes with a head.
        examples: what to learn from.
        collate: makes a batch of some of them, with labels.
        settings: how; None for the defaults.
        evaluate: measures the present model on validation data.
        best: the metric that early stopping watches; the higher the better, except for a loss.
        directory: where to keep the run, so that the same call goes on if it was stopped.
        after_step: called with the number of each step, from 1, when the weights are those after
            it and before the run is saved; a run that goes on may call it again for the same step.

    Raises:
        InputError: no examples, or settings that do not fit the model.
        TrainingError: the loss is not a number; the weights are those before that step.
        CheckpointError: ``directory`` holds another run or a damaged file, or cannot be written.
    """
    if not examples:
        raise InputError("there are no examples to train on")
    settings = settings or TrainingSettings()
    if settings.patience is not None and evaluate is None:
        raise InputError(f"patience={settings.patience} waits for validation data; there is none")
    devices = [model.device] if model.device.type == "cuda" else []

    def rest() -> None:
        model.zero_grad()
        model.eval()

    with torch.random.fork_rng(devices), trainable(model, settings) as chosen:
        torch.manual_seed(settings.seed)
        run = _Run(
            model, examples, collate, settings, chosen, evaluate, best, directory, after_step
        )
        with interrupts.certainly(rest):
            try:
                return run.all_steps()
            finally:
                if run.directory is not None:
                    checkpoints.left(model, run.began_with)


class _Run:
    """One training run: where it is, and how to take the next step."""

    def __init__(
        self,
        model: GPTNeoXPreTrainedModel,
        examples: Sequence[EncodedExample],
        collate: Collate,
        settings: TrainingSettings,
        chosen: dict[str, torch.nn.Parameter],
        evaluate: Evaluate | None,
        best: str,
        directory: str | os.PathLike[str] | None,
        after_step: Callable[[int], None] | None,
    ) -> None:
        self.model, self.examples, self.collate = model, examples, collate
        self.settings, self.chosen = settings, chosen
        self.evaluate, self.watched, self.after_step = evaluate, best, after_step
        self.directory = None if directory is None else Path(directory)
        self.optimizer = optimizer_for(chosen, settings)
        size = settings.batch_size * settings.accumulate
        self.steps_in_epoch = math.ceil(len(examples) / size)
        self.steps = settings.steps or math.ceil(settings.epochs * self.steps_in_epoch)
        self.order = -1, torch.empty(0, dtype=torch.float32)  # an epoch and its examples' order
        self.history: list[dict[str, float]] = []
        self.best_metrics: dict[str, float] = {}
        self.best_weights: dict[str, Tensor] = {}
        self.without_better = 0
        self.seconds_before = 0.0
        self.on_gpu = model.device.type == "cuda"
        self.between_steps = True  # False while an interrupt would find half a step
        self.fingerprint = ""
        if self.directory is not None:
            fixed = {n: p for n, p in model.named_parameters() if n not in chosen}
            self.fingerprint = checkpoints.fingerprint(
                settings, examples, chosen, fixed, dropout_of(model)
            )
            checkpoints.prepare(self.directory)
            state = checkpoints.latest(self.directory, self.fingerprint, model, chosen)
            self.began_with = list(trained_model(model)) if state is None else state.get("model")
            self._resume(state)
        self.start = time.monotonic()

    def all_steps(self) -> TrainingResult:
        """Take all steps that are left."""
        interrupted, welcome = False, interrupts.part_is_welcome()
        with Progress(total=self.steps, unit="step", done=len(self.history)) as bar:
            try:
                while len(self.history) < self.steps and not self._has_stopped_improving():
                    with interrupts.whole_answers():  # what evaluates may ask questions
                        record = self._step(len(self.history))
                    bar.update(note=f"loss {record['loss']:.3f}")
            except KeyboardInterrupt:
                interrupted = True
        if self.directory is not None and self.between_steps:
            self._save()  # also a run that is done, so that the same call again has nothing to do
        if interrupted and not welcome:
            raise KeyboardInterrupt
        if self.best_weights and not interrupted:
            self._put_back(self.best_weights)
        return TrainingResult(
            self.history,
            len(self.history),
            interrupted,
            self.best_metrics,
            self._seconds(),
            self.watched,
        )

    def _step(self, step: int) -> dict[str, float]:
        """One optimiser step, and what follows it: evaluation, checkpoint."""
        self.model.train()
        rows = self._rows(step)
        loss, tokens = self._gradient(step, rows)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.chosen.values()), self.settings.clip))
        if not math.isfinite(norm):
            self._refuse(step, f"the gradient's norm is {norm}", rows)
        learning_rate = rate(step, self.steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.between_steps = False
        with interrupts.held():  # no interrupt leaves some weights after the step, others before
            self.optimizer.step()
        record = {
            "step": step + 1,
            "epoch": (step + 1) / self.steps_in_epoch,
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "tokens": tokens,
            "seconds": self._seconds(),
        }
        every = self.settings.evaluate_every or self.steps_in_epoch
        if self.evaluate and ((step + 1) % every == 0 or step + 1 == self.steps):
            self.model.eval()
            measured = self._measured(dict(self.evaluate()))
            record |= {f"validation_{name}": value for name, value in measured.items()}
        self.history.append(record)
        self.between_steps = True
        if self.after_step is not None:
            self.after_step(step + 1)
        if self.directory is not None and (step + 1) % self.settings.save_every == 0:
            self._save()
        return record

    def _rows(self, step: int) -> list[int]:
        """Numbers of the examples of one step: the next stretch of this epoch's own order."""
        epoch, index = divmod(step, self.steps_in_epoch)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(
                (self.settings.seed * 1_000_003 + epoch) % 2**64
            )
            self.order = epoch, torch.randperm(len(self.examples), generator=generator)
        size = self.settings.batch_size * self.settings.accumulate
        return self.order[1][index * size : (index + 1) * size].tolist()

    def _gradient(self, step: int, rows: list[int]) -> tuple[float, int]:
        """Leave the gradient of the step's mean loss in the weights; return loss and tokens."""
        size = self.settings.batch_size
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        batches = [self.collate([self.examples[row] for row in part]) for part in parts]
        targets = [self.model.count_targets(batch) for batch in batches]
        self.optimizer.zero_grad()
        total, tokens = 0.0, 0
        for batch, count in zip(batches, targets, strict=True):
            tokens += int(batch["attention_mask"].sum())
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            with self._precision():
                loss = self.model.training_loss(batch)
            # Each part counts as much as it has targets: the mean is that of one large batch.
            part = loss.float() * (count / max(1, sum(targets)))
            if not math.isfinite(part.item()):
                self.optimizer.zero_grad()
                self._refuse(step, f"the loss is {loss.item()}", rows)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.item()
        return total, tokens

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self.settings.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    def _refuse(self, step: int, what: str, rows: list[int]) -> None:
        raise TrainingError(
            f"At step {step + 1} {what}, in a batch of rows {rows[:8]}"
            f"{' and more' if len(rows) > 8 else ''}. The weights are those before this step. "
            "Try a lower learning_rate or a longer warm_up, and look at these rows."
        )

    def _measured(self, metrics: dict[str, float]) -> dict[str, float]:
        """Note metrics, and the weights if they are the best so far."""
        if self.settings.patience is None:
            self.best_metrics = metrics
            return metrics
        if self.watched not in metrics:
            raise InputError(f"best={self.watched!r}; measured were {', '.join(metrics)}")
        sign = -1 if self.watched.endswith("loss") else 1
        before = self.best_metrics.get(self.watched)
        now = metrics[self.watched]
        if before is None or sign * now > sign * before or math.isnan(before) > math.isnan(now):
            self.best_metrics, self.without_better = metrics, 0
            self.best_weights = {n: p.detach().cpu().clone() for n, p in self.chosen.items()}
        else:
            self.without_better += 1
        return metrics

    def _has_stopped_improving(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.without_better >= patience

    @torch.no_grad()
    def _put_back(self, weights: Mapping[str, Tensor]) -> None:
        with interrupts.held():
            for name, parameter in self.chosen.items():
                parameter.copy_(weights[name])

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.start

    def _save(self) -> None:
        assert self.directory is not None
        state = {
            "fingerprint": self.fingerprint,
            "model": self.began_with,
            "weights": {name: p.detach() for name, p in self.chosen.items()},
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.model.device) if self.on_gpu else None,
            "history": self.history,
            "best_metrics": self.best_metrics,
            "without_better": self.without_better,
            "seconds": self._seconds(),
        }
        checkpoints.save(self.directory, len(self.history), state)

    def _resume(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self._put_back(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if self.on_gpu:
            torch.cuda.set_rng_state(state["device_random"], self.model.device)
        self.history, self.best_metrics = state["history"], state["best_metrics"]
        self.best_weights, self.without_better = state["best_weights"], state["without_better"]
        self.seconds_before = state["seconds"]
