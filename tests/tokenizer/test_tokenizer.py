"""Text to token ids: golden values, the raw Rust library, and transformers as oracles."""

from __future__ import annotations

import copy
import pickle
import shutil
import threading
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from neox_lab.errors import TokenizerError
from neox_lab.tokenizer import BatchEncoding, GPTNeoXTokenizerFast

GOLDEN = [
    (
        "GPTNeoX20B is a 20B-parameter autoregressive Transformer model developed by EleutherAI.",
        "40,5736,6560,80,57,938,35,310,247,1384,35,14,19484,47694,11020,4480,19946,1566,3715,407,"
        "13173,16580,18128,15",
    ),
    ("Hello world", "12092,1533"),
    (" Hello world", "24387,1533"),
    ("def f():\n    return 1\n", "1545,269,14850,187,50274,2309,337,187"),
    ("a" + " " * 26 + "b", "66,50254,50276,67"),
    (" ", "209"),
    ("  ", "50276"),
    ("   ", "50275"),
    ("\n\n", "535"),
    ("\t", "186"),
    ("\x00", "177"),
    ("é", "860"),
    ("e\u0301", "860"),
    ("<|endoftext|>hi", "0,5801"),
    ("hi<|padding|>", "5801,1"),
    (
        "<|im_start|>system\nA chat between",
        "29,93,303,64,5478,49651,10394,187,34,12939,875",
    ),
    ("", ""),
]
TEXTS = [
    "Hello world",
    "",
    " \t mixed   spaces \n\n end  ",
    "naïve café — “quoted” … 北京 हिन्दी ไทย 🙂👩‍👩‍👧 e\u0301 \u00a0",
    "def f(x):\n        return [x**2 for x in range(10)]\n",
    "The quick brown fox's 12345 can't won't we've <|endoftext|> tail<|padding|>",
    "<|im_start|>system\nA chat between \x00\x07 control",
]
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session")
def real_file(shared: Path) -> Path:
    return shared / "data" / "gpt-neox-20b-tokenizer.json"


@pytest.fixture(scope="session")
def directory(real_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(real_file, folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def raw(real_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(real_file))


@pytest.fixture(scope="session")
def ours(directory: Path) -> GPTNeoXTokenizerFast:
    return GPTNeoXTokenizerFast.from_pretrained(directory)


@pytest.fixture(scope="session")
def theirs(directory: Path) -> Any:
    return pytest.importorskip("transformers").GPTNeoXTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize(("text", "ids"), GOLDEN)
def test_golden_ids(ours: GPTNeoXTokenizerFast, text: str, ids: str) -> None:
    expected = [int(number) for number in ids.split(",") if number]
    assert ours(text).input_ids == expected == ours.encode(text)
    assert ours.decode(expected) == unicodedata.normalize("NFC", text)


def test_sizes_and_special_tokens(ours: GPTNeoXTokenizerFast) -> None:
    assert (len(ours), ours.vocab_size, len(ours.get_vocab())) == (50277, 50254, 50277)
    assert (ours.bos_token_id, ours.eos_token_id, ours.unk_token_id, ours.pad_token_id) == (
        (0, 0, 0, 1)
    )
    assert ours.all_special_tokens == ["<|endoftext|>", "<|padding|>"]
    assert ours.all_special_ids == [0, 1]
    assert ours.sep_token is None
    assert ours.sep_token_id is None
    assert ours.model_max_length == int(1e30)
    assert ours.get_added_vocab()["  "] == 50276
    assert list(ours.added_tokens_decoder)[:3] == [0, 1, 50254]
    assert "50254" in repr(ours)


def test_public_domain_text_matches_transformers(
    ours: GPTNeoXTokenizerFast, theirs: Any, shared: Path
) -> None:
    text = (shared / "data" / "text" / "public-domain.txt").read_text(encoding="utf-8")
    paragraphs = text[1_000_000:1_200_000].split("\n\n")
    ids = ours(paragraphs).input_ids
    assert ids == theirs(paragraphs)["input_ids"]
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    assert ours.batch_decode(ids) == [unicodedata.normalize("NFC", text) for text in paragraphs]


@quick
@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4),
    pair=st.booleans(),
    padding=st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]),
    truncation=st.sampled_from(
        [None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate"]
    ),
    max_length=st.sampled_from([None, 4, 8, 64]),
    stride=st.sampled_from([0, 1]),
    multiple=st.sampled_from([None, 4]),
    sides=st.tuples(*[st.sampled_from(["left", "right"])] * 3),
    overflow=st.booleans(),
    bos=st.booleans(),
)
def test_arguments_match_transformers(
    ours: GPTNeoXTokenizerFast,
    theirs: Any,
    texts: list[str],
    pair: bool,
    padding: Any,
    truncation: Any,
    max_length: int | None,
    stride: int,
    multiple: int | None,
    sides: tuple[str, str, str],
    overflow: bool,
    bos: bool,
) -> None:
    arguments: dict[str, Any] = {
        "text_pair": [text[::-1] for text in texts] if pair else None,
        "padding": padding,
        "truncation": truncation,
        "max_length": max_length,
        "stride": 0 if pair else stride,  # the Rust library panics on many strides with pairs
        "pad_to_multiple_of": None if padding in (False, "do_not_pad") else multiple,
        "padding_side": sides[0],
        "return_overflowing_tokens": overflow,
        "return_special_tokens_mask": True,
        "return_token_type_ids": True,
        "return_length": True,
    }
    for tokenizer in (ours, theirs):
        tokenizer.padding_side, tokenizer.truncation_side = sides[1:]
        tokenizer.add_bos_token = bos
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = dict(theirs(texts, **arguments))
        except Exception:  # the Rust library's errors are plain Exceptions
            with pytest.raises(TokenizerError):
                ours(texts, **arguments)
        else:
            assert dict(ours(texts, **arguments)) == expected
    for tokenizer in (ours, theirs):
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        tokenizer.add_bos_token = False


