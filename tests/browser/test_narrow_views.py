"""Every view in a window as narrow as a telephone: nothing sticks out, letters keep their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_static_views import WORDS, every_view, opened

NARROW = 360
SIZES = """() => {
  const root = document.querySelector(".neox-live").shadowRoot;
  return [...root.querySelectorAll(".plot")].map((plot) =>
    plot.getBoundingClientRect().width / plot.viewBox.baseVal.width);
}"""


def test_nothing_sticks_out_of_a_narrow_page(page: Any, tmp_path: Path) -> None:
    page.set_viewport_size({"width": NARROW, "height": 800})
    for name, view in every_view(WORDS).items():
        view.to_html(tmp_path / "view.html")
        opened(page, tmp_path / "view.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW, name
        for scale in page.evaluate(SIZES):
            assert scale == pytest.approx(1, abs=0.02), f"letters of {name}"
