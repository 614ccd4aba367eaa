"""How hooks may be written, and what is said when one fails."""

from __future__ import annotations

import functools
import traceback
from typing import Any

import pytest
import torch
from oracle import pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError
from neox_lab.generation import only

Z = "blocks.1.attn.hook_z"
SITE = "blocks.2.hook_mlp_out"


@pytest.fixture(scope="module")
def model() -> Any:
    return pair()[1].requires_grad_(True)


def second(tensor: Tensor, hook: Any) -> Tensor:
    return scaled(tensor, hook)


def keyword(tensor: Tensor, *, hook: Any) -> Tensor:
    return scaled(tensor, hook)


def third(tensor: Tensor, factor: float, hook: Any) -> Tensor:
    return factor * scaled(tensor, hook)


def first(factor: float, tensor: Tensor, hook: Any) -> Tensor:
    return factor * scaled(tensor, hook)


def anything(*given: Any, **named: Any) -> Tensor:
    return scaled(given[0], named.get("hook") or given[1])


def scaled(tensor: Tensor, hook: Any) -> Tensor:
    assert isinstance(hook, nl.HookPoint)
    assert hook.name in (Z, SITE)
    return 0.5 * tensor


@functools.wraps(keyword)
def wrapped(*given: Any, **named: Any) -> Tensor:
    return keyword(*given, **named)


@functools.wraps(keyword)
def own_arguments(tensor: Tensor, point: Any) -> Tensor:
    return keyword(tensor, hook=point)


class Method:
    def positional(self, tensor: Tensor, point: Any) -> Tensor:
        return scaled(tensor, point)

    def __call__(self, tensor: Tensor, *, hook: Any) -> Tensor:
        return scaled(tensor, hook)


WAYS: dict[str, Any] = {
    "second": second,
    "keyword": keyword,
    "lambda": lambda x, hook: scaled(x, hook),
    "another name": lambda x, _point: scaled(x, _point),
    "anything": anything,
    "wrapped": wrapped,
    "own arguments": own_arguments,
    "method": Method().positional,
    "callable": Method(),
    "partial, keyword": functools.partial(third, factor=1.0),
    "partial, first": functools.partial(first, 1.0),
    "partial, of keyword": functools.partial(keyword),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_hook_point_comes_second_or_by_keyword(model: Any, way: str) -> None:
    function = WAYS[way]
    wanted = model.run_with_hooks(tokens(), [(SITE, lambda tensor, _: 0.5 * tensor)]).logits
    assert torch.equal(model.run_with_hooks(tokens(), [(SITE, function)]).logits, wanted)
    seen = model.run_with_hooks(tokens(), [(SITE, only(function, part="prompt"))]).logits
    assert torch.equal(seen, wanted)
    with model.hooks(bwd_hooks=[(SITE, function)]):
        model(tokens()).logits.sum().backward()


def test_a_marked_hook_by_keyword_only_reads(model: Any) -> None:
    seen: list[Tensor] = []

    @nl.reads_only
    def note(tensor: Tensor, *, hook: Any) -> None:
        seen.append(tensor)

    output, cache = None, None
    with model.hooks([(Z, note)]):
        output, cache = model.run_with_cache(tokens(), Z)
    assert seen[0].data_ptr() == cache[Z].data_ptr() or torch.equal(seen[0], cache[Z])
    assert output is not None
    wrong = nl.reads_only(lambda tensor, *, hook: tensor)
    with pytest.raises(HookError, match="reads_only"):
        model.run_with_hooks(tokens(), [(Z, wrong)])


@pytest.mark.parametrize(
    "function",
    [lambda tensor: tensor, lambda: None, lambda a, b, c: a, lambda a, *, point: a, Tensor.relu_],
    ids=["one", "none", "three", "another keyword", "built-in"],
)
def test_a_hook_that_takes_no_hook_point_is_refused(model: Any, function: Any) -> None:
    if function is Tensor.relu_:  # says nothing of its arguments: it fails when it is called
        with pytest.raises(TypeError) as caught:
            model.run_with_hooks(tokens(), [(SITE, function)])
        assert SITE in caught.value.__notes__[0]
        return
    with pytest.raises(HookError, match=r"def my_hook\(tensor, hook\)"):
        model.run_with_hooks(tokens(), [(SITE, function)])
    assert not model.hook_stack.placements


class OwnError(Exception):
    pass


def fail(tensor: Tensor, hook: Any) -> None:
    raise OwnError("it failed")


def test_an_error_names_the_hook_point(model: Any) -> None:
    for hooks in ({"fwd_hooks": [("z", fail)]}, {"bwd_hooks": [(Z, fail)]}):
        with pytest.raises(OwnError, match="it failed") as caught, model.hooks(**hooks):
            model(tokens()).logits.sum().backward()
        (note,) = caught.value.__notes__
        name = "blocks.0.attn.hook_z" if "fwd_hooks" in hooks else Z
        assert note == f"It was raised in the hook fail at {name!r}."
        assert note in "".join(traceback.format_exception(caught.value))
    # What names the point by itself is not told twice.
    with pytest.raises(HookError, match=r"blocks\.1\.attn\.hook_z") as refused:
        model.run_with_hooks(tokens(), [(Z, lambda tensor, hook: tensor[0])])
    assert not hasattr(refused.value, "__notes__")
    with pytest.raises(RuntimeError) as caught_:
        model.run_with_hooks(tokens(), [(Z, lambda tensor, hook: tensor @ torch.ones(3))])
    assert Z in caught_.value.__notes__[0]

    def spliced(tensor: Tensor, tap: Any) -> Tensor:
        raise OwnError("within")

    point = nl.SplicedPoint("hook_acts", "batch pos d_model", "anything")
    with pytest.raises(OwnError) as inside, model.spliced_function(SITE, spliced, [point]):
        model(tokens())
    assert SITE in inside.value.__notes__[0]
