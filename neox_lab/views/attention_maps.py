"""How attention maps are drawn: one head large, or many heads small on one colour scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neox_lab.head_names import head_name
from neox_lab.views.attention_patterns import AttentionPatterns
from neox_lab.views.drawing import HEADING, SOFT, Sheet, ink_on
from neox_lab.views.marks import Marks
from neox_lab.views.tokens import figure_text

if TYPE_CHECKING:
    from matplotlib.colors import Normalize

PANEL_LIMIT = 400  # small maps in one picture
DENSITY = 100  # weights an inch that a map can show
AXES = "Row: query, the token that looks. Column: key, the token looked at."


class Box(NamedTuple):
    """A square map: its top left corner and side in inches, and the positions along a side."""

    x: float
    y: float
    side: float
    places: int


def draw_head(view: AttentionPatterns) -> Sheet:
    """One map with tokens on both sides where they fit, and numbers where those fit."""
    pattern = view.patterns[0, 0]
    count = len(pattern)
    side = float(np.clip(count * 0.46, 1.6, 7.0))
    colours, pooled = _fields(view, pattern, side)
    places = len(colours) * pooled
    marks = _marks(view, side / places)
    box = Box(0.15 + marks.widest, HEADING, side, places)
    bottom = HEADING + side + marks.height(45)
    size = box.x + max(side, 3.0), bottom + 0.75
    sheet = Sheet(*size)
    sheet.heading(0, figure_text(view.title), _subtitle(view, range(1)))
    sheet.map(box.x, box.y, side, side, colours)
    sheet.frames([(box.x, box.y)], side, side)
    if side / count >= 0.3:
        _values(sheet, view, box, colours)
    marks.beside(sheet, box.x, box.y)
    marks.below(sheet, box.x, box.y + side, 45)
    _scale(sheet, box.x, bottom + 0.4, _norm(view), pooled)
    return sheet


def draw_heads(view: AttentionPatterns, most: float = math.inf) -> Sheet:
    """Small maps: a row for each layer and a column for each head; one layer's heads wrapped.

    ``most`` is how many fields all of them may have together.
    """
    heads = len(view.heads)
    chosen = range(0, len(view.layers), math.ceil(len(view.layers) * heads / PANEL_LIMIT))
    columns = _columns(heads) if len(view.layers) == 1 else heads
    side = float(np.clip(10.4 / columns - 0.1, 0.3, 2.1))
    titled = side >= 0.95
    density = min(DENSITY, math.sqrt(most / (len(chosen) * heads)) / side)
    panels = [
        _fields(view, view.patterns[at, of], side, density) for at in chosen for of in range(heads)
    ]
    places, pooled = len(panels[0][0]) * panels[0][1], panels[0][1]
    gap = (0.22, 0.34) if titled else (0.07, 0.07)
    mosaic, across, down = _mosaic([colours for colours, _ in panels], columns, side, gap)
    marks = _marks(view, side / places)
    left, top = marks.widest + (0.15 if titled else 0.7), HEADING + 0.25
    height = down * math.ceil(len(panels) / columns)
    bottom = top + height - gap[1] + marks.height(90)
    size = max(left + columns * across, 5.0), bottom + 0.75
    sheet = Sheet(*size)
    sheet.heading(0, figure_text(view.title), _subtitle(view, chosen))
    sheet.map(left, top, columns * across, height, mosaic)
    boxes = [
        Box(left + panel % columns * across, top + panel // columns * down, side, places)
        for panel in range(len(panels))
    ]
    sheet.frames([box[:2] for box in boxes], side, side)
    for panel, box in enumerate(boxes):
        if panel % columns == 0:
            marks.beside(sheet, box.x, box.y)
        if panel + columns >= len(panels):
            marks.below(sheet, box.x, box.y + side, 90)
    _name_panels(sheet, view, boxes, chosen, columns, marks.widest + 0.15, titled)
    _scale(sheet, left, bottom + 0.4, _norm(view), pooled)
    return sheet


def _name_panels(
    sheet: Sheet,
    view: AttentionPatterns,
    boxes: list[Box],
    chosen: range,
    columns: int,
    margin: float,
    titled: bool,
) -> None:
    """Above each map its head and layer; where there is no room, heads above and layers left."""
    heads = len(view.heads)
    for panel, box in enumerate(boxes):
        layer, head = view.layers[chosen[panel // heads]], view.heads[panel % heads]
        if titled:
            sheet.text(box.x, box.y - 0.06, head_name(layer, head), 7.5)
            continue
        middle = box.side / 2
        if panel < columns:
            sheet.text(box.x + middle, box.y - 0.07, str(head), 7.5, ha="center")
        if panel % columns == 0:
            style = {"ha": "right", "va": "center_baseline"}
            sheet.text(box.x - margin, box.y + middle, f"layer {layer}", 7.5, **style)
    if not titled:
        sheet.text(boxes[0].x - margin, boxes[0].y - 0.07, "head", 7.5, ha="right")


def _mosaic(
    panels: list[NDArray[np.float64]], columns: int, side: float, gap: tuple[float, float]
) -> tuple[NDArray[np.float64], float, float]:
    """All maps ``[row, column, rgba]`` as one image, and a panel's width and height with its gap.

    One image is drawn a hundred times faster than hundreds of them. Fields are repeated until the
    gap, which can only be a whole number of them, comes out as wide as asked (in inches).
    """
    repeat = math.ceil(side * 120 / len(panels[0]))
    fields = len(panels[0]) * repeat
    right, under = (round(inches / side * fields) for inches in gap)
    rows = math.ceil(len(panels) / columns)
    mosaic = np.ones((rows, fields + under, columns, fields + right, 4))
    for panel, colours in enumerate(panels):
        large = colours.repeat(repeat, 0).repeat(repeat, 1)
        mosaic[panel // columns, :fields, panel % columns, :fields] = large
    inches = side / fields
    image = mosaic.reshape(rows * (fields + under), columns * (fields + right), 4)
    return image, (fields + right) * inches, (fields + under) * inches


def _values(sheet: Sheet, view: AttentionPatterns, box: Box, colours: NDArray[np.float64]) -> None:
    """The weights themselves, inside their fields."""
    cell = box.side / box.places
    for query, key in zip(*np.nonzero(_shown(view)), strict=True):
        value = f"{view.patterns[0, 0, query, key]:.2f}".removeprefix("0")
        style = {"ha": "center", "va": "center_baseline", "color": ink_on(colours[query, key])}
        x, y = box.x + (key + 0.5) * cell, box.y + (query + 0.5) * cell
        sheet.text(x, y, value, min(cell * 18, 8), **style)


def _columns(heads: int) -> int:
    """How many heads of one layer stand side by side, without a ragged last row if it can be."""
    least = heads if heads <= 4 else math.ceil(math.sqrt(heads))
    even = [columns for columns in range(least, 9) if heads % columns == 0]
    return even[0] if even else min(least, 8)


def _subtitle(view: AttentionPatterns, chosen: range) -> str:
    """How to read the maps, and which layers are not among them."""
    if len(chosen) == len(view.layers):
        return AXES
    layers = ", ".join(str(view.layers[at]) for at in chosen)
    return f"{AXES} Only layers {layers} of {len(view.layers)} are drawn; .layer(n) draws any."


def _marks(view: AttentionPatterns, cell: float) -> Marks:
    """The tokens, or some of their positions, for a map whose places are ``cell`` inches wide."""
    return Marks.fit(view.pieces, cell, [str(at) for at in range(len(view.pieces))])


def _norm(view: AttentionPatterns) -> Normalize:
    """From 0 to 1 (or to the largest weight, if an edited pattern has larger ones), square root."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=view.top)


