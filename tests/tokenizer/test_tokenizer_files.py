"""Loading and saving tokenizers: other vocabularies, both ways with transformers, bad files."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from neox_lab.built_in import weights_directory
from neox_lab.errors import CheckpointError, TokenizerError
from neox_lab.tokenizer import GPTNeoXTokenizerFast

TEXTS = [
    "Hello world",
    "",
    " \t mixed   spaces \n\n end  ",
    "naïve café — “quoted” … 北京 हिन्दी ไทย 🙂👩‍👩‍👧 e\u0301 \u00a0",
    "def f(x):\n        return [x**2 for x in range(10)]\n",
    "The quick brown fox's 12345 can't won't we've <|endoftext|> tail<|padding|>",
    "<|im_start|>system\nA chat between \x00\x07 control",
]


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


@pytest.fixture
def fresh(raw: Tokenizer) -> GPTNeoXTokenizerFast:
    return GPTNeoXTokenizerFast(tokenizer_object=raw)


def small_backend() -> Tokenizer:
    """A byte-level vocabulary as a user of the tokenizers library would train it."""
    backend = Tokenizer(BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a small text about small words"] * 5, trainer)
    return backend


def test_a_small_vocabulary_without_config(tmp_path: Path) -> None:
    backend = small_backend()
    backend.enable_truncation(4)
    backend.enable_padding(pad_token="<pad>", pad_id=2, direction="left")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    text = "some small words 北京"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == backend.get_vocab_size()
    assert tokenizer.bos_token is None
    assert tokenizer.convert_tokens_to_ids("no such token") is None
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<pad>", "left")
    assert tokenizer(["a b c", "a"], padding=True).input_ids[1][:2] == [2, 2]
    named = GPTNeoXTokenizerFast.from_pretrained(
        tmp_path, bos_token="<s>", eos_token="</s>", add_bos_token=True
    )
    assert named("a").input_ids == [0, named.convert_tokens_to_ids("a")]
    assert named.decode(named("a small text").input_ids, skip_special_tokens=True) == "a small text"


def test_vocab_and_merges(tmp_path: Path) -> None:
    backend = small_backend()
    vocab, merges = backend.model.save(str(tmp_path))
    tokenizer = GPTNeoXTokenizerFast(vocab, merges, pad_token="<pad>")
    result = tokenizer("a small word", return_offsets_mapping=True)
    assert result.input_ids == backend.encode("a small word").ids
    assert result.offset_mapping == [(0, 1), (2, 7), (8, 11), (11, 12)]
    assert tokenizer.pad_token_id == 2
    again = GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    assert again("a small word").input_ids == tokenizer("a small word").input_ids


def test_files_are_honoured(directory: Path, tmp_path: Path) -> None:
    shutil.copy(directory / "tokenizer.json", tmp_path)
    config = {
        "model_max_length": 7,
        "padding_side": "left",
        "pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": False},
        "eos_token": "<|endoftext|>",
        "add_bos_token": True,
        "add_eos_token": False,
        "extra_special_tokens": {},
        "additional_special_tokens": ["<x>"],
        "chat_template": "kept",
        "name_or_path": "dropped",
        "tokenizer_class": "GPTNeoXTokenizer",
        "added_tokens_decoder": {
            "50277": {"content": "<pad>", "special": True, "normalized": False},
            "50278": {"content": "<x>", "special": True, "normalized": False},
        },
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "older file, ignored"}')
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (7, "left")
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 50277)
    assert tokenizer.extra_special_tokens_ids == [50278]
    assert tokenizer("a").input_ids == [0, 66]
    assert len(tokenizer("a b c d e f g h i", truncation=True).input_ids) == 7
    assert tokenizer(["a", "a b"], padding=True).input_ids[0] == [50277, 0, 66]
    with pytest.warns(UserWarning, match="model's 7"):
        tokenizer("a b c d e f g h i")
    given = GPTNeoXTokenizerFast.from_pretrained(
        tmp_path, padding_side="right", pad_token=None, add_bos_token=False
    )
    assert (given.padding_side, given.pad_token) == ("right", None)
    assert given("a").input_ids == [66]
    tokenizer.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert "chat_template" not in saved
    assert (tmp_path / "again" / "chat_template.jinja").read_text() == "kept"
    assert "name_or_path" not in saved
    again = GPTNeoXTokenizerFast.from_pretrained(tmp_path / "again")
    assert again.chat_template == tokenizer.chat_template == "kept"
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again("a").input_ids == [0, 66]
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("with_model", [False, True])
def test_transformers_reads_what_we_save(
    fresh: GPTNeoXTokenizerFast, tmp_path: Path, with_model: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    fresh.add_tokens(["new one"])
    fresh.add_special_tokens({"pad_token": "<pad>", "extra_special_tokens": ["<x>"]})
    fresh.add_bos_token = True
    fresh.padding_side = "left"
    fresh.model_max_length = 99
    fresh("a b c", truncation=True, max_length=1)  # must not end up in the file
    fresh.save_pretrained(tmp_path)
    if with_model:
        (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "a new one<pad><x>"]:
        options = {"return_offsets_mapping": True}
        assert dict(theirs(text, **options)) == dict(fresh(text, **options))
    assert theirs.padding_side == "left"
    assert theirs.model_max_length == 99
    assert (theirs.pad_token, theirs.pad_token_id) == ("<pad>", fresh.pad_token_id)
    assert theirs.all_special_tokens == fresh.all_special_tokens
    assert len(theirs) == len(fresh)


@pytest.mark.parametrize("class_name", ["GPTNeoXTokenizerFast", "PreTrainedTokenizerFast"])
def test_we_read_what_transformers_saves(directory: Path, tmp_path: Path, class_name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, class_name).from_pretrained(
        directory, pad_token="<pad>", padding_side="left", add_bos_token=True, bos_token="<s>"
    )
    theirs.add_tokens(["new one"])
    theirs("a b c", truncation=True, max_length=2, padding="max_length")  # ends up in their file
    theirs.save_pretrained(tmp_path)
    ours = GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    for text in [*TEXTS, "a new one<pad>"]:
        assert ours(text).input_ids == theirs(text)["input_ids"]
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.padding_side == "left"
    assert ours.add_bos_token
    assert len(ours) == len(theirs)


def test_a_failed_save_leaves_the_old_files(
    fresh: GPTNeoXTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fresh.add_tokens(["new"])
    real_write = Path.write_text

    def full_disk(self: Path, data: str, *args: Any, **kwargs: Any) -> int:
        real_write(self, data[:10], *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        fresh.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(CheckpointError, match="is a file"):
        fresh.save_pretrained(tmp_path / "tokenizer.json")


def test_copies_are_independent(fresh: GPTNeoXTokenizerFast) -> None:
    for twin in (copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        twin.add_tokens(["brand new"])
        assert len(twin) == len(fresh) + 1
        assert twin("brand new").input_ids == [50277]


def test_hub_cache_and_revision(directory: Path, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "step3000").write_text(commit)
    snapshot = repository / "snapshots" / commit
    shutil.copytree(directory, snapshot)
    (snapshot / "chat_template.jinja").write_text("one")
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "tool_use.jinja").write_text("two é")
    options: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(
        "someone/model", revision="step3000", padding_side="left", **options
    )
    assert tokenizer("Hello world").input_ids == [12092, 1533]
    assert (tokenizer.name_or_path, tokenizer.padding_side) == ("someone/model", "left")
    assert tokenizer.chat_template == {"default": "one", "tool_use": "two é"}
    with pytest.raises(CheckpointError, match="not in the local cache"):
        GPTNeoXTokenizerFast.from_pretrained("someone/model", revision="step4000", **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "half a character: \udce2"),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "\x00 not json"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}}}'),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "<a>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"90": {"content": "<a>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"50277": {}}}'),
        ("tokenizer_config.json", '{"pad_token": {"text": "<a>"}}'),
        ("tokenizer_config.json", '{"pad_token": 5}'),
        ("tokenizer_config.json", '{"padding_side": "up"}'),
        ("tokenizer_config.json", '{"model_max_length": "long"}'),
        ("tokenizer_config.json", '{"add_prefix_space": "yes"}'),
        ("added_tokens.json", '{"<a>": 3}'),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str) -> None:
    small_backend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises((CheckpointError, TokenizerError)):
        GPTNeoXTokenizerFast.from_pretrained(tmp_path)


def test_missing_files_and_wrong_arguments(tmp_path: Path, real_file: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"holds: spiece.model.*SentencePiece"):
        GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no directory"):
        GPTNeoXTokenizerFast.from_pretrained(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no file"):
        GPTNeoXTokenizerFast(tokenizer_file=tmp_path / "absent.json")
    with pytest.raises(TokenizerError, match="exactly one"):
        GPTNeoXTokenizerFast()
    with pytest.raises(TokenizerError, match="exactly one"):
        GPTNeoXTokenizerFast(vocab_file="vocab.json")
    with pytest.raises(TokenizerError, match="padding_side"):
        GPTNeoXTokenizerFast.from_pretrained(real_file, paddingside="left")
    with pytest.raises(TokenizerError, match="padding_side"):
        GPTNeoXTokenizerFast(tokenizer_file=real_file, paddingside="left")


def test_a_vocabulary_in_memory(directory: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    pairs = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]
    ]
    lines = ["#version: 0.2", *map(" ".join, pairs)]
    theirs = transformers.GPTNeoXTokenizerFast(vocab=model["vocab"], merges=pairs)
    for merges in (pairs, lines):
        ours = GPTNeoXTokenizerFast(vocab=model["vocab"], merges=merges)
        assert ours(TEXTS).input_ids == theirs(TEXTS)["input_ids"]
        assert ours.special_tokens_map == theirs.special_tokens_map
    vocab_file, merges_file = ours.save_vocabulary(tmp_path)
    again = GPTNeoXTokenizerFast(vocab=vocab_file, merges=merges_file)
    assert again("Hello 北京").input_ids == ours("Hello 北京").input_ids
    small = GPTNeoXTokenizerFast(vocab={"a": 0})
    assert small.get_vocab() == {"a": 0, "<|endoftext|>": 1, "<|padding|>": 2}
    for wrong in (
        {"merges": ["a b c"]},
        {"merges": ["a b"]},
        {"merges": "m.txt"},
        {"vocab_file": "v"},
    ):
        with pytest.raises(TokenizerError):
            GPTNeoXTokenizerFast(vocab={"a": 0}, **wrong)


def test_settings_of_other_tokenizers_do_nothing(real_file: Path) -> None:
    with pytest.warns(UserWarning, match="ignores do_lower_case, legacy"):
        tokenizer = GPTNeoXTokenizerFast.from_pretrained(
            real_file, legacy=False, do_lower_case=True, use_fast=True
        )
    assert tokenizer("Dog").input_ids != tokenizer("dog").input_ids
    with pytest.warns(UserWarning, match="sp_model_kwargs"):
        GPTNeoXTokenizerFast(tokenizer_file=real_file, sp_model_kwargs={})


def test_settings_and_prefixes_of_names_are_kept(real_file: Path, tmp_path: Path) -> None:
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(real_file, padding_side="left")
    assert tokenizer.init_kwargs["padding_side"] == "left"
    assert tokenizer.init_kwargs["pad_token"] == "<|padding|>" and tokenizer.init_inputs == ()
    paths = tokenizer.save_pretrained(save_directory=tmp_path, filename_prefix="x")
    assert {Path(path).name for path in paths} == {
        "x-tokenizer.json",
        "x-tokenizer_config.json",
        "x-special_tokens_map.json",
    }
    with pytest.raises(CheckpointError, match="no directory"):
        tokenizer.save_vocabulary(tmp_path / "absent")


def test_uploads_go_through_the_hub_s_client(
    fresh: GPTNeoXTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[set[str], str, dict[str, Any]]] = []

    def upload(folder: Path, repo_id: str, **options: Any) -> str:
        sent.append(({path.name for path in folder.iterdir()}, repo_id, options))
        return "commit"

    monkeypatch.setattr("neox_lab.tokenizer.fast.upload", upload)
    fresh.chat_template = "x"
    assert fresh.push_to_hub("me/mine", commit_message="Hello", private=True) == "commit"
    fresh.save_pretrained(tmp_path / "name", push_to_hub=False)
    fresh.save_pretrained(tmp_path / "name", push_to_hub=True, token="t", legacy_format=None)
    files = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert [(names, to) for names, to, _ in sent] == [
        (files | {"chat_template.jinja"}, "me/mine"),
        (files | {"chat_template.jinja"}, "name"),
    ]
    assert (sent[0][2]["message"], sent[0][2]["private"]) == ("Hello", True)
    assert (sent[1][2]["message"], sent[1][2]["token"]) == ("Upload tokenizer", "t")
    for call in (fresh.push_to_hub, fresh.save_pretrained):
        with pytest.raises(TokenizerError, match="commit_message"):
            call(str(tmp_path), commit_mesage="x")


def test_no_template_of_an_earlier_save_is_read(tmp_path: Path) -> None:
    saved = GPTNeoXTokenizerFast.from_pretrained(weights_directory())
    for templates in ({"default": "a", "tools": "b", "other": "c"}, {"default": "d", "tools": "e"}):
        saved.chat_template = templates
        saved.save_pretrained(tmp_path)
        assert GPTNeoXTokenizerFast.from_pretrained(tmp_path).chat_template == templates
    saved.chat_template = None
    saved.save_pretrained(tmp_path)
    assert GPTNeoXTokenizerFast.from_pretrained(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("mine")
    saved.save_vocabulary(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == "mine"
