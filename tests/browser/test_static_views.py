"""Every view as its reader meets it: a file, opened offline in a real browser."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contrast import poorly_readable
from pages import places, watch
from PIL import Image
from table_model import TableModel

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
    Piece,
    PredictionsView,
    ScatterView,
    SliderView,
    StripView,
    TextExample,
    TextView,
    TreeView,
    View,
    hooks,
)
from neox_lab.views.attribution_graph import KINDS
from neox_lab.views.explorer import ExplorerView, ReadingView, Shares
from neox_lab.views.live import kinds

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror=window.hacked=1>",
    " <div>",
    "&amp;",
    "\u2028",
    "⟨E2⟩",
    "\ud83d",
    "\"quoted'",
    "\n",
    "\t",
    "שלום",
    " 😀",
    "\u202eevil",
    "-->",
    "",
    "long" * 2_500,
]
POINTED_AT = "button.token, button.head, td, .piece, .line, circle, summary, .readout button"
WORDS = [" The", " ship", " left", " the", " harbour", " of", " Bergen"]


def causal(layers: int, heads: int, count: int) -> np.ndarray:
    scores = np.random.default_rng(0).normal(0, 2, (layers, heads, count, count))
    scores[:, :, ~np.tri(count, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def explorer(pieces: list[str]) -> ExplorerView:
    """An explorer of two layers and heads that was asked one thing."""
    count = len(pieces)
    each = np.broadcast_to([0.5, 0.3], (3, count, 2))
    candidates = [[[pieces[at], pieces[0]] for at in range(count)]] * 3
    parts = [(layer, head) for layer in range(2) for head in (0, 1, None)]
    values = np.random.default_rng(2).normal(size=(count, len(parts) + 1)).astype("float32")
    names = [f"part {at}" for at in range(len(parts))]
    reading = ReadingView(
        prompt="".join(pieces),
        attention=AttentionView(causal(2, 2, count), pieces),
        lens=LensView(candidates, each, each[:, :, 0], ["0_pre", "1_pre", "final"], pieces),
        about=pieces,
        shares=Shares([*names, "embedding"], [*parts, None], values),
    )
    attribution = {"values": values[:, 0].tolist(), "note": pieces[0]}
    return ExplorerView(reading, parts={"attribution": attribution}, code=f"prompt = {pieces!r}")


def every_view(pieces: list[str]) -> dict[str, View]:
    """One of each, over the same tokens."""
    count, rng = len(pieces), np.random.default_rng(1)
    shares = np.linspace(0.9, 0.01, count)
    ranked = list(zip(pieces, shares.tolist(), strict=True))
    grid = rng.normal(size=(2, count))
    three = np.broadcast_to([0.5, 0.3, 0.1], (2, count, 3))
    candidates = [[[pieces[at], pieces[0], pieces[1]] for at in range(count)]] * 2
    tags = ["B-PER", "I-PER", "O"] * count
    maps = {
        name: HeatmapView(grid * scale, pieces[:2], pieces, "layer", "position", "difference")
        for name, scale in zip(pieces[:3], (1, 2, 3), strict=True)
    }
    return {
        "attention": AttentionView(causal(2, 2, count), pieces),
        "heatmap": HeatmapView(grid, pieces[:2], pieces, "layer", "position", "difference"),
        "lens": LensView(candidates, three, grid**2, ["0", "1"], pieces),
        "lens pair": LensPairView(
            *[LensView(candidates, three, grid**2, ["0", "1"], pieces)] * 2,
            [(at, at) for at in range(count - 1)],
            np.full((2, count - 1), 0.1),
            np.full((2, count - 1), 0.2),
            pieces[:2],
        ),
        "confusion": ConfusionView(rng.integers(0, 9, (count, count)), pieces),
        "values": StripView.values(pieces, grid[0], value_name="attribution"),
        "tags": StripView.tags(pieces, tags[:count], shares),
        "spans": StripView.spans(pieces, shares / 5, shares[::-1] / 5, best=(2, 3)),
        "examples": ExamplesView([TextExample(pieces[0], pieces, row, 1) for row in grid]),
        "text": TextView(pieces, pieces, shares.tolist(), alternatives=[ranked] * count),
        "predictions": PredictionsView(pieces, [ranked] * count),
        "bars": BarsView(pieces[:3], [0.5, -0.2, 0.7], pieces=pieces, attributions=[grid[0]] * 3),
        "curves": CurvesView(
            pieces[0],
            {
                pieces[1]: Line([0, 1, 2], [1, 3, 2], [0, 2, 2], [2, 4, 2]),
                "faint": Line([0, 1, 2], [1, 2, 3], faint=True),
            },
            "site",
            "accuracy",
            x_names=pieces[:3],
            levels={"chance": 0.5},
        ),
        "slider": SliderView(maps, "step"),
        "network": NetworkView(
            pieces,
            list(range(count)),
            [-1, *[0, 1] * (count // 2)][:count],
            pieces,
            [Link(at, at + 1, 0.5 - at % 2, "qkv"[at % 3]) for at in range(count - 1)],
            "score",
            attention=HeadPatterns([1, 2], causal(1, 2, count)[0], pieces, pieces[0]),
        ),
        "attribution graph": AttributionGraphView(
            pieces,
            3,
            [
                Mark(f"{at} {piece}", KINDS[at % 4], at % 5 - 1, at, 0.3 / (at + 1), piece)
                for at, piece in enumerate(pieces)
            ],
            [Flow(at, at + 1, 0.5 - at % 2, 0.4) for at in range(count - 1)],
            {"pair": [f"{at} {piece}" for at, piece in enumerate(pieces)][:2]},
            [f"0 {pieces[0]}"],
        ),
        "scatter": ScatterView(grid[0], grid[1], pieces, "exact", "estimated"),
        "explorer": explorer(pieces),
        "tree": TreeView(["name", "meaning"], {pieces[0]: [[p, p] for p in pieces]}),
        "open tree": TreeView(
            ["name", "meaning"], {p: [[p, p]] for p in pieces if p}, folded=False
        ),
        "hooks": hooks(
            TableModel([*pieces, *(f"blocks.{at}.{p}" for at in (0, 1) for p in pieces)])
        ),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[str]], Path]:
    """Writes a view into a page of its own, once."""
    folder = tmp_path_factory.mktemp("views")

    def written(name: str, pieces: list[str]) -> Path:
        path = folder / f"{name}-{'hostile' if pieces is HOSTILE else 'words'}.html"
        if not path.exists():
            every_view(pieces)[name].to_html(path)
        return path

    return written


NAMES = tuple(every_view(WORDS))


def opened(page: Any, path: Path) -> Any:
    """The live part of a view, once it is there."""
    page.set_default_timeout(120_000)  # machines that run tests are shared and slow
    page.context.set_offline(True)
    page.goto(path.as_uri())
    live = page.locator(".neox-live")
    live.locator(".status").wait_for(state="attached")
    page.wait_for_function(
        "[...document.querySelectorAll('.neox-picture')].every(p => p.style.display === 'none')"
    )
    return live


def shown(page: Any) -> str:
    """All text inside the live part, as it is in the page."""
    return page.evaluate("document.querySelector('.neox-live').shadowRoot.textContent")


def test_there_is_a_view_for_every_asset() -> None:
    indices = {"index"}  # no view: see the test of pages of features
    assert {view.asset for view in every_view(WORDS).values()} | indices == set(kinds())


@pytest.mark.parametrize("name", NAMES)
def test_hostile_tokens_are_text_and_nothing_runs(page: Any, files: Any, name: str) -> None:
    opened(page, files(name, HOSTILE))
    tags = page.evaluate(
        "[...document.querySelectorAll('*'), "
        "...document.querySelector('.neox-live').shadowRoot.querySelectorAll('*')]"
        ".map(node => node.tagName.toLowerCase())"
    )
    assert tags.count("script") == 2
    assert tags.count("img") == 1
    names = page.evaluate(
        "[...document.querySelector('.neox-live').shadowRoot.querySelectorAll('[aria-label]')]"
        ".map((node) => node.getAttribute('aria-label'))"
    )
    for place in page.locator("td, button.token, .piece, .line, circle").all()[:8]:
        place.dispatch_event("pointerover")
    text = shown(page) + "".join(names)
    assert "<img" in text
    assert "script>" in text
    assert "⟨U+2028⟩" in text or name == "curves"
    assert "\u202e" not in text
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_below_keeps_its_place_under_the_pointer(
    page: Any, files: Any, name: str
) -> None:
    """Else the pointer is over something else, which says something else, without end."""
    live = opened(page, files(name, WORDS))
    heights = []
    for place in live.locator("[role=gridcell], button.token, .piece, .head").all()[:12]:
        place.hover(force=True)
        page.wait_for_timeout(40)
        heights.append(page.evaluate("document.querySelector('.neox-live').offsetHeight"))
    assert heights == sorted(heights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(
    chromium: Any, files: Any, name: str, scheme: str
) -> None:
    context = chromium.new_context(color_scheme=scheme, offline=True)
    page = context.new_page()
    wrong = watch(page)
    live = opened(page, files(name, WORDS))
    paper, ink = page.evaluate(
        "(() => {const s = getComputedStyle(document.querySelector('.neox-live').shadowRoot"
        ".querySelector('section')); return [s.backgroundColor, s.color]})()"
    )
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink))
    assert (light > 600 and dark < 150) if scheme == "light" else (light < 150 and dark > 600)
    assert not poorly_readable(page, 5)
    # The explorer makes tokens faint that a chosen one cannot see.
    for place in live.locator(POINTED_AT).all()[: 0 if name == "explorer" else 2]:
        place.dispatch_event("pointerover")
        place.dispatch_event("click")
        assert not poorly_readable(page)
    context.close()
    assert not wrong, wrong


def test_no_line_of_words_is_empty_and_no_number_is_there_twice(page: Any, files: Any) -> None:
    empty = StripView([Piece("nothing is marked here")]).to_html(standalone=True)
    (files("tags", WORDS).parent / "nothing.html").write_text(empty)
    for name in [*NAMES, "nothing"]:
        path = files(name, WORDS) if name in NAMES else files("tags", WORDS).parent / "nothing.html"
        live = opened(page, path)
        line = live.locator(".status").first
        assert line.inner_text().strip() or not line.is_visible(), name
        for table in page.locator(".neox-tables table").all()[:1]:
            assert not table.is_visible(), name  # the view says it all
            page.locator(".neox-tables > summary").click()
            assert table.is_visible() or table.locator("xpath=ancestor::details[2]").count(), name


# What each view answers


def status(page: Any) -> str:
    return (
        page.locator(".neox-live .status").inner_text().replace("\u2068", "").replace("\u2069", "")
    )


def test_a_head_is_shown_locked_and_left(page: Any, files: Any) -> None:
    live = opened(page, files("attention", WORDS))
    heads = live.locator("button.head")
    assert heads.count() == 2 * 3  # two heads and their mean
    heads.nth(1).hover()
    assert status(page).startswith("layer 0, head 1: entropy ")
    heads.nth(3).click()
    assert "layer 1, head 0" in status(page)
    assert "Locked" in status(page)
    heads.nth(0).hover()
    assert "layer 1, head 0" in live.locator(".caption").inner_text()
    assert heads.nth(3).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    heads.nth(1).hover()
    assert "layer 0, head 1" in live.locator(".caption").inner_text()


def test_a_token_shows_where_it_looks_and_what_looks_at_it(page: Any, files: Any) -> None:
    live = opened(page, files("attention", WORDS))
    weights = causal(2, 2, len(WORDS))[0, 0]
    live.locator("button.token").nth(3).hover()
    lists = [
        text.replace("\u2068", "").replace("\u2069", "")
        for text in live.locator(".side .bars").all_inner_texts()
    ]
    best = int(weights[3].argmax())
    assert lists[0].startswith(f"·{WORDS[best][1:]}@{best}")
    looking = 3 + int(weights[3:, 3].argmax())
    assert lists[1].startswith(f"·{WORDS[looking][1:]}@{looking}")
    printed = float(live.locator("button.token").nth(best).locator("small").inner_text())
    assert printed == pytest.approx(weights[3, best], abs=0.0075)


def test_the_map_names_the_weight_below_the_pointer(page: Any, files: Any) -> None:
    live = opened(page, files("attention", WORDS))
    weights = causal(2, 2, len(WORDS))[0, 0]
    (box,) = places(page, live.locator(".field"))
    cell = box["width"] / len(WORDS)
    page.mouse.move(box["x"] + 2.5 * cell, box["y"] + 5.5 * cell)
    found = re.search(r"·of@5 → ·left@2: ([\d.]+) ± 0.002", status(page))
    assert found, status(page)
    assert float(found[1]) == pytest.approx(weights[5, 2], abs=0.0025)


def test_heads_and_tokens_need_no_mouse(page: Any, files: Any) -> None:
    live = opened(page, files("attention", WORDS))
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert "layer 1, head 1" in live.locator(".caption").inner_text()
    page.keyboard.press("Enter")
    assert "Locked" in status(page)
    page.keyboard.press("Tab")  # one stop for all heads, then the tokens
    page.keyboard.press("End")
    assert "·Bergen@6 looks at" in live.locator(".side").inner_text().replace("\u2068", "").replace(
        "\u2069", ""
    )
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    assert "Locked" not in status(page)


def test_cells_are_read_with_pointer_and_keys(page: Any, files: Any) -> None:
    live = opened(page, files("heatmap", WORDS))
    values = every_view(WORDS)["heatmap"].values
    live.locator("td").nth(2).hover()
    assert status(page) == f"layer ·The, position ·left: difference {_said(values[0, 2])}"
    live.locator("td").nth(2).click()
    page.keyboard.press("ArrowDown")
    assert "·left" in status(page)
    assert "layer ·The" in status(page)  # still locked
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert status(page) == f"layer ·ship, position ·the: difference {_said(values[1, 3])}"


def test_a_slider_shows_the_map_of_its_place(page: Any, files: Any) -> None:
    live = opened(page, files("slider", WORDS))
    maps = list(every_view(WORDS)["slider"].maps.values())
    assert status(page) == "step ·left"  # the last of them
    live.locator("input").focus()
    for number in (1, 0):
        page.keyboard.press("ArrowLeft")
        cells = live.locator("td")
        assert cells.count() == maps[number].values.size
        cells.nth(2).hover()
        value = _said(maps[number].values[0, 2])
        assert status(page) == f"layer ·The, position ·left: difference {value}"


def _said(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def test_a_lens_lists_what_else_was_likely(page: Any, files: Any) -> None:
    live = opened(page, files("lens", WORDS))
    live.locator("td[role=gridcell]").nth(len(WORDS) + 4).hover()  # the row of the second layer
    side = live.locator(".side").inner_text()
    assert (
        side.split("\n")[0].replace("\u2068", "").replace("\u2069", "") == "layer 1, token ·harbour"
    )
    assert re.findall(r"·\w+\s+(\d+\.\d) %", side) == ["50.0", "30.0", "10.0"]
    assert "entropy of all" in side


def test_a_field_of_one_lens_shows_its_partner_and_marks_what_differs(
    page: Any, tmp_path: Path
) -> None:
    count = len(WORDS)
    first = [[[word, " it"] for word in WORDS]] * 2
    second = [[[word, " it"] for word in WORDS[1:]], first[1][1:]]
    second[0] = [[" other", " it"], *second[0][1:]]
    chances = np.broadcast_to([0.5, 0.3], (2, count, 2))
    sides = [
        LensView(first, chances, chances[:, :, 0], ["0", "1"], WORDS),
        LensView(second, chances[:, 1:], chances[:, 1:, 0], ["0", "1"], WORDS[1:]),
    ]
    ends = np.full((2, count - 1), 0.25)
    pairs = [(at + 1, at) for at in range(count - 1)]
    LensPairView(*sides, pairs, ends, ends * 2, ("a", "b")).to_html(tmp_path / "pair.html")
    live = opened(page, tmp_path / "pair.html")
    left, right = live.locator(".lens-side").all()
    assert [each.locator("td[role=gridcell].marked").count() for each in (left, right)] == [1, 1]
    field = left.locator("td[role=gridcell]").nth(1)
    field.hover()
    assert status(page) == "a: layer 0, token ·ship: likeliest next ·ship, " + (
        "another token on the other side"
    )
    partner = right.locator("td[role=gridcell]").nth(0)
    for shown in (field, partner):
        assert "shown" in (shown.get_attribute("class") or "")
    side = right.locator(".side").inner_text()
    assert "·other" in side and "total variation to the other side: 0.25 to 0.50" in side
    left.locator("td[role=gridcell]").nth(0).hover()  # has no partner
    assert "shown" in (partner.get_attribute("class") or "")
    page.set_viewport_size({"width": 360, "height": 700})
    above, below = places(page, left, right)
    assert below["y"] >= above["y"] + above["height"], "below each other where there is no room"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_pieces_tell_what_they_carry(page: Any, files: Any) -> None:
    live = opened(page, files("tags", WORDS))
    assert live.locator(".piece small").all_inner_texts()[:2] == ["B-PER", "I-PER"]
    live.locator(".piece").nth(1).hover()
    assert status(page) == "ship: tag I-PER, score 0.75"
    live = opened(page, files("spans", WORDS))
    live.locator(".piece").nth(0).focus()
    assert status(page) == "The: start 18.0 %, end 0.2 %"


def test_a_trace_shows_what_else_might_have_come(page: Any, files: Any) -> None:
    live = opened(page, files("text", WORDS))
    live.locator("button.token").nth(len(WORDS) + 1).hover()
    side = live.locator(".side").inner_text()
    assert "At" in side
    assert "75.2 % ✓" in side
    live = opened(page, files("predictions", WORDS))
    live.locator("button.token").nth(0).hover()
    assert "After" in live.locator(".side").inner_text()
    assert "75.2 % ✓" in live.locator(".side").inner_text()


def test_bars_show_what_speaks_for_each(page: Any, files: Any) -> None:
    live = opened(page, files("bars", WORDS))
    live.locator(".line").nth(1).hover()
    assert status(page) == "·ship: −0.200"
    assert live.locator(".token small").count() == len(WORDS)
    colours = live.locator(".track i").evaluate_all(
        "bars => bars.map((bar) => getComputedStyle(bar).backgroundColor)"
    )
    less, more = "rgb(33, 113, 181)", "rgb(230, 97, 1)"  # as in heat maps of differences
    assert colours == [more, less, more]


def test_a_number_has_one_tint_in_page_script_and_picture(page: Any, tmp_path: Path) -> None:
    values = [0.9, -0.45, 0.02, 0.008, 0.3, -0.009, -0.1]  # those below a hundredth have none
    with_names = BarsView(
        ["other", "best"],
        [0.2, 0.8],
        pieces=WORDS,
        attributions=[
            [1.2, *values[1:]],
            values,  # the deepest tint of the picture is not one of the bar's own
        ],
    )
    alone = StripView.values(WORDS, values, largest=1.2)
    found = []
    for name, view in (("bars", with_names), ("strip", alone)):
        path = view.to_html(tmp_path / f"{name}.html") and tmp_path / f"{name}.html"
        live = opened(page, path)
        found.append(
            rgb(
                live.locator(".tokens .token, .flow > *").evaluate_all(
                    "nodes => nodes.map((node) => getComputedStyle(node).backgroundColor)"
                )
            )
        )
        inline = re.findall(r"background-color:(#......);color:#1a1a1a", path.read_text())
        found.append([tuple(bytes.fromhex(colour[1:])) for colour in inline])
        faces = [patch.get_facecolor() for patch in view._draw().axes.patches]
        found.append([tuple(round(255 * part) for part in face[:3]) for face in faces])
    shown = [[colour for colour in row if colour] for row in found]
    shown[2] = shown[2][2:]  # without the two bars
    expected = [
        tuple(255 + (part - 255) * (0.15 + 0.5 * abs(value) / 1.2) for part in hue)
        for value in values
        if abs(value) > 0.012
        for hue in [(33, 113, 181) if value < 0 else (230, 97, 1)]
    ]
    for row in shown:
        assert np.allclose(np.array(row), expected, atol=1.01), row


def rgb(colours: list[str]) -> list[tuple[int, ...] | None]:
    """Computed colours; None for one that is transparent."""
    parts = [tuple(map(int, re.findall(r"\d+", colour))) for colour in colours]
    return [part if len(part) == 3 else None for part in parts]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_network_is_saved_as_it_stands(page: Any, tmp_path: Path, scheme: str) -> None:
    links = [Link(0, 1, -2.0, "q"), Link(0, 1, 1.0, "v"), Link(1, 2, -1.0), Link(0, 2, 0.5)]
    view = NetworkView(
        ["embed", "L0H1", "logits"], [0, 1, 2], [-1, 0, -1], ["a", "b", "c"], links, "score",
        signs=("helps", "hurts"),
    )  # fmt: skip
    view.to_html(tmp_path / "network.html")
    page.emulate_media(color_scheme=scheme)
    opened(page, tmp_path / "network.html")
    assert page.locator(".port").all_text_contents() == ["q", "v"]
    assert re.search(r"helps\s+hurts", shown(page))
    page.get_by_role("slider").fill("3")
    saved = {}
    for form in ("SVG", "PNG"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=form, exact=True).click()
        assert waiting.value.suggested_filename == f"network.{form.lower()}"
        saved[form] = Path(waiting.value.path()).read_bytes()
    page.goto("about:blank")
    page.set_content(saved["SVG"].decode("utf-8"))
    seen = page.evaluate(
        """() => [...document.querySelectorAll("path")].map((node) => {
          const { display, stroke } = getComputedStyle(node);
          return display === "none" ? "" : stroke;
        })"""
    )
    less, more = {
        "light": ((33, 113, 181), (230, 97, 1)),
        "dark": ((90, 166, 216), (239, 132, 48)),
    }[scheme]
    assert rgb(seen) == [None, less, more, less]  # the smallest of all is not drawn
    pixels = np.asarray(Image.open(io.BytesIO(saved["PNG"])).convert("RGB")).reshape(-1, 3)
    assert (pixels[0] > 200).all() == (scheme == "light")
    assert len(np.unique(pixels, axis=0)) > 50


def test_the_legend_of_a_network_names_signs_that_are_drawn(page: Any, tmp_path: Path) -> None:
    links = [Link(0, 1, 2.0), Link(0, 1, 1.0)]
    view = NetworkView(["a", "b"], [0, 1], [0, 0], ["x", "y"], links, "in how many orders")
    view.to_html(tmp_path / "network.html")
    opened(page, tmp_path / "network.html")
    assert "above 0" in shown(page) and "below 0" not in shown(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_head_of_a_network_shows_where_it_looks(page: Any, tmp_path: Path, scheme: str) -> None:
    links = [Link(0, 1, -2.0, "q"), Link(0, 2, 1.0, "v"), Link(1, 3, -1.0), Link(2, 3, 0.5)]
    patterns = causal(1, 2, len(HOSTILE))[0]
    view = NetworkView(
        ["embed", "L0H1", "L0H0", "f5"], [0, 1, 1, 2], [-1, 1, 0, -1], ["a", "b", "c"], links,
        "score", attention=HeadPatterns([2, 1], patterns, HOSTILE, "the first prompt"),
        pages=["", "", "", "pages/5.html"],
    )  # fmt: skip
    view.to_html(tmp_path / "network.html")
    page.emulate_media(color_scheme=scheme)
    live = opened(page, tmp_path / "network.html")
    part = {name: live.locator(f'.part[aria-label*="{name}"]') for name in view.names}
    field = live.locator(".looks .field")
    assert not field.is_visible()
    part["embed"].hover()
    assert not field.is_visible()
    part["L0H0"].hover()
    assert field.is_visible()
    for name, at in (("L0H0", 0), ("L0H1", 1)):
        part[name].click()
        assert live.locator(".looks .caption").inner_text().strip("\u2068\u2069")[:4] == name
        (box,) = places(page, field)
        cell = box["width"] / len(HOSTILE)
        query, key = 6, 3
        page.mouse.move(box["x"] + (key + 0.5) * cell, box["y"] + (query + 0.5) * cell)
        said = re.search(r"(.*)@6 → &amp;@3: (\S+) ±", status(page))
        assert said and float(said[2]) == pytest.approx(patterns[at, query, key], abs=0.003)
        seen = page.evaluate(
            """([query, key]) => {
              const root = document.querySelector(".neox-live").shadowRoot;
              const canvas = root.querySelector(".looks canvas");
              return [...canvas.getContext("2d").getImageData(key, query, 1, 1).data];
            }""",
            [query, key],
        )
        share = round(255 * float(patterns[at, query, key])) / 255
        assert np.allclose(seen[:3], viridis(share**0.5), atol=6)
        assert page.evaluate("window.hacked") is None
        page.keyboard.press("Escape")
    part["f5"].click()
    assert not field.is_visible()
    assert live.locator(".network-side h4 a").get_attribute("href") == "pages/5.html"
    assert not poorly_readable(page)


def viridis(share: float) -> list[float]:
    """Matplotlib's colour, from 0 to 255."""
    import matplotlib

    return [255 * channel for channel in matplotlib.colormaps["viridis"](share)[:3]]