def _shown(view: AttentionPatterns) -> NDArray[np.bool_]:
    """Which ``[query, key]`` entries are drawn: in causal attention, those not ahead."""
    count = len(view.pieces)
    return np.tri(count, dtype=bool) if view.causal else np.ones((count, count), dtype=bool)


def _fields(
    view: AttentionPatterns, pattern: NDArray[np.float32], side: float, density: float = DENSITY
) -> tuple[NDArray[np.float64], int]:
    """The colours ``[row, column, rgba]`` of one pattern, and positions along a field's side.

    A map of ``side`` inches with more weights than can be seen shows the largest of each square of
    weights, so that a thin line in a long text does not vanish.
    """
    import matplotlib

    factor = math.ceil(len(pattern) / (side * density))
    weights = np.where(_shown(view), pattern, np.nan)
    spare = -len(pattern) % factor
    weights = np.pad(weights, ((0, spare), (0, spare)), constant_values=np.nan)
    fields = len(weights) // factor
    blocks = weights.reshape(fields, factor, fields, factor)
    seen = ~np.isnan(blocks).all((1, 3))
    largest = np.where(np.isnan(blocks), 0, blocks).max((1, 3))
    colours = np.asarray(matplotlib.colormaps["viridis"](_norm(view)(largest)))
    colours[~seen] = 1.0
    return colours, factor


def _scale(sheet: Sheet, x: float, y: float, norm: Normalize, pooled: int) -> None:
    """The colour bar, with a word on what one field stands for."""
    import matplotlib

    top = float(norm.vmax or 1)
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1] if top == 1 else [0, top / 16, top / 4, top]
    shown = [f"{tick:.3g}" for tick in ticks]
    name = "attention weight (square-root scale)"
    sheet.scale(x, y, 2.6, ticks, shown, matplotlib.colormaps["viridis"], norm, name)
    if pooled > 1:
        said = f"Each field shows the largest of {pooled} × {pooled} weights."
        sheet.text(x + 2.85, y + 0.1, said, 7, color=SOFT)
