"""Interchange inside spliced dictionaries, and in models of narrow numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dictionaries import random_dictionary
from patching_oracle import small

import neox_lab as nl
from neox_lab.errors import HookError
from neox_lab.interchange import Pairs, Site, accuracy, das, run

HOOK = "blocks.0.hook_resid_post"


def pairs(seed: int) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    base, source = torch.randint(2, 50, (2, 6, 5), generator=generator)
    return Pairs(base, source, list(range(3, 9)), list(range(20, 26)))  # type: ignore


@pytest.mark.parametrize("few", [False, True])
def test_features_of_a_dictionary_are_exchanged(few: bool) -> None:
    """As if what the features write had been added by hand."""
    model, given, names = small().double(), pairs(0), f"{HOOK}.hook_sae_acts"
    dictionary = random_dictionary(model.config.hidden_size, HOOK).double()
    base, source = torch.tensor(given.base), torch.tensor(given.source)
    with model.spliced(dictionary):
        acts = [
            model.run_with_cache(ids, names)[1][names][:, -2].double() for ids in (base, source)
        ]
        difference = acts[1] - acts[0]
        chosen = difference.abs().sum(dim=0).argsort(descending=True)[: 3 if few else None]
        subspace = torch.eye(dictionary.latents, dtype=torch.float64)[:, chosen] if few else None
        site = Site(names, -2, subspace=subspace)
        found = run(model, base, (site, source)).logits
        with pytest.raises(HookError, match=r"interchange\.run runs whole texts"):
            accuracy(model, given, site)
        with pytest.raises(HookError, match="leave its with block"):
            das(model, given, pairs(1), Site(names, -2))
    written = difference[:, chosen] @ dictionary.rows[chosen].double()

    def add(x: torch.Tensor, hook: Any) -> None:
        x[:, -2] += written

    with torch.no_grad():
        expected = model.run_with_hooks(base, [(HOOK, add)]).logits
        unmoved = model(base).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float((expected - unmoved).abs().max()) > 0.1


def test_bfloat16_finds_the_planted_variable() -> None:
    model = nl.gym.planted_variable().bfloat16()
    own, held_out = nl.gym.CAUSAL["planted"].pairs("c_is_capital", 500).split()
    site = Site(("resid_post", 1), -1)
    found = das(model, own, held_out, site, 1, epochs=6, nulls=0, progress=False)
    assert found.accuracy >= 0.98 and found.base_accuracy == 1
    assert max(found.nulls.values()) < found.chance + 0.05
    truth = nl.gym.planted_variable.DIRECTIONS[:, 2:3]  # type: ignore[attr-defined]
    at_truth = Site(site.hook, site.pos, subspace=truth)
    assert accuracy(model, held_out, at_truth).accuracy == 1
    assert found.site.subspace is not None
    assert found.site.subspace.dtype == torch.float32


def test_bfloat16_exchanges_as_float32_does() -> None:
    given, site = pairs(0), Site(("resid_post", 0), {"one": 1, "last": -1})
    base, source = torch.tensor(given.base), torch.tensor(given.source)
    narrow = small().bfloat16()
    wide = small()
    wide.load_state_dict(narrow.state_dict())
    logits = [run(model, base, (site, source)).logits.float() for model in (narrow, wide)]
    assert float((logits[0] - logits[1]).abs().max()) < 0.05 * float(logits[1].abs().max())
