"""Pages of features as files: what is in them, how large they are, what they leave alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.features.feature_pages import BYTES

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=alert(1)>&amp;\"'"
ODD = "\u202e\u2028 שלום 😀"
TEXTS = [f"The {noun} sat on the {place}. {noun}!" for noun in ("cat", "dog") for place in "abcd"]
SITE = "blocks.1.mlp.hook_post"


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


@pytest.fixture(scope="module")
def found(model: Any) -> Any:
    return nl.features.top_examples(model, SITE, TEXTS, held_out=0.3, progress=False)


class Seen(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_says_what_the_result_says(found: Any) -> None:
    latent = int(found.active.argmax())
    page = nl.features.page(found, latent)
    seen = Seen(page)
    assert {"script", "link", "img", "iframe"}.isdisjoint(seen.tags)
    assert len(page.encode()) <= BYTES
    strips = found.strips(latent)
    assert page.count('<p class="strip"') == len(strips) > 8
    for one in strips:
        assert f"{one.value:.4g}; " in seen.text
        assert f'data-v="{one.values[one.at]:.4g}"' in page
        assert f"document {one.document}, position {one.position}" in seen.text
    for row in found.nearest(latent).itertuples():
        assert f"{row.cosine:.3f}".replace("-", "−") in seen.text and row.name in seen.text
    effects = found.logit_effects(latent, 8)
    for effect in effects["effect"]:
        assert f"{effect:.3f}".replace("-", "−") in seen.text
    counts = re.findall(r': ([\d,]+) tokens"', page)
    assert sum(int(count.replace(",", "")) for count in counts) == int(found.active[latent])
    for told in ("the built-in model", SITE, f"{found.counted:,} tokens", "documents held out"):
        assert told in seen.text
    assert nl.features.page(found, latent) == page  # the same bytes each time


def test_a_page_is_small_and_hostile_text_stays_text(model: Any) -> None:
    vector = torch.randn(128, generator=torch.Generator().manual_seed(0))
    what = nl.features.Direction(vector, "blocks.2.hook_resid_post", bias=99.0, name=HOSTILE)
    texts = [f"{HOSTILE} {number} {ODD * 9}" for number in range(40)]
    found = nl.features.top_examples(
        model, what, texts, window=200, top=40, held_out=0.4, progress=False
    )
    page = nl.features.page(found, 0)
    assert len(page.encode()) <= BYTES
    seen = Seen(page)
    assert {"script", "img"}.isdisjoint(seen.tags)
    assert "onerror" not in seen.names
    assert "window.hacked" in seen.text and "\u202e" not in page and "\u2028" not in page
    assert "are shown." in seen.text
    framed = Seen(page._repr_html_())  # as a notebook shows it
    assert framed.tags == ["iframe"] and framed.names == {"sandbox", "srcdoc", "style"}
    assert not framed.text.strip()


@pytest.mark.parametrize(
    "what",
    [
        nl.features.Head(1, 2),
        nl.features.Head(1, 2, to="previous"),
        nl.features.Direction(torch.ones(128), "blocks.1.hook_resid_post", name="steering"),
        "blocks.0.hook_resid_pre",
    ],
    ids=["head", "attention", "direction", "stream"],
)
def test_the_same_page_for_whatever_has_features(model: Any, what: Any) -> None:
    found = nl.features.top_examples(model, what, TEXTS, progress=False)
    seen = Seen(nl.features.page(found, 0))
    assert found.source.name_of(0) in seen.text and "Where it is highest" in seen.text
    assert ("What it speaks for" in seen.text) == (found.source.directions is not None)


def test_a_folder_of_pages_and_its_index(found: Any, tmp_path: Path) -> None:
    latents = [3, 5, 3, -1]
    index = nl.features.pages(found, tmp_path / "new" / "pages", latents, progress=False)
    names = {path.name for path in index.parent.iterdir()}
    assert names == {"index.html", "3.html", "5.html", "255.html"}
    text = index.read_text()
    for latent in (3, 5, 255):
        assert f'<a href="{latent}.html">neuron {latent}</a>' in text
        single = nl.features.page(found, latent)
        both = (index.parent / f"{latent}.html").read_text()
        assert Seen(single).text in Seen(both).text.replace("All pages\n", "")
        assert 'href="index.html"' in both and "index.html" not in single
    again = nl.features.pages(found, index.parent, [5], progress=False)
    assert '"3.html"' not in again.read_text()
    nearest = int(found.nearest(3)["latent"][0])
    nl.features.pages(found, index.parent, [3, nearest], progress=False)
    assert f'<a href="{nearest}.html">' in (index.parent / "3.html").read_text()


def test_the_index_names_the_highest_tokens_alone(tmp_path: Path) -> None:
    model = nl.load()
    ids = model.tokenizer.encode(" cat dog The")
    strong, weak = ids[0], ids[1]

    def read(_cache: Any, given: torch.Tensor) -> nl.sae.Codes:
        values = 9.0 * (given == strong) + 1.0 * (given == weak)
        return nl.sae.Codes(torch.zeros_like(given)[..., None], values[..., None], 1)

    source = nl.features.Source("cats", "cat", ("hook_embed",), 1, read)
    texts = [[5, strong]] * 3 + [[5, weak]] * 4
    found = nl.features.top_examples(model, source, texts, top=1, held_out=0.3, progress=False)
    assert set(found.examples(0)["token"]) == {" cat", " dog"}
    index = nl.features.pages(found, tmp_path, [0], progress=False).read_text()
    assert re.search("cat[^a-z]?</td>", index) and "dog" not in index


def test_a_feature_that_never_is_active_has_a_page_too(model: Any) -> None:
    vectors = torch.stack([torch.ones(128), -torch.ones(128)])
    what = nl.features.Direction(vectors, "blocks.1.hook_resid_post", bias=-1e6)
    found = nl.features.top_examples(model, what, TEXTS[:2], progress=False)
    assert "Active at 0 of" in nl.features.page(found, 1)
    assert "none of the" in repr(found.view(1))
    with pytest.raises(InputError, match="no feature to make a page of"):
        nl.features.pages(found, "never made", progress=False)


def test_nothing_of_others_is_lost(found: Any, tmp_path: Path) -> None:
    theirs = tmp_path / "index.html"
    theirs.write_text("mine")
    with pytest.raises(InputError, match="another program's"):
        nl.features.pages(found, tmp_path, [3], progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert theirs.read_text() == "mine"
    with pytest.raises(InputError, match=r"path ending in '\.html'"):
        nl.features.page(found, 3, tmp_path / "page.txt")
    with pytest.raises(InputError, match="expected 0 to 255"):
        nl.features.pages(found, tmp_path / "other", [3, 256], progress=False)
    assert not (tmp_path / "other").exists()
    written = tmp_path / "one.html"
    assert nl.features.page(found, 3, written) == written.read_text()