def test_curves_are_read_along_the_axis_and_hidden(page: Any, files: Any) -> None:
    live = opened(page, files("curves", WORDS))
    live.locator("svg.plot").focus()
    page.keyboard.press("Home")
    assert status(page).startswith("site ·The: ·ship 1 [0, 2]; faint 1")
    page.keyboard.press("ArrowRight")
    assert "·ship 3 [2, 4]" in status(page)
    toggle = live.locator(".readout button").first
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "false"
    assert live.locator("svg.plot g").first.is_hidden()


def test_a_line_of_one_point_is_a_point_in_the_middle(page: Any, tmp_path: Path) -> None:
    lines = {"a": Line([512], [0.25], [0.1], [0.3]), "b": Line([512], [0.5])}
    CurvesView("x", lines, "step", "score").to_html(tmp_path / "x.html")
    live = opened(page, tmp_path / "x.html")
    plot, first, second = places(page, live.locator("svg.plot"), *live.locator("circle").all())
    middle = plot["x"] + plot["width"] / 2
    assert abs(first["x"] - middle) < 40 and abs(second["x"] - middle) < 40
    assert first["y"] > second["y"] + 50


def test_two_units_are_read_in_two_panels_that_share_an_axis(page: Any, tmp_path: Path) -> None:
    lines = {
        "loss": Line([0, 1, 2], [300.0, 200.0, 100.0]),
        "F1": Line([1, 2], [0.5, 0.7], y_label="score"),
    }
    CurvesView("x", lines, "step", "loss").to_html(tmp_path / "x.html")
    live = opened(page, tmp_path / "x.html")
    upper, lower = places(page, *live.locator(".plot .curve").all())
    assert upper["y"] + upper["height"] < lower["y"]  # each uses the height of its panel
    assert min(upper["height"], lower["height"]) > 60
    assert abs(upper["x"] + upper["width"] - lower["x"] - lower["width"]) < 5
    for name, curve in (("loss", upper), ("F1", lower)):
        ends = places(page, *live.locator(f".plot text:text-is('{name}')").all())
        assert any(abs(end["x"] - curve["x"] - curve["width"]) < 12 for end in ends), name
    live.locator("svg.plot").focus()
    page.keyboard.press("Home")
    assert status(page) == "step 0: loss 300; F1 –"


