"""What attention's and the MLP's first matrix read: the inputs of transformers' own modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracle import padding_masks, pair, same, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.hooks.derived import STEPS
from neox_lab.hooks.table import ROWS

WIRINGS = pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
MODULES = {"attn.hook_in": "attention", "mlp.hook_in": "mlp"}


@contextmanager
def their_inputs(theirs: Any, change: Any = lambda path, x: None) -> Iterator[dict[str, Tensor]]:
    """The input of every attention and MLP module of transformers, which ``change`` may replace."""
    seen: dict[str, Tensor] = {}
    handles = []
    for layer, block in enumerate(theirs.gpt_neox.layers):
        for name, part in MODULES.items():

            def hook(
                _module: Any, args: Any, kwargs: Any, path: str = f"blocks.{layer}.{name}"
            ) -> Any:
                positional = bool(args)
                x = args[0] if positional else kwargs["hidden_states"]
                seen[path] = x
                new = change(path, x)
                if new is None:
                    return None
                seen[path] = new
                if positional:
                    return (new, *args[1:]), kwargs
                return args, kwargs | {"hidden_states": new}

            module = block.get_submodule(part)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@WIRINGS
@pytest.mark.parametrize("mask_name", ["none", "left", "right"])
@torch.no_grad()
def test_they_are_the_inputs_of_transformers_modules(parallel: bool, mask_name: str) -> None:
    theirs, ours = pair(use_parallel_residual=parallel)
    mask = padding_masks()[mask_name]
    with their_inputs(theirs) as expected:
        theirs(tokens(), attention_mask=mask)
    assert len(expected) == 6
    _, cache = ours.run_with_cache(tokens(), list(expected), attention_mask=mask)
    for name, tensor in expected.items():
        same(cache[name], tensor, 3e-5)
    same(
        cache["gpt_neox.layers.1.post_attention_layernorm"], expected["blocks.1.mlp.hook_in"], 3e-5
    )
    same(cache["in", 1, "attn"], expected["blocks.1.attn.hook_in"], 3e-5)


@WIRINGS
@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_a_replaced_input_is_what_the_module_reads(parallel: bool, name: str) -> None:
    theirs, ours = pair(use_parallel_residual=parallel)
    full = f"blocks.1.{name}"

    def swap(path: str, x: Tensor) -> Tensor | None:
        return x.roll(1, dims=1) * 1.5 if path == full else None

    with their_inputs(theirs, swap):
        expected = theirs(tokens()).logits
    got = ours.run_with_hooks(tokens(), [(full, lambda x, hook: x.roll(1, dims=1) * 1.5)]).logits
    same(got, expected, 3e-5)
    assert not torch.allclose(got, ours(tokens()).logits, atol=1e-2)


@WIRINGS
def test_their_gradients_are_autograds(parallel: bool) -> None:
    theirs, ours = pair(use_parallel_residual=parallel)
    with their_inputs(theirs, lambda path, x: x.clone()) as seen:
        target = theirs(tokens()).logits[:, -1, 3].sum()
    expected = dict(zip(seen, torch.autograd.grad(target, list(seen.values())), strict=True))
    _, cache = ours.run_with_cache(
        tokens(), list(seen), incl_bwd=lambda out: out.logits[:, -1, 3].sum()
    )
    for name, gradient in expected.items():
        same(cache[f"{name}_grad"], gradient, 1e-4)


@WIRINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_derived_and_lean_caches_give_what_was_read_to_the_last_bit(
    parallel: bool, dtype: torch.dtype
) -> None:
    ours = pair(use_parallel_residual=parallel)[1].to(dtype)
    names = [f"blocks.*.{name}" for name in MODULES]
    _, stored = ours.run_with_cache(tokens(), names)
    _, everything = ours.run_with_cache(tokens())
    _, lean = ours.run_with_cache(tokens(), lean=True)
    assert stored.frame.stored.all()
    assert not everything.frame.set_index("name").stored[list(stored)].any()
    for name in stored:
        assert torch.equal(everything[name], stored[name]), name
        assert torch.equal(lean[name], stored[name]), name


def test_a_hook_on_the_norm_shows_in_what_is_read() -> None:
    ours = pair()[1]
    edit = [("blocks.1.ln2.hook_normalized", lambda x, hook: 2 * x)]
    with ours.hooks(edit):
        _, cache = ours.run_with_cache(tokens())
    norm = ours.gpt_neox.layers[1].post_attention_layernorm
    same(cache["in", 1, "mlp"], cache["normalized", 1, "ln2"] * norm.weight + norm.bias)


def test_weights_that_changed_are_noticed() -> None:
    from neox_lab.errors import HookError

    ours = pair()[1]
    _, cache = ours.run_with_cache(tokens())
    with torch.no_grad():
        ours.gpt_neox.layers[0].post_attention_layernorm.bias.add_(1)
    cache["in", 0, "attn"]
    cache["normalized", 0, "ln2"]
    with pytest.raises(HookError, match=r"blocks.0.mlp.hook_in.*weights have changed"):
        cache["in", 0, "mlp"]


def test_heads_with_an_input_of_their_own_do_not_read_it() -> None:
    """Where a hook gave a head another input, the common one only serves the other heads."""
    ours = pair()[1]

    def other(x: Tensor, hook: Any) -> Tensor:
        x[:, :, 2] = x[:, :, 2].flip(1)
        return x

    def silence(x: Tensor, hook: Any) -> Tensor:
        return 0 * x

    with torch.no_grad():
        with ours.hooks([("blocks.1.hook_q_input", other)]):
            _, split = ours.run_with_cache(tokens(), "blocks.1.attn.hook_q")
        with ours.hooks([("blocks.1.hook_q_input", other), ("blocks.1.attn.hook_in", silence)]):
            _, both = ours.run_with_cache(tokens(), "blocks.1.attn.hook_q")
    bias = ours.gpt_neox.layers[1].attention.query_key_value.bias.view(4, 3, 16)[:, 0]
    same(both["q", 1][:, :, 2], split["q", 1][:, :, 2])
    same(both["q", 1][:, :, [0, 1, 3]], bias[[0, 1, 3]].expand(3, 12, 3, 16))


def test_every_row_that_follows_from_others_has_its_step() -> None:
    derived = {row.name.removeprefix("blocks.{l}.") for row in ROWS if row.follows_from}
    assert derived == set(STEPS)


@WIRINGS
def test_what_the_table_says_of_equal_tensors_holds(parallel: bool) -> None:
    ours = pair(use_parallel_residual=parallel)[1]
    points = ours.hook_points
    seen: dict[str, Tensor] = {}

    @nl.reads_only
    def keep(tensor: Tensor, hook: Any) -> None:
        seen[hook.name] = tensor

    with torch.no_grad():
        ours.run_with_hooks(tokens(), [("*", keep)])
    storages = {name: tensor.untyped_storage().data_ptr() for name, tensor in seen.items()}
    same_memory = 0
    for name, point in points.items():
        if point.equals is not None:
            assert storages[name] == storages[point.equals], name
            same_memory += 1
    assert same_memory == 1 + 3 * 5 + 2  # embeddings; inputs of heads and MLP; streams left


def test_the_size_of_one_heads_input_alone_is_known() -> None:
    ours = pair()[1]
    _, cache = ours.run_with_cache(tokens(), "blocks.0.hook_q_input")
    assert cache.nbytes == ours.cache_size(tokens(), "blocks.0.hook_q_input")
