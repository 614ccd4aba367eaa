"""The network against transformers' eager path: every number of every variant, at 1e-5.

``oracle.assert_same_run`` is the measure: logits, the residual stream after every block, and every
attention pattern, through both of our attention paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import transformers
from hypothesis import given, settings
from oracle import (
    SIZES,
    assert_same_parts,
    assert_same_run,
    copy_weights,
    furthest,
    in_half,
    our_run,
    padding_masks,
    pair,
    relative,
    same,
    their_run,
    tokens,
)
from torch import Tensor

import neox_lab as nl
from neox_lab.config import ACTIVATIONS
from neox_lab.errors import InputError
from neox_lab.model.hook_points import NO_TAPS
from neox_lab.model.key_value_cache import KeyValueCache

ROPE_TYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "short_factor": [1.0, 1.5, 2.0, 3.0],
        "long_factor": [1.0, 2.0, 5.0, 9.0],
        "original_max_position_embeddings": 16,
    },
}


def explicit_masks(batch: int, pos: int) -> dict[str, Tensor]:
    """4-D masks: causal with rows and keys missing, boolean and additive, shared and per head."""
    generator = torch.Generator().manual_seed(5)
    seen = (torch.rand(batch, 1, pos, pos, generator=generator) > 0.3).tril()
    seen |= torch.eye(pos, dtype=torch.bool)
    blind = seen.clone()
    blind[0, 0, :3] = False  # queries that may look at nothing
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    slopes = torch.randn(batch, 4, pos, pos, generator=generator)
    return {
        "4-D bool": seen,
        "4-D bool, not causal": torch.ones(batch, 1, pos, pos, dtype=torch.bool),
        "4-D float": bias,
        "4-D float per head": bias + slopes,
        "4-D bool with blind rows": blind,
    }


# ------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("rotary_pct", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_wirings(parallel: bool, rotary_pct: float, bias: bool, tied: bool) -> None:
    theirs, ours = pair(
        use_parallel_residual=parallel,
        rotary_pct=rotary_pct,
        attention_bias=bias,
        tie_word_embeddings=tied,
    )
    assert (ours.embed_out.weight is ours.gpt_neox.embed_in.weight) == tied
    assert (ours.gpt_neox.layers[0].attention.dense.bias is not None) == bias
    assert_same_run(theirs, ours, tokens(), attention_mask=padding_masks()["left"])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    theirs, ours = pair(hidden_act=name, num_hidden_layers=2)
    assert_same_run(theirs, ours, tokens())


def test_layer_norm_epsilon_is_the_configured_one() -> None:
    theirs, ours = pair(layer_norm_eps=0.5, num_hidden_layers=2)
    assert_same_run(theirs, ours, tokens())


@pytest.mark.parametrize("kind", ROPE_TYPES)
@pytest.mark.parametrize("pos", [12, 40], ids=["short", "long"])
@pytest.mark.parametrize("rotary_pct", [0.5, 1.0])
def test_rope_types(kind: str, pos: int, rotary_pct: float) -> None:
    """Short texts fit the trained length of 16 or 32 positions, long ones exceed it."""
    theirs, ours = pair(num_hidden_layers=2, **_rope(kind, rotary_pct))
    assert_same_run(theirs, ours, tokens(2, pos))


@pytest.mark.parametrize("kind", ROPE_TYPES)
def test_rope_types_token_by_token_beyond_the_trained_length(kind: str) -> None:
    theirs, ours = pair(num_hidden_layers=2, **_rope(kind, 0.5))
    expected = got = None
    for step in tokens(2, 36).split([15, 1, 1, 1, 12, 1, 1, 1, 1, 2], dim=1):
        with torch.no_grad():
            expected = theirs(step, past_key_values=expected and expected.past_key_values)
            got = ours(step, past_key_values=got and got.past_key_values)
        same(got.logits, expected.logits)


def _rope(kind: str, rotary_pct: float) -> dict[str, Any]:
    parameters = {"rope_type": kind, "rope_theta": 500.0, "partial_rotary_factor": rotary_pct}
    parameters |= ROPE_TYPES[kind]
    for key in ("short_factor", "long_factor"):  # one number for each of 4 or 8 pairs
        if key in parameters:
            parameters[key] = parameters[key] * int(2 * rotary_pct)
    return {"rope_parameters": parameters, "max_position_embeddings": 32}


# ---------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("name", padding_masks())
def test_padding(name: str, parallel: bool) -> None:
    theirs, ours = pair(use_parallel_residual=parallel)
    assert_same_run(theirs, ours, tokens(), attention_mask=padding_masks()[name])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_padding_of_any_dtype(dtype: torch.dtype) -> None:
    theirs, ours = pair(num_hidden_layers=1)
    assert_same_run(theirs, ours, tokens(), attention_mask=padding_masks()["holes"].to(dtype))


@pytest.mark.parametrize("name", explicit_masks(3, 12))
def test_explicit_masks(name: str) -> None:
    """Transformers' eager path takes 4-D masks as they are, so theirs is always additive."""
    theirs, ours = pair()
    mask = explicit_masks(3, 12)[name]
    lowest = torch.finfo(torch.float32).min
    bias = torch.zeros(mask.shape).masked_fill(~mask, lowest) if mask.dtype == torch.bool else mask
    expected, their_blocks = their_run(theirs, tokens(), attention_mask=bias)
    for opened in (False, True):
        got, blocks = our_run(ours, tokens(), attention_mask=mask, output_attentions=opened)
        assert_same_parts(got, blocks, expected, their_blocks)
    for pattern, wanted in zip(got.attentions, expected.attentions, strict=True):
        same(pattern, wanted)


