"""What stands above a picture: broken where it is wider than the page, and nothing else moves."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from neox_lab.progress import counted
from neox_lab.views import BarsView, CurvesView, HeatmapView, Line, ScatterView, View

SENTENCE = "Words that go on and on until no page is wide enough for all of them. "


def view(kind: str, title: str, note: str) -> View:
    if kind == "bars":
        return BarsView(["a", "b"], [0.2, 0.7], title, note)
    if kind == "map":
        grid = np.array([[0.1, -0.4], [0.3, 0.2]])
        return HeatmapView(grid, ["a", "b"], ["c", "d"], title=title, note=note)
    if kind == "scatter":
        return ScatterView([0.0, 1.0], [1.0, 0.2], ["a", "b"], title=title, note=note)
    return CurvesView(title, {"a": Line([0, 1], [0.2, 0.4])}, "x", note or "y")


def pixels(view: View) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(view.to_png(dpi=100))).convert("L"))


@pytest.mark.parametrize("kind", ["bars", "map", "scatter", "curves"])
def test_long_headings_are_broken_and_move_nothing(kind: str) -> None:
    short, long = pixels(view(kind, "T", "")), pixels(view(kind, SENTENCE * 2, SENTENCE * 4))
    assert long.shape[0] > short.shape[0] + 15, "further lines are added above"
    assert long.shape[1] <= max(short.shape[1], 100 * 5.9), "and the page is not wider for them"
    below = short[70:, : short.shape[1] - 40]  # below one line of title and one of note
    same = long[-below.shape[0] :, : below.shape[1]]
    if kind != "curves":  # whose axis has the note's name
        assert np.abs(same.astype(int) - below).mean() < 1.5
    assert (long[:, -8:] == 255).all(), "no letter is cut at the edge"
    assert (long[:8] == 255).all()


def test_one_point_stands_over_its_own_tick() -> None:
    sheet = CurvesView("T", {"a": Line([512], [0.2], [0.1], [0.4])}, "step", "score")._draw()
    plot = sheet.figure.axes[-1]
    assert [tick.get_text() for tick in plot.get_xticklabels()] == ["512"]
    interval = plot.collections[0].get_paths()[0].vertices[:, 1]
    assert interval.min() == pytest.approx(0.1) and interval.max() == pytest.approx(0.4)


def test_one_thing_is_one() -> None:
    assert counted(1, "error") == "1 error"
    assert counted(0, "pass") == "0 passes"
    assert counted(1024, "head") == "1,024 heads"
