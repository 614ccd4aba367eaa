"""Hooks in the forward pass: what they read, what editing does, and that nothing stays behind.

What an edit must do is computed by hand here, from weights and upstream tensors, with plain torch.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import CLASSES, SIZES, padding_masks, pair, randomize, same, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError, HookNameError, HookNeverFiredError
from neox_lab.model.rotary import rotate

SMALL = {"num_hidden_layers": 2}
WIRINGS = pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
SPLIT = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")


def model(name: str = "GPTNeoXForCausalLM", parallel: bool = True, **overrides: Any) -> Any:
    """Our model with large weights."""
    sizes = SIZES | SMALL | {"use_parallel_residual": parallel} | overrides
    ours = getattr(nl, name)(nl.GPTNeoXConfig(**sizes)).eval()
    randomize(ours)
    return ours


def read(ours: Any, edits: Any = (), *args: Any, **arguments: Any) -> dict[str, Tensor]:
    """Every tensor that passes a hook point, in order, while ``edits`` are in place."""
    seen: dict[str, Tensor] = {}
    keep = [("*", lambda tensor, hook: seen.update({hook.name: tensor.clone()}))]
    with torch.no_grad(), ours.hooks(fwd_hooks=[*edits, *keep]):
        ours(*(args or (tokens(),)), **arguments)
    return seen


def zero(tensor: Tensor, _hook: Any) -> None:
    """A hook that edits in place."""
    tensor.zero_()


def some_names(ours: Any) -> list[str]:
    """Every kind of hook point once: those outside the blocks and those of block 1."""
    return [name for name, point in ours.hook_points.items() if point.layer in (None, 1)]


def noise(like: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.dtype)


# --------------------------------------------------------------------------------- what there is


@WIRINGS
@pytest.mark.parametrize("name", CLASSES)
def test_every_hook_passes_a_tensor_of_the_promised_shape(name: str, parallel: bool) -> None:
    ours = model(name, parallel, num_labels=5)
    sizes = {
        "batch": 3,
        "pos": 12,
        "query_pos": 12,
        "key_pos": 12,
        "head": 4,
        "d_head": 16,
        "d_model": 64,
        "d_mlp": 96,
        "vocab": 211,
        "label": 5,
        "1": 1,
        "2": 2,
    }
    seen = read(ours)
    assert tuple(seen) == ours.hook_names, "all of them, in the order of the table"
    for point_name, tensor in seen.items():
        axes = ours.hook_points[point_name].axes
        assert tuple(tensor.shape) == tuple(sizes[axis] for axis in axes), point_name
        assert tensor.dtype == torch.float32
    table = ours.hook_table()
    assert list(table.columns) == ["name", "shape", "meaning", "aliases"]
    assert tuple(table["name"]) == ours.hook_names
    assert ("blocks.0.hook_resid_mid" in ours.hook_names) == (not parallel)


def test_the_names_are_those_of_the_interface() -> None:
    heads = {
        "GPTNeoXModel": None,
        "GPTNeoXForCausalLM": "unembed",
        "GPTNeoXForSequenceClassification": "score",
        "GPTNeoXForTokenClassification": "classifier",
        "GPTNeoXForQuestionAnswering": "qa_outputs",
    }
    inside = """hook_resid_pre hook_attn_in hook_q_input hook_k_input hook_v_input ln1.hook_scale
        ln1.hook_normalized attn.hook_in attn.hook_q attn.hook_k attn.hook_v attn.hook_rot_q
        attn.hook_rot_k attn.hook_attn_scores attn.hook_pattern attn.hook_z attn.hook_result
        hook_attn_out hook_resid_mid hook_mlp_in ln2.hook_scale ln2.hook_normalized mlp.hook_in
        mlp.hook_pre mlp.hook_post hook_mlp_out hook_resid_post""".split()
    for name, head in heads.items():
        expected = ["hook_embed", *(f"blocks.{layer}.{i}" for layer in range(2) for i in inside)]
        expected += ["ln_final.hook_scale", "ln_final.hook_normalized"]
        expected += [f"{head}.hook_in", f"{head}.hook_out"] if head else []
        assert list(model(name, parallel=False).hook_names) == expected


def test_with_a_cache_scores_and_patterns_reach_back() -> None:
    ours = model()
    with torch.no_grad():
        past = ours(tokens()[:, :8]).past_key_values
    seen = read(ours, (), tokens()[:, 8:], past_key_values=past)
    assert seen["blocks.1.attn.hook_pattern"].shape == (3, 4, 4, 12)
    assert seen["blocks.1.attn.hook_rot_k"].shape == (3, 4, 4, 16)
    same(seen["blocks.1.attn.hook_pattern"], read(ours)["blocks.1.attn.hook_pattern"][:, :, 8:])


# ------------------------------------------------------------------------------------- reading


@WIRINGS
@pytest.mark.parametrize("mask_name", ["none", "left"])
@torch.no_grad()
def test_what_is_read_is_what_transformers_modules_compute(parallel: bool, mask_name: str) -> None:
    theirs, ours = pair(use_parallel_residual=parallel)
    mask = padding_masks()[mask_name]
    alike = functools.partial(same, tolerance=3e-5)  # kernels differ with the number of threads
    made: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            made[path] = output[0] if isinstance(output, tuple) else output
            made[path + " in"] = inputs[0] if inputs else None

        return hook

    for path, module in theirs.named_modules():
        module.register_forward_hook(keep(path))
    expected = theirs(tokens(), attention_mask=mask, output_attentions=True)
    seen = read(ours, (), tokens(), attention_mask=mask)

    alike(seen["hook_embed"], made["gpt_neox.embed_in"])
    alike(seen["unembed.hook_in"], made["gpt_neox.final_layer_norm"])
    alike(seen["unembed.hook_out"], made["lm_head"])
    for layer in range(3):
        here, there = f"blocks.{layer}.", f"gpt_neox.layers.{layer}."
        pairs = {
            "hook_attn_out": "attention",
            "hook_mlp_out": "mlp",
            "hook_resid_post": "",
            "mlp.hook_pre": "mlp.dense_h_to_4h",
            "mlp.hook_post": "mlp.act",
            "hook_resid_pre": "input_layernorm in",
            "hook_mlp_in": "post_attention_layernorm in",
        }
        for name, path in pairs.items():
            alike(seen[here + name], made[(there + path).removesuffix(".")])
        qkv = made[there + "attention.query_key_value"].view(3, 12, 4, 48)
        for part, name in zip(qkv.chunk(3, dim=-1), "qkv", strict=True):
            alike(seen[f"{here}attn.hook_{name}"], part)
        z = seen[here + "attn.hook_z"]
        alike(z.flatten(2), made[there + "attention.dense in"])
        alike(seen[here + "attn.hook_pattern"], expected.attentions[layer])
        keys = expected.past_key_values.layers[layer].keys
        alike(seen[here + "attn.hook_rot_k"].transpose(1, 2), keys)
        for norm, path in (("ln1", "input_layernorm"), ("ln2", "post_attention_layernorm")):
            module = theirs.get_submodule(there + path)
            normalized = seen[f"{here}{norm}.hook_normalized"]
            alike(normalized * module.weight + module.bias, made[there + path])


@WIRINGS
@torch.no_grad()
def test_what_is_read_fits_together(parallel: bool) -> None:
    ours = model(parallel=parallel)
    seen = read(ours, (), tokens(), attention_mask=padding_masks()["right"])
    for layer in range(2):
        at = {n.removeprefix(f"blocks.{layer}."): t for n, t in seen.items() if f".{layer}." in n}
        pre, attn_out, mlp_out = at["hook_resid_pre"], at["hook_attn_out"], at["hook_mlp_out"]
        for name in SPLIT:
            assert torch.equal(at[name], pre[:, :, None].expand(-1, -1, 4, -1))
        if parallel:
            assert torch.equal(at["hook_mlp_in"], pre)
        else:
            assert torch.equal(at["hook_mlp_in"], at["hook_resid_mid"])
            same(at["hook_resid_mid"], pre + attn_out)
        same(at["hook_resid_post"], pre + attn_out + mlp_out)
        for norm, x in (("ln1", pre), ("ln2", at["hook_mlp_in"])):
            scale = at[f"{norm}.hook_scale"]
            same(scale, (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())
            same(at[f"{norm}.hook_normalized"], (x - x.mean(-1, keepdim=True)) / scale)
        scores = torch.einsum("bqhd,bkhd->bhqk", at["attn.hook_rot_q"], at["attn.hook_rot_k"]) / 4
        hidden = at["attn.hook_attn_scores"].isneginf()
        assert torch.equal(
            hidden[1, 0], torch.ones(12, 12).triu(1).bool() | (torch.arange(12) > 10)
        )
        same(at["attn.hook_attn_scores"][~hidden], scores[~hidden])
        same(at["attn.hook_pattern"], at["attn.hook_attn_scores"].softmax(-1))
        z = torch.einsum("bhqk,bkhd->bqhd", at["attn.hook_pattern"], at["attn.hook_v"])
        same(at["attn.hook_z"], z)
        bias = ours.gpt_neox.layers[layer].attention.dense.bias
        same(at["attn.hook_result"].sum(2) + bias, attn_out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_and_scores_are_float32_in_half_precision(dtype: torch.dtype) -> None:
    for name, tensor in read(model(parallel=False).to(dtype)).items():
        in_float32 = name.endswith(("hook_scale", "hook_attn_scores"))
        assert tensor.dtype == (torch.float32 if in_float32 else dtype), name


def test_reading_changes_nothing() -> None:
    """Watched one by one, each tensor may take another path; the output stays the same."""
    ours = model(parallel=False)
    with torch.no_grad():
        plain = ours(tokens()).logits
        for name in some_names(ours):
            _, cache = ours.run_with_cache(tokens(), names_filter=name)
            assert list(cache) == [name]
            with ours.hooks(fwd_hooks=[(name, lambda tensor, hook: None)]):
                same(ours(tokens()).logits, plain)


def test_aliases_and_short_forms_name_the_same_tensor() -> None:
    ours = model()
    seen = read(ours)
    names: dict[Any, str] = {
        "gpt_neox.embed_in": "hook_embed",
        "gpt_neox.layers.1": "blocks.1.hook_resid_post",
        "gpt_neox.layers.0.attention": "blocks.0.hook_attn_out",
        "gpt_neox.layers.1.mlp": "blocks.1.hook_mlp_out",
        "embed_out": "unembed.hook_out",
        "lm_head": "unembed.hook_out",
        ("pattern", 0): "blocks.0.attn.hook_pattern",
        ("resid_pre", -1): "blocks.1.hook_resid_pre",
        ("scale", 0, "ln2"): "blocks.0.ln2.hook_scale",
        ("hook_z", 1): "blocks.1.attn.hook_z",
    }
    for name, full in names.items():
        _, cache = ours.run_with_cache(tokens(), names_filter=[name])
        assert list(cache) == [full]
        same(cache[full], seen[full])
        same(cache[name], seen[full])
    assert ours.hook_points["blocks.1.hook_mlp_out"].layer == 1
    assert ours.hook_points["hook_embed"].layer is None
    base = model("GPTNeoXModel")
    with base.hooks([("layers.1.mlp", lambda t, hook: None)]):
        base(tokens())


# ------------------------------------------------------------------------------ editing by hand


@WIRINGS
@pytest.mark.parametrize("head", [0, 2])
@pytest.mark.parametrize("name", SPLIT)
def test_editing_one_heads_input_changes_that_head_only(
    name: str, head: int, parallel: bool
) -> None:
    ours = model(parallel=parallel)
    block = ours.gpt_neox.layers[1]
    before = read(ours)
    other = noise(before["blocks.1.hook_resid_pre"]) * 3

    def edit(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, head] = other

    after = read(ours, [(f"blocks.1.{name}", edit)])
    projected = block.attention.query_key_value(block.input_layernorm(other)).view(3, 12, 4, 3, 16)
    others = [h for h in range(4) if h != head]
    for part, letter in enumerate("qkv"):
        old, new = (seen[f"blocks.1.attn.hook_{letter}"] for seen in (before, after))
        assert torch.equal(new[:, :, others], old[:, :, others])
        if name == "hook_attn_in" or name == f"hook_{letter}_input":
            same(new[:, :, head], projected[:, :, head, part])
        else:
            assert torch.equal(new[:, :, head], old[:, :, head])
    for point in ("attn.hook_z", "attn.hook_result"):
        old, new = before[f"blocks.1.{point}"], after[f"blocks.1.{point}"]
        assert torch.equal(new[:, :, others], old[:, :, others])
        assert not torch.equal(new[:, :, head], old[:, :, head])
    for point in ("hook_resid_pre", "ln1.hook_normalized"):
        assert torch.equal(before[f"blocks.1.{point}"], after[f"blocks.1.{point}"])
    added = after["blocks.1.attn.hook_result"] - before["blocks.1.attn.hook_result"]
    moved = after["blocks.1.hook_attn_out"] - before["blocks.1.hook_attn_out"]
    same(moved, added[:, :, head], tolerance=1e-4)


Weights = Any  # one block of the network
Seen = dict[str, Tensor]  # tensors of one block by short name, of the unedited run
ByHand = Callable[[Weights, Seen, Tensor], Tensor]


def _normalize(x: Tensor, scale: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / scale


def _heads(w: Weights, normalized: Tensor, part: int) -> Tensor:
    x = normalized * w.input_layernorm.weight + w.input_layernorm.bias
    return w.attention.query_key_value(x).view(3, 12, 4, 3, 16)[:, :, :, part]


def _rotated(x: Tensor) -> Tensor:
    angles = torch.arange(12.0)[:, None] * 10000.0 ** (-torch.arange(0, 4, 2) / 4)
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    return rotate(x, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 4
    return scores.masked_fill(torch.ones(12, 12).triu(1).bool(), float("-inf"))


def _z(pattern: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


# edited point, the first point it must change, and what must stand there
CONSEQUENCES: list[tuple[str, str, ByHand]] = [
    ("hook_resid_pre", "hook_q_input", lambda w, s, x: x[:, :, None].expand(-1, -1, 4, -1)),
    ("hook_resid_pre", "ln1.hook_normalized", lambda w, s, x: F.layer_norm(x, (64,))),
    (
        "ln1.hook_scale",
        "ln1.hook_normalized",
        lambda w, s, x: _normalize(s["hook_resid_pre"], x),
    ),
    ("ln1.hook_normalized", "attn.hook_q", lambda w, s, x: _heads(w, x, 0)),
    ("ln1.hook_normalized", "attn.hook_k", lambda w, s, x: _heads(w, x, 1)),
    ("ln1.hook_normalized", "attn.hook_v", lambda w, s, x: _heads(w, x, 2)),
    ("attn.hook_q", "attn.hook_rot_q", lambda w, s, x: _rotated(x)),
    ("attn.hook_k", "attn.hook_rot_k", lambda w, s, x: _rotated(x)),
    (
        "attn.hook_rot_q",
        "attn.hook_attn_scores",
        lambda w, s, x: _scores(x, s["attn.hook_rot_k"]),
    ),
    (
        "attn.hook_rot_k",
        "attn.hook_attn_scores",
        lambda w, s, x: _scores(s["attn.hook_rot_q"], x),
    ),
    ("attn.hook_attn_scores", "attn.hook_pattern", lambda w, s, x: x.softmax(-1)),
    ("attn.hook_pattern", "attn.hook_z", lambda w, s, x: _z(x, s["attn.hook_v"])),
    ("attn.hook_v", "attn.hook_z", lambda w, s, x: _z(s["attn.hook_pattern"], x)),
    ("attn.hook_z", "hook_attn_out", lambda w, s, x: w.attention.dense(x.flatten(2))),
    ("attn.hook_result", "hook_attn_out", lambda w, s, x: x.sum(2) + w.attention.dense.bias),
    ("hook_mlp_in", "ln2.hook_normalized", lambda w, s, x: F.layer_norm(x, (64,))),
    (
        "hook_mlp_in",
        "hook_mlp_out",
        lambda w, s, x: w.mlp(w.post_attention_layernorm(x)),
    ),
    ("ln2.hook_scale", "ln2.hook_normalized", lambda w, s, x: _normalize(s["hook_mlp_in"], x)),
    (
        "ln2.hook_normalized",
        "mlp.hook_pre",
        lambda w, s, x: w.mlp.dense_h_to_4h(
            x * w.post_attention_layernorm.weight + w.post_attention_layernorm.bias
        ),
    ),
    ("mlp.hook_pre", "mlp.hook_post", lambda w, s, x: F.gelu(x)),
    ("mlp.hook_post", "hook_mlp_out", lambda w, s, x: w.mlp.dense_4h_to_h(x)),
    (
        "hook_mlp_out",
        "hook_resid_post",
        lambda w, s, x: x + s["hook_attn_out"] + s["hook_resid_pre"],
    ),
]


@WIRINGS
@pytest.mark.parametrize(("edited", "changed", "by_hand"), CONSEQUENCES)
@torch.no_grad()
def test_an_edit_has_the_effect_computed_by_hand(
    edited: str, changed: str, by_hand: ByHand, parallel: bool
) -> None:
    ours = model(parallel=parallel)
    before = read(ours)
    block = ours.gpt_neox.layers[1]
    short = {name.removeprefix("blocks.1."): t for name, t in before.items() if ".1." in name}
    old = short[edited]
    new = old + 0.3 * noise(old) if edited != "ln1.hook_scale" else old * 2
    after = read(ours, [(f"blocks.1.{edited}", lambda tensor, hook: new)])
    same(after[f"blocks.1.{changed}"], by_hand(block, short, new))
    assert not torch.equal(after[f"blocks.1.{changed}"], short[changed])
    # Nothing upstream moves, and the rest of the network follows.
    names = list(before)
    for name in names[: names.index(f"blocks.1.{edited}")]:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["unembed.hook_out"], after["unembed.hook_out"])


@torch.no_grad()
def test_an_edited_mlp_input_leaves_attention_and_the_stream_alone() -> None:
    for parallel in (True, False):
        ours = model(parallel=parallel)
        before = read(ours)
        after = read(ours, [("blocks.0.hook_mlp_in", lambda t, hook: t * 0 + 1)])
        unmoved = ["hook_attn_out", "hook_resid_pre", *([] if parallel else ["hook_resid_mid"])]
        for name in unmoved:
            assert torch.equal(before[f"blocks.0.{name}"], after[f"blocks.0.{name}"])
        stream = before["blocks.0.hook_resid_pre"] + before["blocks.0.hook_attn_out"]
        same(after["blocks.0.hook_resid_post"], stream + after["blocks.0.hook_mlp_out"])


@torch.no_grad()
def test_an_edited_resid_mid_feeds_both_the_mlp_and_the_stream() -> None:
    ours = model(parallel=False)
    other = noise(read(ours)["blocks.0.hook_resid_mid"])
    after = read(ours, [("blocks.0.hook_resid_mid", lambda t, hook: other)])
    assert torch.equal(after["blocks.0.hook_mlp_in"], other)
    same(after["blocks.0.hook_resid_post"], other + after["blocks.0.hook_mlp_out"])


@WIRINGS
@torch.no_grad()
def test_an_edited_stream_continues_as_if_it_had_come_that_way(parallel: bool) -> None:
    ours = model(parallel=parallel)
    other = noise(read(ours)["blocks.1.hook_resid_pre"]) * 4
    from_there = ours(inputs_embeds=other, start_at_layer=1).logits
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", ("resid_pre", 1)):
        got = ours.run_with_hooks(tokens(), [(name, lambda t, hook: other)]).logits
        same(got, from_there)
    embeds = noise(other, seed=2)
    got = ours.run_with_hooks(tokens(), [("hook_embed", lambda t, hook: embeds)]).logits
    same(got, ours(inputs_embeds=embeds).logits)


@torch.no_grad()
def test_editing_the_final_norm_and_the_head() -> None:
    ours = model()
    before, norm = read(ours), ours.gpt_neox.final_layer_norm
    doubled = [("ln_final.hook_scale", lambda t, hook: t * 2)]
    after = read(ours, doubled)
    same(after["ln_final.hook_normalized"], before["ln_final.hook_normalized"] / 2)
    wanted = (before["ln_final.hook_normalized"] / 2) * norm.weight + norm.bias
    same(after["unembed.hook_in"], wanted)
    same(ours.run_with_hooks(tokens(), doubled).logits, ours.embed_out(wanted))
    x = noise(wanted)
    got = ours.run_with_hooks(tokens(), [("unembed.hook_in", lambda t, hook: x)]).logits
    same(got, ours.embed_out(x))
    got = ours.run_with_hooks(tokens(), [("unembed.hook_out", lambda t, hook: t * 0 + 5)]).logits
    assert (got == 5).all()


@pytest.mark.parametrize("name", CLASSES[2:])
@torch.no_grad()
def test_editing_the_other_heads(name: str) -> None:
    ours = model(name)
    out = ours.hook_names[-1]
    got = ours.run_with_hooks(tokens(), [(out, lambda t, hook: t * 0 + 5)])
    logits = got.start_logits if "start_logits" in got else got.logits
    assert (logits == 5).all()


@torch.no_grad()
def test_edited_keys_and_values_are_what_the_cache_remembers() -> None:
    ours = model()
    edits = [
        ("blocks.0.attn.hook_rot_k", lambda t, hook: t * 0 + 1),
        ("blocks.1.attn.hook_v", lambda t, hook: t * 0 + 2),
    ]
    past = ours.run_with_hooks(tokens(), edits).past_key_values
    assert (past[0][0] == 1).all()
    assert (past[1][1] == 2).all()


@torch.no_grad()
def test_output_attentions_and_hidden_states_show_what_hooks_made_of_them() -> None:
    ours = model()
    edits = [(("pattern", 0), lambda t, hook: t * 0), (("resid_pre", 1), lambda t, hook: t * 0 + 3)]
    extras = {"output_attentions": True, "output_hidden_states": True}
    output = ours.run_with_hooks(tokens(), edits, **extras)
    assert not output.attentions[0].any()
    assert (output.hidden_states[1] == 3).all()


# ------------------------------------------------------------------------------ edits in place


@WIRINGS
@torch.no_grad()
def test_an_edit_in_place_never_changes_what_came_before(parallel: bool) -> None:
    """Not what was cached, and not the caller's tensor, which hooks see as ``hook_embed``."""
    ours = model(parallel=parallel)
    embeds = noise(torch.empty(3, 12, 64))
    mine = embeds.clone()
    _, plain = ours.run_with_cache(embeds)
    before = {name: tensor.clone() for name, tensor in plain.items()}
    names = list(before)
    for name in some_names(ours):
        with ours.hooks([(name, zero)]):
            _, edited = ours.run_with_cache(embeds)
        assert not edited[name].any(), name
        for earlier in names[: names.index(name)]:
            same(edited[earlier], before[earlier])  # scales take another path
        assert all(torch.equal(plain[other], before[other]) for other in names), name
        assert torch.equal(embeds, mine), name


