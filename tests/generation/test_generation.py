"""The same tokens as transformers: every strategy, over many settings, in float32.

Weights are large, so that distributions have a clear best token but are not certain; sampling
runs at temperatures that spread the choice.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from oracle import pair, sorted_draws, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import GenerationError
from neox_lab.generation import GenerationConfig
from neox_lab.generation.processors import RepetitionPenalty

PAD = 1


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings(), sorted_draws():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return pair(attention="sdpa", max_position_embeddings=256)


def prompts() -> dict[str, dict[str, Tensor]]:
    """One text; a batch; a left-padded batch."""
    ids = tokens(3, 9)
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[0, :4] = PAD
    mask[0, :4] = 0
    padded[2, :1] = PAD
    mask[2, :1] = 0
    return {
        "one": {"input_ids": ids[:1]},
        "batch": {"input_ids": ids},
        "padded": {"input_ids": padded, "attention_mask": mask},
    }


def both(models: tuple[Any, Any], prompt: dict[str, Tensor], **settings: Any) -> tuple[Any, Any]:
    results = []
    for model in models:
        torch.manual_seed(0)
        results.append(model.generate(**{k: v.clone() for k, v in prompt.items()}, **settings))
    return results[0], results[1]


def check(models: tuple[Any, Any], prompt: dict[str, Tensor], **settings: Any) -> Tensor:
    theirs, ours = both(models, prompt, **settings)
    assert ours.tolist() == theirs.tolist()
    return ours


EOS = [3, 17, 40, 77, 120, 150, 180]

PROCESSORS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition": {"repetition_penalty": 1.7},
    "encoder_repetition": {"encoder_repetition_penalty": 1.5},
    "no_repeat": {"no_repeat_ngram_size": 2},
    "no_repeat_1": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat": {"encoder_no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[5], [7, 9], [17], [8, 20, 30]]},
    "bias": {"sequence_bias": {(5,): 9.0, (5, 9): -20.0, (9, 5): -5.0, (6,): 4.0}},
    "min_length": {"min_length": 20, "eos_token_id": EOS},
    "min_new": {"min_new_tokens": 6, "eos_token_id": EOS},
    "eos_list": {"eos_token_id": EOS},
    "forced_eos": {"forced_eos_token_id": 17, "eos_token_id": 17},
    "forced_eos_list": {"forced_eos_token_id": [5, 17]},
    "decay": {"exponential_decay_length_penalty": (3, 1.6), "eos_token_id": EOS},
    "suppress": {"suppress_tokens": list(range(10, 60))},
    "begin_suppress": {"begin_suppress_tokens": list(range(2, 150))},
    "invalid": {"remove_invalid_values": True, "bad_words_ids": [[5], [7]]},
    "normalized": {"renormalize_logits": True, "repetition_penalty": 1.3},
    "guidance": {"guidance_scale": 1.5},
    "watermark": {"watermarking_config": {"bias": 8.0}},
    "selfhash": {
        "watermarking_config": {"bias": 8.0, "seeding_scheme": "selfhash", "context_width": 3}
    },
    "pad_is_eos": {"eos_token_id": EOS, "pad_token_id": EOS[0]},
    "no_cache": {"use_cache": False},
}


def for_theirs(settings: dict[str, Any]) -> dict[str, Any]:
    """Transformers wants an object for the watermark."""
    if "watermarking_config" not in settings:
        return settings
    mark = transformers.WatermarkingConfig(**settings["watermarking_config"])
    return settings | {"watermarking_config": mark}


@pytest.mark.parametrize(
    ("prompt", "sample"), [("one", False), ("padded", False), ("padded", True)]
)
@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(models: tuple[Any, Any], prompt: str, name: str, sample: bool) -> None:
    settings = PROCESSORS[name] | {"do_sample": sample, "max_new_tokens": 16}
    if name == "encoder_repetition" and prompt == "padded":
        prompt = "batch"  # theirs raises padding, too: see test_padding_is_no_part_of_a_text
    if sample:
        settings["temperature"] = 2.5
    check(models, prompts()[prompt], **for_theirs(settings))


SEARCHING: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "encoder_repetition": {"encoder_repetition_penalty": 1.5},
    "no_repeat_1": {"no_repeat_ngram_size": 1},
    "no_repeat_2": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_1": {"encoder_no_repeat_ngram_size": 1},
    "encoder_no_repeat_2": {"encoder_no_repeat_ngram_size": 2},
    "bias": {"sequence_bias": {(PAD, 60, 70): 50.0, (PAD, PAD, 60): 50.0}},
    "bad_words": {"bad_words_ids": [[PAD, PAD, 60, token] for token in range(2, 200)]},
    "selfhash": {
        "watermarking_config": {"bias": 8.0, "seeding_scheme": "selfhash", "context_width": 4}
    },
}


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", SEARCHING)
def test_padding_is_no_part_of_a_text(models: tuple[Any, Any], name: str, beams: int) -> None:
    """Each row of a padded batch gets what it gets alone, also where padding ends texts."""
    theirs, ours = models
    rows = [[60], [PAD, 60], [9, PAD, 5, PAD], [8, 60, 7, 31, 12, 60, 90]]
    batch = torch.tensor([[PAD] * (7 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (7 - len(row)) + [1] * len(row) for row in rows])
    settings = SEARCHING[name] | {"do_sample": False, "max_new_tokens": 6, "num_beams": beams}
    settings |= {"pad_token_id": PAD, "eos_token_id": PAD, "output_scores": True}
    settings |= {"return_dict_in_generate": True}
    together = ours.generate(batch, attention_mask=mask, **settings)
    for number, row in enumerate(rows):
        ids = torch.tensor([row])
        ones = torch.ones_like(ids)
        alone = theirs.generate(ids, attention_mask=ones, **for_theirs(settings)).sequences[0]
        padding = 7 - len(row)
        assert together.sequences[number, padding:].tolist()[: len(alone)] == alone.tolist()


def test_the_penalty_counts_what_follows_padded_vectors(models: tuple[Any, Any]) -> None:
    """Vectors have no ids: all ids are new tokens, however much of the prompt is padding."""
    _, ours = models
    ids = tokens(1, 5)
    embeds = ours.gpt_neox.embed_in(torch.cat((torch.full((1, 4), PAD), ids), dim=1)).detach()
    mask = torch.tensor([[0] * 4 + [1] * 5])
    settings: dict[str, Any] = {"repetition_penalty": 3.0, "max_new_tokens": 8}
    padded = ours.generate(inputs_embeds=embeds, attention_mask=mask, **settings)
    alone = ours.generate(inputs_embeds=embeds[:, 4:], **settings)
    assert padded.tolist() == alone.tolist()


WARPERS: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0},
    "default": {},
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 3.0, "top_k": 0},
    "top_k": {"top_k": 5, "temperature": 2.0},
    "top_k_huge": {"top_k": 1000, "temperature": 2.0},
    "top_p": {"top_p": 0.8, "top_k": 0, "temperature": 2.0},
    "top_p_tiny": {"top_p": 0.01, "top_k": 0},
    "top_h": {"top_h": 0.5, "top_k": 0, "temperature": 2.0},
    "min_p": {"min_p": 0.1, "temperature": 2.5, "top_k": 0},
    "typical": {"typical_p": 0.6, "top_k": 0, "temperature": 2.0},
    "epsilon": {"epsilon_cutoff": 0.02, "top_k": 0, "temperature": 3.0},
    "eta": {"eta_cutoff": 0.02, "top_k": 0, "temperature": 3.0},
    "all": {
        **{"temperature": 2.2, "top_h": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
        **{"typical_p": 0.9, "epsilon_cutoff": 0.001, "eta_cutoff": 0.001},
        **{"repetition_penalty": 1.2, "renormalize_logits": True},
    },
}


@pytest.mark.parametrize("prompt", ["one", "padded"])
@pytest.mark.parametrize("name", WARPERS)
def test_sampling(models: tuple[Any, Any], prompt: str, name: str) -> None:
    check(models, prompts()[prompt], do_sample=True, max_new_tokens=20, **WARPERS[name])


@pytest.mark.parametrize("prompt", ["one", "batch", "padded"])
def test_several_returned_sequences(models: tuple[Any, Any], prompt: str) -> None:
    result = check(
        models,
        prompts()[prompt],
        **{"do_sample": True, "temperature": 2.0, "num_return_sequences": 3},
        **{"max_new_tokens": 15, "eos_token_id": EOS},
    )
    assert len({tuple(row) for row in result.tolist()}) > 1


@pytest.mark.parametrize("prompt", ["one", "padded"])
@pytest.mark.parametrize("beams", [2, 3, 4])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_beams(
    models: tuple[Any, Any],
    prompt: str,
    beams: int,
    early_stopping: bool | str,
    length_penalty: float,
) -> None:
    result = check(
        models,
        prompts()[prompt],
        **{"num_beams": beams, "early_stopping": early_stopping, "length_penalty": length_penalty},
        **{"num_return_sequences": beams - 1, "max_new_tokens": 12, "eos_token_id": EOS},
    )
    assert result.shape[0] == (beams - 1) * prompts()[prompt]["input_ids"].shape[0]


@pytest.mark.parametrize("prompt", ["one", "batch", "padded"])
@pytest.mark.parametrize("name", ["nothing", "repetition", "no_repeat", "bad_words", "no_cache"])
@pytest.mark.parametrize("sample", [False, True])
def test_beams_with_processors(
    models: tuple[Any, Any], prompt: str, name: str, sample: bool
) -> None:
    settings: dict[str, Any] = {"num_beams": 3, "do_sample": sample, "max_new_tokens": 10}
    settings |= {"eos_token_id": EOS, "num_return_sequences": 2, "pad_token_id": 0}
    if sample:
        settings |= {"temperature": 1.5, "top_p": 0.9}
    check(models, prompts()[prompt], **settings | PROCESSORS[name])


def test_beams_without_end_token(models: tuple[Any, Any]) -> None:
    check(models, prompts()["batch"], num_beams=3, max_new_tokens=8, eos_token_id=None)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 4, 10])
def test_prompt_lookup_changes_nothing(models: tuple[Any, Any], size: int, count: int) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 7, 8, 5, 6]])
    settings: dict[str, Any] = {"max_new_tokens": 40, "repetition_penalty": 0.6}
    plain = check(models, {"input_ids": ids}, **settings)
    guessed = check(
        models,
        {"input_ids": ids},
        **settings | {"prompt_lookup_num_tokens": count, "max_matching_ngram_size": size},
    )
    assert guessed.tolist() == plain.tolist()


@pytest.mark.parametrize(
    "head", ["base", "sequence-classification", "token-classification", "text"]
)
def test_what_predicts_no_tokens_is_no_assistant(head: str) -> None:
    other = "a name" if head == "text" else nl.load(head=head)
    with pytest.raises(GenerationError, match="predicts no tokens"):
        nl.load().generate("The people of", max_new_tokens=3, assistant_model=other)


@pytest.mark.parametrize("schedule", ["constant", "heuristic"])
@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_an_assistant_changes_nothing(
    models: tuple[Any, Any], schedule: str, threshold: float
) -> None:
    _, ours = models
    other = pair(num_hidden_layers=1, seed=3)[1]
    for assistant in (ours, other):
        for prompt in (prompts()["one"], {k: v[:1] for k, v in prompts()["padded"].items()}):
            settings: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": EOS}
            plain = ours.generate(**prompt, **settings)
            assisted = ours.generate(
                **prompt,
                **settings,
                assistant_model=assistant,
                num_assistant_tokens=4,
                num_assistant_tokens_schedule=schedule,
                assistant_confidence_threshold=threshold,
            )
            assert assisted.tolist() == plain.tolist()


@pytest.mark.parametrize("sample", [False, True])
def test_continuing_from_a_cache(models: tuple[Any, Any], sample: bool) -> None:
    theirs, ours = models
    ids = tokens(2, 6)
    settings: dict[str, Any] = {"do_sample": sample, "temperature": 2.0, "pad_token_id": PAD}
    settings |= {"return_dict_in_generate": True, "eos_token_id": None}
    torch.manual_seed(0)
    whole = theirs.generate(ids, max_new_tokens=20, **settings).sequences
    torch.manual_seed(0)
    first = ours.generate(ids, max_new_tokens=8, **settings)
    assert first.past_key_values.get_seq_length() == 6 + 8 - 1
    second = ours.generate(
        first.sequences, past_key_values=first.past_key_values, max_new_tokens=12, **settings
    )
    assert second.sequences.tolist() == whole.tolist()
    assert second.past_key_values.get_seq_length() == 6 + 20 - 1


def test_continuing_a_forward_pass_with_padding(models: tuple[Any, Any]) -> None:
    _, ours = models
    prompt = prompts()["padded"]
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    whole = ours.generate(ids, attention_mask=mask, max_new_tokens=10)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        cache = ours(
            ids[:, :5], attention_mask=mask[:, :5], position_ids=positions[:, :5], use_cache=True
        ).past_key_values
    again = ours.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=10)
    assert again.tolist() == whole.tolist()


@pytest.mark.parametrize("prompt", ["one", "batch", "padded"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"do_sample": True, "temperature": 2.0}, {"num_beams": 3}, {"use_cache": False}],
)
def test_vectors_instead_of_tokens(
    models: tuple[Any, Any], prompt: str, settings: dict[str, Any]
) -> None:
    given = prompts()[prompt]
    vectors = models[0].get_input_embeddings()(given["input_ids"]).detach()
    inputs = {"inputs_embeds": vectors}
    if "attention_mask" in given:
        inputs["attention_mask"] = given["attention_mask"]
    alone = check(models, inputs, max_new_tokens=9, **settings)
    assert alone.shape[1] <= 9
    check(models, inputs, max_length=20, min_length=12, **settings)
    check(models, inputs, **settings)
    both_given = check(
        models, inputs | {"input_ids": given["input_ids"]}, max_length=20, **settings
    )
    assert both_given[:, 9:18].tolist() == alone[:, :9].tolist() or settings.get("num_beams")


def test_nothing_at_all(models: tuple[Any, Any]) -> None:
    check(models, {}, max_new_tokens=5)
    check(models, {}, max_new_tokens=5, bos_token_id=9, forced_bos_token_id=33)
    _, ours = models
    ours.generation_config, saved = GenerationConfig(), ours.generation_config
    with pytest.raises(GenerationError, match="bos_token_id"):
        ours.generate()
    ours.generation_config = saved


@pytest.mark.parametrize("prompt", ["one", "batch"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"max_length": 15}, {"max_new_tokens": 3}, {"min_length": 12, "eos_token_id": EOS}],
)
def test_lengths(models: tuple[Any, Any], prompt: str, settings: dict[str, Any]) -> None:
    check(models, prompts()[prompt], **settings)


def test_the_default_length_stops_at_the_last_position() -> None:
    short = pair(max_position_embeddings=16)
    assert check(short, {"input_ids": tokens(1, 9)}).shape[1] == 16


def test_padding_is_inferred_where_it_can_be(models: tuple[Any, Any]) -> None:
    ids = prompts()["padded"]["input_ids"]
    inferred = check(models, {"input_ids": ids}, max_new_tokens=8)
    assert inferred.tolist() == check(models, prompts()["padded"], max_new_tokens=8).tolist()
    # The padding token also ends texts: it says nothing about padding.
    check(models, {"input_ids": ids}, max_new_tokens=8, eos_token_id=[PAD, 4])


def test_users_processors_and_criteria(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    ids = tokens(2, 6)
    calls: list[tuple[int, ...]] = []

    def ban(input_ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(tuple(scores.shape))
        return scores.index_fill(1, torch.arange(20, 80), float("-inf"))

    def stop(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids[:, -1] % 3 == 0

    a = theirs.generate(
        ids, max_new_tokens=12, pad_token_id=PAD,
        logits_processor=transformers.LogitsProcessorList([ban]),
        stopping_criteria=transformers.StoppingCriteriaList([stop]),
    )  # fmt: skip
    b = ours.generate(
        ids, max_new_tokens=12, logits_processor=[ban], stopping_criteria=[stop], pad_token_id=PAD
    )
    assert b.tolist() == a.tolist()
    assert calls


def test_a_users_processor_replaces_its_own_kind(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    ids = tokens(1, 6)
    a = theirs.generate(
        ids, max_new_tokens=12, repetition_penalty=1.1, no_repeat_ngram_size=3,
        logits_processor=transformers.LogitsProcessorList(
            [transformers.RepetitionPenaltyLogitsProcessor(9.0)]
        ),
    )  # fmt: skip
    b = ours.generate(
        ids, max_new_tokens=12, repetition_penalty=1.1, no_repeat_ngram_size=3,
        logits_processor=[RepetitionPenalty(9.0)],
    )  # fmt: skip
    assert b.tolist() == a.tolist()
    assert b.tolist() != ours.generate(ids, max_new_tokens=12, repetition_penalty=1.1).tolist()


@pytest.mark.parametrize("beams", [1, 2])
def test_allowed_tokens(models: tuple[Any, Any], beams: int) -> None:
    def allowed(row: int, text: Tensor) -> list[int]:
        return [10 + row, 20 + int(text[-1]) % 7, 30]

    settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 10}
    result = check(models, prompts()["batch"], prefix_allowed_tokens_fn=allowed, **settings)
    assert set(result[0, 9:].tolist()) <= {10, *range(20, 27), 30}
    check(
        models, prompts()["batch"], prefix_allowed_tokens_fn=allowed, suppress_tokens=[*range(31)]
    )
    rows: list[int] = []
    models[1].generate(
        tokens(2, 4),
        None,
        None,
        None,
        lambda row, text: rows.append(row) or [10],
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=1,
    )
    assert rows == [0, 0, 0, 1, 1, 1]  # numbers of prompts, as in transformers from 5.24 on
    with pytest.raises(GenerationError, match="allows no token"):
        models[1].generate(tokens(1, 4), prefix_allowed_tokens_fn=lambda row, text: [])


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("cache", [True, False])
def test_guidance_with_a_negative_prompt(
    models: tuple[Any, Any], scale: float, cache: bool
) -> None:
    negative = tokens(3, 4, seed=9)
    settings: dict[str, Any] = {"guidance_scale": scale, "max_new_tokens": 8, "use_cache": cache}
    check(models, prompts()["padded"], negative_prompt_ids=negative, **settings)
    mask = torch.ones_like(negative)
    mask[1, 0] = 0
    check(
        models,
        prompts()["padded"],
        negative_prompt_ids=negative,
        negative_prompt_attention_mask=mask,
        **settings,
    )


STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 2.0, "top_k": 20},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 2, "do_sample": True, "temperature": 1.5},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("prompt", ["one", "padded"])
def test_everything_that_is_returned(models: tuple[Any, Any], name: str, prompt: str) -> None:
    if name == "prompt lookup" and prompt != "one":
        pytest.skip("one text only")
    theirs, ours = _attention_to_eager(models)
    a, b = both(
        (theirs, ours),
        prompts()[prompt],
        **{"max_new_tokens": 7, "return_dict_in_generate": True, "output_scores": True},
        **{"output_logits": True, "output_hidden_states": True, "output_attentions": True},
        **{"eos_token_id": EOS, **STRATEGIES[name]},
    )
    assert b.sequences.tolist() == a.sequences.tolist()
    names = {name.replace("cache", "past_key_values") for name in a}  # 5.24's name for it
    assert set(b) <= names and names - set(b) <= {"past_key_values"}
    mask = prompts()[prompt].get("attention_mask")
    for field in ("scores", "logits"):
        assert len(a[field]) == len(b[field])
        for x, y in zip(a[field], b[field], strict=True):
            torch.testing.assert_close(y, x, atol=1e-4, rtol=1e-5)
    if "beam" not in name:  # rows of beams may swap where scores are minus a billion
        for field in ("hidden_states", "attentions"):
            for x, y in zip(a[field], b[field], strict=True):
                _same_layers(x, y, mask)
    for field in ("sequences_scores", "beam_indices"):
        if field in a:
            torch.testing.assert_close(b[field], a[field].to(b[field].dtype))


def _same_layers(theirs: tuple[Tensor, ...], ours: tuple[Tensor, ...], mask: Any) -> None:
    assert len(theirs) == len(ours)
    for x, y in zip(theirs, ours, strict=True):
        assert x.shape == y.shape
        if mask is not None and x.shape[-2] > 1:  # what padding reads does not matter
            rows = mask.bool()[:, : x.shape[-2]]
            axis = x.dim() - 2
            for row in range(x.shape[0]):
                keep = torch.zeros(x.shape[axis], dtype=torch.bool)
                keep[: rows.shape[1]] = rows[row]
                keep[rows.shape[1] :] = True
                torch.testing.assert_close(
                    y[row].transpose(0, -2)[keep], x[row].transpose(0, -2)[keep],
                    atol=1e-4, rtol=1e-4,
                )  # fmt: skip
        else:
            torch.testing.assert_close(y, x, atol=1e-4, rtol=1e-4)


def _attention_to_eager(models: tuple[Any, Any]) -> tuple[Any, Any]:
    models[0].set_attn_implementation("eager")
    return models


@pytest.fixture(autouse=True)
def _fused_again(models: tuple[Any, Any]) -> Iterator[None]:
    yield
    models[0].set_attn_implementation("sdpa")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_transition_scores(models: tuple[Any, Any], beams: int, normalize: bool) -> None:
    settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 8, "eos_token_id": EOS}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.7}
    a, b = both(models, prompts()["batch"], **settings)
    expected = models[0].compute_transition_scores(
        a.sequences, a.scores, a.get("beam_indices"), normalize_logits=normalize
    )
    got = models[1].compute_transition_scores(
        b.sequences, b.scores, b.get("beam_indices"), normalize_logits=normalize
    )
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    if beams > 1 and not normalize:
        length = (b.beam_indices >= 0).sum(dim=1)
        torch.testing.assert_close(got.sum(dim=1) / length**0.7, b.sequences_scores)


def test_the_documentations_example(shared: Any) -> None:
    """The page's own snippet, in float32 and after ``.half()``."""
    tokenizer = nl.GPTNeoXTokenizerFast(
        tokenizer_file=str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    )
    theirs, ours = pair(vocab_size=50304, num_hidden_layers=2, max_position_embeddings=128)
    prompt = (
        "GPTNeoX20B is a 20B-parameter autoregressive Transformer model developed by EleutherAI."
    )
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    texts = []
    for model in (theirs, ours):
        torch.manual_seed(0)
        gen_tokens = model.generate(input_ids, do_sample=True, temperature=0.9, max_length=100)
        texts.append(tokenizer.batch_decode(gen_tokens)[0])
    assert texts[0] == texts[1]
    assert texts[1].startswith(prompt)
    gen_tokens = ours.half().generate(input_ids, do_sample=True, temperature=0.9, max_length=100)
    assert tokenizer.batch_decode(gen_tokens)[0].startswith(prompt)


def test_a_wrong_processor_would_be_noticed(models: tuple[Any, Any]) -> None:
    """These tests can fail: a slightly wrong penalty gives other tokens."""
    theirs, ours = models
    ids = prompts()["batch"]["input_ids"]
    a = theirs.generate(ids, max_new_tokens=16, repetition_penalty=1.7)
    b = ours.generate(ids, max_new_tokens=16, repetition_penalty=1.6)
    assert a.tolist() != b.tolist()
