"""Perplexity and likelihoods, against a plain loop and the evaluation harness's rules."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import SIZES, randomize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import neox_lab as nl
from neox_lab.errors import DataError, InputError
from neox_lab.tasks import TrainingSettings, language, likelihood

TEXT = "The people of the United States are the rightful masters of both Congress and the courts."


@cache
def model() -> Any:
    return nl.load()


@torch.no_grad()
def one_by_one(ids: list[int], context: int, stride: int) -> list[float]:
    """-log p of each token but the first, each from a forward pass of its own."""
    losses, start = [], 1
    while start < len(ids):
        end = min(len(ids), start + (context if start == 1 else stride))
        for at in range(start, end):
            begin = max(0, end - context - 1)
            logits = model()(torch.tensor([ids[begin:at]])).logits[0, -1]
            losses.append(-float(logits.log_softmax(dim=-1)[ids[at]]))
        start = end
    return losses


@given(st.integers(2, 40), st.integers(1, 12), st.data())
def test_windows_score_every_token_once(length: int, context: int, data: Any) -> None:
    stride = data.draw(st.integers(1, context))
    ids = list(range(length))
    cuts = list(likelihood.windows(ids, context, stride, None))
    assert [token for cut in cuts for token in cut.target] == ids[1:]
    assert all(cut.context for cut in cuts)
    for number, cut in enumerate(cuts):
        assert len(cut.context) + len(cut.target) <= context + 1
        if number:
            assert len(cut.context) >= min(context - stride, cut.target[0])


@pytest.mark.parametrize(("context", "stride"), [(512, None), (8, 3), (8, 8), (5, 1)])
def test_perplexity_is_that_of_a_plain_loop(context: int, stride: int | None) -> None:
    report = likelihood.perplexity(model(), TEXT, context=context, stride=stride)
    ids = model().tokenizer(TEXT).input_ids
    expected = one_by_one(ids, context, stride or context // 2)
    assert report.frame["loss"].tolist() == pytest.approx(expected, abs=1e-4)
    mean = sum(expected) / len(expected)
    assert report.metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    first = model().tokenizer.pieces(ids[:1])[0]
    size = len(TEXT.encode()) - len(first.encode())
    bits = sum(expected) / math.log(2) / size
    assert report.metrics["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert report.to_png()[:4] == b"\x89PNG"


def test_perplexity_of_several_texts_does_not_depend_on_the_batch() -> None:
    texts = [TEXT, "A king.", "It is the duty of every man to read."]
    alone = likelihood.perplexity(model(), texts, batch_size=1).frame
    together = likelihood.perplexity(model(), texts, batch_size=8).frame
    assert together["loss"].tolist() == pytest.approx(alone["loss"].tolist(), abs=1e-4)


def test_texts_that_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="row 1: 1 tokens"):
        likelihood.perplexity(model(), ["A king.", "a"])
    with pytest.raises(DataError, match="no text"):
        likelihood.perplexity(model(), [])
    with pytest.raises(InputError, match="stride=9, context=8"):
        likelihood.perplexity(model(), TEXT, context=8, stride=9)
    for wrong in ({"context": 2.5}, {"stride": True}, {"batch_size": 0}, {"batch_size": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            likelihood.perplexity(model(), TEXT, **wrong)
    with pytest.raises(DataError, match="There is nothing to score"):
        likelihood.continuations(model(), [("a", "")])


def test_continuations_follow_the_rule_of_the_boundary() -> None:
    """Spaces at the end of the context go to the continuation, both are encoded as one."""
    pairs = [("The people of the", " United States"), ("The people of the ", "United States")]
    frame = likelihood.continuations(model(), pairs)
    assert frame["log_probability"][0] == pytest.approx(frame["log_probability"][1], abs=1e-5)
    ids = model().tokenizer("The people of the United States").input_ids
    cut = len(model().tokenizer("The people of the").input_ids)
    with torch.no_grad():
        scores = model()(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    expected = sum(float(scores[at - 1, ids[at]]) for at in range(cut, len(ids)))
    assert frame["log_probability"][0] == pytest.approx(expected, abs=1e-4)
    assert frame["tokens"][0] == len(ids) - cut
    greedy = all(int(scores[at - 1].argmax()) == ids[at] for at in range(cut, len(ids)))
    assert frame["greedy"][0] == greedy


@cache
def merging() -> Any:
    """A model whose tokenizer joins "hel" and "lo": h e l o he hel lo hello, and bytes of "é"."""
    tokens = ["<|endoftext|>", "h", "e", "l", "o", "he", "hel", "lo", "hello", "Ã", "©", "Ġ"]
    backend = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[("h", "e"), ("l", "o"), ("he", "l"), ("hel", "lo")],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = nl.GPTNeoXTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    sizes = SIZES | {"vocab_size": len(tokens), "max_position_embeddings": 8}
    made = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes)).eval()
    randomize(made)
    made.tokenizer = tokenizer
    return made


@torch.no_grad()
def harness(context: str, continuation: str, prefix: int = 0) -> tuple[list[int], list[int]]:
    """``TemplateLM.loglikelihood`` and ``_encode_pair`` of lm-eval 0.4.13, in our words."""
    encode = merging().tokenizer.encode
    if context == "":
        ids = encode(continuation)
        return ([prefix], ids) if ids[0] != prefix else (ids[:1], ids[1:])
    stripped = context.rstrip()
    moved = context[len(stripped) :] + continuation
    own = encode(stripped)
    return own, encode(stripped + moved)[len(own) :]


@torch.no_grad()
def log_probability(context: list[int], target: list[int]) -> tuple[float, bool]:
    """The sum over the target's tokens, each predicted from a forward pass of its own."""
    total, greedy = 0.0, True
    for at, token in enumerate(target):
        read = (context + target[:at])[-merging().config.max_position_embeddings :]
        scores = merging()(torch.tensor([read])).logits[0, -1].log_softmax(dim=-1)
        total, greedy = total + float(scores[token]), greedy and int(scores.argmax()) == token
    return total, greedy


