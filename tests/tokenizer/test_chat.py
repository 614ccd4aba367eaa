"""Chat templates: transformers as the oracle, and templates that try to break out."""

from __future__ import annotations

import dataclasses
import enum
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neox_lab.errors import TokenizerError
from neox_lab.tokenizer import GPTNeoXTokenizerFast

CHATML = """\
{%- if tools %}
<|im_start|>tools
{% for tool in tools %}{{ tool | tojson(indent=2) }}
{% endfor %}<|im_end|>
{% endif %}
{%- for document in documents or [] %}[{{ loop.index }}] {{ document.title }}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}

{%- else %}
<|im_start|>{{ m.role }}
{{ m.content | trim }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
ZEPHYR = (
    "{{ bos_token }}{% for m in messages %}{% set ns = namespace(n=loop.index) %}"
    "{% if ns.n > 3 %}{% break %}{% endif %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}"
    "{% if m.reasoning_content is defined %}({{ m.reasoning_content }}){% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}{{ shout | default('') }}"
)
TEMPLATES = {"chatml": CHATML, "zephyr": ZEPHYR}
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello 北京 🙂 ", "name": None},
    {"role": "assistant", "content": "Hello there, <|endoftext|> friend", "thinking": "hm"},
]
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session")
def directory(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(shared / "data" / "gpt-neox-20b-tokenizer.json", folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def ours(directory: Path) -> GPTNeoXTokenizerFast:
    return GPTNeoXTokenizerFast.from_pretrained(directory)


@pytest.fixture(scope="session")
def theirs(directory: Path) -> Any:
    return pytest.importorskip("transformers").GPTNeoXTokenizerFast.from_pretrained(directory)


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


def weather(
    city: str, days: int | None = 1, unit: Unit = Unit.CELSIUS, words: list[str] | None = None
) -> dict[str, float]:
    """Forecast the weather.

    For a place and a time.

    Args:
        city: Where, which may
            take two lines: like this.
        days: How far ahead (choices: [1, 2, 3])
        unit: Of the temperature.

        words: What to look for.

    Returns:
        Temperatures by hour.

    Raises:
        ValueError: no such city.
    """


def mixed(
    a: int | str, b: Literal["x", 1], c: tuple[int, list[str]], d: dict[str, bool], e: Any, f: list
) -> object:
    """Take arguments of all kinds.

    Args:
        a: Either.
        b: One of two.
        c: A pair.
        d: By name.
        e: Anything.
        f: A list.
    """


@quick
@given(
    contents=st.lists(st.text(max_size=20), min_size=1, max_size=4),
    roles=st.lists(st.sampled_from(["user", "assistant", "system"]), min_size=4, max_size=4),
    template=st.sampled_from(sorted(TEMPLATES)),
    prompt=st.booleans(),
    tokenize=st.booleans(),
    tensors=st.sampled_from([None, "pt", "np"]),
    length=st.sampled_from([None, 6]),
)
def test_any_conversation_is_written_as_transformers_writes_it(
    ours: GPTNeoXTokenizerFast,
    theirs: Any,
    contents: list[str],
    roles: list[str],
    template: str,
    prompt: bool,
    tokenize: bool,
    tensors: str | None,
    length: int | None,
) -> None:
    talk = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    options: dict[str, Any] = {
        "chat_template": TEMPLATES[template],
        "add_generation_prompt": prompt,
        "tokenize": tokenize,
        "return_tensors": tensors,
        "padding": True,
        "truncation": length is not None,
        "max_length": length,
    }
    for conversation in (talk, [talk, talk[:1]]):
        made = ours.apply_chat_template(conversation, **options)
        expected = theirs.apply_chat_template(conversation, **options)
        if not tokenize:
            assert made == expected
            continue
        assert set(made) == set(expected)
        for name in made:
            assert np.array_equal(np.asarray(made[name]), np.asarray(expected[name])), name
            assert type(made[name]) is type(expected[name])


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shout": "<|endoftext|>", "bos_token": "<s>"},
        {"documents": [{"title": "One", "text": "x"}, {"title": 'T"o', "text": "y"}]},
        {"tools": [weather, mixed, {"type": "function", "function": {"name": "é", "n": 1.5}}]},
        {"continue_final_message": True},
        {"return_dict": False},
        {"tokenizer_kwargs": {"return_token_type_ids": True}},
        {"sanitize_control_tokens": True, "shout": "a<|endoftext|>b"},
        {"sanitize_control_tokens": True, "truncation": True, "max_length": 9},
        {"sanitize_control_tokens": True, "return_tensors": "pt"},
    ],
    ids=lambda options: "-".join(options) or "none",
)
def test_options_mean_what_they_mean_in_transformers(
    ours: GPTNeoXTokenizerFast, theirs: Any, template: str, options: dict[str, Any]
) -> None:
    made = ours.apply_chat_template(TALK, chat_template=TEMPLATES[template], **options)
    expected = theirs.apply_chat_template(TALK, chat_template=TEMPLATES[template], **options)
    assert str(made) == str(expected)


@quick
@given(st.text(alphabet=" \n\te<|>🙂é\u0301", max_size=8), st.text(max_size=8))
def test_control_tokens_in_messages_are_text(
    ours: GPTNeoXTokenizerFast, theirs: Any, before: str, behind: str
) -> None:
    talk = [{"role": "user", "content": f"{before}<|endoftext|>{behind}<|padding|>"}]
    options: dict[str, Any] = {"chat_template": ZEPHYR, "return_dict": False}
    ids = ours.apply_chat_template(talk, sanitize_control_tokens=True, **options)
    assert ids == theirs.apply_chat_template(talk, sanitize_control_tokens=True, **options)
    assert ids.count(0) == 2 and 1 not in ids  # those that the template itself writes
    assert ours.apply_chat_template(talk, **options).count(0) == 3


@quick
@given(st.text(min_size=1, max_size=12), st.text(max_size=6), st.booleans())
def test_the_assistants_tokens_cover_what_it_said(
    ours: GPTNeoXTokenizerFast, said: str, other: str, padded: bool
) -> None:
    """Masked tokens hold every character said, and no token beside them holds one."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|endoftext|>{% endfor %}"
    )
    talk = [{"role": "user", "content": other}, {"role": "assistant", "content": said}]
    rows = [talk, [*talk, *talk]] if padded else [talk]
    made = ours.apply_chat_template(
        rows, chat_template=template, return_assistant_tokens_mask=True, padding=True
    )
    for ids, mask in zip(made["input_ids"], made["assistant_masks"], strict=True):
        assert len(ids) == len(mask)
    ids, mask = made["input_ids"][0], made["assistant_masks"][0]
    first = [i for i, m in zip(ids, mask, strict=True) if m]
    assert ours.decode(first) == ours.decode(ours(said).input_ids)


