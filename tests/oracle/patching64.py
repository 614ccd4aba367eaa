"""Patching, paths and gradients, asked of the oracle one definition at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from network64 import Network64, Run64
from torch import Tensor


@dataclass(frozen=True)
class Question64:
    """A network, clean and corrupted prompts, and a difference of two logits at the end.

    Attributes:
        network: the oracle.
        clean: ids ``[batch, pos]``.
        corrupted: likewise.
        mask: 1 for text and 0 for padding.
        right: the token whose logit is asked for.
        wrong: the one that is subtracted.
    """

    network: Network64
    clean: Tensor
    corrupted: Tensor
    mask: Tensor
    right: int = 3
    wrong: int = 7

    def metric(self, logits: Tensor) -> Tensor:
        """Of each row ``[batch]``, at its last own token."""
        last = [int(row.nonzero().max()) for row in self.mask]
        times = len(logits) // len(last)
        at = logits[torch.arange(len(logits)), torch.tensor(last).repeat(times)]
        return at[:, self.right] - at[:, self.wrong]

    def run(self, ids: Tensor, edits: Any = None) -> Run64:
        return self.network(ids, self.mask, edits)

    def sweep(self, hook: str, axes: tuple[str, ...], value: Callable[[str], Tensor]) -> Tensor:
        """The metric of each cell ``[batch, *axes]``; the cells of a layer run side by side."""
        batch, length = self.corrupted.shape
        sizes = {"head": self.network.heads, "pos": length, "source_pos": length}
        shape = [sizes[axis] for axis in axes[1:]]
        cells = list(itertools.product(*map(range, shape)))
        many = self.corrupted.repeat(len(cells), 1), self.mask.repeat(len(cells), 1)
        found = []
        for layer in range(self.network.layers):
            name = f"blocks.{layer}.{hook}"

            def put(own: Tensor, name: str = name) -> Tensor:
                changed = own.view(len(cells), batch, *own.shape[1:]).clone()
                for number, cell in enumerate(cells):
                    where = place(hook, dict(zip(axes[1:], cell, strict=True)))
                    changed[number][where] = value(name)[where]
                return changed.flatten(0, 1)

            metric = self.metric(self.network(*many, {name: put}).logits)
            found.append(metric.view(*shape, batch).movedim(-1, 0))
        return torch.stack(found, dim=1)

    def slopes(
        self, names: list[str], ids: Tensor | None = None, **edits: Any
    ) -> dict[str, Tensor]:
        """The metric's gradient at activations, of each row its own."""
        probes: dict[str, Tensor] = {}

        def probed(name: str, own: Tensor) -> Tensor:
            base = edits[name](own) if name in edits else own
            probes[name] = torch.zeros_like(base, requires_grad=True)
            return base + probes[name]

        everything = dict.fromkeys([*names, *edits])
        made = {n: (lambda own, n=n: probed(n, own)) for n in everything}
        logits = self.run(self.corrupted if ids is None else ids, made).logits
        total = self.metric(logits).sum()
        found = torch.autograd.grad(total, [probes[n] for n in names])
        return dict(zip(names, found, strict=True))

    def average_slopes(self, names: list[str], steps: int) -> dict[str, Tensor]:
        """Gradients averaged over embeddings from the corrupted to the clean prompts."""
        if not steps:
            return self.slopes(names)
        table = self.network.weights["embed_in.weight"]
        start, end = table[self.corrupted], table[self.clean]
        total = {name: torch.zeros(()) for name in names}
        for x, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):
            embeds = start + (x + 1) / 2 * (end - start)
            found = self.slopes(names, hook_embed=lambda _, e=embeds: e)
            total = {n: total[n] + weight / 2 * found[n] for n in names}
        return total


def place(hook: str, at: dict[str, int]) -> tuple[Any, ...]:
    """Which part of an activation a cell names."""
    every = slice(None)
    head, pos, source = (at.get(axis, every) for axis in ("head", "pos", "source_pos"))
    if hook.endswith("pattern"):
        return (every, head, pos, source)
    return (every, pos, head) if hook.startswith("attn.hook") else (every, pos)


