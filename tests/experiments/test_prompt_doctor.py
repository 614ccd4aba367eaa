"""The prompt doctor: every check with a prompt that deserves it and one that does not."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neox_lab as nl
from neox_lab.errors import InputError, PromptWarning
from neox_lab.experiments.prompt_doctor import inside
from neox_lab.experiments.prompt_doctor.checks import (
    CHECKS,
    Check,
    Finding,
    Spot,
    as_markdown,
    findings,
)
from neox_lab.experiments.prompt_doctor.doctor import with_differences
from neox_lab.experiments.prompt_doctor.items import Item, Reader
from neox_lab.notices import gathered

START, PADDING = 0, 1


def model_of(tokenizer: Any, rows: int, length: int = 40) -> Any:
    """A small random model with large weights that reads with ``tokenizer``."""
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=rows,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=length,
        initializer_range=0.3,
    )
    model = nl.GPTNeoXForCausalLM(config).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def real() -> Any:
    """A random model of Pythia's vocabulary, with GPT-NeoX's tokenizer."""
    shared = Path(__file__).parents[3] / "shared"
    file = shared / "data" / "gpt-neox-20b-tokenizer.json"
    if not file.is_file():
        pytest.skip(f"needs GPT-NeoX's tokenizer, {file}")
    return model_of(nl.GPTNeoXTokenizerFast(tokenizer_file=str(file)), 50304)


@pytest.fixture(scope="module")
def built_in() -> Any:
    """A random model with the built-in tokenizer, and some rows that it has no token for."""
    return model_of(nl.load().tokenizer, 2112)


@pytest.fixture(scope="module", params=["real", "built_in"])
def model(request: Any) -> Any:
    return request.getfixturevalue(request.param)


def found(model: Any, *given: Any) -> set[str]:
    """The names of what is found."""
    return {finding.check for finding in nl.check_prompts(model, *given).findings}


def ids(model: Any, text: str, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> Any:
    return torch.tensor([[*before, *model.tokenizer(text).input_ids, *after]])


A, B = "The king went to the city of", "The king came to the city of"
"""As many tokens in both vocabularies, one of them another."""
RIGHT_PADDED = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def last_column(logits: Any) -> Any:
    return (logits[:, -1, 5] - logits[:, -1, 6]).mean()


def own_tokens(logits: Any) -> Any:
    """Reads the last token of each text, and multiplies padding with 0."""
    return (logits[..., 5] * torch.tensor([[0.0, 0, 0, 1], [0, 1, 0, 0]])).sum()


def deserving(model: Any) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """By the name of each check that runs nothing: what deserves it, and what does not."""
    known = len(model.tokenizer)
    return {
        "trailing_space": ((f"{A} ", None, " Paris"), (A, None, " Paris")),
        "doubled_start": ((ids(model, A, (START, START)),), (ids(model, A, (START,)),)),
        "missing_start": (
            ([A, "<|endoftext|>" + A],),
            (["<|endoftext|>" + B, "<|endoftext|>" + A],),
        ),
        "padding_read": ((RIGHT_PADDED, None, last_column), (RIGHT_PADDED, None, own_tokens)),
        "unknown_ids": (
            (ids(model, A, after=(model.config.vocab_size,)),),
            (ids(model, A, after=(known - 1,)),),
        ),
        "untrained_ids": (
            (ids(model, A, after=(known,)),),
            (ids(model, A, after=(known - 1,)),),
        ),
        "too_long": (("a " * 41 + "a",), ("a" + " a" * 39,)),
        "odd_characters": ((f"The ki\u00adng {A}",), (f"The naïve “king” 😀 👩‍🚀 — {A}\n\tx",)),
        "answer_tokens": ((A, None, " Paris Paris"), (A, None, " Paris")),
        "answer_space": ((A, None, "Paris"), (f"{A} (", None, "Paris")),
        "answers_equal": ((A, None, (" Paris", " Paris")), (A, None, (" Paris", " the"))),
        "answer_in_prompt": (
            (A, None, (" king", " Paris")),
            (A, None, (" king", " went")),
        ),
        "unequal_lengths": ((A, f"{B} the"), (A, B)),
        "nothing_differs": ((A, A), (A, B)),
        "roles": (("The king went", "The xyzzy went"), (A, B)),
    }


@pytest.mark.parametrize("check", [check.name for check in CHECKS])
def test_every_check_has_a_prompt_that_deserves_it_and_one_that_does_not(
    model: Any, check: str
) -> None:
    if check in ("wrong_preferred", "no_effect"):
        pytest.skip("needs a run; its own test is below")
    bad, good = deserving(model)[check]
    assert check in found(model, *bad)
    assert check not in found(model, *good)


def test_what_a_finding_says(real: Any) -> None:
    report = nl.check_prompts(real, "The capital of France is ", None, " Paris")
    assert not report.ok
    assert report.bad_items == [0]
    (finding,) = report.findings
    assert finding[:6] == (0, "trailing_space", "warning", "prompt", 5, " ")
    row = report.frame.iloc[0]
    assert (row["pos"], row["token"], row["wrong"]) == (5, " ", finding.wrong)
    said = repr(report)
    assert "item 0, prompt, token 5 ' ': trailing_space (warning)" in said
    assert finding.wrong in said
    assert finding.advice in said
    assert report._repr_mimebundle_()["text/plain"] == said


def test_nothing_found_says_so(real: Any) -> None:
    report = nl.check_prompts(real, A, B, " Paris")
    assert report.ok
    assert report.bad_items == []
    assert report.frame.empty
    assert list(report.frame) == list(Finding._fields)
    assert repr(report).startswith("Prompts: nothing found in 1 item")
    assert report.view().tables() == []


# What each check tells apart, with the tokenizer that Pythia has.


@pytest.mark.parametrize(
    ("prompt", "answer", "bad"),
    [
        ("The capital of France is ", "Paris", True),  # is one token with the space
        ("The capital of France is ", " Paris", True),  # two spaces
        ("The capital of France is", " Paris", False),
        ("Q: 2+2\nA:\n", "4", False),
        ("x = 5 ", None, True),
    ],
)
def test_trailing_spaces(real: Any, prompt: str, answer: str | None, bad: bool) -> None:
    assert ("trailing_space" in found(real, prompt, None, answer)) is bad


@pytest.mark.parametrize(
    ("prompt", "answer", "bad"),
    [
        ("The war lasted from 1732 to the year 17", "45", False),  # Hanna et al., 2023
        ("At 12:", "30", False),
        ("Answer:", "Paris", True),
        ("The end.", "Paris", True),
        ("https://www.", "google", False),
        ("model = model.", "fit", False),
        ("The city of", "London", True),
        ("(", "Paris", False),
        ("The city of", ".", False),
        ("The city of\n", "Paris", False),
    ],
)
def test_answers_without_a_space(real: Any, prompt: str, answer: str, bad: bool) -> None:
    assert ("answer_space" in found(real, prompt, None, answer)) is bad


@pytest.mark.parametrize(
    ("clean", "corrupted", "bad"),
    [
        ("When Alexandra and Tom went", "When Tom and Alexandra went", True),
        ("The cat sat on the old mat there", "The big cat sat on the mat there", True),  # moved
        ("When Mary and John went, John gave to", "When Mary and John went, Mary gave to", False),
        ("When Mary and John went, John gave to", "When John and Mary went, Mary gave to", False),
        ("In one two three four five", "In two three one four five", False),  # wanted
        (" Alexandra went", " Zebra went", False),  # two tokens each
    ],
)
def test_roles(real: Any, clean: str, corrupted: str, bad: bool) -> None:
    ours, theirs = (real.to_tokens(text).shape for text in (clean, corrupted))
    assert ours == theirs
    assert ("roles" in found(real, clean, corrupted)) is bad


def test_a_name_of_more_tokens_is_named(real: Any) -> None:
    report = nl.check_prompts(real, "When Alexandra went", "When Tom went")
    said = {finding.check: finding for finding in report.findings}
    assert said.keys() == {"unequal_lengths", "roles"}
    assert "' Alexandra' is [' Alex', 'andra'] and ' Tom' is [' Tom']" in said["roles"].wrong
    assert said["roles"].pos == 1


@pytest.mark.parametrize(
    ("text", "token"),
    [("a\u00a0b c", 1), ("one two\u200b three", 2), ("The caf\ufffd", 2), ("x\r\ny", 1)],
)
def test_where_an_odd_character_is(real: Any, text: str, token: int) -> None:
    (finding,) = nl.check_prompts(real, text).findings
    assert (finding.check, finding.pos) == ("odd_characters", token)


def test_half_a_character_is_odd(real: Any) -> None:
    whole = real.to_tokens("a 😀")
    assert found(real, whole) == set()
    assert found(real, whole[:, :-1]) == {"odd_characters"}


def test_padding_without_a_mask(real: Any) -> None:
    assert "padding_read" in found(real, ids(real, A, after=(START, START)))
    assert "padding_read" in found(real, ids(real, A, (PADDING, PADDING)))
    tokens = ids(real, A, (PADDING, PADDING))
    masked = {"input_ids": tokens, "attention_mask": (tokens != PADDING).long()}
    assert found(real, masked) == set()


def test_a_metric_says_where_it_reads(real: Any) -> None:
    metric = nl.patching.logit_difference(" Paris", " London", pos=2)
    assert "trailing_space" not in found(real, f"{A} ", None, metric)
    assert "trailing_space" in found(
        real,
        f"{A} ",
        None,
        dataclasses.replace(
            metric, terms=tuple(dataclasses.replace(term, pos=-1) for term in metric.terms)
        ),
    )


def test_answers_in_every_form(real: Any) -> None:
    prompts = [A, B]
    equal = "answers_equal"
    forms: list[Any] = [
        (" Paris", " Paris"),
        ([" Paris", " London"], " Paris"),
        [(" Paris", " Paris"), (" Rome", " London")],
        (real.to_single_token(" Paris"), " Paris"),
        nl.patching.logit_difference(" Paris", [" Paris", " London"]),
    ]
    for form in forms:
        items = [
            f.item for f in nl.check_prompts(real, prompts, None, form).findings if f.check == equal
        ]
        assert items and items[0] == 0, form


@pytest.mark.parametrize(
    "answers", [[" a"] * 3, {"a": 1}, 1.5, True, [(" a", " b", " c")] * 2, b"x"]
)
def test_answers_that_are_none(real: Any, answers: Any) -> None:
    with pytest.raises(InputError, match=r"answers"):
        nl.check_prompts(real, [A, B], None, answers)


def test_prompts_that_are_none(real: Any) -> None:
    with pytest.raises(InputError, match="1 clean and 2 corrupted"):
        nl.check_prompts(real, A, [A, B])
    with pytest.raises(InputError, match="has no tokens"):
        nl.check_prompts(
            real, {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.zeros(1, 3)}
        )
    with pytest.raises(InputError, match="expected a model"):
        nl.check_prompts("pythia", A)  # type: ignore[arg-type]


# What the model prefers.


def test_what_the_model_prefers(model: Any) -> None:
    correct, wrong = 300, 301
    ours, theirs = (
        float((logits[correct] - logits[wrong]).detach())
        for logits in (model(model.to_tokens(text)).logits[0, -1] for text in (A, B))
    )
    answers = (correct, wrong) if ours > 0 else (wrong, correct)
    assert "wrong_preferred" not in found(model, A, B, answers)
    assert "wrong_preferred" in found(model, A, B, answers[::-1])
    assert ("no_effect" in found(model, A, B, answers)) is (
        abs(ours) <= theirs * (1 if ours > 0 else -1)
    )


@pytest.mark.parametrize(
    ("differences", "names"),
    [
        ((2.0, -1.0), set()),
        ((2.0, 1.0), set()),
        ((2.0,), set()),
        ((), set()),
        ((1.0, 1.0), {"no_effect"}),
        ((1.0, 2.0), {"no_effect"}),
        ((-1.0, 2.0), {"wrong_preferred"}),
        ((-1.0,), {"wrong_preferred"}),
        ((0.0, -1.0), {"wrong_preferred"}),
    ],
)
def test_what_preferences_mean(
    built_in: Any, differences: tuple[float, ...], names: set[str]
) -> None:
    item = next(iter(inside.make_items(Reader(built_in), _sides(built_in, A, B), 300)))
    told = findings([dataclasses.replace(item, differences=differences)])
    assert {finding.check for finding in told} == names
    if differences == (-1.0, 2.0):
        assert "swapped" in told[0].wrong


def _sides(model: Any, clean: Any, corrupted: Any) -> dict[str, Any]:
    from neox_lab.experiments.patching.prompts import read_prompts

    return {
        "clean": read_prompts(model, clean, "clean"),
        "corrupted": read_prompts(model, corrupted, "corrupted"),
    }


def test_nothing_runs_where_the_model_has_no_row(built_in: Any) -> None:
    items = inside.make_items(
        Reader(built_in), _sides(built_in, A, B), (built_in.config.vocab_size, 5)
    )
    assert with_differences(built_in, items) == items
    assert "unknown_ids" in found(built_in, ids(built_in, A, (9999,)), None, (5, 6))


# Batches.

MIXED = (
    [A, f"{A} ", "When Alexandra and Tom went", "a\u00a0king", A],
    [B, f"{B} ", "When Tom and Alexandra went", "a\u00a0queen", A],
    [(" Paris", " London"), (" Paris", " Rome"), ("Tom", " Mary"), (" a", " a"), (" king", " x y")],
)


def test_a_batch_finds_what_its_items_find_alone(model: Any) -> None:
    together = nl.check_prompts(model, *map(list, MIXED)).findings
    alone = []
    for row, (clean, corrupted, answers) in enumerate(zip(*MIXED, strict=True)):
        own = nl.check_prompts(model, clean, corrupted, answers).findings
        alone += [finding._replace(item=row) for finding in own]
    assert [f[:6] for f in together] == [f[:6] for f in alone]
    assert len({finding.check for finding in together}) >= 6


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_one_token_exchanged_is_well_formed(data: Any) -> None:
    model = _small()
    words = _single_words(model)
    drawn = st.lists(st.sampled_from(words), min_size=2, max_size=12)
    clean = data.draw(drawn)
    at = data.draw(st.integers(0, len(clean) - 1))
    other = data.draw(st.sampled_from([word for word in words if word != clean[at]]))
    corrupted = [*clean[:at], other, *clean[at + 1 :]]
    free = [word for word in words if word not in clean and word != other]
    texts = ["".join(row).removeprefix(" ") for row in (clean, corrupted)]
    if model.to_tokens(texts[0]).shape == model.to_tokens(texts[1]).shape:
        report = nl.check_prompts(model, *texts, free[0])
        assert report.findings == ()


@functools.cache
def _small() -> Any:
    return model_of(nl.load().tokenizer, 2048)


@functools.cache
def _single_words(model: Any) -> list[str]:
    """Words that are one token with their space and without."""
    tokenizer = model.tokenizer
    words = [tokenizer.piece_text(token) for token in range(2, len(tokenizer))]
    words = [word for word in words if word.startswith(" ") and word.strip().isalpha()]
    single = [
        w for w in words if len(tokenizer(w).input_ids) == len(tokenizer(w[1:]).input_ids) == 1
    ]
    assert len(single) > 30
    return single[:60]


# Inside questions.

METRIC = nl.patching.logit_difference(" Paris", " king")


def both_caches(model: Any, clean: Any, corrupted: Any) -> list[Any]:
    names = ["blocks.*.attn.hook_z", "blocks.*.hook_resid_pre"]
    return [model.run_with_cache(text, names_filter=names)[1] for text in (clean, corrupted)]


def questions(model: Any, clean: Any, corrupted: Any) -> dict[str, Any]:
    tokens = model.to_tokens(corrupted)
    return {
        "sweep": lambda: nl.patching.sweep(model, clean, corrupted, METRIC, progress=False),
        "noising": lambda: nl.patching.sweep(
            model, clean, corrupted, METRIC, direction="noising", progress=False
        ),
        "ablate": lambda: nl.patching.ablate(model, clean, METRIC, progress=False),
        "path_patch": lambda: nl.patching.path_patch(
            model, clean, corrupted, METRIC, progress=False
        ),
        "edge_sweep": lambda: nl.patching.edge_sweep(
            model, clean, corrupted, METRIC, ["L0H0"], ["logits"], progress=False
        ),
        "attribution_patch": lambda: nl.attribution.attribution_patch(
            model, clean, corrupted, METRIC
        ),
        "direct": lambda: nl.attribution.direct_logit_attribution(model, clean, METRIC),
        "occlusion": lambda: nl.attribution.occlusion(model, clean, METRIC),
        "act_patch": lambda: nl.patching.get_act_patch_resid_pre(
            model, tokens, model.run_with_cache(clean)[1], METRIC
        ),
        "direct_path": lambda: nl.patching.get_act_patch_direct_path(
            model, tokens, *both_caches(model, clean, corrupted), METRIC, 0, 1, verbose=False
        ),
        "direct_paths": lambda: nl.patching.get_act_patch_direct_path_all_sources(
            model, tokens, *both_caches(model, clean, corrupted), METRIC, verbose=False
        ),
        "block_every": lambda: nl.patching.get_act_patch_block_every(
            model, tokens, model.run_with_cache(clean)[1], METRIC
        ),
    }


NAMES = (
    *("sweep", "noising", "ablate", "path_patch", "edge_sweep", "attribution_patch"),
    *("direct", "occlusion", "act_patch", "block_every", "direct_path", "direct_paths"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_question_warns_once_and_says_where_to_look(built_in: Any, name: str) -> None:
    ask = questions(built_in, f"{A} ", f"{B} ")[name]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        ask()
    told = [warning for warning in heard if issubclass(warning.category, PromptWarning)]
    assert len(told) == 1
    assert "trailing_space" in str(told[0].message)
    assert "nl.check_prompts(" in str(told[0].message)
    assert told[0].filename == __file__  # the line of the user's call


@pytest.mark.parametrize("name", NAMES)
def test_a_question_about_sound_prompts_says_nothing(built_in: Any, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        questions(built_in, A, B)[name]()


def test_the_exact_answer_of_an_estimate_does_not_warn_again(built_in: Any) -> None:
    with pytest.warns(PromptWarning):
        result = nl.attribution.attribution_patch(built_in, f"{A} ", f"{B} ", METRIC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.check()


def test_a_warning_names_few_items() -> None:
    model = _small()
    with pytest.warns(PromptWarning, match=r"trailing_space \(items 0, 1, 2 and 5 more\): The pro"):
        nl.patching.ablate(model, [f"{A} "] * 8, METRIC, progress=False)


def test_named_positions_may_differ_in_length_and_place(real: Any) -> None:
    where = {"name": (2, 1), "last": (-1, -1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nl.patching.sweep(
            real,
            "When Alexandra went to the",
            "When Tom went to the",
            nl.patching.logit_difference(" Paris", " London"),
            positions=where,
            progress=False,
        )


def test_checks_run_nothing_inside_questions(built_in: Any, monkeypatch: Any) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr(type(built_in), "forward", refuse)
    with gathered() as heard:
        inside.warn_of_prompts(built_in, METRIC, _sides(built_in, f"{A} ", f"{B} "))
    assert len(heard) == 1


def test_a_listener_hears_instead_of_everybody(built_in: Any) -> None:
    with warnings.catch_warnings(), gathered() as heard:
        warnings.simplefilter("error")
        nl.patching.sweep(built_in, f"{A} ", f"{B} ", METRIC, progress=False)
    assert len(heard) == 1
    with pytest.warns(PromptWarning):
        nl.patching.sweep(built_in, f"{A} ", f"{B} ", METRIC, progress=False)


def test_models_without_a_tokenizer_or_of_another_head() -> None:
    bare = model_of(None, 60)
    tokens = torch.tensor([[0, 0, 5, 6], [0, 1, 5, 0]])
    told = found(bare, tokens, tokens.flip(1), (7, 8))
    assert told <= {"wrong_preferred", "no_effect"}
    reader = nl.GPTNeoXForSequenceClassification(_small().config).eval()
    reader.tokenizer = _small().tokenizer
    assert found(reader, f"{A} ", f"{B} ") == set()


def test_adding_a_check_is_one_row(monkeypatch: Any) -> None:
    def shouting(item: Item) -> Any:
        for side in item.sides:
            if item.reader.text(side.ids).isupper():
                yield Spot(side.name, None, "It shouts.")

    from neox_lab.experiments.prompt_doctor import checks

    row = Check("shouting", "warning", shouting, "Speak softly.")
    monkeypatch.setattr(checks, "CHECKS", (*CHECKS, row))
    assert found(_small(), "HELLO") == {"shouting"}
    assert found(_small(), "hello") == set()


def test_the_page_has_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "prompts.md"
    assert as_markdown() in page.read_text(encoding="utf-8")


def test_the_lines_of_the_page_run(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "prompts.md"
    lines = page.read_text(encoding="utf-8").split("```")[1].removeprefix("python")
    monkeypatch.setattr(nl, "load", lambda name: real)
    names: dict[str, Any] = {}
    exec(lines, names)
    rows = names["report"].frame.query("check == 'trailing_space'")
    assert set(rows["item"]) == {1}
    assert 1 in names["report"].bad_items


# The picture.


def test_the_view_puts_both_prompts_below_each_other(real: Any) -> None:
    report = nl.check_prompts(
        real, ["When Mary went", "When Alexandra went "], ["When John went", "When Tom went "]
    )
    view = report.view()
    assert "Item 1 of 2" in view.note
    columns = [tuple(piece.text for piece in column) for column in view.columns]
    assert columns == [
        ("When", "When"),
        (" Alex", " Tom"),
        ("andra", ""),
        (" went", " went"),
        (" ", " "),
    ]
    assert [column[0].kind for column in view.columns] == [
        None,
        "warning",
        "differs",
        None,
        "warning",
    ]
    assert view.columns[4][1].note == "trailing space"
    live = view.data()["pieces"]
    assert [piece["text"] for piece in live][:2] == ["clean:", "When"]
    assert live[2]["under"]["text"] == "·Tom"
    assert report.view(0).columns[1][0].kind == "differs"
    with pytest.raises(InputError, match="item=2"):
        report.view(2)
