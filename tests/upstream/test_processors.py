"""What upstream's tests say about processors of scores, criteria for stopping, and streamers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from upstream.library import (
    CAUSAL,
    Library,
    ids,
    refuses,
)

VOCAB = 20
NEVER = -math.inf


def even(batch: int = 4, vocab: int = VOCAB) -> Tensor:
    """Scores of tokens that are all alike."""
    return torch.full((batch, vocab), 1 / vocab)


def text(pos: int, batch: int = 4) -> Tensor:
    return torch.randint(1, VOCAB, (batch, pos), generator=torch.Generator().manual_seed(pos))


def steep() -> Tensor:
    """One gentle and one very steep row of ten scores."""
    return torch.linspace(-4, 4, 10)[None] * torch.tensor([[1.0], [50.0]])


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


@contextmanager
def untouched(scores: Tensor) -> Iterator[None]:
    """Nothing is written into what a processor is given."""
    before = scores.clone()
    yield
    assert torch.equal(scores, before)


# --- where a text may end ---------------------------------------------------------------------


@pytest.mark.parametrize("eos", [6, [2, 6]])
def test_no_ending_before_the_shortest_length(library: Library, eos: int | list[int]) -> None:
    ending = [eos] if isinstance(eos, int) else eos
    processor = library.MinLengthLogitsProcessor(8, eos)
    scores = even()
    with untouched(scores):
        early = processor(text(7), scores)
        late = processor(text(8), scores)
    assert early[:, ending].eq(NEVER).all() and early.isinf().sum() == 4 * len(ending)
    assert torch.equal(late, scores)


@pytest.mark.parametrize("eos", [6, [2, 6]])
def test_the_shortest_number_of_new_tokens_starts_after_the_prompt(
    library: Library, eos: int | list[int]
) -> None:
    ending = [eos] if isinstance(eos, int) else eos
    processor = library.MinNewTokensLengthLogitsProcessor(4, 2, eos)
    for pos in range(4, 6):
        assert processor(text(pos), even())[:, ending].eq(NEVER).all()
    for pos in (6, 11):
        assert not processor(text(pos), even()).isinf().any()


def test_the_ending_can_be_forced_at_the_last_place(library: Library) -> None:
    processor = library.ForcedEOSTokenLogitsProcessor(5, 0)
    scores = even()
    with untouched(scores):
        last = processor(text(4), scores)
    assert last[:, 1:].eq(NEVER).all() and last[:, 0].eq(0).all()
    assert torch.equal(processor(text(3), scores), scores)


def test_the_second_token_can_be_forced(library: Library) -> None:
    processor = library.ForcedBOSTokenLogitsProcessor(0)
    scores = even()
    with untouched(scores):
        second = processor(text(1), scores)
    assert second[:, 1:].eq(NEVER).all() and second[:, 0].eq(0).all()
    assert torch.equal(processor(text(4), scores), scores)


@pytest.mark.parametrize("sign", [1, -1])
def test_ending_grows_likelier_exponentially_after_the_start(library: Library, sign: int) -> None:
    processor = library.ExponentialDecayLengthPenalty((4, 1.2), 3, 3)
    scores = sign * even()
    with untouched(scores):
        assert torch.equal(processor(text(7), scores), scores)
        soon, late = processor(text(8), scores), processor(text(12), scores)
    assert (late[:, 3] > soon[:, 3]).all() and (soon[:, 3] > scores[:, 3]).all()
    assert torch.equal(late[:, 4:], scores[:, 4:])


@pytest.mark.parametrize("start", [4, 6])
def test_tokens_can_be_suppressed_at_the_beginning_only(library: Library, start: int) -> None:
    processor = library.SuppressTokensAtBeginLogitsProcessor([2, 5], start)
    changed = processor(text(4), even())
    assert bool(changed[:, [2, 5]].eq(NEVER).all()) is (start == 4)


def test_tokens_can_be_suppressed_everywhere(library: Library) -> None:
    processor = library.SuppressTokensLogitsProcessor([2, 5])
    for pos in (1, 7):
        changed = processor(text(pos), even())
        assert changed.eq(NEVER).sum() == 8 and changed[:, [2, 5]].eq(NEVER).all()


# --- cutting the distribution -----------------------------------------------------------------


def test_temperature_sharpens_and_flattens_and_keeps_what_is_even(library: Library) -> None:
    scores = even(2)
    scores[1, 3], scores[1, 7] = 0.8, -0.6
    before = scores.softmax(dim=-1)
    with untouched(scores):
        sharp = library.TemperatureLogitsWarper(0.4)(None, scores).softmax(dim=-1)
        smooth = library.TemperatureLogitsWarper(1.6)(None, scores).softmax(dim=-1)
    torch.testing.assert_close(before[0], sharp[0])
    torch.testing.assert_close(before[0], smooth[0])
    assert sharp[1].max() > before[1].max() > smooth[1].max()
    assert sharp[1].min() < before[1].min() < smooth[1].min()


def test_top_k_keeps_the_best_and_what_ties_with_them(library: Library) -> None:
    scores = torch.tensor([[1.0, 5.0, 4.0, 3.0, 0.0], [2.0, 2.0, 9.0, 2.0, 1.0]])
    with untouched(scores):
        kept = ~library.TopKLogitsWarper(2)(None, scores).isinf()
    assert kept.tolist() == [
        [False, True, True, False, False],
        [True, True, True, True, False],
    ]


def test_top_k_keeps_at_least_so_many(library: Library) -> None:
    assert library.TopKLogitsWarper(1, min_tokens_to_keep=4)(None, steep()).isinf().sum() == 12
    assert not library.TopKLogitsWarper(50)(None, steep()).isinf().any()


def test_top_p_keeps_the_fewest_that_reach_the_mass(library: Library) -> None:
    scores = torch.cat((log(0.4, 0.05, 0.1, 0.45), log(0.1, 0.35, 0.35, 0.2)))
    with untouched(scores):
        kept = library.TopPLogitsWarper(0.8)(None, scores).exp()
    expected = torch.tensor([[0.4, 0, 0, 0.45], [0, 0.35, 0.35, 0.2]])
    torch.testing.assert_close(kept, expected, atol=1e-3, rtol=0)


def test_min_p_keeps_what_is_likely_beside_the_likeliest(library: Library) -> None:
    rows = (log(0.8, 0.06, 0.07, 0.07), log(0.25, 0.25, 0.25, 0.25), log(0.5, 0.04, 0.4, 0.06))
    scores = torch.cat(rows)
    with untouched(scores):
        kept = ~library.MinPLogitsWarper(0.1)(None, scores).isinf()
    assert kept.tolist() == [[True, False, False, False], [True] * 4, [True, False, True, True]]


def test_typical_sampling_keeps_what_is_as_surprising_as_expected(library: Library) -> None:
    scores = torch.cat((log(0.91, 0.03, 0.03, 0.03), log(0.46, 0.18, 0.18, 0.18)))
    with untouched(scores):
        kept = library.TypicalLogitsWarper(0.5)(None, scores).exp()
    expected = torch.tensor([[0.91, 0, 0, 0], [0, 0.18, 0.18, 0.18]])
    torch.testing.assert_close(kept, expected, atol=1e-3, rtol=0)


def test_typical_sampling_keeps_everything_even(library: Library) -> None:
    scores = even(1, 6)
    assert torch.equal(library.TypicalLogitsWarper(0.95)(None, scores), scores)


def test_epsilon_cuts_what_is_unlikely(library: Library) -> None:
    scores = torch.cat((log(0.6, 0.3, 0.02, 0.08), log(0.4, 0.25, 0.2, 0.15)))
    with untouched(scores):
        kept = library.EpsilonLogitsWarper(0.1)(None, scores).exp()
    expected = torch.tensor([[0.6, 0.3, 0, 0], [0.4, 0.25, 0.2, 0.15]])
    torch.testing.assert_close(kept, expected, atol=1e-3, rtol=0)


def test_eta_spares_what_is_even(library: Library) -> None:
    sharp = log(0.925, 0.03, 0.04, *([0.005 / 17] * 17))
    scores = torch.cat((sharp, even(1)))
    with untouched(scores):
        kept = ~library.EtaLogitsWarper(0.0625)(None, scores).isinf()
    assert kept.sum(dim=1).tolist() == [1, VOCAB]


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("TopPLogitsWarper", 0.01),
        ("MinPLogitsWarper", 0.99),
        ("TypicalLogitsWarper", 0.01),
        ("EpsilonLogitsWarper", 0.9),
        ("EtaLogitsWarper", 0.9),
    ],
)
@pytest.mark.parametrize("least", [1, 3])
def test_cutting_leaves_at_least_so_many(
    library: Library, name: str, cut: float, least: int
) -> None:
    kept = ~library.classes[name](cut, min_tokens_to_keep=least)(None, steep()).isinf()
    assert (kept.sum(dim=1) >= least).all() and kept[1].sum() == least


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.8, 2)])
def test_top_h_keeps_a_share_of_the_entropy(library: Library, share: float, kept: int) -> None:
    scores = log(0.05, 0.5, 0.3, 0.15)
    with untouched(scores):
        cut = library.TopHLogitsWarper(share)(None, scores)
    assert (~cut.isinf()).sum() == kept and not cut[0, 1].isinf()


# --- repetition -------------------------------------------------------------------------------


REPEATED = torch.tensor([[2, 7], [4, 2]])


def test_repeating_costs(library: Library) -> None:
    scores = even(2, 10)
    scores[0, 2] = -0.5
    with untouched(scores):
        changed = library.RepetitionPenaltyLogitsProcessor(4.0)(REPEATED, scores)
    factors = torch.ones(2, 10)
    factors[0, 2], factors[0, 7], factors[1, 4], factors[1, 2] = 4, 0.25, 0.25, 0.25
    torch.testing.assert_close(changed, scores * factors)


def test_what_stands_in_the_prompt_can_be_made_likelier(library: Library) -> None:
    scores = even(2, 10)
    scores[0, 2] = -0.5
    with untouched(scores):
        processor = library.EncoderRepetitionPenaltyLogitsProcessor(4.0, REPEATED)
        changed = processor(REPEATED, scores)
    factors = torch.ones(2, 10)
    factors[0, 2], factors[0, 7], factors[1, 4], factors[1, 2] = 0.25, 4, 4, 4
    torch.testing.assert_close(changed, scores * factors)


def banned(scores: Tensor) -> list[list[int]]:
    """The tokens that each row may never write."""
    return [row.nonzero().flatten().tolist() for row in scores.eq(NEVER)]


def test_no_run_of_tokens_comes_twice(library: Library) -> None:
    before = torch.tensor([[2, 0, 2, 1, 2], [0, 1, 1, 0, 1]])
    scores = even(2, 3)
    with untouched(scores):
        pairs = library.NoRepeatNGramLogitsProcessor(2)(before, scores)
        triples = library.NoRepeatNGramLogitsProcessor(3)(before, scores)
    assert banned(pairs) == [[0, 1], [0, 1]] and banned(triples) == [[], [1]]


@pytest.mark.parametrize("copies", [1, 2])
def test_no_run_of_tokens_of_the_prompt_comes_again(library: Library, copies: int) -> None:
    prompts = torch.tensor([[4, 5, 4, 4], [7, 3, 5, 4]])
    before = torch.tensor([[4, 5], [7, 3]]).repeat_interleave(copies, dim=0)
    scores = even(2 * copies, 9)
    for size in (2, 3):
        processor = library.EncoderNoRepeatNGramLogitsProcessor(size, prompts)
        with untouched(scores):
            assert banned(processor(before, scores)) == [[4]] * copies + [[5]] * copies


# --- words that are wanted or not -------------------------------------------------------------


WRITTEN = torch.tensor([[2, 0, 4, 0], [2, 0, 2, 0]])


def test_bad_words_are_never_completed(library: Library) -> None:
    words = [[0], [5], [0, 3], [2, 0, 1], [0, 4, 0, 4]]
    scores = even(2, 6)
    with untouched(scores):
        changed = library.NoBadWordsLogitsProcessor(words, 5)(WRITTEN, scores)
    assert banned(changed) == [[0, 3, 4], [0, 1, 3]]  # and 5 ends the text: it is left alone


def test_sequences_are_made_likelier_where_they_began(library: Library) -> None:
    bias = {(0,): 7.0, (5,): 3.0, (0, 3): -2.0, (2, 0, 1): -4.0, (0, 4, 0, 4): -6.0}
    scores = torch.zeros(2, 6)
    with untouched(scores):
        changed = library.SequenceBiasLogitsProcessor(bias)(WRITTEN, scores)
    assert changed.tolist() == [[7, 0, 0, -2, -6, 3], [7, -4, 0, -2, 0, 3]]


def test_a_function_can_say_which_tokens_are_allowed(library: Library) -> None:
    def allowed(batch: int, _: Tensor) -> list[int]:
        return [[0, 2], [1, 4]][batch]

    scores = even(2, 5)
    with untouched(scores):
        changed = library.PrefixConstrainedLogitsProcessor(allowed, 1)(WRITTEN, scores)
    assert banned(changed) == [[1, 3, 4], [0, 2, 3]]


def test_a_function_that_allows_nothing_is_a_value_error(library: Library) -> None:
    processor = library.PrefixConstrainedLogitsProcessor(lambda _batch, _ids: [], 1)
    with refuses():
        processor(torch.tensor([[1]]), even(1, 5))


# --- repairs ----------------------------------------------------------------------------------


def test_what_is_no_number_becomes_one(library: Library) -> None:
    scores = torch.tensor([[3.0, math.nan, math.inf, NEVER]])
    changed = library.InfNanRemoveLogitsProcessor()(None, scores)
    limits = torch.finfo(scores.dtype)
    torch.testing.assert_close(changed, torch.tensor([[3.0, 0.0, limits.max, limits.min]]))
    assert scores[0, 1].isnan() and scores[0, 2:].isinf().all()


def test_scores_can_be_made_log_probabilities(library: Library) -> None:
    scores = 20 * torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    with untouched(scores):
        changed = library.LogitNormalization()(None, scores)
    torch.testing.assert_close(changed.exp().sum(dim=-1), torch.ones(3))
    torch.testing.assert_close(changed - changed[:, :1], scores - scores[:, :1])


def test_a_list_runs_one_after_the_other(library: Library) -> None:
    chain = [
        library.RepetitionPenaltyLogitsProcessor(1.5),
        library.NoRepeatNGramLogitsProcessor(3),
        library.MinNewTokensLengthLogitsProcessor(2, 9, 5),
        library.TemperatureLogitsWarper(0.7),
        library.TopKLogitsWarper(8),
        library.MinPLogitsWarper(0.2),
    ]
    scores = torch.rand(4, VOCAB, generator=torch.Generator().manual_seed(1))
    before = text(8)
    step_by_step = scores
    for processor in chain:
        step_by_step = processor(before, step_by_step)
    with untouched(scores):
        at_once = library.LogitsProcessorList(chain)(before, scores)
    torch.testing.assert_close(at_once, step_by_step)


def test_a_list_hands_further_arguments_on(library: Library) -> None:
    class Adds(library.LogitsProcessor):  # type: ignore[name-defined,misc]
        def __call__(self, input_ids: Tensor, scores: Tensor, amount: float = 0.0) -> Tensor:
            return scores + amount

    changed = library.LogitsProcessorList([Adds()])(text(3), torch.zeros(1, 3), amount=2.0)
    assert changed.tolist() == [[2.0] * 3]


# --- a mark in the text -----------------------------------------------------------------------


def test_green_tokens_are_raised_by_the_bias(library: Library) -> None:
    before = torch.tensor([[3, 12, 7], [9, 1, 7]])
    processor = library.WatermarkLogitsProcessor(VOCAB, "cpu", 0.25, 1.5, 15485863, "lefthash", 1)
    scores = torch.zeros(2, VOCAB)
    with untouched(scores):
        changed = processor(before, scores)
    assert sorted(set(changed.flatten().tolist())) == [0.0, 1.5]
    assert changed.eq(1.5).sum(dim=1).tolist() == [5, 5]
    assert torch.equal(changed[0], changed[1])  # both end in the same token


def test_self_hashing_depends_on_the_candidate_too(library: Library) -> None:
    processor = library.WatermarkLogitsProcessor(60, "cpu", 0.25, 1.5, 15485863, "selfhash", 2)
    scores = torch.arange(60).float()[None].repeat(2, 1)
    changed = processor(torch.tensor([[3, 4], [9, 8]]), scores) - scores
    assert set(changed.flatten().tolist()) <= {0.0, 1.5} and (changed > 0).any(dim=1).all()
    assert changed[:, :20].eq(0).all()  # only the likeliest are asked


def test_a_share_that_is_none_is_a_value_error(library: Library) -> None:
    with refuses():
        library.WatermarkLogitsProcessor(VOCAB, "cpu", 1.5, 2.0, 15485863, "lefthash", 1)


# --- when to stop -----------------------------------------------------------------------------


def test_one_criterion_of_a_list_is_enough(library: Library) -> None:
    criteria = library.StoppingCriteriaList(
        [library.MaxLengthCriteria(10), library.MaxTimeCriteria(60.0)]
    )
    assert not criteria(text(5), None).any()
    assert not criteria(text(9), None).any()
    assert criteria(text(10), None).all()


def test_a_length_is_an_end(library: Library) -> None:
    criterion = library.MaxLengthCriteria(10)
    for pos, done in ((5, False), (9, False), (10, True)):
        answer = torch.as_tensor(criterion(text(pos), None))
        assert bool(answer.all()) is done and bool(answer.any()) is done


def test_time_is_an_end(library: Library) -> None:
    soon, later = library.MaxTimeCriteria(0.01), library.MaxTimeCriteria(60.0)
    time.sleep(0.02)
    assert torch.as_tensor(soon(text(3), None)).all()
    assert not torch.as_tensor(later(text(3), None)).any()


def test_an_ending_token_ends_its_own_row(library: Library) -> None:
    before = text(5)
    before[:, -1] = torch.tensor([0, 0, 1, 2])
    assert library.EosTokenCriteria(0)(before, None).tolist() == [True, True, False, False]
    assert library.EosTokenCriteria([0, 2])(before, None).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("written", "done"),
    [
        ("the dog stops", True),
        ("the dog stop", True),
        ("the dog stopped", False),
        ("stop at once", False),
        ("the dog sleeps", False),
    ],
)
def test_a_string_is_an_end_where_the_last_token_completes_it(
    library: Library, tokenizer_folder: Path, written: str, done: bool
) -> None:
    tokenizer = library.GPTNeoXTokenizerFast.from_pretrained(tokenizer_folder)
    row = torch.tensor([tokenizer(written)["input_ids"]])
    strings = ["stop", "stops"] if written.endswith("s") else "stop"
    assert library.StopStringCriteria(tokenizer, strings)(row, None).tolist() == [done]


def test_strings_that_overlap_or_stand_alone_end_rows_apart(
    library: Library, tokenizer_folder: Path
) -> None:
    tokenizer = library.GPTNeoXTokenizerFast.from_pretrained(tokenizer_folder)
    texts = ["over the lazy dog", "over the lazy fox"]
    rows = tokenizer(texts, padding=True, return_tensors="pt", padding_side="left").input_ids
    criterion = library.StopStringCriteria(tokenizer, ["lazy dog", "azy dog", "quick"])
    assert criterion(rows, None).tolist() == [True, False]


def test_a_function_can_be_a_criterion_in_a_call(library: Library) -> None:
    model = library.model(CAUSAL)

    class AtNine(library.StoppingCriteria):  # type: ignore[name-defined,misc]
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 9)

    out = model.generate(
        ids(2, 5),
        max_new_tokens=20,
        eos_token_id=None,
        stopping_criteria=library.StoppingCriteriaList([AtNine()]),
    )
    assert out.shape == (2, 9)


# --- showing text while it is written ---------------------------------------------------------


@pytest.fixture
def writer(library: Library, tokenizer_folder: Path) -> tuple[Any, Any]:
    """A model with a tokenizer that covers all its tokens."""
    tokenizer = library.GPTNeoXTokenizerFast.from_pretrained(tokenizer_folder)
    values = {"eos_token_id": None, "bos_token_id": 0, "pad_token_id": 1}
    return library.model(CAUSAL, vocab_size=len(tokenizer), **values), tokenizer


def test_a_streamer_prints_what_generate_returns(
    library: Library, writer: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = writer
    prompt = tokenizer("The dog", return_tensors="pt").input_ids
    out = model.generate(prompt, max_new_tokens=10)
    model.generate(prompt, max_new_tokens=10, streamer=library.TextStreamer(tokenizer))
    assert capsys.readouterr().out == tokenizer.decode(out[0]) + "\n"


def test_a_streamer_can_leave_out_the_prompt(
    library: Library, writer: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = writer
    prompt = tokenizer("The dog", return_tensors="pt").input_ids
    out = model.generate(prompt, max_new_tokens=10)
    streamer = library.TextStreamer(tokenizer, skip_prompt=True)
    model.generate(prompt, max_new_tokens=10, streamer=streamer)
    assert capsys.readouterr().out == tokenizer.decode(out[0, prompt.shape[1] :]) + "\n"


def test_a_streamer_hands_further_arguments_to_the_decoder(
    library: Library, writer: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = writer
    streamer = library.TextStreamer(tokenizer, skip_special_tokens=True)
    model.generate(torch.ones(1, 5).long() * 0, max_new_tokens=1, streamer=streamer)
    printed = capsys.readouterr().out[:-1]
    assert tokenizer(printed, return_tensors="pt").input_ids.shape[-1] <= 1


def test_an_iterator_hands_the_text_to_another_thread(
    library: Library, writer: tuple[Any, Any]
) -> None:
    model, tokenizer = writer
    prompt = tokenizer("The dog", return_tensors="pt").input_ids
    out = model.generate(prompt, max_new_tokens=10)
    streamer = library.TextIteratorStreamer(tokenizer)
    arguments = {"max_new_tokens": 10, "streamer": streamer}
    thread = Thread(target=model.generate, args=(prompt,), kwargs=arguments)
    thread.start()
    written = "".join(streamer)
    thread.join()
    assert written == tokenizer.decode(out[0])


def test_an_iterator_gives_up_after_its_timeout(library: Library, writer: tuple[Any, Any]) -> None:
    with pytest.raises(Empty):
        next(iter(library.TextIteratorStreamer(writer[1], timeout=0.001)))


def test_an_asynchronous_iterator_hands_the_text_to_a_coroutine(
    library: Library, writer: tuple[Any, Any]
) -> None:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    model, tokenizer = writer
    prompt = tokenizer("The dog", return_tensors="pt").input_ids
    out = model.generate(prompt, max_new_tokens=10)

    async def collect() -> str:
        streamer = library.AsyncTextIteratorStreamer(tokenizer)
        arguments = {"max_new_tokens": 10, "streamer": streamer}
        thread = Thread(target=model.generate, args=(prompt,), kwargs=arguments)
        thread.start()
        pieces = [piece async for piece in streamer]
        thread.join()
        return "".join(pieces)

    # In a thread of its own: whoever ran before may have left a loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(asyncio.run, collect()).result() == tokenizer.decode(out[0])
