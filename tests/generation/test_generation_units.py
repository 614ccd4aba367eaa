"""Single parts of generation: processors on arbitrary scores, text in pieces, memory layout."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import GenerationError
from neox_lab.generation import (
    AsyncTextIteratorStreamer,
    TextIteratorStreamer,
    TextStreamer,
)
from neox_lab.generation import processors as p
from neox_lab.generation import warpers as w
from neox_lab.generation.assisted import Draft, _check_sampled
from neox_lab.generation.stopping import StopStrings
from neox_lab.generation.text import GrowingText, TokenBytes

VOCAB = 23

PAIRS: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (lambda: w.Temperature(0.7), lambda: transformers.TemperatureLogitsWarper(0.7)),
    (lambda: w.TopK(4), lambda: transformers.TopKLogitsWarper(4)),
    (lambda: w.TopK(1, 3), lambda: transformers.TopKLogitsWarper(1, min_tokens_to_keep=3)),
    (lambda: w.TopP(0.7), lambda: transformers.TopPLogitsWarper(0.7)),
    (lambda: w.TopP(0.1, 4), lambda: transformers.TopPLogitsWarper(0.1, min_tokens_to_keep=4)),
    (lambda: w.TopH(0.6), lambda: transformers.TopHLogitsWarper(0.6)),
    (lambda: w.MinP(0.2), lambda: transformers.MinPLogitsWarper(0.2)),
    (lambda: w.MinP(0.9, 3), lambda: transformers.MinPLogitsWarper(0.9, min_tokens_to_keep=3)),
    (lambda: w.Typical(0.5), lambda: transformers.TypicalLogitsWarper(0.5)),
    (lambda: w.Epsilon(0.1), lambda: transformers.EpsilonLogitsWarper(0.1)),
    (lambda: w.Eta(0.1, 2), lambda: transformers.EtaLogitsWarper(0.1, min_tokens_to_keep=2)),
    (
        lambda: p.RepetitionPenalty(1.4),
        lambda: transformers.RepetitionPenaltyLogitsProcessor(1.4),
    ),
    (lambda: p.NoRepeatNGram(2), lambda: transformers.NoRepeatNGramLogitsProcessor(2)),
    (lambda: p.NoRepeatNGram(1), lambda: transformers.NoRepeatNGramLogitsProcessor(1)),
    (
        lambda: p.SequenceBias({(3,): 2.0, (1, 2): -3.0, (0, 1, 2): 5.0}),
        lambda: transformers.SequenceBiasLogitsProcessor({(3,): 2.0, (1, 2): -3.0, (0, 1, 2): 5.0}),
    ),
    (
        lambda: p.NoBadWords([[1], [2], [0, 3]], [2]),
        lambda: transformers.NoBadWordsLogitsProcessor([[1], [2], [0, 3]], 2),
    ),
    (
        lambda: p.ExponentialDecayLengthPenalty(3, 1.5, [1, 4]),
        lambda: transformers.ExponentialDecayLengthPenalty((1, 1.5), [1, 4], 2),
    ),
    (lambda: p.InfNanRemove(), lambda: transformers.InfNanRemoveLogitsProcessor()),
    (lambda: p.LogitNormalization(), lambda: transformers.LogitNormalization()),
]


def both_on(index: int, ids: Tensor, scores: Tensor) -> None:
    ours, theirs = (make() for make in PAIRS[index])
    before = scores.clone()
    got, expected = ours(ids, scores), theirs(ids, scores.clone())
    assert torch.equal(scores, before) or scores.isnan().any()
    assert torch.equal(got.isneginf(), expected.isneginf())
    torch.testing.assert_close(got, expected, equal_nan=True, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("index", range(len(PAIRS)))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_processors_equal_transformers(index: int, data: st.DataObject) -> None:
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    seed, spread = data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from([0.1, 1.0, 8.0]))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 6, (rows, length), generator=generator)
    scores = torch.randn(rows, VOCAB, generator=generator) * spread
    for column in data.draw(st.sets(st.integers(0, VOCAB - 1), max_size=VOCAB - 8)):
        scores[:, column] = float("-inf")  # banned by an earlier processor
    both_on(index, ids, scores)


def test_ties_and_odd_values() -> None:
    ids = torch.tensor([[0, 1, 2]])
    tied = torch.tensor([[2.0, 2.0, 2.0, 1.0, 0.0, 2.0]])
    assert w.TopK(2)(ids, tied).isfinite().sum() == 4  # ties with the last one stay
    odd = torch.tensor([[float("nan"), float("inf"), float("-inf"), 1.0]])
    cleaned = p.InfNanRemove()(ids, odd)
    assert cleaned.tolist() == transformers.InfNanRemoveLogitsProcessor()(ids, odd).tolist()


def test_guesses_are_accepted_so_that_the_distribution_is_right() -> None:
    """Leviathan et al., theorem: the first token is distributed as p, whatever q is."""
    torch.manual_seed(0)
    p_rows = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    q_rows = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    rounds = 20_000
    counts, second = torch.zeros(4), torch.zeros(4)
    for guess in torch.stack([torch.multinomial(q, rounds, True) for q in q_rows], dim=1):
        _, new = _check_sampled(Draft(guess, q_rows), p_rows)
        counts[new[0]] += 1
        if new.shape[0] > 1:
            second[new[1]] += 1
    spread = (p_rows * (1 - p_rows)).sqrt()
    assert ((counts / rounds - p_rows[0]).abs() <= 4 * spread[0] / rounds**0.5).all()
    n = float(second.sum())
    assert ((second / n - p_rows[1]).abs() <= 4 * spread[1] / n**0.5).all()


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Any:
    return nl.GPTNeoXTokenizerFast(
        tokenizer_file=str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    )


TEXTS = [
    "Hello world\nsecond line",
    "naïve café — “quotes”",
    "日本語のテキスト、漢字",
    "🙂👩‍👩‍👧‍👦 emoji 🏳️‍🌈",
    "def f():\n        return    1\n",
    "<|endoftext|>after an end<|padding|>",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \x00 control",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_grows_by_whole_characters(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    growing = GrowingText(tokenizer)
    pieces = [growing.add(token) for token in ids]
    assert "".join(pieces) + growing.end() == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)
    assert b"".join(map(TokenBytes(tokenizer), ids)).decode() == tokenizer.decode(ids)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_give_the_text_decode_gives(tokenizer: Any, data: st.DataObject) -> None:
    """Also tokens that are no text at all, and ids behind the vocabulary."""
    ids = data.draw(st.lists(st.integers(0, 50303), max_size=12))
    growing = GrowingText(tokenizer)
    text = "".join(growing.add(token) for token in ids) + growing.end()
    assert text == tokenizer.decode(ids)


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: Any) -> None:
    ids = tokenizer("🙂").input_ids
    assert len(ids) > 1
    growing = GrowingText(tokenizer)
    assert "".join(growing.add(token) for token in ids[:-1]) == ""
    assert growing.end() == "\ufffd"
    assert growing.add(tokenizer("a").input_ids[0]) == "a"


def feed(streamer: Any, ids: list[int]) -> None:
    streamer.put(torch.tensor([ids[:2]]))
    for token in ids[2:]:
        streamer.put(torch.tensor([token]))
    streamer.end()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip", [False, True])
def test_streamers_say_what_transformers_say(
    tokenizer: Any, text: str, skip: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tokenizer(text).input_ids + tokenizer(" end").input_ids
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    outputs = []
    for kind, own in ((TextStreamer, tokenizer), (transformers.TextStreamer, theirs)):
        feed(kind(own, skip_prompt=skip, skip_special_tokens=True), ids)
        outputs.append(capsys.readouterr().out)
    start = tokenizer.decode(ids[:2], skip_special_tokens=True)
    if not (skip and start.endswith("\ufffd")):  # transformers shows the half of a character
        assert outputs[0] == outputs[1]
    iterator = TextIteratorStreamer(tokenizer, skip_prompt=skip, skip_special_tokens=True)
    feed(iterator, ids)
    assert "".join(iterator) + "\n" == outputs[0]


def test_the_iterator_waits_and_times_out(tokenizer: Any) -> None:
    streamer = TextIteratorStreamer(tokenizer, timeout=0.05)
    with pytest.raises(queue.Empty):
        next(streamer)
    ids = tokenizer("one two three").input_ids
    waiting = TextIteratorStreamer(tokenizer, timeout=20)
    thread = threading.Thread(target=feed, args=(waiting, ids))
    thread.start()
    assert list(waiting) == ["one two", " three"]
    thread.join()


def test_the_asynchronous_iterator(tokenizer: Any) -> None:
    async def collect() -> list[str]:
        streamer = AsyncTextIteratorStreamer(tokenizer, timeout=20)
        thread = threading.Thread(target=feed, args=(streamer, tokenizer("a b c d").input_ids))
        thread.start()
        pieces = [piece async for piece in streamer]
        thread.join()
        return pieces

    # In a thread of its own: browser tests leave a running event loop in the main one.
    with ThreadPoolExecutor(1) as pool:
        assert "".join(pool.submit(asyncio.run, collect()).result()) == "a b c d"


def test_a_streamer_shows_one_text(tokenizer: Any) -> None:
    with pytest.raises(GenerationError, match="batch of 2"):
        TextStreamer(tokenizer).put(torch.ones(2, 3, dtype=torch.long))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_stop_strings_are_found_when_they_are_completed(
    tokenizer: Any, data: st.DataObject
) -> None:
    text = data.draw(st.text(alphabet="ab 語é\n", min_size=1, max_size=12))
    stop = data.draw(st.text(alphabet="ab 語é\n", min_size=1, max_size=4))
    ids = tokenizer(text).input_ids
    bytes_of = TokenBytes(tokenizer)
    criterion = StopStrings([stop], tokenizer)
    for end in range(1, len(ids) + 1):
        before = b"".join(map(bytes_of, ids[: end - 1]))
        now = before + bytes_of(ids[end - 1])
        needle = stop.encode()
        expected = any(
            now[i : i + len(needle)] == needle and i + len(needle) > len(before)
            for i in range(len(now))
        )
        assert bool(criterion(torch.tensor([ids[:end]]), None)[0]) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
def test_one_query_in_half_precision(dtype: torch.dtype, padded: bool) -> None:
    model = pair()[1].to(dtype)
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0 if padded else 1
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits[:, -1]
        past = model(ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True).past_key_values
        step = model(ids[:, -1:], attention_mask=mask, past_key_values=past).logits[:, -1]
    assert step.dtype == dtype
    torch.testing.assert_close(step.float(), whole.float(), rtol=0.05, atol=0.3)


def test_the_frequency_penalty_counts() -> None:
    scores = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 1, 4], [0, 6, 0]])
    found = p.FrequencyPenalty(0.5)(ids, scores)
    counts = torch.stack([torch.bincount(row, minlength=7) for row in ids])
    torch.testing.assert_close(found, scores - 0.5 * counts)
    assert torch.equal(p.FrequencyPenalty(0.5)(ids[:, :0], scores), scores)
