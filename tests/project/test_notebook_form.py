"""The notebooks read as one course: how each begins, how long it is, what it asks, how it ends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_notebook_texts import FOLDER, NOTEBOOKS, cells, said

import neox_lab as nl
from neox_lab.views import live

CELLS = range(12, 26)
LONGER = {"23_why_a_frame_fails": "one question followed to its end"}
WITHOUT_EXERCISE = {
    "22_explorer": "asks by itself",
    "23_why_a_frame_fails": "one question followed to its end",
    "30_finding_a_control": "the control is itself the question",
}
pytestmark = [
    pytest.mark.skipif(not NOTEBOOKS, reason="needs the repository's notebooks"),
    pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem),
]


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in cells(path.stem) if cell["cell_type"] == "code"]


def test_the_card_says_idea_result_and_time(path: Path) -> None:
    first = cells(path.stem)[0]
    lines = "".join(first["source"]).splitlines()
    assert first["cell_type"] == "markdown" and re.fullmatch(r"# \S.*", lines[0]), "a title"
    card = [line for line in lines if line.startswith("- **")]
    assert [line.split("**")[1] for line in card] == ["Idea.", "You will see", "Time"]
    assert re.match(r"- \*\*Time\*\* \d+ seconds on two cores", card[2]), "measured"
    assert lines[2:5] == card, "three lines, one below the other"


def test_it_is_read_in_one_sitting(path: Path) -> None:
    count = len(cells(path.stem))
    assert count >= CELLS.start
    assert (count < CELLS.stop) != (path.stem in LONGER), count


def test_the_first_screen_is_a_result(path: Path) -> None:
    assert any(cell.get("outputs") for cell in cells(path.stem)[:3]) or path.stem in LONGER


def test_the_model_is_that_of_the_course(path: Path) -> None:
    source = "\n".join("".join(cell["source"]) for cell in code(path))
    assert "os.environ.get" not in source or "NEOX_LAB_MODEL" not in source, (
        "course_model() reads it"
    )
    asked = "course_model()" in source or "course_training()" in source
    assert asked or "nl.load(" not in source or says_why(path)


def test_stored_pictures_are_of_todays_scripts(path: Path) -> None:
    today = {live.script(kind) for kind in live.kinds()}
    for cell in code(path):
        for output in cell["outputs"]:
            page = "".join(output.get("data", {}).get("text/html", ""))
            stored = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
            assert set(stored) <= today, "run it again: make notebooks"


def says_why(path: Path) -> bool:
    """Whether a text says that the built-in model itself is meant."""
    texts = ["".join(cell["source"]) for cell in cells(path.stem) if cell["cell_type"] != "code"]
    return any("is about the built-in model" in text for text in texts)


def test_it_asks_something_and_has_a_hint(path: Path) -> None:
    asked = re.findall(r'nl\.gym\.check\("([^"]+)", \.\.\.', "\n".join(map(str, cells(path.stem))))
    known = nl.gym.exercises()
    assert asked == known[known["notebook"] == path.stem]["name"].tolist()
    assert bool(asked) != (path.stem in WITHOUT_EXERCISE)


def test_the_question_shown_is_the_one_that_is_asked(path: Path) -> None:
    for cell in code(path):
        if asked := re.search(r'nl\.gym\.check\("([^"]+)", \.\.\.', "".join(cell["source"])):
            assert said(cell) == repr(nl.gym.check(asked[1])), "run this cell again"


def test_the_last_words_say_what_it_does_not_show_and_lead_on(path: Path) -> None:
    last = cells(path.stem)[-1]
    text = "".join(last["source"])
    assert last["cell_type"] == "markdown"
    assert re.match(r"## .*[Ww]hat this does not show", text)
    links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", text)
    assert links and all((FOLDER / link).exists() for link in links)
    assert path.name not in links, "to another one"
    after = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", text[text.index("Next") :])
    place = NOTEBOOKS.index(path)
    assert after[0] == NOTEBOOKS[(place + 1) % len(NOTEBOOKS)].name, (
        "first to the next of the course"
    )


def test_claims_hold(path: Path) -> None:
    shown = str([cell.get("outputs") for cell in code(path)])
    assert "Does not hold of this model" not in shown
