"""The little that every picture shares: one sheet, its colours, its texts, its files.

A picture is drawn on a *sheet*: one matplotlib axes that covers the whole figure, measured in
inches from the top left corner, y downwards. Maps are images placed at a rectangle, labels are
texts placed at a point. That keeps hundreds of small maps as cheap as one, and the same input
gives the same bytes. Nothing here touches pyplot; the user's style sheet is set aside while we
draw and is back afterwards.

Colours mean the same in every picture. Amounts are viridis, or, behind text and as bars, white to
viridis's middle. Differences are blue for less and orange for more. Kinds are Okabe and Ito's set
(Color Universal Design, 2008), each with its name. Colour-blind readers can tell all three apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from neox_lab import interrupts
from neox_lab.views.tokens import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

AMOUNT = "#21918c"  # the middle of viridis
LESS, MORE = "#2171b5", "#e66101"  # the middle of each half of ``diverging``
INK, SOFT, FAINT = "#1a1a1a", "#5f6368", "#ececec"
POINTS = 72  # a typographer's points in an inch
MARGIN, HEADING, LINE = 0.15, 0.54, 0.16  # inches
BOLD = 1.15  # how much wider letters are when bold
TITLE_LINE, NARROWEST = 0.22, 5.5  # inches: a further line of a title; what is set for narrow maps
DASHES = (0, (3.0, 1.5))  # widths of a line: on, off
FormatName = Literal["png", "svg", "pdf"]
# Without dates and version numbers the same picture is the same file.
METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def plain_style() -> Iterator[None]:
    """Matplotlib's own defaults, whatever style the user has chosen, for the time of a drawing."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Identifiers that repeat, letters that can be edited, even spacing at low resolution.
        matplotlib.rcParams["svg.hashsalt"] = "neox_lab"
        matplotlib.rcParams["pdf.fonttype"] = 42
        matplotlib.rcParams["text.hinting"] = "none"
        yield


class Sheet:
    """A white page of ``width`` by ``height`` inches inside a margin; (0, 0) is top left."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure: Figure = Figure(facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.size, self.above = (width, height), 0.0
        self._measure()

    def _measure(self) -> None:
        """Let the axes count in inches from the inner top left corner, whatever was drawn."""
        width, height = self.size
        tall = self.above + height + 2 * MARGIN
        self.figure.set_size_inches(width + 2 * MARGIN, tall)
        self.axes.set(xlim=(-MARGIN, width + MARGIN), ylim=(height + MARGIN, -self.above - MARGIN))

    def heading(self, x: float, title: str, subtitle: str) -> None:
        """A title and a line below it, in the first ``HEADING`` inches.

        What is wider than the page is broken, and the further lines stand above the page's (0, 0),
        so that nothing else moves; one word that is too wide widens the page.
        """
        room = max(self.size[0], NARROWEST) - x
        titles, lines = broken(title, 11.5, room / BOLD), broken(subtitle, 8, room)
        widths = [BOLD * text_width(line, 11.5) for line in titles]
        widths += [text_width(line, 8) for line in lines]
        self.size = max(self.size[0], x + max(widths)), self.size[1]
        below = LINE * (len(lines) - 1)
        self.above = TITLE_LINE * (len(titles) - 1) + below
        self._measure()
        for y, line in enumerate(titles, 1 - len(titles)):
            self.text(x, 0.14 - below + TITLE_LINE * y, line, 11.5, weight="bold")
        for y, line in enumerate(lines, 1 - len(lines)):
            self.text(x, 0.35 + LINE * y, line, 8, color=SOFT)

    def plot(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes of their own in a rectangle; the page's size is not to change any more."""
        wide, tall = self.size[0] + 2 * MARGIN, self.above + self.size[1] + 2 * MARGIN
        corner = (x + MARGIN) / wide, (self.size[1] + MARGIN - y - height) / tall
        return self.figure.add_axes((*corner, width / wide, height / tall))

    def text(self, x: float, y: float, text: str, size: float = 8, **style: Any) -> None:
        """``text`` with its anchor (left, baseline) at a point; ``style`` is matplotlib's."""
        style = {"color": INK, "ha": "left", "va": "baseline", **style}
        self.axes.text(x, y, text, fontsize=size, **style)

    def rectangle(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        """A rectangle with its top left corner at a point; ``style`` is matplotlib's."""
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), width, height, **style))

    def map(
        self, x: float, y: float, width: float, height: float, colours: NDArray[np.float64]
    ) -> None:
        """An image ``[row, column, rgba]`` in a rectangle, one flat field for each entry."""
        self.axes.imshow(
            colours,
            extent=(x, x + width, y + height, y),
            interpolation="none",
            aspect="auto",
            origin="upper",
        )
        self._measure()

    def frames(self, corners: Sequence[tuple[float, float]], width: float, height: float) -> None:
        """Thin frames of one size with their top left corners at these points."""
        from matplotlib.collections import LineCollection

        turns = [(0, 0), (width, 0), (width, height), (0, height), (0, 0)]
        lines = [[(x + right, y + down) for right, down in turns] for x, y in corners]
        self.axes.add_collection(LineCollection(lines, colors="#c4c7cb", linewidths=0.5))

    def scale(
        self,
        x: float,
        y: float,
        width: float,
        ticks: Sequence[float],
        tick_labels: Sequence[str],
        colours: Colormap,
        norm: Normalize,
        name: str,
    ) -> None:
        """A colour bar lying at a point, its name above and its ticks below."""
        steps = np.linspace(0, 1, 256)
        self.text(x, y - 0.06, name, 7.5, color=SOFT)
        self.map(x, y, width, 0.12, np.asarray(colours(steps))[None])
        self.rectangle(x, y, width, 0.12, fill=False, edgecolor=SOFT, linewidth=0.5)
        for tick, shown in zip(ticks, tick_labels, strict=True):
            at = x + width * float(norm(tick))
            self.axes.plot([at, at], [y + 0.12, y + 0.16], color=SOFT, linewidth=0.6)
            self.text(at, y + 0.19, shown, 7, color=SOFT, ha="center", va="top")


