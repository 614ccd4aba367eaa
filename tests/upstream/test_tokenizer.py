"""What upstream's tests say about tokenizers."""

from __future__ import annotations

import json
import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from upstream.library import (
    Library,
    refuses,
)

SHORT = "The dog sleeps."
LONG = "The quick brown fox runs over the lazy dog, and sleeps."
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@pytest.fixture
def read(library: Library, tokenizer_folder: Path) -> Any:
    """Load the small tokenizer, with settings."""

    def load(**settings: Any) -> Any:
        return library.GPTNeoXTokenizerFast.from_pretrained(tokenizer_folder, **settings)

    return load


@pytest.fixture
def tokenizer(read: Any) -> Any:
    """The small tokenizer as it is."""
    return read()


# --- tokens and ids ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SHORT, LONG, " He is happy, UNwantéd,running", "日本 😊\n\t x"])
def test_tokens_ids_and_text_agree(tokenizer: Any, text: str) -> None:
    tokens = tokenizer.tokenize(text)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids) == text


def test_ids_are_those_of_the_rust_tokenizer(tokenizer: Any, tokenizer_folder: Path) -> None:
    rust = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert tokenizer(LONG)["input_ids"] == rust.encode(LONG).ids


def test_every_id_has_a_token_and_every_token_its_id(tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    assert isinstance(vocabulary, dict) and len(tokenizer) >= len(vocabulary)
    for token, index in vocabulary.items():
        assert tokenizer.convert_tokens_to_ids(token) == index
        assert tokenizer.convert_ids_to_tokens(index) == token


def test_added_tokens_make_it_longer(tokenizer: Any) -> None:
    before = len(tokenizer)
    assert tokenizer.add_tokens(["zyzzyva", "qwertz"]) == 2
    assert len(tokenizer) == before + 2 and "zyzzyva" in tokenizer.get_vocab()
    assert tokenizer.add_tokens("zyzzyva") == 0
    assert len([tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]) == before + 2


def test_special_tokens_stay_whole(tokenizer: Any) -> None:
    tokenizer.add_tokens(["[ONE]"], special_tokens=True)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["[TWO]"]}, replace_extra_special_tokens=False
    )
    for token in ("[ONE]", "[TWO]"):
        assert tokenizer.tokenize(token) == [token]
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
    assert tokenizer.decode(tokenizer.encode("a[ONE]"), skip_special_tokens=True) == "a"


def test_special_tokens_can_be_split_on_request(tokenizer: Any) -> None:
    assert len(tokenizer.tokenize("<|endoftext|>")) == 1
    assert len(tokenizer.tokenize("<|endoftext|>", split_special_tokens=True)) > 1


# --- roles and attributes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [*ROLES, *(f"{role}_id" for role in ROLES), "extra_special_tokens", "extra_special_tokens_ids"],
)
def test_roles_can_be_read(tokenizer: Any, name: str) -> None:
    getattr(tokenizer, name)


def test_the_length_limit_can_be_read(tokenizer: Any) -> None:
    assert tokenizer.model_max_length > 10**6


@pytest.mark.parametrize("name", ["init_inputs", "init_kwargs", "pad_token_type_id"])
def test_what_it_was_made_with_can_be_read(tokenizer: Any, name: str) -> None:
    getattr(tokenizer, name)


@pytest.mark.parametrize("role", ROLES)
def test_roles_can_be_emptied_and_filled_by_id(tokenizer: Any, role: str) -> None:
    setattr(tokenizer, f"{role}_id", None)
    assert getattr(tokenizer, role) is None and getattr(tokenizer, f"{role}_id") is None
    setattr(tokenizer, f"{role}_id", 5)
    assert getattr(tokenizer, role) == tokenizer.convert_ids_to_tokens(5)
    assert getattr(tokenizer, f"{role}_id") == 5


def test_extra_special_tokens_can_be_set_by_id(tokenizer: Any) -> None:
    tokenizer.extra_special_tokens_ids = []
    assert tokenizer.extra_special_tokens == tokenizer.extra_special_tokens_ids == []
    tokenizer.extra_special_tokens_ids = [5]
    assert tokenizer.extra_special_tokens == [tokenizer.convert_ids_to_tokens(5)]


