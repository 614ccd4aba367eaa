"""Names beside a map are cut so that different ones can be told apart."""

from __future__ import annotations

import numpy as np

from neox_lab.views import HeatmapView
from neox_lab.views.marks import LABEL_LIMIT, Marks

SITES = [f"blocks.{layer}.hook_resid_post" for layer in range(12)]


def test_long_names_that_differ_in_their_middle_differ_in_the_picture() -> None:
    shown = [text for _, text in Marks.fit(SITES, 0.4).entries]
    assert len(set(shown)) == len(SITES)
    assert max(map(len, shown)) <= LABEL_LIMIT
    assert all(f".{layer}." in text for layer, text in enumerate(shown))


def test_names_that_are_thinned_out_keep_their_places() -> None:
    entries = Marks.fit([f"token {at}" for at in range(400)], 0.02).entries
    assert len(entries) < 40
    assert all(text == f"token {at}" for at, text in entries)


def test_equal_names_stay_equal() -> None:
    assert [text for _, text in Marks.fit(["·the", "·cat", "·the"], 0.4).entries] == [
        "·the",
        "·cat",
        "·the",
    ]


def test_long_names_differ_in_the_tables() -> None:
    sites = [f"blocks.3.attn.hook_result_of_head_{head}_and_all_that_follows" for head in range(3)]
    view = HeatmapView(np.arange(6.0).reshape(3, 2), sites, ["no", "yes"], "site", "label", "score")
    top, grid = view.tables()
    assert len({row[0] for row in top.rows}) == 3
    assert len({row[0] for row in grid.rows}) == 3