def broken(text: str, size: float, width: float) -> list[str]:
    """``text`` in lines of at most ``width`` inches, or of one word; no text is one empty line."""
    lines, free, space = [""], 0.0, text_width("a a", size) - text_width("aa", size)
    for word in text.split(" "):
        wide = text_width(word, size)
        if lines[-1] and wide + space > free:
            lines.append("")
        free = (free - space if lines[-1] else width) - wide
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def fitted(text: str, size: float, room: float) -> str:
    """``text`` for matplotlib, cut in its middle to at most about ``room`` inches."""
    shown = figure_text(text)
    wide = text_width(shown, size)
    return shown if wide <= room else figure_text(text, int(len(text) * room / wide))


def text_width(text: str, size: float) -> float:
    """The width in inches of ``text`` set in DejaVu Sans of ``size`` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    shown = text.replace(r"\$", "$")
    font = FontProperties(family="DejaVu Sans", size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(shown, font, False)
    return float(width) / POINTS


def diverging() -> Colormap:
    """Blue, white, orange: less, the same, more."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#08306b", "#2171b5", "#9ecae1", "#ffffff", "#fdbe7d", "#e66101", "#7f2704"]
    return LinearSegmentedColormap.from_list("blue_white_orange", stops)


@cache
def amounts() -> Colormap:
    """White to the middle of viridis and beyond, for amounts with text on them."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#f4faf9", "#b9dfdc", "#6bbab5", AMOUNT, "#0c4a48"]
    return LinearSegmentedColormap.from_list("white_teal", stops)


def tint(colour: str, strength: float) -> str:
    """The tint of what carries something: ``colour`` on white, ``strength`` from 0 to 1.

    Black text reads on every one. ``tint`` in ``assets/common.js`` is the same on any page.
    """
    share = 0.15 + 0.5 * min(1.0, max(0.0, strength))
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (part - 255) * share):02x}" for part in parts)


def ink_on(colour: Sequence[float] | NDArray[np.float64]) -> str:
    """Black or white, whichever reads better on ``colour`` (red, green, blue from 0 to 1)."""
    # Relative luminance and contrast as in WCAG 2.1; 0.179 is where both contrasts are equal.
    linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"  # one of them always reaches 4.5 to 1


def dashed(carried: Sequence[float]) -> str:
    """Which edges are dashed, so that a print in grey tells both kinds apart: those with less.

    Args:
        carried: how much each edge counts, less or more than 0.

    Returns:
        ``"less"`` or ``"more"``; ``""`` where all edges are of one kind.
    """
    less = -sum(each for each in carried if each < 0)
    more = sum(each for each in carried if each > 0)
    return "" if not less or not more else "less" if less < more else "more"


def decimals(largest: float) -> int:
    """How many decimals show numbers up to ``largest`` with two or three digits that matter."""
    if largest == 0 or not np.isfinite(largest):
        return 2
    before = int(np.floor(np.log10(largest)))
    return int(np.clip((2 if before >= 0 else 1) - before, 0, 9))


def number(value: float, places: int) -> str:
    """``value`` with a fixed number of decimals, a true minus sign, and never ``-0.00``."""
    if not np.isfinite(value):
        return "–" if np.isnan(value) else ("∞" if value > 0 else "−∞")
    return f"{round(float(value), places) + 0.0:.{places}f}".replace("-", "−")


def room_for(values: NDArray[Any]) -> tuple[float, float]:
    """The ends of an axis that shows some values with a little room around.

    What varies by less than a ten-thousandth of itself is shown as the constant it is, but for
    rounding.

    Args:
        values: numbers; those that are not finite take no room.
    """
    values = values[np.isfinite(values)].astype(float)
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    most = max(abs(low), abs(high))
    if not most:
        return -0.05, 1.05  # nothing says which way is up; most amounts are not negative
    room = 0.05 * (high - low) if high - low > 1e-4 * most else 0.1 * most
    return low - room, high + room


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """What stands at evenly spaced ticks: whole numbers, told apart by as few digits as it takes.

    Args:
        ticks: from the lowest to the highest.
    """
    most = max(map(abs, ticks), default=0.0)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else most
    if not most or not step:
        return [number(tick, 0) for tick in ticks]
    fine, coarse = (int(np.floor(np.log10(size) + 1e-9)) for size in (step, most))
    if -4 <= coarse < 6:
        places = max(0, -fine)
        return [number(tick, places) for tick in ticks]
    texts = [f"{tick:.{max(0, coarse - fine)}e}" if tick else "0" for tick in ticks]
    return [re.sub("e[+]?(-?)0*", r"e\1", text).replace("-", "−") for text in texts]


def name_ticks(axis: Axis) -> None:
    """Ticks whose texts say their whole value, where matplotlib would write a part above."""
    low, high = sorted(axis.get_view_interval())
    ticks = [float(tick) for tick in axis.get_majorticklocs() if low <= tick <= high]
    axis.set_ticks(ticks, tick_texts(ticks))


def encode(figure: Figure, form: FormatName, dpi: float, **options: Any) -> bytes:
    """The bytes of ``figure`` as a PNG, SVG or PDF file.

    An interrupt waits until it is drawn: matplotlib's compiled parts make a ValueError of one.
    """
    out = io.BytesIO()
    with interrupts.held():
        figure.savefig(out, format=form, dpi=dpi, metadata=METADATA[form], **options)
    return out.getvalue()


def preview(figure: Figure, budget: int) -> tuple[bytes, int]:
    """A PNG of 256 colours within ``budget`` bytes if it can be, and its width in inches x 96.

    Drawn at 144 dots an inch, and if that is too large at what should fit, but never below 72;
    then with fewer colours.
    """
    from PIL import Image

    dpi, quick = 144.0, {"compress_level": 1}
    while True:
        draft = encode(figure, "png", dpi, pil_kwargs=quick)
        with Image.open(io.BytesIO(draft)) as picture:
            width = round(picture.width * 96 / dpi)
            colours = picture.convert("RGB")
        png = _indexed(colours, 256)
        excess = len(png) / budget
        if excess <= 1:
            return png, width
        if dpi == 72:
            return _indexed(colours, 48), width
        dpi = max(72.0, float(np.floor(dpi * 0.93 / np.sqrt(excess))))


def _indexed(picture: Picture, colours: int) -> bytes:
    """A PNG of so many colours."""
    out = io.BytesIO()
    picture.quantize(colours).save(out, "png", optimize=True)
    return out.getvalue()