@torch.no_grad()
def test_an_edit_in_place_never_changes_weights_or_tokens() -> None:
    ours, ids = model(), tokens()
    weights = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    ours.run_with_hooks(ids, [("*", zero)])
    assert all(torch.equal(weights[key], tensor) for key, tensor in ours.state_dict().items())
    assert torch.equal(ids, tokens())


@torch.no_grad()
def test_a_tensor_a_hook_kept_is_not_changed_by_the_next_hook() -> None:
    ours = model()
    kept: list[Tensor] = []
    name = "blocks.0.hook_resid_pre"
    ours.run_with_hooks(tokens(), [(name, lambda t, hook: kept.append(t)), (name, zero)])
    assert torch.equal(kept[0], read(ours)[name])


# -------------------------------------------------------------------------------------- mistakes


def run_with(ours: Any, name: Any, result: Any) -> None:
    ours.run_with_hooks(tokens(), [(name, lambda tensor, hook: result(tensor))])


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "shape": (
        lambda t: t[:, :1],
        r"shape \[3, 1, 64\]; expected \[3, 12, 64\] \(batch, pos, d_model\)",
    ),
    "shape that would broadcast": (lambda t: t[:1], r"shape \[1, 12, 64\]"),
    "dtype": (lambda t: t.double(), "dtype torch.float64; expected torch.float32"),
    "device": (lambda t: t.to("meta"), "device meta; expected cpu"),
    "number": (lambda t: 0.0, "returned float; a hook returns a tensor"),
    "array": (lambda t: t.numpy(), "returned ndarray"),
    "tuple": (lambda t: (t,), "returned tuple"),
}


