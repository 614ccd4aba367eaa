"""How to train: every number that shapes a run, with defaults that suit small data."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from neox_lab.checks import Kind, check, number, one_of, or_none, whole
from neox_lab.errors import InputError

_COUNT, _AMOUNT = whole(above=0), number(above=0)
_SHARE = number(least=0, most=1)._replace(words="a share of all steps, from 0 to 1")
_KINDS: dict[str, Kind[object]] = {
    "epochs": number(above=0, below=1e9),
    "steps": or_none(_COUNT),
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "learning_rate": number(above=0, below=math.inf),
    "weight_decay": number(least=0, below=math.inf),
    "warm_up": _SHARE,
    "decay": one_of("linear", "cosine", "constant"),
    "clip": _AMOUNT,
    "train": one_of("all", "head", "lora"),
    "lora_rank": _COUNT,
    "freeze_below": whole(least=0),
    "precision": one_of("float32", "bfloat16"),
    "evaluate_every": or_none(_COUNT),
    "patience": or_none(_COUNT),
    "save_every": _COUNT,
    "seed": whole(),
}


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
        for name, kind in _KINDS.items():
            object.__setattr__(self, name, check(name, getattr(self, name), kind, InputError))
