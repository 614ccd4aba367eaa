"""The one table of hook points.

Documentation, ``model.hook_table()``, tab completion, shape checks and error messages are made
from ``ROWS``, and from the registry of output heads, each of which adds two rows. Axis names:
``batch`` rows of the batch, ``pos`` positions of the text, ``head`` attention heads, ``d_model``
width of the residual stream, ``d_head`` width of a head, ``d_mlp`` width of the MLP, ``vocab``
tokens. Names and shapes are TransformerLens's; an alias is the path of the Hugging Face module
whose output the tensor is.
"""

from __future__ import annotations

from typing import NamedTuple

from neox_lab.config import GPTNeoXConfig
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.output_heads import OUTPUT_HEADS, OutputHead


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: hook name; ``{l}`` stands for the number of a block.
        axes: axis names, separated by blanks.
        meaning: what the tensor is.
        aliases: other names, separated by blanks, below the prefix of the Hugging Face paths.
        only: empty, or the one wiring (``"sequential"``) or head the row exists for.
    """

    name: str
    axes: str
    meaning: str
    aliases: str = ""
    only: str = ""


_STREAM = "batch pos d_model"
_PER_HEAD = "batch pos head d_model"
_HEADS = "batch pos head d_head"
_PATTERN = "batch head query_pos key_pos"

ROWS: tuple[Row, ...] = (
    Row("hook_embed", _STREAM, "token embeddings", "embed_in"),
    Row("blocks.{l}.hook_resid_pre", _STREAM, "residual stream entering the block"),
    Row("blocks.{l}.hook_attn_in", _PER_HEAD, "what each head reads, before layer norm 1"),
    Row("blocks.{l}.hook_q_input", _PER_HEAD, "what each head's queries read, before layer norm 1"),
    Row("blocks.{l}.hook_k_input", _PER_HEAD, "what each head's keys read, before layer norm 1"),
    Row("blocks.{l}.hook_v_input", _PER_HEAD, "what each head's values read, before layer norm 1"),
    Row("blocks.{l}.ln1.hook_scale", "batch pos 1", "√(variance + eps) of layer norm 1, float32"),
    Row("blocks.{l}.ln1.hook_normalized", _STREAM, "layer norm 1 before its weight and bias"),
    Row("blocks.{l}.attn.hook_q", _HEADS, "queries before rotation"),
    Row("blocks.{l}.attn.hook_k", _HEADS, "keys before rotation"),
    Row("blocks.{l}.attn.hook_v", _HEADS, "values"),
    Row("blocks.{l}.attn.hook_rot_q", _HEADS, "queries after rotation"),
    Row("blocks.{l}.attn.hook_rot_k", _HEADS, "keys after rotation"),
    Row("blocks.{l}.attn.hook_attn_scores", _PATTERN, "scaled and masked scores, float32"),
    Row("blocks.{l}.attn.hook_pattern", _PATTERN, "attention weights; each row sums to 1"),
    Row("blocks.{l}.attn.hook_z", _HEADS, "mix of values each head read"),
    Row("blocks.{l}.attn.hook_result", _PER_HEAD, "what each head writes, without the shared bias"),
    Row("blocks.{l}.hook_attn_out", _STREAM, "what attention writes", "layers.{l}.attention"),
    Row(
        "blocks.{l}.hook_resid_mid",
        _STREAM,
        "residual stream between attention and MLP",
        only="sequential",
    ),
    Row("blocks.{l}.hook_mlp_in", _STREAM, "what the MLP reads, before layer norm 2"),
    Row("blocks.{l}.ln2.hook_scale", "batch pos 1", "√(variance + eps) of layer norm 2, float32"),
    Row("blocks.{l}.ln2.hook_normalized", _STREAM, "layer norm 2 before its weight and bias"),
    Row("blocks.{l}.mlp.hook_pre", "batch pos d_mlp", "neurons before the activation function"),
    Row("blocks.{l}.mlp.hook_post", "batch pos d_mlp", "neurons after the activation function"),
    Row("blocks.{l}.hook_mlp_out", _STREAM, "what the MLP writes", "layers.{l}.mlp"),
    Row("blocks.{l}.hook_resid_post", _STREAM, "residual stream leaving the block", "layers.{l}"),
    Row("ln_final.hook_scale", "batch pos 1", "√(variance + eps) of the final layer norm, float32"),
    Row("ln_final.hook_normalized", _STREAM, "final layer norm before its weight and bias"),
)

WIRINGS = ("sequential",)


def head_rows(head: OutputHead) -> tuple[Row, Row]:
    """What an output head reads and what it returns."""
    aliases = " ".join((head.module, *head.aliases))
    return (
        Row(f"{head.hook}.hook_in", _STREAM, f"what {head.reader} reads", only=head.name),
        Row(f"{head.hook}.hook_out", f"batch pos {head.axis}", head.meaning, aliases, head.name),
    )


def hook_points(config: GPTNeoXConfig, head: str) -> dict[str, HookPoint]:
    """Every hook point of a model, by name, in the order of the forward pass."""
    points: dict[str, HookPoint] = {}

    def add(row: Row, layer: int | None) -> None:
        point = _point(row, layer, head)
        points[point.name] = point

    rows = [row for row in ROWS if _exists(row, config)]
    if head in OUTPUT_HEADS:
        rows += head_rows(OUTPUT_HEADS[head])
    inside = [row for row in rows if "{l}" in row.name]
    before = rows[: rows.index(inside[0])]
    after = rows[rows.index(inside[-1]) + 1 :]
    for row in before:
        add(row, None)
    for layer in range(config.num_hidden_layers):
        for row in inside:
            add(row, layer)
    for row in after:
        add(row, None)
    return points


def _exists(row: Row, config: GPTNeoXConfig) -> bool:
    return not (row.only == "sequential" and config.use_parallel_residual)


def _point(row: Row, layer: int | None, head: str) -> HookPoint:
    outside_network = row.only not in ("", *WIRINGS)
    prefix = "" if head == "base" or outside_network else "gpt_neox."
    return HookPoint(
        name=row.name.format(l=layer),
        layer=layer,
        axes=tuple(row.axes.split()),
        meaning=row.meaning,
        aliases=tuple(prefix + alias.format(l=layer) for alias in row.aliases.split()),
    )


def as_markdown() -> str:
    """The table for the README: ``python -m neox_lab.hooks.table``."""
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
