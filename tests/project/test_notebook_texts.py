"""What notebooks say beside what they show: sentences follow from stored outputs, links lead on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PARTS = (0, 2), (2, 3), (3, 5)
"""Columns of 23's table: heads of the start, the head behind "and", heads against who gives."""
pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="needs the repository's notebooks")


def cells(name: str) -> list[dict[str, Any]]:
    document = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = document["cells"]
    return found


def said(cell: dict[str, Any]) -> str:
    """What a cell's stored outputs say as plain text."""
    outputs = cell.get("outputs", [])
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs]
    return "\n".join("".join(text) for text in texts)


def output(name: str, within: str) -> str:
    """The outputs of the only cell whose source holds some words."""
    found = [cell for cell in cells(name) if within in "".join(cell["source"])]
    assert len(found) == 1, (name, within)
    return said(found[0])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_lead_on(path: Path) -> None:
    texts = ["".join(cell["source"]) for cell in cells(path.stem) if cell["cell_type"] != "code"]
    links = [link for text in texts for link in re.findall(r"\]\(([^):]+\.ipynb)\)", text)]
    assert [link for link in links if not (FOLDER / link).exists()] == []
    assert "Next" in texts[-1], "the last words say where to go on"
    after = texts[-1][texts[-1].index("Next") :]
    assert re.search(r"\[\d\d_\w+\]\(\d\d_\w+\.ipynb\)", after), "as a link"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_pictures_are_of_the_present_views(path: Path) -> None:
    shown = "\n".join(map(said, cells(path.stem)))
    assert "entropy (nats)" not in shown, "views say bits"
    assert "the deepest on top" not in shown, "layers run from top to bottom"
    odd = re.compile(r"layer \d+ head \d|\bhead [1-9]\d*\.\d(?!\d)")
    assert odd.findall(shown) == [], "a head is L3H0, or layer 3, head 0"


def test_01_says_of_beams_what_it_prints() -> None:
    shown = output("01_generate", "num_beams=4, num_return_sequences=2")
    greedy = float(re.findall(r"greedy +(-?[\d.]+)", shown)[0])
    beams = [float(total) for total in re.findall(r"beam +(-?[\d.]+)", shown)]
    gain = max(beams) - greedy
    words = "as likely as" if abs(gain) < 0.011 else "likelier than" if gain > 0 else "less likely"
    assert f"the best beam is {words}" in shown


def test_05_says_of_parts_of_a_head_what_it_prints() -> None:
    shown = output("05_activation_patching", "share = {name:")
    share = {name: float(value) for name, value in re.findall(r"L\dH\d, (\w+) +(\S+)", shown)}
    found = abs(share["v_all_pos"]) > abs(share["pattern_all_pos"])
    assert ("What it finds there matters more" in shown) == found
    assert ("Where it looks matters more" in shown) != found


def test_06_says_of_single_heads_what_it_shows() -> None:
    """One previous-token head cannot be spared; a single induction head is hardly missed."""
    shown = output("06_induction_heads", 'title="Without this head"')
    rows = re.findall(r"^  (\d) +\d  (\d) +(−?[\d.]+)$", shown, re.MULTILINE)
    damage = {(layer, head): float(rise.replace("−", "-")) for layer, head, rise in rows}
    found = output("06_induction_heads", "induction.top(4)")
    finders = re.findall(r"^\d +(\d) +(\d) ", found, re.MULTILINE)
    back = re.findall(
        r"L(\d)H(\d) looks one token back", output("06_induction_heads", "looks_back")
    )
    assert damage[back[0]] > 3, "in nats"
    assert finders and all(damage.get(head, 0.0) < 0.2 for head in finders)
    assert max(damage, key=lambda head: damage[head]) == back[0]


def test_04_says_of_layers_what_it_prints() -> None:
    shown = output("04_logit_lens", "means = frame.groupby")
    rows = re.findall(r"^\w+ +[\d.]+ +([\d.]+) +[\d.]+$", shown, re.MULTILINE)
    distances = [float(row) for row in rows]
    assert len(distances) == 5 and distances[-1] == 0
    assert ("Each layer comes closer" in shown) == (distances == sorted(distances, reverse=True))
    table = output("04_logit_lens", "result = nl.lens.logit_lens(model, prompt)")
    labels = re.findall(r"^  (\d_pre|final) ", table, re.MULTILINE)
    assert labels == ["0_pre", "1_pre", "2_pre", "3_pre", "final"], "the last row is the model's"


