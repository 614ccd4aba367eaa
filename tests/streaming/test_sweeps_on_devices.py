"""Sweeps and ablation of models whose layers are on several devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from files_of_models import config
from logical_devices import AWAY, HOME, LogicalDevices

import neox_lab as nl

SITES = ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern_all_pos"]


def model_of(parallel: bool) -> Any:
    torch.manual_seed(0)
    model = nl.GPTNeoXForCausalLM(config(parallel=parallel)).eval().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def spread(model: Any, devices: LogicalDevices) -> None:
    for layer in (1, 2, 4):
        devices.put(model.backbone.block(layer), AWAY)
    model.backbone.devices = (HOME, AWAY, AWAY, HOME, AWAY)


def prompts() -> tuple[dict[str, Any], dict[str, Any]]:
    clean = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    corrupted = clean.clone()
    corrupted[:, 3] = torch.tensor([11, 12])
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :2] = 0
    return (
        {"input_ids": clean, "attention_mask": mask},
        {"input_ids": corrupted, "attention_mask": mask},
    )


METRIC = nl.patching.logit_difference([5, 6], [7, 8])


def halved(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x * 0.5 + 0.1


def test_what_mixes_devices_is_refused_by_the_test_itself() -> None:
    with LogicalDevices() as devices, torch.no_grad():
        there = torch.ones(3).to(AWAY)
        assert there.device == AWAY and (there * 2)[:2].device == AWAY and devices.moves == 1
        with pytest.raises(RuntimeError, match="mixes devices"):
            there + torch.ones(3)
        model = model_of(True)
        devices.put(model.backbone.block(1), AWAY)
        with pytest.raises(RuntimeError, match="mixes devices"):
            model(prompts()[0]["input_ids"])


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_a_sweep_gives_the_same_numbers(site: str, parallel: bool) -> None:
    model = model_of(parallel)
    expected = nl.patching.sweep(model, *prompts(), METRIC, site, progress=False)
    with LogicalDevices() as devices:
        spread(model, devices)
        found = nl.patching.sweep(model, *prompts(), METRIC, site, progress=False)
        assert devices.moves > 10
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("what", ["hook point", "spliced", "ablation", "cache"])
def test_so_do_hooks_splices_ablation_and_caches(what: str) -> None:
    model = model_of(True)

    def ask() -> Any:
        clean, corrupted = prompts()
        if what == "hook point":
            site = "blocks.2.mlp.hook_post"
            return nl.patching.sweep(model, clean, corrupted, METRIC, site, progress=False)
        if what == "ablation":
            return nl.patching.ablate(model, clean, METRIC, value="mean", progress=False)
        if what == "cache":
            _, cache = model.run_with_cache(
                clean["input_ids"], **{"attention_mask": clean["attention_mask"]}
            )
            return nl.patching.sweep(model, cache, corrupted, METRIC, progress=False)
        with model.spliced_function("blocks.2.hook_resid_post", halved, []):
            return nl.patching.sweep(model, clean, corrupted, METRIC, progress=False)

    expected = ask()
    with LogicalDevices() as devices:
        spread(model, devices)
        found = ask()
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("through", ["nothing", "mlps"])
def test_so_do_paths_and_edges(through: Any, parallel: bool) -> None:
    model = model_of(parallel)
    given: dict[str, Any] = {"senders": "all", "through": through, "progress": False}
    if through == "mlps":
        given |= {"receivers": ["L2H0.q", "L4H1.v"], "senders": ["L0H1", "MLP0", "L1H0"]}

    def ask() -> Any:
        paths = nl.patching.path_patch(model, *prompts(), METRIC, **given)
        return paths, nl.patching.edge_sweep(model, *prompts(), METRIC, progress=False)

    expected = ask()
    with LogicalDevices() as devices:
        spread(model, devices)
        found = ask()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.values.nan_to_num(), theirs.values.nan_to_num())
