"""Train the heads of the built-in model: ``python -m neox_lab.gym.heads --out DIR``.

Each head starts from the finished language model and learns, with all weights, from the labelled
data of the small world. ``DIR`` gets a directory for each head, with its checkpoint and
``training.json``: settings, versions, and what was measured on held-out words and templates.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from neox_lab.built_in import revisions
from neox_lab.family.loading import load
from neox_lab.gym import labelled
from neox_lab.gym.train import save_half
from neox_lab.gym.words import Split
from neox_lab.tasks import TrainingSettings, answering, classification, tagging

_log = logging.getLogger("neox_lab")

TASKS: dict[str, Any] = {
    "question-answering": answering,
    "sequence-classification": classification,
    "token-classification": tagging,
}
"""From a head to the room that trains and measures it."""
DATA: dict[str, Any] = {
    "question-answering": labelled.questions,
    "sequence-classification": labelled.reviews,
    "token-classification": labelled.sentences,
}
"""From a head to what makes its data."""
MORE: dict[str, Any] = {
    "question-answering": labelled.rephrased,
    "token-classification": labelled.fragments,
}
"""From a head to what makes as many more rows, for training."""
_USUAL = TrainingSettings(epochs=4, batch_size=32, learning_rate=1e-3, evaluate_every=10**9)
# Words that are new to a head stay comparable with others while the embedding does not move.
_FROZEN = dataclasses.replace(_USUAL, freeze_below=1, weight_decay=0.1)
SETTINGS = {
    "question-answering": dataclasses.replace(_FROZEN, epochs=1),
    "sequence-classification": _USUAL,
    "token-classification": _FROZEN,
}
ROWS = {"question-answering": 24000, "sequence-classification": 4000, "token-classification": 6000}
TESTED = 500


def examples(head: str, part: Split, count: int) -> Any:
    """Labelled data of ``head`` as a frame."""
    import pandas as pd

    rows = DATA[head](part, count)
    if part == "train" and head in MORE:
        rows += MORE[head](part, count)
    return pd.DataFrame(rows)


def train(head: str, rows: int, settings: TrainingSettings | None = None) -> Any:
    """The built-in model with one head, trained."""
    settings = settings or SETTINGS[head]
    torch.manual_seed(settings.seed)
    # A revision comes without trained heads, so that this one is new.
    model = load(head=head, revision=revisions()[-1], labels=labelled.LABELS.get(head))
    TASKS[head].train(model, examples(head, "train", rows), settings=settings)
    return model


def measure(model: Any, count: int = TESTED) -> dict[str, float]:
    """The model's metrics on held-out data."""
    found = TASKS[model.head].evaluate(model, examples(model.head, "held-out", count)).metrics
    return {name: round(float(value), 4) for name, value in found.items()}


def main(arguments: list[str] | None = None) -> None:
    """Command line: train, save and measure the heads."""
    parser = argparse.ArgumentParser(prog="python -m neox_lab.gym.heads", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--heads", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rows", type=int, help="examples of each head, instead of the usual")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    for head in options.heads:
        start = time.monotonic()
        rows = options.rows or ROWS[head]
        trained = train(head, rows)
        save_half(trained, options.out / head, torch.bfloat16)
        # What is measured is what was written.
        model = type(trained).from_pretrained(options.out / head, dtype=torch.float32)
        model.tokenizer = trained.tokenizer
        record = {
            "rows": rows,
            "settings": dataclasses.asdict(SETTINGS[head]),
            "minutes": round((time.monotonic() - start) / 60, 1),
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "tokenizers", "numpy")},
            },
            "held_out_rows": TESTED,
            "held_out": measure(model),
        }
        _log.info("%s: %s", head, record["held_out"])
        text = json.dumps(record, indent=1) + "\n"
        (options.out / head / "training.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