def test_04_says_of_depth_and_surprise_what_it_prints() -> None:
    shown = output("04_logit_lens", "depths = result.depths")
    count, total = map(int, re.findall(r"(\d+) of (\d+) predictions are settled", shown)[0])
    places = re.findall(r"^ +\d+  .+?  (\d_pre|final) ", shown, re.MULTILINE)
    assert (len(places), sum(place != "final" for place in places)) == (total, count)
    curve = output("04_logit_lens", "surprise = many.mean_surprise()")
    rows = re.findall(r"^(?:\d_pre|final) +([\d.]+) +([\d.]+) +([\d.]+) ", curve, re.MULTILINE)
    assert len(rows) == 5 and all(float(low) <= float(at) <= float(high) for at, low, high in rows)
    clear = float(rows[-1][2]) < float(rows[0][1])
    assert ("The end is less surprised than the start" in curve) == clear


def test_00_says_of_patching_what_it_prints() -> None:
    shown = output("00_start_here", 'metric, "resid_pre", progress=False)')
    places = re.findall(r"at token (\d+), in the last at (\d+) of 0 to (\d+)", shown)
    first, last, end = map(int, places[0])
    rows = re.findall(r"^ +(\d) +(\d+) .* (-?[\d.]+)$", shown, re.MULTILINE)
    largest = {layer: int(pos) for layer, pos, _ in reversed(rows)}  # the strongest comes first
    assert (largest["0"], largest["3"]) == (first, last)
    assert last == end, "the text speaks of the last token"


def test_22_prints_calls_that_run() -> None:
    shown = output("22_explorer", "print(explorer.result.python)")
    compile(shown, "copied", "exec")
    assert not re.search(r"\{\w+\}", shown), "no place is left open"
    assert shown.startswith("import neox_lab as nl\n")


def test_24_says_of_weights_and_texts_what_it_prints() -> None:
    shown = output("24_heads_in_weights_and_texts", "young = nl.detect.composition")
    before, after = map(float, re.findall(r"training: ([\d.]+) spreads", shown))
    assert before < 4 < 10 < after, "before training no pair is far from random matrices"
    pairs = re.findall(r"^\d +(L\dH\d) +(L\dH\d) ", shown, re.MULTILINE)
    assert len(pairs) == 4
    found = output("06_induction_heads", "induction.top(4)")
    finders = re.findall(r"^\d +(\d) +(\d) ", found, re.MULTILINE)
    assert {reader for _, reader in pairs} == {f"L{layer}H{head}" for layer, head in finders}
    looks = output("24_heads_in_weights_and_texts", 'looks.top(3, "previous_token")')
    back = re.findall(r"^0 .* (L\dH\d)$", looks, re.MULTILINE)
    assert {writer for writer, _ in pairs} == set(back), "one token back in texts as well"
    table = output("24_heads_in_weights_and_texts", 'one = looks.frame[(looks.frame["layer"]')
    rows = re.findall(r"(entropy_bits|distance) +(True|False) +([\d.]+)", table)
    means = {(name, first): float(mean) for name, first, mean in rows}
    for name in ("entropy_bits", "distance"):
        assert means[name, "False"] < means[name, "True"], "less far back, and surer"
    spectrum = output("24_heads_in_weights_and_texts", "moves.spectrum()")
    own = float(re.findall(r"^  OV of L1H\d +([\d.]+)", spectrum, re.MULTILINE)[0])
    drawn = float(re.findall(r"^  random matrix +([\d.]+)", spectrum, re.MULTILINE)[0])
    assert own < drawn, "less of its norm than that of a random matrix"
    shares = output("24_heads_in_weights_and_texts", "largest share of an induction head")
    assert 0.2 < float(re.findall(r"neurons: ([\d.]+)", shares)[0]) < 0.3, "a quarter"


def test_14_says_of_layers_what_it_prints() -> None:
    shown = output("14_tuned_lens", "below = bool(")
    numbers = re.findall(r"^\d +\d_pre +[\d.]+ +[\d.]+ +([\d.]+)", shown, re.MULTILINE)
    lows = re.findall(r"^\d +([\d.]+) +[\d.]+ *$", shown, re.MULTILINE)
    assert len(numbers) == len(lows) == 4
    below = all(float(a) < float(b) for a, b in zip(numbers, lows, strict=True))
    assert ("At every layer the tuned lens is closer" in shown) == below
    shown = output("14_tuned_lens", "means = over_training")
    rows = re.findall(r"^(\d+) +([\d.]+) +([\d.]+)$", shown, re.MULTILINE)
    closer = [int(step) for step, tuned, logit in rows if float(tuned) < float(logit)]
    assert len(rows) == 10 and f"at steps {closer}" in shown


