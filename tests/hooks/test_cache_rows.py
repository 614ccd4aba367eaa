"""Rows of a cache: what holds for a batch holds for each row without the axis ``batch``."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import SIZES, padding_masks, randomize, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError
from neox_lab.hooks.cache import ActivationCache


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max().clamp(min=1)))


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def run(request: pytest.FixtureRequest) -> tuple[Any, ActivationCache]:
    model = nl.GPTNeoXForCausalLM(
        nl.GPTNeoXConfig(**SIZES | {"use_parallel_residual": request.param})
    ).eval()
    randomize(model)
    mask = padding_masks()["left"]
    return model, model.run_with_cache(tokens(), attention_mask=mask)[1]


@pytest.mark.parametrize("which", [1, -1, [2, 0], slice(1), torch.tensor([False, True, True])])
def test_every_activation_of_some_rows(run: tuple[Any, ActivationCache], which: Any) -> None:
    _, cache = run
    part = cache.apply_slice_to_batch_dim(which)
    assert list(part) == list(cache)
    assert part.has_batch_dim == (not isinstance(which, int))
    for name in cache:
        assert torch.equal(part[name], cache[name][which]), name
    assert torch.equal(part.attention_mask, cache.attention_mask[which])
    assert torch.equal(part.input_ids, tokens()[which])
    assert cache["z", 0].shape[0] == 3


SELECTIONS = (None, 3, -1, slice(2, 7), [0, 5])


@pytest.mark.parametrize("pos_slice", SELECTIONS, ids=str)
@pytest.mark.parametrize("apply_ln", [True, False])
def test_arithmetic_without_the_batch_axis(
    run: tuple[Any, ActivationCache], pos_slice: Any, apply_ln: bool
) -> None:
    _, cache = run
    row = cache.apply_slice_to_batch_dim(1)
    asked: dict[str, dict[str, Any]] = {
        "accumulated_resid": {"incl_mid": True},
        "decompose_resid": {"layer": 2, "mlp_input": True},
        "stack_head_results": {"incl_remainder": True},
        "stack_neuron_results": {"layer": 2, "neuron_slice": [3, 5]},
        "get_full_resid_decomposition": {},
    }
    for name, more in asked.items():
        both = [
            getattr(of, name)(apply_ln=apply_ln, pos_slice=pos_slice, **more) for of in (row, cache)
        ]
        close(both[0], both[1][:, 1])
    close(row.get_neuron_results(1, 4, pos_slice), cache.get_neuron_results(1, 4, pos_slice)[1])


def test_logits_without_the_batch_axis(run: tuple[Any, ActivationCache]) -> None:
    _, cache = run
    row = cache.apply_slice_to_batch_dim(1)
    stack, alone = cache.decompose_resid(), row.decompose_resid()
    close(row.logit_attrs(alone, 7), cache.logit_attrs(stack, 7)[:, 1])
    targets = tokens(seed=5)
    close(row.logit_attrs(alone, targets[1]), cache.logit_attrs(stack, targets)[:, 1])
    last = row.logit_attrs(alone[:, -1], 7, 8, pos_slice=-1)
    close(last, cache.logit_attrs(stack, 7, 8)[:, 1, -1])
    lens = row.accumulated_resid(apply_ln=True)
    close(lens, cache.accumulated_resid(apply_ln=True)[:, 1])


def test_removing_the_batch_axis(run: tuple[Any, ActivationCache]) -> None:
    model, cache = run
    with pytest.raises(HookError, match="3 rows"):
        cache.remove_batch_dim()
    one = model.run_with_cache(tokens()[:1])[1]
    alone = one.remove_batch_dim()
    assert alone["pattern", 1].shape == (4, 12, 12)
    assert one["pattern", 1].shape == (1, 4, 12, 12)
    assert alone.remove_batch_dim()["z", 0].shape == alone["z", 0].shape
    assert alone.frame.set_index("name").loc["blocks.0.attn.hook_z", "axes"] == "pos head d_head"
    with pytest.raises(HookError, match="no axis batch"):
        alone.apply_slice_to_batch_dim(0)
    with pytest.raises(HookError, match="batch_slice=3"):
        cache.apply_slice_to_batch_dim(3)
    with pytest.raises(HookError, match="nothing can be patched from"):
        nl.patching.sweep(model, alone, tokens()[:1], lambda logits: logits[0, -1, 7])


def test_pickles_copies_and_files(run: tuple[Any, ActivationCache], tmp_path: Path) -> None:
    model, cache = run
    row = cache.apply_slice_to_batch_dim(1)
    for kept in (cache, row):
        back = pickle.loads(pickle.dumps(kept))
        kept.save(tmp_path / "cache.safetensors")
        loaded = ActivationCache.load(tmp_path / "cache.safetensors", model)
        for other in (back, loaded, copy.copy(kept), kept.to("cpu")):
            assert other.has_batch_dim == kept.has_batch_dim
            assert list(other) == list(kept)
            for name in kept:
                assert torch.equal(other[name], kept[name]), name
            close(other.decompose_resid(), kept.decompose_resid())


def test_gradients_go_with_their_rows(run: tuple[Any, ActivationCache]) -> None:
    model, _ = run
    model.requires_grad_(True)
    cache = model.run_with_cache(tokens(), incl_bwd=lambda output: output.logits[:, -1, 7].sum())[1]
    row = cache.apply_slice_to_batch_dim(2)
    name = "blocks.1.hook_resid_pre_grad"
    assert torch.equal(row[name], cache[name][2])
    assert torch.equal(pickle.loads(pickle.dumps(row))[name], row[name])
    assert "pos d_model" in set(row.frame["axes"])
