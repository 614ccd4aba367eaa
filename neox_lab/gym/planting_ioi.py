r"""A planted circuit for indirect objects: ``When Mary and Tom went …, Tom gave a ring to`` → Mary.

It does by hand-written weights what Wang et al. (2022, arXiv:2211.00593) found in GPT-2: find the
name that comes twice, keep the heads that copy names away from it, copy the other one.

    planted = nl.gym.planted_ioi()
    scores = nl.circuits.scores(planted.model, **planted.question(), method="exact")
    scores.recovery(planted.edges)             # how well the scores tell the circuit

**The residual stream** has areas ``token``, ``duplicate`` (which name stood here before?),
``inhibited`` (which name shall not be said?) and ``prediction``; ``planting_parts`` says how layer
norm and distractors are dealt with.

**L0H1, duplicate token.** Query and key are the token, if it is a name: they agree where the same
name stands. A name agrees with itself too, so there is a term that depends on the distance alone
and is large and negative at 0: it comes from biases of the pairs that turn by position, since
Σ a_i cos(d θ_i) + b_i sin(d θ_i) can be any function of a few distances d, and least squares say by
which a, b. A name that did not come before has nowhere to look; the word "When" is half a match for
everyone, so that there the head rests, and reads nothing. The head copies the name it finds to
``duplicate``.

**L1H2, S-inhibition.** Its query is constant. Its key is how much stands in ``duplicate``, so that
the last word looks at the second "Tom"; again "When" is a place to rest. It copies ``duplicate`` to
``inhibited``.

**L2H0 and L2H3, name movers, and L3H1, a negative one.** The query wants all names, and twice minus
what is ``inhibited``; the key is the token, if it is a name. So the last word looks at Mary. The
first two copy the name to ``prediction``, the last writes a part of it with a minus sign, as such
heads in GPT-2 do: its edges hurt.

**Corrupted prompts** have three other names, ``When Ann and Bob went …, Eve gave a ring to``: no
name twice, so that nothing is shared that the answer depends on, and each edge of the circuit takes
a part of the answer with it when it is removed.
"""

from __future__ import annotations

import math
from random import Random

import torch

from neox_lab.checks import SWITCH, check
from neox_lab.errors import InputError
from neox_lab.gym.examples import Pair
from neox_lab.gym.planting_parts import (
    D_HEAD,
    PAIRS,
    PLAIN,
    POSITIONS,
    SHARPNESS,
    PlantedCircuit,
    Planting,
)
from neox_lab.model.rotary import inverse_frequencies

NAMES = (" Mary", " Tom", " Ann", " Bob", " Eve", " Carl", " Ruth", " Paul", " Kate", " Jack")
PLACES, THINGS = (" park", " shop", " school", " lake"), (" ring", " book", " key", " watch")
FRAME = "When{0} and{1} went to the{place},{2} gave a{thing} to"
WORDS = ("When", " and", " went", " to", " the", ",", " gave", " a", *PLACES, *THINGS, *NAMES)

DUPLICATE, INHIBITION = (0, 1), (1, 2)
MOVERS = {(2, 0): 0.75, (2, 3): 0.5, (3, 1): -0.25}
"""Heads that copy names, and how strongly."""


def planted_ioi(parallel: bool = True) -> PlantedCircuit:
    """A four-layer model that says who receives a gift, by heads written by hand.

    Args:
        parallel: the wiring; False for sequential blocks, as in GPT-2.

    Returns:
        The model, its true edges, and prompts.

    Raises:
        InputError: ``parallel`` is not True or False.
    """
    check("parallel", parallel, SWITCH, InputError)
    names = len(NAMES)
    planting = Planting(
        WORDS, {"duplicate": names, "inhibited": names, "prediction": names}, parallel
    )
    with torch.no_grad():
        _plant_duplicate_token(planting)
        _plant_inhibition(planting)
        for (layer, head), size in MOVERS.items():
            _plant_mover(planting, layer, head, size)
        planting.answers("prediction", NAMES)
        model = planting.finished()
    return PlantedCircuit("indirect object", model, _edges(), _parts(), _draw)


def _size(score: float) -> float:
    """The size of query and key that gives a score where they agree."""
    return math.sqrt(score * math.sqrt(D_HEAD))


