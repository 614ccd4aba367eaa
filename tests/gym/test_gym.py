"""The built-in model: its files, its revisions and heads, how it is trained and measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import socket
import time
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import neox_lab as nl
from neox_lab.errors import CheckpointError, InputError, TokenizerError
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.gym import corpus, evaluation, head_training, labelled, train
from neox_lab.gym.examples import Pair
from neox_lab.tasks.language import measure

PHASE = train.Phase(
    context=16,
    batch=4,
    steps=3,
    english=0.25,
    repeated=0.25,
    recalled=0.1,
    warm_up=0.2,
    decay="constant",
    weight_decay=0.1,
)
TINY = train.Recipe(
    layers=1,
    heads=2,
    d_model=16,
    d_mlp=32,
    positions=64,
    phases=(PHASE, dataclasses.replace(PHASE, context=32, decay="cosine")),
    snapshots=(0, 2, 4),
)
METRICS = {
    "question-answering": "exact_match",
    "sequence-classification": "accuracy",
    "token-classification": "f1",
}


@pytest.fixture(scope="module")
def tiny_text() -> str:
    names = ("Ann", "Ben", "Cleo", "Dora", "Émile")
    lines = (f"{a} gave {b} {n} apples and a pear.\n" for n, a in enumerate(names) for b in names)
    return "".join(lines) * 4


@pytest.fixture
def quick_tokenizer(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    """Training uses the shipped tokenizer, instead of half a minute to make one."""
    monkeypatch.setattr(train, "make_tokenizer", lambda text, recipe: tokenizer)


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


@pytest.fixture(scope="module")
def tokenizer(model: Any) -> Any:
    return model.tokenizer


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((nl.gym.weights_directory() / "training.json").read_text())


@pytest.fixture(scope="module")
def held_out(shared: Path, record: dict[str, Any]) -> str:
    file = shared / "data/text" / record["text"][0]["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == record["text"][0]["sha256"]
    return corpus.divide(file.read_text(encoding="utf-8"), record["recipe"]["held_out"])[1]


def test_shipped_model_loads_quickly_and_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the built-in model asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    start = time.process_time()
    for head in (*METRICS, "causal-lm", "base"):
        assert nl.load(head=head).head == head
    assert time.process_time() - start < 5
    _, info = nl.GPTNeoXForCausalLM.from_pretrained(
        nl.gym.weights_directory(), output_loading_info=True
    )
    assert not any(info.values())
    pieces = nl.load().to_str_tokens("Mary left the wonderful museum")
    assert pieces[0] == "Mary"
    assert pieces[-2:] == [" wonderful", " museum"]


def test_shipped_files_belong_together(model: Any, tokenizer: Any, record: dict[str, Any]) -> None:
    recipe = train.Recipe()
    assert record["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert model.config.vocab_size == len(tokenizer) == recipe.vocab_size
    assert model.config.num_hidden_layers == recipe.layers
    assert model.config.rotary_pct == recipe.rotary
    assert model.num_parameters() == record["parameters"]
    assert record["curve"][-1]["step"] == recipe.steps == record["steps"]
    kept = [f"step{step}" for step in recipe.snapshots]
    assert list(nl.gym.revisions()) == [*kept, f"step{recipe.steps}"]
    settings = GenerationConfig.from_pretrained(nl.gym.weights_directory())
    assert (settings.bos_token_id, settings.eos_token_id) == (0, 0)


def test_the_package_stays_small() -> None:
    files = [path for path in nl.gym.weights_directory().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 36e6
    assert not [path for path in files if path.suffix not in (".json", ".safetensors")]


def test_special_tokens_are_neox_own(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|padding|>"]) == [0, 1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer(" " * 8).input_ids == [2041]
    assert tokenizer(" " * 2).input_ids == [2047]
    assert tokenizer.decode(tokenizer("A" + " " * 5 + "B").input_ids) == "A" + " " * 5 + "B"


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_ascii_survives_the_shipped_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(nl.gym.weights_directory() / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["naïve façade — “quoted”", "日本語 🤖", "tab\tand\r\nlines"])
def test_any_text_survives_the_shipped_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_shipped_model_does_what_its_card_says(model: Any) -> None:
    frame = nl.gym.evaluate(model, count=60).frame.set_index("task")
    assert (frame["left_out"] == 0).all()
    assert frame["accuracy"].min() >= 0.9
    assert (frame["logit_difference"] > frame["corrupted_logit_difference"] + 1).all()


def test_shipped_model_looks_up_what_came_before(model: Any) -> None:
    first, second = nl.gym.repeat_loss(model)
    assert second < first / 3


def test_untrained_model_knows_nothing_and_training_is_left_as_it_was(model: Any) -> None:
    untrained = nl.load(revision="step0").train()
    found = nl.gym.evaluate(untrained, count=100)
    assert 0.35 < found.accuracy < 0.65
    assert untrained.training
    first, second = nl.gym.repeat_loss(untrained)
    assert second == pytest.approx(first, rel=0.05)


def test_revisions_are_named_as_pythias_and_end_in_the_model(model: Any) -> None:
    names = nl.gym.revisions()
    steps = [int(name.removeprefix("step")) for name in names]
    assert names[0] == "step0"
    assert steps == sorted(set(steps))
    assert {1 < later / sooner < 5 for sooner, later in pairwise(steps[1:])} == {True}
    for name in ("main", names[-1]):
        same = nl.load(revision=name).state_dict()
        assert all(torch.equal(same[key], w) for key, w in model.state_dict().items())
    for name in names[:-1]:
        earlier = nl.load(revision=name)
        assert earlier.tokenizer("Mary").input_ids == model.tokenizer("Mary").input_ids
        assert not torch.equal(earlier.get_output_embeddings().weight, model.embed_out.weight)


def test_induction_appears_over_the_revisions() -> None:
    gains = []
    for name in nl.gym.revisions():
        first, second = nl.gym.repeat_loss(nl.load(revision=name), count=8)
        gains.append(first - second)
    assert gains[0] < 0.3
    assert max(gains) > 4
    assert max(later - sooner for sooner, later in pairwise(gains)) > 1.5


def test_unknown_revision_is_an_error_that_names_the_others() -> None:
    with pytest.raises(CheckpointError, match=r"no revision 'step513'.*step0, .*step512"):
        nl.load(revision="step513")


@pytest.mark.parametrize("head", METRICS)
def test_shipped_heads_work_at_once(head: str) -> None:
    trained = nl.load(head=head)
    assert head_training.measure(trained, 80)[METRICS[head]] >= (
        0.7 if "answering" in head else 0.9
    )
    if head in labelled.LABELS:
        assert list(trained.config.id2label.values()) == labelled.LABELS[head]


def test_a_head_whose_training_was_stopped_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there would be saved and measured as a trained head."""
    kind = type(nl.load(head="sequence-classification"))
    own, steps = kind.training_loss, []

    def leave(model: Any, batch: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return own(model, batch)

    monkeypatch.setattr(kind, "training_loss", leave)
    settings = nl.tasks.TrainingSettings(steps=4, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        head_training.train("sequence-classification", 20, settings)
    assert len(steps) == 2


def test_own_labels_and_revisions_give_a_new_head(model: Any) -> None:
    fresh = nl.load(head="sequence-classification", labels=["a", "b", "c"])
    assert fresh.config.num_labels == 3
    for other in (fresh, nl.load(head="question-answering", revision=nl.gym.revisions()[-1])):
        assert torch.equal(other.gpt_neox.embed_in.weight, model.gpt_neox.embed_in.weight)


def test_tasks_lists_examples_of_all() -> None:
    frame = nl.gym.tasks(examples=2)
    assert list(frame["task"].unique()) == list(nl.gym.TASKS)
    assert len(frame) == 2 * len(nl.gym.TASKS)
    assert frame["source"].str.match(r"arXiv:\d{4}\.\d{5}$").all()


def test_evaluation_shows_itself(model: Any, tmp_path: Path) -> None:
    found = nl.gym.evaluate(model, ["ioi", "facts"], count=10)
    assert "ioi" in repr(found)
    assert "text/html" in found._repr_mimebundle_()
    assert found.to_png(tmp_path / "tasks.png") is not None or (tmp_path / "tasks.png").exists()
    assert list(found.examples["task"].value_counts()) == [10, 10]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = found.nothing


def test_logit_differences_are_those_of_single_prompts(model: Any) -> None:
    pairs = nl.gym.TASKS["tracking"].pairs(12) + nl.gym.TASKS["facts"].pairs(5)
    prompts = [evaluation.as_tokens(model, pair)[0] for pair in pairs]
    assert all(prompts)
    together = evaluation.logit_differences(model, prompts, batch_size=8)
    for row, pair in enumerate(pairs):
        right, wrong = map(model.to_single_token, (pair.correct, pair.wrong))
        for side, text in enumerate((pair.clean, pair.corrupted)):
            logits = model(model.to_tokens(text)).logits[0, -1]
            alone = float(logits[right] - logits[wrong])
            assert float(together[row, side]) == pytest.approx(alone, abs=1e-3)


def test_what_the_tokenizer_cannot_ask_is_left_out_with_a_reason(model: Any) -> None:
    longer = Pair("The king", "The king of it", " is", " was")
    broken = Pair("The king", "The boy", " extraordinarily", " was")
    assert "tokens, corrupted" in evaluation.as_tokens(model, longer)[1]
    assert "is not one token" in evaluation.as_tokens(model, broken)[1]


def test_evaluation_works_with_another_tokenizer(shared: Path) -> None:
    file = shared / "data/gpt-neox-20b-tokenizer.json"
    tokenizer = nl.GPTNeoXTokenizerFast(tokenizer_file=str(file), pad_token="<|padding|>")
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=50_432,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    other = nl.GPTNeoXForCausalLM(config)
    other.tokenizer = tokenizer
    found = nl.gym.evaluate(other, count=40)
    assert ((found.frame["count"] + found.frame["left_out"]) == 40).all()
    counts = found.frame.set_index("task")["count"]
    assert (counts.drop("greater_than") >= 10).all()
    assert counts["greater_than"] == 0  # years are several tokens there
    assert found.frame["left_out"].sum() > 0
    reasons = found.examples[found.examples["left_out"] != ""]["left_out"]
    assert reasons.str.contains("not one token|corrupted").all()
    assert 0.3 < found.accuracy < 0.7


def test_nothing_to_ask_gives_missing_numbers_and_no_picture(model: Any) -> None:
    small = nl.GPTNeoXForCausalLM(train.configuration(TINY, 300))
    small.tokenizer = model.tokenizer
    found = nl.gym.evaluate(small, ["ioi"], count=5)
    assert found.frame.loc[0, "count"] == 0
    assert math.isnan(found.frame.loc[0, "accuracy"])
    with pytest.raises(InputError, match="no example could be asked"):
        found.view()


def test_evaluation_refuses_what_it_cannot_do(model: Any) -> None:
    with pytest.raises(InputError, match=r"task='iou'; expected one of ioi"):
        nl.gym.evaluate(model, ["iou"])
    with pytest.raises(InputError, match="expected 'causal-lm'"):
        nl.gym.evaluate(nl.load(head="question-answering"))
    with pytest.raises(TokenizerError):
        nl.gym.evaluate(nl.GPTNeoXForCausalLM(train.configuration(TINY, 300)))


@pytest.mark.usefixtures("quick_tokenizer")
def test_same_seed_gives_identical_weights_and_snapshots(tiny_text: str, tmp_path: Path) -> None:
    runs = [train.train(tiny_text, TINY, tmp_path / name)[0] for name in ("one", "two")]
    weights, same = (run.state_dict() for run in runs)
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    for step in (0, 2, 4):
        first, second = (
            nl.GPTNeoXForCausalLM.from_pretrained(tmp_path / run / "revisions" / f"step{step}")
            for run in ("one", "two")
        )
        assert torch.equal(first.embed_out.weight, second.embed_out.weight)
        assert not torch.equal(first.embed_out.weight, weights["embed_out.weight"])


@pytest.mark.usefixtures("quick_tokenizer")
def test_a_run_that_was_stopped_goes_on(
    tiny_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train.train(tiny_text, TINY, tmp_path / "whole")
    saved = train.save_half

    def stop(model: Any, directory: Path, dtype: torch.dtype) -> None:
        saved(model, directory, dtype)
        if directory.name == "step4":
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_half", stop)
    _, results = train.train(tiny_text, TINY, tmp_path / "parts")
    assert [(result.steps, result.interrupted) for result in results] == [(3, False), (1, True)]
    monkeypatch.setattr(train, "save_half", saved)
    again, results = train.train(tiny_text, TINY, tmp_path / "parts")
    assert [(result.steps, result.interrupted) for result in results] == [(3, False), (3, False)]
    weights = again.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in whole.state_dict().items())


@pytest.mark.usefixtures("quick_tokenizer")
def test_command_line_writes_a_checkpoint(tmp_path: Path, tiny_text: str) -> None:
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path in texts:
        path.write_text(tiny_text, encoding="utf-8")
    out = tmp_path / "out"
    threads = torch.get_num_threads()
    options = ["--out", str(out), "--seed", "3"]
    train.main(["--text", *map(str, texts), *options], TINY)
    torch.set_num_threads(threads)
    written = {path.name for path in out.iterdir()}
    assert written >= {"config.json", "model.safetensors", "tokenizer.json", "training.json"}
    assert "run" not in written
    assert {path.name for path in (out / "revisions").iterdir()} == {"step0", "step2", "step4"}
    record = json.loads((out / "training.json").read_text())
    assert (record["recipe"]["seed"], record["steps"]) == (3, 6)
    assert [text["file"] for text in record["text"]] == ["one.txt", "two.txt"]
    assert record["curve"][-1]["step"] == 6
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.usefixtures("quick_tokenizer")
def test_too_little_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Give more text"):
        train.train("A line.\nAnother.\n", TINY, tmp_path)


def test_wheel_carries_the_weights(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling to build")
    checkout = Path(__file__).resolve().parents[2]
    (built,) = wheel.WheelBuilder(str(checkout)).build(directory=str(tmp_path))
    names = set(zipfile.ZipFile(built).namelist())
    weights = nl.gym.weights_directory()
    shipped = {
        f"neox_lab/gym/weights/{path.relative_to(weights)}"
        for path in weights.rglob("*")
        if path.is_file()
    }
    assert "neox_lab/gym/weights/model.safetensors" in names
    shipped |= {"neox_lab/gym/README.md", "neox_lab/gym/sealed.json"}
    assert shipped | {"neox_lab/py.typed"} <= names
    assert Path(built).stat().st_size < 40e6


@pytest.mark.slow
def test_card_tasks(model: Any) -> None:
    found = nl.gym.evaluate(model, count=1000).frame
    print(found.to_string())
    assert found["accuracy"].min() >= 0.95
    assert found["accuracy"].mean() >= 0.98


@pytest.mark.slow
def test_card_repeats(model: Any) -> None:
    first, second = nl.gym.repeat_loss(model, count=256)
    print(f"repeated tokens: {first:.3f}, then {second:.3f}")
    assert second < 0.5 < math.log(2048) < first


@pytest.mark.slow
@pytest.mark.parametrize("head", METRICS)
def test_card_heads(head: str) -> None:
    found = head_training.measure(nl.load(head=head))
    print(head, found)
    assert found[METRICS[head]] >= 0.95


@pytest.mark.slow
def test_card_english(model: Any, held_out: str, record: dict[str, Any]) -> None:
    loss = measure(model, [held_out], record["recipe"]["phases"][-1]["context"])["loss"]
    count = len(model.tokenizer(held_out).input_ids)
    print(f"{loss:.3f} nats a token, {loss * count / len(held_out.encode()) / math.log(2):.3f} bpb")
    assert loss < 5