def test_padding_never_reaches_a_real_token() -> None:
    _, ours = pair()
    ids, mask = tokens(), padding_masks()["left"]
    other = torch.where(mask.bool(), ids, (ids + 7) % 200 + 2)
    with torch.no_grad():
        first, second = (ours(i, attention_mask=mask).logits for i in (ids, other))
    assert torch.equal(first[mask.bool()], second[mask.bool()])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("width", [9, 15])
@pytest.mark.parametrize("name", ["left", "right", "holes"])
def test_masks_of_other_lengths(name: str, width: int) -> None:
    """What a shorter one does not reach is hidden, and the surplus of a longer one is not read."""
    theirs, ours = pair()
    mask = torch.nn.functional.pad(padding_masks()[name][:, :width], (0, max(0, width - 12)))
    assert_same_run(theirs, ours, tokens(), attention_mask=mask, use_cache=True)


def test_one_row_of_a_mask_stands_for_all() -> None:
    ours = pair()[1]
    row = padding_masks()["left"][:1]
    with torch.no_grad():
        all_rows = ours(tokens(), attention_mask=row.expand(3, 12)).logits
        assert torch.equal(ours(tokens(), attention_mask=row).logits, all_rows)


@pytest.mark.parametrize("shape", [(12,), (2, 12), (3, 12, 12)])
def test_masks_that_fit_no_batch_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \[batch, pos\] = \[3, 12\]"):
        pair()[1](tokens(), attention_mask=torch.ones(shape))


# --------------------------------------------------------------------- positions, inputs, logits


@pytest.mark.parametrize("shape", ["shared", "per row"])
def test_position_ids(shape: str) -> None:
    theirs, ours = pair()
    mask = padding_masks()["left"]
    ids = (mask.cumsum(-1) - 1).clamp(min=0) if shape == "per row" else torch.arange(9, 21)[None]
    assert_same_run(theirs, ours, tokens(), attention_mask=mask, position_ids=ids)


PACKED = {
    "shared": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]),
    "per row": torch.stack((torch.arange(12), torch.arange(12) % 5, torch.arange(12) % 7)),
    "from anywhere": torch.arange(12).view(3, 4)[[2, 0, 1]].reshape(1, 12) + 5,
    "all alone": torch.zeros(1, 12, dtype=torch.long),
}


@pytest.mark.parametrize("name", PACKED)
def test_restarting_positions_begin_new_texts(name: str) -> None:
    """Where there is neither a mask nor a cache."""
    theirs, ours = pair()
    assert_same_run(theirs, ours, tokens(), position_ids=PACKED[name], use_cache=False)


def test_packed_texts_read_as_they_do_alone() -> None:
    ours = pair()[1]
    with torch.no_grad():
        packed = ours(tokens(), position_ids=PACKED["shared"], use_cache=False).logits
        for text in (slice(0, 5), slice(5, 8), slice(8, 12)):
            same(packed[:, text], ours(tokens()[:, text]).logits)