def test_ticks_of_what_hardly_changes_are_told_apart(page: Any, tmp_path: Path) -> None:
    lines = {
        "steady": Line([0, 1, 2], [11.0, 10.99, 11.0], y_label="L0"),
        "large": Line([0, 1, 2], [1e8, 3e8, 2e8], y_label="loss"),
        "never": Line([0, 1, 2], [0.0, 0.0, 0.0], y_label="dead"),
    }
    CurvesView("x", lines, "step", "loss").to_html(tmp_path / "x.html")
    live = opened(page, tmp_path / "x.html")
    texts = live.locator("svg.plot text[text-anchor=end]").all_text_contents()
    assert {"10.990", "10.995", "11.000", "1e8", "2e8", "3e8", "0.0", "0.5", "1.0"} <= set(texts)


def test_rows_are_found_by_words(page: Any, files: Any) -> None:
    live = opened(page, files("tree", WORDS))
    live.locator("input").fill("BERG")
    assert status(page) == "1 found"
    assert live.locator("tbody tr:visible").all_inner_texts() == ["·Bergen\t·Bergen"]


def test_groups_that_are_not_folded_are_open_again_after_a_search(page: Any, files: Any) -> None:
    live = opened(page, files("open tree", WORDS))
    rows = live.locator("tbody tr:visible")
    assert rows.count() == len(set(WORDS))
    live.locator("input").fill("bergen")
    assert rows.count() == 1
    live.locator("input").fill("")
    assert rows.count() == len(set(WORDS))