def test_the_model_s_inputs_begin_with_ids(tokenizer: Any) -> None:
    assert tokenizer.model_input_names[0] == "input_ids"


def test_arguments_of_the_constructor_are_kept(read: Any) -> None:
    assert {"bos_token", "eos_token", "unk_token", "pad_token"} <= set(read().init_kwargs)


def test_a_padding_token_can_be_chosen_when_it_is_loaded(read: Any) -> None:
    tokenizer = read(pad_token="[PAD]")
    assert tokenizer.pad_token == "[PAD]" and tokenizer.pad_token_id is not None
    batch = tokenizer([SHORT, LONG], padding=True)
    assert len(batch["input_ids"][0]) == len(batch["input_ids"][1])
    assert 0 in batch["attention_mask"][0] and tokenizer.pad_token_id in batch["input_ids"][0]


@pytest.mark.parametrize("add", [True, False])
def test_a_beginning_can_be_chosen_and_added(read: Any, add: bool) -> None:
    tokenizer = read(bos_token="<BOS>", add_bos_token=add)
    assert tokenizer.bos_token == "<BOS>"
    assert (tokenizer("hello")["input_ids"][0] == tokenizer.bos_token_id) is add
    plain = tokenizer("hello", add_special_tokens=False)["input_ids"]
    assert tokenizer.bos_token_id not in plain


def test_without_a_beginning_none_is_added(read: Any) -> None:
    tokenizer = read(bos_token=None)
    tokenizer.add_bos_token = True
    assert tokenizer.bos_token is None and tokenizer.add_bos_token is False
    assert tokenizer.decode(tokenizer(SHORT)["input_ids"]) == SHORT


@pytest.mark.parametrize("name", ["add_special_tokens", "get_vocab"])
def test_a_setting_named_like_a_method_is_refused(read: Any, name: str) -> None:
    with refuses((AttributeError, ValueError)):
        read(**{name: True})


@pytest.mark.parametrize("add", [True, False])
def test_a_space_can_be_put_before_texts(read: Any, add: bool) -> None:
    tokenizer = read(add_prefix_space=add)
    assert tokenizer.add_prefix_space is add
    assert tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space is add
    assert tokenizer.tokenize("dog")[0].startswith("Ġ") is add


def test_settings_of_other_tokenizers_are_ignored(read: Any) -> None:
    assert read(do_lower_case=True).tokenize("Dog")[0] != "dog"


# --- saving -----------------------------------------------------------------------------------


def test_a_saved_tokenizer_is_the_same(read: Any, tmp_path: Path) -> None:
    tokenizer = read(model_max_length=42)
    tokenizer.add_tokens(["bim", "bambam"])
    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<extra>"]}, replace_extra_special_tokens=False
    )
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(LONG + "bim<extra>")["input_ids"] == tokenizer(LONG + "bim<extra>")["input_ids"]
    assert "<extra>" in again.extra_special_tokens and again.model_max_length == 42
    assert type(tokenizer).from_pretrained(tmp_path, model_max_length=43).model_max_length == 43


def test_a_new_ending_is_saved_with_it(read: Any, tmp_path: Path) -> None:
    ending = AddedToken("[END]", lstrip=True, rstrip=False, normalized=False, special=True)
    tokenizer = read(eos_token=ending)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    for one in (tokenizer, again):
        assert str(one.added_tokens_decoder[one.eos_token_id]) == one.eos_token == "[END]"
        assert "[END]" not in one.extra_special_tokens
    kept = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    assert kept <= {str(token) for token in again.added_tokens_decoder.values()}


def test_it_can_be_pickled(tokenizer: Any) -> None:
    assert pickle.loads(pickle.dumps(tokenizer))(LONG)["input_ids"] == tokenizer(LONG)["input_ids"]


# --- calls ------------------------------------------------------------------------------------


