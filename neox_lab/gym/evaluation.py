"""How well a model does the tasks of the small world, whatever model it is.

    nl.gym.evaluate(model)              # accuracy and logit difference by task
    nl.gym.evaluate(model).examples     # every prompt, and why some were left out
    nl.gym.pairs(model, "ioi", 8)       # pairs that can be asked
    nl.gym.repeat_loss(model)           # does it look up what came before?

A task asks for one token after a prompt. Another tokenizer may cut an answer into several tokens,
or a prompt and its corrupted twin into different numbers of them; such examples are left out, and
counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import (
    COUNT,
    SEED,
    check,
    name_not_finite,
    one_of,
    require_model,
    several,
    whole,
)
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import pad_rows, pad_token, token_ids
from neox_lab.data.statistics import normal_interval, wilson_interval
from neox_lab.errors import InputError
from neox_lab.family.structure import evaluating
from neox_lab.frames import make_frame
from neox_lab.gym.examples import Pair
from neox_lab.gym.words import PART, Split
from neox_lab.gym.world import TASKS
from neox_lab.model.output_heads import require_head
from neox_lab.progress import counted
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import LanguageModel
    from neox_lab.views import View


class Prompt(NamedTuple):
    """A pair as tokens.

    Attributes:
        clean: tokens of the clean prompt.
        corrupted: tokens of the corrupted one, as many.
        correct: the token that answers.
        wrong: the one to compare it with.
    """

    clean: list[int]
    corrupted: list[int]
    correct: int
    wrong: int


@dataclasses.dataclass(frozen=True)
class Evaluation(Result):
    """Accuracy and logit difference by task; shown in a notebook it is its picture.

    Attributes:
        frame: one row a task: ``task``; ``accuracy``, the share of prompts after which the correct
            token has a higher logit than the wrong one, with Wilson's interval (95 %) from
            ``accuracy_low`` to ``accuracy_high``; ``logit_difference``, correct minus wrong after
            the clean prompt, mean with its 95 % interval (normal) from ``logit_difference_low`` to
            ``logit_difference_high``; ``corrupted_logit_difference``, the same after the corrupted
            prompt; ``count``, how many prompts; ``left_out``, how many could not be asked.
            Numbers are missing where nothing could be asked, and NaN where the model said NaN.
        examples: one row a prompt: the pair, both logit differences, and ``left_out``, the reason,
            or "".
    """

    frame: pd.DataFrame
    examples: pd.DataFrame

    @property
    def accuracy(self) -> float:
        """Mean accuracy of the tasks that could be asked; NaN if one of these is."""
        asked = self.frame["accuracy"][self.frame["count"] > 0]
        return float(asked.mean(skipna=False))

    def view(self) -> View:
        """Accuracy of each task as a bar.

        Raises:
            InputError: nothing could be asked.
        """
        from neox_lab.views import BarsView

        asked = self.frame[self.frame["count"] > 0]
        if asked.empty:
            raise InputError("no example could be asked; see .examples for the reasons")
        names = [
            f"{row.task} ({row.accuracy_low:.2f} to {row.accuracy_high:.2f})"
            for row in asked.itertuples()
        ]
        count, out = int(self.frame["count"].sum()), int(self.frame["left_out"].sum())
        note = f"Accuracy, with its 95 % interval, on {counted(count, 'prompt')}"
        note += f"; {out} left out." if out else "."
        return BarsView(names, asked["accuracy"].to_numpy(), "Tasks of the small world", note)

    def __repr__(self) -> str:
        """The table."""
        shown = self.frame[["task", "accuracy", "logit_difference", "count", "left_out"]]
        return shown.to_string(index=False, float_format=lambda value: f"{value:.3f}")


def tasks(examples: int = 3) -> pd.DataFrame:
    """What there is to ask: every task with some held-out examples.

    Returns:
        One row an example: ``task``, ``description``, ``source`` (the paper that studied it),
        ``clean``, ``corrupted``, ``correct``, ``wrong``.
    """
    return make_frame(
        {
            "task": task.name,
            "description": task.description,
            "source": task.source,
            **dataclasses.asdict(pair),
        }
        for task in TASKS.values()
        for pair in task.pairs(examples)
    )


def evaluate(
    model: LanguageModel,
    tasks: Sequence[str] | None = None,
    *,
    count: int = 200,
    part: Split = "held-out",
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    """Ask a model the tasks of the small world.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer; any, not only the built-in one.
        tasks: names of tasks; None for all.
        count: examples of each (fewer where a task has fewer).
        part: ``held-out`` asks with words or templates that the built-in model was not trained on
            in that task; ``train`` asks as in its training.
        seed: of the examples.
        batch_size: prompts in one forward pass.

    Raises:
        InputError: an unknown task, or a model with another head.
        TokenizerError: a model without tokenizer.
    """
    names = task_names(tasks)
    count = check("count", count, COUNT, InputError)
    check("part", part, PART, InputError)
    check("seed", seed, whole(), InputError)
    return ask(model, {name: TASKS[name].pairs(count, part, seed) for name in names}, batch_size)


def pairs(
    model: LanguageModel, task: str, count: int, part: Split = "held-out", seed: int = 0
) -> list[Pair]:
    """Pairs of a task that this model's tokenizer can be asked.

    Its prompts are as long as each other and its answers one token. Of the built-in model, and of
    whatever reads every word as one token, they are those of ``TASKS[task].pairs``.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        task: its name.
        count: how many.
        part: ``"train"`` or ``"held-out"``, see ``evaluate``.
        seed: of the draw.

    Returns:
        ``count`` pairs, fewer if the task has fewer of this kind.

    Raises:
        InputError: an unknown task, ``count`` is no number of pairs, or there is no such pair.
        TokenizerError: a model without tokenizer.
    """
    require_model(model)
    (name,) = task_names([task])
    count = check("count", count, whole(least=1, most=10_000), InputError)
    check("part", part, PART, InputError)
    check("seed", seed, whole(), InputError)
    found: list[Pair] = []
    reason = ""
    for pair in TASKS[name].pairs(max(200, 4 * count), part, seed):
        prompt, why = as_tokens(model, pair)
        reason = reason or why
        if prompt is not None:
            found.append(pair)
        if len(found) == count:
            break
    if not found:
        raise InputError(f"No prompt of {name} can be asked this model: {reason}.")
    return found


def task_names(tasks: Sequence[str] | None) -> list[str]:
    """The names of tasks that are asked for; None is all.

    Raises:
        InputError: none, or an unknown one.
    """
    if tasks is None:
        return list(TASKS)
    names = several("tasks", tasks, "a list of names", InputError)
    if not names:
        raise InputError(f"tasks is empty; there are {', '.join(TASKS)}.")
    return [check("task", name, one_of(*TASKS), InputError) for name in names]


def ask(
    model: LanguageModel, pairs: Mapping[str, Sequence[Pair]], batch_size: int = 64
) -> Evaluation:
    """Ask a model pairs of prompts, by the names of their tasks; see ``evaluate``.

    Raises:
        InputError: a model with another head, or ``batch_size`` is no count.
        TokenizerError: a model without tokenizer.
    """
    require_model(model)
    require_head(model.head, "causal-lm")
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    rows: list[dict[str, Any]] = []
    prompts: list[Prompt] = []
    for name, pair in ((name, pair) for name, own in pairs.items() for pair in own):
        prompt, reason = as_tokens(model, pair)
        rows.append({"task": name, **dataclasses.asdict(pair), "left_out": reason})
        if prompt is not None:
            prompts.append(prompt)
    differences = iter(logit_differences(model, prompts, batch_size).tolist())
    for row in rows:
        clean, corrupted = (math.nan, math.nan) if row["left_out"] else next(differences)
        row |= {"logit_difference": clean, "corrupted_logit_difference": corrupted}
    examples = make_frame(rows)
    sides = examples[examples["left_out"] == ""].filter(like="logit_difference")
    bad = sides.index[~np.isfinite(sides.to_numpy(dtype=float)).all(axis=1)]
    name_not_finite(
        "The logit difference", (f"example {row} ({examples['task'][row]})" for row in bad)
    )
    frame = make_frame(
        _summary(str(name), group) for name, group in examples.groupby("task", sort=False)
    )
    return Evaluation(frame, examples)


def as_tokens(model: LanguageModel, pair: Pair) -> tuple[Prompt | None, str]:
    """The pair as tokens, or None and the reason why the model's tokenizer does not allow it."""
    texts = [pair.clean, pair.corrupted, pair.clean + pair.correct, pair.clean + pair.wrong]
    clean, corrupted, right, wrong = token_ids(model, texts)
    if len(clean) != len(corrupted):
        return None, f"clean prompt {len(clean)} tokens, corrupted {len(corrupted)}"
    for answer, ids in ((pair.correct, right), (pair.wrong, wrong)):
        if ids[:-1] != clean:
            return None, f"answer {answer!r} is not one token"
    if max(*right, *wrong, *corrupted) >= model.config.vocab_size:
        return None, "the tokenizer has more tokens than the model"
    if len(clean) > model.config.max_position_embeddings:
        return None, f"{len(clean)} tokens are more than the model reads"
    return Prompt(clean, corrupted, right[-1], wrong[-1]), ""


