"""The explorer: one prompt, what the model makes of it, and every panel linked to the others.

    nl.explore(model, "The king went to the")
    nl.explore(model, "The king went to the city", "The king went to a city")    # compared
    nl.explore(model, text, against=nl.load("EleutherAI/pythia-70m-deduped"))    # another model
    nl.explore(model, text, revisions=["step0", "step512", "step6000", "main"])  # over training

    reading     two runs on a prompt: lens, attention, what every part writes
    revisions   checkpoints of one training
    questions   what is asked further: switching off, patching, attribution
    opened      panels that are computed when they are opened: features, circuits, steering
    tools       what these work with
    selection   what is selected
    examples    prompts to click
    widget      the live widget
    calls       the same as Python
    saving      panels as files

What is drawn is ``views/explorer.py`` and its scripts, with or without a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from neox_lab.checks import TEXT, check, shown
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.widgets.explorer.revisions import Load, Revisions
from neox_lab.widgets.explorer.tools import checked
from neox_lab.widgets.explorer.widget import ExplorerWidget

if TYPE_CHECKING:
    from neox_lab.experiments.lens import TunedLens
    from neox_lab.sae import Dictionary
    from neox_lab.steering import Direction

__all__ = ["ExplorerWidget", "explore"]


def explore(
    model: GPTNeoXForCausalLM,
    prompt: str,
    second: str = "",
    *,
    against: GPTNeoXForCausalLM | None = None,
    revisions: Sequence[str] | Mapping[str, Load] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    tuned: TunedLens | None = None,
    direction: Direction | None = None,
) -> ExplorerWidget:
    """Look at one run of a model in panels that are linked: select something, and all follow.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        prompt: what it reads, of up to 256 tokens.
        second: another prompt to compare with; with as many tokens also to patch from.
        against: another model to compare with, on ``second`` or on the same prompt.
        revisions: names of its checkpoints over training, the last of them ``model`` itself, or a
            function that loads the model for each name; a slider walks over them, with one in
            memory at a time.
        dictionaries: of features, by name, for the panel of these; the built-in model has its own.
        tuned: a tuned lens for its panel; of the built-in model a small one is trained there.
        direction: to steer along; else it leads from the second prompt to the first.

    Returns:
        A live widget; ``.result`` is the same as a view that needs no kernel, and
        ``.result.to_html("page.html")`` a page of its own.

    Raises:
        InputError: a model that cannot write or has no tokenizer, a prompt that is no text, or
            fewer than two revisions, or something of another kind.
        CheckpointError: names of revisions of a model that came from a directory, which is one.
    """
    for name, text in (("prompt", prompt), ("second", second)):
        check(name, text, TEXT, InputError)
    if revisions is not None and not isinstance(revisions, Sequence | Mapping):
        raise InputError(
            f"revisions={shown(revisions)}; expected a list of names, or a mapping from names to "
            "functions that load the model."
        )
    walk = None if revisions is None else Revisions(model, revisions)
    return ExplorerWidget(
        model, prompt, second, against, checked(dictionaries, tuned, direction, walk)
    )
