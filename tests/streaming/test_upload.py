"""The way of layers to an accelerator, with one that writes down what it is asked for.

There is no GPU here. What stands in for CUDA's streams and events notes the order in which they are
asked; tensors stay where they are, on the CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from files_of_models import LAYERS, both, tokens, written
from torch import Tensor

from neox_lab.streaming import accelerator
from neox_lab.streaming.accelerator import Upload
from neox_lab.streaming.files import OpenFile, Place


class Event:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def record(self, stream: str) -> None:
        self.cuda.told.append(("record", self, stream))
        if stream == "computing":
            self.cuda.alive.append(self.cuda.layers_there())

    def synchronize(self) -> None:
        self.cuda.told.append(("synchronize", self, None))


class Stream(str):
    def __new__(cls, name: str, cuda: Cuda) -> Stream:
        made = super().__new__(cls, name)
        made.cuda = cuda
        return made

    cuda: Cuda

    def wait_event(self, event: Event) -> None:
        self.cuda.told.append(("wait", event, str(self)))


class Cuda:
    """What ``Upload`` asks of ``torch.cuda``."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, Any]] = []
        self.made: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []  # layers that were there when a computing stream was noted
        self.per_layer = 4  # matrices

    def layers_there(self) -> int:
        return -(-sum(made() is not None for made in self.made) // self.per_layer)

    def Stream(self, device: torch.device) -> Stream:  # noqa: N802 (torch's name)
        return Stream("copies", self)

    def Event(self) -> Event:  # noqa: N802
        return Event(self)

    def current_stream(self, device: torch.device) -> Stream:
        return Stream("computing", self)

    def current_device(self) -> int:
        return 0

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()

    def empty(
        shape: Any, *, dtype: torch.dtype, device: Any = None, pin_memory: bool = False
    ) -> Any:
        tensor = torch.empty(shape, dtype=dtype)
        if not pin_memory:
            made.made.append(weakref.ref(tensor))
        return tensor

    fake = SimpleNamespace(cuda=made, empty=empty, uint8=torch.uint8, device=torch.device)
    monkeypatch.setattr(accelerator, "torch", fake)
    monkeypatch.setattr(accelerator, "PINNED", 1024)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    return made


@pytest.fixture
def streamed(cuda: Cuda, tmp_path: Path) -> Callable[..., tuple[Any, Any, Any]]:
    def made(dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
        whole, model, store = both(written(tmp_path, dtype=dtype), dtype="float32")
        store._upload = Upload(torch.device("cuda"))
        return whole, model, store

    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_the_same_numbers_through_small_buffers(streamed: Any, dtype: torch.dtype) -> None:
    whole, model, _ = streamed(dtype)
    for _ in range(3):
        assert torch.equal(model(tokens()).logits, whole(tokens()).logits)


@torch.no_grad()
def test_a_buffer_is_filled_when_it_has_been_copied(
    cuda: Cuda, streamed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = OpenFile.read

    def noted(self: OpenFile, place: Place, start: int, into: memoryview) -> None:
        cuda.told.append(("read", torch.frombuffer(into, dtype=torch.uint8).data_ptr(), None))
        read(self, place, start, into)

    _, model, _ = streamed()
    monkeypatch.setattr(OpenFile, "read", noted)
    model(tokens())
    of_reader = [e for e in cuda.told if e[0] in ("read", "synchronize") or e[2] == "copies"]
    belongs: dict[int, Event] = {}
    reads = [at for at, each in enumerate(of_reader) if each[0] == "read"]
    assert len(reads) > 100
    for at in reads:
        before, buffer, after = of_reader[at - 1], of_reader[at][1], of_reader[at + 1]
        assert (before[0], after[0]) == ("synchronize", "record")
        assert before[1] is after[1], "another event is waited for than the copy will be"
        assert belongs.setdefault(buffer, after[1]) is after[1], "a buffer has one event"
    assert len(belongs) == 2


@torch.no_grad()
def test_layers_are_let_go_of_before_their_use_is_said_to_end(cuda: Cuda, streamed: Any) -> None:
    """Else the allocator notes their use longer than the reader waits, and a third one is made."""
    _, model, store = streamed()
    for _ in range(2):
        model(tokens())
    assert len(cuda.alive) >= LAYERS
    assert max(cuda.alive) <= 1, "beside the layer that is being computed with"
    assert store.read.seconds > 0


@torch.no_grad()
def test_every_use_waits_for_the_copies(cuda: Cuda, streamed: Any) -> None:
    _, _, store = streamed()
    layer = max(store.sources)
    store.take(layer, next(iter(store.sources[layer])))
    arrived = [event for kind, event, _ in cuda.told if kind == "wait"]
    recorded = [event for kind, event, stream in cuda.told if stream == "copies"]
    assert len(arrived) == 1
    assert arrived[0] in recorded


def test_the_device_is_the_one_that_was_current(cuda: Cuda) -> None:
    assert Upload(torch.device("cuda")).device == torch.device("cuda", 0)
    assert Upload(torch.device("cuda", 1)).device == torch.device("cuda", 1)