def test_one_text_and_words_match_transformers(ours: GPTNeoXTokenizerFast, theirs: Any) -> None:
    words = ["Hello", " world", "again"]
    for text, pair, split in [
        (TEXTS[3], None, False),
        (TEXTS[3], TEXTS[4], False),
        ([("a b", "c"), ("d", "e f")], None, False),
        (words, None, True),
        ([words, words[:1]], None, True),
        (words, words[::-1], True),
        ([(words, words[:1])], None, True),
    ]:
        options = {"is_split_into_words": split, "return_token_type_ids": True}
        expected = theirs(text, pair, **options)
        result = ours(text, pair, **options)
        assert dict(result) == dict(expected)
        assert result.word_ids() == expected.word_ids()
        assert result.sequence_ids() == expected.sequence_ids()
        assert result.tokens() == expected.tokens()
    tuples = ours([("a", "b")], is_split_into_words=True, return_token_type_ids=True)
    assert tuples.token_type_ids == [[0, 0]]  # two words of one text, not a pair
    text = TEXTS[3]
    assert ours.tokenize(text) == theirs.tokenize(text)
    overflowing = {"max_length": 5, "truncation": True, "return_overflowing_tokens": True}
    assert dict(ours(text, **overflowing)) == dict(theirs(text, **overflowing))


def test_offsets_are_those_of_the_raw_file(ours: GPTNeoXTokenizerFast, raw: Tokenizer) -> None:
    assert ours("Hello world", return_offsets_mapping=True).offset_mapping == [(0, 5), (6, 11)]
    for text in [*TEXTS, "  a  b"]:
        assert ours(text, return_offsets_mapping=True).offset_mapping == raw.encode(text).offsets
    batch = ours(TEXTS, padding=True, return_offsets_mapping=True, return_tensors="pt")
    assert batch.offset_mapping.shape == (*batch.input_ids.shape, 2)


def test_trim_offsets_and_prefix_space(directory: Path, theirs: Any) -> None:
    loose = GPTNeoXTokenizerFast.from_pretrained(directory, trim_offsets=False)
    text = "Hello  world 🙂"
    options = {"return_offsets_mapping": True}
    assert dict(loose(text, **options)) == dict(theirs(text, **options))
    spaced = GPTNeoXTokenizerFast.from_pretrained(directory, add_prefix_space=True)
    assert spaced.add_prefix_space
    assert spaced("Hello world").input_ids == [24387, 1533]
    assert spaced("Hello world", **options).offset_mapping == [(0, 5), (6, 11)]


