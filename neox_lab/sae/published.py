"""What others measured, to hold a dictionary against.

``pythia-70m-deduped``, ``10_32768``: the tables in the README of saprmarks/dictionary_learning.
Statistics over a small random sample of the Pile; variance explained is by the definition
``dictionary_learning`` of ``quality``. Any Pile-like text gives them to within some points; whether
position 0 is counted changes those of the residual stream.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "README of saprmarks/dictionary_learning, 10_32768"


class Figures(NamedTuple):
    """What was published of one dictionary.

    Attributes:
        explained_variance: of 1.
        l0: active features of a token.
        alive: share of the features that were active within 8,192 tokens.
        loss_rise: of the model's loss, in nats, with the dictionary in place.
        loss_recovered: of what zeros in the place would cost, of 1.
    """

    explained_variance: float
    l0: float
    alive: float
    loss_rise: float
    loss_recovered: float


_MODEL, _WIDTH, _LATENTS = "pythia-70m-deduped", 512, 32768
_TABLE: dict[str, str] = {  # explained %, L0, alive %, rise of the loss, recovered %
    "blocks.0.hook_attn_out": "92 128 17 .02 99",
    "blocks.1.hook_attn_out": "87 127 17 .02 94",
    "blocks.2.hook_attn_out": "90 215 12 .03 95",
    "blocks.3.hook_attn_out": "89 169 13 .05 93",
    "blocks.4.hook_attn_out": "83 132 14 .01 95",
    "blocks.5.hook_attn_out": "89 144 20 .02 93",
    "blocks.0.hook_mlp_out": "97 5 40 .10 99",
    "blocks.1.hook_mlp_out": "85 69 44 .06 95",
    "blocks.2.hook_mlp_out": "99 88 31 .11 88",
    "blocks.3.hook_mlp_out": "88 160 25 .12 94",
    "blocks.4.hook_mlp_out": "92 100 29 .14 90",
    "blocks.5.hook_mlp_out": "96 102 35 .15 97",
    "hook_embed": "96 3 36 .17 98",
    "blocks.0.hook_resid_post": "92 59 41 .24 97",
    "blocks.1.hook_resid_post": "85 54 38 .45 95",
    "blocks.2.hook_resid_post": "96 108 27 .55 94",
    "blocks.3.hook_resid_post": "96 68 22 .58 95",
    "blocks.4.hook_resid_post": "88 61 27 .48 95",
    "blocks.5.hook_resid_post": "90 72 45 .55 92",
}


def figures(model: str, site: str, kind: str, width: int, latents: int) -> Figures | None:
    """What was published of a dictionary, or None.

    Args:
        model: its name or path.
        site: hook point.
        kind: of the dictionary.
        width: of what it reads.
        latents: how many features it has.
    """
    fits = (kind, width, latents) == ("ReLU", _WIDTH, _LATENTS) and _MODEL in model
    if not fits or site not in _TABLE:
        return None
    explained, l0, alive, rise, recovered = map(float, _TABLE[site].split())
    return Figures(explained / 100, l0, alive / 100, rise, recovered / 100)
