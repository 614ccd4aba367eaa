"""Our ``get_act_patch_*`` return the tensors of TransformerLens 4.3's.

Needs transformer_lens (``pip install neox_lab[bench]``); skipped without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.experiments.patching import act_patch

bridges = pytest.importorskip(
    "transformer_lens.model_bridge", reason="needs transformer_lens, which is not installed"
)
theirs = pytest.importorskip("transformer_lens.patching")
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = sorted(
    name
    for name in vars(act_patch)
    if name.startswith("get_act_patch_") and "direct_path" not in name
)


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def models(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any]]:
    """Our model, and a bridge on the same weights."""
    import transformers

    original, ours = pair(use_parallel_residual=request.param)
    directory = tmp_path_factory.mktemp("checkpoint")
    original.save_pretrained(directory)
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}
    file = str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=file, **special).save_pretrained(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield (
            ours,
            bridges.TransformerBridge.boot_transformers(
                str(directory), device="cpu", dtype=torch.float32
            ),
        )


def metric(logits: Tensor) -> Tensor:
    """A difference of two logits at the end."""
    return (logits[:, -1, 5] - logits[:, -1, 9]).mean()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_same_tensor(models: tuple[Any, Any], name: str) -> None:
    ours, bridge = models
    parallel = ours.config.use_parallel_residual
    if name.endswith("resid_mid") and parallel:
        pytest.skip("parallel blocks have no resid_mid")
    clean = tokens(2, 5)
    corrupted = clean.clone()
    corrupted[:, 2] = (clean[:, 2] + 3) % 200 + 2
    their_cache = bridge.run_with_cache(clean)[1]
    expected = getattr(theirs, name)(bridge, corrupted, their_cache, metric)
    our_cache = ours.run_with_cache(clean)[1]
    for asked in (metric, nl.patching.logit_difference(5, 9)):
        got = getattr(nl.patching, name)(ours, corrupted, our_cache, asked)
        assert got.shape == expected.shape
        torch.testing.assert_close(got, torch.as_tensor(expected).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("component", ["q", "k", "v"])
@torch.no_grad()
def test_same_direct_paths(models: tuple[Any, Any], component: Any) -> None:
    ours, bridge = models
    clean = tokens(2, 4)
    corrupted = clean.clone()
    corrupted[:, 1] = (clean[:, 1] + 3) % 200 + 2
    theirs_say = theirs.get_act_patch_direct_path(
        bridge,
        corrupted,
        bridge.run_with_cache(clean)[1],
        bridge.run_with_cache(corrupted)[1],
        metric,
        0,
        1,
        component,
        verbose=False,
    )
    caches = ours.run_with_cache(clean)[1], ours.run_with_cache(corrupted)[1]
    we_say = nl.patching.get_act_patch_direct_path(
        ours, corrupted, *caches, metric, 0, 1, component, verbose=False
    )
    torch.testing.assert_close(we_say, theirs_say, rtol=1e-5, atol=1e-5)
    edges = nl.patching.edge_sweep(
        ours, clean, corrupted, nl.patching.logit_difference(5, 9), ["L0H1"], [f"L2H3.{component}"]
    )
    torch.testing.assert_close(edges.values[0, 0], we_say[2, 3], rtol=1e-5, atol=1e-5)