def test_where_tokens_merge_across_the_boundary_scores_are_the_harness_s() -> None:
    pairs = [
        ("he", "lo"),  # he + lo = hel + ... the context keeps its own token
        ("h", "ello"),
        ("ohel", "loo"),
        ("hello", "hello"),
        ("hello ", "hel"),
        ("", "hello"),
        ("", "<|endoftext|>hello"),
        ("hhhhhhh", "oo"),
    ]
    frame = likelihood.continuations(merging(), pairs)
    for pair, value, greedy, count in zip(
        pairs, frame["log_probability"], frame["greedy"], frame["tokens"], strict=True
    ):
        context, target = harness(*pair)
        if not target:
            target = merging().tokenizer.encode(pair[1])
        wanted, wanted_greedy = log_probability(context, target)
        assert (value, greedy, count) == (
            pytest.approx(wanted, abs=1e-4),
            wanted_greedy,
            len(target),
        )


def test_a_continuation_that_merges_whole_is_scored_by_itself() -> None:
    """The harness stops with an assertion there; the text has a continuation all the same."""
    encode = merging().tokenizer.encode
    assert encode("hello") == [8] and harness("hel", "lo")[1] == []
    (value,) = likelihood.continuations(merging(), [("hel", "lo")])["log_probability"]
    assert value == pytest.approx(log_probability(encode("hel"), encode("lo"))[0], abs=1e-4)


def test_a_continuation_longer_than_the_model_reads_is_refused() -> None:
    likelihood.continuations(merging(), [("h", "o" * 8)])
    with pytest.raises(DataError, match="row 1: 9 tokens"):
        likelihood.continuations(merging(), [("h", "o"), ("h", "o" * 9)])


def test_bits_per_byte_count_the_bytes_behind_the_first_token() -> None:
    """Its first token may end inside a character: "é" is two tokens of one byte each."""
    for text, count in (("éo", 2), ("héo", 3), ("hello é", 3), ("<|endoftext|>é", 2)):
        ids = merging().tokenizer.encode(text)
        metrics = likelihood.perplexity(merging(), text).metrics
        nats = -log_probability(ids[:1], ids[1:])[0]
        assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / count, rel=1e-4)


