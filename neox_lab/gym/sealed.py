"""The sealed set: what the built-in model can do where nobody looked while it was made.

    python -m neox_lab.gym.sealed       # the table of the card
    nl.gym.sealed.evaluate(model)       # the same, for any model
    nl.gym.sealed.items()               # every prompt

The recipe of the built-in model was chosen while looking at the held-out part of the tasks. The
items here were written after the model was finished, and before it was asked any of them; nothing
that trains reads them, and tests see to that. Their sentences are other ones than those of the
world: no sentence of an item has the frame of one that the generators make, or holds one, or is
part of one. Only ``induction`` has items that are nothing but a list, as in training; those have
other words, or are longer. The words of all tasks are those of the world, known and held out alike,
drawn evenly.

Keep it sealed: a model that is trained or chosen by these figures needs a new set.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neox_lab.checks import SEED, check
from neox_lab.data.statistics import statistic_interval, wilson_interval
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.gym.evaluation import Evaluation, ask, task_names
from neox_lab.gym.examples import Pair

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import LanguageModel

__all__ = ["SealedEvaluation", "evaluate", "items"]

FILE = Path(__file__).with_name("sealed.json")
CHANCE = 0.5
"""Of accuracy and of ``moved``, for a model that knows nothing."""

MEASURED = ("frames_low", "frames_high", "moved", "moved_low", "moved_high")


@dataclasses.dataclass(frozen=True)
class SealedEvaluation(Evaluation):
    """Accuracy and logit difference by task, as in ``Evaluation``, and by sentence frame.

    Attributes:
        frame: the columns of ``Evaluation.frame``, and ``frames``, how many sentence frames were
            asked; ``frames_low`` and ``frames_high``, a 95 % interval of the accuracy by
            bootstrap over whole frames, which is wider than Wilson's where frames differ;
            ``chance``; and ``moved``, the share of items whose logit difference is larger after
            the clean prompt than after the corrupted one, with Wilson's interval from
            ``moved_low`` to ``moved_high``. A model that has one answer to every prompt has an
            accuracy of 0.5, but may be moved the right way by each.
        examples: the columns of ``Evaluation.examples``, and ``sentence``, the frame of the item.
    """

    @property
    def by_sentence(self) -> pd.DataFrame:
        """One row a sentence frame: ``task``, ``sentence``, ``right``, ``count``, ``accuracy``."""
        asked = self.examples[self.examples["left_out"] == ""]
        right = asked.assign(right=asked["logit_difference"] > 0)
        groups = right.groupby(["task", "sentence"], sort=False)["right"]
        found = groups.agg(right="sum", count="count", accuracy="mean")
        return found.reset_index()


@functools.cache
def _read() -> dict[str, list[tuple[str, Pair]]]:
    """Sentence frame and pair of every item, by task."""
    tasks = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        name: [
            (
                group["frame"],
                Pair(
                    group["frame"].format(**clean),
                    group["frame"].format(**(clean | changed)),
                    f" {correct}",
                    f" {wrong}",
                ),
            )
            for group in groups
            for clean, changed, correct, wrong in group["items"]
        ]
        for name, groups in tasks.items()
    }


def items() -> pd.DataFrame:
    """Every item of the sealed set.

    Returns:
        One row an item: ``task``, ``sentence`` (its frame), ``clean``, ``corrupted``, ``correct``,
        ``wrong``.
    """
    return make_frame(
        {"task": name, "sentence": sentence, **dataclasses.asdict(pair)}
        for name, pairs in _read().items()
        for sentence, pair in pairs
    )


def evaluate(
    model: LanguageModel,
    tasks: Sequence[str] | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> SealedEvaluation:
    """Ask a model all items of the sealed set.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer; any, not only the built-in one.
        tasks: names of tasks; None for all.
        batch_size: prompts in one forward pass.
        seed: of the bootstrap.

    Raises:
        InputError: an unknown task or none, a model with another head, or a number out of range.
        TokenizerError: a model without tokenizer.
    """
    seed = check("seed", seed, SEED, InputError)
    chosen = {name: _read()[name] for name in task_names(tasks)}
    found = ask(model, {n: [p for _, p in pairs] for n, pairs in chosen.items()}, batch_size)
    sentences = [sentence for pairs in chosen.values() for sentence, _ in pairs]
    examples = found.examples.assign(sentence=sentences)
    told = SealedEvaluation(found.frame, examples)
    more = [_more(told, name, seed) for name in found.frame["task"]]
    return SealedEvaluation(found.frame.assign(**make_frame(more)), examples)


def _more(found: SealedEvaluation, name: str, seed: int) -> dict[str, float]:
    """The columns that ``SealedEvaluation.frame`` adds, for one task."""
    rows = found.by_sentence
    right, count = (rows[rows["task"] == name][of].to_numpy() for of in ("right", "count"))
    items = found.examples[(found.examples["task"] == name) & (found.examples["left_out"] == "")]
    clean, corrupted = items["logit_difference"], items["corrupted_logit_difference"]
    more = {"frames": len(count), "chance": CHANCE}
    if not len(items) or clean.isna().any() or corrupted.isna().any():
        return more | dict.fromkeys(MEASURED, math.nan)
    moved = int((clean > corrupted).sum())
    intervals = (
        *statistic_interval(len(count), lambda at: right[at].sum() / count[at].sum(), seed=seed),
        moved / len(items),
        *wilson_interval(moved, len(items)),
    )
    return more | dict(zip(MEASURED, intervals, strict=True))


def main() -> None:
    """Print the figures of the built-in model, by task and by sentence frame."""
    from neox_lab.family.loading import load

    found = evaluate(load())
    figures = ["task", "accuracy", "accuracy_low", "accuracy_high", "frames_low", "frames_high"]
    figures += ["chance", "moved", "moved_low", "moved_high", "frames", "count", "left_out"]
    print(found.frame[figures].to_string(index=False, float_format="{:.3f}".format))
    print(f"\nmean accuracy {found.accuracy:.3f}\n")
    for row in found.by_sentence.itertuples():
        print(f"{row.task:13}{row.right:3} of {row.count}  {row.sentence}")


if __name__ == "__main__":
    main()
