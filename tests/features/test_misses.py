"""A dictionary of another model has features like any other; questions say what it misses."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from dictionaries import random_cross_layer, random_dictionary
from oracle import padding_masks, pair, tokens

import neox_lab as nl
from neox_lab.errors import NeoxLabWarning

SITE = "blocks.1.hook_resid_post"
TEXTS = ["Mary has the key.", "The best school of Sweden is in", "1 2 3 4 5 6"]


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("site_in", [SITE, "blocks.1.mlp.hook_in"])
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::neox_lab.errors.NeoxLabWarning")
def test_the_share_that_is_missed(padding: str, site_in: str) -> None:
    model = pair()[1]
    ours = random_dictionary(64, site_in, site_out=SITE)
    ids, mask = tokens(), padding_masks()[padding]
    inputs: Any = ids if mask is None else {"input_ids": ids, "attention_mask": mask}
    _, cache = model.run_with_cache(ids, [ours.site_in, ours.site_out], attention_mask=mask)
    own = torch.ones_like(ids) if mask is None else mask
    missing = there = 0.0
    for text in range(len(ids)):
        x, y = (cache[name][text][own[text].bool()][1:] for name in (ours.site_in, ours.site_out))
        missing += float((y - ours(x)).square().sum())
        there += float(y.square().sum())
    found = nl.features.active(model, ours, inputs)
    assert found.missed == pytest.approx(missing / there, rel=1e-4)
    metric = nl.patching.logit_difference(3, 7)
    effects = nl.features.effects(model, ours, inputs, metric, method="gradient")
    assert effects.facts["missed"] == found.missed


def test_a_dictionary_of_this_model_is_not_warned_of() -> None:
    model, ours = nl.load(), nl.gym.dictionaries()["resid_post_1"]
    metric = nl.patching.logit_difference(" the", " a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in TEXTS:
            found = nl.features.active(model, ours, text)
            assert 0.1 < found.missed < 0.6
            assert f"They miss {100 * found.missed:.0f} %" in repr(found)
            nl.features.effects(model, ours, text, metric, method="gradient")
            nl.features.circuit(model, ours, text, metric)


def test_one_of_another_model_is_warned_of_wherever_it_is_asked() -> None:
    """Step 0 has the same shape and other weights, as another seed or another model has."""
    model, ours = nl.load(revision="step0"), nl.gym.dictionaries()["resid_post_1"]
    metric = nl.patching.logit_difference(" the", " a")
    words = r"misses 1?\d\d % of what stands at blocks\.1\.hook_resid_post in these texts"
    with pytest.warns(NeoxLabWarning, match=words):
        nl.features.active(model, ours, TEXTS[0])
    with pytest.warns(NeoxLabWarning, match=words):
        nl.features.effects(model, ours, TEXTS[0], metric, method="gradient")
    with pytest.warns(NeoxLabWarning, match=words):
        nl.features.circuit(model, ours, TEXTS[0], metric)


def test_two_sides_of_a_question_are_one_warning() -> None:
    model, ours = nl.load(revision="step0"), nl.gym.dictionaries()["resid_post_1"]
    metric = nl.patching.logit_difference(" the", " a")
    for ask in (nl.features.effects, nl.features.circuit):
        with pytest.warns(NeoxLabWarning) as told:
            ask(model, ours, "Mary has the key.", metric, "John has the key.")
        assert len([one for one in told if "misses" in str(one.message)]) == 1


def test_a_token_that_is_missed_is_no_dictionary_of_another_model() -> None:
    """The last MLP writes little for some words, and its dictionary may miss all of that."""
    model, ours = nl.load(), nl.gym.dictionaries()["mlp_3"]
    metric = nl.patching.logit_difference(" the", " a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = nl.features.active(model, ours, "Yes")
        nl.features.effects(model, ours, "Yes", metric, method="gradient")
        nl.features.circuit(model, ours, "Yes", metric)
    assert found.missed > 0.75
    assert "They miss 92 %" in repr(found)


def test_first_tokens_alone_say_nothing() -> None:
    model, ours = nl.load(revision="step0"), nl.gym.dictionaries()["resid_post_1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = nl.features.active(model, ours, torch.tensor([[5]]))
    assert math.isnan(found.missed)
    assert "miss" not in repr(found)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::neox_lab.errors.NeoxLabWarning")
def test_features_of_a_layer_that_write_to_several() -> None:
    """What all layers write at the first site of this one counts: so it stands in the network."""
    model, clt = pair()[1], random_cross_layer(3, 64)
    ids = tokens()
    _, cache = model.run_with_cache(ids, [*clt.sites_in, *clt.sites_out])
    for layer in range(3):
        written = clt.b_dec[layer].expand(*ids.shape, -1).clone()
        for below in range(layer + 1):
            codes = clt.encode_layer(below, cache[clt.sites_in[below]])
            written += codes.dense() @ clt.rows(below, layer)
        y = cache[clt.sites_out[layer]][:, 1:]
        expected = float((y - written[:, 1:]).square().sum() / y.square().sum())
        found = nl.features.active(model, clt.layer(layer), ids)
        assert found.missed == pytest.approx(expected, rel=1e-4)


def test_where_nothing_stands_no_share_of_it_is_told() -> None:
    model, ours = nl.load(), nl.gym.dictionaries()["resid_post_1"]
    with model.hooks([(SITE, lambda x, hook: torch.zeros_like(x))]), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = nl.features.active(model, ours, TEXTS[0])
    assert found.missed == math.inf
    assert "miss" not in repr(found)
