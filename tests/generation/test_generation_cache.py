"""Looking inside while text is written: hooks, activations, streams, interruptions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import furthest, pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import GenerationError, HookError, HookNameError
from neox_lab.generation import TextIteratorStreamer, only
from neox_lab.model.hook_points import HookPoint

RESID = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Any:
    return pair(eos_token_id=None)[1]


@pytest.fixture(scope="module")
def speaker(shared: Path) -> Any:
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=50304, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, eos_token_id=0,
    )  # fmt: skip
    made = nl.GPTNeoXForCausalLM(config).eval()
    made.tokenizer = nl.GPTNeoXTokenizerFast(
        tokenizer_file=str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    )
    return made


def padded() -> tuple[Tensor, Tensor]:
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    ids[0, :2], mask[0, :2] = 1, 0
    return ids, mask


def test_hooks_know_step_and_position(model: Any) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(tensor: Tensor, hook: HookPoint) -> None:
        assert hook.positions is not None
        seen.append((hook.step, hook.generated, tensor.shape[1], hook.positions.tolist()))

    ids, mask = padded()
    with model.hooks([(RESID, look)]):
        model.generate(ids, attention_mask=mask, max_new_tokens=3)
    assert seen == [
        (0, 0, 6, [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]),
        (1, 1, 1, [[4], [6]]),
        (2, 1, 1, [[5], [7]]),
    ]
    seen.clear()
    with model.hooks([(RESID, look)]):
        model.generate(ids[1:], max_new_tokens=3, use_cache=False)
    assert [entry[:3] for entry in seen] == [(0, 0, 6), (1, 1, 7), (2, 2, 8)]


def test_outside_generation_there_is_no_step(model: Any) -> None:
    seen: list[Any] = []
    with model.hooks([(RESID, lambda tensor, hook: seen.append((hook.step, hook.generated)))]):
        model.generate(tokens(1, 4), max_new_tokens=2)
        model(tokens(1, 4))
        stream = model.stream(tokens(1, 4), max_new_tokens=5)
        next(stream)
        model(tokens(1, 4))
        next(stream)
    assert seen == [(0, 0), (1, 1), (None, 0), (0, 0), (None, 0), (1, 1)]


def test_a_hook_that_reads_changes_nothing(model: Any) -> None:
    plain = model.generate(tokens(2, 6), max_new_tokens=10)
    with model.hooks([("*", lambda tensor, hook: None)], must_fire=False):
        assert model.generate(tokens(2, 6), max_new_tokens=10).tolist() == plain.tolist()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("part", ["prompt", "generated", None])
def test_a_hook_limited_to_a_part(model: Any, cache: bool, part: Any) -> None:
    """With and without a cache the same positions are changed, so the same text comes out."""
    ids = tokens(1, 6)

    def shift(tensor: Tensor, hook: HookPoint) -> Tensor:
        return tensor + 3.0 * torch.arange(tensor.shape[-1])

    with model.hooks([(RESID, only(shift, part=part))]):
        text = model.generate(ids, max_new_tokens=8, use_cache=cache)
    # By hand: read the whole text at once, changing the positions in question.
    start, end = {"prompt": (0, 6), "generated": (6, 13), None: (0, 13)}[part]

    def by_hand(tensor: Tensor, hook: HookPoint) -> Tensor:
        changed = shift(tensor, hook)
        where = (torch.arange(tensor.shape[1]) >= start) & (torch.arange(tensor.shape[1]) < end)
        return torch.where(where[:, None], changed, tensor)

    with torch.no_grad():
        logits = model.run_with_hooks(text[:, :-1], [(RESID, by_hand)]).logits
    assert logits[0, 5:].argmax(dim=-1).tolist() == text[0, 6:].tolist()


def test_a_hook_limited_to_steps(model: Any) -> None:
    seen: list[int | None] = []
    look = only(lambda tensor, hook: seen.append(hook.step), steps=range(2, 4))
    with model.hooks([(RESID, look)]):
        model.generate(tokens(1, 4), max_new_tokens=6)
    assert seen == [2, 3]


def test_edits_in_place_and_positions_of_a_part(model: Any) -> None:
    seen: list[Any] = []

    def edit(tensor: Tensor, hook: HookPoint) -> None:
        seen.append((tuple(tensor.shape[:2]), hook.positions.tolist(), hook.generated))
        tensor.zero_()

    ids = tokens(1, 4)
    with model.hooks([(RESID, only(edit, part="generated"))]):
        text = model.generate(ids, max_new_tokens=3, use_cache=False)
    assert seen == [((1, 1), [[4]], 1), ((1, 2), [[4, 5]], 2)]
    with model.hooks([(RESID, only(lambda t, hook: torch.zeros_like(t), part="generated"))]):
        assert model.generate(ids, max_new_tokens=3).tolist() == text.tolist()


def test_limits_that_make_no_sense(model: Any) -> None:
    with pytest.raises(HookError, match="'prompt', 'generated'"):
        only(lambda tensor, hook: None, part="answer")  # type: ignore[arg-type]
    for change, what in (
        (lambda tensor, hook: tensor[:, :1], "shape"),
        (lambda tensor, hook: tensor.double(), "dtype"),
        (lambda tensor, hook: tensor.long(), "dtype"),
        (lambda tensor, hook: 0.0, "returned float"),
    ):
        hooked = [(RESID, only(change, part="prompt"))]
        with (
            pytest.raises(HookError, match=rf"{what}.*limited to the prompt"),
            model.hooks(hooked),
        ):
            model.generate(tokens(1, 4), max_new_tokens=2)


@pytest.mark.parametrize("sample", [False, True])
def test_activations_of_every_step(model: Any, sample: bool) -> None:
    """Joined, they are what one forward pass over the whole text gives."""
    ids, mask = padded()
    torch.manual_seed(0)
    plain = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=sample)
    torch.manual_seed(0)
    text, cache = model.generate_with_cache(
        ids, attention_mask=mask, max_new_tokens=5, do_sample=sample
    )
    assert text.tolist() == plain.tolist()
    assert len(cache.steps) == 5
    assert set(cache) == set(model.hook_names)
    long_mask = torch.cat((mask, torch.ones(2, 4, dtype=torch.long)), dim=1)
    positions = (long_mask.cumsum(1) - 1).masked_fill(long_mask == 0, 0)
    _, whole = model.run_with_cache(text[:, :-1], attention_mask=long_mask, position_ids=positions)
    for name in cache:
        got, expected = cache[name][1], whole[name][1]  # the row without padding
        if name == "unembed.hook_out" or name == "unembed.hook_in":
            got, expected = got, expected[5:]  # only the last position is unembedded
        assert got.shape == expected.shape, name
        finite = expected.isfinite()
        assert torch.equal(finite, got.isfinite()), name
        assert furthest(got[finite], expected[finite]) < 2e-3, name


def test_names_in_a_generation_cache(model: Any) -> None:
    _, cache = model.generate_with_cache(tokens(1, 4), [RESID, ("pattern", 0)], max_new_tokens=3)
    assert list(cache) == ["blocks.0.attn.hook_pattern", RESID]
    assert cache["resid_post", 1].shape == (1, 6, 64)
    assert cache["gpt_neox.layers.1"].shape == (1, 6, 64)
    assert cache["pattern", 0].shape == (1, 4, 6, 6)
    torch.testing.assert_close(cache["pattern", 0].sum(-1), torch.ones(1, 4, 6))
    assert cache["pattern", 0].triu(1).abs().max() == 0
    assert cache.steps[2][RESID].shape == (1, 1, 64)
    assert torch.equal(cache["pattern", -3], cache["blocks.0.attn.hook_pattern"])
    assert cache._ipython_key_completions_() == list(cache)
    assert "2 activations, 3 steps" in repr(cache)
    with pytest.raises(HookNameError, match="not kept"):
        cache["blocks.2.hook_resid_post"]
    assert "blocks.2.hook_resid_post" not in cache
    assert cache.get("blocks.2.hook_resid_post", 5) == 5
    assert cache.get("nonsense") is None
    with pytest.raises(HookNameError):
        model.generate_with_cache(tokens(1, 4), "blocks.9.hook_z")
    for refused in ({"num_beams": 2}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(GenerationError, match="step by step"):
            model.generate_with_cache(tokens(1, 4), **refused)


def test_a_generation_cache_can_be_drawn(speaker: Any) -> None:
    text, cache = speaker.generate_with_cache(
        ["Hello world", "The king went to the city"], "*.hook_pattern", max_new_tokens=4
    )
    assert len(cache.pieces) == text.shape[1] - 1
    assert cache.pieces[:5] == ["<|padding|>"] * 4 + ["Hello"]
    assert cache.attention_mask.tolist()[0][:5] == [0, 0, 0, 0, 1]
    view = nl.views.attention(cache, batch_index=0)
    assert len(view.frame)


def test_keeping_does_not_disturb_other_hooks(model: Any) -> None:
    """A writer placed before is seen by the cache, and fires once a step."""
    calls: list[int | None] = []

    def halve(tensor: Tensor, hook: HookPoint) -> Tensor:
        calls.append(hook.step)
        return tensor / 2

    with model.hooks([(RESID, halve)]):
        plain = model.generate(tokens(1, 4), max_new_tokens=3)
        calls.clear()
        text, cache = model.generate_with_cache(tokens(1, 4), "*resid*", max_new_tokens=3)
    assert text.tolist() == plain.tolist()
    assert calls == [0, 1, 2]
    torch.testing.assert_close(cache[RESID], cache["blocks.2.hook_resid_pre"])


def test_a_stream_says_what_generate_says(model: Any) -> None:
    ids = tokens(1, 5)
    for arguments in ({}, {"do_sample": True, "temperature": 2.0}, {"prompt_lookup_num_tokens": 3}):
        torch.manual_seed(0)
        out = model.generate(
            ids, max_new_tokens=8, output_logits=True, return_dict_in_generate=True, **arguments
        )
        torch.manual_seed(0)
        steps = list(model.stream(ids, max_new_tokens=8, alternatives=3, **arguments))
        assert all(step.piece == "" for step in steps)
        assert [step.token for step in steps] == out.sequences[0, 5:].tolist()
        assert [step.index for step in steps] == list(range(8))
        assert steps[-1].ids.tolist() == out.sequences.tolist()
        for step, logits in zip(steps, out.logits, strict=True):
            chances = logits[0].softmax(dim=-1)
            assert step.probability == pytest.approx(float(chances[step.token]), abs=1e-6)
            best = chances.topk(3)
            assert [a.token for a in step.alternatives] == best.indices.tolist()
            assert [a.probability for a in step.alternatives] == pytest.approx(
                best.values.tolist(), abs=1e-6
            )
            entropy = float(torch.distributions.Categorical(probs=chances).entropy())
            assert step.entropy == pytest.approx(entropy, abs=1e-4)
            assert step.text == ""  # no tokenizer


def test_a_stream_of_text(speaker: Any) -> None:
    tokenizer = speaker.tokenizer
    emoji = tokenizer("🙂 é 語!").input_ids

    def dictate(input_ids: Tensor, scores: Tensor) -> Tensor:
        place = input_ids.shape[1] - 2
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor(emoji[place]), 0.0)

    count = len(emoji)
    steps = list(speaker.stream("Hello world", logits_processor=[dictate], max_new_tokens=count))
    assert "".join(step.text for step in steps) == "🙂 é 語!"
    assert steps[0].text == ""
    assert all("\ufffd" not in step.text for step in steps)
    cut = list(speaker.stream("Hello world", logits_processor=[dictate], max_new_tokens=1))
    assert cut[0].text == "\ufffd"
    assert [len(a.text) > 0 for a in steps[0].alternatives] == [True] * 5


def test_a_stream_carries_activations(model: Any) -> None:
    steps = list(model.stream(tokens(1, 4), max_new_tokens=3, names_filter="*.hook_resid_post"))
    assert [step.activations[RESID].shape[1] for step in steps] == [4, 1, 1]
    assert next(model.stream(tokens(1, 4))).activations is None


def test_stopping_a_stream_early_leaves_nothing_behind(model: Any) -> None:
    ids = tokens(1, 4)
    before = model.generate(ids, max_new_tokens=6)
    for step in model.stream(ids, max_new_tokens=50, names_filter="*"):
        assert not model.hook_stack.placements  # nor between steps
        assert torch.is_grad_enabled()
        if step.index == 2:
            break
    assert not model.hook_stack.placements
    assert model.generate(ids, max_new_tokens=6).tolist() == before.tolist()
    stream = model.stream(ids, max_new_tokens=50)
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_is_one_text(model: Any) -> None:
    for arguments in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        with pytest.raises(GenerationError, match="one text"):
            next(model.stream(tokens(1, 4), **arguments))
    with pytest.raises(GenerationError, match="'max_new_tokens'"):
        next(model.stream(tokens(1, 4), max_new_token=3))


class Interrupting:
    """A processor that is interrupted, as by the kernel's stop button, at a certain step."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return scores


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_an_interruption_returns_what_there_is(
    model: Any, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ids = tokens(1, 5)
    out = model.generate(
        ids, max_new_tokens=20, logits_processor=[Interrupting(5)],
        return_dict_in_generate=True, **settings,
    )  # fmt: skip
    assert "interrupted" in caplog.text
    assert 5 < out.sequences.shape[1] <= 5 + 4
    assert not model.hook_stack.placements
    if "num_beams" not in settings:
        cache = out.past_key_values
        assert cache.get_seq_length() == out.sequences.shape[1] - 1
        again = model.generate(out.sequences, past_key_values=cache, max_length=25)
        assert again.tolist() == model.generate(ids, max_length=25).tolist()


def test_a_text_written_for_another_is_written_to_its_end_or_not_at_all(model: Any) -> None:
    """A processor that generates would go on with a part of what it asked for."""
    ids, parts = tokens(1, 5), []

    def looks_ahead(input_ids: Tensor, scores: Tensor) -> Tensor:
        inner = [Interrupting(2)] if len(parts) == 3 else []
        parts.append(0)
        parts[-1] = model.generate(input_ids, max_new_tokens=4, logits_processor=inner).shape[1]
        return scores

    out = model.generate(ids, max_new_tokens=20, logits_processor=[looks_ahead])
    assert parts == [9, 10, 11, 0]
    assert out.shape[1] == 5 + 3, "the outer one returns what there is"


def test_an_interruption_in_the_middle_of_the_network(model: Any) -> None:
    """Some layers have stored the step's keys and values, others have not."""
    ids, calls = tokens(1, 5), []

    def interrupt(tensor: Tensor, hook: HookPoint) -> None:
        calls.append(hook.step)
        if hook.step == 3:
            raise KeyboardInterrupt

    with model.hooks([("blocks.1.hook_resid_pre", interrupt)]):
        out = model.generate(ids, max_new_tokens=20, return_dict_in_generate=True)
    assert out.sequences.shape[1] == 5 + 3
    again = model.generate(out.sequences, past_key_values=out.past_key_values, max_length=25)
    assert again.tolist() == model.generate(ids, max_length=25).tolist()


def test_before_the_first_token_an_interruption_returns_the_prompt(model: Any) -> None:
    ids = tokens(2, 5)
    assert model.generate(ids, logits_processor=[Interrupting(1)]).tolist() == ids.tolist()


def test_an_error_ends_the_streamer(speaker: Any) -> None:
    """Whoever iterates over the text in another thread must not wait for ever."""
    streamer = TextIteratorStreamer(speaker.tokenizer, skip_prompt=True, timeout=20)

    def fail(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > 4:
            raise ValueError("on purpose")
        return scores

    caught: list[BaseException] = []

    def run() -> None:
        try:
            speaker.generate("Hello world", streamer=streamer, logits_processor=[fail])
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert caught
    assert text


def test_a_streamer_is_given_the_prompt_and_each_token(model: Any) -> None:
    class Keep:
        def __init__(self) -> None:
            self.given: list[Any] = []

        def put(self, value: Tensor) -> None:
            self.given.append(value.tolist())

        def end(self) -> None:
            self.given.append("end")

    for settings in ({}, {"prompt_lookup_num_tokens": 4}):
        keep, ids = Keep(), tokens(1, 5)
        out = model.generate(ids, max_new_tokens=6, streamer=keep, **settings)
        assert keep.given == [ids.tolist(), *([token] for token in out[0, 5:].tolist()), "end"]


def test_two_threads_generate_with_their_own_hooks(model: Any) -> None:
    ids = tokens(1, 5)
    plain = model.generate(ids, max_new_tokens=12).tolist()
    results: dict[str, Any] = {}

    def hooked() -> None:
        with model.hooks([(RESID, lambda tensor, hook: torch.zeros_like(tensor))]):
            results["hooked"] = model.generate(ids, max_new_tokens=12).tolist()

    thread = threading.Thread(target=hooked)
    thread.start()
    for _ in range(3):
        assert model.generate(ids, max_new_tokens=12).tolist() == plain
    thread.join()
    assert results["hooked"] != plain