def rows(batch: Any) -> list[dict[str, Any]]:
    """Columns of rows as rows of columns."""
    return [{name: batch[name][i] for name in batch} for i in range(len(batch["input_ids"]))]


def test_a_batch_is_its_texts_one_by_one(tokenizer: Any) -> None:
    batch = tokenizer([SHORT, LONG])
    assert rows(batch) == [dict(tokenizer(SHORT)), dict(tokenizer(LONG))]


def test_pairs_may_be_two_lists_or_a_list_of_pairs(tokenizer: Any) -> None:
    two, one = tokenizer([SHORT, LONG], [LONG, SHORT]), tokenizer([(SHORT, LONG), (LONG, SHORT)])
    assert dict(two) == dict(one) and rows(two)[0] == dict(tokenizer(SHORT, LONG))


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_an_empty_text_makes_whole_numbers(tokenizer: Any, kind: str) -> None:
    made = tokenizer("", return_tensors=kind)["input_ids"]
    assert made.dtype == (torch.int64 if kind == "pt" else np.int64)


def test_types_of_tokens_come_on_request(tokenizer: Any) -> None:
    assert set(tokenizer(SHORT, return_token_type_ids=True)["token_type_ids"]) == {0}
    pair = tokenizer(SHORT, LONG, return_token_type_ids=True)
    assert len(pair["token_type_ids"]) == len(pair["input_ids"])


def test_tokens_know_which_text_they_are_of(tokenizer: Any) -> None:
    assert set(tokenizer(SHORT).sequence_ids()) == {0}
    assert set(tokenizer(SHORT, LONG).sequence_ids()) == {0, 1}


def test_special_tokens_are_counted_and_marked(read: Any) -> None:
    for tokenizer in (read(), read(add_bos_token=True)):
        plain = tokenizer(SHORT, add_special_tokens=False)["input_ids"]
        encoded = tokenizer(SHORT, return_special_tokens_mask=True)
        mask, ids = encoded["special_tokens_mask"], encoded["input_ids"]
        assert len(mask) == len(ids) and sum(mask) == tokenizer.num_special_tokens_to_add()
        assert [i for i, special in zip(ids, mask, strict=True) if not special] == plain


def test_the_mask_of_special_tokens_can_be_asked_for(tokenizer: Any) -> None:
    ids = tokenizer(SHORT + "<|endoftext|>")["input_ids"]
    mask = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert mask == [0] * (len(ids) - 1) + [1]


def test_words_may_be_given_one_by_one(read: Any) -> None:
    tokenizer = read(add_prefix_space=True)
    words, other = LONG.split(), SHORT.split()
    pairs = [(words, other), (other, words)]
    split = {"is_split_into_words": True}
    assert tokenizer(words, **split)["input_ids"] == tokenizer(LONG)["input_ids"]
    assert tokenizer(words, other, **split)["input_ids"] == tokenizer(LONG, SHORT)["input_ids"]
    assert rows(tokenizer([words, other], **split))[1] == dict(tokenizer(SHORT))
    assert rows(tokenizer(pairs, **split))[1] == dict(tokenizer(SHORT, LONG))


# --- padding and truncation -------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("where", ["attribute", "call", "load"])
def test_padding_goes_to_its_side(read: Any, side: str, where: str) -> None:
    tokenizer = read(padding_side=side) if where == "load" else read()
    named = {"padding_side": side} if where == "call" else {}
    if where == "attribute":
        tokenizer.padding_side = side
    ids = tokenizer.encode(SHORT)
    length = len(ids) + 10
    padded = tokenizer(
        SHORT, max_length=length, padding="max_length", return_special_tokens_mask=True, **named
    )
    fill, ones, zeros = [tokenizer.pad_token_id] * 10, [1] * len(ids), [0] * 10
    right = side == "right"
    assert padded["input_ids"] == (ids + fill if right else fill + ids)
    assert padded["attention_mask"] == (ones + zeros if right else zeros + ones)
    marks = [0] * len(ids)
    assert padded["special_tokens_mask"] == (marks + [1] * 10 if right else [1] * 10 + marks)


