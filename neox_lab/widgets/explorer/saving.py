"""The panels of the explorer as views: what is saved as PNG, SVG or CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from neox_lab.errors import InputError
from neox_lab.results import Result
from neox_lab.views import BarsView, HeatmapView, PredictionsView, View, label
from neox_lab.widgets.explorer.opened import OPENED
from neox_lab.widgets.explorer.reading import Reading
from neox_lab.widgets.explorer.selection import Selection

ASKED_FOR = ("attribution", "patching", "writing", *OPENED)
FORMS: dict[str, Callable[[View], bytes]] = {
    "png": lambda view: view.to_png(),
    "svg": lambda view: view.to_svg().encode(),
    "csv": lambda view: view.to_csv().encode("utf-8", "backslashreplace"),
}


def panel_view(
    panel: str,
    reading: Reading,
    chosen: Selection,
    effects: Mapping[str, Any],
    answers: Mapping[str, Result | View],
) -> View:
    """The view behind a panel.

    Args:
        panel: its name.
        reading: the run on show.
        chosen: what is selected.
        effects: measures of heads that were asked for.
        answers: other answers, by panel.

    Raises:
        InputError: there is no such panel, or nothing was asked of it yet.
    """
    view = reading.view
    if panel == "lens":
        return view.lens
    if panel == "pattern":
        return view.attention.head(chosen.layer, chosen.head)
    if panel == "candidates":
        return _candidates(reading, chosen)
    if panel == "parts":
        return _parts(reading, chosen)
    if panel == "heads":
        return _heads(reading, chosen, effects)
    if panel not in ASKED_FOR:
        raise InputError(f"unknown panel {panel!r}")
    if panel not in answers:
        raise InputError("There is nothing to save yet; use the button of this panel first.")
    found = answers[panel]
    shown = found if isinstance(found, View) else found.view()
    assert isinstance(shown, View)
    return shown


def _candidates(reading: Reading, chosen: Selection) -> View:
    lens = reading.view.lens
    candidates = [
        [(piece, float(share)) for piece, share in zip(cell, shares, strict=True)]
        for cell, shares in zip(
            lens.candidates[chosen.row], lens.probabilities[chosen.row], strict=True
        )
    ]
    title = f"What comes next, read off at {lens.row_labels[chosen.row]}"
    return PredictionsView(lens.pieces, candidates, chosen.position, title)


def _parts(reading: Reading, chosen: Selection) -> View:
    shares = reading.view.shares
    if shares is None:
        raise InputError("The logit of this model is not a sum of what its parts write.")
    about = label(reading.view.about[chosen.position], 24)
    return BarsView(
        shares.names,
        shares.values[chosen.position],
        title=f"Who wrote the logit of “{about}” after token {chosen.position}",
        note="Shares in logits, layer norm held as it was; they sum to the logit.",
    )


def _heads(reading: Reading, chosen: Selection, effects: Mapping[str, Any]) -> View:
    attention = reading.view.attention
    if chosen.measure in effects:
        values = [
            [math.nan if value is None else value for value in row]
            for row in effects[chosen.measure]["values"]
        ]
        name, centre = chosen.measure, 0.0 if effects[chosen.measure]["signed"] else None
    else:
        frame = attention.head_frame
        column = {"on the first token": "first", "on the previous token": "previous"}
        taken = column.get(chosen.measure, "entropy_bits")
        values = frame[taken].to_numpy().reshape(len(attention.layers), -1).tolist()
        name = chosen.measure if chosen.measure in column else "entropy (bits)"
        centre = None
    rows, columns = (list(map(str, numbers)) for numbers in (attention.layers, attention.heads))
    measured = ~np.isnan(np.asarray(values, dtype=float))
    return HeatmapView(values, rows, columns, "layer", "head", name, centre, measured=measured)