@pytest.mark.parametrize("case", WRONG)
@torch.no_grad()
def test_a_replacement_that_does_not_fit(case: str) -> None:
    make, words = WRONG[case]
    with pytest.raises(HookError, match=words) as error:
        run_with(model(), "blocks.1.hook_resid_pre", make)
    assert "'blocks.1.hook_resid_pre'" in str(error.value)


@torch.no_grad()
def test_a_replacement_of_wrong_shape_at_every_point() -> None:
    ours = model(parallel=False)
    for name in ours.hook_names:
        with pytest.raises(HookError, match="expected"):
            run_with(ours, name, lambda t: t[..., None])


NAMES: dict[Any, str] = {
    "blocks.0.hook_resid_prE": "'blocks.0.hook_resid_pre'",
    "blocks.0.attn.hook_patern": "'blocks.0.attn.hook_pattern'",
    "blocks.9.hook_resid_pre": "No hook point 'blocks.9.hook_resid_pre'",
    "gpt_neox.layers.0.atention": "'gpt_neox.layers.0.attention'",
    "blocks.*.hook_nothing": "hook_nothing",
    "": "No hook point ''",
    ("pattern", 2): "layers 0 to 1",
    ("scale", 0): "blocks.0.ln1.hook_scale or blocks.0.ln2.hook_scale",
    ("nothing", 0): "('nothing', 0)",
    ("pattern",): "not a short form",
}


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_unknown_names(name: Any) -> None:
    ours = model()
    for run in (
        lambda: ours.run_with_hooks(tokens(), [(name, lambda t, hook: None)]),
        lambda: ours.run_with_cache(tokens(), names_filter=[name]),
    ):
        with pytest.raises(HookNameError) as error:
            run()
        assert NAMES[name] in str(error.value)
    assert issubclass(HookNameError, LookupError)


