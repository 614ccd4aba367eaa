"""Causal models written as functions: interventions, pairs, roles; those of the gym."""

from __future__ import annotations

import re
from typing import Any

import pytest

import neox_lab as nl
from neox_lab.errors import InputError, NoSuchNameError
from neox_lab.interchange import CausalModel, Pairs, Site, accuracy


def giving() -> CausalModel:
    """Who receives, in one sentence."""
    return CausalModel(
        "{a} and {b} met. {giver} gave a book to",
        {
            "giver_is_first": lambda a, giver: giver == a,
            "receiver": lambda a, b, giver_is_first: b if giver_is_first else a,
        },
        lambda receiver: f" {receiver}",
        roles={"first": ("a", 0), "giver": "giver"},
    )


ANNA: dict[str, Any] = {"a": "Anna", "b": "Tom", "giver": "Anna"}
TOM: dict[str, Any] = {"a": "Ben", "b": "Tom", "giver": "Tom"}


def test_an_intervention_reaches_what_follows() -> None:
    model = giving()
    assert model.text(ANNA) == "Anna and Tom met. Anna gave a book to"
    assert model.values(ANNA) == {"giver_is_first": True, "receiver": "Tom"}
    assert model.label_of(ANNA) == " Tom"
    assert model.values(ANNA, giver_is_first=False)["receiver"] == "Anna"
    assert model.label_of(ANNA, giver_is_first=False) == " Anna"
    assert model.label_of(ANNA, receiver="Ben", giver_is_first=False) == " Ben"
    assert model.counterfactual(ANNA, TOM, "giver_is_first") == " Anna"
    assert model.counterfactual(ANNA, TOM, "receiver") == " Ben"


def test_pairs_have_the_labels_of_the_causal_model() -> None:
    model = giving()
    same = {"a": "Sue", "b": "Tim", "giver": "Sue"}
    inputs = [ANNA, TOM, same]
    pairs = model.pairs(inputs, "giver_is_first", 6)
    assert len(set(zip(pairs.base, pairs.source, strict=True))) == len(pairs) == 6
    by_text = {model.text(fields): fields for fields in inputs}
    for row in range(6):
        base, source = by_text[str(pairs.base[row])], by_text[str(pairs.source[row])]
        assert pairs.base_labels[row] == model.label_of(base)
        assert pairs.labels[row] == model.counterfactual(base, source, "giver_is_first")
    kept = {(pairs.base[row], pairs.source[row]) for row in range(6)} - {
        (pairs.base[row], pairs.source[row]) for row in pairs.changing
    }
    assert kept == {(model.text(a), model.text(b)) for a, b in ((ANNA, same), (same, ANNA))}
    assert model.pairs(inputs, "giver_is_first", 6) == pairs
    one, other = pairs.split(0.5, seed=1)
    assert len(one) == len(other) == 3
    assert not set(zip(one.base, one.source, strict=True)) & set(
        zip(other.base, other.source, strict=True)
    )
    train, test = pairs.split(1 / 3)
    assert (len(train), len(test)) == (4, 2), "the share is of what is held out"
    assert sorted(pairs.permuted().labels) == sorted(pairs.labels)  # type: ignore[type-var]


def test_roles_are_where_their_words_end() -> None:
    pairs = giving().pairs([ANNA, TOM], "receiver", 1)
    base = str(pairs.base[0])
    for role, occurrence in (("first", base.index), ("giver", base.rindex)):
        word = "Anna" if base.startswith("Anna") else {"first": "Ben", "giver": "Tom"}[role]
        assert pairs.roles[role][0] == [occurrence(word) + len(word) - 1]


@pytest.mark.parametrize("name", ["ioi", "greater_than", "tracking"])
def test_the_built_in_model_agrees_with_the_gyms_causal_models(name: str) -> None:
    model, task = nl.load(), nl.gym.CAUSAL[name]
    for variable in task.model.variables:
        pairs = task.pairs(variable, 60)
        assert pairs.changing
        site = nl.interchange.Site(("resid_pre", 0), next(iter(task.model.roles)))
        result = nl.interchange.accuracy(model, pairs, site)
        assert result.base_accuracy > 0.8
        assert pairs == task.pairs(variable, 60)


def test_what_is_wrong_is_explained() -> None:
    model = giving()
    with pytest.raises(InputError, match="expected one of giver_is_first, receiver"):
        model.label_of(ANNA, reciever="Ben")
    with pytest.raises(InputError, match="reads 'a', which is neither"):
        model.values({"giver": "Anna"})
    with pytest.raises(InputError, match="make no pair"):
        model.pairs([ANNA], "receiver")
    with pytest.raises(InputError, match="The role 'first' is occurrence"):
        model.pairs([ANNA, {**TOM, "a": "", "giver": "Tom"}], "receiver")
    with pytest.raises(InputError, match="cannot be written"):
        model.text({"a": "Anna"})
    with pytest.raises(InputError, match="expected a token"):
        CausalModel("{a}", {"v": lambda a: a}, lambda v: None).label_of(ANNA)  # type: ignore
    with pytest.raises(InputError, match="expected functions by name"):
        CausalModel("{a}", {}, lambda a: a)
    with pytest.raises(InputError, match="part='test'"):
        nl.gym.CAUSAL["ioi"].pairs("receiver", 5, "test")  # type: ignore[arg-type]


def test_what_is_wrong_with_pairs_is_explained() -> None:
    model = nl.load()
    given: dict[str, Any] = {
        "base": [" Anna went", " Tom went"],
        "source": [" Tom went", " Anna went"],
        "base_labels": ["a", "b"],
        "labels": ["b", "a"],
    }
    for words, more in (
        ("holds 'one'; expected the number", {"roles": {"x": ([0, 0], ["one", 1])}}),
        ("holds 0.5", {"roles": {"x": ([0, 0.5], [0, 1])}}),
        ("expected the tokens of each", {"choices": ["a", "b"]}),
    ):
        with pytest.raises(InputError, match=words):
            Pairs(**given, **more)
    for choices in ({"a": [3, 4], "b": [4, 5]}, {"a": [3, 3], "b": [5]}):
        with pytest.raises(InputError, match="stands in choices twice"):
            accuracy(model, Pairs(**given, choices=choices), Site(("resid_post", 0), -1))
    pairs = Pairs(**given)
    assert pairs.rows([False, True]).base == [" Tom went"]  # type: ignore[comparison-overlap]
    assert pairs.rows(range(1)).base == [" Anna went"]  # type: ignore[comparison-overlap]
    for which in ([2], "ab", 1.5, None, []):
        with pytest.raises(InputError):
            pairs.rows(which)  # type: ignore[arg-type]


def test_a_task_without_a_causal_model_is_named_with_those_that_have_one() -> None:
    with pytest.raises(NoSuchNameError, match="causal model is called 'agreement'; there are ioi"):
        nl.gym.CAUSAL["agreement"]
    with pytest.raises(NoSuchNameError, match=r"task is called 'agrement'.*agreement"):
        nl.gym.TASKS["agrement"]


def test_the_site_in_the_modules_example_is_one_of_its_task() -> None:
    from neox_lab.gym import causal

    shown = re.findall(r'nl\.interchange\.Site\(\(.*?\), "\w+"\)', causal.__doc__ or "")
    site = eval(shown[0], {"nl": nl})
    held_out = nl.gym.CAUSAL["ioi"].pairs("giver_is_first", 100)
    assert nl.interchange.accuracy(nl.load(), held_out, site).frame["accuracy"][0] > 0.3
