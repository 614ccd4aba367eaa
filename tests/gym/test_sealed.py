"""The sealed set: its items, that training has none of its sentences, and that nothing reads it."""

from __future__ import annotations

import ast
import functools
import hashlib
import math
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.experiments.prompt_doctor.checks import CHECKS
from neox_lab.gym import corpus, labelled, sealed, words, world

DIGEST = "e40f380c4273dd628f6b8e5013bc100f6135d1c5d18ef836c36f76e257fb53fe"
PACKAGE = Path(nl.__file__).parent
TRAINING = ("train", "head_training", "dictionary_training")
LOGITS = ["logit_difference", "logit_difference_low", "logit_difference_high"]
LOGITS += ["corrupted_logit_difference"]
LISTS = 5
"""Sentence frames of induction that are nothing but a list of words."""
FILLERS = {
    str(word).lower()
    for pool in (
        *(words.NAMES, words.SURNAMES, words.PLACES, words.OBJECTS, words.CONTAINERS),
        *(words.COUNTRIES, *words.COUNTRIES.values(), words.NOUNS, words.NOUNS.values()),
        *(words.POSITIVE, words.NEGATIVE, words.REVIEWED, words.YEARS, words.MONTHS),
    )
    for word in pool
}
ALIKE = {"a": "the", "an": "the", "are": "is", "were": "was", "have": "has", "she": "he"}
ALIKE |= {"her": "his", "herself": "himself", "hated": "loved", "sad": "happy", "bad": "good"}
ALIKE |= {"blamed": "praised", "women": "men", "woman": "man", "sister": "brother", "girl": "boy"}


def frames(text: str) -> set[str]:
    """The sentences of a text: what the world fills in is "_", forms of a word are one."""
    parts = (re.findall(r"[a-z0-9]+", part) for part in re.split(r"[.!?:;\n]", text.lower()))
    masked = (["_" if w in FILLERS else ALIKE.get(w, w) for w in part] for part in parts)
    return {" ".join(part) for part in masked if part}


@functools.cache
def generated() -> frozenset[str]:
    """Frames of all that the generators make, for training or held out; lists of words aside."""
    random = Random(0)
    texts = [
        asking + rest
        for kind in (*corpus.KINDS, *corpus.LATER)
        for asking, rest in corpus.world_texts(kind, 600, random)
    ]
    texts += [p.clean + p.correct for t in world.TASKS.values() for p in t.pairs(300)]
    for rows in (labelled.reviews, labelled.sentences, labelled.questions, labelled.rephrased):
        texts += [
            row.get("text") or f"{row['question']}\n{row['context']}"
            for row in rows("held-out", 300)
        ]
    found = set().union(*map(frames, texts))
    return frozenset(frame for frame in found if set(frame) != {"_", " "} and " " in frame)


def within(part: str, whole: str) -> bool:
    """Whether one frame's words stand in the other, in a row."""
    return f" {part} " in f" {whole} "


def alike(text: str) -> set[str]:
    """Generated frames that hold a sentence of a text, or that a sentence of it holds."""
    return {
        frame
        for own in frames(text)
        for frame in generated()
        if own == frame
        or (set(own) != {"_", " "} and within(own, frame))
        or (frame.count(" ") >= 2 and within(frame, own))
    }