@pytest.mark.parametrize("name", ["padding_side", "truncation_side"])
def test_sides_are_left_and_right(read: Any, name: str) -> None:
    assert getattr(read(**{name: "left"}), name) == "left"
    assert getattr(read(**{name: "right"}), name) == "right"
    with refuses():
        read(**{name: "middle"})


@pytest.mark.parametrize("padding", [True, "longest", False, "do_not_pad"])
def test_one_text_needs_no_padding(tokenizer: Any, padding: bool | str) -> None:
    assert dict(tokenizer(SHORT, padding=padding)) == dict(tokenizer(SHORT))


@pytest.mark.filterwarnings("ignore:.*max_length")
def test_the_longest_row_decides_and_no_length_beside_it(tokenizer: Any) -> None:
    batch = tokenizer([SHORT, LONG], padding=True)
    longest = len(tokenizer(LONG)["input_ids"])
    assert [len(row) for row in batch["input_ids"]] == [longest, longest]
    for row, text in zip(rows(batch), (SHORT, LONG), strict=True):
        assert row == dict(tokenizer(text, padding="max_length", max_length=longest))
    again = tokenizer([SHORT, LONG], padding="longest", max_length=longest + 10)
    assert dict(again) == dict(batch)


def test_without_a_padding_token_padding_is_a_value_error(read: Any) -> None:
    tokenizer = read()
    tokenizer.pad_token = None
    with refuses():
        tokenizer([SHORT, LONG], padding=True)
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    assert tokenizer([SHORT, LONG], padding=True)["input_ids"][0][-1] == tokenizer.pad_token_id


@pytest.mark.parametrize("text", ["", SHORT, [SHORT, LONG]])
def test_padded_lengths_can_be_rounded_up(tokenizer: Any, text: str | list[str]) -> None:
    for column in tokenizer(text, padding=True, pad_to_multiple_of=8).values():
        for row in column if isinstance(text, list) else [column]:
            assert len(row) % 8 == 0


def test_rounding_without_padding_does_nothing(tokenizer: Any) -> None:
    assert dict(tokenizer("dog", pad_to_multiple_of=8)) == dict(tokenizer("dog"))


def test_rounding_goes_with_truncation_where_the_length_allows_it(tokenizer: Any) -> None:
    made = tokenizer(LONG, padding=True, truncation=True, max_length=16, pad_to_multiple_of=8)
    assert len(made["input_ids"]) == 16
    with refuses():
        tokenizer(LONG, padding=True, truncation=True, max_length=12, pad_to_multiple_of=8)


