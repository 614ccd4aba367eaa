"""PyTorch's own wrappers: two replicas on the processor, and a process group of one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs what `pip install -e '.[interop]'` brings")

import torch
from oracle import same
from torch import Tensor
from torch.nn import parallel
from upstream.library import CAUSAL, WITH_LOSS, Library, ids, labels_for

from interop.surroundings import model_of

# Modules, which torch.nn.parallel hides behind functions of the same names.
REPLICATING = importlib.import_module("torch.nn.parallel.replicate")
GATHERING = importlib.import_module("torch.nn.parallel.scatter_gather")


@pytest.fixture
def on_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let DataParallel's parts copy and collect without graphics cards."""

    def copies(tensors: list[Tensor], devices: list[int], detach: bool = False) -> Any:
        return [[t.detach() if detach else t.clone() for t in tensors] for _ in devices]

    def collected(_device: Any, dim: int, *parts: Tensor) -> Tensor:
        parts = tuple(part[None] if part.dim() == 0 else part for part in parts)
        return torch.cat(parts, dim)

    monkeypatch.setattr(REPLICATING, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(GATHERING.Gather, "apply", staticmethod(collected))


def in_two(model: Any, inputs: Tensor, **arguments: Tensor) -> Any:
    """What DataParallel does with a batch: half to each of two replicas, and back together."""
    replicas = REPLICATING.replicate(model, [0, 1])
    halves = inputs.chunk(2)
    parts = [{n: v.chunk(2)[half] for n, v in arguments.items()} for half in range(2)]
    outputs = [r(h, **p) for r, h, p in zip(replicas, halves, parts, strict=True)]
    return GATHERING.gather(outputs, "cpu")


@pytest.mark.usefixtures("on_processors")
@pytest.mark.parametrize("kind", WITH_LOSS)
def test_two_replicas_share_a_batch(library: Library, kind: str) -> None:
    model, inputs, labels = model_of(library, kind), ids(4, 6), labels_for(kind, 4, 6)
    whole = model(inputs, use_cache=False) if kind == CAUSAL else model(inputs)
    extra = {} if kind != CAUSAL else {"attention_mask": torch.ones_like(inputs)}
    model.config.use_cache = False
    output = in_two(model, inputs, **labels, **extra)
    assert type(output) is type(whole)
    assert output.loss.shape == (2,)
    logits = "start_logits" if "start_logits" in output else "logits"
    same(output[logits], whole[logits])
    output.loss.mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", WITH_LOSS)
@pytest.mark.parametrize("find_unused", [False, True])
def test_a_model_in_a_process_group(library: Library, kind: str, find_unused: bool) -> None:
    plain, inputs, labels = model_of(library, kind), ids(4, 6), labels_for(kind, 4, 6)
    plain(inputs, **labels).loss.backward()
    model = model_of(library, kind)
    wrapped = parallel.DistributedDataParallel(model, find_unused_parameters=find_unused)
    wrapped(inputs, **labels).loss.backward()
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        same(got.grad, expected.grad)
