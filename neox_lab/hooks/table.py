"""The one table of hook points.

Documentation, ``model.hook_table()``, tab completion, shape checks and error messages are made
from ``ROWS``, and from the registry of output heads, each of which adds two rows. Axis names:
``batch`` rows of the batch, ``pos`` positions of the text, ``head`` attention heads, ``d_model``
width of the residual stream, ``d_head`` width of a head, ``d_mlp`` width of the MLP, ``vocab``
tokens. Names and shapes are TransformerLens's; an alias is the path of the Hugging Face module
whose output the tensor is.

``attn.hook_in`` and ``mlp.hook_in`` are what Hugging Face's modules ``layers.{l}.attention`` and
``layers.{l}.mlp`` are called with. A head whose ``hook_q_input``, ``hook_k_input`` or
``hook_v_input`` a hook changed reads the layer norm of that instead of ``attn.hook_in``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import torch

from neox_lab.config import GPTNeoXConfig
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.output_heads import OUTPUT_HEADS, OutputHead


class Row(NamedTuple):
    """One line of the table.

    In names ``{l}`` stands for the number of a block and ``{next}`` for that of the block after it.
    Where several names may stand, blanks separate them.

    Attributes:
        name: hook name.
        axes: axis names.
        meaning: what the tensor is.
        aliases: other names, below the prefix of the Hugging Face paths.
        only: empty, or the one wiring (``"sequential"``, ``"parallel"``) or head the row exists
            for.
        in_float32: the tensor is float32 even where the model's dtype is narrower; float64 in a
            float64 model.
        follows_from: points whose tensors lead to this one by one cheap step, so that caches
            need not store it; ``derived`` has the step.
        equals: the point whose tensor this one is, as long as nobody writes; of several the first
            that the model has.
        ends_gradients: a gradient here can be read, but not replaced.
    """

    name: str
    axes: str
    meaning: str
    aliases: str = ""
    only: str = ""
    in_float32: bool = False
    follows_from: str = ""
    equals: str = ""
    ends_gradients: bool = False


_STREAM = "batch pos d_model"
_PER_HEAD = "batch pos head d_model"
_HEADS = "batch pos head d_head"
_PATTERN = "batch head query_pos key_pos"
_PRE = "blocks.{l}.hook_resid_pre"
_MLP_IN = "blocks.{l}.hook_mlp_in"


def _scale(name: str, meaning: str, follows_from: str = "") -> Row:
    """What a layer norm divides by."""
    meaning = f"√(variance + eps) of {meaning}, float32"
    return Row(name, "batch pos 1", meaning, in_float32=True, follows_from=follows_from)


def _head_input(name: str, reader: str) -> Row:
    """The residual stream as one head reads it: the same tensor, seen once for each head."""
    return Row(
        name,
        _PER_HEAD,
        f"what each head{reader}, before layer norm 1",
        follows_from=_PRE,
        equals=_PRE,
        ends_gradients=True,
    )


ROWS: tuple[Row, ...] = (
    Row("hook_embed", _STREAM, "token embeddings", "embed_in", equals="blocks.0.hook_resid_pre"),
    Row(_PRE, _STREAM, "residual stream entering the block"),
    _head_input("blocks.{l}.hook_attn_in", " reads"),
    _head_input("blocks.{l}.hook_q_input", "'s queries read"),
    _head_input("blocks.{l}.hook_k_input", "'s keys read"),
    _head_input("blocks.{l}.hook_v_input", "'s values read"),
    _scale("blocks.{l}.ln1.hook_scale", "layer norm 1", _PRE),
    Row(
        "blocks.{l}.ln1.hook_normalized",
        _STREAM,
        "layer norm 1 before its weight and bias",
        follows_from=_PRE,
    ),
    Row(
        "blocks.{l}.attn.hook_in",
        _STREAM,
        "what attention's first matrix reads: layer norm 1 after its weight and bias",
        "layers.{l}.input_layernorm",
        follows_from=_PRE,
    ),
    Row("blocks.{l}.attn.hook_q", _HEADS, "queries before rotation"),
    Row("blocks.{l}.attn.hook_k", _HEADS, "keys before rotation"),
    Row("blocks.{l}.attn.hook_v", _HEADS, "values"),
    Row("blocks.{l}.attn.hook_rot_q", _HEADS, "queries after rotation"),
    Row("blocks.{l}.attn.hook_rot_k", _HEADS, "keys after rotation"),
    Row(
        "blocks.{l}.attn.hook_attn_scores",
        _PATTERN,
        "scaled and masked scores, float32",
        in_float32=True,
        follows_from="blocks.{l}.attn.hook_rot_q blocks.{l}.attn.hook_rot_k",
    ),
    Row(
        "blocks.{l}.attn.hook_pattern",
        _PATTERN,
        "attention weights; each row sums to 1",
        follows_from="blocks.{l}.attn.hook_attn_scores",
    ),
    Row("blocks.{l}.attn.hook_z", _HEADS, "mix of values each head read"),
    Row(
        "blocks.{l}.attn.hook_result",
        _PER_HEAD,
        "what each head writes, without the shared bias",
        follows_from="blocks.{l}.attn.hook_z",
    ),
    Row(
        "blocks.{l}.hook_attn_out",
        _STREAM,
        "what attention writes",
        "layers.{l}.attention layers.{l}.attention.dense",
    ),
    Row(
        "blocks.{l}.hook_resid_mid",
        _STREAM,
        "residual stream between attention and MLP",
        only="sequential",
    ),
    Row(
        _MLP_IN,
        _STREAM,
        "what the MLP reads, before layer norm 2",
        equals=f"blocks.{{l}}.hook_resid_mid {_PRE}",
    ),
    _scale("blocks.{l}.ln2.hook_scale", "layer norm 2", _MLP_IN),
    Row(
        "blocks.{l}.ln2.hook_normalized",
        _STREAM,
        "layer norm 2 before its weight and bias",
        follows_from=_MLP_IN,
    ),
    Row(
        "blocks.{l}.mlp.hook_in",
        _STREAM,
        "what the MLP's first matrix reads: layer norm 2 after its weight and bias",
        "layers.{l}.post_attention_layernorm",
        follows_from=_MLP_IN,
    ),
    Row(
        "blocks.{l}.mlp.hook_pre",
        "batch pos d_mlp",
        "neurons before the activation function",
        "layers.{l}.mlp.dense_h_to_4h",
    ),
    Row(
        "blocks.{l}.mlp.hook_post",
        "batch pos d_mlp",
        "neurons after the activation function",
        "layers.{l}.mlp.act",
        follows_from="blocks.{l}.mlp.hook_pre",
    ),
    Row(
        "blocks.{l}.hook_mlp_out",
        _STREAM,
        "what the MLP writes",
        "layers.{l}.mlp layers.{l}.mlp.dense_4h_to_h",
    ),
    Row(
        "blocks.{l}.hook_resid_post",
        _STREAM,
        "residual stream leaving the block",
        "layers.{l}",
        equals="blocks.{next}.hook_resid_pre",
    ),
    _scale("ln_final.hook_scale", "the final layer norm"),
    Row("ln_final.hook_normalized", _STREAM, "final layer norm before its weight and bias"),
)

WIRINGS = ("sequential", "parallel")


def head_rows(head: OutputHead) -> tuple[Row, Row]:
    """What an output head reads and what it returns."""
    aliases = " ".join((head.module, *head.aliases))
    read, norm = f"what {head.reader} reads", "gpt_neox.final_layer_norm"
    return (
        Row(f"{head.hook}.hook_in", _STREAM, read, norm, only=head.name),
        Row(f"{head.hook}.hook_out", f"batch pos {head.axis}", head.meaning, aliases, head.name),
    )


def hook_points(config: GPTNeoXConfig, head: str) -> dict[str, HookPoint]:
    """Every hook point of a model, by name, in the order of the forward pass."""
    rows = [row for row in ROWS if _exists(row, config)]
    if head in OUTPUT_HEADS:
        rows += head_rows(OUTPUT_HEADS[head])
    inside = [row for row in rows if "{l}" in row.name]
    first, last = rows.index(inside[0]), rows.index(inside[-1])
    layers = range(config.num_hidden_layers)
    placed: list[tuple[Row, int | None]] = [(row, None) for row in rows[:first]]
    placed += [(row, layer) for layer in layers for row in inside]
    placed += [(row, None) for row in rows[last + 1 :]]
    points = {_at(row.name, layer): _point(row, layer, head) for row, layer in placed}
    for row, layer in placed:
        equal = [name for name in _all_at(row.equals, layer) if name in points]
        if equal:
            name = _at(row.name, layer)
            points[name] = dataclasses.replace(points[name], equals=equal[0])
    return points


def _exists(row: Row, config: GPTNeoXConfig) -> bool:
    wiring = "parallel" if config.use_parallel_residual else "sequential"
    return row.only not in WIRINGS or row.only == wiring


def _at(name: str, layer: int | None) -> str:
    """A name of the table in one block."""
    return name if layer is None else name.format(l=layer, next=layer + 1)


def _all_at(names: str, layer: int | None) -> tuple[str, ...]:
    """Several names of the table in one block."""
    return tuple(_at(name, layer) for name in names.split())


def _point(row: Row, layer: int | None, head: str) -> HookPoint:
    """What ``row`` says of one block; which tensor it equals is left open."""
    outside_network = row.only not in ("", *WIRINGS)
    prefix = "" if head == "base" or outside_network else "gpt_neox."
    return HookPoint(
        name=_at(row.name, layer),
        layer=layer,
        axes=tuple(row.axes.split()),
        meaning=row.meaning,
        aliases=tuple(prefix + alias for alias in _all_at(row.aliases, layer)),
        in_float32=row.in_float32,
        follows_from=_all_at(row.follows_from, layer),
        ends_gradients=row.ends_gradients,
    )


def axis_sizes(config: GPTNeoXConfig, batch: int, pos: int, past: int = 0) -> dict[str, int]:
    """Length of each named axis.

    Args:
        config: shape of the model.
        batch: rows.
        pos: positions that are read.
        past: earlier positions in a key-value cache, which queries see too.
    """
    return {
        "batch": batch,
        "pos": pos,
        "query_pos": pos,
        "key_pos": past + pos,
        "head": config.num_attention_heads,
        "d_head": config.head_size,
        "d_model": config.hidden_size,
        "d_mlp": config.intermediate_size,
        "vocab": config.vocab_size,
        "label": config.num_labels,
    }


def shape_at(point: HookPoint, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of the tensor that passes ``point``, given ``axis_sizes``."""
    lengths = {**sizes, **point.sizes}
    return tuple(int(axis) if axis.isdigit() else lengths[axis] for axis in point.axes)


def dtype_at(point: HookPoint, model_dtype: torch.dtype) -> torch.dtype:
    """Dtype of the tensor that passes ``point``."""
    return torch.promote_types(model_dtype, torch.float32) if point.in_float32 else model_dtype


def as_markdown() -> str:
    """The table of ``docs/hooks.md``: ``python -m neox_lab.hooks.table``."""
    lines = ["| name | shape | meaning | Hugging Face path | only in |", "|---|---|---|---|---|"]
    of_heads = (row for head in OUTPUT_HEADS.values() for row in head_rows(head))
    for row in (*ROWS, *of_heads):
        names = "`, `".join(row.aliases.split())
        paths = f"`{names}`" if names else ""
        shape = ", ".join(row.axes.split())
        lines.append(f"| `{row.name}` | [{shape}] | {row.meaning} | {paths} | {row.only} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown())
