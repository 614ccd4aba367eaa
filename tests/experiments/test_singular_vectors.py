"""Singular vectors of weights as tokens, against decompositions of the whole matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import pair

import neox_lab as nl
from neox_lab.errors import InputError


@pytest.fixture(scope="module")
def model() -> Any:
    return pair()[1]


@pytest.mark.parametrize("matrix", ["OV", "W_in", "W_out"])
def test_vectors_are_those_of_the_whole_matrix(model: Any, matrix: str) -> None:
    head = 3 if matrix == "OV" else None
    found = nl.lens.singular_vectors(model, matrix, -1, head, count=4)
    block, layer = model.blocks[2], model.backbone.layers[2]
    whole = {
        "OV": block.W_V[3] @ block.W_O[3],
        "W_in": block.W_in.T @ torch.diag(layer.post_attention_layernorm.weight),
        "W_out": block.W_out,
    }[matrix].detach()
    directions = torch.linalg.svd(whole.double()).Vh[:4].float()
    expected = (directions @ model.W_U.detach()).T
    assert found.shape == (211, 4)
    for mine, wanted in zip(found.T, expected.T, strict=True):  # either sign will do
        sign = torch.sign((mine * wanted).sum())
        torch.testing.assert_close(mine * sign, wanted, rtol=0, atol=1e-4)


def test_what_is_not_there(model: Any) -> None:
    for arguments, message in (
        (("OV", 0), "head="),
        (("OV", 0, 4), "head=4"),
        (("QK", 0), "W_out"),
        (("W_in", 3), "layer=3"),
        (("W_in", 0, 2), "the MLP, which has no heads"),
        (("OV", 0, 0, 17), "count=17"),
    ):
        with pytest.raises(InputError, match=message):
            nl.lens.singular_vectors(model, *arguments)


def test_predictions_of_one_position() -> None:
    model = nl.load()
    with torch.no_grad():
        logits = model(model.to_tokens("The king went to the city of")).logits[0, -1]
    frame = nl.lens.predictions(logits, model.tokenizer, top_k=5)
    probabilities, order = logits.softmax(dim=-1).sort(descending=True)
    assert frame["token"].tolist() == order[:5].tolist()
    assert frame["rank"].tolist() == [0, 1, 2, 3, 4]
    assert frame["text"].tolist() == [model.to_string([int(token)]) for token in order[:5]]
    assert frame["probability"].tolist() == pytest.approx(probabilities[:5].tolist())
    assert frame["logit"].tolist() == pytest.approx(logits[order[:5]].tolist())
    assert frame["log_probability"].tolist() == pytest.approx(probabilities[:5].log().tolist())
    assert "text" not in nl.lens.predictions(logits)
    assert len(nl.lens.predictions(logits)) == len(logits)
    with pytest.raises(InputError, match=r"logits\[0, -1\]"):
        nl.lens.predictions(logits[None])
