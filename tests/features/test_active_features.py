"""Active features by token, against dense activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dictionaries import random_dictionary
from oracle import padding_masks, pair, tokens

import neox_lab as nl
from neox_lab.errors import HookError, InputError

SITE = "blocks.0.hook_resid_post"


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_what_is_active_and_where(padding: str) -> None:
    model, ours = pair()[1], random_dictionary(64, SITE)
    ids, mask = tokens(), padding_masks()[padding]
    inputs: Any = ids if mask is None else {"input_ids": ids, "attention_mask": mask}
    found = nl.features.active(model, ours, inputs)
    _, cache = model.run_with_cache(ids, SITE, attention_mask=mask)
    acts = ours.encode(cache[SITE]).dense()
    own = torch.ones_like(ids) if mask is None else mask
    expected = set()
    for text in range(3):
        for pos, values in enumerate(acts[text][own[text].bool()]):
            for latent in values.nonzero()[:, 0].tolist():
                expected.add((text, pos, latent, round(float(values[latent]), 4)))
    rows = found.frame[["text", "pos", "latent", "activation"]].itertuples(index=False)
    assert {(*row[:3], round(float(row[3]), 4)) for row in rows} == expected
    assert [len(row) for row in found.pieces] == own.sum(dim=1).tolist()
    busiest = found.features.iloc[0]
    assert busiest["largest"] == pytest.approx(float((acts * own[..., None]).max()))
    dense = acts[1][own[1].bool()][:, int(busiest["latent"])].numpy()
    assert found.activations(int(busiest["latent"]), 1) == pytest.approx(dense, abs=1e-5)


def test_text_stays_text() -> None:
    model = nl.load()
    ours = random_dictionary(model.config.hidden_size, SITE)
    hostile = "<script>alert(1)</script> \u202e & <b>"
    found = nl.features.active(model, ours, [hostile, "The king"])
    assert "".join(found.pieces[0]).startswith("<script>alert(1)</script>")
    latent = int(found.features["latent"][0])
    for view in (found, found.strip(latent), found.strip(latent, 1)):
        assert "<script>alert" not in view.to_html()
        assert view.to_png().startswith(b"\x89PNG")
    assert list(found.strip(latent).frame["activation"]) == pytest.approx(
        found.activations(latent).tolist()
    )


def test_no_feature_at_all() -> None:
    model, ours = pair()[1], random_dictionary(64, SITE, kind="ReLU")
    with torch.no_grad():
        ours.b_enc.fill_(-1e6)
    found = nl.features.active(model, ours, tokens())
    assert found.frame.empty
    assert found.features.empty
    assert "none" in repr(found)
    assert found.to_png().startswith(b"\x89PNG")


def test_what_cannot_be_asked() -> None:
    model, ours = pair()[1], random_dictionary(64, SITE)
    with pytest.raises(InputError, match="expected a Dictionary"):
        nl.features.active(model, model, tokens())
    with pytest.raises(InputError, match="inputs"):
        nl.features.active(model, ours, 3)
    with pytest.raises(HookError, match="belongs to another model"):
        nl.features.active(model, random_dictionary(32, SITE), tokens())
    found = nl.features.active(model, ours, tokens())
    for given in ((40, 0), (-1, 0), (0, 3), ("a", 0), (0.5, 0)):
        with pytest.raises(InputError, match=r"latent|text"):
            found.strip(*given)
