"""The prompts a circuit was found with, and others in their place."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from neox_lab.checks import require_model
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.patching.prompts import Prompts, PromptsLike, read_prompts
from neox_lab.experiments.prompt_pairs import Pair, pair
from neox_lab.notices import gathered

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


@dataclasses.dataclass(frozen=True)
class Asked:
    """What scores were asked for.

    Attributes:
        model: any class with a head.
        clean: prompts with the behaviour.
        corrupted: their other side.
        metric: what is measured.
    """

    model: HookedModel
    clean: PromptsLike
    corrupted: PromptsLike
    metric: Metric

    def pair(self) -> Pair:
        """Both sides; patches come from the corrupted and go into the clean prompts.

        Raises:
            InputError: the prompts or the metric do not fit.
        """
        require_model(self.model)
        return pair(self.model, self.corrupted, self.clean, self.metric)


def seen_before(known: Asked | None, both: Pair) -> int | None:
    """How many of the prompts are among those that a circuit was found with.

    Args:
        known: what it was found with.
        both: prompts; the clean ones stand on its ``corrupted`` side.

    Returns:
        None where nobody knows what it was found with.
    """
    if known is None:
        return None
    with gathered():  # told when they were first read
        first = read_prompts(known.model, known.clean, "clean")
    found, rows = _rows(first), _rows(both.corrupted.prompts)
    return sum(row in found for row in rows)


def in_sample(seen: int | None, count: int) -> str:
    """What a number of prompts that were seen before means for a result, or nothing.

    Args:
        seen: so many, see ``seen_before``.
        count: all of them.
    """
    if not seen:
        return ""
    return "in-sample" if seen == count else f"{seen} of {count} prompts in-sample"


def _rows(prompts: Prompts) -> list[tuple[int, ...]]:
    """The tokens of each text, without padding."""
    return [tuple(ids[own].tolist()) for ids, own in zip(prompts.ids, prompts.own, strict=True)]


def width_of(known: Asked | None, d_model: int | None) -> int:
    """The width of the model, from it or as it is given.

    Args:
        known: what the circuit was found with.
        d_model: what the user gave.

    Raises:
        InputError: nobody says.
    """
    if d_model is not None:
        return d_model
    if known is None:
        raise InputError("This came from a file and no longer knows its model: give d_model=.")
    return known.model.config.hidden_size


def prompts_of(
    known: Asked | None,
    clean: PromptsLike | None,
    corrupted: PromptsLike | None,
    metric: Metric | None,
    model: HookedModel | None,
) -> Pair:
    """The prompts that are meant: those that are given, otherwise those that are known.

    Args:
        known: what the circuit was found with.
        clean: other prompts, or None.
        corrupted: their other side, or None.
        metric: another metric, or None.
        model: another model, or None.

    Raises:
        InputError: only one side is given, or something is neither given nor known.
    """
    if (clean is None) != (corrupted is None):
        raise InputError("Give both clean and corrupted prompts, or neither.")
    if clean is None and known is None:
        raise InputError(
            "This came from a file and no longer knows its prompts. Give clean, corrupted, metric "
            "and model."
        )
    if clean is not None and metric is None:
        raise InputError("Other prompts need their metric: give metric=, with their answers.")
    if known is None:
        if model is None:
            raise InputError("This came from a file and no longer knows its model: give model=.")
        assert clean is not None and corrupted is not None and metric is not None
        return Asked(model, clean, corrupted, metric).pair()
    asked = Asked(
        known.model if model is None else model,
        known.clean if clean is None else clean,
        known.corrupted if corrupted is None else corrupted,
        known.metric if metric is None else metric,
    )
    if all(given is None for given in (clean, metric, model)):
        with gathered():  # told when they were first read
            return asked.pair()
    return asked.pair()
