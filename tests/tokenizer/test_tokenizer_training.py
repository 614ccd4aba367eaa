"""Vocabularies learnt anew, held against transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from neox_lab.errors import TokenizerError
from neox_lab.tokenizer import GPTNeoXTokenizerFast

TEXT = "the cat sat on the mat,  naïve café 北京 🙂\n\tthe dog's 12345 <|endoftext|> "


@pytest.fixture(scope="session")
def directory(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(shared / "data" / "gpt-neox-20b-tokenizer.json", folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def corpus(shared: Path) -> list[list[str]]:
    text = (shared / "data" / "text" / "public-domain.txt").read_text(encoding="utf-8")
    lines = text[1_000_000:1_060_000].splitlines()
    return [lines[start : start + 100] for start in range(0, len(lines), 100)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_frequency": 3, "max_token_length": 5},
        {"new_special_tokens": ["<x>", AddedToken("<y>", lstrip=True)]},
        {"special_tokens_map": {"<|endoftext|>": "<|end|>"}, "length": 1000},
    ],
    ids=str,
)
def test_the_same_vocabulary_is_learnt(
    directory: Path, corpus: list[list[str]], options: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = GPTNeoXTokenizerFast.from_pretrained(directory, padding_side="left")
    theirs = transformers.GPTNeoXTokenizerFast.from_pretrained(directory, padding_side="left")
    before = ours.backend_tokenizer.to_str()
    options = options | {"show_progress": False}
    new = ours.train_new_from_iterator(corpus, 500, **options)
    expected = theirs.train_new_from_iterator(corpus, 500, **options)
    assert type(new) is GPTNeoXTokenizerFast and ours.backend_tokenizer.to_str() == before
    learnt, wanted = new.get_vocab(), expected.get_vocab()
    if "special_tokens_map" in options:  # the old name is kept there beside the new one
        assert learnt.keys() == wanted.keys() - {"<|endoftext|>"}
        learnt, wanted = [{t: i for t, i in v.items() if i < 500} for v in (learnt, wanted)]
    assert learnt == wanted and new.vocab_size == 500
    assert new.special_tokens_map == expected.special_tokens_map
    assert new.extra_special_tokens == expected.extra_special_tokens
    assert new.padding_side == "left"
    text = TEXT.replace("<|endoftext|>", new.eos_token) + " <x>  <y>"
    assert new.tokenize(text) == expected.tokenize(text)
    assert new.decode(new(TEXT).input_ids) == TEXT


def test_what_stands_around_texts_is_taken_over(directory: Path, corpus: list[list[str]]) -> None:
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(
        directory, bos_token="<s>", add_bos_token=True, add_eos_token=True, add_prefix_space=True
    )
    tokenizer.chat_template = "kept"
    tokenizer.add_special_tokens({"extra_special_tokens": {"image_token": "<img>"}})
    new = tokenizer.train_new_from_iterator(
        (line for batch in corpus for line in batch),
        400,
        special_tokens_map={"<s>": "<start>"},
        show_progress=False,
    )
    ids = new("the<img>").input_ids
    assert ids[0] == new.bos_token_id == new.get_vocab()["<start>"] and ids[-1] == new.eos_token_id
    assert ids[-2] == new.image_token_id and new.image_token == "<img>"
    assert new.convert_ids_to_tokens(ids)[1].startswith("Ġ")
    assert "<s>" not in new.get_vocab() and new.chat_template == "kept"
    assert new.add_bos_token and new.add_eos_token and new.add_prefix_space


def test_what_cannot_be_learnt_is_refused() -> None:
    words = GPTNeoXTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(TokenizerError, match="WordLevel"):
        words.train_new_from_iterator(["a"], 10)
    small = GPTNeoXTokenizerFast(vocab={"a": 0}, merges=[])
    with pytest.raises(TokenizerError, match="trainer"):
        small.train_new_from_iterator(["a"], -1)
