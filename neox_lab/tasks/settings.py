"""How to train: every number that shapes a run, with defaults that suit small data."""

from __future__ import annotations

import dataclasses
from typing import Literal

from neox_lab.errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """The numbers of a training run; the same settings, data and weights give the same result.

    Attributes:
        epochs: passes over the data.
        steps: optimiser steps, instead of ``epochs``.
        batch_size: examples in one forward pass.
        accumulate: forward passes in one step; ``batch_size · accumulate`` examples a step, with
            the gradient that one large batch would give.
        learning_rate: the peak.
        weight_decay: of AdamW, on matrices only, not on biases and layer norms.
        warm_up: share of all steps in which the learning rate rises from 0 to the peak.
        decay: how it falls to 0 afterwards: ``linear``, ``cosine``, or ``constant`` (not at all).
        clip: largest norm of the gradient.
        train: ``all`` weights, the ``head`` only, or ``lora`` (small additions to every matrix of
            the blocks, merged into them at the end; needs the package peft).
        lora_rank: rank of those additions.
        freeze_below: with a number above 0, the embedding and the layers below it stay fixed.
        precision: ``float32``, or ``bfloat16`` for mixed precision.
        evaluate_every: steps between evaluations; None for once an epoch.
        patience: stop after this many evaluations without a better one, and go back to the best.
        save_every: steps between checkpoints, where a directory is given.
        seed: of the order of examples and of dropout.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warm_up: float = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    clip: float = 1.0
    train: Literal["all", "head", "lora"] = "all"
    lora_rank: int = 8
    freeze_below: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_every: int | None = None
    patience: int | None = None
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: one is out of range; the message names it.
        """
        above_zero = ("epochs", "batch_size", "accumulate", "learning_rate", "clip", "save_every")
        for name in (*above_zero, "steps", "evaluate_every", "patience", "lora_rank"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value!r}; expected a number above 0.")
        if not 0 <= self.warm_up <= 1:
            raise InputError(f"warm_up={self.warm_up!r}; expected a share of all steps, 0 to 1.")
        for name, choices in (
            ("decay", ("linear", "cosine", "constant")),
            ("train", ("all", "head", "lora")),
            ("precision", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name}={getattr(self, name)!r}; expected one of {', '.join(choices)}."
                )