@torch.inference_mode()
def logit_differences(
    model: LanguageModel, prompts: Sequence[Prompt], batch_size: int = 64
) -> Tensor:
    """Logit of the correct minus that of the wrong token, ``[prompt, clean or corrupted]``.

    Float32 on the CPU. The model is in evaluation mode meanwhile.
    """
    found = torch.zeros(len(prompts), 2, dtype=torch.float32)
    pad = pad_token(model)
    with evaluating(model):
        for side in range(2):
            texts = [prompt.corrupted if side else prompt.clean for prompt in prompts]
            for rows in by_length(model, [len(text) for text in texts], batch_size):
                ids, mask = pad_rows([texts[row] for row in rows], pad)
                last = mask.sum(dim=1, keepdim=True) - 1
                logits = model(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    logits_to_keep=last.to(model.device),
                ).logits[:, 0]
                pairs = torch.tensor([[prompts[r].correct, prompts[r].wrong] for r in rows])
                chosen = logits.float().cpu().gather(1, pairs)
                found[rows, side] = chosen[:, 0] - chosen[:, 1]
    return found


@torch.inference_mode()
def repeat_loss(
    model: LanguageModel, length: int = 64, count: int = 32, seed: int = 0
) -> tuple[float, float]:
    """Loss on unrelated tokens, and on the same tokens a second time, in nats per token.

    A model that looks up what followed before, by induction heads or otherwise, finds the second
    copy easy. The tokens are drawn evenly from the whole vocabulary but the first two.

    Args:
        model: a GPTNeoXForCausalLM.
        length: tokens of one copy.
        count: sequences.
        seed: of the tokens.

    Raises:
        InputError: this is no model, or a number out of range.
    """
    require_model(model)
    length = check("length", length, whole(least=2, most=2**20), InputError)
    count = check("count", count, whole(least=1, most=2**20), InputError)
    seed = check("seed", seed, SEED, InputError)
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(2, model.config.vocab_size, (count, length), generator=generator)
    tokens = torch.cat([once, once], dim=1).to(model.device)
    with evaluating(model):
        logits = model(tokens).logits.float()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    bad = (~losses.isfinite().all(dim=1)).nonzero().flatten().tolist()
    name_not_finite("The loss", (f"sequence {row}" for row in bad))
    # The first token of the second copy cannot be known.
    return float(losses[:, : length - 1].mean()), float(losses[:, length:].mean())


def _summary(name: str, group: pd.DataFrame) -> dict[str, Any]:
    """One row of ``Evaluation.frame``."""
    asked = group[group["left_out"] == ""]
    count = len(asked)
    differences = asked["logit_difference"]
    low, high = wilson_interval(int((differences > 0).sum()), count)
    known = bool(differences.notna().all())
    mean_low, mean_high = normal_interval(differences.to_numpy())
    return {
        "task": name,
        "accuracy": float((differences > 0).mean()) if count and known else math.nan,
        "accuracy_low": low if known else math.nan,
        "accuracy_high": high if known else math.nan,
        "logit_difference": float(differences.mean(skipna=False)),
        "logit_difference_low": mean_low,
        "logit_difference_high": mean_high,
        "corrupted_logit_difference": float(asked["corrupted_logit_difference"].mean(skipna=False)),
        "count": count,
        "left_out": len(group) - count,
    }