def test_masks_that_are_there_are_padded_with_nothing(tokenizer: Any) -> None:
    features = [
        {"input_ids": [4, 5, 6, 7], "attention_mask": [1, 1, 1, 0]},
        {"input_ids": [8, 9], "attention_mask": [1, 0]},
    ]
    assert tokenizer.pad(features)["attention_mask"] == [[1, 1, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_cuts_on_its_side(tokenizer: Any, side: str) -> None:
    tokenizer.truncation_side = side
    ids = tokenizer.encode(LONG)
    cut = tokenizer.encode(LONG, max_length=len(ids) - 3, truncation=True)
    assert cut == (ids[:-3] if side == "right" else ids[3:])
    for truncation in (False, "do_not_truncate"):
        assert tokenizer.encode(LONG, truncation=truncation) == ids


@pytest.mark.filterwarnings("ignore:.*max_length")
def test_truncation_without_a_length_does_nothing(tokenizer: Any) -> None:
    assert tokenizer.encode(LONG, truncation=True) == tokenizer.encode(LONG)


def test_the_length_limit_of_the_model_truncates(read: Any) -> None:
    tokenizer = read(model_max_length=6)
    assert len(tokenizer(LONG, truncation=True)["input_ids"]) == 6
    assert [len(r) for r in tokenizer([LONG, LONG], truncation=True)["input_ids"]] == [6, 6]


def test_a_text_beyond_the_limit_is_warned_of(
    read: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # whatever ran before has set
    tokenizer = read(model_max_length=6)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        tokenizer(SHORT[:3])
        assert not caplog.records and not shown
        tokenizer(LONG)
    assert "6" in caplog.text + "".join(str(warning.message) for warning in shown)


def test_what_was_cut_off_can_be_handed_back(tokenizer: Any) -> None:
    ids = tokenizer(LONG)["input_ids"]
    pieces = tokenizer(
        LONG, max_length=8, truncation=True, stride=2, return_overflowing_tokens=True
    )["input_ids"]
    assert pieces[0] == ids[:8] and pieces[1] == ids[6:14]
    assert all(len(piece) <= 8 for piece in pieces) and pieces[-1][-1] == ids[-1]


@pytest.mark.parametrize(
    ("truncation", "cut"), [("only_first", 0), ("only_second", 1), ("longest_first", 1)]
)
def test_pairs_are_cut_where_it_is_said(tokenizer: Any, truncation: str, cut: int) -> None:
    texts = (LONG, SHORT) if cut == 0 else (SHORT, LONG)
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    made = tokenizer(*texts, max_length=sum(lengths) - 4, truncation=truncation)
    places = made.sequence_ids()
    lengths[cut] -= 4
    assert [places.count(0), places.count(1)] == lengths


def test_pieces_of_several_texts_make_a_tensor(tokenizer: Any) -> None:
    made = tokenizer(
        [LONG, "a"],
        max_length=6,
        padding=True,
        truncation="only_first",
        return_tensors="pt",
        return_overflowing_tokens=True,
    )
    assert made["input_ids"].shape == made["attention_mask"].shape and made.input_ids.shape[1] == 6
    assert made["overflow_to_sample_mapping"][-1] == 1


def test_targets_are_labels(tokenizer: Any) -> None:
    batch = tokenizer(
        [LONG, LONG], text_target=[SHORT, SHORT], max_length=3, truncation=True, return_tensors="pt"
    )
    assert batch["input_ids"].shape == (2, 3) and batch["labels"].shape == (2, 3)


# --- characters, words and tokens -------------------------------------------------------------


def test_places_of_words_tokens_and_characters_agree(tokenizer: Any) -> None:
    words = ["Wonderful", "no", "inspiration", "example", "with", "subtoken"]
    text = " ".join(words)
    one, many = tokenizer(text), tokenizer([text] * 3)
    last_token, last_word = len(one["input_ids"]) - 1, len(words) - 1
    for batch, row in ((one, 0), (many, 2)):
        assert len(batch.word_ids(row)) == len(batch.tokens(row)) == last_token + 1
        assert {w for w in batch.word_ids(row) if w is not None} == set(range(len(words)))
        assert batch.token_to_word(row, last_token) == last_word
        assert batch.word_to_tokens(row, last_word).end == last_token + 1
        assert batch.word_to_tokens(row, 0).start == 0
        assert batch.token_to_chars(row, last_token).end == len(text)
        assert batch.char_to_token(row, 0) == 0
        assert batch.char_to_token(row, len(text) - 1) == last_token
        assert batch.char_to_word(row, len(text) - 1) == last_word
        assert batch.word_to_chars(row, 0).start == 0
        assert batch.word_to_chars(row, last_word).end == len(text)
        assert batch.token_to_sequence(row, last_token) == 0


def test_pairs_have_places_of_their_own(tokenizer: Any) -> None:
    words = ["Amazing", "example", "input"]
    pair = ["Along", "with", "an", "awesome", "pair"]
    made = tokenizer(" ".join(words), " ".join(pair))
    for index, text in enumerate((words, pair)):
        start = made.word_to_tokens(0, sequence_index=index).start
        assert made.token_to_sequence(start) == index
        assert made.word_to_chars(1, sequence_index=index).end == len(" ".join(text[:2]))
        assert made.char_to_word(len(text[0]) + 1, sequence_index=index) == 1
        assert made.char_to_token(0, sequence_index=index) == start


def test_every_token_has_its_offsets(tokenizer: Any) -> None:
    for texts in ((LONG,), (LONG, SHORT)):
        made = tokenizer(*texts, return_offsets_mapping=True, return_special_tokens_mask=True)
        assert len(made["offset_mapping"]) == len(made["input_ids"])
        assert sum(made["special_tokens_mask"]) == tokenizer.num_special_tokens_to_add(
            len(texts) == 2
        )


# --- a new vocabulary -------------------------------------------------------------------------

CORPUS = [
    ["A first sentence to learn from.", "And a second one."],
    ["Here is a third sentence.", "Texts of all kinds, some of them with the, is, this and first."],
]


def test_another_vocabulary_can_be_learnt(tokenizer: Any) -> None:
    new = tokenizer.train_new_from_iterator(CORPUS, 300)
    unseen = ["This is the first sentence", "This one is different 🤗."]
    batch = new(unseen)
    assert [new.decode(row, skip_special_tokens=True) for row in batch["input_ids"]] == unseen
    assert new.special_tokens_map == tokenizer.special_tokens_map
    assert new.num_special_tokens_to_add(True) == tokenizer.num_special_tokens_to_add(True)


def test_a_new_vocabulary_may_have_other_special_tokens(tokenizer: Any) -> None:
    new = tokenizer.train_new_from_iterator(
        CORPUS, 300, special_tokens_map={"<|endoftext|>": "<|end|>"}
    )
    assert new.eos_token == "<|end|>" and new.eos_token_id == new.get_vocab()["<|end|>"]


def test_it_can_be_made_from_a_vocabulary_and_merges(
    library: Library, tokenizer: Any, tokenizer_folder: Path
) -> None:
    model = json.loads((tokenizer_folder / "tokenizer.json").read_text())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    made = library.GPTNeoXTokenizerFast(vocab=model["vocab"], merges=merges)
    assert made(LONG)["input_ids"] == tokenizer(LONG)["input_ids"]


# --- conversations ----------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello there"},
]
WRITTEN = "system:be kind;user:hello;assistant:hello there;"


def test_a_conversation_is_written_as_the_template_says(tokenizer: Any) -> None:
    written = tokenizer.apply_chat_template(TALK, chat_template=TEMPLATE, tokenize=False)
    assert written == WRITTEN
    tokenizer.chat_template = TEMPLATE
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == WRITTEN
    ids = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)
    assert ids == tokenizer(WRITTEN, add_special_tokens=False)["input_ids"]


def test_conversations_come_in_batches(tokenizer: Any) -> None:
    both = tokenizer.apply_chat_template([TALK, TALK[:2]], chat_template=TEMPLATE, tokenize=False)
    assert both == [WRITTEN, "system:be kind;user:hello;"]


def test_a_template_is_saved_with_the_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again.apply_chat_template(TALK, tokenize=False) == WRITTEN


def test_a_conversation_of_nothing_is_a_value_error(tokenizer: Any) -> None:
    with refuses():
        tokenizer.apply_chat_template([], chat_template="x", tokenize=False)


def test_several_templates_can_be_kept_by_name(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": "a{{ messages|length }}", "other": "b"}
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == "a3"
    assert tokenizer.apply_chat_template(TALK, chat_template="other", tokenize=False) == "b"


def test_templates_may_leave_loops_and_tell_the_day(tokenizer: Any) -> None:
    loop = "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}x{% endfor %}"
    assert tokenizer.apply_chat_template(TALK, chat_template=loop, tokenize=False) == "xx"
    day = tokenizer.apply_chat_template(
        TALK, chat_template="{{ strftime_now('%Y-%m-%d') }}", tokenize=False
    )
    assert len(day) == 10 and day[4] == day[7] == "-"


def test_the_last_message_can_be_left_open(tokenizer: Any) -> None:
    written = tokenizer.apply_chat_template(
        TALK, chat_template=TEMPLATE, tokenize=False, continue_final_message=True
    )
    assert written == WRITTEN.removesuffix(";")


def test_what_the_assistant_said_can_be_marked(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    made = tokenizer.apply_chat_template(
        TALK, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [i for i, m in zip(made["input_ids"], made["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(said) == "hello there"
