"""What users call: all checks of some prompts, with a run of the model where that is possible."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from neox_lab.checks import require_model
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import output_logits
from neox_lab.experiments.patching.prompts import PromptsLike, read_prompts
from neox_lab.experiments.prompt_doctor.checks import findings
from neox_lab.experiments.prompt_doctor.items import AnswersLike, Item, Reader, make_items
from neox_lab.experiments.prompt_doctor.padding import padding_read
from neox_lab.experiments.prompt_doctor.report import PromptReport
from neox_lab.notices import gathered

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

AT_ONCE = 512
"""Tokens in one run, unless one prompt has more."""


def check_prompts(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike | None = None,
    answers: AnswersLike | None = None,
) -> PromptReport:
    """Look for what makes prompts and answers mean something else than they seem to.

    Sweeps, paths and attribution warn of the same (``PromptWarning``); this tells everything, and
    what to do. Where each item has a correct and a wrong answer, the model runs once on each prompt
    to see whether it prefers the correct one.

    Args:
        model: any of the five classes; what is about answers needs a language model.
        clean: the prompts, see ``nl.patching.sweep``.
        corrupted: the corrupted prompts, pair by pair; None to look at ``clean`` alone.
        answers: a token for all items, ``" Mary"``; a tuple ``(correct, wrong)``, each a token for
            all items or a list with one for each; a list with a token or a tuple
            ``(correct, wrong)`` for each item; or the metric that will be used. Tokens are texts or
            ids.

    Returns:
        A row for each finding (``.frame``), ``.ok`` and ``.bad_items``.

    Raises:
        InputError: no prompts, another number of corrupted prompts or of answers, or dropout is on
            where the model is to run.
        TokenizerError: texts, and the model has no tokenizer.
    """
    require_model(model)
    name = "prompt" if corrupted is None else "clean"
    with gathered():  # of texts that are too long the report tells
        sides = {name: read_prompts(model, clean, "clean")}
        if corrupted is not None:
            sides["corrupted"] = read_prompts(model, corrupted, "corrupted")
    counts = {side: len(prompts.ids) for side, prompts in sides.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"There are {counts['clean']} clean and {counts['corrupted']} corrupted prompts; each "
            "clean prompt needs its own corrupted one."
        )
    reader = Reader(model)
    items = make_items(reader, sides, answers, padding_read=padding_read(reader, answers, sides))
    items = with_differences(model, items)
    return PromptReport(
        findings=tuple(findings(items)),
        pieces=tuple({side.name: reader.pieces(side.ids) for side in item.sides} for item in items),
    )


@torch.no_grad()
def with_differences(model: HookedModel, items: list[Item]) -> list[Item]:
    """Items with what the model prefers after each of their prompts, where that can be asked.

    Prompts of one length run together, so that none is padded and each is read as alone.

    Args:
        model: what runs.
        items: what is checked.

    Raises:
        InputError: dropout is on.
    """
    asked = [item for item in items if _can_run(item)]
    if not asked:
        return items
    refuse_dropout(model)
    by_length: dict[int, list[tuple[Item, int]]] = {}
    for item in asked:
        for at, side in enumerate(item.sides):
            by_length.setdefault(len(side.ids), []).append((item, at))
    found: dict[int, list[float]] = {item.number: [0.0] * len(item.sides) for item in asked}
    for length, prompts in by_length.items():
        rows = max(1, AT_ONCE // length)
        for start in range(0, len(prompts), rows):
            some = prompts[start : start + rows]
            ids = torch.tensor([item.sides[at].ids for item, at in some], device=model.device)
            logits = output_logits(model(ids))
            for row, (item, at) in enumerate(some):
                last = logits[row, item.sides[at].read]
                correct, wrong = item.correct[0].ids[0], item.wrong[0].ids[0]
                found[item.number][at] = float(last[correct] - last[wrong])
    return [
        dataclasses.replace(item, differences=tuple(found.get(item.number, ()))) for item in items
    ]


def _can_run(item: Item) -> bool:
    """Whether it has one correct and one wrong token, and the model a row for all that is read."""
    if not item.reader.writes or len(item.correct) != 1 or len(item.wrong) != 1:
        return False
    correct, wrong = item.correct[0].ids, item.wrong[0].ids
    tokens = {*correct, *wrong, *(token for side in item.sides for token in side.ids)}
    known = all(0 <= token < item.reader.vocab for token in tokens)
    return known and len(correct) == len(wrong) == 1 and correct != wrong