def test_15_says_of_a_feature_what_it_prints() -> None:
    bars = output("15_features", "texts, held_out=0.3")
    counts = dict(re.findall(r"^  ([\d.]+ to [\d.]+|never) +(\d+)$", bars, re.MULTILINE))
    assert sum(map(int, counts.values())) == 512
    assert int(counts["0.1 to 1"]) < 256, "most at fewer than one token in ten"
    shown = output("15_features", "measured = pd.concat(rows)")
    active = int(re.findall(r"active in (\d+) of 12 prompts", shown)[0])
    gains = int(re.findall(r"^(\d+) of them", shown, re.MULTILINE)[0])
    own, others = map(float, re.findall(r"effect ([\d.]+),\nof .* ([\d.]+)\.", shown)[0])
    assert active == gains == 12 and own > 10 * others, "more than most"
    effects = output("15_features", "found.logit_effects(year, 8)")
    rows = re.findall(r"^\d+ +\d+ +(\S+) +(-?[\d.]+)$", effects, re.MULTILINE)
    years = [int(token) for token, effect in rows if re.fullmatch(r"1\d{3}", token)]
    assert len(years) > 5 and min(years) > 1750, "years, and late ones"
    sizes = output("15_features", "index = nl.features.pages(")
    assert int(sizes.split()[0]) <= 60_000


def test_17_says_of_the_circuit_what_it_prints() -> None:
    rows = {
        line.split()[0]: [float(cell) for cell in line.split()[1:]]
        for line in output("17_circuits", '"best random": found.random').splitlines()[1:]
    }
    faithful, left_outside, best_random = rows["resample"]
    assert faithful > 0.9 > 0.2 > max(abs(left_outside), best_random), "it does the job alone"
    assert max(rows["mean"][0], rows["zero"][0]) < rows["mean_by_pos"][0] < faithful, (
        "against zeros or means more of the model is needed"
    )


def test_25_says_of_estimates_what_it_prints() -> None:
    found: dict[str, list[float]] = {}  # two for each planted model: induction, two steps, names
    for line in output("25_where_estimates_fail", "scored[name, kind].recovery(").splitlines():
        name, *cells = re.split(r"  +", line.strip())
        if cells and re.fullmatch(r"[\d.]+", cells[0]):
            found.setdefault(name, []).extend(map(float, cells))
    assert len(found) == 7 and all(len(row) == 6 for row in found.values())
    assert found["exact"] == [1] * 6 and all(row[2:4] == [1, 1] for row in found.values())
    assert max(found["eap"][4], found["both-ends"][4]) < 0.7, "they see next to nothing"
    few, more, many = (found[f"eap-ig, {steps} steps"] for steps in (5, 10, 20))
    assert more[4] > few[4] and more[4] > many[4] and more[0] < few[0], "more are not always better"


def test_19_says_of_steering_what_it_prints() -> None:
    about_zero, about_mean, ours = map(
        float, re.findall(r": +([\d.]+)$", output("19_steering", "about_mean ="), re.MULTILINE)
    )
    assert min(about_zero, ours) > 0.9 > 0.5 > about_mean
    effects = output("19_steering", "curve.control_effects")
    pattern = r"^.*(scale to the highest|random|shuffled): ([-\d., ]+)$"
    numbers = {
        name: [float(number) for number in found.split(", ")]
        for name, found in re.findall(pattern, effects, re.MULTILINE)
    }
    (own,) = numbers.pop("scale to the highest")
    assert own > 3 * max(abs(number) for found in numbers.values() for number in found)
    removed = output("19_steering", "happy.remove_from_weights()")
    assert float(re.findall(r"largest difference: (\S+)", removed)[0]) < 1e-4
    rows = [list(map(float, re.findall(r"\w+ (\d\.\d\d)", row))) for row in removed.split("\n")[1:]]
    kept, without = (row for row in rows if row)
    assert kept[0] > 0.9 > 0.75 > without[0], "praise and blame are hard to tell apart"
    assert without[1:] == pytest.approx(kept[1:], abs=0.05), "other tasks stay"


