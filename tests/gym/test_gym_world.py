"""The small world: generators, splits, labelled data, and the text side of training."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import neox_lab as nl
from neox_lab.data.squad import read_squad
from neox_lab.errors import InputError
from neox_lab.family.losses import IGNORED
from neox_lab.gym import corpus, labelled, training_texts, words, world
from neox_lab.gym.examples import Example
from neox_lab.tasks import answering, tagging

SEEDS = st.integers(0, 10**6)
TEMPLATES = {
    "ioi": [world.GIVING],
    "facts": [world.CAPITALS, world.LANGUAGES],
    "agreement": [world.NEAR],
    "pronouns": [world.PRONOUNS],
    "greater_than": [world.SPANS],
    "sentiment": [world.OPINIONS],
    "tracking": list(world.ASKED.values()),
}
POOLS: dict[str, list[tuple[Any, ...]]] = {
    "ioi": [words.NAMES],
    "induction": [world.UNRELATED],
    "agreement": [tuple(words.NOUNS)],
    "pronouns": [words.WOMEN, words.MEN],
    "greater_than": [world.BEGINNINGS],
    "sentiment": [words.POSITIVE, words.NEGATIVE],
    "tracking": [words.OBJECTS, words.NAMES],
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return nl.GPTNeoXTokenizerFast.from_pretrained(nl.gym.weights_directory())


@pytest.mark.parametrize("name", world.TASKS)
@given(seed=SEEDS, part=st.sampled_from(["train", "held-out"]))
@settings(max_examples=60, deadline=None)
def test_pairs_have_as_many_tokens_and_answers_of_one(
    tokenizer: Any, name: str, seed: int, part: words.Split
) -> None:
    pair = world.TASKS[name].draw(Random(seed), part).pair
    clean, corrupted = (tokenizer(text).input_ids for text in (pair.clean, pair.corrupted))
    assert len(clean) == len(corrupted)
    assert clean != corrupted
    assert pair.correct != pair.wrong
    for answer in (pair.correct, pair.wrong):
        assert tokenizer(pair.clean + answer).input_ids[:-1] == clean
        assert len(tokenizer(answer).input_ids) == 1


@pytest.mark.parametrize("name", world.TASKS)
@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_training_never_shows_what_is_held_out(name: str, seed: int) -> None:
    draw = world.TASKS[name].draw
    assert not _new(name, draw(Random(seed), "train"))
    assert _new(name, draw(Random(seed), "held-out"))


def _new(name: str, example: Example) -> set[str]:
    """What in the example training may not show."""
    new = {
        word
        for pool in POOLS.get(name, [])
        for word in map(str, words.split(pool, name, "held-out"))
        if word in example.words
    }
    if name == "facts" and example.words[0] in words.split(
        list(words.COUNTRIES), f"facts/{example.template}", "held-out"
    ):
        new.add(example.words[0])
    held = {text for templates in TEMPLATES.get(name, []) for text in templates.held_out}
    return new | ({example.template} & held)


@pytest.mark.parametrize("name", world.TASKS)
def test_held_out_sentences_are_nowhere_in_the_training_text(name: str) -> None:
    random = Random(5)
    seen = {
        sentence
        for kind in (*corpus.KINDS, *corpus.LATER)
        for asking, rest in corpus.world_texts(kind, 400, random)
        for sentence in (asking + rest).split(".")
    }
    starts = {pair.clean + pair.correct for pair in world.TASKS[name].pairs(100)}
    assert not starts & seen


@pytest.mark.parametrize("name", world.TASKS)
def test_answers_follow_from_the_prompt(name: str) -> None:
    for part in ("train", "held-out"):
        for example in world.TASKS[name].examples(60, part):
            assert _solve(name, example) == example.pair.correct.strip()


def _solve(name: str, example: Example) -> str:
    """A second way to the answer, from the prompt alone."""
    prompt, answers = example.pair.clean, (example.pair.correct, example.pair.wrong)
    said = prompt.replace(",", "").replace(".", "").split()
    one, other = (answer.strip() for answer in answers)
    if name == "ioi":
        return min((one, other), key=said.count)
    if name == "induction":
        return said[said.index(said[-1]) + 1]
    if name == "facts":
        country = next(word for word in said if word in words.COUNTRIES)
        return next(w for w in (one, other) if w in words.COUNTRIES[country])
    if name == "agreement":
        nouns = {*words.NOUNS, *words.NOUNS.values()}
        several = next(word for word in said if word in nouns) in words.NOUNS.values()
        return one if (one in words.VERBS.values()) == several else other
    if name == "pronouns":
        return "she" if next(w for w in said if w in words.NAMES) in words.WOMEN else "he"
    if name == "greater_than":
        return next(w for w in (one, other) if int(w) > int(said[-2]))
    if name == "sentiment":
        praise = any(word.strip("!") in words.POSITIVE for word in said)
        return one if (one in ("loved", "happy", "good", "praised")) == praise else other
    return _where(prompt)


def _where(prompt: str) -> str:
    """Follow the sentences of a story and answer the unfinished one."""
    *told, asked = prompt.split(". ")
    where: dict[str, str] = {}
    for sentence in told:
        said = sentence.rstrip(".").split()
        if "put" in said:
            where[said[3]] = said[-1]
        elif "saw" in said:
            where[said[2]] = said[-1]
        else:
            where[said[1]] = said[-1]
    return next(where[word] for word in reversed(asked.split()) if word in where)


def test_tales_answer_for_everyone_in_them() -> None:
    for seed in range(200):
        story, asked = training_texts.tale(Random(seed))
        asked_for = [sentence for sentence in asked.split(".") if sentence]
        assert len(asked_for) == story.count(".") >= 2
        for sentence in asked_for:
            question, answer = sentence.strip().rsplit(" ", 1)
            assert _where(f"{story} {question}") == answer


def test_strange_sentences_ask_as_their_tasks_do_and_about_other_words() -> None:
    held = {
        word
        for pool in (words.NAMES, words.OBJECTS)
        for word in words.split(pool, "tracking", "held-out")
    }
    for seed in range(500):
        asking, answer = training_texts.strange(Random(seed))
        said = {word.strip(".,") for word in f"{asking} {answer}".split()}
        if asking.endswith("."):  # a story, and questions about all of it
            assert not said & held
            for sentence in answer.split(".")[:-1]:
                question, expected = sentence.strip().rsplit(" ", 1)
                assert _where(f"{asking} {question}") == expected
        else:  # the word that is not said twice; no names at all
            assert not said & set(words.NAMES)
            assert asking.replace(",", "").split().count(answer.strip(" .")) == 1


def test_rephrased_questions_are_asked_in_neither_part() -> None:
    asked = {template for facts in labelled._FACTS.values() for part in facts for template in part}
    others = {template for templates in labelled._OTHERWISE.values() for template in templates}
    assert len(others) > 25 and not others & asked
    for row in labelled.rephrased("train", 300):
        for start, text in row["answers"]:
            assert row["context"][start : start + len(text)] == text


def test_opinions_never_use_what_sentiment_holds_out() -> None:
    held = {
        word
        for pool in (words.POSITIVE, words.NEGATIVE)
        for word in words.split(pool, "sentiment", "held-out")
    }
    praise = {"loved", "praised", "happy", "good"}
    templates = set()
    for seed in range(3000):
        asking, answer = training_texts.opinion(Random(seed))
        said = {word.strip(".,!") for word in asking.split()}
        assert not said & held
        assert bool(said & set(words.POSITIVE)) == (answer.split()[0].strip(".") in praise)
        templates.add((asking.split(".")[0].split()[0], asking.split()[-1]))
    assert len(templates) > 60


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_recalls_can_be_known(seed: int) -> None:
    ((ids, labels),) = training_texts.recalls([range(500), range(100, 700)], 1, 64, Random(seed))
    assert len(ids) == len(labels) == 64
    known = [at for at, label in enumerate(labels) if label != IGNORED]
    assert known
    for at in known:
        assert labels[at] == ids[at]
        # One of the four tokens before it is the key, and the value came after it before.
        first = ids.index(ids[at])
        assert first < at
        assert set(ids[max(0, at - 4) : at]) & set(ids[max(0, first - 4) : first])


def test_same_seed_same_examples() -> None:
    task = world.TASKS["ioi"]
    assert task.pairs(20) == task.pairs(20) != task.pairs(20, seed=1)
    assert len(set(task.pairs(200))) == 200


def test_lore_says_what_words_mean_but_is_no_template() -> None:
    texts = [training_texts.sentence(Random(seed)) for seed in range(4000)]
    for woman in words.WOMEN:
        assert not any(f"{woman} is a man." in text for text in texts)
    held = {
        text for group in TEMPLATES.values() for templates in group for text in templates.held_out
    }
    starts = {text.split("{")[0] for text in held if not text.startswith("{")}
    assert not any(text.startswith(start) for text in texts for start in starts if len(start) > 5)


def test_every_word_is_one_token(tokenizer: Any) -> None:
    broken = [word for word in corpus.whole_words() if len(tokenizer(word).input_ids) > 1]
    assert not broken


def test_split_is_a_partition_and_holds_out_a_quarter() -> None:
    train, held = (words.split(words.NAMES, "any", part) for part in ("train", "held-out"))
    assert sorted(train + held) == sorted(words.NAMES)
    assert len(held) == 15
    assert held != words.split(words.NAMES, "other", "held-out")


@pytest.mark.parametrize("part", ["train", "held-out"])
def test_labelled_data_fits_the_tasks(part: words.Split) -> None:
    frame = read_squad(labelled.questions(part, 200))
    unanswered = sum(not answers for answers in frame["answers"])
    assert 5 < unanswered < 60
    sentences = tagging.read_sentences(labelled.sentences(part, 200))
    tags = {tag for sentence in sentences for tag in sentence.tags}
    assert tags == set(labelled.LABELS["token-classification"])
    reviews = labelled.reviews(part, 200)
    assert {row["label"] for row in reviews} == set(labelled.LABELS["sequence-classification"])
    assert not any("{" in row["text"] for row in reviews)


def test_an_answer_stands_behind_what_tells_it() -> None:
    model = nl.load(head="question-answering")
    for row in labelled.questions("train", 40):
        (example,) = answering.prepare(model, [row])
        assert example["start_positions"] <= example["end_positions"] < len(example["input_ids"])
        for start, text in row["answers"]:
            before = row["context"][:start].rsplit(". ", 1)[-1]
            assert len(before.split()) >= 3, text


def test_random_tokens_come_again_and_only_known_ones_are_labels() -> None:
    random = Random(0)
    for ids, labels in corpus.repeats([range(10_000)], 50, 64, random):
        assert len(ids) == len(labels) == 64
        for at, label in enumerate(labels):
            if label != IGNORED:
                assert label == ids[at]
                assert ids[at - 1] in ids[: at - 1]
        assert labels[0] == IGNORED
        assert any(label != IGNORED for label in labels)


def test_world_contexts_begin_with_a_text_and_are_full() -> None:
    backend = Tokenizer.from_file(str(nl.gym.weights_directory() / "tokenizer.json"))
    rows = list(corpus.world_contexts(backend, 40, 64, Random(0)))
    assert {len(ids) for ids, _ in rows} == {len(labels) for _, labels in rows} == {64}
    assert 8 < sum(ids[0] == 0 for ids, _ in rows) < 32
    pairs = [pair for ids, labels in rows for pair in zip(ids, labels, strict=True)]
    assert all(label in (IGNORED, token) for token, label in pairs)
    assert 0.2 < sum(label == IGNORED for _, label in pairs) / len(pairs) < 0.8
    allowed, world_words = map(set, corpus.repeatable(backend))
    kept = words.split(world.UNRELATED, "induction", "held-out")
    assert not allowed & {backend.encode(f" {word}").ids[0] for word in kept}
    assert len(allowed) > 1900
    assert world_words < allowed


def test_a_small_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        corpus.train_tokenizer(["some text\n"], [" extraordinary", " words"], 270)


@given(st.text(alphabet="ab\n", min_size=40).filter(lambda text: "\n" in text[20:]))
def test_division_keeps_every_character_and_whole_lines(text: str) -> None:
    training, held_out = corpus.divide(text, 0.5)
    assert training + held_out == text
    assert training.endswith("\n")


@pytest.mark.parametrize("part", ["held_out", "test", "Train", None, 0])
@pytest.mark.parametrize(
    "ask",
    [
        lambda part: world.TASKS["pronouns"].pairs(2, part),
        lambda part: world.TASKS["induction"].examples(2, part),
        lambda part: labelled.reviews(part, 2),
        lambda part: labelled.questions(part, 2),
        lambda part: labelled.rephrased(part, 2),
        lambda part: labelled.sentences(part, 2),
        lambda part: labelled.fragments(part, 2),
    ],
)
def test_another_part_is_refused_where_it_would_be_words_of_training(ask: Any, part: Any) -> None:
    with pytest.raises(InputError, match=r"part=.*expected one of train, held-out"):
        ask(part)