def tiny(vocab_size: int) -> Any:
    """A model that knows nothing, with the tokenizer of the built-in one."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = nl.GPTNeoXForCausalLM(
        nl.GPTNeoXConfig(vocab_size=vocab_size, intermediate_size=32, **sizes)
    )
    model.tokenizer = nl.load().tokenizer
    return model


@pytest.fixture(scope="module")
def items() -> Any:
    return sealed.items()


def test_the_items_are_those_that_were_sealed(items: Any) -> None:
    assert hashlib.sha256(sealed.FILE.read_bytes()).hexdigest() == DIGEST
    counts = items["task"].value_counts()
    assert list(items["task"].unique()) == list(world.TASKS)
    assert counts.min() >= 120
    assert items.groupby("task")["sentence"].nunique().min() >= 12
    assert not items.duplicated(["clean", "corrupted", "correct", "wrong"]).any()
    assert not items[["clean", "corrupted"]].apply(lambda c: c.str.contains("[{}]")).any().any()


def test_the_prompts_pass_the_checks(items: Any) -> None:
    asks_the_model = {"wrong_preferred", "no_effect"}  # what it answers is what is measured
    assert asks_the_model < {check.name for check in CHECKS}
    answers = list(zip(items["correct"], items["wrong"], strict=True))
    report = nl.check_prompts(tiny(2048), list(items["clean"]), list(items["corrupted"]), answers)
    found = report.frame[~report.frame["check"].isin(asks_the_model)]
    assert found[found["severity"] != "note"].empty
    assert set(found["check"]) <= {"answer_in_prompt"}
    assert set(items["task"].iloc[found["item"]]) == {"induction", "tracking"}


@pytest.mark.parametrize("task", world.TASKS)
def test_no_sentence_is_one_of_the_worlds(items: Any, task: str) -> None:
    first = items[items["task"] == task].drop_duplicates("sentence")
    for row in first.itertuples():
        assert alike(row.clean + row.correct) == set(), row.clean


def test_a_sentence_of_the_world_would_be_found() -> None:
    for name, task in world.TASKS.items():
        for pair in task.pairs(20, "train", seed=5) if name != "induction" else []:
            assert alike(pair.clean + pair.correct), pair
    assert alike("We heard that the king was wonderful and good")
    assert not alike("We heard nothing of the king")


def test_lists_have_other_words_or_are_longer(items: Any) -> None:
    rows = items[items["task"] == "induction"]
    lists = rows[~rows["sentence"].str.contains(r"(?<![{\w])[a-z]", regex=True)]
    lists = lists[~lists["sentence"].str.contains("[,/]", regex=True)]
    assert lists["sentence"].nunique() == LISTS
    longest = max(p.clean.count(" ") for p in world.TASKS["induction"].pairs(500, "train"))
    for row in lists.itertuples():
        known = set(row.clean.split()) & set(world.UNRELATED)
        assert not known or row.clean.count(" ") > longest


def test_answers_follow_from_the_words(items: Any) -> None:
    """A second way to the answer, from the words of each item."""
    for row in items.itertuples():
        one, other = row.correct.strip(), row.wrong.strip()
        said = re.findall(r"\w+", row.clean)
        if row.task == "ioi":
            assert (said.count(one), said.count(other)) == (1, 2)
        elif row.task == "facts":
            country = next(word for word in said if word in words.COUNTRIES)
            assert one in words.COUNTRIES[country] and other not in words.COUNTRIES[country]
        elif row.task == "agreement":
            nouns = [w for w in said if w in {*words.NOUNS, *words.NOUNS.values()}]
            assert (nouns[0] in words.NOUNS.values()) == (one in words.VERBS.values())
            assert (nouns[1] in words.NOUNS.values()) != (one in words.VERBS.values())
        elif row.task == "pronouns":
            (name,) = (word for word in said if word in words.NAMES)
            assert (one, other) == (("she", "he") if name in words.WOMEN else ("he", "she"))
        elif row.task == "greater_than":
            (year,) = (int(word) for word in said if word.isdigit())
            assert int(one) > year > int(other)
        elif row.task == "sentiment":
            praise = {"loved", "happy", "good", "praised"}
            found = [word in words.POSITIVE for word in said if word in (*words.POSITIVE,)]
            assert bool(found) == (one in praise) != (other in praise)
            assert bool(found) != any(word in words.NEGATIVE for word in said)


def test_items_with_a_middle_name_their_answer_once(items: Any) -> None:
    for row in items[items["task"].isin(["induction", "tracking"])].itertuples():
        said = re.findall(r"\w+", row.clean)
        assert row.correct.strip() in said
        changed = re.findall(r"\w+", row.corrupted)
        assert len(said) == len(changed)
        assert 1 <= sum(a != b for a, b in zip(said, changed, strict=True)) <= 3
        assert row.wrong.strip() in changed


@functools.cache
def imports(name: str) -> frozenset[str]:
    """What a module of the package imports, at once or later; nothing of another."""
    place = PACKAGE.parent / name.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not path.is_file() or PACKAGE not in path.parents:
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for top in tree.body:
        if isinstance(top, ast.If) and ast.unparse(top.test) == "TYPE_CHECKING":
            continue
        for node in ast.walk(top):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
    return frozenset(found)


def imported(module: str) -> set[str]:
    """A module and all that it imports, and that those import."""
    found, ahead = set(), [module]
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += imports(name)
    return found


@pytest.mark.parametrize("script", TRAINING)
def test_training_imports_nothing_that_reads_it(script: str) -> None:
    below = imported(f"neox_lab.gym.{script}")
    assert {"neox_lab.gym.words", "neox_lab.gym.examples"} <= below
    assert "neox_lab.gym.sealed" not in below


def test_no_other_file_names_it() -> None:
    named = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bsealed\b", path.read_text(encoding="utf-8"))
    }
    assert named == {"gym/__init__.py", "gym/sealed.py"}


def test_drawing_training_data_opens_it_not() -> None:
    code = """
import sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
from random import Random
from neox_lab.gym import corpus, dictionary_training, head_training, labelled, train
from neox_lab.gym.evaluation import tasks
for kind in (*corpus.KINDS, *corpus.LATER):
    corpus.world_texts(kind, 3, Random(0))