def test_a_mask_or_a_cache_says_that_restarting_positions_are_one_text() -> None:
    theirs, ours = pair()
    restarting = torch.arange(12)[None] % 5
    ones = torch.ones(3, 12, dtype=torch.long)
    assert_same_run(theirs, ours, tokens(), attention_mask=ones, position_ids=restarting)
    assert_same_run(theirs, ours, tokens(), position_ids=restarting, use_cache=True)


def test_packed_texts_train_as_in_transformers() -> None:
    theirs, ours = pair()
    labels = tokens().masked_fill(PACKED["shared"] == 0, -100)
    losses = [
        model(tokens(), position_ids=PACKED["shared"], labels=labels, use_cache=False).loss
        for model in (theirs, ours)
    ]
    same(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    same(ours.gpt_neox.embed_in.weight.grad, theirs.gpt_neox.embed_in.weight.grad)


@pytest.mark.parametrize("lean", [False, True])
def test_a_cache_of_activations_knows_packed_texts(lean: bool, tmp_path: Path) -> None:
    theirs, ours = pair(attention="eager")
    run = {"position_ids": PACKED["shared"], "use_cache": False}
    wanted = theirs(tokens(), output_attentions=True, **run).attentions
    _, cache = ours.run_with_cache(tokens(), lean=lean, **run)
    for layer, pattern in enumerate(wanted):
        same(cache["pattern", layer], pattern)
    if not lean:
        cache.save(tmp_path / "cache.safetensors")
        again = type(cache).load(tmp_path / "cache.safetensors", ours)
        same(again["pattern", 1], wanted[1])


def test_inputs_embeds() -> None:
    theirs, ours = pair()
    embeds = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(3))
    mask = padding_masks()["right"]
    assert_same_run(theirs, ours, inputs_embeds=embeds, attention_mask=mask)
    with torch.no_grad():
        from_ids = ours(tokens())
        from_vectors = ours(inputs_embeds=ours.gpt_neox.embed_in(tokens()))
    assert torch.equal(from_ids.logits, from_vectors.logits)


@pytest.mark.parametrize(
    "keep",
    [
        0,
        1,
        5,
        100,
        torch.tensor([0, 3, 3, 11]),
        torch.tensor([-1]),
        torch.tensor([[0, 11], [4, 4], [2, 9]]),
        torch.arange(36).reshape(3, 12) % 5 == 0,
    ],
    ids=["all", "last", "last 5", "more than all", "1-D", "1-D negative", "2-D", "2-D bool"],
)
def test_logits_to_keep(keep: int | Tensor) -> None:
    theirs, ours = pair()
    assert_same_run(theirs, ours, tokens(), logits_to_keep=keep)


# ---------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("chunks", [[1] * 12, [5, 4, 3], [11, 1], [12], [1, 11]], ids=str)
@pytest.mark.parametrize("mask_name", ["none", "left", "holes"])
@pytest.mark.parametrize("opened", [False, True], ids=["fused", "open"])
def test_cache_in_chunks_equals_one_shot(chunks: list[int], mask_name: str, opened: bool) -> None:
    theirs, ours = pair()
    ids, mask = tokens(), padding_masks()[mask_name]
    expected, _ = their_run(theirs, ids, attention_mask=mask)
    text = torch.ones_like(ids).bool() if mask is None else mask.bool()
    cache, done = None, 0
    for size in chunks:
        end = done + size
        with torch.no_grad():
            output = ours(
                ids[:, done:end],
                attention_mask=None if mask is None else mask[:, :end],
                past_key_values=cache,
                output_attentions=opened,
            )
        cache = output.past_key_values
        # Padding reads from nothing or, failing that, from everything there is: one shot has more.
        part = text[:, done:end]
        same(output.logits[part], expected.logits[:, done:end][part])
        for pattern, wanted in zip(output.attentions or (), expected.attentions, strict=False):
            rows = part[:, None].expand(-1, 4, -1)
            same(pattern[rows], wanted[:, :, done:end, :end][rows])
        done = end
    assert cache.get_seq_length() == 12
    for layer, (keys, values) in enumerate(cache):
        theirs_layer = expected.past_key_values.layers[layer]
        same(keys.transpose(1, 2)[text], theirs_layer.keys.transpose(1, 2)[text])
        same(values.transpose(1, 2)[text], theirs_layer.values.transpose(1, 2)[text])


