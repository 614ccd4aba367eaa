"""README and ``docs/``: links lead on, code runs, claims are shown by what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from rooms import ROOT

import neox_lab as nl

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for folder in ("", "docs", "benchmarks", "neox_lab")
    for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")
SHOWN_BY = re.compile(r"`((?:tests|benchmarks)/[\w/.]+)`")
PAGES = ("README.md", *(f"docs/{each}.md" for each in ("hooks", "questions", "heads", "gallery")))


def prose(path: Path) -> str:
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """What a page's headings are called in addresses."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def section(heading: str) -> str:
    return README.partition(f"## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(prose(ROOT / document)):
        name, _, anchor = link.partition("#")
        target = (ROOT / document).parent / name if name else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_front() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(README)}
    assert {str(page) for page in DOCUMENTS if page.parts[0] == "docs"} <= linked


def test_the_front_page_is_short_and_has_its_picture() -> None:
    assert len(README.splitlines()) <= 110
    words, path = re.findall(r"!\[(.+)\]\((.+\.png)\)", README)[0]
    assert len(words) > 50, "the picture in words"
    assert (ROOT / path).stat().st_size < 150_000


def test_every_claim_is_shown_by_something() -> None:
    rows = [line for line in section("What others do not do").splitlines() if "`" in line]
    assert len(rows) > 10
    for row in rows:
        claim, shown_by = row.strip("|").split(" | ")
        files = SHOWN_BY.findall(shown_by)
        assert files, claim
        assert [name for name in files if not (ROOT / name).is_file()] == []


def test_claimed_figures_are_the_measured_ones() -> None:
    figures = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    means = [int(mean) for mean in re.findall(r"\*\*(\d+)\*\*", figures)]
    assert f"{min(means)} to {max(means)} times as fast as TransformerLens" in README
    share = re.findall(r"^\| a saved notebook .* \| (1/\d+), ", figures, re.MULTILINE)
    assert f"at {share[0]} of the bytes of CircuitsVis" in README


def test_every_notebook_is_listed() -> None:
    listed = re.findall(r"\[`(\d\d_\w+)`\]\(notebooks/\1\.ipynb\)", section("Notebooks"))
    assert listed == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_the_refusal_is_quoted() -> None:
    with pytest.raises(nl.errors.ConfigError) as refused:
        nl.GPTNeoXConfig.from_dict({"model_type": "llama"})
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert str(refused.value) in " ".join(page.split())


def blocks_of(document: Path | str) -> list[str]:
    """The Python on a page; what is another library's is marked so and left out."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_a_function_is_shown_with_what_it_takes(document: Path) -> None:
    """A line that only names a function runs, and shows nobody how to call it."""
    for block in blocks_of(document):
        for line in ast.parse(block).body:
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Attribute):
                named = ast.unparse(line.value)
                assert not named.startswith("nl.") or not callable(eval(named, {"nl": nl})), named


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page go on from each other; files they read are here."""
    monkeypatch.chdir(tmp_path)
    for name in ("reviews.csv", "more.csv", "test.csv"):
        rows = "The film was fine.,positive\nThe film was dull.,negative\n" * 4
        Path(name).write_text(f"text,label\n{rows}", encoding="utf-8")
    names: dict[str, Any] = {}
    assert blocks_of(page)
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), names)
