"""Train the heads of the built-in model: ``python -m neox_lab.gym.head_training --out DIR``.

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
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from neox_lab.built_in import revisions
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.loading import load
from neox_lab.files import write_text
from neox_lab.frames import make_frame
from neox_lab.gym import labelled
from neox_lab.gym.train import save_half
from neox_lab.gym.words import Split
from neox_lab.interrupts import whole_answers
from neox_lab.tasks import TrainingSettings, answering, classification, tagging

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel

_log = logging.getLogger("neox_lab")

TESTED = 500
"""Held-out rows that a head is measured on."""


@dataclasses.dataclass(frozen=True)
class HeadRecipe:
    """How one head is made.

    Attributes:
        task: the room that trains and measures it.
        data: makes its labelled rows: a part of the data and how many.
        rows: how many it is trained on.
        settings: of the training.
        more: makes as many more rows, for training.
    """

    task: ModuleType
    data: Callable[[Split, int], Sequence[Mapping[str, object]]]
    rows: int
    settings: TrainingSettings
    more: Callable[[Split, int], Sequence[Mapping[str, object]]] | None = None


_USUAL = TrainingSettings(epochs=4, batch_size=32, learning_rate=1e-3, evaluate_every=10**9)
# Words that are new to a head stay comparable with others while the embedding does not move.
_FROZEN = dataclasses.replace(_USUAL, freeze_below=1, weight_decay=0.1)

RECIPES = {
    "question-answering": HeadRecipe(
        answering,
        labelled.questions,
        24000,
        dataclasses.replace(_FROZEN, epochs=1),
        labelled.rephrased,
    ),
    "sequence-classification": HeadRecipe(classification, labelled.reviews, 4000, _USUAL),
    "token-classification": HeadRecipe(
        tagging, labelled.sentences, 6000, _FROZEN, labelled.fragments
    ),
}
"""From the name of a head to how it is made."""


def examples(head: str, part: Split, count: int) -> pd.DataFrame:
    """Labelled data of ``head`` as a frame."""
    recipe = RECIPES[head]
    rows = list(recipe.data(part, count))
    if part == "train" and recipe.more is not None:
        rows += recipe.more(part, count)
    return make_frame(rows)


def train(head: str, rows: int, settings: TrainingSettings | None = None) -> GPTNeoXPreTrainedModel:
    """The built-in model with one head, trained."""
    settings = settings or RECIPES[head].settings
    torch.manual_seed(settings.seed)
    # A revision comes without trained heads, so that this one is new.
    model = load(head=head, revision=revisions()[-1], labels=labelled.LABELS.get(head))
    with whole_answers():  # it is saved and measured as a trained one
        RECIPES[head].task.train(model, examples(head, "train", rows), settings=settings)
    return model


def measure(model: HookedModel, count: int = TESTED) -> dict[str, float]:
    """The model's metrics on held-out data."""
    task = RECIPES[model.head].task
    found = task.evaluate(model, examples(model.head, "held-out", count)).metrics
    return {name: round(float(value), 4) for name, value in found.items()}


def main(arguments: list[str] | None = None) -> None:
    """Command line: train, save and measure the heads."""
    parser = argparse.ArgumentParser(
        prog="python -m neox_lab.gym.head_training", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--heads", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--rows", type=int, help="examples of each head, instead of the usual")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    for head in options.heads:
        start = time.monotonic()
        rows = options.rows or RECIPES[head].rows
        trained = train(head, rows)
        save_half(trained, options.out / head, torch.bfloat16)
        # What is measured is what was written.
        model = type(trained).from_pretrained(options.out / head, dtype=torch.float32)
        model.tokenizer = trained.tokenizer
        record = {
            "rows": rows,
            "settings": dataclasses.asdict(RECIPES[head].settings),
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
        write_text(options.out / head / "training.json", text)


if __name__ == "__main__":
    main()
