"""Probes: planted signals, controls, directions, and what does not change a result."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid

import neox_lab as nl
from neox_lab.errors import DataError, HookNameError, InputError
from neox_lab.experiments import probing

PLACES = ["king", "man", "people", "house", "river", "law", "city", "friend", "book", "day"]
VERBS = ["saw", "found", "left", "knew", "made", "lost"]
TEXTS = [
    f"{who} {verb} the {place}"
    for who, verb, place in itertools.product(["He", "They"], VERBS, PLACES)
]
LABELS = ["one" if text.startswith("He") else "many" for text in TEXTS]


@cache
def model() -> Any:
    return nl.load()


@cache
def result() -> Any:
    return nl.probing.probe(model(), TEXTS, LABELS)


def test_what_the_texts_say_is_found_at_every_layer() -> None:
    frame = result().frame
    layers = range(model().config.num_hidden_layers)
    assert frame["site"].tolist() == [f"blocks.{n}.hook_resid_post" for n in layers]
    assert (frame["score"].iloc[1:] > 0.9).all()
    assert (frame["low"] <= frame["score"]).all()
    assert (frame["score"] <= frame["high"]).all()
    assert result().baseline == pytest.approx(0.5, abs=0.05)
    assert sum(result().counts) == len(TEXTS)
    assert result().best.confusion.sum() == result().counts[2]


def test_shuffled_labels_give_chance() -> None:
    scores = []
    for seed in range(6):
        shuffled = np.random.default_rng(seed).permutation(LABELS)
        scores.append(nl.probing.probe(model(), TEXTS, list(shuffled), seed=seed).frame["score"])
    assert abs(np.mean(scores) - 0.5) < 0.12
    assert abs(result().frame["control"].mean() - 0.5) < 0.3


def test_a_signal_planted_by_a_hook_appears_at_its_layer() -> None:
    labels = np.random.default_rng(3).integers(0, 2, len(TEXTS)).tolist()
    marks = {
        tuple(model().tokenizer(text).input_ids): label
        for text, label in zip(TEXTS, labels, strict=True)
    }
    vector = torch.randn(model().config.hidden_size, generator=torch.Generator().manual_seed(0))

    def plant(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        signs = torch.zeros(len(resid))
        for row, ids in enumerate(current[: len(resid)]):
            signs[row] = 2 * marks[ids] - 1
        del current[: len(resid)]
        return resid + signs[:, None, None] * vector

    rows = [tuple(model().tokenizer(text).input_ids) for text in TEXTS]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    current = [rows[row] for row in order]
    with model().hooks([("blocks.2.hook_resid_pre", plant)]):
        found = nl.probing.probe(model(), TEXTS, labels, sites=["resid_pre"]).frame
    score = dict(zip(found["site"], found["score"], strict=True))
    assert score["blocks.2.hook_resid_pre"] == score["blocks.3.hook_resid_pre"] == 1.0
    assert score["blocks.0.hook_resid_pre"] < 0.75
    assert score["blocks.1.hook_resid_pre"] < 0.75


@pytest.mark.parametrize("method", ["linear", "difference"])
def test_batches_and_files_change_nothing(method: str) -> None:
    frames = [
        nl.probing.probe(model(), TEXTS, LABELS, method=method, **arguments).frame
        for arguments in ({}, {"batch_size": 7}, {"memory": 0})
    ]
    for frame in frames[1:]:
        np.testing.assert_allclose(frame["score"], frames[0]["score"])
        np.testing.assert_allclose(frame["control"], frames[0]["control"])


def test_estimators_are_scikit_learns() -> None:
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(60, 8)), chance.integers(0, 3, 60)
    for weight, bias, alpha in probing._ridge(x, probing._columns(y, 3)):
        ridge = Ridge(alpha=alpha).fit(x, 2 * np.eye(3)[y] - 1)
        np.testing.assert_allclose(weight, ridge.coef_, atol=1e-6)
        np.testing.assert_allclose(bias, ridge.intercept_, atol=1e-6)
    weight, bias = probing._means(x, y, 3)
    fresh = chance.normal(size=(200, 8))
    expected = NearestCentroid().fit(x, y).predict(fresh)
    assert ((fresh @ weight.T + bias).argmax(axis=1) == expected).all()


def test_directions_change_what_the_probe_says() -> None:
    text = TEXTS[:1]
    site = "blocks.2.hook_resid_post"
    said = {}
    for label in ("one", "many"):
        name, push = result().steer(site, 60.0, label)
        with model().hooks([(name, push)]):
            said[label] = result().predict(model(), text, site)["prediction"][0]
    assert said == {"one": "one", "many": "many"}
    assert result().direction(site).norm() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(result().direction(site, "one"), -result().direction(site, "many"))

    name, drop = result().remove(site)
    with model().hooks([(name, drop)]):
        _, cache = model().run_with_cache(TEXTS[:5], name)
    along = cache[name] @ result().direction(site)
    assert along.std() < 1e-3


def test_numbers_of_few_texts() -> None:
    texts, site = TEXTS[:5], "blocks.0.hook_resid_post"
    found = nl.probing.probe(model(), texts, [0.1, 0.7, 0.3, 0.9, 0.5], sites=site).frame
    assert found[["score", "control", "low", "high"]].isna().all(axis=None)  # one text is tested
    said, right = np.array([[1.0], [2.1], [3.0]]), np.array([1.0, 2.0, 3.0])
    low, high = probing._interval(said, right, False)  # a ninth of all draws are one text
    assert math.isnan(low) and high <= 1
    said, right = np.arange(12.0)[:, None] + 0.1 * np.cos(np.arange(12))[:, None], np.arange(12.0)
    low, high = probing._interval(said, right, False)
    assert 0.9 < low < probing._score(said, right, False) < high <= 1


def test_numbers_and_groups() -> None:
    lengths = [float(len(text)) for text in TEXTS]
    found = nl.probing.probe(model(), TEXTS, lengths, sites="blocks.0.hook_resid_post", pos="mean")
    assert found.labels == []
    assert found.frame["score"][0] > 0.3 > found.frame["control"][0]
    assert found.predict(model(), TEXTS[:2])["prediction"].dtype == float
    assert found.direction(0).shape == (model().config.hidden_size,)

    groups = [text.split()[1] for text in TEXTS]
    train, validation, test = probing._parts(
        np.array([label == "one" for label in LABELS]).astype(int), ["a", "b"], groups, 0
    )
    sides = [{groups[row] for row in part} for part in (train, validation, test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_a_result_shows_itself() -> None:
    assert result().to_png()[:4] == b"\x89PNG"
    assert "control" in repr(result())
    assert "text/html" in result()._repr_mimebundle_()
    assert result()[-1] is result().probes[model().config.num_hidden_layers - 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": LABELS[:5]}, DataError, "120 texts and 5 labels"),
        ({"labels": ["a"] * 120}, DataError, "all labels are 'a'"),
        ({"labels": ["a"] * 118 + ["b"] * 2}, DataError, "fewer than 5 texts for"),
        ({"labels": [1.5] * 120}, DataError, "not all the same"),
        ({"labels": [1.5] * 60 + [2.5] * 60, "method": "difference"}, InputError, "numbers"),
        ({"method": "forest"}, InputError, "method='forest'"),
        ({"sites": "resid_pots"}, HookNameError, "resid"),
        ({"sites": "pattern"}, InputError, "has no axis 'pos'"),
        ({"pos": 40}, InputError, "tokens and no position 40"),
        ({"pos": "first"}, InputError, "pos='first'"),
        ({"pos": [1, 2]}, InputError, "pos has 2 entries; expected one, or 120"),
        ({"groups": ["x"] * 120}, DataError, "1 texts or groups"),
        ({"groups": ["x"]}, DataError, "120 texts and 1 groups"),
    ],
)
def test_questions_that_make_no_sense(change: dict[str, Any], error: Any, message: str) -> None:
    arguments: dict[str, Any] = {"labels": LABELS} | change
    with pytest.raises(error, match=message):
        nl.probing.probe(model(), TEXTS, **arguments)
    with pytest.raises(InputError, match="label='none'"):
        result().direction(0, "none")
    with pytest.raises(InputError, match="no probe 'x'"):
        _ = result()["x"]
    assert result()[np.int64(-1)] is result().probes[-1]
    for wrong in (True, 1.0, len(result().probes)):
        with pytest.raises(InputError, match="site="):
            _ = result()[wrong]


def test_sites_of_several_kinds_are_several_lines_over_the_layers() -> None:
    layers = [str(layer) for layer in range(model().config.num_hidden_layers)]
    found = nl.probing.probe(model(), TEXTS, LABELS, sites=["hook_embed", "attn_out", "mlp_out"])
    view = found.view()
    assert view.x_names == ["hook_embed", *layers]
    assert list(view.lines)[::2] == ["accuracy", "attn_out, accuracy", "mlp_out, accuracy"]
    scores = found.frame.query("site.str.endswith('mlp_out')")["score"]
    assert view.lines["mlp_out, accuracy"].y.tolist() == pytest.approx(scores.tolist())
    assert view.lines["mlp_out, accuracy"].x.tolist() == list(range(1, len(layers) + 1))
    one = nl.probing.probe(model(), TEXTS, LABELS, sites=["hook_embed", "resid_post"]).view()
    assert one.x_names == ["hook_embed", *(f"{layer} resid_post" for layer in layers)]
    assert list(one.lines) == ["accuracy", "control (shuffled labels)"]


@pytest.mark.parametrize(
    ("text", "message"), [("", "row 7: has no token"), ("a " * 900, r"row 7: \d+ tokens")]
)
def test_texts_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        nl.probing.probe(model(), [*TEXTS[:7], text, *TEXTS[8:]], LABELS, pos="mean")


@pytest.mark.parametrize("texts", [200, 30])
def test_ridge_is_scikit_learns(texts: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(3, 2, (texts, 60)) @ generator.normal(0, 1, (60, 60))
    x[:, 7] = 1.0  # a direction in which nothing differs
    columns = generator.normal(1, 1, (texts, 3))
    for weight, bias, alpha in probing._ridge(x, columns):
        ridge = Ridge(alpha=alpha).fit(x, columns)
        np.testing.assert_allclose(weight, ridge.coef_, atol=1e-8)
        np.testing.assert_allclose(bias, ridge.intercept_, atol=1e-8)


def test_equal_texts_stay_on_one_side_of_the_split() -> None:
    """Labels by chance: what is learnt by heart from copies would be found again in the test."""
    texts = TEXTS[::2] * 4
    chance = np.random.default_rng(1).integers(0, 2, len(TEXTS[::2])).tolist() * 4
    with pytest.warns(UserWarning, match="Of 240 texts only 60 differ"):
        found = nl.probing.probe(model(), texts, chance, sites="blocks.3.hook_resid_post")
    assert found.frame["score"][0] < 0.8
    read = probing._as_read(model(), texts, -1)
    with pytest.warns(UserWarning, match="only 60 differ"):
        together = probing._together(read, None)
    train, validation, test = probing._parts(np.array(chance), ["a", "b"], together, 0)
    sides = [{texts[row] for row in part} for part in (train, validation, test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert sum(map(len, sides)) == 60


def test_texts_are_equal_up_to_the_position_that_is_read() -> None:
    texts = ["He saw the king", "He saw the man", "They saw the king", "He saw the king now"]
    assert probing._as_read(model(), texts, 1).tolist() == [0, 0, 1, 0]
    assert probing._as_read(model(), texts, 3).tolist() == [0, 1, 2, 0]
    assert probing._as_read(model(), texts, [1, 0, -1, 3]).tolist() == [0, 1, 2, 3]
    assert probing._as_read(model(), texts, "mean").tolist() == [0, 1, 2, 3]


def test_groups_of_the_user_and_equal_texts_are_joined() -> None:
    read = np.array([0, 1, 1, 2, 3, 3, 4])
    groups = ["a", "a", "b", "c", "c", "d", "e"]
    with pytest.warns(UserWarning, match="Of 7 texts only 5"):
        found = probing._together(read, groups)
    assert found is not None
    joined = [{row for row in range(7) if found[row] == number} for number in sorted(set(found))]
    assert joined == [{0, 1, 2}, {3, 4, 5}, {6}]
    assert probing._together(np.arange(7), groups) is groups
