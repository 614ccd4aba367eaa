"""The store of layers: what is held stays, faults are told, nothing is left behind."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_models import LAYERS, both, config, gradient, tokens, written
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, ConfigError, DeviceError, HookError, TrainingError
from neox_lab.model.identity import identity
from neox_lab.streaming import store_of
from neox_lab.streaming.placement import Sizes, budgets, place
from neox_lab.streaming.slots import Slots

CPU = torch.device("cpu")


@pytest.fixture
def models(tmp_path: Path) -> Any:
    return both(written(tmp_path))


def readers() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("neox_lab layers")}


def test_weights_that_are_held_are_never_written_over(models: Any) -> None:
    whole, streamed, store = models
    held = [block.W_in for block in streamed.blocks]  # views, of all layers at once
    for _ in range(3):
        streamed(tokens())
    for view, block in zip(held, whole.blocks, strict=True):
        assert torch.equal(view, block.W_in)
    assert torch.equal(streamed.W_Q, whole.W_Q)
    more = store.nbytes
    del held, view
    streamed(tokens())
    assert store.nbytes < more  # and given back when nobody holds them any more


def test_a_graph_made_outside_the_modules_holds_what_it_needs(models: Any) -> None:
    whole, streamed, _ = models
    made = []
    for model in (whole, streamed):
        x = torch.ones(32, requires_grad=True)
        y = x
        for block in model.blocks:
            y = torch.tanh(y @ block.W_in @ block.W_out)
        model(tokens())
        y.sum().backward()
        made.append(x.grad)
    assert torch.equal(*made)


def test_each_pass_reads_each_streamed_layer_once(models: Any) -> None:
    _, streamed, store = models
    for _ in range(3):
        before = store.read.layers
        with torch.no_grad():
            streamed(tokens())
        assert store.read.layers - before == LAYERS - 1
    before = store.read.layers
    gradient(streamed, lambda x: streamed(inputs_embeds=x).logits, tokens())
    # Up, and down again: the top two are still there.
    assert store.read.layers - before == 2 * (LAYERS - 1) - 2
    with torch.no_grad():
        start, x = store.read.layers, torch.randn(1, 3, 32)
        streamed(inputs_embeds=x, start_at_layer=1, stop_at_layer=2)
    assert store.read.layers - start <= 1


@given(st.lists(st.integers(1, LAYERS - 1), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_any_order_of_layers(models_once: Any, order: list[int]) -> None:
    whole, streamed, store = models_once
    for layer in order:
        dense = streamed.backbone.block(layer).attention.dense.weight
        assert torch.equal(dense, whole.backbone.block(layer).attention.dense.weight)
    assert store.nbytes <= (2 * 12 + 1) * 4 * 32 * 32  # ``dense`` of the layer before was held


@pytest.fixture(scope="module")
def models_once(tmp_path_factory: Any) -> Any:
    return both(written(tmp_path_factory.mktemp("model")))


def test_slots_count_every_kind_of_view() -> None:
    slots = Slots({64: 2})
    for hold in (
        lambda t: t,
        lambda t: t.view(2, 8).t()[1:],
        lambda t: t.detach(),
        lambda t: t.numpy(),
        lambda t: torch.nn.Parameter(t),
        lambda t: t.untyped_storage(),
        lambda t: (torch.ones(16, requires_grad=True) * t).grad_fn,
    ):
        slot = slots.take(64)
        held = hold(slot.tensor((16,), torch.float32))
        assert not slot.is_free
        assert slots.take(64) is not slot
        del held
        assert slot.is_free


def test_a_file_that_is_cut_short_is_told_and_can_come_back(models: Any, tmp_path: Path) -> None:
    whole, streamed, store = models
    path = tmp_path / "model.safetensors"
    content, stat = path.read_bytes(), path.stat()
    os.truncate(path, len(content) // 3)
    with pytest.raises(CheckpointError, match="cut short"):
        streamed(tokens())
    store._reader.submit(int).result()  # what was to be read ahead has failed as well
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)
    path.write_bytes(content[::-1])
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="changed"):
        streamed(tokens())
    assert store.nbytes <= 2 * 4 * 12 * 32 * 32


def test_what_failed_while_it_was_read_ahead_is_read_again(models: Any) -> None:
    whole, streamed, store = models
    for layer in store.sources:
        failed: Future[Any] = Future()
        failed.set_exception(CheckpointError("The file was cut short then."))
        store._there[layer] = failed
        assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)


def test_a_file_that_is_replaced_or_deleted_goes_on_being_read(models: Any, tmp_path: Path) -> None:
    whole, streamed, _ = models
    path = tmp_path / "model.safetensors"
    if os.name == "posix":
        path.unlink()
        path.write_bytes(b"something else")
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)


def test_an_interrupt_in_the_middle_of_a_pass_leaves_a_model_that_works(models: Any) -> None:
    whole, streamed, store = models

    def stop(_tensor: Any, _hook: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streamed.run_with_hooks(tokens(), fwd_hooks=[("blocks.3.hook_attn_out", stop)])
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)
    assert store.nbytes <= 2 * 4 * 12 * 32 * 32


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    gc.collect()
    before, files = readers(), len(os.listdir("/proc/self/fd")) if os.name == "posix" else 0
    _, streamed, store = both(written(tmp_path))
    streamed(tokens())
    assert len(readers() - before) == 1
    store.close()
    assert not readers() - before
    with pytest.raises(CheckpointError, match="closed"):
        streamed(tokens())
    _, streamed, store = both(tmp_path)
    streamed(tokens())
    (reader,) = readers() - before
    del streamed, store
    gc.collect()
    reader.join(10)
    assert not reader.is_alive()
    if os.name == "posix":
        assert len(os.listdir("/proc/self/fd")) == files


def test_two_threads_and_two_models_on_one_file(tmp_path: Path) -> None:
    whole, one, _ = both(written(tmp_path))
    _, other, _ = both(tmp_path)
    expected, found = whole(tokens()).logits, []

    def run(model: Any) -> None:
        for _ in range(3):
            with torch.no_grad():
                found.append(model(tokens()).logits)

    threads = [threading.Thread(target=run, args=(model,)) for model in (one, one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    assert all(torch.equal(logits, expected) for logits in found)


FORKS = """
import os, sys
from pathlib import Path
import torch
from files_of_models import both, tokens
whole, streamed, store = both(Path(sys.argv[1]))
expected = whole(tokens()).logits
streamed(tokens())
if (child := os.fork()) == 0:
    os._exit(0 if torch.equal(streamed(tokens()).logits, expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(streamed(tokens()).logits, expected)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_reads_for_itself(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, "-c", FORKS, str(written(tmp_path))],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=100,
    )


def test_gradients_of_gradients(models: Any) -> None:
    made = []
    for model in models[:2]:
        x = model.backbone.embed_in(tokens()).detach().requires_grad_()
        (slope,) = torch.autograd.grad(
            model(inputs_embeds=x, output_attentions=True).logits.square().sum(),
            x,
            create_graph=True,
        )
        slope.square().sum().backward()
        made.append(x.grad)
    assert torch.equal(*made)


def test_other_weights_for_one_call(models: Any) -> None:
    """``functional_call`` puts them where the description is, which nobody looked at."""
    whole, streamed, _ = models
    name = "gpt_neox.layers.3.mlp.dense_h_to_4h.weight"
    weight = dict(whole.named_parameters())[name].detach()

    def loss(model: Any, other: Tensor) -> Tensor:
        return torch.func.functional_call(model, {name: other}, (tokens(),)).logits.square().sum()

    for model in (whole, streamed):
        assert torch.equal(loss(model, 2 * weight), loss(whole, 2 * weight))
        assert torch.equal(loss(model, weight), whole(tokens()).logits.square().sum())
    gradients = [torch.func.grad(lambda w, m=m: loss(m, w))(weight) for m in (whole, streamed)]
    assert torch.equal(*gradients)
    assert not torch.equal(loss(whole, 2 * weight), loss(whole, weight))
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits), "only for one call"


