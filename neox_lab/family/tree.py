"""A model as a tree of its hook points: what ``repr`` prints and a notebook shows.

Blocks are alike, so one stands for all of them: what can be read or changed, and in which shape.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from neox_lab.model.hook_points import HookPoint

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedNetwork


def headline(model: HookedNetwork) -> str:
    """Class, size, wiring, dtype and device in one line."""
    config = model.config
    wiring = "parallel" if config.use_parallel_residual else "sequential"
    return (
        f"{type(model).__name__}: {model.num_parameters():,} parameters, "
        f"{config.num_hidden_layers} layers of {config.num_attention_heads} heads, d_model "
        f"{config.hidden_size}, d_mlp {config.intermediate_size}, vocab {config.vocab_size}, "
        f"{wiring} residual, {str(model.dtype).removeprefix('torch.')} on {model.device}"
    )


def groups(model: HookedNetwork) -> list[tuple[str, list[HookPoint]]]:
    """Hook points before the blocks, of block 0, and after the blocks, each with a heading."""
    points = list(model.hook_points.values())
    inside = [point for point in points if point.layer == 0]
    first = points.index(inside[0])
    after = [point for point in points[first:] if point.layer is None]
    layers = model.config.num_hidden_layers
    blocks = "blocks.0" if layers == 1 else f"blocks.0 … blocks.{layers - 1}"
    return [("before the blocks", points[:first]), (blocks, inside), ("after the blocks", after)]


def as_text(model: HookedNetwork) -> str:
    """The tree for a terminal."""
    lines = [headline(model)]
    for heading, points in groups(model):
        lines.append(f"  {heading}")
        for point in points:
            shape = f"[{', '.join(point.axes)}]"
            lines.append(f"    {_short(point):<24} {shape:<36} {point.meaning}")
    return "\n".join(lines)


def as_html(model: HookedNetwork) -> str:
    """The tree for a notebook: collapsible, without script or style sheet."""
    parts = [f"<p><strong>{html.escape(headline(model))}</strong></p>"]
    for heading, points in groups(model):
        rows = "".join(
            f"<tr><td style='text-align:left'><code>{html.escape(_short(point))}</code></td>"
            f"<td style='text-align:left'>[{html.escape(', '.join(point.axes))}]</td>"
            f"<td style='text-align:left'>{html.escape(point.meaning)}</td></tr>"
            for point in points
        )
        count = f"{len(points)} hook point{'s' if len(points) != 1 else ''}"
        parts.append(
            f"<details><summary>{html.escape(heading)}: {count}</summary>"
            f"<table><tbody>{rows}</tbody></table></details>"
        )
    return "\n".join(parts)


def _short(point: HookPoint) -> str:
    """The name without the number of its block."""
    return point.name.split(".", 2)[2] if point.layer is not None else point.name
