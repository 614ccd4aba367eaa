from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import io
import json
import pickle
import re
import subprocess
import sys
import unicodedata
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from table_model import TableModel

import neox_lab as nl
from neox_lab import views
from neox_lab.errors import InputError
from neox_lab.views import (
    AttentionView,
    AttributionGraphView,
    BarsView,
    ConfusionView,
    CurvesView,
    ExamplesView,
    Flow,
    HeadPatterns,
    HeatmapView,
    LensPairView,
    LensView,
    Line,
    Link,
    Mark,
    NetworkView,
    PairView,
    Piece,
    PredictionsView,
    ScatterView,
    SliderView,
    StripView,
    TextExample,
    TextView,
    TreeView,
    View,
    attention,
    clean_notebook,
    notebook_faults,
    report,
    write_report,
)
from neox_lab.views.attention_maps import _fields
from neox_lab.views.drawing import AMOUNT, LESS, MORE, amounts, decimals, diverging, ink_on, number
from neox_lab.views.explorer import ExplorerView, ReadingView
from neox_lab.views.live import LIMIT, json_text, kinds, packed, policy, rounded, script
from neox_lab.views.markup import Table
from neox_lab.views.strips import KINDS
from neox_lab.views.tokens import (
    INVISIBLE_CATEGORIES,
    display_width,
    figure_text,
    figure_texts,
    html_text,
    isolated,
    label,
    labels,
    sentence,
    shorten,
    told,
)

HOSTILE = [
    "</script>",
    " <div>",
    "&amp;",
    "\"quoted'",
    "\n",
    "\t",
    "שלום",
    " 😀",
    "<|endoftext|>",
    "$x^2$",
    "⟨E2⟩",
    "日本語",
    "\x1b[31m",
    "\u202eevil",
    "<img src=x onerror=alert(1)>",
    "",
]
WORDS = ["The", " cat", " sat", " on", " the", " mat"]


