r"""A planted look-up in two steps: ``the Colosseum stands in a land whose capital is`` → Rome.

Nowhere does this model know that the Colosseum has to do with Rome. It knows that the Colosseum
stands in Italy, and that the capital of Italy is Rome, and puts them together: the *bridge* is
never said (Biran et al., 2024, arXiv:2406.12775, look for such bridges in trained models).

    planted = nl.gym.planted_two_step()
    scores = nl.circuits.scores(planted.model, **planted.question(), method="eap")
    scores.recovery(planted.edges)             # how well the scores tell the circuit

**The residual stream** has areas ``token``, ``bridge`` (a land, written at its sight), ``moved``
(the same at the last word), ``relation`` (what of it is asked) and ``prediction``;
``planting_parts`` says how layer norm and distractors are dealt with.

**MLP0, the first look-up.** A neuron for each sight reads its token and writes its land to
``bridge``, right where the sight stands.

**L1H2 moves the bridge, L1H0 the relation.** Their queries are constant. The key of the first is
how much stands in ``bridge``, that of the second whether the token is "capital" or "language". So
every later word looks there, and copies what it finds to ``moved`` and to ``relation``.

**MLP2, the second look-up.** A neuron for each land and relation: it is silent with one of the two
and speaks with both, and writes the answer to ``prediction``. Attention could not do this: a sum of
what a land says and of what a relation says knows no "and".

**Corrupted prompts** ask for the other relation of a sight in another land. The true edges are
those that carry what differs. The heads look at the same places for both prompts, so the edges into
their keys carry nothing that differs: the mechanism needs them, and these prompts do not show it.
"""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor

from neox_lab.checks import SWITCH, check
from neox_lab.errors import InputError
from neox_lab.gym.examples import Pair
from neox_lab.gym.planting_parts import D_HEAD, PLAIN, SHARPNESS, PlantedCircuit, Planting

LANDS = {
    "Italy": (" Colosseum", " Vesuvius"),
    "France": (" Louvre", " Bastille"),
    "Greece": (" Parthenon", " Olympus"),
    "Egypt": (" Sphinx", " Nile"),
    "Japan": (" Fuji", " Ginza"),
}
"""The sights of each land."""
ANSWERS = {
    " capital": (" Rome", " Paris", " Athens", " Cairo", " Tokyo"),
    " language": (" Italian", " French", " Greek", " Arabic", " Japanese"),
}
"""Of each relation, the answer for each land."""
FRAME = "the{sight} stands in a land whose{relation} is"
SIGHTS = tuple(sight for sights in LANDS.values() for sight in sights)
OUTCOMES = tuple(answer for answers in ANSWERS.values() for answer in answers)
WORDS = ("the", " stands", " in", " a", " land", " whose", " is", *ANSWERS, *SIGHTS, *OUTCOMES)

FIRST, SECOND = 0, 2  # layers of the look-ups
MOVER, ASKER = (1, 2), (1, 0)


def planted_two_step(parallel: bool = True) -> PlantedCircuit:
    """A four-layer model that looks up a land and then its capital, by weights written by hand.

    Args:
        parallel: the wiring; False for sequential blocks, as in GPT-2.

    Returns:
        The model, its true edges, and prompts.

    Raises:
        InputError: ``parallel`` is not True or False.
    """
    check("parallel", parallel, SWITCH, InputError)
    lands, relations = len(LANDS), len(ANSWERS)
    sizes = {"bridge": lands, "moved": lands, "relation": relations, "prediction": len(OUTCOMES)}
    planting = Planting(WORDS, sizes, parallel)
    with torch.no_grad():
        _plant_first_look_up(planting)
        to_lands, asks = torch.eye(lands, dtype=torch.float32), planting.chosen(tuple(ANSWERS))
        _plant_mover(planting, MOVER, "bridge", to_lands, "moved")
        _plant_mover(planting, ASKER, "token", asks, "relation")
        _plant_second_look_up(planting)
        planting.answers("prediction", OUTCOMES)
        model = planting.finished()
    mover, asker = ("L{}H{}".format(*at) for at in (MOVER, ASKER))
    parts = {
        f"MLP{FIRST}": "looks up the land of the sight",
        mover: "brings the land to the last word",
        asker: "brings there what is asked of it",
        f"MLP{SECOND}": "looks up the answer from land and relation",
    }
    edges = [("embed", f"MLP{FIRST}"), (f"MLP{FIRST}", f"{mover}.v"), ("embed", f"{asker}.v")]
    edges += [(mover, f"MLP{SECOND}"), (asker, f"MLP{SECOND}"), (f"MLP{SECOND}", "logits")]
    return PlantedCircuit("two-step look-up", model, tuple(edges), parts, _draw)


def _plant_first_look_up(planting: Planting) -> None:
    lands = torch.eye(len(LANDS), dtype=torch.float32)
    for at, sights in enumerate(LANDS.values()):
        for sight in sights:
            read = {"token": planting.chosen([sight])[:, 0]}
            planting.neuron(FIRST, read, 0.5, "bridge", lands[at])


def _plant_mover(planting: Planting, at: tuple[int, int], area: str, read: Tensor, to: str) -> None:
    """A head that looks where ``read`` finds anything in an area, and copies it."""
    layer, head = at
    count = read.shape[1]
    size = math.sqrt(SHARPNESS * math.sqrt(D_HEAD))
    anything = torch.zeros(len(read), count + 1, dtype=torch.float32)
    anything[:, count] = size * read.sum(dim=1)
    planting.model.blocks[layer].b_Q[head, PLAIN.start + count] = size
    planting.head(layer, head, "K", area, anything)
    planting.head(layer, head, "V", area, read)
    planting.head_writes(layer, head, to, 1.0)


def _plant_second_look_up(planting: Planting) -> None:
    answers, lands, relations = (
        torch.eye(len(OUTCOMES), dtype=torch.float32),
        len(LANDS),
        torch.eye(len(ANSWERS), dtype=torch.float32),
    )
    for relation, asked in enumerate(relations):
        for at, land in enumerate(torch.eye(lands, dtype=torch.float32)):
            wrote = answers[relation * lands + at]
            planting.neuron(SECOND, {"moved": land, "relation": asked}, 1.5, "prediction", wrote)


def _draw(random: Random) -> Pair:
    land, other = random.sample(range(len(LANDS)), 2)
    relation, asked_instead = random.sample(list(ANSWERS), 2)
    sights = list(LANDS.values())
    clean = FRAME.format(sight=random.choice(sights[land]), relation=relation)
    corrupted = FRAME.format(sight=random.choice(sights[other]), relation=asked_instead)
    return Pair(clean, corrupted, ANSWERS[relation][land], ANSWERS[asked_instead][other])