def test_cache_with_positions_and_explicit_mask() -> None:
    theirs, ours = pair()
    ids, positions = tokens(), torch.arange(4, 16)[None]
    mask = explicit_masks(3, 12)["4-D float"]
    expected, _ = their_run(theirs, ids, attention_mask=mask, position_ids=positions)
    with torch.no_grad():
        first = ours(ids[:, :7], attention_mask=mask[..., :7, :7], position_ids=positions[:, :7])
        second = ours(
            ids[:, 7:],
            attention_mask=mask[..., 7:, :],
            position_ids=positions[:, 7:],
            past_key_values=first.past_key_values,
        )
    same(torch.cat((first.logits, second.logits), dim=1), expected.logits)


def test_use_cache_false_returns_none_and_config_is_the_default() -> None:
    _, ours = pair(use_cache=False)
    with torch.no_grad():
        assert ours(tokens()).past_key_values is None
        assert ours(tokens(), use_cache=True).past_key_values.get_seq_length() == 12


@torch.no_grad()
def remembered(ours: Any, length: int = 8) -> KeyValueCache:
    """A cache of the first ``length`` tokens, in two chunks: its buffers are its own then."""
    cache = ours(tokens()[:, : length - 1]).past_key_values
    return ours(tokens()[:, length - 1 : length], past_key_values=cache).past_key_values


@pytest.mark.parametrize(("crop", "left"), [(5, 5), (-3, 5), (100, 8), (0, 8), (-100, 0)])
@torch.no_grad()
def test_cropped_cache_continues_from_there(crop: int, left: int) -> None:
    _, ours = pair()
    cache = remembered(ours)
    cache.crop(crop)
    assert cache.get_seq_length() == cache.get_seq_length(2) == left
    assert all(keys.shape[2] == values.shape[2] == left for keys, values in cache)
    rest = ours(tokens()[:, left:], past_key_values=cache)
    same(rest.logits, ours(tokens()).logits[:, left:])


@torch.no_grad()
def test_writing_after_a_crop_leaves_earlier_tensors_alone() -> None:
    """The first tensors a cache gets are other people's too: hooks may have kept them."""
    _, ours = pair()
    names = ["blocks.*.attn.hook_rot_k", "blocks.*.attn.hook_v"]
    output, activations = ours.run_with_cache(tokens(), names_filter=names)
    cache = output.past_key_values
    assert activations["rot_k", 1].data_ptr() == cache[1][0].data_ptr()  # shared, not copied
    tensors = [*activations.values(), *cache[0], *cache[2]]
    before = [tensor.clone() for tensor in tensors]
    cache.crop(4)
    ours(tokens()[:, :6] * 0 + 7, past_key_values=cache)
    assert cache.get_seq_length() == 10
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("method", ["batch_select_indices", "reorder_cache"])
@torch.no_grad()
def test_selecting_rows_of_a_cache(method: str) -> None:
    _, ours = pair()
    cache, rows = remembered(ours), torch.tensor([2, 0, 0, 1, 2])
    getattr(cache, method)(rows)
    assert cache[1][0].shape[:3] == (5, 4, 8)
    rest = ours(tokens()[rows, 8:], past_key_values=cache)
    same(rest.logits, ours(tokens()).logits[rows, 8:])


@torch.no_grad()
def test_repeating_rows_of_a_cache() -> None:
    _, ours = pair()
    cache = remembered(ours)
    cache.batch_repeat_interleave(2)
    ids = tokens().repeat_interleave(2, dim=0)
    same(ours(ids[:, 8:], past_key_values=cache).logits, ours(ids).logits[:, 8:])
    KeyValueCache(3).batch_repeat_interleave(2)  # nothing to repeat, nothing wrong


@torch.no_grad()
def test_a_copied_cache_is_independent() -> None:
    _, ours = pair()
    cache = remembered(ours)
    other = cache.copy()
    ours(tokens()[:, :4] * 0 + 9, past_key_values=other)
    assert (cache.get_seq_length(), other.get_seq_length()) == (8, 12)
    rest = ours(tokens()[:, 8:], past_key_values=cache)
    same(rest.logits, ours(tokens()).logits[:, 8:])