def test_the_start_of_a_text_follows_the_end_of_another() -> None:
    (value,) = likelihood.continuations(model(), [("", "The")])["log_probability"]
    with torch.no_grad():
        scores = model()(torch.tensor([[0]])).logits[0, -1].log_softmax(dim=-1)
    (first,) = model().tokenizer("The").input_ids
    assert value == pytest.approx(float(scores[first]), abs=1e-5)


def test_choices_and_last_words() -> None:
    options = [[" men", " xylophone"], [" of", " zebra"]]
    pairs = [
        ("All the", " men"),
        ("All the", " xylophone"),
        ("The king", " of"),
        ("The king", " zebra"),
    ]
    scores = likelihood.continuations(model(), pairs)["log_probability"].tolist()
    best = [int(scores[1] > scores[0]), int(scores[3] > scores[2])]
    report = likelihood.choose(model(), ["All the", "The king"], options, [best[0], 1 - best[1]])
    assert report.metrics["accuracy"] == 0.5
    chosen = [best[0] == 0, best[0] == 1, best[1] == 0, best[1] == 1]
    assert report.frame["chosen"].tolist() == chosen
    for right, message in (([0, 2], "row 1: 2 options, of which number 2"), ([0], "and 1 right")):
        with pytest.raises(DataError, match=message):
            likelihood.choose(model(), ["All the", "The king"], options, right)
    with pytest.raises(DataError, match="row 0: 0 options"):
        likelihood.choose(model(), ["All the"], [[]])
    per = likelihood.choose(model(), ["All the"], [options[0]], per="character").frame
    assert per["score"].tolist() == pytest.approx(
        (per["log_probability"] / per["characters"]).tolist()
    )
    with pytest.raises(InputError, match="per='word'"):
        likelihood.choose(model(), ["All the"], [options[0]], per="word")
    words = likelihood.last_word(model(), ["The people of the United States", "He went to zebra"])
    assert 0 <= words.metrics["accuracy"] <= 1
    assert words.frame["continuation"].tolist() == [" States", " zebra"]
    with pytest.raises(DataError, match="row 0: 'word'"):
        likelihood.last_word(model(), ["word"])


def test_a_language_model_learns_a_text() -> None:
    learner = nl.load()
    texts = ["Xanadu is the capital of Quux. " * 4] * 4
    settings = TrainingSettings(steps=15, batch_size=4, learning_rate=3e-3)
    result = language.train(learner, texts, texts[:1], settings, context=32)
    assert result.frame["loss"].iloc[-1] < result.frame["loss"].iloc[0] / 2
    report = language.evaluate(learner, texts[:1], context=32)
    before = language.evaluate(model(), texts[:1], context=32)
    assert report.metrics["loss"] < before.metrics["loss"] / 2
    assert set(result.best) == {"loss", "perplexity"}
    assert "validation perplexity" not in repr(result)  # would dwarf the loss


def test_texts_are_joined_and_cut() -> None:
    examples = language.prepare(model(), ["The king", "A queen"], context=3)
    joined = [token for example in examples for token in example["input_ids"]]
    first, second = model().tokenizer(["The king", "A queen"]).input_ids
    whole = [*first, 0, *second, 0]
    assert joined == whole[: len(joined)]
    assert len(joined) >= len(whole) - 1
    with pytest.raises(InputError, match="context=1"):
        language.prepare(model(), ["a b"], context=1)
    with pytest.raises(InputError, match="expected 'causal-lm'"):
        language.train(nl.load(head="base"), ["a b c"])


@pytest.mark.parametrize("text", ["e\u0301clair is", "a\u0301 b", "\u00e9clair is"])
def test_bits_of_a_text_that_is_normalised_first(text: str) -> None:
    model = nl.load()
    found = likelihood.perplexity(model, [text])
    ids = model.to_tokens(text)[0].tolist()
    behind = sum(len(model.tokenizer.token_bytes(token)) for token in ids[1:])
    nats = float(found.frame["loss"].sum())
    assert found.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / behind, rel=1e-5)
