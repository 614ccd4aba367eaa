"""Token ids to text, special tokens, and tokens that users add."""

from __future__ import annotations

import copy
import pickle
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from neox_lab.errors import TokenizerError
from neox_lab.tokenizer import GPTNeoXTokenizerFast

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


@pytest.fixture
def fresh(raw: Tokenizer) -> GPTNeoXTokenizerFast:
    return GPTNeoXTokenizerFast(tokenizer_object=raw)


@pytest.fixture(scope="session")
def theirs(directory: Path) -> Any:
    return pytest.importorskip("transformers").GPTNeoXTokenizerFast.from_pretrained(directory)


@quick
@given(st.text())
def test_round_trip_is_nfc(ours: GPTNeoXTokenizerFast, text: str) -> None:
    assert ours.decode(ours(text).input_ids) == unicodedata.normalize("NFC", text)


@quick
@given(st.lists(st.integers(0, 50_300), max_size=12))
def test_any_ids_decode_as_in_transformers(
    ours: GPTNeoXTokenizerFast, theirs: Any, ids: list[int]
) -> None:
    for skip in (False, True):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    pieces = ours.pieces(ids)
    assert len(pieces) == len(ids)
    assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_decode_forms(ours: GPTNeoXTokenizerFast) -> None:
    assert ours.decode(12092) == "Hello"
    assert ours.decode(torch.tensor(12092)) == "Hello"
    assert ours.decode(torch.tensor([12092, 1533])) == "Hello world"
    assert ours.decode(np.array([[12092], [1533]])) == ["Hello", " world"]
    assert ours.decode([torch.tensor([12092]), torch.tensor([1533])]) == ["Hello", " world"]
    assert ours.decode([]) == ""
    assert ours.decode([[], [12092]]) == ["", "Hello"]
    assert ours.batch_decode([12092, 1533]) == ["Hello world"]
    assert ours.batch_decode(torch.tensor([[12092], [1533]])) == ["Hello", " world"]
    assert ours.batch_decode([]) == []
    assert ours.decode([0, 12092, 1, 50276], skip_special_tokens=True) == "Hello  "
    assert ours.decode([50277, 12092, 50431, 2**40]) == "Hello"
    assert ours.convert_ids_to_tokens([50300, 0]) == [None, "<|endoftext|>"]
    assert ours.convert_ids_to_tokens(torch.tensor([0, 12092]), skip_special_tokens=True) == [
        "Hello"
    ]
    assert ours.convert_ids_to_tokens(12092) == "Hello"
    assert ours.convert_tokens_to_ids(["Hello", "no such token"]) == [12092, 0]
    assert ours.convert_tokens_to_string(["Hello", "Ġworld", None]) == "Hello world"


def test_clean_up(ours: GPTNeoXTokenizerFast, tmp_path: Path, directory: Path) -> None:
    text = "Hello , world . do n't ' quote ' I 'm it 's we 've you 're ok ? yes !"
    ids = ours(text).input_ids
    assert ours.decode(ids) == text
    cleaned = "Hello, world. don't'quote'I'm it's we've you're ok? yes!"
    assert ours.decode(ids, clean_up_tokenization_spaces=True) == cleaned
    # transformers 4 wrote this key by default; a file must not make decoding lossy
    shutil.copy(directory / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"clean_up_tokenization_spaces": true}')
    assert GPTNeoXTokenizerFast.from_pretrained(tmp_path).decode(ids) == text


def test_pieces(fresh: GPTNeoXTokenizerFast) -> None:
    assert fresh.pieces(fresh("♜€").input_ids) == ["⟨E2⟩⟨99⟩", "⟨9C⟩", "€"]
    assert fresh.pieces([0, 50276, 12092, 1533, 50300]) == [
        "<|endoftext|>",
        "  ",
        "Hello",
        " world",
        "⟨50300⟩",
    ]
    replacement = fresh.convert_tokens_to_ids("ï¿½")  # the token whose text is U+FFFD itself
    assert fresh.piece_text(replacement) == "⟨EF⟩⟨BF⟩⟨BD⟩"
    assert fresh.pieces(torch.tensor([12092])) == ["Hello"]
    single_bytes = [fresh.piece_text(index) for index in range(2, 258)]
    assert len(set(single_bytes)) == 256
    with pytest.raises(TokenizerError, match="negative"):
        fresh.piece_text(-1)


# --- changing the vocabulary ----------------------------------------------------------------