@pytest.mark.parametrize("name", [5, True, 0.5])
def test_what_is_no_name_is_named(name: Any) -> None:
    ours = model()
    for names in (name, [name]):
        with pytest.raises(HookNameError, match=f"{name} names no hook point: give a name such as"):
            ours.run_with_cache(tokens(), names_filter=names)
    with pytest.raises(HookNameError, match="names no hook point"):
        ours.run_with_hooks(tokens(), [(name, lambda t, hook: None)])
    with pytest.raises(HookError, match="expected pairs of a name and a function"):
        ours.run_with_hooks(tokens(), name)


def test_a_predicate_that_matches_nothing() -> None:
    def wanted(name: str) -> bool:
        return "resid_mod" in name

    with pytest.raises(
        HookNameError, match=r"predicate 'wanted' matches none of the .* hook points"
    ):
        model().run_with_cache(tokens(), names_filter=wanted)


def test_parallel_blocks_explain_that_they_have_no_middle() -> None:
    for name in ("blocks.0.hook_resid_mid", ("resid_mid", 1), "blocks.*.hook_resid_mid"):
        with pytest.raises(HookNameError, match="parallel"):
            model().run_with_hooks(tokens(), [(name, lambda t, hook: None)])


@pytest.mark.parametrize("entry", ["hook_embed", ("hook_embed",), ("hook_embed", 3), None])
def test_entries_that_are_not_pairs(entry: Any) -> None:
    with pytest.raises(HookError, match="expected pairs of a name and a function"):
        model().run_with_hooks(tokens(), [entry])


