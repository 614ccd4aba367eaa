"""Hooks that promise only to read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError


class Counter:
    """A hook that is a method."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    @nl.reads_only
    def add(self, tensor: Tensor, hook: Any) -> None:
        self.seen.append(tensor)


@nl.reads_only
class Keeper(Counter):
    """A hook that is an object."""

    def __call__(self, tensor: Tensor, hook: Any) -> None:
        self.seen.append(tensor)


@pytest.mark.parametrize("kind", ["function", "method", "object"])
@torch.no_grad()
def test_they_are_shown_the_networks_own_tensor(kind: str) -> None:
    model = pair()[1]
    counter, keeper = Counter(), Keeper()
    hook: Any = {
        "function": nl.reads_only(lambda tensor, hook: counter.seen.append(tensor)),
        "method": counter.add,
        "object": keeper,
    }[kind]
    with model.hooks([("blocks.*.hook_resid_post", hook)]):
        _, cache = model.run_with_cache(tokens())
    seen = counter.seen + keeper.seen
    assert [t.data_ptr() for t in seen] == [
        cache["resid_post", layer].data_ptr() for layer in range(3)
    ]
    assert not cache.frame.set_index("name").stored["blocks.1.attn.hook_result"], "still derived"
    model.run_with_hooks(tokens(), [("hook_embed", lambda tensor, hook: seen.append(tensor))])
    assert seen[-1].data_ptr() != cache["hook_embed"].data_ptr(), "others get a copy"


def test_a_value_that_would_be_ignored_is_an_error() -> None:
    model = pair()[1]
    double = nl.reads_only(lambda tensor, hook: 2 * tensor)
    with pytest.raises(HookError, match=r"blocks.1.hook_mlp_out.*reads_only.*ignored"):
        model.run_with_hooks(tokens(), [("blocks.1.hook_mlp_out", double)])
    output = model.run_with_hooks(tokens(), bwd_hooks=[("blocks.1.hook_mlp_out", double)])
    with pytest.raises(HookError, match=r"reads_only.*ignored"):
        output.logits.sum().backward()
