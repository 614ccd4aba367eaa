"""Interrupts, damage, forks, other processes and forbidden writes while layers are read."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_models import LAYERS, both, gradient, tokens, written
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, DeviceError
from neox_lab.streaming.files import OpenFile

METRIC = nl.patching.logit_difference(3, 4)
LAYER = 4 * 12 * 32 * 32


@pytest.fixture
def models(tmp_path: Path) -> Any:
    return both(written(tmp_path))


def sweep(model: Any) -> Tensor:
    found = nl.patching.sweep(model, tokens(1), tokens(1, seed=5), METRIC, progress=False)
    return found.values


def forward(model: Any) -> Tensor:
    logits: Tensor = model(tokens()).logits
    return logits


QUESTIONS: dict[str, Callable[[Any], Tensor]] = {
    "forward": forward,
    "sweep": sweep,
    "gradient": lambda model: gradient(model, lambda x: model(inputs_embeds=x).logits, tokens()),
    "generate": lambda model: model.generate(tokens(), max_new_tokens=3, do_sample=False),
    "cache": lambda model: model.run_with_cache(tokens())[1]["blocks.4.hook_resid_post"],
}


# --- what is written into weights --------------------------------------------------------------


def row(weight: Tensor) -> None:
    weight.data[5] = 0


def column(weight: Tensor) -> None:
    weight.data[:, 7] = 0


def scaled(weight: Tensor) -> None:
    weight.data.mul_(1.5)


def numpy(weight: Tensor) -> None:
    weight.detach().view(torch.uint8).numpy()[3] = 0


@pytest.mark.parametrize("write", [row, column, scaled, numpy])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_pytorch_does_not_count_is_told_as_well(
    tmp_path: Path, write: Callable[[Tensor], None], dtype: str
) -> None:
    whole, streamed, _ = both(written(tmp_path), dtype=dtype)
    names = ("mlp.dense_4h_to_h", "mlp.dense_h_to_4h", "attention.query_key_value")
    for layer in range(1, LAYERS):
        name = names[layer % 3]
        write(streamed.backbone.block(layer).get_submodule(name).weight)
        with pytest.raises(DeviceError, match=f"wrote into {name}.weight of layer {layer}"):
            streamed(tokens())
        assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)


def test_numbers_that_are_none_are_no_change(tmp_path: Path) -> None:
    model = nl.GPTNeoXForCausalLM.from_pretrained(written(tmp_path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[..., ::2] = torch.nan
    model.save_pretrained(tmp_path / "other")
    _, streamed, _ = both(tmp_path / "other")
    for _ in range(2):
        assert streamed(tokens()).logits.isnan().any()


def test_there_is_no_state_dict_of_what_is_in_files(models: Any) -> None:
    whole, streamed, _ = models
    for part in (streamed, streamed.gpt_neox, streamed.gpt_neox.layers[2].mlp):
        with pytest.raises(CheckpointError, match="one after another"):
            part.state_dict()
    resident = streamed.gpt_neox.layers[0]
    assert resident.state_dict().keys() == whole.gpt_neox.layers[0].state_dict().keys()
    weight = whole.gpt_neox.layers[2].mlp.dense_h_to_4h.weight
    assert torch.equal(streamed.gpt_neox.layers[2].mlp.dense_h_to_4h.weight, weight)


# --- steps of a climb ---------------------------------------------------------------------------


def test_while_a_step_of_a_climb_is_used_the_next_layer_is_read(models: Any) -> None:
    whole, streamed, store = models
    x = torch.randn(1, 3, 32)
    before = store.read.layers
    with torch.no_grad():
        for layer in range(LAYERS):
            expected = whole(inputs_embeds=x, start_at_layer=layer, stop_at_layer=layer + 1)
            found = streamed(inputs_embeds=x, start_at_layer=layer, stop_at_layer=layer + 1)
            assert torch.equal(found[0], expected[0])
            store._reader.submit(int).result()
            above = layer + 1
            assert above == LAYERS or layer == 0 or above in store._there
    assert store.read.layers - before == LAYERS - 1


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out", "edges", "ablation", "paths"])
def test_questions_read_each_layer_once(models: Any, site: str) -> None:
    _, streamed, store = models
    clean, corrupted = tokens(2), tokens(2, seed=5)
    ask: dict[str, Callable[[], Any]] = {
        "edges": lambda: nl.patching.edge_sweep(streamed, clean, corrupted, METRIC),
        "paths": lambda: nl.patching.path_patch(streamed, clean, corrupted, METRIC, "heads"),
        "ablation": lambda: nl.patching.ablate(streamed, clean, METRIC, "z", "resample"),
    }
    usual = lambda: nl.patching.sweep(streamed, clean, corrupted, METRIC, site)  # noqa: E731
    for _ in range(2):
        before = store.read.layers
        ask.get(site, usual)()
        assert store.read.layers - before == LAYERS - 1
    assert store.nbytes == 2 * LAYER


# --- interrupts ---------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="signals to threads")
@pytest.mark.parametrize("question", QUESTIONS)
def test_an_interrupt_while_a_layer_is_waited_for(
    models: Any, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, streamed, store = models
    ask = QUESTIONS[question]
    expected, read = ask(whole), OpenFile.read
    main = threading.main_thread().ident
    assert main is not None
    sent: list[str] = []

    def slow(file: OpenFile, place: Any, start: int, into: memoryview) -> None:
        if store.read.layers == 2 and not sent:
            sent.append("once")
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.05)
        read(file, place, start, into)

    monkeypatch.setattr(OpenFile, "read", slow)
    if question in ("sweep", "generate"):  # these give what they have
        told = ask(streamed)
        assert told.shape != expected.shape or told.isnan().any()
    else:
        with pytest.raises(KeyboardInterrupt):
            ask(streamed)
    assert sent
    assert not streamed.hook_stack.placements
    assert torch.equal(ask(streamed), expected)
    assert store.nbytes == 2 * LAYER


# --- damage in the middle of a pass --------------------------------------------------------------


def at_layer(layer: int, action: Callable[[], object]) -> Any:
    def act(_tensor: Tensor, _hook: Any) -> None:
        action()

    return f"blocks.{layer}.hook_resid_pre", act


def test_a_file_cut_short_in_the_middle(models: Any, tmp_path: Path) -> None:
    whole, streamed, store = models
    path = tmp_path / "model.safetensors"
    content, stat = path.read_bytes(), path.stat()
    expected = {name: ask(whole) for name, ask in QUESTIONS.items()}
    hook = at_layer(2, lambda: os.truncate(path, 5000))
    seen, begun = OpenFile.read, [0]

    def cut(file: OpenFile, place: Any, start: int, into: memoryview) -> None:
        if store.read.layers > begun[0] + 1:
            os.truncate(path, 5000)
        seen(file, place, start, into)

    for name, ask in QUESTIONS.items():
        begun[0] = store.read.layers
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OpenFile, "read", cut)
            with pytest.raises(CheckpointError, match="cut short"):
                ask(streamed)
        assert not streamed.hook_stack.placements
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert torch.equal(ask(streamed), expected[name]), name
    with pytest.raises(CheckpointError, match="cut short"):
        streamed.run_with_hooks(tokens(), fwd_hooks=[hook])
    assert store.nbytes <= 2 * LAYER


def test_a_file_written_into_while_it_is_read(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, store = models
    read_at = OpenFile._read_at

    def read(file: OpenFile, at: int, into: memoryview) -> int | None:
        count = read_at(file, at, into)
        os.utime(file.path, ns=(0, 0))
        return count

    monkeypatch.setattr(OpenFile, "_read_at", read)
    with pytest.raises(CheckpointError, match="changed"):
        store.take(LAYERS - 1, "mlp.dense_h_to_4h.weight")  # the first that is read


@pytest.mark.skipif(os.name != "posix", reason="open files cannot be removed")
def test_a_folder_removed_in_the_middle(models: Any, tmp_path: Path) -> None:
    whole, streamed, _ = models
    hook = at_layer(1, lambda: shutil.rmtree(tmp_path))
    found = streamed.run_with_hooks(tokens(), fwd_hooks=[hook]).logits
    assert torch.equal(found, whole(tokens()).logits)


# --- processes and threads -----------------------------------------------------------------------


def test_threads_do_not_move_each_others_place_in_a_file(tmp_path: Path) -> None:
    """As processes would that were forked: they share what is open, and the place in it."""
    content = os.urandom(400_000)
    (tmp_path / "bytes").write_bytes(content)
    file = OpenFile(tmp_path / "bytes")
    from neox_lab.streaming.files import Place

    place = Place(file, 0, (len(content),), torch.uint8)
    wrong = []

    def read(offset: int) -> None:
        found = bytearray(50_000)
        for _ in range(300):
            file.read(place, offset, memoryview(found))
            if found != content[offset : offset + 50_000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(at * 90_000,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.close()
    assert not wrong


def test_a_process_forked_while_its_parent_reads(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock stays shut there, and what was on its way never arrives."""
    whole, streamed, store = models
    streamed(tokens())
    for layer in list(store._there):
        store._there[layer] = Future()
    store._at = min(store._there)
    store._shared.acquire()
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)


PASSES = """
import sys
from pathlib import Path
import torch
from files_of_models import both, tokens
whole, streamed, store = both(Path(sys.argv[1]))
expected = whole(tokens()).logits
print("ready", flush=True)
input()
for _ in range(60):
    assert torch.equal(streamed(tokens()).logits, expected)
print(store.read.layers)
"""


@pytest.mark.slow
def test_two_processes_on_one_file(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PASSES, str(written(tmp_path))],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        told, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        assert int(told) == 60 * (LAYERS - 1)


def test_files_are_closed_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, streamed, store = both(written(tmp_path))
        streamed(tokens())
        del streamed, store
        gc.collect()
    assert not [str(each.message) for each in told if each.category is ResourceWarning]
