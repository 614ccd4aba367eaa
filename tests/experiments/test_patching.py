"""A sweep gives the numbers of one forward pass for each cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import same
from patching_oracle import one_by_one, prompts, small

import neox_lab as nl
from neox_lab.experiments.patching.sites import SITES

# Padding is read on purpose here, by functions that read everything.
pytestmark = pytest.mark.filterwarnings("ignore::neox_lab.errors.PromptWarning")
difference = nl.patching.logit_difference(3, 7)


def any_function(logits: torch.Tensor) -> torch.Tensor:
    """Reads everything."""
    return (logits.softmax(dim=-1)[..., 3] * torch.arange(logits.shape[1])).sum(dim=1).mean()


def swept(model: Any, clean: Any, corrupted: Any, metric: Any, site: Any, **more: Any) -> Any:
    return nl.patching.sweep(model, clean, corrupted, metric, site, progress=False, **more)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_every_site(site: str, parallel: bool) -> None:
    if site == "resid_mid" and parallel:
        pytest.skip("parallel blocks have no resid_mid")
    model = small(use_parallel_residual=parallel)
    clean, corrupted = prompts(2, 5, 1)
    for metric in (difference, any_function):
        wanted = one_by_one(model, clean, corrupted, metric, site)
        got = swept(model, clean, corrupted, metric, site)
        same(got.values, wanted)
        assert got.complete
        assert float(wanted.max() - wanted.min()) > 0.01  # patching does something
    assert got.axes == SITES[site].axes


@settings(max_examples=80)
@given(
    site=st.sampled_from(sorted(SITES)),
    parallel=st.booleans(),
    layers=st.integers(1, 4),
    heads=st.integers(1, 3),
    batch=st.integers(1, 3),
    pos=st.integers(1, 6),
    first=st.integers(0, 5),
    read=st.integers(0, 5),
    budget=st.sampled_from([1, 5, 17, 4096]),
    seed=st.integers(0, 10**6),
    all_logits=st.booleans(),
    padding=st.sampled_from(["none", "left", "right"]),
    bias=st.booleans(),
)
def test_any_shape_padding_and_budget(
    site: str,
    parallel: bool,
    layers: int,
    heads: int,
    batch: int,
    pos: int,
    first: int,
    read: int,
    budget: int,
    seed: int,
    all_logits: bool,
    padding: str,
    bias: bool,
) -> None:
    model = small(
        use_parallel_residual=parallel,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        attention_bias=bias,
        seed=seed,
    )
    if site == "resid_mid" and parallel:
        with pytest.raises(nl.errors.HookNameError, match="parallel"):
            swept(model, *prompts(1, 2, 0), difference, site)
        return
    first, read = min(first, pos - 1), min(read, pos - 1)
    clean, corrupted = prompts(batch, pos, first, seed)
    mask = None
    if padding != "none" and pos > 1:
        mask = torch.ones(batch, pos, dtype=torch.long)
        cut = torch.randint(0, pos, (batch,), generator=torch.Generator().manual_seed(seed))
        for row, count in enumerate(cut.tolist()):
            padded = slice(0, count) if padding == "left" else slice(pos - count, pos)
            mask[row, padded] = 0
        differs = ((clean != corrupted) & (mask > 0)).any(dim=1)
        for row in (~differs).nonzero().flatten().tolist():  # something has to differ
            at = int(mask[row].nonzero()[0])
            corrupted[row, at] = clean[row, at] % 40 + 3
        read = -(read % 2)  # the first token of each text, or the last
    metric = any_function if all_logits else nl.patching.logit_difference(3, 7, pos=read)
    wanted = one_by_one(model, clean, corrupted, metric, site, mask)
    sides = [clean, corrupted]
    if mask is not None:
        sides = [{"input_ids": side, "attention_mask": mask} for side in sides]
    got = swept(model, *sides, metric, site, budget=budget)
    same(got.values, wanted)


@pytest.mark.parametrize("site", SITES)
def test_padding_in_front_looks_ahead(site: str) -> None:
    """A function of all logits sees those of padding too, which depend on all positions."""
    model = small(use_parallel_residual=False)
    clean, corrupted = prompts(2, 4, 2)
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    wanted = one_by_one(model, clean, corrupted, any_function, site, mask)
    sides = [{"input_ids": ids, "attention_mask": mask} for ids in (clean, corrupted)]
    same(swept(model, *sides, any_function, site).values, wanted)


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "z", "v_all_pos", "pattern_by_dest"])
@pytest.mark.parametrize(
    ("head", "metric"),
    [
        ("sequence-classification", nl.patching.class_logit(1, 2)),
        ("sequence-classification", lambda logits: logits.softmax(dim=-1)[:, 1].mean()),
        ("token-classification", nl.patching.tag_logit(2, 1, 3)),
        ("token-classification", any_function),
        ("question-answering", nl.patching.span_logit(1, 3)),
        ("question-answering", lambda logits: logits.square().mean()),
    ],
)
def test_task_heads(head: str, metric: Any, site: str) -> None:
    model = small(head)
    clean, corrupted = prompts(2, 5, 1)
    corrupted[1, -1] = clean[1, -1] = 1  # a padding token: the classifier reads before it
    wanted = one_by_one(model, clean, corrupted, metric, site)
    got = swept(model, clean, corrupted, metric, site)
    same(got.values, wanted)
    assert float(wanted.max() - wanted.min()) > 1e-3


@pytest.mark.parametrize("rope", ["dynamic", "yarn"])
def test_scaled_rotary(rope: str) -> None:
    parameters = {
        "rope_type": rope,
        "factor": 4.0,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 4,
    }
    model = small(rope_parameters=parameters, max_position_embeddings=4)
    clean, corrupted = prompts(1, 6, 1)
    metric = nl.patching.logit_difference(3, 7, pos=3)
    for site in ("resid_pre", "q"):
        same(
            swept(model, clean, corrupted, metric, site).values,
            one_by_one(model, clean, corrupted, metric, site),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_half_precision(site: str, parallel: bool, dtype: torch.dtype) -> None:
    """As near to the sweep in float32 as forward passes in half precision are."""
    if site == "resid_mid" and parallel:
        pytest.skip("parallel blocks have no resid_mid")
    model = small(use_parallel_residual=parallel)
    clean, corrupted = prompts(2, 5, 1)
    # Of weights that half precision can write, so that only the arithmetic differs.
    exact = swept(model.to(dtype).float(), clean, corrupted, difference, site)
    half = model.to(dtype)
    got = swept(half, clean, corrupted, difference, site)
    slow = one_by_one(half, clean, corrupted, difference, site)
    assert got.values.dtype == torch.float32 and got.values.isfinite().all()
    size = float(exact.values.abs().max())
    noise = 8 * torch.finfo(dtype).eps * size
    torch.testing.assert_close(got.values, exact.values, rtol=0, atol=noise)
    torch.testing.assert_close(got.values, slow, rtol=0, atol=noise)
    assert float(exact.effect().abs().max()) > noise  # what patching does stands out


def test_noising_is_denoising_with_sides_exchanged() -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    there = swept(model, clean, corrupted, difference, "z", direction="noising")
    back = swept(model, corrupted, clean, difference, "z")
    same(there.values, back.values)
    assert (there.clean, there.corrupted) == (back.corrupted, back.clean)
    same(there.normalized(), back.normalized())


def test_several_sites_at_once() -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    every = swept(model, clean, corrupted, difference, ["z", "k", "pattern_by_dest"], budget=13)
    assert every.axes == ("site", "layer", "pos", "head")
    for at, site in enumerate(("z", "k", "pattern_by_dest")):
        single = swept(model, clean, corrupted, difference, site).values
        single = single.transpose(1, 2) if site == "pattern_by_dest" else single
        same(every.values[at], single)
        same(every[site].values, single)


def test_from_any_cache() -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    _, cache = model.run_with_cache(clean)
    wanted = swept(model, clean, corrupted, difference, "q")
    got = swept(model, cache, corrupted, difference, "q")
    same(got.values, wanted.values)
    assert got.clean == pytest.approx(wanted.clean, abs=1e-5)
    _, one = model.run_with_cache(clean[:1], "blocks.*.hook_resid_pre")  # one row for all
    got = swept(model, one, corrupted, difference, "resid_pre")
    same(
        got.values, swept(model, clean[:1].expand(2, -1), corrupted, difference, "resid_pre").values
    )
    assert got.clean != got.clean  # a cache without the end of the run knows no clean metric
    with pytest.raises(nl.errors.InputError, match="5 positions"):
        swept(model, one, corrupted[:, :4], difference, "resid_pre")