@torch.no_grad()
def test_appending_a_token_does_not_move_what_is_stored() -> None:
    _, ours = pair()
    cache = remembered(ours)
    places = {cache[0][0].data_ptr()}
    for step in tokens(3, 40).split(1, dim=1):
        ours(step, past_key_values=cache)
        places.add(cache[0][0].data_ptr())
    assert len(places) == 1
    assert repr(cache) == "KeyValueCache(3 layers, 48 positions)"
    assert len(cache) == len(list(cache)) == 3


def test_a_cache_made_in_inference_mode_can_be_continued_outside() -> None:
    _, ours = pair()
    with torch.inference_mode():
        cache = ours(tokens()[:, :5]).past_key_values
        ours(tokens()[:, 5:6], past_key_values=cache)
    with torch.no_grad():
        ours(tokens()[:, 6:7], past_key_values=cache)
    rest = ours(tokens()[:, 7:], past_key_values=cache)
    same(rest.logits, ours(tokens()).logits[:, 7:])
    rest.logits.sum().backward()


@pytest.mark.parametrize("kept", [slice(0, 3), slice(3, 8)])
@pytest.mark.parametrize("grown", [False, True])
def test_keys_and_values_can_be_set(kept: slice, grown: bool) -> None:
    _, ours = pair()
    theirs, _ = pair()
    logits = []
    for model in (theirs, ours):
        with torch.no_grad():
            cache = model(tokens()[:, :7], use_cache=True).past_key_values
            if grown:
                model(tokens()[:, 7:8], past_key_values=cache)
            for layer in cache.layers:
                layer.keys = layer.keys[:, :, kept]
                layer.values = layer.values[:, :, kept]
            held = cache.get_seq_length()
            logits.append(model(tokens()[:, 8:], past_key_values=cache).logits)
        assert held == cache.layers[0].keys.shape[2] - 4
    same(logits[1], logits[0])


def test_keys_without_as_many_values_are_refused() -> None:
    ours = pair()[1]
    with torch.no_grad():
        cache = ours(tokens()[:, :7], use_cache=True).past_key_values
        cache.layers[1].values = cache.layers[1].values[:, :, :3]
        with pytest.raises(InputError, match="7 keys and 3 values"):
            ours(tokens()[:, 7:], past_key_values=cache)


def test_update_appends_to_one_layer() -> None:
    cache = KeyValueCache(2)
    first, second = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 2, 4)
    cache.update(first, -first, 1)
    keys, values = cache.update(second, -second, 1)
    assert torch.equal(keys, torch.cat((first, second), dim=2))
    assert torch.equal(values, -keys)
    assert (cache.get_seq_length(0), cache.get_seq_length(1)) == (0, 5)
    assert cache[0] == (None, None)


# ----------------------------------------------------------------------------------- layer loop


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("mask_name", ["none", "left"])
@torch.no_grad()
def test_stopping_and_starting_at_every_layer_changes_no_bit(
    parallel: bool, mask_name: str
) -> None:
    _, ours = pair(use_parallel_residual=parallel)
    ids, mask = tokens(), padding_masks()[mask_name]
    full = ours(ids, attention_mask=mask, output_hidden_states=True)
    for layer in range(4):
        stopped = ours(ids, attention_mask=mask, stop_at_layer=layer)
        residual = stopped.last_hidden_state
        if layer < 3:
            assert torch.equal(residual, full.hidden_states[layer])
        resumed = ours(inputs_embeds=residual, attention_mask=mask, start_at_layer=layer)
        assert torch.equal(resumed.logits, full.logits)
        again = ours.gpt_neox.run_layers(residual, first=layer, mask=mask)
        assert torch.equal(ours.gpt_neox.normalize(again), full.hidden_states[-1])
    assert torch.equal(ours(ids, stop_at_layer=-1).last_hidden_state, ours(ids, stop_at_layer=2)[0])


@torch.no_grad()
def test_layers_in_pieces_with_a_cached_prefix_equal_the_full_run() -> None:
    _, ours = pair()
    network, ids, mask = ours.gpt_neox, tokens(), padding_masks()["left"]
    full = network.run_layers(network.embed(ids, None, NO_TAPS), mask=mask)
    prefix = network(ids[:, :8], attention_mask=mask[:, :8]).past_key_values
    suffix = network.embed(ids[:, 8:], None, NO_TAPS)
    whole = network.run_layers(suffix, mask=mask, keys_values=prefix.copy())
    same(whole, full[:, 8:])
    for layer in range(4):
        cache = prefix.copy()
        middle = network.run_layers(suffix, last=layer, mask=mask, keys_values=cache)
        end = network.run_layers(middle, first=layer, mask=mask, keys_values=cache)
        assert torch.equal(end, whole)
        assert [kv.length for kv in cache.layers] == [12, 12, 12]
    assert prefix.get_seq_length() == 8