def test_a_wrong_name_places_none_of_the_others() -> None:
    ours = model()
    fired: list[str] = []
    hooks = [("hook_embed", lambda t, hook: fired.append(hook.name)), ("nothing", print)]
    with pytest.raises(HookNameError), ours.hooks(hooks):
        pass
    ours(tokens())
    assert not fired


@torch.no_grad()
def test_a_hook_that_is_never_reached() -> None:
    ours = model()
    late = [("blocks.1.hook_resid_pre", lambda t, hook: None)]
    with pytest.raises(HookNeverFiredError, match=r"'blocks.1.hook_resid_pre'"):
        ours.run_with_hooks(tokens(), late, stop_at_layer=1)
    ours.run_with_hooks(tokens(), late, stop_at_layer=1, must_fire=False)
    with ours.hooks(late):
        pass  # the model did not run: nothing to complain about
    with ours.hooks([("blocks.*.hook_resid_pre", lambda t, hook: None)]):
        ours(tokens(), stop_at_layer=1)  # one of several was reached


# ------------------------------------------------------------------------- nothing stays behind


def is_clean(ours: Any, plain: Tensor) -> bool:
    """True if no hook is in force any more."""
    with torch.no_grad():
        return not ours.hook_stack.placements and torch.equal(ours(tokens()).logits, plain)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("where", ["forward hook", "body", "backward hook"])