# --- tensors and batches --------------------------------------------------------------------


def test_tensors(ours: GPTNeoXTokenizerFast) -> None:
    batch = ours(["Hello world", "a"], padding=True, return_tensors="pt")
    assert batch.input_ids.tolist() == [[12092, 1533], [66, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch.input_ids.dtype == torch.int64
    assert batch.to("meta").input_ids.device.type == "meta"
    assert ours("Hello world", return_tensors="pt").input_ids.shape == (1, 2)
    assert ours("", return_tensors="pt").input_ids.dtype == torch.int64
    array = ours(["a", "b"], return_tensors="np").input_ids
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.int64
    assert ours.encode("a b", return_tensors="pt").tolist() == [[66, 270]]
    assert dict(ours([])) == {"input_ids": [], "attention_mask": []}


def test_batch_encoding_answers_about_positions(
    ours: GPTNeoXTokenizerFast, theirs: Any, directory: Path
) -> None:
    text = "Hello  wörld 🙂 again"
    expected = theirs([text, text])
    loose = GPTNeoXTokenizerFast.from_pretrained(directory, trim_offsets=False)  # as theirs
    batch = loose([text, text])
    for char in range(len(text) + 2):
        assert batch.char_to_token(char) == expected.char_to_token(char)
        assert batch.char_to_word(1, char) == expected.char_to_word(1, char)
    for token in range(len(batch[0]) + 1):
        assert batch.token_to_chars(0, token) == expected.token_to_chars(0, token)
        assert batch.token_to_word(token) == expected.token_to_word(token)
    for word in range(4):
        assert batch.word_to_tokens(word) == expected.word_to_tokens(word)
        assert batch.word_to_chars(1, word) == expected.word_to_chars(1, word)
    assert ours("Hello world").char_to_token(6) == 1
    assert ours("Hello world").token_to_chars(1) == (6, 11)
    assert batch.token_to_sequence(0) == 0
    assert batch.token_to_chars(-1) == batch.token_to_chars(len(batch[0]) - 1)
    assert batch.n_sequences == 1
    assert len(batch.encodings or []) == 2
    assert batch[:1] == {
        "input_ids": batch.input_ids[:1],
        "attention_mask": batch[:1]["attention_mask"],
    }
    assert pickle.loads(pickle.dumps(batch)) == batch
    with pytest.raises(AttributeError, match="input_ids"):
        _ = batch.input_idz
    with pytest.raises(KeyError, match="attention_mask"):
        _ = batch["attention_maks"]
    with pytest.raises(IndexError, match="2 rows"):
        _ = batch[2]
    with pytest.raises(TokenizerError, match="return_tensors"):
        batch.to("cpu")
    with pytest.raises(TokenizerError, match="not made from text"):
        BatchEncoding({"input_ids": [1]}).word_ids()


def test_pad_matches_transformers(ours: GPTNeoXTokenizerFast, theirs: Any) -> None:
    rows = [dict(ours(text, return_special_tokens_mask=True)) for text in TEXTS[:4]]
    for options in [
        {},
        {"pad_to_multiple_of": 8, "padding_side": "left"},
        {"padding": "max_length", "max_length": 40},
        {"return_tensors": "pt"},
    ]:
        for encoded in (rows, {name: [row[name] for row in rows] for name in rows[0]}, rows[0]):
            expected = theirs.pad(copy.deepcopy(encoded), **options)
            result = ours.pad(encoded, **options)
            assert set(result) == set(expected)
            for name, value in result.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[name]))
    made = ours.pad([{"input_ids": torch.tensor([5])}, {"input_ids": torch.tensor([6, 7])}])
    assert made.input_ids.tolist() == [[5, 1], [6, 7]]
    assert made.attention_mask.tolist() == [[1, 0], [1, 1]]
    with pytest.raises(TokenizerError, match="input_ids"):
        ours.pad({"ids": [1]})
    with pytest.raises(TokenizerError, match="rows"):
        ours.pad({"input_ids": [[1], [2]], "labels": [0]})


