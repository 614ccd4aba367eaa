from __future__ import annotations

import hashlib
import itertools
import json
import socket
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.generation.settings import GenerationConfig
from neox_lab.gym import corpus, train, weights_directory

TINY = train.Recipe(
    vocab_size=300,
    layers=1,
    heads=2,
    d_model=16,
    d_mlp=32,
    positions=64,
    context=32,
    batch=4,
    steps=6,
    warm_up=2,
    evaluations=2,
)
# What the model card claims, rounded up.
HELD_OUT_BOUND = 4.0


@pytest.fixture(scope="module")
def tiny_text() -> str:
    names = ("Ann", "Ben", "Cleo", "Dora", "Émile")
    lines = (f"{a} gave {b} {n} apples and a pear.\n" for n, a in enumerate(names) for b in names)
    return "".join(lines) * 4


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.GPTNeoXForCausalLM.from_pretrained(weights_directory())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return nl.GPTNeoXTokenizerFast.from_pretrained(weights_directory())


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((weights_directory() / "training.json").read_text())


@pytest.fixture(scope="module")
def held_out(shared: Path, record: dict[str, Any]) -> str:
    file = shared / "data/text" / record["text"][0]["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == record["text"][0]["sha256"]
    return corpus.split(file.read_text(encoding="utf-8"), record["recipe"]["held_out"])[1]


def test_shipped_model_loads_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the built-in model asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model, info = nl.GPTNeoXForCausalLM.from_pretrained(
        weights_directory(), output_loading_info=True
    )
    assert not any(info.values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert nl.load().to_str_tokens("The king") == ["The", " k", "ing"]


def test_shipped_files_belong_together(model: Any, tokenizer: Any, record: dict[str, Any]) -> None:
    recipe = train.Recipe(**record["recipe"])
    assert recipe == train.Recipe()
    assert model.config.vocab_size == len(tokenizer) == recipe.vocab_size
    assert model.config.num_hidden_layers == recipe.layers
    assert model.config.rotary_pct == 0.25
    assert model.config.use_parallel_residual
    assert model.num_parameters() == record["parameters"]
    assert record["curve"][-1]["step"] == recipe.steps
    assert record["curve"][-1]["held_out_loss"] == record["held_out_nats_per_token"]
    settings = GenerationConfig.from_pretrained(weights_directory())
    assert (settings.bos_token_id, settings.eos_token_id) == (0, 0)


def test_shipped_model_predicts_text_it_never_saw(
    model: Any, tokenizer: Any, held_out: str
) -> None:
    tokens = torch.tensor(tokenizer.backend_tokenizer.encode(held_out[:12_000]).ids)
    assert train.held_out_loss(model, tokens, 256) < HELD_OUT_BOUND + 0.2


@pytest.mark.slow
def test_shipped_model_has_the_loss_it_claims(
    model: Any, tokenizer: Any, held_out: str, record: dict[str, Any]
) -> None:
    tokens = torch.tensor(tokenizer.backend_tokenizer.encode(held_out).ids)
    loss = train.held_out_loss(model, tokens, record["recipe"]["context"])
    assert len(tokens) == record["held_out_tokens"]
    assert loss == pytest.approx(record["held_out_nats_per_token"], abs=1e-4)
    assert loss < HELD_OUT_BOUND
    assert train.bits_per_byte(loss, len(tokens), held_out) == pytest.approx(
        record["held_out_bits_per_byte"], abs=1e-4
    )


def test_special_tokens_are_neox_own(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|padding|>"]) == [0, 1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer(" " * 8).input_ids == [2041]
    assert tokenizer(" " * 2).input_ids == [2047]
    assert tokenizer.decode(tokenizer("A" + " " * 5 + "B").input_ids) == "A" + " " * 5 + "B"


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_ascii_survives_the_shipped_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(weights_directory() / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["naïve façade — “quoted”", "日本語 🤖", "tab\tand\r\nlines"])
def test_any_text_survives_the_shipped_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_same_seed_gives_identical_weights(tiny_text: str) -> None:
    first, _, record = train.train(tiny_text, TINY)
    again, _, same = train.train(tiny_text, TINY)
    other, _, _ = train.train(tiny_text, train.Recipe(**{**asdict(TINY), "seed": 1}))
    assert record == same
    weights = first.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in again.state_dict().items())
    assert not torch.equal(weights["embed_out.weight"], other.state_dict()["embed_out.weight"])


def test_training_learns(tiny_text: str) -> None:
    _, _, record = train.train(tiny_text, train.Recipe(**{**asdict(TINY), "steps": 60}))
    assert record["curve"][-1]["held_out_loss"] < record["curve"][0]["held_out_loss"] - 0.5


def test_command_line_writes_a_checkpoint(tmp_path: Path, tiny_text: str) -> None:
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path in texts:
        path.write_text(tiny_text, encoding="utf-8")
    out = tmp_path / "out"
    train.main(["--text", *map(str, texts), "--out", str(out), "--steps", "1", "--seed", "3"])
    assert {path.name for path in out.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    model, info = nl.GPTNeoXForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    tokenizer = nl.GPTNeoXTokenizerFast.from_pretrained(out)
    assert len(tokenizer) == model.config.vocab_size
    record = json.loads((out / "training.json").read_text())
    assert (record["recipe"]["seed"], record["recipe"]["steps"]) == (3, 1)
    assert [text["file"] for text in record["text"]] == ["one.txt", "two.txt"]
    assert str(tmp_path) not in json.dumps(record)


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(InputError, match="Give more text"):
        train.train("A line.\nAnother line.\n", TINY)


@given(st.text(alphabet="ab\n", min_size=40).filter(lambda text: "\n" in text[20:]))
def test_split_keeps_every_character_and_whole_lines(text: str) -> None:
    training, held_out = corpus.split(text, 0.5)
    assert training + held_out == text
    assert training.endswith("\n")


@given(st.integers(2, 200), st.integers(1, 40), st.integers(1, 5))
def test_windows_predict_every_token_but_the_first_once(
    count: int, length: int, batch: int
) -> None:
    predicted = torch.cat(
        [rows[:, 1:].flatten() for rows in corpus.windows(torch.arange(count), length, batch)]
    )
    assert predicted.tolist() == list(range(1, count))


def test_contexts_are_passages_or_cycles() -> None:
    stream = torch.arange(1, 1001)
    generator = torch.Generator().manual_seed(0)

    def draw(repeated: float) -> torch.Tensor:
        return corpus.sample_contexts(stream, 400, 64, repeated=repeated, generator=generator)

    passages, cycles = draw(0.0), draw(1.0)
    assert passages.shape == (400, 64)
    assert (passages[:, 1:].diff() == 1).all()
    assert 20 < (passages[:, 0] == 0).sum() < 90
    for row in cycles.tolist():
        assert any(row[1:-period] == row[1 + period :] for period in range(8, 33))
    mixed = (draw(0.25)[:, 1:].diff() == 1).all(dim=1).float().mean()
    assert 0.65 < mixed < 0.85


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    recipe = train.Recipe(steps=100, warm_up=10, learning_rate=1.0)
    rates = [train.learning_rate(step, recipe) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(before >= after for before, after in itertools.pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_wheel_carries_the_weights(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling to build")
    checkout = Path(__file__).resolve().parents[1]
    (built,) = wheel.WheelBuilder(str(checkout)).build(directory=str(tmp_path))
    names = set(zipfile.ZipFile(built).namelist())
    shipped = {f"neox_lab/gym/weights/{path.name}" for path in weights_directory().iterdir()}
    assert "neox_lab/gym/weights/model.safetensors" in names
    assert shipped | {"neox_lab/py.typed", "neox_lab/gym/README.md"} <= names