def test_errors_leave_no_hook(error: type[BaseException], where: str) -> None:
    ours = model()
    plain = ours(tokens()).logits.detach()

    def fail(*_: Any) -> None:
        raise error("stop")

    def zero(tensor: Tensor, hook: Any) -> Tensor:
        return tensor * 0

    def attempt() -> None:
        forward = [("hook_embed", zero), *([("lm_head", fail)] if where == "forward hook" else [])]
        backward = [("hook_embed", fail)] if where == "backward hook" else []
        with ours.hooks(forward, backward):
            loss = ours(tokens()).logits.sum()
            if where == "backward hook":
                loss.backward()
            fail()

    with pytest.raises(error):
        attempt()
    assert is_clean(ours, plain)


def test_an_abandoned_generator_leaves_no_hook() -> None:
    ours = model()
    plain = ours(tokens()).logits.detach()

    def steps() -> Iterator[Tensor]:
        with torch.no_grad(), ours.hooks([("hook_embed", lambda t, hook: t * 0)]):
            while True:
                yield ours(tokens()).logits

    generator = steps()
    assert not torch.equal(next(generator), plain)
    del generator
    gc.collect()
    assert is_clean(ours, plain)


def test_a_generator_abandoned_in_another_thread_leaves_no_hook() -> None:
    ours = model()
    plain = ours(tokens()).logits.detach()

    def steps() -> Iterator[None]:
        with ours.hooks([("hook_embed", lambda t, hook: t * 0)], must_fire=False):
            yield

    generator = steps()
    next(generator)
    assert not torch.equal(ours(tokens()).logits, plain)
    closer = threading.Thread(target=generator.close)  # type: ignore[attr-defined]
    closer.start()
    closer.join()
    assert is_clean(ours, plain)


@torch.no_grad()
def test_hooks_fire_in_the_order_in_which_they_were_placed() -> None:
    ours = model()
    order: list[str] = []

    def note(word: str) -> tuple[str, Callable[..., Tensor]]:
        def hook(tensor: Tensor, _point: Any) -> Tensor:
            order.append(f"{word} {tensor.flatten()[0].item():.0f}")
            return torch.full_like(tensor, len(order))

        return "hook_embed", hook

    with ours.hooks([("hook_embed", zero), note("outer"), note("second")]):
        with ours.hooks([note("inner")]):
            ours.run_with_hooks(tokens(), [note("innermost")])
        assert order == ["outer 0", "second 1", "inner 2", "innermost 3"]
        order.clear()
        ours(tokens())
        assert order == ["outer 0", "second 1"]


def test_hooks_on_the_backbone_and_on_the_head_are_the_same_hooks() -> None:
    ours = model()
    fired: list[str] = []
    with ours.gpt_neox.hooks([("blocks.1.hook_resid_pre", lambda t, hook: fired.append("low"))]):
        ours(tokens())
        ours.gpt_neox(tokens())
    with ours.hooks([("blocks.1.hook_resid_pre", lambda t, hook: fired.append("high"))]):
        ours.gpt_neox(tokens())
    assert fired == ["low", "low", "high"]