def test_changes_in_place_are_seen_by_the_backward_pass(models: Any) -> None:
    _, streamed, _ = models
    embeds = torch.randn(1, 4, 32, requires_grad=True)
    out = streamed(inputs_embeds=embeds, output_hidden_states=True)
    with torch.no_grad():
        out.hidden_states[2].mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        out.logits.sum().backward()


def test_what_cannot_be_done_is_said(models: Any, tmp_path: Path) -> None:
    whole, streamed, _ = models
    with pytest.raises(TrainingError, match="max_memory"):
        streamed.train()
    assert not streamed.training
    with pytest.raises(CheckpointError, match="copy the files"):
        streamed.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    before = streamed.embed_out.weight.clone()
    others = {name: 0 * weight for name, weight in whole.state_dict().items()}
    for part, weights in (
        (streamed, others),
        (streamed.gpt_neox.layers[3].mlp, {"dense_h_to_4h.weight": torch.zeros(128, 32)}),
    ):
        with pytest.raises(DeviceError, match="other weights cannot be loaded"):
            part.load_state_dict(weights, strict=False)
    assert torch.equal(streamed.embed_out.weight, before)  # nothing of them was
    streamed.load_state_dict({"embed_out.weight": before}, strict=False)
    for wrong in ({}, {"": "disk"}):
        with pytest.raises(ConfigError, match="names no device to compute on"):
            nl.load(device_map=wrong)
    for move in (lambda m: m.half(), lambda m: m.double(), lambda m: m.to("meta")):
        with pytest.raises(DeviceError, match="Load it again"):
            move(streamed)
    assert streamed.float() is streamed.eval() is streamed.to("cpu") is streamed
    with pytest.raises(DeviceError, match="cannot be replaced"):
        streamed.backbone.block(3).mlp.dense_h_to_4h.weight = torch.nn.Parameter(torch.ones(2))
    for layer in range(1, LAYERS):
        with torch.no_grad():
            streamed.blocks[layer].W_Q[1] = 0
        with pytest.raises(DeviceError, match="wrote into"):
            streamed(tokens())
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)
    built_in = nl.load(max_memory={"cpu": "3.4 MB"})
    texts = ["a good day"] * 4, ["a bad day"] * 4
    direction = nl.steering.direction(built_in, *texts, site=("resid_post", 1))
    with pytest.raises(HookError, match=r"removed\(\)"):
        direction.remove_from_weights()
    with pytest.raises(CheckpointError, match="pickled"):
        pickle.dumps(streamed)