def causal(layers: int, heads: int, count: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(0, 2, (layers, heads, count, count))
    scores[:, :, ~np.tri(count, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def hostile_views() -> list[View]:
    count = len(HOSTILE)
    shares = np.linspace(0.9, 0.01, count)
    candidates = [list(zip(HOSTILE, shares, strict=True))] * count
    grid = np.linspace(-1, 1, count * 2).reshape(2, count)
    counts = np.arange(count * count).reshape(count, count)
    tags = ["B-PER", "I-PER", "O", "B-LOC"] * (count // 4)
    cells = [[HOSTILE] * count] * 2
    each = np.full((2, count, count), 1 / count)
    line = Line([0, 1, 2], [1, 2, 3], [0, 1, 2], [2, 3, 4])
    heat = HeatmapView(grid, HOSTILE[:2], HOSTILE, "<layer>", "$position$", "a & b")
    return [
        AttentionView(causal(2, 2, count), HOSTILE, title="<b>$t$</b>"),
        AttentionView(causal(1, 1, count), HOSTILE),
        heat,
        SliderView(dict.fromkeys(HOSTILE, heat), "<step>", "$t$"),
        PredictionsView(HOSTILE, candidates),
        TextView(HOSTILE, HOSTILE, list(shares)),
        TextView(HOSTILE, HOSTILE, list(shares), alternatives=candidates),
        LensView(cells, each, grid**2, HOSTILE[:2], HOSTILE),
        LensPairView(
            LensView(cells, each, grid**2, HOSTILE[:2], HOSTILE),
            LensView(cells, each, grid**2, HOSTILE[:2], HOSTILE),
            [(at, at) for at in range(count)],
            grid**2,
            grid**2,
            HOSTILE[:2],
        ),
        ConfusionView(counts, HOSTILE),
        BarsView(HOSTILE, grid[0], pieces=HOSTILE, attributions=[grid[0]] * count),
        StripView.values(HOSTILE, grid[0]),
        StripView.tags(HOSTILE, tags, shares),
        ExamplesView(
            [
                TextExample(piece, HOSTILE, row, 1)
                for piece, row in zip(HOSTILE[:2], grid, strict=True)
            ]
        ),
        StripView.spans(HOSTILE, shares, shares[::-1], (1, 3)),
        PairView(
            {"<clean>": HOSTILE, "$corrupted$": HOSTILE[::-1]},
            {("<clean>", 1): ("warning", HOSTILE[0])},
            found=[{"item": 0, "wrong": piece} for piece in HOSTILE],
        ),
        NetworkView(
            HOSTILE,
            list(range(count)),
            [-1, *range(count - 1)],
            HOSTILE,
            [Link(at, at + 1, (-1) ** at / (at + 1), HOSTILE[at]) for at in range(count - 1)],
            "<i>",
            title="$x$",
            note="<b>",
        ),
        AttributionGraphView(
            HOSTILE,
            2,
            [Mark(p, "feature", at % 3 - 1, at, 0.1, p) for at, p in enumerate(HOSTILE)],
            [Flow(at, at + 1, (-1) ** at, 0.5) for at in range(count - 1)],
            {"<b>": HOSTILE[:2]},
            HOSTILE[:1],
            "$x$",
            "<b>",
            "&amp;",
        ),
        ScatterView(grid[0], grid[1], HOSTILE, "<i>", "&amp;", count, title="$x$", note="<b>"),
        CurvesView("x", dict.fromkeys(HOSTILE, line), "<i>", "&amp;", HOSTILE[:3]),
        TreeView(["name", "meaning"], {"group": [[piece, piece] for piece in HOSTILE]}),
        views.hooks(TableModel([*HOSTILE, *(f"blocks.0.{piece}" for piece in HOSTILE)])),
        ExplorerView(
            ReadingView(
                "".join(HOSTILE),
                AttentionView(causal(1, 2, count), HOSTILE),
                LensView(cells, each, grid**2, HOSTILE[:2], HOSTILE),
                HOSTILE,
                None,
            ),
            model=HOSTILE[0],
            code=HOSTILE[0],
        ),
    ]


def test_every_view_is_tried() -> None:
    known = {item for item in vars(views).values() if isinstance(item, type)}
    drawn = {item for item in known if issubclass(item, views.View)} - {views.View}
    assert drawn == {type(view) for view in hostile_views()}


def drawn_texts(view: View) -> str:
    return "\n".join(text.get_text() for text in view._draw().axes.texts)


@pytest.fixture(scope="module")
def small() -> AttentionView:
    return AttentionView(causal(2, 2, 4), WORDS[:4], layers=[3, 5])


# Tokens


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        ("cat", "cat"),
        (" cat", "·cat"),
        ("  cat ", "··cat·"),
        ("    ", "····"),
        ("\n", "⏎"),
        ("\n\n", "⏎⏎"),
        ("\tif", "⇥if"),
        ("two words", "two words"),
        ("\x1b[0m", "⟨U+001B⟩[0m"),
        ("\r\n", "⟨U+000D⟩⏎"),
        ("\u200b", "⟨U+200B⟩"),
        ("a\u00a0b", "a⟨U+00A0⟩b"),
        ("\ud83d", "⟨U+D83D⟩"),
        ("⟨E2⟩", "⟨E2⟩"),
        ("\u0301", "◌\u0301"),
        ("", "∅"),
    ],
)
def test_a_label_shows_every_character(piece: str, shown: str) -> None:
    assert label(piece) == shown


@given(st.text())
@example("\u0301")
@example(" \u202e ")
def test_a_label_is_one_visible_line_and_its_own_label(piece: str) -> None:
    shown = label(piece)
    assert shown
    hidden = [c for c in shown if unicodedata.category(c) in INVISIBLE_CATEGORIES and c != " "]
    assert not hidden
    assert shown == shown.strip(" ")
    assert label(shown) == shown


@given(st.text(alphabet="ab⟨⟩E2· "), st.integers(3, 30))
def test_a_shortened_text_fits_and_keeps_groups_whole(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short) <= limit
    assert short == text if len(text) <= limit else "…" in short
    kept = short.split("…")
    if "…" in short:
        assert text.startswith(kept[0])
        assert text.endswith(kept[1])


def test_shortening_is_in_the_middle_and_spares_byte_groups() -> None:
    assert shorten("antidisestablishmentarianism", 11) == "antid…anism"
    assert shorten("⟨E2⟩⟨80⟩⟨99⟩", 9) == "⟨E2⟩…⟨99⟩"


def test_text_for_figures_has_no_formulas_and_no_missing_glyphs() -> None:
    assert figure_text("$x$") == r"\$x\$"
    assert figure_text("日") == "⟨U+65E5⟩"
    assert figure_text("日本語", 9) == "⟨U+65E5⟩…"


def test_text_for_pages_is_escaped_and_keeps_its_direction_to_itself() -> None:
    assert (
        html_text("<a href=\"x\" id='y'>&") == "&lt;a href=&quot;x&quot; id=&#x27;y&#x27;&gt;&amp;"
    )
    assert isolated("cat") == "cat"
    assert isolated("שלום") == "\u2068שלום\u2069"
    assert display_width("日本a\u0301") == 5


# What all views share


class Sanitised(HTMLParser):
    """Checks that HTML holds only what JupyterLab leaves in the output of an untrusted notebook."""

    KEPT = frozenset(
        "div p strong u sub span small table thead tbody tr th td details summary img br".split()
    )
    ATTRIBUTES = frozenset({"class", "style", "title", "src", "alt", "width", "data-kind", "open"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.KEPT, tag
        assert {name for name, _ in attrs} <= self.ATTRIBUTES, attrs
        self.seen.append(tag)
        if tag == "img":
            given = dict(attrs)
            assert (given["src"] or "").startswith("data:image/png;base64,")
            assert len(given["alt"] or "") > 20
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("view", hostile_views(), ids=lambda view: type(view).__name__)
@pytest.mark.filterwarnings("error")
def test_hostile_tokens_stay_text_in_every_view(view: View) -> None:
    bundle = view._repr_mimebundle_()
    assert list(bundle) == ["text/plain", "text/html", "image/png"]
    scripts = re.findall(r"<script.*?</script>", bundle["text/html"], re.DOTALL)
    assert len(scripts) == 2
    assert not any("<img" in script or "alert(1)>" in script for script in scripts)
    page = Sanitised()
    page.feed(re.sub(r"<script.*?</script>", "", bundle["text/html"], flags=re.DOTALL))
    page.close()
    assert not page.open
    assert page.seen[:3] == ["div", "div", "img"]
    assert "table" in page.seen
    for piece in ("</script>", "&amp;", "<|endoftext|>", "⟨U+202E⟩"):
        assert piece in page.text
    assert "⏎" in page.text
    assert "\x1b" not in bundle["text/plain"] + bundle["text/html"]
    assert "\u202e" not in bundle["text/plain"] + bundle["text/html"]
    assert len(bundle["image/png"]) <= 150_000
    assert len(bundle["text/html"]) <= 1_000_000
    assert view.title in bundle["text/plain"]


@pytest.mark.parametrize("dpi", ["200", 0, -1, 1, float("nan"), 1e9, None, True])
def test_dots_an_inch_that_nobody_can_draw(small: AttentionView, dpi: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^dpi=.*expected a number from 10 to 1200"):
        small.to_png(tmp_path / "a.png", dpi=dpi)
    assert not list(tmp_path.iterdir())
    assert small.to_png(dpi=10)


def test_the_folder_of_a_picture_is_made(small: AttentionView, tmp_path: Path) -> None:
    small.to_png(tmp_path / "new" / "deep" / "a.png", dpi=50)
    small.to_csv(tmp_path / "other" / "a.csv")
    with pytest.raises(InputError, match="ending"):
        small.to_svg(tmp_path / "none" / "a.png")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "new/deep/a.png",
        "other/a.csv",
    ]


def test_every_format_is_what_it_says(small: AttentionView, tmp_path: Path) -> None:
    png = small.to_png(tmp_path / "a.png", dpi=60)
    assert (tmp_path / "a.png").read_bytes() == png
    assert Image.open(io.BytesIO(png)).format == "PNG"
    svg = small.to_svg(str(tmp_path / "a.svg"))
    assert svg.startswith("<?xml")
    assert (tmp_path / "a.svg").read_text("utf-8") == svg
    pdf = small.to_pdf(tmp_path / "a.pdf")
    assert pdf.startswith(b"%PDF")
    assert (tmp_path / "a.pdf").read_bytes() == pdf
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_larger_resolution_is_a_larger_picture(small: AttentionView) -> None:
    sizes = [Image.open(io.BytesIO(small.to_png(dpi=dpi))).size for dpi in (50, 100)]
    assert sizes[1][0] == pytest.approx(2 * sizes[0][0], abs=2)


def test_csv_is_the_frame(small: AttentionView, tmp_path: Path) -> None:
    import pandas as pd

    text = small.to_csv(tmp_path / "a.CSV")
    assert (tmp_path / "a.CSV").read_text("utf-8") == text
    back = pd.read_csv(io.StringIO(text), keep_default_na=False)
    pd.testing.assert_frame_equal(back, small.frame, check_dtype=False)


def test_a_html_file_is_a_whole_page_and_a_fragment_is_not(
    small: AttentionView, tmp_path: Path
) -> None:
    fragment = small.to_html()
    assert fragment.startswith('<div class="neox-view" data-kind="attention">')
    page = small.to_html(tmp_path / "a.html")
    assert page == small.to_html(standalone=True) == (tmp_path / "a.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert fragment in page


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (AttentionView(causal(1, 2, 3), WORDS[:3]) for _ in range(2))
    assert first._repr_mimebundle_() == second._repr_mimebundle_()
    assert first.to_svg() == second.to_svg()
    assert first.to_pdf() == second.to_pdf()


def test_the_users_matplotlib_style_neither_shows_nor_changes(small: AttentionView) -> None:
    import matplotlib

    before = small.to_png(dpi=50)
    with matplotlib.rc_context({"font.family": "monospace", "font.size": 30}):
        assert small.to_png(dpi=50) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_only_the_asked_kinds_are_given(small: AttentionView) -> None:
    assert small._repr_mimebundle_(include={"text/plain"}) == {"text/plain": repr(small)}
    assert list(small._repr_mimebundle_(exclude={"image/png"})) == ["text/plain", "text/html"]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "html", "csv"])
def test_a_wrong_ending_is_refused_before_anything_is_written(
    small: AttentionView, tmp_path: Path, ending: str
) -> None:
    with pytest.raises(InputError, match=rf"ending in '\.{ending}'.*jpeg"):
        getattr(small, f"to_{ending}")(tmp_path / "a.jpeg")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(
    small: AttentionView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.csv"
    target.write_text("old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        small.to_csv(target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert target.read_text() == "old"


def test_nothing_heavy_is_imported_early_and_pyplot_never() -> None:
    code = (
        "import sys, torch; import neox_lab.views as views;"
        "assert not {'matplotlib', 'pandas', 'PIL'} & set(sys.modules);"
        "views.HeatmapView([[1.0]], ['a'], ['b'])._repr_mimebundle_();"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Attention


def test_the_attention_frame_has_every_causal_weight_once(small: AttentionView) -> None:
    frame = small.frame
    columns = ["layer", "head", "query_pos", "query", "key_pos", "key", "weight"]
    assert list(frame.columns) == columns
    assert len(frame) == 2 * 2 * (4 * 5 // 2)
    assert set(frame["layer"]) == {3, 5}
    for row in frame.itertuples():
        at = small.layers.index(row.layer)
        assert row.weight == small.patterns[at, row.head, row.query_pos, row.key_pos]
        assert row.query == WORDS[row.query_pos]
        assert row.key == WORDS[row.key_pos]


def test_attention_that_looks_ahead_is_not_hidden() -> None:
    view = AttentionView(np.full((1, 1, 2, 2), 0.5), ["a", "b"])
    assert not view.causal
    assert len(view.frame) == 4
    colours, _ = _fields(view, view.patterns[0, 0], 2.0)
    assert (colours[0, 1] == colours[1, 0]).all()


def test_each_head_is_measured_over_all_queries_but_the_first() -> None:
    uniform = np.tri(4) / np.arange(1, 5)[:, None]
    previous = np.eye(4, k=-1) + np.diag([1, 0, 0, 0])
    view = AttentionView(np.stack([uniform, previous])[None], WORDS[:4])
    uniform_row, previous_row = (row for _, row in view.head_frame.iterrows())
    assert uniform_row["entropy_bits"] == pytest.approx((1 + np.log2(3) + 2) / 3)
    assert uniform_row["first"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert uniform_row["previous"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert (previous_row["entropy_bits"], previous_row["previous"]) == (0, 1)
    assert previous_row["first"] == pytest.approx(1 / 3)
    rows = view.tables()[0].rows
    assert rows[1][2:5] == ["0.00", "33 %", "100 %"]
    assert rows[1][5].startswith("·cat@1 → The@0 1.00; ·sat@2 → ·cat@1 1.00")


def test_layers_and_heads_are_chosen_by_their_numbers(small: AttentionView) -> None:
    layer = small.layer(5)
    assert (layer.layers, layer.heads) == ([5], [0, 1])
    head = small.head(5, 1)
    assert (head.layers, head.heads) == ([5], [1])
    assert (head.patterns[0, 0] == small.patterns[1, 1]).all()
    assert head.title == "Attention in layer 5, head 1"
    assert head.head(5, 1).alt_text == head.alt_text
    with pytest.raises(InputError, match=r"no layer 0; it has layers \[3, 5\]"):
        small.layer(0)
    with pytest.raises(InputError, match="no head 7"):
        small.head(3, 7)


def test_one_token_and_tensors_of_any_type_are_drawn() -> None:
    view = AttentionView(torch.ones(1, 2, 1, 1, dtype=torch.bfloat16), ["x"])
    assert view.to_png(dpi=50)
    assert view.tables()[0].rows[0][2:5] == ["–", "–", "–"]


def test_the_largest_weight_is_named_in_the_alternative_text() -> None:
    pattern = np.tri(4) * 0.01
    pattern[3, 1] = 0.875
    text = AttentionView(pattern[None, None], WORDS[:4], layers=[7]).alt_text
    assert "0.88, in layer 7, head 0, from ·on@3 to ·cat@1." in text


def test_a_thin_line_in_a_long_text_does_not_vanish() -> None:
    count = 1000
    pattern = np.zeros((count, count), dtype=np.float32)
    pattern[777, 333] = 1
    view = AttentionView(pattern[None, None], ["x"] * count)
    colours, factor = _fields(view, pattern, 2.0)
    assert factor == 5
    dark, bright = colours[-1, 0], colours[777 // factor, 333 // factor]
    assert bright[:3].sum() > dark[:3].sum() + 1


@pytest.mark.parametrize(
    ("patterns", "pieces", "options", "message"),
    [
        (np.ones((2, 2)), ["a"], {}, r"axes \[layer, head, query, key\]; got shape \(2, 2\)"),
        (np.ones((1, 1, 1, 2)), ["a", "b"], {}, "as many queries as keys"),
        (np.ones((1, 1, 2, 2)), ["a"], {}, "pieces has 1 entries; needed: 2"),
        (np.ones((1, 1, 2, 2)), "ab", {}, "list of strings"),
        (np.ones((1, 1, 2, 2)), [1, 2], {}, "list of strings"),
        (-np.ones((1, 1, 1, 1)), ["a"], {}, "not negative"),
        (np.full((1, 1, 1, 1), np.nan), ["a"], {}, "finite"),
        (np.ones((2, 1, 1, 1)), ["a"], {"layers": [1, 1]}, "2 different numbers"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(
    patterns: Any, pieces: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        AttentionView(patterns, pieces, **options)


def test_a_hundred_heads_stay_within_the_budget() -> None:
    html = AttentionView(causal(12, 12, 20), WORDS * 3 + ["x", "y"]).to_html()
    assert len(html) <= 1_000_000
    assert "144 rows" in html


@pytest.mark.slow
def test_a_thousand_heads_say_which_are_shown() -> None:
    view = AttentionView(causal(32, 32, 64), ["token"] * 64)
    html = view.to_html()
    assert len(html) <= 1_000_000
    assert "The first 200 of 1024 rows; .head_frame has them all." in html
    assert "Only layers 0, 3, 6" in drawn_texts(view)


# Heat maps


def test_the_cells_farthest_from_the_centre_come_first() -> None:
    values = np.array([[0.1, -0.9, 0.2], [0.5, np.nan, 0.0]])
    measured = ~np.isnan(values)
    names = ["0", "1"], [" a", " b", " a"], "layer", "position", "effect"
    view = HeatmapView(values, *names, measured=measured)
    top = view.tables()[0]
    assert [row[3] for row in top.rows] == ["−0.90", "0.50", "0.20", "0.10", "0.00"]
    assert top.rows[0][:3] == ["0", "1", "·b"]
    assert "farthest from 0 is −0.90, at layer 0, position ·b." in view.alt_text
    assert "1 cells were not measured" in view.alt_text
    assert view.frame["position"].tolist() == [" a", " b", " a"] * 2
    assert view.frame["position_index"].tolist() == [0, 1, 2] * 2
    np.testing.assert_array_equal(view.frame["effect"], values.astype(np.float32).ravel())


def test_what_was_not_measured_is_told_apart_from_nan() -> None:
    values = np.array([[0.5, np.nan, 1.0]])
    view = HeatmapView(values, ["0"], ["a", "b", "c"], measured=[[True, True, False]])
    assert view.data()["text"] == [["0.50", "NaN", "–"]]
    assert view.data()["level"][0][1:] == [None, None]
    assert all(text in drawn_texts(view) for text in ("NaN", "–", "0.50"))
    said = view.data()["notes"][0]
    assert "Grey was not measured." in said and "Grey with NaN is not a number." in said
    assert "1 cells were not measured. 1 cells are NaN." in view.alt_text
    whole = HeatmapView(values, ["0"], ["a", "b", "c"])
    assert "not measured" not in whole.alt_text + whole.data()["notes"][0]
    with pytest.raises(InputError, match="measured has the shape"):
        HeatmapView(values, ["0"], ["a", "b", "c"], measured=[[True]])


def test_infinity_is_at_the_end_of_the_scale() -> None:
    view = HeatmapView([[0.5, -1.0, np.inf, -np.inf]], ["0"], ["a", "b", "c", "d"])
    assert view.data()["text"] == [["0.50", "−1.00", "∞", "−∞"]]
    assert view.data()["level"] == [[191, 0, 255, 0]]
    assert (view.data()["low"], view.data()["high"]) == ("−1.00", "1.00")
    assert all(text in drawn_texts(view) for text in ("∞", "−∞"))
    assert "The farthest from 0 is ∞, at row 0, column c." in view.alt_text
    assert HeatmapView([[np.inf]], ["r"], ["c"], centre=None).to_png()


def test_bars_without_a_finite_length_are_said() -> None:
    view = BarsView(["a", "b", "c"], [0.5, np.nan, -np.inf])
    assert view.data()["texts"] == ["0.500", "NaN", "−∞"]
    assert view.data()["values"] == [0.5, 0, 0]
    assert all(text in drawn_texts(view) for text in ("NaN", "−∞"))
    assert "b NaN" in view.alt_text


def test_a_repeated_label_is_told_with_its_place() -> None:
    view = HeatmapView([[0.0, 0.0, 1.0]], ["0"], [" a", " b", " a"], "layer", "position")
    assert "position ·a@2." in view.alt_text


def test_white_is_the_centre_and_both_sides_reach_equally_far() -> None:
    view = HeatmapView([[1.0, 0.75]], ["r"], ["a", "b"], centre=1.0)
    palette, norm = view._colours()
    assert (norm.vmin, norm.vmax) == (0.75, 1.25)
    assert palette(norm(1.0))[:3] == pytest.approx((1, 1, 1), abs=0.02)
    blue, orange = palette(norm(0.75)), palette(norm(1.25))
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]


@pytest.mark.parametrize("values", [[[0.0]], [[np.nan]], [[2.5, 2.5]]])
@pytest.mark.parametrize("centre", [0.0, None])
@pytest.mark.filterwarnings("error")
def test_maps_without_contrast_are_drawn(values: Any, centre: float | None) -> None:
    view = HeatmapView(values, ["r"], ["a", "b"][: len(values[0])], centre=centre)
    assert view.to_png(dpi=50)
    assert view.title in repr(view)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], ["r"], ["c"]), r"axes \[row, column\]"),
        (([[1.0]], ["r", "s"], ["c"]), "row_labels has 2 entries; needed: 1"),
        (([[1.0]], ["r"], ["c"], "layer", "layer"), "three different names"),
        ((np.ones((0, 2)), [], ["c", "d"]), "empty"),
    ],
)
def test_heat_maps_that_make_no_sense_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HeatmapView(*arguments)


@pytest.mark.parametrize(
    ("value", "largest", "shown"),
    [
        (1.234, 1.234, "1.23"),
        (-0.001, 1.0, "0.00"),
        (-0.9, 0.9, "−0.90"),
        (123.4, 123.4, "123"),
        (0.00123, 0.00123, "0.0012"),
        (float("nan"), 1.0, "–"),
    ],
)
def test_numbers_show_the_digits_that_matter(value: float, largest: float, shown: str) -> None:
    assert number(value, decimals(largest)) == shown


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_text_on_a_colour_has_contrast(colour: tuple[float, float, float]) -> None:
    linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in colour]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    ink = {"white": 1.0, "black": 0.0}[ink_on(colour)]
    contrast = (max(ink, luminance) + 0.05) / (min(ink, luminance) + 0.05)
    assert contrast > 4.5


# Predictions and text


def test_candidates_are_ranked_and_what_came_is_found() -> None:
    view = PredictionsView(
        ["The", " cat", " sat"],
        [[(" dog", 0.3), (" cat", 0.2)], [], [(" on", 0.25), (" down", 0.5)]],
    )
    assert view.frame["candidate"].tolist() == [" dog", " cat", " down", " on"]
    assert view.frame["rank"].tolist() == [1, 2, 1, 2]
    assert view.frame["came"].tolist() == [False, True, None, None]
    drawn, every = view.tables()
    assert drawn.rows == [["1", "·down", "50.0 %"], ["2", "·on", "25.0 %"]]
    assert [row[2] for row in every.rows] == ["2", "–"]
    assert "after ·sat@2: ·down 50.0 %, ·on 25.0 %." in view.alt_text
    assert "after The@0" in view.at(0).alt_text


@pytest.mark.parametrize(
    ("pieces", "candidates", "position", "message"),
    [
        (["a"], [[("b", 3.0)]], -1, "between 0 and 1"),
        (["a"], [[("b", -0.1)]], -1, "between 0 and 1"),
        (["a"], [[(3, 0.1)]], -1, "a piece is a string"),
        (["a", "b"], [[("b", 0.1)]], -1, "pieces has 2 entries; needed: 1"),
        (["a"], [[("b", 0.1)]], 1, "no position 1 in a text of 1"),
        (["a"], [[]], -1, "no candidates to draw at position 0"),
    ],
)
def test_predictions_that_make_no_sense_are_refused(
    pieces: Any, candidates: Any, position: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        PredictionsView(pieces, candidates, position)


def test_prompt_and_continuation_differ_in_more_than_colour() -> None:
    view = TextView(["Once", " upon"], [" a", " <b>"], [0.5, 0.0001])
    html = view.to_html()
    running = re.search(r"<p>(Once upon)<strong><u>(.*)</u></strong></p>", html)
    assert running
    assert re.sub(r"<[^>]*>", "", running[2]) == " a &lt;b&gt;"
    assert 'title="50.0 %"' in running[2]
    assert view.frame["part"].tolist() == ["prompt"] * 2 + ["continuation"] * 2
    assert view.frame["probability"].isna().tolist() == [True, True, False, False]
    assert view.tables()[0].rows == [["2", "·a", "50.0 %"], ["3", "·<b>", "< 0.1 %"]]
    assert "Least likely token added: ·<b>@3" in view.alt_text


def test_a_prompt_alone_and_a_long_text_are_drawn() -> None:
    assert TextView(["x"], [], []).to_png(dpi=50)
    long = TextView(["a", "\n"] * 200, [], [])
    assert "The last 300 of 400 tokens" in drawn_texts(long)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "both empty"),
        ((["a"], ["b"], []), "continuation has 1 entries; needed: 0"),
        ((["a"], ["b"], [2.0]), "between 0 and 1"),
        (("ab", [], []), "list of strings"),
    ],
)
def test_texts_that_make_no_sense_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextView(*arguments)


# Tables and reports


def test_a_table_is_aligned_in_a_terminal_and_says_what_it_leaves_out() -> None:
    rows = [["日本", "1.0"], ["a", "10.0"], *([["b", "2"]] * 20)]
    lines = Table("T", [("token", "l"), ("n", "r")], rows, "A note.").to_text().split("\n")
    assert lines[:4] == ["T", "  token     n", "  日本    1.0", "  a      10.0"]
    assert lines[-2:] == ["  (The first 16 of 22 rows; .frame has them all.)", "  (A note.)"]


def test_a_wide_table_says_how_many_columns_are_missing() -> None:
    table = Table("T", [(f"column {n}", "r") for n in range(40)], [["1.00"] * 40])
    text = table.to_text()
    assert max(map(len, text.split("\n"))) <= 115
    assert re.search(r"Columns that do not fit: \d+; they are in \.frame\.", text)


def test_a_report_is_one_page_that_asks_for_nothing(small: AttentionView, tmp_path: Path) -> None:
    sections = [
        ("<h> & more", "A <b>paragraph</b>.", small.head(3, 0)),
        ("Text", None, "line\n<script>alert(1)</script>"),
        ("Nothing", "Only words.", None),
    ]
    page = report("</title><script>x</script>", sections)
    assert page.count("<script") == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "A &lt;b&gt;paragraph&lt;/b&gt;." in page
    plain = page.replace("http://www.w3.org/2000/svg", "")  # a name, nothing is fetched
    assert not re.search(r"https?:|url\(|@import|<link", plain)
    assert re.findall(r'src="(.{15})', page) == ["data:image/png;"]
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    path = write_report(tmp_path / "r.html", "T", sections)
    assert path.read_text("utf-8") == report("T", sections)
    with pytest.raises(InputError, match=r"\.html"):
        write_report(tmp_path / "r.txt", "T", sections)


# What the browser gets


def data_of(html: str) -> dict[str, Any]:
    """The JSON inside a fragment."""
    found = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


@given(st.recursive(st.text() | st.floats() | st.integers() | st.booleans(), st.lists))
def test_json_inside_a_script_cannot_end_it(value: Any) -> None:
    text = json_text({"value": value, "tag": "</script><!--"})
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text)["tag"] == "</script><!--"


def test_json_has_no_nan() -> None:
    assert json_text([float("nan"), np.inf, np.float32(0.5)]) == "[null,null,0.5]"
    assert rounded(np.array([1 / 3, np.nan], dtype=np.float32), 3) == [0.333, None]


def unpacked(view: AttentionView) -> np.ndarray:
    """The weights as ``attention.js`` reads them `[layer, head, weight]`."""
    data = data_of(view.to_html())
    levels = np.frombuffer(zlib.decompress(base64.b64decode(data["weights"])), dtype=np.uint8)
    shape = len(data["layers"]), len(data["heads"]), -1
    return levels.reshape(shape).astype(np.float64) / 255 * data["top"]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_weights_reach_the_browser_within_the_stated_step(scale: float) -> None:
    view = AttentionView(causal(2, 3, 20) * scale, ["x"] * 20)
    exact = view.patterns[:, :, np.tri(20, dtype=bool)]
    assert np.abs(unpacked(view) - exact).max() <= view.top / 510 + 1e-6
    assert "rounded to ±0.002" in view.data()["notes"][0] or scale > 1
    both_ways = AttentionView(np.full((1, 1, 4, 4), 0.25), WORDS[:4])
    assert unpacked(both_ways).shape == (1, 1, 16)


def test_what_hardly_repeats_and_what_does_are_both_packed_small() -> None:
    noise = np.random.default_rng(0).integers(0, 8, 10_000).astype(np.uint8)
    for levels in (noise, np.zeros(10_000, dtype=np.uint8)):
        text = packed(levels)
        assert zlib.decompress(base64.b64decode(text)) == levels.tobytes()
        assert len(text) <= len(base64.b64encode(zlib.compress(levels.tobytes(), 9)))


def test_too_many_heads_are_a_stated_subset() -> None:
    view = AttentionView(causal(12, 12, 256), ["x"] * 256)
    data = view.data()
    assert 1 <= len(data["layers"]) < 12
    assert data["layers"][0] == 0
    assert f"only layers {', '.join(map(str, data['layers']))} of 12" in data["notes"][0]
    chosen = AttentionView(view.patterns[data["layers"]], ["x"] * 256, data["layers"])
    assert chosen.data()["weights"] == data["weights"]


def large_views() -> list[View]:
    many = ["token"] * 5_000
    shares = np.full(5_000, 0.25)
    ranked = [[(f"candidate {n}", 0.1) for n in range(10)]] * 5_000
    return [
        HeatmapView(np.ones((400, 400)), ["r"] * 400, ["c"] * 400),
        ConfusionView(np.ones((300, 300)), [f"class {n}" for n in range(300)]),
        StripView.values(many, shares),
        StripView([Piece("x" * 300_000)]),
        TextView(many, many, list(shares), alternatives=ranked),
        PredictionsView(many, ranked),
        BarsView(many, shares, pieces=many, attributions=np.ones((5_000, 5_000))),
        CurvesView("many", {"line": Line(np.arange(50_000), np.ones(50_000))}, "x", "y"),
        LensView(
            [[["a"] * 5] * 2_000] * 6,
            np.full((6, 2_000, 5), 0.1),
            np.ones((6, 2_000)),
            list("123456"),
            ["t"] * 2_000,
        ),
        TreeView(["name"], {"group": [["x"]] * 9_000}),
        AttributionGraphView(
            ["token"] * 60,
            12,
            [
                Mark(f"L{at % 12}F{at}", "feature", at % 12, at % 60, 0.1, "x" * 200)
                for at in range(5_000)
            ],
            [Flow(at, at + 1, 1.0, 0.1) for at in range(4_999)] * 6,
        ),
        NetworkView(
            ["part"] * 5_000,
            list(range(5_000)),
            [0] * 5_000,
            ["row"] * 5_000,
            [Link(at, at + 1, 1.0) for at in range(4_999)],
            "score",
        ),
    ]


@pytest.mark.parametrize("view", large_views(), ids=lambda view: type(view).__name__)
def test_very_large_results_stay_small_and_say_what_is_left_out(view: View) -> None:
    data = view.data()
    assert len(json_text(data)) < 900_000
    notes = " ".join(data["notes"])
    assert re.search(r"only the (first|last)|every \d+th", notes) or isinstance(view, StripView)
    rest = view._running_text() + "".join(table.to_html() for table in view.tables())
    assert len(json_text(data)) + len(rest) + 200_000 < LIMIT


def test_a_page_allows_our_scripts_and_no_other() -> None:
    for kind in kinds():
        digest = base64.b64encode(hashlib.sha256(script(kind).encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy()
        assert "</script" not in script(kind)
    page = HeatmapView([[1.0]], ["r"], ["c"]).to_html(standalone=True)
    assert "unsafe-inline'; script-src 'sha256-" in page


def test_a_network_marks_the_inputs_of_heads_and_what_its_signs_mean() -> None:
    links = [Link(0, 1, -2.0, "q"), Link(0, 1, 1.0, "v"), Link(0, 2, -1.0, "k"), Link(1, 2, 1, "w")]
    view = NetworkView(
        ["a", "b", "c"], [0, 1, 2], [0, 1, 2], ["x"] * 3, links, "score", signs=("helps", "hurts")
    )
    written = {text.get_text(): text for text in view._draw().axes.texts}
    places = view._places()
    for letter, part, right in (("q", 1, -1), ("v", 1, 1), ("k", 2, 0)):
        x, y = written[letter].get_position()
        assert np.sign(round(x - places[part][0], 6)) == right and y < places[part][1]
        ends = [
            tuple(path.vertices[-1])
            for lines in view._draw().axes.collections
            for path in lines.get_paths()
        ]
        assert any(abs(end - x) < 1e-6 and 0 < y - top < 0.1 for end, top in ends)
    assert "w" not in written  # no input of a head
    assert (
        written["helps"].get_color(),
        written["hurts (dashed)"].get_color(),
    ) == (LESS, MORE)
    assert view.data()["signs"] == ["helps", "hurts"]
    plain = NetworkView(["a", "b"], [0, 1], [0, 0], ["x"] * 2, [Link(0, 1, 1.0)], "score")
    written = {text.get_text() for text in plain._draw().axes.texts}
    assert "above 0" in written and "below 0" not in written  # as counts are
    with pytest.raises(InputError, match="signs"):
        NetworkView(["a", "b"], [0, 1], [0, 0], ["x"] * 2, links[:1], "score", signs=("one",))


@pytest.mark.parametrize(
    ("values", "kind"),
    [([-3.0, 1.0, 1.0], "more"), ([-1.0, 4.0, -1.0], "less"), ([2.0, 1.0], ""), ([-2.0], "")],
)
def test_a_print_in_grey_tells_edges_apart(values: list[float], kind: str) -> None:
    links = [Link(0, 1, value) for value in values]
    network = NetworkView(["a", "b"], [0, 1], [0, 0], ["x", "y"], links, "score")
    marks = [Mark("a", "token", -1, 0, 1.0), Mark("b", "logit", 1, 0, 1.0)]
    flows = [Flow(0, 1, value, abs(value) / 10) for value in values]
    graph = AttributionGraphView(["a"], 1, marks, flows)
    for view in (network, graph):
        assert view.data()["dashed"] == kind
        styles = [
            style[1] for each in view._draw().axes.collections for style in each.get_linestyle()
        ]
        assert any(style is not None for style in styles) == bool(kind)


def test_a_network_takes_where_its_heads_look_and_keeps_it_small() -> None:
    rng = np.random.default_rng(0)
    given = rng.uniform(size=(2, 3, 3)).astype("float32") * np.tri(3, dtype="float32")
    network = functools.partial(
        NetworkView, ["a", "b", "c"], [0, 1, 2], [0, 1, 2], ["x"] * 3, [Link(0, 1, 1.0)], "score"
    )
    view = network(attention=HeadPatterns([2, 1], given, ["p", "q", "</script>"], "this"))
    looks = view.data()["attention"]
    assert (looks["parts"], looks["pieces"]) == ([2, 1], ["p", "q", "</script>"])
    levels = np.frombuffer(zlib.decompress(base64.b64decode(looks["weights"])), np.uint8)
    want = 255 * given[:, np.tri(3, dtype=bool)].ravel()
    assert np.abs(levels - want).max() <= 0.5
    assert "on this, rounded to ±0.002" in view.data()["notes"][-1]
    assert "</script>" not in view.to_html().replace("</script>", "", 2)
    many = rng.uniform(size=(3, 400, 400)).astype("float32")
    small = network(attention=HeadPatterns([0, 1, 2], many, ["p"] * 400)).data()
    assert len(small["attention"]["weights"]) <= 300_000
    assert f"{len(small['attention']['parts'])} of 3 heads have one" in small["notes"][-1]
    assert network().data()["attention"] is None and network().data()["pages"] == [""] * 3
    for wrong in (
        HeadPatterns([3], given[:1], ["p"] * 3),
        HeadPatterns([1], given, ["p"] * 3),
        HeadPatterns([1, 2], -given, ["p"] * 3),
        HeadPatterns([1, 2], given, ["p"] * 2),
        given,
    ):
        with pytest.raises(InputError):
            network(attention=wrong)
    with pytest.raises(InputError, match="pages has 1"):
        network(pages=["x"])


def test_scripts_know_no_network_and_write_no_markup() -> None:
    for kind in kinds():
        text = script(kind).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|import",
            text,
        ), kind


def test_colours_in_the_browser_are_those_of_the_picture() -> None:
    import matplotlib

    text = script("grid")
    palettes = {
        "viridis": matplotlib.colormaps["viridis"],
        "diverging": diverging(),
        "teals": amounts(),
    }
    for name, palette in palettes.items():
        found = re.search(rf"const {name} = ramp\(\s*\"([^\"]*)\"", text)
        assert found
        stops = np.array(
            [[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in found[1].split()]
        )
        shares = np.linspace(0, 1, 256)
        grid = np.linspace(0, 1, len(stops))
        ours = np.stack([np.interp(shares, grid, stops[:, c]) for c in range(3)], axis=-1)
        assert np.abs(ours / 255 - np.asarray(palette(shares))[:, :3]).max() < 0.025


def test_less_is_blue_and_more_is_orange_in_every_picture() -> None:
    from matplotlib.colors import to_hex, to_rgb

    signed = HeatmapView([[-1.0, 0.0, 1.0]], ["a"], ["x", "y", "z"])
    palette, norm = signed._colours()
    for value, colour in ((-2 / 3, LESS), (2 / 3, MORE)):
        assert palette(norm(value))[:3] == pytest.approx(to_rgb(colour), abs=0.01)

    def bars(values: list[float]) -> list[str]:
        patches = BarsView(["a", "b"], values)._draw().axes.patches
        return [to_hex(patch.get_facecolor()) for patch in patches]

    assert bars([-1.0, 1.0]) == [LESS, MORE]
    assert bars([0.5, 1.0]) == [AMOUNT, AMOUNT]  # no sign, no colour of a sign
    strip = StripView.values(["a", "b"], [-1.0, 1.0])
    assert list(strip.colours.values()) == [LESS, MORE]
    style = script("bars")
    for kind, colour in (("less", LESS), ("more", MORE)):
        assert f".track i.{kind} {{ background: {colour}; }}" in style
    assert f'const [LESS, MORE] = ["{LESS}", "{MORE}"]' in style


# Strips, bars and rows


def test_values_are_signed_and_told() -> None:
    view = StripView.values(["a", "b", "c"], [0.5, -0.25, np.nan], value_name="gain")
    assert [piece.kind for piece in view.pieces] == ["more than 0", "less than 0", None]
    assert [piece.note for piece in view.pieces] == ["0.50", "−0.25", ""]
    assert view.pieces[1].strength == pytest.approx(0.5)
    assert view.frame["gain"].tolist()[:2] == [0.5, -0.25]


def test_tags_are_printed_as_they_are_and_coloured_by_kind() -> None:
    view = StripView.tags(["Anna", " Holm", " left"], ["B-PER", "I-PER", "O"], [0.9, 0.8, 1])
    assert [(piece.note, piece.kind) for piece in view.pieces] == [
        ("B-PER", "PER"),
        ("I-PER", "PER"),
        ("", None),
    ]
    assert view.frame["tag"].tolist() == ["B-PER", "I-PER", "O"]


def test_spans_carry_two_bars_and_box_the_answer() -> None:
    view = StripView.spans(["in", " Oslo", "."], [0.1, 0.9, 0], [0, 0.8, 0.2], (1, 1))
    assert [piece.kind for piece in view.pieces] == [None, "answer", None]
    assert view.data()["pieces"][1]["marks"] == [["start", 0.9, "90.0 %"], ["end", 0.8, "80.0 %"]]
    assert view.frame.columns.tolist() == ["position", "token", "start", "end"]


def test_alternatives_are_ranked_and_what_came_is_marked() -> None:
    view = TextView(["a"], [" b"], [0.3], alternatives=[[(" b", 0.3), (" c", 0.6)]])
    row = view.data()["pieces"][1]["alternatives"]
    assert row == [("·c", 0.6, "60.0 %", False), ("·b", 0.3, "30.0 %", True)]
    assert view.tables()[0].rows == [["1", "·b", "30.0 %", "·c 60.0 %; ·b 30.0 %"]]
    with pytest.raises(InputError, match="alternatives has 0 entries; needed: 1"):
        TextView(["a"], [" b"], [0.3], alternatives=[])


def test_attributions_belong_to_names() -> None:
    view = BarsView(["x", "y"], [0.2, 0.8], pieces=["a", "b"], attributions=[[1, 2], [3, 4]])
    assert view.attribution_frame["attribution"].tolist() == [1, 2, 3, 4]
    assert view.tables()[1].rows == [["0", "a", "3.000"], ["1", "b", "4.000"]]
    assert "What speaks for y" in drawn_texts(view) and "4.00" in drawn_texts(view)  # in a figure
    assert "<u>b</u><sub>4.00</sub>" in view.to_html()  # and where scripts are cut
    with pytest.raises(InputError, match="1 rows for 2 names"):
        BarsView(["x", "y"], [0.2, 0.8], pieces=["a"], attributions=[[1]])


def test_rows_need_a_text_for_each_column() -> None:
    view = TreeView(["name", "shape"], {"g": [["a", "[1]"]], "h": [["b", ""]]})
    assert view.data()["groups"][1]["rows"] == [["b", ""]]  # nothing, not an empty token
    assert view.frame["group"].tolist() == ["g", "h"]
    assert view.data()["folded"]
    wide = TreeView(["name"], {"a heading much longer than its rows and the title": [["a"]]})
    assert Image.open(io.BytesIO(wide.to_png(dpi=100))).width > 300  # it is not cut
    for groups in ({}, {"g": [["a"]]}):
        with pytest.raises(InputError, match="a text for each of"):
            TreeView(["name", "shape"], groups)


# Notebooks as files


def notebook(path: Path, **changes: Any) -> Path:
    """A notebook with one code cell, clean but for ``changes`` to its cell."""
    cell = {
        "cell_type": "code",
        "execution_count": 1,
        "metadata": {},
        "outputs": [{"output_type": "stream", "name": "stdout", "text": ["fine\n"]}],
        "source": ["view"],
    }
    metadata = changes.pop("notebook_metadata", {})
    content = {"cells": [cell | changes], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_a_clean_notebook_is_not_touched(tmp_path: Path) -> None:
    path = notebook(tmp_path / "a.ipynb")
    before = path.read_bytes()
    assert clean_notebook(path) is False
    assert path.read_bytes() == before
    assert notebook_faults(path) == []


def test_widget_state_and_timings_go_and_outputs_stay(tmp_path: Path) -> None:
    path = notebook(
        tmp_path / "a.ipynb",
        metadata={"execution": {"iopub.status.busy": "2026"}, "tags": ["x"]},
        notebook_metadata={"widgets": {"state": {}}, "kernelspec": {"name": "python3"}},
    )
    assert len(notebook_faults(path)) == 2
    assert clean_notebook(path) is True
    cleaned = json.loads(path.read_text("utf-8"))
    assert cleaned["metadata"] == {"kernelspec": {"name": "python3"}}
    assert cleaned["cells"][0]["metadata"] == {"tags": ["x"]}
    assert cleaned["cells"][0]["outputs"][0]["text"] == ["fine\n"]
    assert notebook_faults(path) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"execution_count": 3}, r"run as \[3\]"),
        (
            {"outputs": [{"output_type": "error", "ename": "ValueError", "evalue": "no"}]},
            "cell 1 ends in ValueError: no",
        ),
        (
            {"outputs": [{"output_type": "stream", "text": ["at /home/ann/x.py line 3"]}]},
            "path of this machine: /home/ann/x.py",
        ),
        (
            {"outputs": [{"output_type": "display_data", "data": {"text/html": "<b>/tmp/ab</b>"}}]},
            "/tmp/ab",
        ),
    ],
)
def test_faults_of_a_notebook_are_told(tmp_path: Path, changes: Any, fault: str) -> None:
    found = notebook_faults(notebook(tmp_path / "a.ipynb", **changes))
    assert len(found) == 1
    assert re.search(fault, found[0])


def test_size_and_strange_files_are_told(tmp_path: Path) -> None:
    assert "bytes; at most 10" in notebook_faults(notebook(tmp_path / "a.ipynb"), largest=10)[0]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[" * 100_000,
        '{"cells": [1], "metadata": {}}',
        '{"cells": [{"cell_type": "code", "outputs": 3}], "metadata": {}}',
        '{"cells": [{"cell_type": "code", "outputs": [{"data": {}}]}], "metadata": {}}',
        '{"cells": [{"cell_type": "markdown", "metadata": []}], "metadata": {}}',
    ],
)
def test_what_is_no_notebook(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.ipynb"
    path.write_text(text)
    for read in (clean_notebook, notebook_faults):
        with pytest.raises(InputError, match="no notebook"):
            read(path)
    assert path.read_text() == text


def test_lines_of_a_notebook_need_not_be_texts(tmp_path: Path) -> None:
    outputs = [{"output_type": "error", "traceback": ["at ", 3, None]}, {"output_type": "x"}]
    found = notebook_faults(notebook(tmp_path / "a.ipynb", outputs=outputs))
    assert found == ["cell 1 ends in None: None"]


# The door


class FakeCache(dict[Any, torch.Tensor]):
    """Patterns under their full names and their short ones, as the real cache answers."""

    pieces: list[str] | None = None
    attention_mask: torch.Tensor | None = None

    def __getitem__(self, name: Any) -> torch.Tensor:
        if isinstance(name, tuple):
            name = f"blocks.{name[1]}.attn.hook_{name[0]}"
        return super().__getitem__(name)


def fake_cache(layers: tuple[int, ...] = (0, 2), batch: int = 2, count: int = 4) -> FakeCache:
    patterns = torch.tensor(causal(len(layers), batch * 3, count)).unflatten(1, (batch, 3))
    cache = FakeCache()
    for layer, pattern in zip(layers, patterns, strict=True):
        cache[f"blocks.{layer}.attn.hook_pattern"] = pattern
    cache["blocks.0.hook_resid_pre"] = torch.zeros(batch, count, 5)
    return cache


class FakeModel:
    def __init__(self, cache: FakeCache) -> None:
        self.cache, self.asked = cache, ""

    def named_modules(self) -> list[tuple[str, Any]]:
        return []  # nothing that drops out

    def run_with_cache(self, text: Any, names_filter: str) -> tuple[None, FakeCache]:
        self.asked = names_filter
        return None, self.cache

    def to_str_tokens(self, text: Any) -> Any:
        return text.split("|") if isinstance(text, str) else [row.split("|") for row in text]


def test_a_model_is_asked_for_its_patterns_and_nothing_else() -> None:
    model = FakeModel(fake_cache())
    view = attention(model, "The| cat| sat| on")
    assert model.asked == "blocks.*.attn.hook_pattern"
    assert (view.layers, view.heads, view.pieces) == ([0, 2], [0, 1, 2], WORDS[:4])
    assert torch.equal(torch.tensor(view.patterns[1]), model.cache["pattern", 2][0])
    assert attention(model, "a|b|c|d", layer=2).layers == [2]
    assert model.asked == "blocks.2.attn.hook_pattern"


def test_hook_points_are_grouped_and_blocks_that_repeat_are_told_once() -> None:
    inside = ["hook_resid_pre", "attn.hook_q"]
    blocks = [f"blocks.{layer}.{name}" for layer in range(11) for name in inside]
    view = views.hooks(TableModel(["hook_embed", *blocks, "ln_final.hook_scale"]))
    assert list(view.groups) == ["before the blocks", "blocks.0 … blocks.10", "after the blocks"]
    assert [row[0] for row in view.groups["blocks.0 … blocks.10"]] == inside
    assert view.title == "Hook points of TableModel"
    assert view.frame.columns.tolist() == ["group", "name", "shape", "meaning", "aliases"]
    assert "blocks.0 … blocks.10: 2" in view.alt_text
    assert "what hook_embed is" in drawn_texts(view)
    one = views.hooks(TableModel(["hook_embed", *blocks[:2]]))
    assert list(one.groups) == ["before the blocks", "blocks.0"]


def test_every_hook_point_of_the_real_model_is_in_its_view() -> None:
    from neox_lab import load

    model = load()
    frame = views.hooks(model).frame
    names = [
        name if group != "blocks.0 … blocks.3" else f"blocks.{layer}.{name}"
        for group, name in zip(frame["group"], frame["name"], strict=True)
        for layer in range(4 if group == "blocks.0 … blocks.3" else 1)
    ]
    assert sorted(names) == sorted(model.hook_names)


def test_a_text_of_a_batch_is_shown_without_its_padding() -> None:
    cache = fake_cache()
    cache.attention_mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    view = attention(FakeModel(cache), ["a|b|c|d", "x|y"], batch_index=1)
    assert view.pieces == ["x", "y"]
    assert torch.equal(torch.tensor(view.patterns[0]), cache["pattern", 0][1, :, 2:, 2:])


def test_a_cache_names_its_first_text_only() -> None:
    cache = fake_cache()
    assert attention(cache).pieces == ["0", "1", "2", "3"]
    cache.pieces = WORDS[:4]
    assert attention(cache).pieces == WORDS[:4]
    assert attention(cache, batch_index=1).pieces == ["0", "1", "2", "3"]
    assert attention(cache, list("wxyz"), batch_index=1).pieces == list("wxyz")


def test_a_cache_of_the_real_model_is_drawn() -> None:
    nl = importlib.import_module("neox_lab")
    config = nl.GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = nl.GPTNeoXForCausalLM(config).eval()
    ids = torch.arange(6)[None]
    _, cache = model.run_with_cache(ids, names_filter="blocks.*.attn.hook_pattern")
    view = attention(cache)
    assert view.patterns.shape == (2, 2, 6, 6)
    assert view.causal
    np.testing.assert_allclose(view.patterns.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention(FakeModel(fake_cache())), "needs a text"),
        (lambda: attention(3), "expected a model with run_with_cache or a cache.*int"),
        (lambda: attention({"blocks.0.hook_resid_pre": 1}), "no attention patterns"),
        (lambda: attention(fake_cache(), "a text"), "list of strings"),
        (
            lambda: attention(fake_cache(), layer=1),
            r"no pattern of layer 1; it has layers \[0, 2\]",
        ),
        (lambda: attention(fake_cache(), batch_index=2), "batch_index=2; expected 0 to 1"),
        (lambda: attention(fake_cache(), ["a"]), "pieces has 1 entries; needed: 4"),
    ],
)
def test_questions_without_an_answer_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_no_function_is_hidden_by_a_file_of_its_name() -> None:
    files = {path.stem for path in Path(views.__file__).parent.glob("*.py")}
    assert not files & {name for name in views.__all__ if callable(getattr(views, name))}
    assert set(views.__all__) <= set(dir(views))


def test_a_kind_has_one_colour_whatever_else_is_in_the_picture() -> None:
    names = ["LOC", "MISC", "ORG", "PER", "positive", "negative", "1"]
    alone = {name: StripView([Piece("x", kind=name)]).colours[name] for name in names}
    for order in (["PER", "LOC"], ["LOC", "PER"], ["ORG", "PER", "MISC"], ["negative", "positive"]):
        found = StripView([Piece("x", kind=name) for name in order]).colours
        assert len(set(found.values())) == len(order), "told apart"
        assert list(found) == order
        alike = [name for name in order if [alone[n] for n in order].count(alone[name]) == 1]
        assert all(found[name] == alone[name] for name in alike)
    for order in (["PER"], ["ORG", "PER", "LOC"], ["LOC", "ORG"]):  # those of a model: always
        found = StripView([Piece("x", kind=n) for n in order], kinds=names).colours
        assert found == {name: KINDS[names.index(name)] for name in order}
    many = StripView([Piece("x", kind=name) for name in map(str, range(30))]).colours
    assert len(set(many.values())) == 7


def test_no_two_lines_of_a_plot_are_alike() -> None:
    lines = {str(at): Line([0, 1], [at, at + 1]) for at in range(49)}
    view = CurvesView("x", lines, "step", "value")
    shown = view.data()["lines"]
    assert len({(line["colour"], line["dash"]) for line in shown}) == 49
    drawn = view._draw().figure.axes[-1].lines
    assert len({(line.get_color(), str(line._dash_pattern)) for line in drawn}) == 49


def test_entropy_is_read_in_bits() -> None:
    uniform = np.full((1, 1, 4), 0.25)
    view = LensView([[["a", "b", "c", "d"]]], uniform, [[np.log(4)]], ["final"], ["x"])
    assert view.data()["lines"][0][0] == ["entropy of all: 2.00 bits"]
    assert view.tables()[0].rows[0][-1] == "2.00"
    assert view.frame["entropy_bits"].tolist() == pytest.approx([2.0] * 4)


def same_ends(count: int) -> list[str]:
    return [
        f"blocks.{at // 6}.attention.head.{at % 6}.what it writes to the stream"
        for at in range(count)
    ]


@given(
    st.lists(
        st.builds(
            "".join,
            st.tuples(
                st.sampled_from(["", "x" * 40, "blocks.11.attention"]),
                st.text("ab1.é日⟨⟩$\n ", max_size=12),
                st.sampled_from(["", "y" * 40, " of the residual stream"]),
            ),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(12, 40),
)
@example(same_ends(30), 28)
@example([" a", "·a", "\n", "⏎"], 20)
def test_what_differs_is_told_apart_however_it_is_cut(pieces: list[str], limit: int) -> None:
    for shown in (labels(pieces, limit), figure_texts(pieces, limit)):
        assert len(set(zip(pieces, shown, strict=True))) == len(set(pieces)), "one label each"
        assert len(set(shown)) == len(set(pieces))
        assert all(len(text.replace(r"\$", "$")) <= limit for text in shown)


def test_a_cut_label_keeps_what_tells_it_apart() -> None:
    for name, shown in zip(same_ends(30), labels(same_ends(30), 28), strict=True):
        layer, head = re.findall(r"\d+", name)
        assert re.findall(r"\d+", shown) == [layer, head], shown


def test_every_bar_has_a_name_of_its_own() -> None:
    names = same_ends(30)
    shares = np.linspace(0.9, 0.1, 30)
    rows = list(zip(names, shares.tolist(), strict=True))
    bars = BarsView(names, shares)
    lens = LensView([[names]], shares.reshape(1, 1, -1), [[1.0]], ["final"], ["x"])
    predictions = PredictionsView(["x"], [rows])
    text = TextView(["x"], [names[0]], [0.9], alternatives=[rows])
    curves = CurvesView("", dict.fromkeys(names, Line([0], [1])), "x", "y")
    drawn = {
        "bars": bars.data()["names"],
        "bars table": [row[0] for row in bars.tables()[0].rows],
        "lens": [name for name, *_ in lens.data()["bars"][0][0]],
        "predictions": [name for name, *_ in predictions.data()["pieces"][0]["alternatives"]],
        "text": [name for name, *_ in text.data()["pieces"][1]["alternatives"]],
        "confusion": ConfusionView(np.eye(30), names).data()["rows"],
        "curves": [line["name"] for line in curves.data()["lines"]],
    }
    for where, shown in drawn.items():
        assert len(set(shown)) == len(shown), where
    for picture, count in ((bars, 30), (predictions, 10)):
        named = [text for text in drawn_texts(picture).split("\n") if "head." in text]
        assert len(set(named)) == len(named) == count


def test_a_table_says_all_that_its_cells_say() -> None:
    meaning = "what each head's queries read, before layer norm 1 and after the hook on it"
    text = Table("t", [("name", "l"), ("meaning", "l")], [["a", meaning], ["b", "short"]]).to_text()
    assert [line.split() for line in text.split("\n")[1:4]] == [
        ["name", "meaning"],
        ["a", *meaning.split()[:8]],
        meaning.split()[8:],
    ]
    long = Table("t", [("name", "l")], [["word " * 200]]).to_text()
    assert len(long.split("\n")) == 6 and "…" in long  # but not a page of one cell


def test_the_meanings_of_hook_points_are_readable_wherever_the_table_is_shown() -> None:
    model = nl.load()
    table = model.hook_table()
    view = views.hooks(model)
    html, drawn = view.to_html(), drawn_texts(view)
    for meaning in set(table["meaning"]):
        assert meaning in repr(table[table["meaning"] == meaning])
        assert html_text(meaning) in table[table["meaning"] == meaning]._repr_html_().replace(
            "'", "&#x27;"
        )
        assert html_text(meaning) in html
        assert figure_text(meaning) in drawn or model.config.num_hidden_layers > 9


def test_what_has_another_unit_has_a_panel_and_a_scale_of_its_own() -> None:
    lines = {
        "loss": Line([0, 1, 2], [300.0, 200.0, 100.0]),
        "each step": Line([0, 1, 2], [320.0, 210.0, 90.0], faint=True),
        "F1": Line([1, 2], [0.5, 0.7], y_label="F1"),
    }
    view = CurvesView("x", lines, "step", "loss")
    data = view.data()
    assert data["panels"] == ["loss", "F1"]
    assert [line["panel"] for line in data["lines"]] == [0, 0, 1]
    upper, lower = view._draw().figure.axes[1:]
    assert [len(upper.lines), len(lower.lines)] == [2, 1]
    assert upper.get_ylim()[1] > 300 and lower.get_ylim()[1] < 1
    assert upper.get_xlim() == lower.get_xlim() == (0, 2)
    assert upper.get_position().y0 > lower.get_position().y1
    said = drawn_texts(view)
    assert "loss  100.000" in said and "F1  0.700" in said and "each step" in said
    assert "loss, F1 over step" in view.alt_text
    with pytest.raises(InputError, match="y_label of 'F1'"):
        CurvesView("x", {"F1": Line([0], [1], y_label=3)}, "step", "loss")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([32.0, 32.000004, 32.0], (28.8, 35.2)),  # float32 can say no less
        ([10.99, 11.0, 10.992], (10.989, 11.001)),  # a small change is seen
        ([-7.0, -7.0, -7.0], (-7.7, -6.3)),
        ([0.0, 0.0, 0.0], (-0.05, 1.05)),
        ([np.nan] * 3, (0.0, 1.0)),
        ([1e-8, 5e-8, 3e-8], (0.5e-8, 5.5e-8)),
        ([1e7, 5e7, 3e7], (0.5e7, 5.5e7)),
        ([-3e38, 3e38, 0.0], (-3.5e38, 3.5e38)),
    ],
)
def test_ticks_say_their_whole_value(values: list[float], ends: tuple[float, float]) -> None:
    view = CurvesView("x", {"line": Line([0, 1e6, 3e6], values)}, "step", "L0")
    ((low, high),) = view.data()["ranges"]
    plot = view._draw().figure.axes[1]
    assert plot.get_ylim() == (low, high)
    room = ends[1] - ends[0]
    assert (low, high) == pytest.approx(ends, abs=0.1 * room)
    for axis in (plot.xaxis, plot.yaxis):
        assert axis.get_offset_text().get_text() == ""
        texts = [tick.get_text() for tick in axis.get_ticklabels()]
        said = [float(text.replace("−", "-")) for text in texts]
        assert said == pytest.approx(list(axis.get_ticklocs()), rel=1e-3, abs=1e-3 * room)
        assert len(set(texts)) == len(texts) >= 2
        assert max(map(len, texts)) <= 7


def test_titles_are_cut_between_words() -> None:
    text = "The best school of Sweden is in " * 9
    for limit in (20, 36, 60, 90):
        shown = sentence(text, limit)
        front, back = shown.split(" … ")
        assert len(shown) <= limit and text.startswith(f"{front} ") and f" {back}" in label(text)
        assert (
            BarsView(["a"], [1.0], title=text * 9).title.split(" … ")[0].split()[-1] in text.split()
        )
    assert sentence("short", 10) == "short"
    assert sentence("a" * 50, 9) == label("a" * 50, 9), "one word has no other place to be cut"


def test_the_first_layer_is_on_top_of_every_picture() -> None:
    first = np.zeros((3, 4, 1), dtype=np.float32)
    first[0] = 1.0
    lens = LensView([[["a"]] * 4] * 3, first, np.zeros((3, 4)), ["0", "1", "final"], list("wxyz"))
    heat = HeatmapView(first[..., 0], list("012"), list("wxyz"), "layer", "position", "share", None)
    for view in (lens, heat):
        with Image.open(io.BytesIO(view.to_png())) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        yellow = np.abs(pixels - [253, 231, 37]).sum(-1) < 20
        purple = np.abs(pixels - [68, 1, 84]).sum(-1) < 20
        width = pixels.shape[1]
        rows = [np.flatnonzero(colour.sum(1) > 0.2 * width) for colour in (yellow, purple)]
        assert len(rows[0]) and rows[0].max() < rows[1].max(), view.title
        assert rows[0].min() < rows[1].min(), view.title
        assert view.data()["row_axis"] == "layer" and view.data()["rows"][0] == "0"
    assert lens.tables()[0].rows[0][0] == "0"


BYTES = ["a", " ⟨F0⟩⟨9F⟩", "⟨98⟩⟨80⟩⟨E6⟩", "⟨97⟩", "⟨A5⟩b", "⟨E6⟩", "c", "⟨97⟩"]
"""“a 😀日bc” in pieces of characters, with two bytes that make none."""


def test_bytes_say_which_character_they_make_and_stay_tokens() -> None:
    shown = ["a", " ⟨F0⟩⟨9F⟩ of 😀", "⟨98⟩⟨80⟩⟨E6⟩ of 😀日", "⟨97⟩ of 日", "⟨A5⟩b of 日"]
    assert told(BYTES) == [*shown, "⟨E6⟩", "c", "⟨97⟩"]
    named = [label(text) for text in told(BYTES)]
    count = len(BYTES)
    row = [("x", 0.5)]
    views_of = {
        "attention": AttentionView(causal(1, 1, count), BYTES).data()["pieces"],
        "lens": LensView(
            [[["a"]] * count], np.ones((1, count, 1)), np.ones((1, count)), ["0"], BYTES
        ).data()["columns"],
        "bars": BarsView(["n"], [1.0], pieces=BYTES, attributions=[[1] * count]).data()["pieces"],
        "predictions": [p["text"] for p in PredictionsView(BYTES, [row] * count).data()["pieces"]],
        "text": [
            piece["text"] for piece in TextView(BYTES[:3], BYTES[3:], [0.5] * 5).data()["pieces"]
        ],
    }
    for where, texts in views_of.items():
        assert [text.split(" of ")[-1][-1] for text in texts] == [n[-1] for n in named], where
        assert where == "lens" or texts == named, where  # whose columns are narrow
    plain = StripView([Piece(piece) for piece in BYTES])
    assert "".join(piece["text"] for piece in plain.data()["pieces"]) == "a 😀日bc".replace(
        "c", "⟨E6⟩c⟨97⟩"
    )
    assert "a 😀日b" in plain._running_text() and len(plain.data()["pieces"]) == count
    strip = StripView.values(BYTES, [1.0] * count)
    assert [piece["text"].strip() for piece in strip.data()["pieces"]] == [
        t.strip() for t in told(BYTES)
    ]
    assert told(["日", "⟨E6⟩", "⟨97⟩"]) == ["日", "⟨E6⟩", "⟨97⟩"]


def test_a_cell_that_ends_in_a_file_is_not_flooded_by_it(tmp_path: Path) -> None:
    view = views.BarsView(["a", "b"], [1.0, 2.0], "Title")
    for ending in ("png", "svg", "pdf", "html"):
        path = tmp_path / f"page.{ending}"
        content = getattr(view, f"to_{ending}")(path)
        assert len(repr(content)) < 40
        written = content if isinstance(content, bytes) else content.encode()
        assert path.read_bytes() == written
        assert pickle.loads(pickle.dumps(content)) == content