@pytest.mark.parametrize("said", [" ", "   ", "\n", " a", "🙂", "a ", "\t \n"])
def test_spaces_and_bytes_are_said_too(ours: GPTNeoXTokenizerFast, said: str) -> None:
    template = "b<|endoftext|>{% generation %}{{ messages[0].content }}{% endgeneration %}"
    made = ours.apply_chat_template(
        [{"content": said}],
        chat_template=f"{template}<|endoftext|>",
        return_assistant_tokens_mask=True,
    )
    ids = ours(said).input_ids
    assert made["input_ids"][2:-1] == ids
    assert made["assistant_masks"] == [0, 0, *[1] * len(ids), 0]


def test_masks_of_plain_words_are_those_of_transformers(
    ours: GPTNeoXTokenizerFast, theirs: Any
) -> None:
    talk = [*TALK, {"role": "user", "content": "ok"}, {"role": "assistant", "content": "bye"}]
    for side in ("right", "left"):
        options: dict[str, Any] = {
            "chat_template": CHATML,
            "return_assistant_tokens_mask": True,
            "return_tensors": "pt",
            "padding": True,
        }
        ours.padding_side = theirs.padding_side = side
        made = ours.apply_chat_template([talk, TALK], **options)
        expected = theirs.apply_chat_template([talk, TALK], **options)
        assert made["assistant_masks"].sum() > 20
        assert torch.equal(made["assistant_masks"], expected["assistant_masks"])
    ours.padding_side = theirs.padding_side = "right"