def test_a_call_never_changes_the_next(ours: GPTNeoXTokenizerFast) -> None:
    before = ours.backend_tokenizer.to_str()
    plain = dict(ours(TEXTS))
    ours(TEXTS, truncation=True, max_length=3, padding="max_length", padding_side="left")
    with pytest.raises(TokenizerError):
        ours("a b c", "d e f", truncation="only_first", max_length=1)
    assert ours.backend_tokenizer.to_str() == before
    assert dict(ours(TEXTS)) == plain
    own = copy.deepcopy(ours)
    own.backend_tokenizer.enable_truncation(2)
    assert own("a b c d").input_ids == ours("a b c d").input_ids
    assert own.backend_tokenizer.truncation["max_length"] == 2


def test_threads_do_not_see_each_other(ours: GPTNeoXTokenizerFast) -> None:
    expected = {limit: ours(TEXTS, truncation=True, max_length=limit).input_ids for limit in (2, 5)}
    whole = ours(TEXTS).input_ids
    wrong: list[str] = []

    def work(limit: int | None) -> None:
        for _ in range(30):
            if limit is None:
                result = ours(TEXTS).input_ids == whole
            else:
                ids = ours(TEXTS, truncation=True, max_length=limit).input_ids
                result = ids == expected[limit]
            if not result:
                wrong.append(str(limit))

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (2, 5, None, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- what must fail, and how ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {}, "NoneType"),
        (b"bytes", {}, "Decode the bytes"),
        (5, {}, "int"),
        (["a", float("nan")], {}, r"text\[1\].*float"),
        (["a", ["b", 3]], {}, r"text_pair\[1\].*int"),
        ("half \ud800", {}, "surrogate"),
        ("a b", {"is_split_into_words": True}, "list of words"),
        (["a"], {"text_pair": "b"}, "text_pair"),
        (["a"], {"text_pair": ["b", "c"]}, "is 2"),
        ("a", {"paddin": True}, "padding"),
        ("a", {"padding": "longst"}, "longest"),
        ("a", {"truncation": "only_frist"}, "only_first"),
        ("a", {"return_tensors": "tf"}, "return_tensors"),
        ("a", {"padding": True, "padding_side": "up"}, "padding_side"),
        ("a", {"max_length": -1}, "max_length"),
        ("a", {"max_length": 2**70}, "max_length"),
        ("a", {"max_length": 2.5}, "max_length"),
        ("a b c", {"max_length": 2, "stride": 2}, "stride"),
        ("a b c", {"max_length": 1, "truncation": "only_second"}, "longest_first"),
        ("a", {"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of"),
        (
            "a",
            {"padding": True, "truncation": True, "max_length": 9, "pad_to_multiple_of": 8},
            "multiple",
        ),
        (["a b c d", "a"], {"return_tensors": "pt"}, r"Unable to create tensor.*padding=True"),
        (["a b c d", "a"], {"return_tensors": "np"}, r"Unable to create tensor.*padding=True"),
        ([], {"return_tensors": "pt"}, "Unable to create tensor"),
    ],
)
def test_bad_calls_say_what_is_wrong(
    ours: GPTNeoXTokenizerFast, text: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        ours(text, **options)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([-1], "negative"), ([-100, 5], "-100"), (["5"], "str"), ([1.5], "float"), (None, "None")],
)
def test_bad_ids_say_what_is_wrong(ours: GPTNeoXTokenizerFast, ids: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        ours.decode(ids)


def test_what_would_do_nothing_warns(ours: GPTNeoXTokenizerFast) -> None:
    with pytest.warns(UserWarning, match="model_max_length"):
        assert ours("a b c", truncation=True).input_ids == [66, 270, 260]
    with pytest.warns(UserWarning, match="max_length does nothing"):
        ours(["a b c"], padding=True, max_length=2)
    with pytest.warns(UserWarning, match="pad_to_multiple_of does nothing"):
        assert ours("a b c", pad_to_multiple_of=8).input_ids == [66, 270, 260]
    with pytest.warns(UserWarning, match="use_source_tokenizer"):
        assert ours.decode([66], use_source_tokenizer=True) == "a"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours("a b c", truncation=True, pad_to_multiple_of=8, verbose=False)
        ours(["a b c"], padding=True, max_length=2, verbose=False)


@quick
@given(
    texts=st.lists(st.text(max_size=12), min_size=1, max_size=3),
    targets=st.lists(st.text(max_size=12), min_size=3, max_size=3),
    source=st.booleans(),
    lengths=st.sampled_from([(None, None), (4, None), (4, 2)]),
    split=st.sampled_from([None, True, False]),
    tensors=st.sampled_from([None, "np"]),
)
def test_targets_match_transformers(
    ours: GPTNeoXTokenizerFast,
    theirs: Any,
    texts: list[str],
    targets: list[str],
    source: bool,
    lengths: tuple[int | None, int | None],
    split: bool | None,
    tensors: str | None,
) -> None:
    options: dict[str, Any] = {
        "text": [f"{text}<|endoftext|>" for text in texts] if source else None,
        "text_target": targets[: len(texts)],
        "truncation": lengths[0] is not None,
        "padding": "max_length" if lengths[0] else True,
        "max_length": lengths[0],
        "max_target_length": lengths[1],
        "return_tensors": tensors,
        "return_token_type_ids": False,
        "return_attention_mask": True,
        "tokenizer_kwargs": {"padding_side": "left"},
    }
    if split is not None:
        options["split_special_tokens"] = split
    made, expected = ours(**options), theirs(**options)
    assert (
        set(made)
        == set(expected)
        == {"input_ids", "attention_mask"} | ({"labels"} if source else set())
    )
    for name in made:
        assert np.array_equal(np.array(made[name]), np.array(expected[name]))
    single = ours("a b", text_target="c d", text_pair_target="e")
    assert dict(single) == {
        "input_ids": [66, 270],
        "attention_mask": [1, 1],
        "labels": ours("c d", "e").input_ids,
    }


def test_special_tokens_are_split_for_one_call(ours: GPTNeoXTokenizerFast, theirs: Any) -> None:
    text = "a<|endoftext|>"
    split = theirs.tokenize(text, split_special_tokens=True)
    assert ours.tokenize(text, split_special_tokens=True) == split != ours.tokenize(text)
    theirs.tokenize(text, split_special_tokens=False)  # it stays as the last call had it
    assert ours.encode(text, split_special_tokens=True) == ours.convert_tokens_to_ids(split)
    assert ours(text).input_ids == [66, 0]


def test_columns_become_tensors_later(ours: GPTNeoXTokenizerFast) -> None:
    batch = ours("a b").convert_to_tensors("pt", prepend_batch_axis=True)
    assert batch.data.keys() == batch.keys() and torch.equal(
        batch.input_ids, torch.tensor([[66, 270]])
    )
    rows = ours(["a b", "c"])
    assert rows.convert_to_tensors() is rows and isinstance(rows.input_ids, list)
    with pytest.raises(TokenizerError, match="padding=True"):
        rows.convert_to_tensors("np")
    with pytest.raises(TokenizerError, match="tensor_type"):
        rows.convert_to_tensors("tf")


def test_no_text_and_wrong_targets_are_refused(ours: GPTNeoXTokenizerFast) -> None:
    with pytest.raises(TokenizerError, match="text_target are NoneType"):
        ours()
    with pytest.raises(TokenizerError, match="max_target_length"):
        ours("a", text_target="b", max_target_length=-1)


def test_a_long_text_is_warned_of_unless_told_not_to(real_file: Path) -> None:
    short = GPTNeoXTokenizerFast(tokenizer_file=real_file, model_max_length=2)
    with pytest.warns(UserWarning, match="model's 2"):
        short("a b c d")
    assert (short.max_len_single_sentence, short.max_len_sentences_pair) == (2, 2)
    short.add_bos_token = True
    assert (short.max_len_single_sentence, short.max_len_sentences_pair) == (1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short("a b c d", verbose=False)