def test_hook_points_fold_and_are_found_by_click_and_by_keys(page: Any, files: Any) -> None:
    live = opened(page, files("hooks", WORDS))
    assert status(page) == f"{2 * len(WORDS)} in all"
    before, inside = live.locator("summary").all()
    assert inside.inner_text() == f"blocks.0 … blocks.1 {len(WORDS)}"
    assert live.locator("tbody tr:visible").count() == 0  # all folded
    inside.click()
    assert live.locator("tbody tr:visible").count() == len(WORDS)
    assert live.locator("tbody th:visible").first.inner_text() == "·The"
    inside.press("Enter")
    assert live.locator("tbody tr:visible").count() == 0
    live.locator("input").focus()
    page.keyboard.type("what bergen")
    assert status(page) == "2 found"
    assert live.locator("tbody tr:visible").count() == 2  # one in each group, both opened
    assert before.inner_text().endswith(f"1 of {len(WORDS)}")
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    assert status(page) == f"{2 * len(WORDS)} in all"


# What stays where scripts and networks do not


def test_without_scripts_picture_and_tables_remain(chromium: Any, files: Any) -> None:
    page = chromium.new_context(java_script_enabled=False, offline=True).new_page()
    for name in NAMES:
        page.goto(files(name, WORDS).as_uri())
        assert page.locator(".neox-picture img").is_visible(), name
        assert page.locator("table").count() > 0, name
    page.context.close()