def test_threads_do_not_see_each_others_hooks() -> None:
    ours = model()
    with torch.no_grad():
        expected = [ours(inputs_embeds=torch.full((1, 4, 64), float(i))).logits for i in range(4)]
    start, failures = threading.Barrier(5), []

    def work(number: int) -> None:
        edit = [("hook_embed", lambda t, hook: torch.full_like(t, float(number)))]
        start.wait()
        for _ in range(20):
            with torch.no_grad(), ours.hooks(edit):
                got = ours(tokens(1, 4)).logits
            if not torch.equal(got, expected[number]):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    with torch.no_grad():
        plain = [ours(tokens(1, 4)).logits for _ in range(20)]
    for thread in threads:
        thread.join()
    assert not failures
    assert all(torch.equal(logits, plain[0]) for logits in plain)


def test_two_models_do_not_share_hooks() -> None:
    one, two = model(), model()
    with one.hooks([("hook_embed", lambda t, hook: t * 0)]):
        assert not torch.equal(one(tokens()).logits, two(tokens()).logits)


# ------------------------------------------------------------------------------------- gradients


def total(output: Any) -> Tensor:
    """A scalar that depends on every logit unevenly."""
    weights = noise(output.logits, seed=7)
    return (output.logits * weights).sum()


def gradients_by_hooks(ours: Any, names: list[str]) -> Seen:
    """Gradients that backward hooks at ``names`` are shown."""
    seen: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: Any) -> None:
        seen[hook.name] = gradient

    output = ours.run_with_hooks(tokens(), bwd_hooks=[(name, keep) for name in names])
    total(output).backward()
    return seen


def gradients_by_autograd(ours: Any) -> Seen:
    """What torch says: each hook's tensor is part of the graph, so ask for its gradient.

    Heads whose input a hook might have changed leave the shared layer norm, so the two kinds of
    points are asked for in two runs.
    """
    gradients: Seen = {}
    for split in (True, False):
        kept: Seen = {}

        def keep(tensor: Tensor, hook: Any, kept: Seen = kept) -> None:
            kept[hook.name] = tensor

        names = [name for name in ours.hook_names if name.endswith(SPLIT) == split]
        output = ours.run_with_hooks(tokens(), [(name, keep) for name in names])
        gradients |= zip(kept, torch.autograd.grad(total(output), kept.values()), strict=True)
    return gradients


def assert_same_gradient(got: Tensor, wanted: Tensor, name: str) -> None:
    assert wanted.abs().max() > 1e-3, f"{name}: the check is empty"
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name


@WIRINGS
def test_backward_hooks_see_the_gradient(parallel: bool) -> None:
    ours = model(parallel=parallel)
    expected = gradients_by_autograd(ours)
    for name in some_names(ours):
        seen = gradients_by_hooks(ours, [name])
        assert list(seen) == [name]
        assert_same_gradient(seen[name], expected[name], name)


@WIRINGS
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_gradients_kept_all_at_once(parallel: bool, dtype: torch.dtype | None) -> None:
    ours = model(parallel=parallel)
    output, cache = ours.run_with_cache(tokens(), incl_bwd=total, dtype=dtype)
    expected = gradients_by_autograd(ours)
    kept = [name for name in ours.hook_names if f"{name}_grad" in cache]
    assert len(kept) > 0.7 * len(ours.hook_names)
    for name in kept:
        assert_same_gradient(cache[f"{name}_grad"], expected[name], name)
    assert not cache["resid_post", 1].requires_grad
    assert output.logits.requires_grad


@WIRINGS
def test_backward_hooks_everywhere_at_once(parallel: bool) -> None:
    ours = model(parallel=parallel)
    seen, expected = gradients_by_hooks(ours, ["*"]), gradients_by_autograd(ours)
    assert seen.keys() == expected.keys() == set(ours.hook_names)
    for name, gradient in seen.items():
        assert_same_gradient(gradient, expected[name], name)


def test_backward_hooks_may_replace_the_gradient() -> None:
    ours = model()
    embedding = ours.get_input_embeddings().weight

    def gradient(*hooks: Any) -> Tensor:
        ours.zero_grad()
        total(ours.run_with_hooks(tokens(), bwd_hooks=hooks)).backward()
        return embedding.grad.clone()

    plain = gradient()
    doubled = gradient(("blocks.0.hook_resid_post", lambda g, hook: g * 2))

    def double(gradient: Tensor, _hook: Any) -> None:
        gradient.mul_(2)

    in_place = gradient(("blocks.0.hook_resid_post", double))
    assert_same_gradient(doubled, 2 * plain, "doubled")
    assert torch.equal(in_place, doubled)
    stopped = gradient(("hook_embed", lambda g, hook: torch.zeros_like(g)))
    assert not stopped.any()
    with pytest.raises(HookError, match=r"'hook_embed'.*expected"):
        gradient(("hook_embed", lambda g, hook: g[:1]))


def test_gradients_flow_through_forward_edits() -> None:
    """A tensor put in place by a hook can itself be learned, as steering vectors are."""
    ours = model().requires_grad_(False)
    vector = torch.zeros(64, requires_grad=True)
    output = ours.run_with_hooks(tokens(), [(("resid_post", 0), lambda t, hook: t + vector)])
    total(output).backward()
    assert vector.grad.abs().max() > 0


def test_a_backward_hook_where_no_gradient_flows() -> None:
    ours = model()
    with torch.no_grad(), pytest.raises(HookError, match="can never fire"):
        ours.run_with_hooks(tokens(), bwd_hooks=[("hook_embed", lambda g, hook: None)])


