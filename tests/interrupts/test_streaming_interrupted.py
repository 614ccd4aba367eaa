"""Ctrl-C while layers are read and rows wait in files: nothing is left, and the next answer right.

Sweeps end quietly with what they have; everything else raises.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import randomize
from striking import chosen, moments, strike
from torch import Tensor

import neox_lab as nl
from neox_lab.experiments.patching import spilling
from neox_lab.streaming import store_of

LAYERS = 3
IDS = torch.arange(6)[None] + 3
OTHERS = IDS + 20
METRIC = nl.patching.logit_difference([3], [5])
ON_DISK = {"": "cpu", **dict.fromkeys(range(LAYERS), "disk")}
MOMENTS = 10
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    config = nl.GPTNeoXConfig(
        vocab_size=41,
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    model = nl.GPTNeoXForCausalLM(config).eval()
    randomize(model, std=0.3)
    place: Path = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    return place


def gradient(model: Any) -> None:
    embeds = model.backbone.embed_in(IDS).detach().requires_grad_()
    model(inputs_embeds=embeds).logits.sum().backward()


ACTIONS: dict[str, Callable[[Any], object]] = {
    "cache": lambda model: model.run_with_cache(IDS),
    "gradient": gradient,
    "sweep": lambda model: nl.patching.sweep(
        model, IDS, OTHERS, METRIC, "z", budget=12, progress=False
    ),
    "edges": lambda model: nl.patching.edge_sweep(
        model, IDS, OTHERS, METRIC, tokens_at_once=60, progress=False
    ),
    "ablation": lambda model: nl.patching.ablate(
        model, IDS, METRIC, "mlp_out", reference=OTHERS, budget=6, progress=False
    ),
    "generate": lambda model: model.generate(IDS, max_new_tokens=2, do_sample=False),
}


def left(temporary: Path) -> tuple[list[str], int, int]:
    """Temporary files, open files and readers."""
    gc.collect()
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    readers = [t for t in threading.enumerate() if t.name.startswith("neox_lab layers")]
    return os.listdir(temporary), opened, len(readers)


@pytest.mark.parametrize("name", ACTIONS)
def test_whatever_is_interrupted(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(spilling, "free_memory", lambda device: spilling.SHARE * 1000)
    whole = nl.GPTNeoXForCausalLM.from_pretrained(folder)
    model = nl.GPTNeoXForCausalLM.from_pretrained(folder, device_map=ON_DISK)
    expected, action = whole(IDS).logits, ACTIONS[name]
    action(model)
    before = left(tmp_path)
    assert before[0] == []
    files = moments(lambda: action(model))
    struck = set()
    ours = [at for at, file in enumerate(files) if "streaming" in file or "patching" in file]
    some = chosen([files[at] for at in ours], MOMENTS, name)
    for at in [*(ours[number] for number in some), *chosen(files, MOMENTS // 2, name)]:
        struck.add(strike(lambda: action(model), at))
        assert not model.hook_stack.placements
        assert left(tmp_path) == before
        found: Tensor = model(IDS).logits
        assert torch.equal(found, expected)
        assert torch.is_grad_enabled()
    assert len(struck) > MOMENTS // 2
    store = store_of(model)
    assert store is not None
    assert store.nbytes == 2 * 4 * sum(
        weight.numel() for weight in whole.backbone.block(0).parameters() if weight.dim() > 1
    )


def test_loading(folder: Path, tmp_path: Path) -> None:
    def load() -> Any:
        return nl.GPTNeoXForCausalLM.from_pretrained(folder, device_map=ON_DISK)

    load()
    before = left(tmp_path)
    files = moments(load)
    late = [at for at, file in enumerate(files) if "stream" in file or "spread" in file]
    for number in chosen([files[at] for at in late], MOMENTS, "loading"):
        assert strike(load, late[number])
        assert left(tmp_path) == before
