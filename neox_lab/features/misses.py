"""How much of what stands at its site a dictionary misses in the very texts of a question.

The features of a dictionary for another model, another site or other weights are active like any
others, and have effects, shares and circuits. What tells is what they leave unexplained:

    sum |y - ŷ|² / sum |y|²        over the tokens of the texts, the first of each left out

A single text has too few tokens for the variance in FVU, which ``dictionary.check`` takes of many.
The first token of a text has activations tens of times as large as others in Pythia and would
decide alone.
"""

from __future__ import annotations

import math

from torch import Tensor

from neox_lab.model.parts import at_least_float32
from neox_lab.notices import tell

# Dictionaries of the built-in model miss up to 0.65 of short texts, odd ones included. That of its
# last MLP misses more than FAR of one token in seven, of 4 tokens in a text of 150, of 5 in none of
# 300 (all English), and of every sixth text of random tokens, however long.
FAR, FEWEST = 0.75, 4


def missed_share(written: Tensor, error: Tensor, own: Tensor) -> float:
    """The share of the squared norm that the features do not write; NaN of first tokens alone.

    Args:
        written: what the features write, with the bias ``[batch, pos, *]``.
        error: what they miss, likewise.
        own: True for the tokens of texts, False for padding ``[batch, pos]``.
    """
    later = _later(own)
    missing = at_least_float32(error.flatten(2)[later.to(error.device)])
    there = written.flatten(2)[later.to(written.device)].to(missing) + missing
    return float(missing.square().sum() / there.square().sum())


def tell_of_misfit(dictionary: object, site: str, share: float, own: Tensor) -> None:
    """Warn of a dictionary that misses most of what stands there, not of too few tokens.

    Args:
        dictionary: the dictionary.
        site: where it writes.
        share: what it misses.
        own: True for the tokens of texts, False for padding ``[batch, pos]``.
    """
    if FAR < share < math.inf and int(_later(own).sum()) >= FEWEST:
        tell(
            f"{dictionary!r} misses {100 * share:.0f} % of what stands at {site} in these texts "
            "(of the squared norm, first tokens left out), so its features say little about this "
            "model: it may belong to another one or to another site, or the texts are unlike those "
            "it was trained on. dictionary.check(model, texts) tries it at its site and around it; "
            "nl.sae.load(.., model=model) does so at once."
        )


def _later(own: Tensor) -> Tensor:
    """Tokens of texts but the first of each ``[batch, pos]``."""
    return own & (own.cumsum(dim=1) > 1)