def test_23_says_of_the_frame_what_it_prints() -> None:
    square = output("23_why_a_frame_fails", 'for join in ("with", "and")')
    rights = {
        (join, begin): int(right)
        for join, begin, right in re.findall(r"(with|and) +(There|Then) +(\d+) ", square)
    }
    assert rights["with", "There"] == 0 and rights["and", "Then"] > 65
    assert 0 < max(rights["with", "Then"], rights["and", "There"]) < 36, "both words count"
    table = output("23_why_a_frame_fails", 'by="head")')
    parts = {
        title: [float(part) for part in row.split()]
        for title, row in re.findall(r"^(\w+, \w+ gives) +(.*)$", table, re.MULTILINE)
    }
    start, behind, against = ({t: sum(p[a:b]) for t, p in parts.items()} for a, b in PARTS)
    assert start["works, first gives"] < -9 < 9 < start["works, second gives"]
    assert max(abs(start[t] + behind[t]) for t in parts if "works" in t) < 3, "it cancels"
    assert min(against[t] for t in parts if "works" in t) > 5, "this decides"
    assert start["fails, first gives"] < -6 < 6 < start["fails, second gives"], "as ever"
    assert max(abs(p[t]) for p in (behind, against) for t in parts if "fails" in t) < 1
    layers = output("23_why_a_frame_fails", "def by_layer(frame)")
    assert re.findall(r"where it (\w+), layer (\d) changes", layers) == [
        ("fails", "1"),
        ("works", "3"),
    ]
    told = output("23_why_a_frame_fails", "def written(head")
    found = re.findall(r"^\d +(.*?) +([\d.]+) +(\d+)$", told, re.MULTILINE)
    helps = [title for title, look, right in found if float(look) > 0.5 and int(right) > 36]
    assert helps == ["L0H2 at the other name", "L0H2 at the other name, of other people"]
    edges = output("23_why_a_frame_fails", "evaluation = circuit.evaluate(random=20)")
    faithful, chance = map(float, re.findall(r"edges ([\d.]+); .* most (-?[\d.]+)", edges)[0])
    assert faithful > 0.5 > 0.1 > chance
    others = [float(other) for other in re.findall(r"^L\dH\d +\S+ +\S+ +(\S+)$", edges, re.M)]
    assert max(map(abs, others[:4])) < 0.3 < 5 < min(map(abs, others[4:])), "layer 3 alone"
    off = output("23_why_a_frame_fails", "pairs = {pair: right(fails, without(pair))")
    without, most = map(int, re.findall(r"L1H3: (\d+);\n.* most (\d+)", off)[0])
    assert without > 2 * most
    assert re.findall(r"(\d+) of 72", output("23_why_a_frame_fails", "bystander =")) == [
        *("0", "0", "72")
    ]
    ahead = output("23_why_a_frame_fails", "def foretold(")
    rows = re.findall(r"^\w+ .*? +([\d.]+) +([\d.]+) +([\d.]+) +\d", ahead, re.MULTILINE)
    assert len(rows) == 2
    for own, sign, drawn in (map(float, row) for row in rows):
        assert own > drawn + 0.2 and sign > 0.6


def test_20_says_of_the_variables_what_it_prints() -> None:
    exchanged = output(
        "20_interchange", "for layer in range(model.config.num_hidden_layers):\n    s"
    )
    assert exchanged.split() == ["0", "Tom", "1", "Mary", "2", "Mary", "3", "John"]
    one = output("20_interchange", "found = nl.interchange.das(model")
    bars = dict(re.findall(r"^  (\S.*?) +(\d\.\d+)$", one, re.MULTILINE))
    assert float(bars["subspace"]) == float(bars["whole site"]) > 0.95
    assert float(bars["random subspace"]) < 0.1 < float(bars["permuted labels"])
    assert 0.4 < float(bars["random model"]) < 0.6, "about every second by chance"
    whole = output("20_interchange", "whole.pivot").splitlines()
    last, begin = zip(*(map(float, line.split()[1:]) for line in whole[2:]), strict=True)
    assert begin[0] > 0.7 > 0.1 > max(begin[1:]) and min(last[1:]) > 0.9 > 0.3 > last[0]
    searched = output("20_interchange", "searched = nl.interchange.das")
    accuracy, chance = map(float, re.findall(r"accuracy (\S+), chance (\S+),", searched)[0])
    nulls = [
        float(each) for each in re.findall(r"(?:subspace|labels|model) +\d+ +(\d\S*)", searched)
    ]
    assert accuracy >= 0.98 and len(nulls) == 3
    assert all(abs(each - chance) <= 0.05 for each in nulls), "and the nulls stay at chance"
    assert "numbers [2] of 16, accuracy 1.00" in output("20_interchange", "masked = ")


FINDINGS = {
    "26_finding_induction": [],
    "27_finding_indirect_object": ["another way", "another way", "another way", "nobody steps in"],
    "28_finding_greater_than": [],
    "29_finding_a_fact": ["no clear difference"],
    "30_finding_a_control": [],
}
"""What is not as published in each, in the order of its table."""


@pytest.mark.parametrize("name", FINDINGS)
def test_findings_say_of_the_built_in_model_what_they_found(name: str) -> None:
    headings = [text for cell in cells(name) if "Found again" in (text := "".join(cell["source"]))]
    surprising = bool(FINDINGS[name])
    assert ("Found again?" in headings[0]) == surprising, "the title asks where the answer is no"
    table = output(name, '"published')
    found = re.findall(r"as published|another way|nobody steps in|no clear difference", table)
    assert [each for each in found if each != "as published"] == FINDINGS[name]
    intervals = re.findall(r"(-?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\)", table)
    assert intervals, "every table has intervals"
    assert all(float(low) <= float(mean) <= float(high) for mean, low, high in intervals)