# -------------------------------------------------------------------------------- run_with_cache

FILTERS: dict[str, tuple[Any, list[str]]] = {
    "name": ("hook_embed", ["hook_embed"]),
    "alias": ("gpt_neox.layers.1", ["blocks.1.hook_resid_post"]),
    "short form": (("pattern", 1), ["blocks.1.attn.hook_pattern"]),
    "glob": ("blocks.*.hook_mlp_out", ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]),
    "predicate": (
        lambda name: name.endswith("hook_z"),
        [f"blocks.{i}.attn.hook_z" for i in (0, 1)],
    ),
    "several": (
        ["lm_head", ("z", 0), "hook_*"],
        ["hook_embed", "blocks.0.attn.hook_z", "unembed.hook_out"],
    ),
}


@pytest.mark.parametrize("case", FILTERS)
def test_names_filter(case: str) -> None:
    wanted, names = FILTERS[case]
    ours = model()
    output, cache = ours.run_with_cache(tokens(), names_filter=wanted)
    assert list(cache) == names
    assert len(cache) == len(names)
    seen = read(ours)
    for name in names:
        same(cache[name], seen[name])
    assert not output.logits.requires_grad
    with pytest.raises(HookNameError, match="left out by names_filter"):
        cache["blocks.1.hook_mlp_in"]


@torch.no_grad()
def test_a_cache_of_everything() -> None:
    ours = model(parallel=False)
    seen = read(ours)
    output, cache = ours.run_with_cache(tokens())
    assert list(cache) == list(seen)
    for name, tensor in seen.items():
        same(cache[name], tensor)
    same(cache["unembed.hook_out"], output.logits)
    assert ("pattern", 0) in cache
    assert "gpt_neox.layers.0" in cache
    assert "nothing" not in cache


@pytest.mark.parametrize(
    "positions", [-1, 3, slice(2, 9, 3), slice(-2, None), [0, 5, 5], torch.tensor([1, -1])], ids=str
)
def test_pos_slice(positions: Any) -> None:
    ours = model(parallel=False)
    _, cache = ours.run_with_cache(tokens(), pos_slice=positions)
    for name, tensor in read(ours).items():
        axes = ours.hook_points[name].axes
        axis = axes.index("query_pos" if "query_pos" in axes else "pos")
        kept = [positions] if isinstance(positions, int) else positions
        same(cache[name], tensor[(slice(None),) * axis + (kept,)])


def test_dtype_and_device_of_what_is_kept() -> None:
    ours = model()
    output, cache = ours.run_with_cache(tokens(), dtype=torch.bfloat16, device="cpu")
    assert {tensor.dtype for tensor in cache.values()} == {torch.bfloat16}
    assert output.logits.dtype == torch.float32
    for name, tensor in read(ours).items():
        same(cache[name], tensor.bfloat16(), tolerance=1e-2)


@torch.no_grad()
def test_starting_and_stopping() -> None:
    ours = model(num_hidden_layers=3)
    seen = read(ours)
    stopped, cache = ours.run_with_cache(tokens(), stop_at_layer=2)
    assert list(cache) == [
        n for n in seen if n == "hook_embed" or n[:8] in ("blocks.0", "blocks.1")
    ]
    same(stopped.last_hidden_state, seen["blocks.2.hook_resid_pre"])
    residual = seen["blocks.1.hook_resid_pre"]
    output, cache = ours.run_with_cache(residual, start_at_layer=1)
    assert "blocks.0.hook_resid_pre" not in cache
    assert "hook_embed" not in cache
    for name, tensor in cache.items():
        same(tensor, seen[name])
    same(output.logits, seen["unembed.hook_out"])
    with pytest.raises(HookNameError, match="start_at_layer"):
        cache["blocks.0.hook_resid_pre"]


def test_gradients_of_the_loss() -> None:
    ours = model()
    _, cache = ours.run_with_cache(tokens(), "hook_embed", incl_bwd=True, labels=tokens())
    kept: list[Tensor] = []
    output = ours.run_with_hooks(
        tokens(), [("hook_embed", lambda t, hook: kept.append(t))], labels=tokens()
    )
    same(cache["hook_embed_grad"], torch.autograd.grad(output.loss, kept)[0])
    assert list(cache) == ["hook_embed", "hook_embed_grad"]
    with pytest.raises(HookError, match="labels="):
        ours.run_with_cache(tokens(), incl_bwd=True)
    with pytest.raises(HookError, match="scalar"):
        ours.run_with_cache(tokens(), incl_bwd=lambda output: output.logits)


def assert_cache_sees(ours: Any, name: str) -> None:
    """A cache taken under an edit holds what passed, also what it makes on access."""
    edit = [(name, lambda t, hook: noise(t).abs() + 0.5)]
    with ours.hooks(edit):
        _, cache = ours.run_with_cache(tokens())
    assert not ours.hook_stack.placements
    assert torch.equal(cache[name], noise(cache[name]).abs() + 0.5)
    for other, tensor in read(ours, edit).items():
        same(cache[other], tensor, tolerance=1e-4)


@torch.no_grad()
def test_a_cache_sees_what_hooks_made() -> None:
    ours = model(parallel=False)
    for name in some_names(ours):
        if name != "blocks.1.hook_attn_in":
            assert_cache_sees(ours, name)


@torch.no_grad()
def test_a_cache_sees_an_edited_attention_input_in_all_three_parts() -> None:
    assert_cache_sees(model(), "blocks.1.hook_attn_in")
