"""accelerate around both libraries' models: weights elsewhere, and other dtypes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs what `pip install -e '.[interop]'` brings")

import accelerate
import torch
from oracle import same
from torch.utils.data import DataLoader, TensorDataset
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer
from upstream.library import WITH_LOSS, Library, ids, labels_for

from interop.surroundings import model_of

CPU = torch.device("cpu")


@pytest.fixture(params=["cpu_offload", "disk_offload"])
def offload(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A call that puts a model's weights away, to be fetched when they are needed."""
    if request.param == "cpu_offload":
        return lambda model: accelerate.cpu_offload(model, execution_device=CPU)
    return lambda model: accelerate.disk_offload(
        model, str(tmp_path / "weights"), execution_device=CPU
    )


def assert_away(model: Any) -> None:
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


@pytest.mark.parametrize("kind", WITH_LOSS)
def test_offloaded_weights_give_the_same_outputs(library: Library, offload: Any, kind: str) -> None:
    model, inputs = model_of(library, kind), ids(2, 6)
    with torch.no_grad():
        expected = model(inputs, **labels_for(kind, 2, 6))
        away = offload(model_of(library, kind))
        assert_away(away)
        got = away(inputs, **labels_for(kind, 2, 6))
    same(got.loss, expected.loss)
    assert_away(away)


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_offloaded_weights_write_the_same_text(
    library: Library, offload: Any, arguments: dict[str, Any]
) -> None:
    inputs = ids(2, 4)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False} | arguments
    expected = model_of(library).generate(inputs, **settings)
    away = offload(model_of(library))
    assert torch.equal(away.generate(inputs, **settings), expected)
    assert_away(away)


def test_activations_of_a_model_whose_weights_are_away(offload: Any) -> None:
    from upstream.library import load

    import neox_lab as nl

    library = load("neox_lab")
    model, inputs = model_of(library), ids(2, 6)
    assert isinstance(model, nl.GPTNeoXForCausalLM)
    output, expected = model.run_with_cache(inputs)
    away = offload(model_of(library))
    got_output, got = away.run_with_cache(inputs)
    same(got_output.logits, output.logits)
    assert list(got) == list(expected)
    for name in expected:
        same(got[name], expected[name])
    assert_away(away)


def test_an_accelerator_trains(library: Library) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = model_of(library)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(ids(4, 6)), batch_size=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    before = next(model.parameters()).clone()
    for (batch,) in loader:
        output = model(batch, labels=batch)
        accelerator.backward(output.loss)
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(before, next(model.parameters()))
    gathered = accelerator.gather_for_metrics(output.logits)
    assert gathered.shape == output.logits.shape


@pytest.fixture
def in_bfloat16() -> Any:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", WITH_LOSS)
def test_outputs_computed_in_bfloat16_come_back_in_float32(
    library: Library, in_bfloat16: Any, kind: str
) -> None:
    model = model_of(library, kind)
    kept = type(model(ids(2, 6)))
    model = in_bfloat16.prepare(model)
    output = model(ids(2, 6), **labels_for(kind, 2, 6))
    assert isinstance(output, kept)
    for value in output.to_tuple():
        if isinstance(value, torch.Tensor):
            assert value.dtype == torch.float32
    in_bfloat16.backward(output.loss)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_wrapped_model_can_be_unwrapped_and_saved(
    library: Library, in_bfloat16: Any, tmp_path: Path
) -> None:
    model = model_of(library)
    expected = model(ids(2, 6)).logits
    prepared = in_bfloat16.prepare(model)
    whole = in_bfloat16.unwrap_model(prepared, keep_fp32_wrapper=False)
    whole.save_pretrained(
        tmp_path,
        is_main_process=in_bfloat16.is_main_process,
        save_function=in_bfloat16.save,
        state_dict=in_bfloat16.get_state_dict(prepared),
    )
    again = type(model).from_pretrained(tmp_path)
    same(again(ids(2, 6)).logits, expected)


def test_a_state_can_be_saved_and_loaded(library: Library, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(model_of(library))
    expected = model(ids(2, 6)).logits.detach()
    accelerator.save_state(str(tmp_path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    accelerator.load_state(str(tmp_path))
    same(model(ids(2, 6)).logits, expected)
    accelerator.free_memory()


def test_empty_weights_can_be_filled_from_a_checkpoint(library: Library, tmp_path: Path) -> None:
    model = model_of(library)
    model.save_pretrained(tmp_path)
    with accelerate.init_empty_weights():
        empty = type(model)(model.config)
    assert_away(empty)
    names = {name.replace("embed_out", "lm_head") for name, _ in empty.named_parameters()}
    assert names == {name.replace("embed_out", "lm_head") for name, _ in model.named_parameters()}
    sizes = accelerate.utils.compute_module_sizes(empty)
    assert sizes[""] >= sum(p.numel() * 4 for p in model.parameters())


def test_a_device_map_can_be_inferred_and_used(library: Library, tmp_path: Path) -> None:
    model = model_of(library)
    layer = type(model.base_model.layers[0]).__name__
    devices = accelerate.infer_auto_device_map(
        model, max_memory={"cpu": "1GB"}, no_split_module_classes=[layer]
    )
    assert set(devices.values()) == {"cpu"}
    away = {"gpt_neox.embed_in": "cpu", "gpt_neox.layers.0": "cpu", "gpt_neox.layers.1": "disk"}
    away |= {"gpt_neox.final_layer_norm": "disk", "gpt_neox.rotary_emb": "cpu"}
    away |= {"lm_head": "cpu", "embed_out": "cpu"}
    known = {name for name, _ in model.named_modules()}
    away = {name: place for name, place in away.items() if name in known}
    expected = model(ids(2, 6)).logits.detach()
    spread = accelerate.dispatch_model(model, away, main_device="cpu", offload_dir=str(tmp_path))
    assert spread.hf_device_map == away
    with torch.no_grad():
        same(spread(ids(2, 6)).logits, expected)


@pytest.mark.parametrize("plan", ["auto", "sequential", {"": "cpu"}, {"gpt_neox": "cpu"}], ids=str)
def test_a_plan_of_one_device_loads(library: Library, plan: Any, tmp_path: Path) -> None:
    model = model_of(library)
    model.save_pretrained(tmp_path)
    if plan == {"gpt_neox": "cpu"}:
        plan |= {"lm_head": "cpu"}
    again = type(model).from_pretrained(tmp_path, device_map=plan)
    same(again(ids(2, 6)).logits, model(ids(2, 6)).logits)


class Rounded(DynamicLayer):
    """A layer as quantized caches have it."""

    nbits = 4


@pytest.mark.parametrize("kind", ["offloaded", "quantized", "static"])
def test_caches_that_keep_other_numbers_or_places_are_refused(kind: str) -> None:
    """By name, and before anything is written into them."""
    from upstream.library import load

    model, inputs = model_of(load("neox_lab")), ids(2, 6)
    with (
        pytest.raises(ValueError, match=f"cache_implementation='{kind}'")
        if (kind != "static")
        else nullcontext()
    ):
        model.generate(inputs, max_new_tokens=2, cache_implementation=kind)
    cache: Any = DynamicCache()
    if kind == "offloaded":
        cache.offloading = True
    elif kind == "quantized":
        cache.layers = [Rounded(), Rounded()]
    else:
        cache = StaticCache(load("transformers").config(), max_cache_len=16)
    for ask in (model, lambda *given, **more: model.generate(*given, max_new_tokens=2, **more)):
        with pytest.raises(ValueError, match=r"past_key_values is a .*not offloaded"):
            ask(inputs, past_key_values=cache)
    assert cache.get_seq_length() == 0
