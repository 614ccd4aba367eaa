"""The nodes of an attribution graph as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neox_lab.circuits.attribution_graphs.replacement import LocalReplacement
from neox_lab.circuits.attribution_graphs.rows import Rows
from neox_lab.circuits.attribution_graphs.targets import Targets
from neox_lab.frames import make_frame
from neox_lab.views.tokens import label

if TYPE_CHECKING:
    import pandas as pd


LONGEST = 40  # characters of a token in the name of a node


def node_table(
    run: LocalReplacement,
    traced: Tensor,
    logits: Targets,
    first: Rows,
    parts: list[tuple[int, Rows]],
    tokens: list[str],
    answers: list[str],
) -> pd.DataFrame:
    """Traced features, errors, tokens and logits; see ``AttributionGraph.nodes``.

    Args:
        run: the run.
        traced: numbers of the features that have rows.
        logits: what is explained.
        first: their rows.
        parts: rows of features.
        tokens: of the prompt.
        answers: of the logits.
    """
    found, length = run.features, len(run.ids)
    layer, pos, latent = (part[traced].tolist() for part in (found.layer, found.pos, found.latent))
    rows: list[tuple[object, ...]] = [
        (f"L{at}F{one}@{where}", "feature", at, where, tokens[where], -1, one)
        for at, where, one in zip(layer, pos, latent, strict=True)
    ]
    rows += [
        (f"L{at} error@{where}", "error", at, where, tokens[where], -1, -1)
        for at in range(run.layers)
        for where in range(length)
    ]
    ids = run.ids.tolist()
    rows += [
        (
            f"{label(tokens[where], LONGEST)}@{where}",
            "token",
            -1,
            where,
            tokens[where],
            ids[where],
            -1,
        )
        for where in range(length)
    ]
    rows += [
        (f"logit {label(text, LONGEST)}", "logit", run.layers, length - 1, text, one, -1)
        for text, one in zip(answers, logits.ids.tolist(), strict=True)
    ]
    columns = ["name", "kind", "layer", "pos", "token", "token_id", "latent"]
    table = make_frame(rows, columns=columns)
    values = _values(run, traced, logits, first, parts, len(rows))
    return table.assign(**{name: column.numpy() for name, column in values.items()})


def _values(
    run: LocalReplacement,
    traced: Tensor,
    logits: Targets,
    first: Rows,
    parts: list[tuple[int, Rows]],
    count: int,
) -> dict[str, Tensor]:
    """The numbers of each node, NaN where it has none."""
    names = ("probability", "weight", "value", "incoming", "constant", "gross")
    table = {name: torch.full((count,), np.nan, dtype=torch.float64) for name in names}
    table["probability"][-len(logits.ids) :] = logits.probability.double().cpu()
    table["weight"][-len(logits.ids) :] = logits.weight.double().cpu()
    table["value"][-len(logits.ids) :] = logits.read(run.logits).double().cpu()
    table["value"][: len(traced)] = run.features.activation[traced].double().cpu()
    place = torch.full((len(run.features),), -1, device=traced.device)
    place[traced] = torch.arange(len(traced), device=traced.device)
    every = [(place[rows.targets].cpu(), rows) for _, rows in parts]
    every.append((count - len(logits.ids) + first.targets.cpu(), first))
    for at, rows in every:
        table["incoming"][at] = rows.incoming.double().cpu()
        table["constant"][at] = rows.constant.double().cpu()
        table["gross"][at] = (rows.total + rows.constant.abs()).double().cpu()
    table["missing"] = table["value"] - table["incoming"] - table["constant"]
    return table