@dataclass(frozen=True)
class Paths64:
    """Direct edges between parts, by the definition.

    Writers are ``embed``, ``L0H1`` and ``MLP0``; readers ``L1H0.q``, ``MLP1`` and ``logits``.
    """

    question: Question64

    def __post_init__(self) -> None:
        asked = self.question
        object.__setattr__(self, "own", asked.run(asked.corrupted))
        object.__setattr__(self, "clean", asked.run(asked.clean))

    own: Any = None
    clean: Any = None

    def written(self, run: Run64, writer: str) -> Tensor:
        """What a writer adds to the residual stream, ``[batch, pos, d_model]``."""
        if writer == "embed":
            return run["hook_embed"]
        if writer.startswith("MLP"):
            return run[f"blocks.{writer[3:]}.hook_mlp_out"]
        layer, head = numbers(writer)
        z = run[f"blocks.{layer}.attn.hook_z"]
        name = f"layers.{layer}.attention.dense.weight"
        columns = self.question.network.weights[name].view(z.shape[-1] * z.shape[2], z.shape[2], -1)
        return z[:, :, head] @ columns[:, head].T

    def change(self, writer: str) -> Tensor:
        return self.written(self.clean, writer) - self.written(self.own, writer)

    def precedes(self, writer: str, reader: str) -> bool:
        """Whether the reader's input holds what the writer wrote."""
        if reader == "logits" or writer == "embed":
            return True
        parallel = self.question.network.config.use_parallel_residual
        if writer.startswith("L") and reader.startswith("MLP") and not parallel:
            return numbers(writer)[0] <= int(reader[3:])
        of_writer = int(writer[3:]) if writer.startswith("MLP") else numbers(writer)[0]
        of_reader = int(reader[3:]) if reader.startswith("MLP") else numbers(reader)[0]
        return of_writer < of_reader

    def receiving(self, reader: str, read: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
        """The edit that sets a reader to what it makes of another input."""
        asked = self.question
        if reader.startswith("MLP"):
            layer = int(reader[3:])
            hook = f"blocks.{layer}.hook_mlp_in"
            made = asked.run(asked.corrupted, {hook: lambda _: read})
            out = f"blocks.{layer}.hook_mlp_out"
            return out, lambda _: made[out]
        layer, head = numbers(reader)
        hook = f"blocks.{layer}.attn.hook_{reader[-1]}"
        made = asked.run(asked.corrupted, {f"blocks.{layer}.hook_resid_pre": lambda _: read})

        def put(own: Tensor) -> Tensor:
            changed = own.clone()
            changed[:, :, head] = made[hook][:, :, head]
            return changed

        return hook, put

    def input_of(self, reader: str, run: Run64) -> Tensor:
        if reader == "logits":
            return run[f"blocks.{self.question.network.layers - 1}.hook_resid_post"]
        if reader.startswith("MLP"):
            return run[f"blocks.{reader[3:]}.hook_mlp_in"]
        return run[f"blocks.{numbers(reader)[0]}.hook_resid_pre"]

    def patched(self, writer: str, readers: list[str], mlps: bool = False) -> Tensor:
        """The metric ``[batch]`` after a writer's clean output was sent to readers alone."""
        asked, edits = self.question, {}
        arrived = self._by_mlps(writer) if mlps else None
        at_end = torch.zeros(())
        for reader in readers:
            if not self.precedes(writer, reader):
                continue
            plain = self.input_of(reader, self.own)
            read = (
                plain + self.change(writer) if arrived is None else self.input_of(reader, arrived)
            )
            if reader == "logits":
                at_end = read - plain
                continue
            hook, put = self.receiving(reader, read)
            before = edits.get(hook)
            edits[hook] = put if before is None else (lambda x, f=before, g=put: g(f(x)))
        run = asked.run(asked.corrupted, edits)
        final = run[f"blocks.{asked.network.layers - 1}.hook_resid_post"] + at_end
        return asked.metric(asked.network.head(asked.network.normalize(final)))

    def _by_mlps(self, writer: str) -> Run64:
        """The corrupted run with every head as it was, the writer excepted: MLPs react to it."""
        asked = self.question
        edits: dict[str, Callable[[Tensor], Tensor]] = {}
        for layer in range(asked.network.layers):
            hook = f"blocks.{layer}.hook_attn_out"
            edits[hook] = lambda _, hook=hook: self.own[hook]
        change = self.change(writer)
        hook = "hook_embed" if writer == "embed" else f"blocks.{writer[3:]}.hook_mlp_out"
        if writer.startswith("L"):
            hook = f"blocks.{numbers(writer)[0]}.hook_attn_out"
        edits[hook] = lambda _: self.own[hook] + change
        return asked.run(asked.corrupted, edits)


def numbers(name: str) -> tuple[int, int]:
    """Layer and head of ``L1H0`` or ``L1H0.q``."""
    layer, head = name.split(".")[0][1:].split("H")
    return int(layer), int(head)
