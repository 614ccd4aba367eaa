"""What the tests of this folder share: small data sets, and a trainer around a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from upstream.library import ANSWER, CAUSAL, SEQUENCE, Library, ids

POS = 8


def examples(kind: str = CAUSAL, count: int = 12, seed: int = 0) -> Dataset:
    """Token ids with what the loss of ``kind`` asks; some tokens of some rows ask for nothing."""
    inputs = ids(count, POS, seed=seed)
    columns: dict[str, Any] = {"input_ids": inputs.tolist()}
    columns["attention_mask"] = torch.ones_like(inputs).tolist()
    if kind == ANSWER:
        columns["start_positions"] = [row % POS for row in range(count)]
        columns["end_positions"] = [(row + 2) % POS for row in range(count)]
    elif kind == SEQUENCE:
        columns["labels"] = [row % 2 for row in range(count)]
    else:
        labels = inputs.clone() if kind == CAUSAL else inputs % 2
        for row in range(count):
            labels[row, : row % 5] = -100
        columns["labels"] = labels.tolist()
    return Dataset.from_dict(columns)


def model_of(library: Library, kind: str = CAUSAL, **values: Any) -> Any:
    """A small model without dropout, so that training it is the same every time."""
    return library.model(kind, std=0.05, classifier_dropout=0.0, **values)


def trainer_of(model: Any, folder: Path, kind: str = CAUSAL, **arguments: Any) -> Trainer:
    """A trainer that logs every step; ``arguments`` are TrainingArguments' or Trainer's own."""
    own = ("data_collator", "processing_class", "compute_metrics", "callbacks")
    of_trainer = {name: arguments.pop(name) for name in own if name in arguments}
    settings: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "optim": "sgd",  # in proportion to the gradients, so that rounding stays small
        "learning_rate": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    return Trainer(
        model,
        TrainingArguments(str(folder), **(settings | arguments)),
        train_dataset=examples(kind),
        eval_dataset=examples(kind, count=6, seed=1),
        **of_trainer,
    )


def logged(trainer: Trainer, name: str = "loss") -> list[float]:
    """What the log holds under ``name``, step by step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