labelled.rephrased("train", 3), labelled.fragments("train", 3), tasks(2)
assert any("gym/words" in path for path in opened)
print([path for path in opened if "gym/sealed" in path], "neox_lab.gym.sealed" in sys.modules)
"""
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[] False"


def test_intervals_are_over_items_and_over_sentences() -> None:
    found = sealed.evaluate(nl.load(revision="step0"), ["agreement", "ioi"])
    assert list(found.frame["task"]) == ["agreement", "ioi"]
    by = found.by_sentence
    for row in found.frame.itertuples():
        own = by[by["task"] == row.task]
        assert (row.frames, row.count) == (12, own["count"].sum()) == (12, 144)
        assert row.accuracy == pytest.approx(own["right"].sum() / 144)
        exact = binomtest(int(own["right"].sum()), 144).proportion_ci(0.95, method="wilson")
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx((exact.low, exact.high))
        assert row.frames_low < row.accuracy < row.frames_high
        assert row.chance == 0.5
    again = sealed.evaluate(nl.load(revision="step0"), ["ioi"], batch_size=72)
    assert again.frame.iloc[0].drop(LOGITS).equals(found.frame.iloc[1].drop(LOGITS))
    picked = found.examples.iloc[::40]
    for row in picked.itertuples():
        logits = nl.load(revision="step0")(row.clean).logits[0, -1]
        right, wrong = (nl.load().to_single_token(text) for text in (row.correct, row.wrong))
        alone = float((logits[right] - logits[wrong]).detach())
        assert row.logit_difference == pytest.approx(alone, abs=1e-3)


def test_the_card_says_what_is_found() -> None:
    card = (PACKAGE / "gym" / "README.md").read_text(encoding="utf-8")
    table = re.findall(
        r"^\| (\w+) \| [\d.]+ \| ([\d.]+) \| (.*) to (.*) \| .* \| (.*) \|$", card, re.M
    )
    assert [name for name, *_ in table] == list(world.TASKS)
    every = sealed.items()
    assert f"{len(every)} items that nobody looked at" in card
    assert f"in {every['sentence'].nunique()} sentence frames by hand" in card
    found = sealed.evaluate(nl.load())
    for row, (_, *told) in zip(found.frame.itertuples(), table, strict=True):
        numbers = (row.accuracy, row.accuracy_low, row.accuracy_high, row.moved)
        assert numbers == pytest.approx(tuple(map(float, told)), abs=0.015), row.task
    assert float(re.findall(r"The average is \*\*(0\.\d+)\*\*; chance", card)[0]) == pytest.approx(
        found.accuracy, abs=0.005
    )


def test_one_answer_to_all_is_half_right_and_may_be_moved() -> None:
    model = nl.load()
    token = model.to_single_token(" he")
    with torch.no_grad():  # as if " he" were always said: every other answer is far behind
        model.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(2048))
        model.get_output_embeddings().bias[token] = 100.0
    (row,) = sealed.evaluate(model, ["pronouns"]).frame.itertuples()
    (own,) = sealed.evaluate(nl.load(), ["pronouns"]).frame.itertuples()
    assert (row.accuracy, row.frames_low, row.frames_high) == (0.5, 0.5, 0.5)
    assert (row.moved, row.moved_low) == (own.moved, own.moved_low) != (0.5, 0.5)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(InputError, match="expected one of ioi"):
        sealed.evaluate(nl.load(), ["iou"])
    with pytest.raises(InputError, match="tasks is empty"):
        sealed.evaluate(nl.load(), [])
    with pytest.raises(InputError, match="seed"):
        sealed.evaluate(nl.load(revision="step0"), ["ioi"], seed=-1)
    with pytest.raises(InputError, match="expected 'causal-lm'"):
        sealed.evaluate(nl.load(head="question-answering"))


def test_a_tokenizer_that_cannot_ask_gives_missing_numbers() -> None:
    (row,) = sealed.evaluate(tiny(300), ["ioi"]).frame.itertuples()
    assert (row.count, row.left_out, row.frames) == (0, 144, 0)
    assert all(map(math.isnan, (row.accuracy, row.frames_low, row.moved, row.moved_high)))


def test_a_model_that_says_nan_gives_missing_numbers() -> None:
    model = nl.load()
    with torch.no_grad():
        model.get_input_embeddings().weight[model.to_single_token(" Greece")] = math.nan
    with pytest.warns(nl.errors.NeoxLabWarning, match="logit difference"):
        (row,) = sealed.evaluate(model, ["facts"]).frame.itertuples()
    assert all(map(math.isnan, (row.accuracy, row.frames_low, row.moved, row.moved_high)))