def test_a_filter_around_what_was_said_moves_no_mark(ours: GPTNeoXTokenizerFast) -> None:
    template = "{% set x %}{% generation %} a{% endgeneration %}{% endset %}b c{{ x | upper }}"
    made = ours.apply_chat_template(
        TALK, chat_template=template, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    assert ours.decode(made["input_ids"][made["assistant_masks"] == 1]) == " A"


def test_control_tokens_can_be_named(directory: Path, theirs: Any, tmp_path: Path) -> None:
    template = "{{ messages[0].content }}"
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(directory, chat_template=template)
    tokenizer.add_tokens(["<a>", "<b>"])
    talk = [{"content": "<a><b><|endoftext|>"}]
    options: dict[str, Any] = {"sanitize_control_tokens": True, "return_dict": False}
    for named, spared in ((["<a>"], "<b>"), (("<b>",), "<a>"), ([], "<a><b>")):
        tokenizer.chat_control_tokens = named
        ids = tokenizer.apply_chat_template(talk, **options)
        found = "".join(t for t in tokenizer.convert_ids_to_tokens(ids) if t in ("<a>", "<b>"))
        assert found == spared and 0 not in ids
        tokenizer.save_pretrained(tmp_path)
        for reader in (GPTNeoXTokenizerFast, type(theirs)):
            again = reader.from_pretrained(tmp_path)
            assert list(again.chat_control_tokens) == list(named)
            assert again.apply_chat_template(talk, **options) == ids
    with pytest.raises(TokenizerError, match="chat_control_tokens"):
        tokenizer.chat_control_tokens = "<a>"


@pytest.mark.parametrize("form", ["{{ messages }}", "{{ messages | tojson(ensure_ascii=True) }}"])
def test_marks_that_a_template_escapes_are_not_lost(ours: GPTNeoXTokenizerFast, form: str) -> None:
    with pytest.raises(TokenizerError, match="set apart"):
        ours.apply_chat_template(
            [{"content": "<|endoftext|>"}], chat_template=form, sanitize_control_tokens=True
        )


def test_nothing_is_put_around_what_the_template_writes(directory: Path) -> None:
    options: dict[str, Any] = {"bos_token": "<s>", "add_bos_token": True, "add_eos_token": True}
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(directory, chat_template=ZEPHYR, **options)
    ids = tokenizer.apply_chat_template(TALK, return_dict=False)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert text.startswith("<s><|system|>")
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[-1] != tokenizer.eos_token_id


def test_a_message_is_encoded_behind_its_history(ours: GPTNeoXTokenizerFast, theirs: Any) -> None:
    for history in (None, TALK[:2]):
        arguments = (TALK[2], history)
        options: dict[str, Any] = {"chat_template": ZEPHYR}
        expected = theirs.encode_message_with_chat_template(*arguments, **options)
        assert ours.encode_message_with_chat_template(*arguments, **options) == expected
    with pytest.raises(TokenizerError, match="add_generation_prompt"):
        ours.encode_message_with_chat_template(TALK[0], add_generation_prompt=True)


@pytest.mark.parametrize("templates", [CHATML, {"default": CHATML, "tool_use": "t", "b c": "é"}])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("writer", ["ours", "theirs"])
def test_templates_go_both_ways_with_transformers(
    directory: Path,
    theirs: Any,
    tmp_path: Path,
    templates: str | dict[str, str],
    apart: bool,
    writer: str,
) -> None:
    kind = GPTNeoXTokenizerFast if writer == "ours" else type(theirs)
    tokenizer = kind.from_pretrained(directory, chat_template=templates)
    paths = tokenizer.save_pretrained(tmp_path, save_jinja_files=apart)
    assert all(Path(path).is_file() for path in paths)
    for reader in (GPTNeoXTokenizerFast, type(theirs)):
        assert reader.from_pretrained(tmp_path).chat_template == templates
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert ("chat_template" in config) is not apart


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "", "a\0", "a\\b"])
def test_no_name_of_a_template_leads_out_of_the_folder(
    directory: Path, tmp_path: Path, name: str
) -> None:
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(directory)
    tokenizer.chat_template = {"default": "a", name: "b"}
    with pytest.raises(TokenizerError, match="name of a file"):
        tokenizer.save_pretrained(tmp_path / "inside")
    assert not list(tmp_path.rglob("*.jinja"))


def test_of_several_templates_the_named_one_is_taken(ours: GPTNeoXTokenizerFast) -> None:
    ours.chat_template = {"default": "d", "tool_use": "t", "other": "o"}
    assert ours.get_chat_template() == "d"
    assert ours.get_chat_template(tools=[weather]) == "t"
    assert ours.get_chat_template("other") == "o" and ours.get_chat_template("{{ x }}") == "{{ x }}"
    ours.chat_template = {"a": "1", "b": "2"}
    with pytest.raises(TokenizerError, match="one of a, b"):
        ours.get_chat_template()
    ours.chat_template = None


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ dict.fromkeys.__func__ }}{{ dict.__init__.__globals__.x }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ raise_exception('refused') }}",
        "{% for m in messages %}",
        "{{ nothing.at_all }}",
    ],
)
def test_a_template_cannot_break_out(
    ours: GPTNeoXTokenizerFast, theirs: Any, template: str
) -> None:
    with pytest.raises(TokenizerError, match="chat template") as caught:
        ours.apply_chat_template(TALK, chat_template=template, tokenize=False)
    assert isinstance(caught.value, jinja2.TemplateError)
    with pytest.raises(jinja2.TemplateError):
        theirs.apply_chat_template(TALK, chat_template=template, tokenize=False)


