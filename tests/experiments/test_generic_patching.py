"""The generic patching function: cell by cell what the sweeps give, and runs done by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from oracle import pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.hooks.cache import ActivationCache

P = nl.patching
CELLS = {
    "resid_pre": ("resid_pre", P.layer_pos_patch_setter, ("layer", "pos")),
    "z": ("z", P.layer_pos_head_vector_patch_setter, ("layer", "pos", "head_index")),
    "q_all_pos": ("q", P.layer_head_vector_patch_setter, ("layer", "head")),
    "pattern_all_pos": ("pattern", P.layer_head_pattern_patch_setter, ("layer", "head")),
    "pattern_by_dest": (
        "pattern",
        P.layer_head_pos_pattern_patch_setter,
        ("layer", "head", "dest_pos"),
    ),
    "pattern_by_dest_source": (
        "pattern",
        P.layer_head_dest_src_pos_pattern_patch_setter,
        ("layer", "head", "dest_pos", "src_pos"),
    ),
}


def metric(logits: Tensor) -> Tensor:
    return (logits[:, -1, 5] - logits[:, -1, 9]).mean()


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def case(request: pytest.FixtureRequest) -> tuple[Any, Tensor, ActivationCache]:
    model = pair(use_parallel_residual=request.param)[1]
    return model, tokens(2, 6), model.run_with_cache(tokens(2, 6, seed=3))[1]


@pytest.mark.parametrize("site", CELLS)
def test_cells_are_those_of_the_sweep(case: tuple[Any, Tensor, ActivationCache], site: str) -> None:
    model, corrupted, clean = case
    name, setter, axes = CELLS[site]
    found = P.generic_activation_patch(model, corrupted, clean, metric, setter, name, axes)
    expected = P.sweep(model, clean, corrupted, metric, site, progress=False).values
    assert found.std() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_cells_of_a_table_and_a_setter_of_ones_own(
    case: tuple[Any, Tensor, ActivationCache],
) -> None:
    model, corrupted, clean = case
    cells = pd.DataFrame({"layer": [2, 0, 2], "neuron": [7, 95, 8]})

    def setter(activation: Tensor, index: Any, other: Tensor) -> Tensor:
        return torch.cat((other[..., : index[1]], activation[..., index[1] :]), dim=-1)

    found, frame = P.generic_activation_patch(
        model, corrupted, clean, metric, setter, "post", index_df=cells, return_index_df=True
    )
    assert frame is cells
    for value, (layer, neuron) in zip(found, cells.to_numpy().tolist(), strict=True):
        name = f"blocks.{layer}.mlp.hook_post"

        def patch(tensor: Tensor, hook: Any, name: str = name, end: int = neuron) -> None:
            tensor[..., :end] = clean[name][..., :end]

        output = model.run_with_hooks(corrupted, [(name, patch)])
        torch.testing.assert_close(value, metric(output.logits), rtol=0, atol=1e-5)


def test_what_cannot_be_patched(case: tuple[Any, Tensor, ActivationCache]) -> None:
    model, corrupted, clean = case
    given = (model, corrupted, clean, metric, P.layer_pos_patch_setter, "resid_pre")
    with pytest.raises(InputError, match="one of the two"):
        P.generic_activation_patch(*given)
    with pytest.raises(InputError, match=r"'layr'.*Did you mean 'layer'"):
        P.generic_activation_patch(*given, ("layr", "pos"))
    with pytest.raises(InputError, match="expected 2 numbers"):
        P.generic_activation_patch(*given, ("layer", "pos", "head"))
    with pytest.raises(InputError, match="one number"):
        P.generic_activation_patch(
            model, corrupted, clean, lambda logits: logits, *given[4:], ("layer", "pos")
        )
    frame = P.make_df_from_ranges([2, 3], ["layer", "pos"])
    assert frame.to_numpy().tolist() == [[a, b] for a in range(2) for b in range(3)]
    assert not model.hook_stack.placements
