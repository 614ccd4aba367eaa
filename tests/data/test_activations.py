"""Activations of many texts: one vector of each, whatever its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import neox_lab as nl
from neox_lab.data.activations import collected, site_names
from neox_lab.errors import DataError, HookNameError, InputError


def test_activations_are_those_of_the_model() -> None:
    model = nl.load()
    texts = ["The king went home.", "People", "It is the duty of every man"]
    names = site_names(model, ["resid_post", "z", "blocks.1.mlp.hook_post"])
    assert len(names) == 2 * model.config.num_hidden_layers + 1
    with (
        collected(model, texts, names, -1) as last,
        collected(model, texts, names, "mean") as m,
    ):
        for row, text in enumerate(texts):
            _, cache = model.run_with_cache(text)
            for name in names:
                whole = cache[name][0].flatten(1)
                np.testing.assert_allclose(last[name][row], whole[-1], atol=2e-5)
                np.testing.assert_allclose(m[name][row], whole.mean(dim=0), atol=2e-5)
    with collected(model, texts, names[:1], [1, 0, 2]) as chosen:
        _, cache = model.run_with_cache(texts[2])
        np.testing.assert_allclose(chosen[names[0]][2], cache[names[0]][0, 2], atol=2e-5)


def test_what_does_not_fit_into_memory_is_the_same_in_files() -> None:
    model, texts = nl.load(), ["The king went home.", "People"]
    with (
        collected(model, texts, ["blocks.0.hook_resid_post"], -1) as here,
        collected(model, texts, ["blocks.0.hook_resid_post"], -1, memory=0) as there,
    ):
        (one,), (other,) = here.values(), there.values()
        assert isinstance(other, np.memmap)
        np.testing.assert_array_equal(one, other)
        file = Path(str(other.filename))
        assert file.exists()
    assert not file.exists()


def test_sites_and_texts_that_cannot_be_read() -> None:
    model = nl.load()
    with pytest.raises(InputError, match=r"sites holds -1.*'resid_post' is that site of every"):
        site_names(model, ("resid_post", -1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no axis 'pos'"):
        site_names(model, "attn_scores")
    with pytest.raises(HookNameError):
        site_names(model, [])
    for text, message in (("", "row 1: has no token"), ("a " * 900, r"row 1: \d+ tokens")):
        with (
            pytest.raises(DataError, match=message),
            collected(model, ["People", text], ["hook_embed"], -1),
        ):
            pass