def test_templates_see_plain_data_only(ours: GPTNeoXTokenizerFast, theirs: Any) -> None:
    @dataclasses.dataclass
    class Part:
        kind: str
        image: Any

    content = [Part("image", torch.zeros(2)), {"n": np.float32(0.5), "flag": np.bool_(False)}]
    talk = [{"role": Unit.CELSIUS, "content": content, "pair": (1, np.str_("x"))}]
    template = "{{ messages[0] }}{{ messages[0].content[0].image.numpy is defined }}{{ extra }}"
    options: dict[str, Any] = {"chat_template": template, "tokenize": False, "extra": object()}
    made = ours.apply_chat_template(talk, **options)
    assert made == theirs.apply_chat_template(talk, **options)
    assert "<Tensor>" in made and made.endswith("False<object>")


@pytest.mark.parametrize(
    ("conversation", "options", "message"),
    [
        ([], {}, "at least one message"),
        ("Hello", {}, "list of messages"),
        (["Hello"], {}, "dictionary"),
        (TALK, {"chat_template": None}, "no chat template"),
        (TALK, {"chat_template": 5}, "Jinja template"),
        (TALK, {"tools": ["weather"]}, "JSON schema"),
        (TALK, {"tools": [lambda x: x]}, "docstring"),
        (TALK, {"documents": ["text"]}, "document"),
        (TALK, {"continue_final_message": True, "add_generation_prompt": True}, "continue_final"),
        (TALK, {"continue_final_message": "reasons"}, "'reasons'"),
        (TALK, {"continue_final_message": True, "chat_template": "{# content #}x"}, "as it is"),
        (TALK, {"tokenize": False, "return_assistant_tokens_mask": True}, "tokenize=True"),
        (TALK, {"tokenize": False, "sanitize_control_tokens": True}, "tokenize=True"),
    ],
)
def test_bad_calls_say_what_is_wrong(
    ours: GPTNeoXTokenizerFast, conversation: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        ours.apply_chat_template(conversation, **({"chat_template": CHATML} | options))


def test_bad_templates_and_missing_marks(ours: GPTNeoXTokenizerFast) -> None:
    for wrong in (5, {"a": 1}, ["x"]):
        with pytest.raises(TokenizerError, match="chat_template"):
            ours.chat_template = wrong
    with pytest.warns(UserWarning, match="generation"):
        made = ours.apply_chat_template(
            TALK, chat_template=ZEPHYR, return_assistant_tokens_mask=True
        )
    assert set(made["assistant_masks"]) == {0}


def test_the_caller_s_messages_stay_as_they_are(ours: GPTNeoXTokenizerFast) -> None:
    before = json.dumps(TALK)
    ours.apply_chat_template(TALK, chat_template=ZEPHYR, continue_final_message=True)
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    kept = json.dumps(blocks)
    template = "{{ messages[0].content[0].text | trim }}<|end|>"
    options: dict[str, Any] = {"chat_template": template, "tokenize": False}
    made = ours.apply_chat_template(blocks, continue_final_message=True, **options)
    assert made == "Hello"
    assert json.dumps(TALK) == before and json.dumps(blocks) == kept


def test_threads_mark_their_own_conversations(ours: GPTNeoXTokenizerFast) -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        said = "word " * number
        talk = [{"role": "assistant", "content": said}]
        for _ in range(20):
            made = ours.apply_chat_template(
                talk, chat_template=CHATML, return_assistant_tokens_mask=True
            )
            if sum(made["assistant_masks"]) != len(ours(f"{said}<|im_end|>").input_ids):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_a_safe_jinja_it_is_said(
    ours: GPTNeoXTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jinja2, "__version__", "3.1.5")
    with pytest.raises(ImportError, match=r"3\.1\.5 does not keep"):
        ours.apply_chat_template(TALK, chat_template="x", tokenize=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match="need jinja2"):
        ours.apply_chat_template(TALK, chat_template="x", tokenize=False)


def test_the_template_engine_is_read_when_it_is_needed() -> None:
    code = "import sys, neox_lab.tokenizer; print('neox_lab.tokenizer.sandbox' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