def _plant_duplicate_token(planting: Planting) -> None:
    layer, head = DUPLICATE
    match = _size(2 * SHARPNESS)
    names = planting.chosen(NAMES)
    planting.head(layer, head, "Q", "token", match * names)
    planting.head(layer, head, "K", "token", match * names)
    planting.head(layer, head, "V", "token", names)
    planting.head_writes(layer, head, "duplicate", 1.0)
    _plant_rest(planting, layer, head)
    block = planting.model.blocks[layer]
    angles, _ = inverse_frequencies(planting.model.config)  # by which each pair turns in one step
    turned = torch.arange(POSITIONS)[:, None] * angles.double()
    away = torch.zeros(POSITIONS, dtype=torch.float64)
    away[0] = -2.5 * SHARPNESS * math.sqrt(D_HEAD)  # from the name itself
    waves = torch.cat((turned.cos(), turned.sin()), dim=1)
    block.b_Q[head, :PAIRS] = 1
    # what is small among the waves is left out: the weights would be huge
    solved = torch.linalg.lstsq(waves, away[:, None], rcond=1e-3, driver="gelsd").solution
    block.b_K[head, : 2 * PAIRS] = solved[:, 0]


def _plant_rest(planting: Planting, layer: int, head: int) -> None:
    """Whoever finds nothing looks at "When", which counts half a match."""
    size, at = _size(SHARPNESS), len(NAMES)
    when = torch.zeros(len(planting.words), at + 1, dtype=torch.float32)
    when[planting.numbers(["When"]), at] = size
    planting.head(layer, head, "K", "token", when)
    planting.model.blocks[layer].b_Q[head, PLAIN.start + at] = size


def _plant_inhibition(planting: Planting) -> None:
    layer, head = INHIBITION
    at, match = len(NAMES), _size(SHARPNESS)
    any_name = torch.zeros(at, at + 1, dtype=torch.float32)
    any_name[:, at] = 2 * match
    planting.head(layer, head, "K", "duplicate", any_name)
    planting.head(layer, head, "V", "duplicate", torch.eye(at, dtype=torch.float32))
    planting.head_writes(layer, head, "inhibited", 1.0)
    _plant_rest(planting, layer, head)


def _plant_mover(planting: Planting, layer: int, head: int, size: float) -> None:
    match = _size(SHARPNESS)
    names = planting.chosen(NAMES)
    block = planting.model.blocks[layer]
    block.b_Q[head, PLAIN.start : PLAIN.start + len(NAMES)] = match
    planting.head(
        layer, head, "Q", "inhibited", -2 * match * torch.eye(len(NAMES), dtype=torch.float32)
    )
    planting.head(layer, head, "K", "token", match * names)
    planting.head(layer, head, "V", "token", names)
    planting.head_writes(layer, head, "prediction", size)


def _edges() -> tuple[tuple[str, str], ...]:
    duplicate, inhibition, *movers = (f"L{i}H{j}" for i, j in (DUPLICATE, INHIBITION, *MOVERS))
    edges = [("embed", f"{duplicate}.{part}") for part in "qkv"]
    edges += [(duplicate, f"{inhibition}.{part}") for part in "kv"]
    for mover in movers:
        edges += [(inhibition, f"{mover}.q"), ("embed", f"{mover}.k"), ("embed", f"{mover}.v")]
        edges.append((mover, "logits"))
    return tuple(edges)


def _parts() -> dict[str, str]:
    parts = {
        "L{}H{}".format(*DUPLICATE): "duplicate token: a name that came before is noted",
        "L{}H{}".format(*INHIBITION): "S-inhibition: brings the note to the last word",
    }
    for at, size in MOVERS.items():
        does = "name mover: copies" if size > 0 else "negative name mover: speaks against"
        parts["L{}H{}".format(*at)] = f"{does} the name that is not inhibited"
    return parts


def _draw(random: Random) -> Pair:
    who = random.sample(NAMES, 5)
    words = {"place": random.choice(PLACES), "thing": random.choice(THINGS)}
    first = who[:2] if random.random() < 0.5 else who[1::-1]
    clean = FRAME.format(*first, who[1], **words)
    corrupted = FRAME.format(*who[2:], **words)
    return Pair(clean, corrupted, who[0], who[1])
