"""What an attribution graph explains: logits over their mean, or one over another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import several, shown
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import output_ids

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

PROBABILITY, MOST_LOGITS = 0.95, 10
"""The logits of a graph: the likeliest tokens up to this probability together, at most so many."""

Target = str | int | list[str] | list[int] | tuple[str, str] | tuple[int, int]
"""A token as text or as id; a list of them; or a pair, for the difference of their logits."""


class Targets(NamedTuple):
    """What is explained.

    Attributes:
        ids: tokens ``[target]``.
        minus: the tokens whose logits are subtracted ``[target]``; None for the mean of all logits.
        probability: of the tokens, NaN of a difference ``[target]``.
        weight: how much each counts where influences are added up ``[target]``.
    """

    ids: Tensor
    minus: Tensor | None
    probability: Tensor
    weight: Tensor

    def read(self, logits: Tensor) -> Tensor:
        """Their values from ``[.., vocab]``, as ``[.., target]``."""
        if self.minus is None:
            return logits[..., self.ids] - logits.mean(dim=-1, keepdim=True)
        return logits[..., self.ids] - logits[..., self.minus]

    def of(self, weight: Tensor) -> Tensor:
        """The same of the rows of an unembedding or of its bias, ``[vocab, ..]``."""
        return weight[self.ids] - (weight.mean(dim=0) if self.minus is None else weight[self.minus])


def likeliest(logits: Tensor) -> Targets:
    """The likeliest tokens, up to a probability together; each counts by its own.

    Args:
        logits: ``[vocab]``.
    """
    best = logits.softmax(dim=-1).topk(min(MOST_LOGITS, len(logits)))
    before = best.values.cumsum(dim=0) - best.values
    count = int((before < PROBABILITY).sum())
    chances = best.values[:count]
    return Targets(best.indices[:count], None, chances, chances)


def targets_of(model: HookedModel, target: object) -> tuple[list[int], int | None]:
    """The ids of tokens that a user named, and the id of the one that is subtracted.

    Args:
        model: with a tokenizer, if tokens are named as text.
        target: what was given.

    Raises:
        InputError: something else, a token twice, or a pair that is none.
        TokenizerError: a text is not exactly one token.
    """
    if isinstance(target, str | int):
        listed: list[object] = [target]
    else:
        listed = several("target", target, "tokens, such as [' Anna', ' Tom']", InputError)
    ids = []
    for one in listed:
        if not isinstance(one, str | int):
            raise InputError(f"target has {shown(one)}; expected tokens, as text or as ids.")
        ids.append(int(output_ids(model, one)))
    if not ids or len(set(ids)) < len(ids):
        raise InputError(f"target={shown(target)}; expected at least one token, and none twice.")
    if not isinstance(target, tuple):
        return ids, None
    if len(ids) != 2:
        raise InputError(
            f"target={shown(target)} has {len(ids)} tokens; a tuple means the logit of its first "
            "over that of its second. Give several tokens as a list."
        )
    return ids[:1], ids[1]


def own_targets(logits: Tensor, ids: list[int], minus: int | None) -> Targets:
    """Tokens that a user named; each counts as much.

    Args:
        logits: ``[vocab]``.
        ids: of the tokens.
        minus: of the one whose logit is subtracted, or None.
    """
    chosen = torch.tensor(ids, device=logits.device)
    weight = logits.new_full((len(ids),), 1 / len(ids))
    if minus is not None:
        subtracted = torch.tensor([minus], device=logits.device)
        return Targets(chosen, subtracted, torch.full_like(weight, torch.nan), weight)
    return Targets(chosen, None, logits.softmax(dim=-1)[chosen], weight)
