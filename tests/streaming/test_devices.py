"""Layers on several devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_models import LAYERS, both, config, tokens, written

import neox_lab as nl
from neox_lab.checkpoint.spreading import placement_of
from neox_lab.errors import ConfigError, DeviceError
from neox_lab.streaming import devices_of, store_of
from neox_lab.streaming.placement import Sizes

CPU, ZERO, ONE = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
META = torch.device("meta")
SIZES = Sizes(10, (4, 4, 4, 4))


@pytest.mark.parametrize("parallel", [True, False])
def test_the_residual_stream_moves_and_activations_stay(parallel: bool) -> None:
    """The meta device refuses what mixes it with another, and that something comes back from it."""
    model = nl.GPTNeoXForCausalLM(config(parallel=parallel)).eval()
    expected = model(tokens()).logits
    model.backbone.devices = (CPU,) * LAYERS
    assert torch.equal(model(tokens()).logits, expected)
    for layer in (2, 3):
        model.backbone.block(layer).to(META)
    model.backbone.devices = devices_of(model.backbone)
    assert model.backbone.devices == (CPU, CPU, META, META, CPU)
    seen: dict[str, torch.device] = {}

    def note(tensor: Any, hook: Any) -> None:
        seen[hook.name] = tensor.device

    with (
        model.hooks([("*", note)], must_fire=False),
        pytest.raises(NotImplementedError, match="out of meta"),
    ):
        model(tokens(), attention_mask=torch.tensor([[0, 1] * 4 + [1], [1] * 9]), use_cache=True)
    assert seen["blocks.1.hook_resid_post"] == CPU
    inside = [name for name in seen if name.startswith(("blocks.2.", "blocks.3."))]
    assert len(inside) > 40
    assert {seen[name] for name in inside} == {META}
    assert not any(name.startswith("blocks.4.") for name in seen)
    assert model(tokens(), stop_at_layer=2).last_hidden_state.device == CPU
    with pytest.raises(NotImplementedError, match="out of meta"):
        model(tokens(), stop_at_layer=4)  # it comes back to where the embeddings are


def where(device_map: object, max_memory: object = None) -> Any:
    return placement_of(device_map, max_memory, SIZES, lambda d: torch.device(str(d)))


def test_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    even = where("auto", {0: 50, 1: 50})
    assert even.devices == (ZERO, ZERO, ONE, ONE)
    assert not even.streamed
    assert where("sequential", {0: 50, 1: 50}).devices == (ZERO,) * 4
    assert where("balanced", {0: 14, 1: 8, "cpu": 4}).devices == (ZERO, ONE, ONE, CPU)
    spilled = where("auto", {0: 20, 1: 4})
    assert spilled.devices == (ONE, ZERO, ZERO, ZERO)
    assert spilled.streamed == {1, 2, 3}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (25, 25))
    assert where("auto").devices == (ZERO, ZERO, ONE, ONE)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert where("auto") is None
    assert where("cpu", {"cpu": 22}).streamed == {1, 2, 3}


def test_devices_by_layer_and_module() -> None:
    made = where({0: "cpu", 1: "cuda:1", 2: "disk", "": "cuda:0"})
    assert made.devices == (CPU, ONE, ZERO, ZERO)
    assert made.streamed == {2}
    assert made.main == ZERO
    named = {f"gpt_neox.layers.{layer}": "cuda:1" for layer in range(4)}
    others = dict.fromkeys(("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"), "cpu")
    made = where({**named, **others})
    assert made.devices == (ONE,) * 4
    assert made.main == CPU
    for wrong, match in (
        ({0: "cpu"}, "leaves out layer 1"),
        ({"": "cpu", 4: "cpu"}, "layer 4"),
        ({**named, **others, "embed_out": "cuda:1"}, "no layer"),
        ({"": "disk", 0: "cpu"}, "no layer"),
    ):
        with pytest.raises(ConfigError, match=match):
            where(wrong)
    with pytest.raises(ConfigError, match="one of both"):
        where({0: "cpu", "": "cuda:0"}, {"cpu": 5})


def test_layers_on_disk_by_name(tmp_path: Path) -> None:
    whole, _, _ = both(written(tmp_path))
    model = nl.GPTNeoXForCausalLM.from_pretrained(
        tmp_path, device_map={"": "cpu", 1: "disk", 3: "disk"}
    )
    store = store_of(model)
    assert store is not None
    assert list(store.sources) == [1, 3]
    assert torch.equal(model(tokens()).logits, whole(tokens()).logits)
    assert torch.equal(model(tokens()).logits, whole(tokens()).logits)
    assert model.backbone.devices is None
    assert LAYERS == 5


def test_load_takes_maps(tmp_path: Path) -> None:
    model = nl.load(device_map="auto", max_memory={"cpu": "3.4MB"})
    assert store_of(model) is not None
    assert store_of(nl.load(device_map={2: "disk", "": "cpu"})) is not None
    with pytest.raises(ConfigError, match="one of both"):
        nl.load(device="cpu", device_map="auto")
    with pytest.raises(DeviceError, match="too little"):
        nl.load(device_map="balanced", max_memory={"cpu": "1MB"})