@pytest.mark.parametrize(("first", "last"), [(2, 1), (-1, 2), (0, 4), (4, None)])
def test_impossible_layers(first: int, last: int | None) -> None:
    _, ours = pair()
    with pytest.raises(InputError, match="3 layers"):
        ours.gpt_neox.run_layers(torch.zeros(1, 2, 64), first=first, last=last)


# ---------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("opened", [False, True], ids=["fused", "open"])
def test_gradients(parallel: bool, tied: bool, opened: bool) -> None:
    theirs, ours = pair(use_parallel_residual=parallel, tie_word_embeddings=tied)
    ids, mask = tokens(), padding_masks()["left"]
    labels = ids.masked_fill(mask == 0, -100)
    theirs(ids, attention_mask=mask, labels=labels).loss.backward()
    ours(ids, attention_mask=mask, labels=labels, output_attentions=opened).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = expected[name.replace("embed_out", "lm_head")].grad
        assert wanted.abs().max() > 1e-5, f"{name} learns nothing here: the check is empty"
        assert furthest(parameter.grad, wanted) <= 1e-5 * wanted.abs().max(), name


def test_gradients_through_a_cache() -> None:
    _, ours = pair()
    ids = tokens()
    ours(ids, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    first = ours(ids[:, :5])
    second = ours(ids[:, 5:], past_key_values=first.past_key_values)
    logits = torch.cat((first.logits, second.logits), dim=1)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    for name, parameter in ours.named_parameters():
        wanted = expected[name]
        assert furthest(parameter.grad, wanted) <= 1e-5 * wanted.abs().max(), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_equal_gradients(dropout: float) -> None:
    _, ours = pair(hidden_dropout=dropout, attention_dropout=dropout)
    ours.train()
    ids = tokens()
    calls: list[int] = []
    act = ours.gpt_neox.layers[1].mlp.act
    ours.gpt_neox.layers[1].mlp.act = lambda x: (calls.append(1), act(x))[1]

    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        ours.zero_grad()
        ours(ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in ours.parameters()]

    plain = gradients()
    assert len(calls) == 1
    ours.gradient_checkpointing_enable()
    assert ours.is_gradient_checkpointing
    assert ours(ids, use_cache=True).past_key_values is None
    calls.clear()
    recomputed = gradients()
    assert len(calls) == 2, "the block was not run again in the backward pass"
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    ours.gradient_checkpointing_disable()
    assert not ours.is_gradient_checkpointing


def test_dropout_acts_in_training_only_and_by_both_attention_paths() -> None:
    _, ours = pair(hidden_dropout=0.5, attention_dropout=0.5)
    _, quiet = pair()
    with torch.no_grad():
        assert torch.equal(ours(tokens()).logits, quiet(tokens()).logits)
        ours.train()
        for opened in (False, True):
            one, two = (ours(tokens(), output_attentions=opened).logits for _ in range(2))
            assert not torch.equal(one, two)


# ------------------------------------------------------------------------------ half precision


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("opened", [False, True], ids=["fused", "open"])
@pytest.mark.parametrize("mask_name", ["none", "left", "holes"])
def test_bfloat16(parallel: bool, opened: bool, mask_name: str) -> None:
    theirs, ours = pair(use_parallel_residual=parallel)
    theirs, ours = in_half(theirs, torch.bfloat16), ours.bfloat16()
    ids, mask = tokens(), padding_masks()[mask_name]
    expected, blocks = their_run(theirs, ids, attention_mask=mask)
    with torch.no_grad():
        output, kept = our_run(ours, ids, attention_mask=mask, output_attentions=opened)
    text = slice(None) if mask is None else mask.bool()
    assert output.logits.dtype == torch.bfloat16
    assert relative(output.logits[text], expected.logits[text]) < 2e-2
    for ours_after, theirs_after in zip(kept, blocks, strict=True):
        assert relative(ours_after[text], theirs_after[text]) < 2e-2
    for pattern, wanted in zip(output.attentions or (), expected.attentions, strict=False):
        assert relative(pattern, wanted) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_casting_keeps_rotary_angles_exact(dtype: torch.dtype) -> None:
    """``.half()`` after loading: transformers' angles drift in long texts, ours do not."""
    sizes = {"max_position_embeddings": 2048, "rotary_pct": 1.0, "num_hidden_layers": 2}
    theirs, ours = pair(**sizes, intermediate_size=8)
    ids = tokens(1, 1200)
    exact = theirs(ids).logits[:, -300:]
    drifted = theirs.to(dtype)(ids).logits[:, -300:]
    kept = ours.to(dtype)(ids).logits[:, -300:]
    assert relative(kept, exact) < (0.01 if dtype == torch.float16 else 0.1)
    assert relative(drifted, exact) > 3 * relative(kept, exact)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_angles_are_those_of_float64_arithmetic(cast: str) -> None:
    _, ours = pair(rotary_pct=1.0)
    positions = torch.arange(2000)[None]
    cos, sin = getattr(ours, cast)().gpt_neox.rotary.angles(positions)
    frequencies = 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    angles = positions[0, :, None].double() * frequencies
    assert cos.dtype == sin.dtype == torch.float32
    cos, sin = cos[0, :, 0].chunk(2, dim=-1)[1], sin[0, :, 0].chunk(2, dim=-1)[1]
    assert furthest(cos, angles.cos()) < 3e-4  # float32 positions times frequencies
    assert furthest(sin, angles.sin()) < 3e-4


@torch.no_grad()
def test_float16_attention_does_not_overflow() -> None:
    """Queries and keys of 40: their product of 64 dimensions exceeds what float16 can hold."""
    theirs, ours = pair(hidden_size=128, num_attention_heads=2, num_hidden_layers=1)
    for model in (theirs.gpt_neox, ours.gpt_neox):
        projection = model.layers[0].attention.query_key_value
        weight = projection.weight.view(2, 3, 64, 128)
        weight[:, :2] *= 0.01
        projection.bias.view(2, 3, 64)[:, :2] = 40.0
    ids = tokens()
    exact, _ = their_run(theirs, ids)
    assert exact.attentions[0].isfinite().all()
    half = in_half(theirs, torch.float16)
    overflowed, _ = their_run(half, ids)
    assert overflowed.logits.isnan().any(), "transformers no longer overflows; drop this contrast"
    ours.half()
    opened = ours(ids, output_attentions=True)
    for output in (ours(ids), opened):
        assert output.logits.isfinite().all()
        assert relative(output.logits, exact.logits) < 0.05
    sums = opened.attentions[0].float().sum(-1)
    same(sums, torch.ones_like(sums), tolerance=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_with_left_padding_is_finite(dtype: torch.dtype) -> None:
    _, ours = pair()
    mask = padding_masks()["left"]
    exact = ours(tokens(), attention_mask=mask).logits
    ours.to(dtype)
    for opened in (False, True):
        logits = ours(tokens(), attention_mask=mask, output_attentions=opened).logits
        assert logits.isfinite().all()
        assert relative(logits[mask.bool()], exact[mask.bool()]) < 0.1


@torch.no_grad()
def test_attentions_are_never_empty() -> None:
    theirs, ours = pair(attention="sdpa")
    assert theirs(tokens(), output_attentions=True).attentions == ()
    attentions = ours(tokens(), output_attentions=True).attentions
    assert len(attentions) == 3
    same(attentions[0].sum(-1), torch.ones(3, 4, 12))


# ----------------------------------------------------------------------------- random variants

variants = st.fixed_dictionaries(
    {
        "num_attention_heads": st.sampled_from([1, 2, 3]),
        "num_hidden_layers": st.integers(1, 3),
        "intermediate_size": st.sampled_from([8, 33]),
        "use_parallel_residual": st.booleans(),
        "attention_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "rotary_pct": st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        "hidden_act": st.sampled_from(ACTIVATIONS),
    }
)


@settings(max_examples=25, deadline=None)
@given(
    variant=variants,
    d_head=st.sampled_from([8, 16, 24]),
    batch=st.integers(1, 3),
    pos=st.integers(1, 17),
    seed=st.integers(0, 2**20),
    data=st.data(),
)
def test_any_shape_and_mask(
    variant: dict[str, Any], d_head: int, batch: int, pos: int, seed: int, data: st.DataObject
) -> None:
    hidden = d_head * variant["num_attention_heads"]
    theirs, ours = pair(hidden_size=hidden, vocab_size=31, seed=seed, **variant)
    ids = tokens(batch, pos, vocab=31, seed=seed)
    rows = st.lists(st.booleans(), min_size=pos, max_size=pos)
    mask = torch.tensor(data.draw(st.lists(rows, min_size=batch, max_size=batch))).long()
    assert_same_run(theirs, ours, ids, attention_mask=mask)

    split = data.draw(st.integers(0, pos - 1))
    cache = KeyValueCache(len(ours.gpt_neox.layers))
    with torch.no_grad():
        whole = ours(ids, attention_mask=mask).logits
        if split:
            ours(ids[:, :split], attention_mask=mask[:, :split], past_key_values=cache)
        rest = ours(ids[:, split:], attention_mask=mask, past_key_values=cache).logits
    # A query that may look at nothing looks at all keys instead, and one shot has more of them.
    sees = mask[:, split:].bool()
    same(rest[sees], whole[:, split:][sees])


# ------------------------------------------------------------------ would these tests notice?


def _swap_queries_and_keys(ours: Any) -> None:
    for block in ours.gpt_neox.layers:
        for parameter in block.attention.query_key_value.parameters():
            parts = parameter.data.view(4, 3, 16, -1)
            parts[:, [0, 1]] = parts[:, [1, 0]].clone()


def _all_queries_first(ours: Any) -> None:
    """[q | k | v] over all heads, GPT-2's order, instead of per head."""
    for block in ours.gpt_neox.layers:
        for parameter in block.attention.query_key_value.parameters():
            parts = parameter.data.view(4, 3, 16, -1)
            parameter.data = parts.transpose(0, 1).reshape(parameter.shape).contiguous()


def _other_wiring(ours: Any) -> None:
    for block in ours.gpt_neox.layers:
        block.parallel = not block.parallel


def _exchange_layer_norms(ours: Any) -> None:
    for block in ours.gpt_neox.layers:
        first, second = block.input_layernorm, block.post_attention_layernorm
        block.input_layernorm, block.post_attention_layernorm = second, first


def _tanh_gelu(ours: Any) -> None:
    for block in ours.gpt_neox.layers:
        block.mlp.act = lambda x: torch.nn.functional.gelu(x, approximate="tanh")


def _unscaled(ours: Any) -> None:
    for block in ours.gpt_neox.layers:
        block.attention.scale *= 1.001


def _neighbouring_pairs(ours: Any) -> None:
    """GPT-J's rotation: number i with its neighbour, not with number i + half."""
    order = torch.tensor([0, 2, 1, 3])
    for block in ours.gpt_neox.layers:
        for parameter in block.attention.query_key_value.parameters():
            parts = parameter.data.view(4, 3, 16, -1)
            parts[:, :2, :4] = parts[:, :2, order].clone()


@pytest.mark.parametrize(
    "mutate",
    [
        _swap_queries_and_keys,
        _all_queries_first,
        _other_wiring,
        _exchange_layer_norms,
        _tanh_gelu,
        _unscaled,
        _neighbouring_pairs,
    ],
)
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
def test_a_wrong_network_is_noticed(mutate: Any, parallel: bool) -> None:
    theirs, ours = pair(use_parallel_residual=parallel, num_hidden_layers=2)
    assert_same_run(theirs, ours, tokens())
    mutate(ours)
    with pytest.raises(AssertionError):
        assert_same_run(theirs, ours, tokens())


@pytest.mark.parametrize("name", ["left", "right", "holes"])
def test_a_forgotten_mask_is_noticed(name: str) -> None:
    theirs, ours = pair()
    expected, _ = their_run(theirs, tokens(), attention_mask=padding_masks()[name])
    with torch.no_grad(), pytest.raises(AssertionError):
        same(ours(tokens()).logits, expected.logits)


def test_the_oracle_copies_every_weight() -> None:
    theirs = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES))
    ours = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES))
    copy_weights(theirs, ours)
    assert torch.equal(ours.embed_out.weight, theirs.lm_head.weight)