def test_a_strange_script_in_a_page_is_refused(chromium: Any, files: Any, tmp_path: Path) -> None:
    text = files("heatmap", WORDS).read_text(encoding="utf-8")
    path = tmp_path / "changed.html"
    path.write_text(text.replace("<body>", "<body><script>window.hacked = 1</script>"), "utf-8")
    page = chromium.new_context(offline=True).new_page()
    page.goto(path.as_uri())
    page.locator(".neox-live").wait_for()
    assert page.evaluate("window.hacked") is None
    page.context.close()


def test_the_same_view_twice_in_a_page_lives_twice(page: Any, tmp_path: Path) -> None:
    view = every_view(WORDS)["heatmap"]
    path = tmp_path / "twice.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8>{view.to_html()}{view.to_html()}", "utf-8")
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.neox-live').length === 2")


def test_a_broken_view_leaves_its_picture(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    text = every_view(WORDS)["attention"].to_html()
    path.write_text(re.sub(r'"weights":"[^"]*"', '"weights":"AAAA"', text), "utf-8")
    page = chromium.new_context().new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_timeout(300)
    assert page.locator(".neox-picture img").is_visible()
    assert page.locator(".neox-live").count() == 0
    assert errors
    page.context.close()


def notebook_with(view: View, path: Path) -> Path:
    """A notebook that holds one output: the view's."""
    nbformat = pytest.importorskip("nbformat")
    import base64

    bundle = view._repr_mimebundle_()
    bundle["image/png"] = base64.b64encode(bundle["image/png"]).decode()
    output = nbformat.v4.new_output("execute_result", bundle, execution_count=1)
    cell = nbformat.v4.new_code_cell("view", outputs=[output], execution_count=1)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), path)
    return path


