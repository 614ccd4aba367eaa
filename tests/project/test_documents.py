"""README and ``docs/``: links lead on, code runs, claims are shown by what exists."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rooms import ROOT

import neox_lab as nl
from neox_lab.built_in import weights_directory

README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE_PAGES = (ROOT / "docs" / "site_pages.py").read_text(encoding="utf-8")
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for folder in ("", "docs", "benchmarks", "neox_lab")
    for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")
OURS = re.compile(r"nl(\.\w+)+")
SHOWN_BY = re.compile(r"`((?:tests|benchmarks)/[\w/.]+)`")
PAGES_OF_DOCS = ("hooks", "questions", "heads", "gallery", "differences")
PAGES = ("README.md", *(f"docs/{each}.md" for each in PAGES_OF_DOCS))
ELSEWHERE = {
    "docs/coming-from.md": "tests/project/test_coming_from.py",
    "docs/many-machines.md": "tests/project/test_documents.py",  # what needs no cluster
    "docs/prompts.md": "tests/experiments/test_prompt_doctor.py",
}
"""Pages whose Python another test runs, and which."""


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
    gain = f"{min(means)} to {max(means)} times as fast"
    assert f"{gain} as TransformerLens" in README
    assert gain in (ROOT / "notebooks" / "05_activation_patching.ipynb").read_text("utf-8")
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


def test_every_page_with_code_is_run_by_some_test() -> None:
    assert {str(page) for page in DOCUMENTS if blocks_of(page)} == {*PAGES, *ELSEWHERE}
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), page


def calls_that_do_not_fit(block: str) -> list[str]:
    """Calls of ours in lines of Python that name what there is not, or give it what it refuses."""
    found = []
    for call in ast.walk(ast.parse(block)):
        if not isinstance(call, ast.Call) or not OURS.fullmatch(ast.unparse(call.func)):
            continue
        names = [each.arg for each in call.keywords if each.arg]
        try:
            function = eval(ast.unparse(call.func), {"nl": nl})
            given = [each for each in call.args if not isinstance(each, ast.Starred)]
            inspect.signature(function).bind_partial(*given, **dict.fromkeys(names))
        except (AttributeError, TypeError) as error:
            found.append(f"{ast.unparse(call)}: {error}")
    return found


def test_calls_that_do_not_fit_are_found() -> None:
    assert (
        calls_that_do_not_fit("nl.load('a', revision='b')\nnl.lens.logit_lens(model, *texts)") == []
    )
    wrong = "model = nl.loads()\nprint(nl.load(size=3))\nnl.activations.open(1, 2, 3)"
    assert len(calls_that_do_not_fit(wrong)) == 3


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_calls_on_a_page_fit_what_they_call(document: Path) -> None:
    """For lines too that no test runs, because they want a cluster or a model of 20B."""
    assert [each for block in blocks_of(document) for each in calls_that_do_not_fit(block)] == []


def test_every_page_is_in_the_navigation() -> None:
    places = dict(re.findall(r'^    "(\S+\.md)": "(\S+\.md)",$', SITE_PAGES, re.MULTILINE))
    listed = re.findall(r"^ +- (?:[\w ]+: )?([\w-]+\.md)$", NAVIGATION, re.MULTILINE)
    pages = [str(page) for page in DOCUMENTS]
    assert sorted(places.get(page, page.removeprefix("docs/")) for page in pages) == sorted(listed)


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
        exec(compile(on_the_built_in_model(block), page, "exec"), names)


def on_the_built_in_model(block: str) -> str:
    """Lines for a model of 20B and a GPU, as they are for one that is here."""
    return block.replace("EleutherAI/gpt-neox-20b", str(weights_directory())).replace(".cuda()", "")


@pytest.mark.slow
def test_a_pool_of_many_machines_runs(tmp_path: Path) -> None:
    """``measures.py`` and what the section on this machine shows, on the built-in model."""
    measures, run = blocks_of("docs/many-machines.md")[:2]
    (tmp_path / "texts.txt").write_text("The cat saw Mary.\n\nThe dog saw John.", encoding="utf-8")
    (tmp_path / "measures.py").write_text(measures.replace("/shared/", ""), encoding="utf-8")
    here = {'"EleutherAI/pythia-160m"': "None", '"all"': "[0, 18000]", "Executor(4": "Executor(2"}
    for shown, made in here.items():
        assert shown in run
        run = run.replace(shown, made)
    (tmp_path / "run.py").write_text(run, encoding="utf-8")
    printed = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert "step18000" in printed
    assert len(list((tmp_path / "runs" / "160m").iterdir())) > 2, printed