def test_add_tokens_gives_the_ids_of_transformers(
    fresh: GPTNeoXTokenizerFast, directory: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPTNeoXTokenizerFast.from_pretrained(directory)
    special = {"pad_token": "<pad>", "additional_special_tokens": ["<x>", "<y>"]}
    for tokenizer in (fresh, theirs):
        tokenizer.add_tokens(["Hello", "foo", "new one", "new one"])
        tokenizer.add_tokens(AddedToken(" strip ", lstrip=True))
        tokenizer.add_special_tokens(special)
    assert fresh.get_added_vocab() == theirs.get_added_vocab()
    assert fresh.all_special_tokens == theirs.all_special_tokens
    assert fresh.all_special_ids == theirs.all_special_ids
    assert len(fresh) == len(theirs)
    text = "Hello new one foo<pad><x> strip <y>!"
    assert fresh(text).input_ids == theirs(text)["input_ids"]
    ids = fresh(text).input_ids
    assert fresh.decode(ids, True) == theirs.decode(ids, skip_special_tokens=True)
    assert fresh.add_tokens(["brand new"]) == 1
    assert fresh.add_tokens(["brand new"]) == 0
    assert fresh.additional_special_tokens == ["<x>", "<y>"]
    assert fresh.extra_special_tokens_ids == [50280, 50281]


def test_special_token_setters(fresh: GPTNeoXTokenizerFast) -> None:
    fresh.pad_token = "<new>"
    assert (len(fresh), fresh.pad_token_id) == (50278, 50277)
    assert fresh(["a b", "c"], padding=True).input_ids[1] == [68, 50277]
    assert fresh.decode([66, 50277], skip_special_tokens=True) == "a"
    fresh.pad_token = fresh.eos_token
    assert (len(fresh), fresh.pad_token_id) == (50278, 0)
    fresh.pad_token_id = 1
    assert fresh.pad_token == "<|padding|>"
    fresh.pad_token = None
    assert fresh.pad_token_id is None
    with pytest.raises(TokenizerError, match="pad_token"):
        fresh(["a b", "c"], padding=True)
    fresh.pad_token = "!"  # a token of the model's own stays what it is
    assert len(fresh) == 50278
    assert fresh("wow!!!").input_ids == [88, 319, 15844]
    with pytest.raises(TokenizerError, match="no token has that id"):
        fresh.eos_token_id = 60_000
    with pytest.raises(TokenizerError, match="pad_token"):
        fresh.add_special_tokens({"pad_tokn": "<p>"})
    with pytest.raises(TokenizerError, match="expected a list of tokens"):
        fresh.add_special_tokens({"extra_special_tokens": "<x>"})
    with pytest.raises(TokenizerError, match="padding_side"):
        fresh.padding_side = "lefft"


def test_added_text_outside_ascii_survives_decoding(fresh: GPTNeoXTokenizerFast) -> None:
    fresh.add_tokens(["café", "ü"])  # the Rust decoder alone gives "caf\ufffd"
    text = "un café, über 北京"
    ids = fresh(text).input_ids
    assert 50277 in ids
    assert fresh.decode(ids) == text
    assert fresh.piece_text(50277) == "café"


def test_bos_and_eos_around_each_text(fresh: GPTNeoXTokenizerFast, theirs: Any) -> None:
    assert not fresh.add_bos_token
    fresh.add_bos_token = fresh.add_eos_token = True
    encoding = fresh(
        "Hello world", "a", return_offsets_mapping=True, return_special_tokens_mask=True
    )
    assert encoding.input_ids == [0, 12092, 1533, 0, 0, 66, 0]
    assert encoding.special_tokens_mask == [1, 0, 0, 1, 1, 0, 1]
    assert encoding.offset_mapping[2] == (6, 11)  # still trimmed
    assert fresh.num_special_tokens_to_add() == 2
    assert fresh("a", add_special_tokens=False).input_ids == [66]
    fresh.bos_token = "<s>"
    assert fresh("a").input_ids == [50277, 66, 0]
    fresh.add_bos_token = fresh.add_eos_token = False
    assert fresh("a").input_ids == [66]
    fresh.bos_token = None
    with pytest.warns(UserWarning, match="no bos_token"):
        fresh.add_bos_token = True
    assert not fresh.add_bos_token and fresh("a").input_ids == [66]


@quick
@given(st.lists(st.integers(0, 50_276), max_size=8))
def test_masks_of_special_tokens(fresh: GPTNeoXTokenizerFast, theirs: Any, ids: list[int]) -> None:
    expected = theirs.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert fresh.get_special_tokens_mask(ids, already_has_special_tokens=True) == expected
    fresh.add_bos_token = fresh.add_eos_token = True
    assert fresh.get_special_tokens_mask(ids) == [1, *[0] * len(ids), 1]
    encoding = fresh("a b", "c", return_special_tokens_mask=True)
    assert fresh.get_special_tokens_mask([66, 270], [68]) == encoding.special_tokens_mask
    fresh.add_bos_token = fresh.add_eos_token = False
    with pytest.raises(TokenizerError, match="token_ids_1"):
        fresh.get_special_tokens_mask([1], [2], already_has_special_tokens=True)


@pytest.mark.parametrize("writer", ["ours", "theirs"])
def test_special_tokens_with_names_of_their_own(
    directory: Path, theirs: Any, tmp_path: Path, writer: str
) -> None:
    kinds = (GPTNeoXTokenizerFast, type(theirs))
    named = {"image_token": "<img>", "video_token": "dog"}
    first = kinds[writer == "theirs"].from_pretrained(directory, extra_special_tokens=named)
    first.save_pretrained(tmp_path)
    for tokenizer in (first, *(kind.from_pretrained(tmp_path) for kind in kinds)):
        assert tokenizer.image_token == "<img>" and tokenizer.extra_special_tokens == []
        assert tokenizer.image_token_id == tokenizer.convert_tokens_to_ids("<img>") == 50277
        assert tokenizer.special_tokens_map.items() >= named.items()
        assert set(named.values()) <= set(tokenizer.all_special_tokens)
        ids = tokenizer("a<img> dog")["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "a "
    with pytest.raises(AttributeError, match="image_tokn"):
        _ = first.image_tokn


def test_named_special_tokens_are_checked(fresh: GPTNeoXTokenizerFast) -> None:
    with pytest.raises(TokenizerError, match="taken"):
        fresh.extra_special_tokens = {"decode": "<x>"}
    fresh.extra_special_tokens = {"x_token": "<x>", "sep_token": "<x>"}
    assert fresh.sep_token == "<x>"
    again = pickle.loads(pickle.dumps(copy.deepcopy(fresh)))
    assert again.x_token == "<x>" and again.x_token_id == 50277
    with pytest.raises(TokenizerError, match="no token has the id 60000"):
        fresh.extra_special_tokens_ids = [5, 60000]