def test_a_page_made_from_a_notebook_is_alive_offline(page: Any, tmp_path: Path) -> None:
    nbconvert = pytest.importorskip("nbconvert")
    path = notebook_with(every_view(WORDS)["attention"], tmp_path / "view.ipynb")
    exporter = nbconvert.HTMLExporter(mathjax_url="", require_js_url="")
    text, _ = exporter.from_filename(str(path))
    (tmp_path / "view.html").write_text(text, "utf-8")
    live = opened(page, tmp_path / "view.html")
    live.locator("button.token").nth(2).hover()
    assert "looks at" in live.locator(".side").inner_text()


def test_a_graph_is_read_node_by_node(page: Any, tmp_path: Path) -> None:
    marks = [
        Mark("The@0", "token", -1, 0, 0.6),
        Mark("L0F5@0", "feature", 0, 0, 0.5, "layer 0, feature 5", "pages/5.html"),
        Mark("L0F6@0", "feature", 0, 0, 0.2),
        Mark("L1 error@1", "error", 1, 1, 0.1),
        Mark("L1F7@1", "feature", 1, 1, 0.7),
        Mark("logit city", "logit", 2, 1, 0.9),
    ]
    flows = [
        Flow(0, 1, 2.0, 1.0),
        Flow(1, 4, 3.0, 0.6),
        Flow(2, 4, -1.0, 0.2),
        Flow(0, 4, 1.0, 0.2),
        Flow(4, 5, 4.0, 0.8),
        Flow(3, 5, -1.0, 0.2),
    ]
    view = AttributionGraphView(["The", " city"], 2, marks, flows, {"pair": ["L0F5@0", "L0F6@0"]})
    view.to_html(tmp_path / "graph.html")
    live = opened(page, tmp_path / "graph.html")
    assert status(page) == "6 nodes, 6 edges"
    nodes = live.locator(".part")
    assert nodes.count() == 6
    by_name = {name: live.locator(f'.part[aria-label*="{name}"]') for name in view.place}
    by_name["L1F7@1"].hover()
    assert status(page) == "L1F7@1: 3 edges in, 1 out"
    said = live.locator(".edges").inner_text()
    assert re.search(r"pair\s+2\b", said), "nodes of a group are one line, their weights summed"
    assert live.locator('[data-kind="own"] path').count() == 4
    by_name["L0F5@0"].click()
    assert "Locked" in status(page)
    assert live.locator(".network-side a").get_attribute("href") == "pages/5.html"
    live.locator(".network-side button", has_text="Pin").click()
    by_name["L0F5@0"].click()  # leave
    by_name["L1F7@1"].click()
    live.locator(".network-side button", has_text="Pin").first.click()
    assert live.locator(".chip").all_inner_texts() == ["L0F5@0", "L1F7@1"]
    page.keyboard.press("Escape")
    by_name["L1F7@1"].focus()
    page.keyboard.press("Escape")
    live.locator(".network-side").hover()
    assert live.locator('[data-kind="own"] path').count() >= 1, "edges of pinned nodes stay"
    slider = live.locator("input[type=range]")
    slider.fill("2")
    assert live.locator('[data-kind="edges"] path').count() == 2
    assert "2 of 6" in live.locator(".slider output").inner_text()
    with page.expect_download() as waiting:
        live.get_by_title("Save the drawing as SVG").click()
    saved = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert "city" in saved and saved.count("<circle") == 3
    left, top = map(float, re.search(r'viewBox="(\S+) (\S+)', saved).groups())
    ends = [float(y) for y in re.findall(r'<circle[^>]* cy="([\d.]+)"', saved)]
    assert left < 0 and all(top < y for y in ends), "all of it is in sight"