def test_what_is_asked_of_a_model_without_running_it(models: Any) -> None:
    whole, streamed, store = models
    assert streamed.num_parameters() == whole.num_parameters()
    assert streamed.dtype == whole.dtype
    assert streamed.device == whole.device
    assert streamed.hook_names == whole.hook_names
    assert repr(streamed) == repr(whole)
    assert store.read.layers == 0
    assert identity(streamed) == identity(whole)
    twin = copy.deepcopy(streamed)
    assert store_of(twin) is store
    assert torch.equal(twin(tokens()).logits, whole(tokens()).logits)


@pytest.mark.parametrize("head", ["base", "sequence-classification", "question-answering"])
def test_heads(tmp_path: Path, head: str) -> None:
    whole, streamed, _ = both(written(tmp_path, head=head), head=head)
    ids = tokens(1)
    expected, found = (model(ids)[0] for model in (whole, streamed))
    assert torch.equal(found, expected)
    with pytest.raises(TrainingError):
        streamed.train()


def test_budgets_that_do_not_fit_or_do_not_mean_anything(tmp_path: Path) -> None:
    load = nl.GPTNeoXForCausalLM.from_pretrained
    written(tmp_path)
    with pytest.raises(DeviceError, match=r"Give at least .+B \(\d+ bytes\)") as error:
        load(tmp_path, max_memory={"cpu": "30KB"})
    least = int(str(error.value).rsplit("(", 1)[1].split()[0])
    assert store_of(load(tmp_path, max_memory={"cpu": least})) is not None
    with pytest.raises(DeviceError):
        load(tmp_path, max_memory={"cpu": least - 1})
    assert store_of(load(tmp_path, max_memory={"cpu": "8GB"})) is None
    for wrong in ("8GB", {}, {"tpu": 3}, {"cpu": "much"}, {"cuda:7": "3GB"}, 7):
        with pytest.raises(ConfigError, match="max_memory"):
            load(tmp_path, max_memory=wrong)
    state = nl.GPTNeoXForCausalLM(config()).state_dict()
    with pytest.raises(CheckpointError, match="safetensors"):
        load(None, config=config(), state_dict=state, max_memory={"cpu": least})


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(0, 20),
    st.lists(st.integers(0, 40), min_size=1, max_size=3),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_placements_keep_to_their_budgets(
    layers: list[int], fixed: int, room: list[int], even: bool
) -> None:
    devices = [torch.device("cuda", number) for number in range(len(room))]
    sizes = Sizes(fixed, tuple(layers), 1)
    try:
        made = place(sizes, list(zip(devices, room, strict=True)), balanced=even)
    except DeviceError:
        assert sizes.total > sum(room) or fixed + 2 * max(layers) + 1 > room[0] or len(room) > 1
        return
    for device, budget in zip(devices, room, strict=True):
        used = fixed * (device == made.main)
        used += sum(
            size
            for layer, size in enumerate(layers)
            if made.devices[layer] == device and layer not in made.streamed
        )
        if device == made.main and made.streamed:
            used += 2 * max(layers) + 1
        assert used <= budget
    assert sorted(made.streamed) == list(range(len(layers)))[len(layers) - len(made.streamed) :]
    assert all(made.devices[layer] == made.main for layer in made.streamed)


def test_budgets_are_read_by_device() -> None:
    zero = torch.device("cuda", 0)
    assert budgets({"cpu": "8GB", 0: "20GB"}, [zero, CPU]) == [(zero, 20 * 10**9), (CPU, 8 * 10**9)]
    assert budgets({"cuda:0": 5}, [zero, CPU]) == [(zero, 5)]
