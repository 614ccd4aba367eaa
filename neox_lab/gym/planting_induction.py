"""The planted induction heads as a circuit: ``qwertyqw`` → e, with true edges and prompts.

``planting`` says how the weights do it. Corrupted prompts have two letters swapped, ``qrewtyqw``:
every letter that the head may copy stands in both, but another one came before it.
"""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from neox_lab.gym.examples import Pair
from neox_lab.gym.planting import HEADS, planted
from neox_lab.gym.planting_parts import PlantedCircuit


def planted_induction() -> PlantedCircuit:
    """The model of ``planted()``, as a circuit.

    The true edges carry which letter came before another one: from the embedding to the
    previous-token head, from there to the key of the induction head, and on to the logits. What
    else the induction head reads, its query and value, both prompts share.
    """
    before, copies = ("L{}H{}".format(*HEADS[name]) for name in ("previous_token", "induction"))
    parts = {
        before: "previous token: notes which letter came before",
        copies: "induction: looks where the present letter came before, copies what stands there",
    }
    edges = (("embed", f"{before}.v"), (before, f"{copies}.k"), (copies, "logits"))
    return PlantedCircuit("induction", planted(), edges, parts, _draw)


def _draw(random: Random) -> Pair:
    a, b, c, d, *rest = random.sample(ascii_lowercase, 6)
    end = "".join(rest)
    return Pair(f"{a}{b}{c}{d}{end}{a}{b}", f"{a}{d}{c}{b}{end}{a}{b}", c, rest[0])
