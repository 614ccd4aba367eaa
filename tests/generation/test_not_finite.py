"""Generation with a model whose numbers are not finite says so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import neox_lab as nl
from neox_lab.errors import GenerationError, NeoxLabWarning


@pytest.fixture
def broken() -> Any:
    model = nl.load()
    with torch.no_grad():
        model.blocks[1].block.mlp.dense_4h_to_h.bias[3] = torch.nan
    return model


def test_greedy_tokens_of_nan_are_named(broken: Any) -> None:
    with pytest.warns(NeoxLabWarning, match=r"next token is NaN.*text 0, text 1.*model\.check"):
        broken.generate(["The king", "Mary went"], max_new_tokens=3)


def test_sampling_from_nan_is_refused(broken: Any) -> None:
    with pytest.raises(GenerationError, match=r"NaN or infinite at text 0.*model\.check"):
        broken.generate("The king", max_new_tokens=3, do_sample=True)


def test_a_sound_model_is_not_warned_of() -> None:
    model = nl.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error", NeoxLabWarning)
        model.generate(["The king", "Mary went"], max_new_tokens=3)
        model.generate("The king", max_new_tokens=3, do_sample=True, top_k=2)
