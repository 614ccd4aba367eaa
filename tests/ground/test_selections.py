"""Selections mean what NumPy means by them, or are refused; everywhere in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from oracle import SIZES, randomize, tokens

import neox_lab as nl
from neox_lab.data.positions import positions
from neox_lab.errors import InputError, NeoxLabError
from neox_lab.family.factored import FactoredMatrix
from neox_lab.selections import entries, one_each, take

SIZE = 5
NUMBERS = st.integers(-SIZE, SIZE - 1)
LISTS = st.lists(NUMBERS, max_size=6)
ENDS = st.none() | st.integers(-7, 7)
TUPLES = st.one_of(
    st.tuples(ENDS),
    st.tuples(ENDS, ENDS),
    st.tuples(ENDS, ENDS, ENDS.filter(lambda step: step != 0)),
)
RIGHT = st.one_of(
    NUMBERS,
    LISTS,
    LISTS.map(lambda found: torch.tensor(found, dtype=torch.long)),
    LISTS.map(lambda found: np.array(found, dtype=np.int32)),
    st.builds(slice, ENDS, ENDS, ENDS.filter(lambda step: step != 0)),
    st.builds(range, st.integers(0, 4), st.integers(0, 5)),
    TUPLES,
    st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
    st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(torch.tensor),
    st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(np.array),
)
WRONG: list[Any] = [
    True,
    torch.tensor(True),
    1.0,
    1.5,
    "1",
    None,
    {0: 1},
    (),
    (0, 1, 2, 3),
    (0, 1.5),
    (True, 2),
    (0, 3, 0),
    [0, 1.5],
    [0.0, 1.0],
    [True, 1],
    torch.tensor([0.0, 1.0]),
    np.array([0.5]),
    torch.tensor([[0, 1]]),
    [True, False],
    torch.tensor([True, False, True, False]),
    SIZE,
    -SIZE - 1,
    [0, SIZE],
    slice(0.5, 2),
    slice(True, 2),
    slice(0, 3, 0),
]


@given(RIGHT)
def test_entries_are_those_of_numpy(which: Any) -> None:
    axis = np.arange(SIZE)
    index = which.numpy() if isinstance(which, torch.Tensor) else which
    if isinstance(which, list | range):
        boolean = bool(which) and isinstance(which[0], bool)
        index = np.array(which, dtype=bool if boolean else int)
    if isinstance(which, tuple):
        index = slice(*which)
    wanted = axis[index]
    np.testing.assert_array_equal(axis[entries("which", which, SIZE, InputError)], wanted)
    wide = torch.arange(SIZE).expand(2, SIZE)
    np.testing.assert_array_equal(take(wide, -1, which, "which", InputError)[1].numpy(), wanted)


@pytest.mark.parametrize("which", WRONG, ids=repr)
def test_what_could_mean_two_things_is_refused(which: Any) -> None:
    with pytest.raises(InputError, match=r"^which"):
        entries("which", which, SIZE, InputError)


def test_one_for_each_text() -> None:
    for given_ in ([1, -1], (1, -1), range(1, 3), torch.tensor([1, 2]), np.array([1, 2])):
        assert one_each("pos", given_, 2, InputError) == [int(at) for at in given_]
    assert positions(np.int64(-1), [3, 4]) == [2, 3]  # type: ignore[arg-type]
    for wrong in (
        True,
        1.5,
        [True, False],
        [0, 1.5],
        torch.tensor([0.0, 1.0]),
        "first",
        [[0], [1]],
    ):
        with pytest.raises(InputError, match="pos"):
            positions(wrong, [3, 3])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> Any:
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES)).eval()
    randomize(model)
    return model


def test_a_cache_keeps_what_a_mask_says(model: Any) -> None:
    ids = tokens()
    _, whole = model.run_with_cache(ids)
    mask = torch.arange(ids.shape[1]) % 3 == 0
    for given_ in (mask, mask.tolist(), mask.numpy()):
        _, cache = model.run_with_cache(ids, pos_slice=given_)
        for name in ("hook_embed", "blocks.1.attn.hook_z", "blocks.2.hook_resid_post"):
            torch.testing.assert_close(cache[name], whole[name][:, mask], rtol=0, atol=1e-4)
        pattern = "blocks.1.attn.hook_pattern"
        torch.testing.assert_close(cache[pattern], whole[pattern][:, :, mask], rtol=0, atol=1e-4)
        assert cache.nbytes == model.cache_size(ids, pos_slice=given_)
    half = torch.arange(96) % 2 == 1
    taken = whole.stack_neuron_results(1, neuron_slice=half, pos_slice=mask, return_labels=True)
    stack, labels = whole.stack_neuron_results(1, return_labels=True)
    torch.testing.assert_close(taken[0], stack[half][:, :, mask], rtol=0, atol=0)
    assert taken[1] == labels[1::2]


MEANT: list[tuple[Any, Any]] = [
    (-1, -1),
    (2, 2),
    (np.int64(4), 4),
    (torch.tensor(3), 3),
    ((3,), slice(3)),
    ((1, 3), slice(1, 3)),
    ((-4, None), slice(-4, None)),
    ((1, 8, 3), slice(1, 8, 3)),
    (slice(2, 9, 3), slice(2, 9, 3)),
    ([1, 3], [1, 3]),
    ([5, 0, 5], [5, 0, 5]),
    (np.array([-1, 2]), [-1, 2]),
    (torch.tensor([4, 1]), [4, 1]),
    (None, slice(None)),
]


@pytest.mark.parametrize(("which", "index"), MEANT, ids=str)
def test_selections_mean_what_they_mean_in_transformerlens(which: Any, index: Any) -> None:
    slices = pytest.importorskip("transformer_lens.utilities", reason="needs transformer_lens")
    axis = torch.arange(12)
    for meant, keeps in ((slices.Slice(which), False), (slices.Slice.unwrap(which), True)):
        wanted = axis[[index] if keeps and isinstance(index, int) else index]
        assert torch.equal(meant.apply(axis), wanted)


@pytest.mark.parametrize(("which", "index"), MEANT, ids=str)
def test_one_meaning_wherever_positions_are_chosen(model: Any, which: Any, index: Any) -> None:
    """One number takes the axis away from what a cache is asked for, not from what it keeps."""
    ids = tokens()
    _, whole = model.run_with_cache(ids)
    _, cache = model.run_with_cache(ids, pos_slice=which)
    keep = [index] if isinstance(index, int) else index
    for name, tensor in cache.items():
        axes = model.hook_points[name].axes
        axis = axes.index("query_pos" if "query_pos" in axes else "pos")
        wanted = whole[name][(slice(None),) * axis + (keep,)]
        torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-4)
    assert which is None or cache.nbytes == model.cache_size(ids, pos_slice=which)

    stack, vector = whole.decompose_resid(), torch.linspace(-1, 1, SIZES["hidden_size"])
    part, normal = stack[:, :, index], whole.apply_ln_to_stack(stack)
    shares = whole.logit_attrs(stack, 3)
    for made, all_positions in {
        (ask(which), ask(None))
        for ask in (
            lambda pos: whole.accumulated_resid(pos_slice=pos, incl_mid=True, apply_ln=True),
            lambda pos: whole.decompose_resid(pos_slice=pos, apply_ln=True),
            lambda pos: whole.stack_head_results(pos_slice=pos, incl_remainder=True),
            lambda pos: whole.stack_neuron_results(1, pos_slice=pos, neuron_slice=(2, 9)),
            lambda pos: whole.get_neuron_results(1, None, pos, vector)[None],
            lambda pos: whole.get_full_resid_decomposition(pos_slice=pos, expand_neurons=False),
        )
    } | {
        (whole.apply_ln_to_stack(part, pos_slice=which), normal),
        (whole.logit_attrs(part, 3, pos_slice=which), shares),
    }:
        torch.testing.assert_close(made, all_positions[:, :, index], rtol=1e-4, atol=1e-4)
    neurons = whole.get_neuron_results(1)[:, :, index]
    torch.testing.assert_close(whole.get_neuron_results(1, neuron_slice=which), neurons)


WHERE: dict[str, Callable[[Any, Any], object]] = {
    "run_with_cache": lambda model, which: model.run_with_cache(tokens(), pos_slice=which),
    "cache_size": lambda model, which: model.cache_size(tokens(), pos_slice=which),
    "decompose": lambda model, which: kept(model).decompose_resid(pos_slice=which),
    "neurons": lambda model, which: kept(model).get_neuron_results(0, neuron_slice=which),
    "rows": lambda model, which: kept(model).apply_ln_to_stack(
        kept(model).decompose_resid(), batch_slice=which
    ),
    "matrix": lambda model, which: FactoredMatrix(torch.ones(4, 2), torch.ones(2, 4))[which],
}
ONE: dict[str, Callable[[Any, Any], object]] = {
    "layer": lambda model, which: kept(model).decompose_resid(which),
    "block": lambda model, which: kept(model).get_neuron_results(which),
    "short form": lambda model, which: kept(model)["pattern", which],
    "start": lambda model, which: model(inputs_embeds=torch.ones(1, 2, 64), start_at_layer=which),
    "stop": lambda model, which: model(tokens(), stop_at_layer=which),
    "lens": lambda model, which: nl.lens.logit_lens(model, tokens()).view(which),
    "watch": lambda model, which: nl.lens.logit_lens(model, tokens(), watch=[which]),
    "metric": lambda model, which: nl.patching.logit_difference(1, 2, pos=which).bind(
        model, {"input_ids": tokens()}
    ),
    "answer": lambda model, which: nl.patching.logit_difference([which] * 3, 2).bind(
        model, {"input_ids": tokens()}
    ),
    "named": lambda model, which: nl.patching.sweep(
        model,
        tokens(),
        tokens() + 1,
        nl.patching.logit_difference(1, 2),
        positions={"here": which},
    ),
    "view": lambda model, which: nl.views.attention(kept(model), layer=which),
    "text": lambda model, which: nl.views.attention(kept(model), batch_index=which),
}


def kept(model: Any) -> Any:
    return model.run_with_cache(tokens())[1]


@pytest.mark.parametrize("where", [*WHERE, *ONE])
def test_no_public_argument_reads_true_or_half_a_number(model: Any, where: str) -> None:
    ask = (WHERE | ONE)[where]
    for wrong in (True, 1.5, torch.tensor(True), torch.tensor(1.5)):
        with pytest.raises(NeoxLabError):
            ask(model, wrong)
    if where in WHERE:
        for wrong in ([True, False], [0.5], torch.tensor([1.5]), [0, True]):
            with pytest.raises(NeoxLabError):
                ask(model, wrong)
    if where not in ("short form", "named", "matrix"):
        ask(model, np.int64(1))
