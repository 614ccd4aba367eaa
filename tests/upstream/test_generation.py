"""What upstream's tests say about ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from upstream.library import (
    CAUSAL,
    Library,
    ids,
    refuses,
)

VOCAB = 99
EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}
PROCESSED = {
    "bad_words_ids": [[1, 0]],
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.2,
    "remove_invalid_values": True,
}


@pytest.fixture
def model(library: Library) -> Any:
    """A small model that goes on until the length it is given."""
    return library.model(CAUSAL, eos_token_id=None)


def greedily(model: Any, prompt: Tensor, new: int) -> Tensor:
    """Greedy search by hand, reading everything again at each step."""
    for _ in range(new):
        best = model(prompt, use_cache=False).logits[:, -1].argmax(dim=-1)
        prompt = torch.cat((prompt, best[:, None]), dim=1)
    return prompt


def check_steps(output: Any, prompt: Tensor, rows: int, new: int, cached: bool) -> None:
    """Everything that was asked for is there, for every step, in its shape."""
    pos = prompt.shape[1]
    for scores in (output.scores, output.logits):
        assert isinstance(scores, tuple) and [s.shape for s in scores] == [(rows, VOCAB)] * new
    assert len(output.attentions) == len(output.hidden_states) == new
    for step in range(new):
        keys = pos + step
        queries = 1 if cached and step else keys
        assert [a.shape for a in output.attentions[step]] == [(rows, 4, queries, keys)] * 2
        assert [h.shape for h in output.hidden_states[step]] == [(rows, queries, 64)] * 3
    assert ("past_key_values" in output) is cached


# --- greedy search ----------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_search_takes_the_best_token(model: Any, use_cache: bool) -> None:
    said = model.generate(ids(2, 4), do_sample=False, max_new_tokens=6, use_cache=use_cache)
    assert torch.equal(said, greedily(model, ids(2, 4), 6))


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_search_tells_of_every_step(library: Library, model: Any, use_cache: bool) -> None:
    output = model.generate(ids(2, 4), max_length=7, use_cache=use_cache, **EVERYTHING, **PROCESSED)
    assert isinstance(output, library.GenerateDecoderOnlyOutput)
    check_steps(output, ids(2, 4), 2, 3, use_cache)
    best = torch.stack([scores.argmax(dim=-1) for scores in output.scores], dim=1)
    assert torch.equal(output.sequences[:, 4:], best)


def test_processors_change_what_greedy_search_says(model: Any) -> None:
    plain = model.generate(ids(2, 4), max_new_tokens=8)
    unwanted = [[token] for token in set(plain[:, 4:].flatten().tolist())]
    said = model.generate(ids(2, 4), max_new_tokens=8, bad_words_ids=unwanted)
    assert not set(said[:, 4:].flatten().tolist()) & {word[0] for word in unwanted}


@pytest.mark.parametrize("switch", [True, False])
def test_the_configuration_can_switch_the_cache_off(library: Library, switch: bool) -> None:
    model = library.model(CAUSAL, use_cache=switch, eos_token_id=None)
    said = model.generate(ids(2, 4), max_new_tokens=5)
    assert torch.equal(said, greedily(model, ids(2, 4), 5))


def test_fused_attention_writes_the_same(library: Library, model: Any) -> None:
    opened = model.generate(ids(2, 4), max_new_tokens=6, output_attentions=True)
    if not library.ours:
        model.set_attn_implementation("sdpa")
    assert torch.equal(model.generate(ids(2, 4), max_new_tokens=6), opened)


# --- sampling ---------------------------------------------------------------------------------


def test_sampling_depends_on_the_seed_alone(model: Any) -> None:
    arguments = {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7, **PROCESSED}

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.generate(ids(2, 4), max_new_tokens=8, **arguments)

    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))


@pytest.mark.parametrize("use_cache", [True, False])
def test_sampling_tells_of_every_step(library: Library, model: Any, use_cache: bool) -> None:
    output = model.generate(
        ids(2, 4),
        do_sample=True,
        top_k=5,
        num_return_sequences=2,
        max_new_tokens=3,
        use_cache=use_cache,
        **EVERYTHING,
    )
    assert isinstance(output, library.GenerateDecoderOnlyOutput)
    check_steps(output, ids(2, 4), 4, 3, use_cache)
    for step, scores in enumerate(output.scores):
        assert (~scores.isinf()).sum(dim=1).eq(5).all()
        chosen = scores.gather(1, output.sequences[:, 4 + step, None])
        assert not chosen.isinf().any()


def test_copies_of_a_prompt_stand_side_by_side(model: Any) -> None:
    said = model.generate(ids(2, 4), do_sample=True, num_return_sequences=3, max_new_tokens=4)
    assert torch.equal(said[:, :4], ids(2, 4).repeat_interleave(3, dim=0))
    assert len({tuple(row) for row in said[:3].tolist()}) > 1


# --- beams ------------------------------------------------------------------------------------


def test_enough_beams_find_the_best_text(model: Any) -> None:
    prompt = ids(1, 4)
    after_one = model(prompt).logits[0, -1].log_softmax(dim=-1)
    longer = torch.cat((prompt.expand(VOCAB, 4), torch.arange(VOCAB)[:, None]), dim=1)
    after_two = after_one[:, None] + model(longer).logits[:, -1].log_softmax(dim=-1)
    best = divmod(int(after_two.argmax()), VOCAB)
    said = model.generate(prompt, num_beams=VOCAB, max_new_tokens=2)
    assert tuple(said[0, 4:].tolist()) == best


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("do_sample", [False, True])
def test_beams_tell_of_every_step(
    library: Library, model: Any, use_cache: bool, do_sample: bool
) -> None:
    output = model.generate(
        ids(2, 4),
        num_beams=3,
        num_return_sequences=2,
        do_sample=do_sample,
        max_new_tokens=3,
        use_cache=use_cache,
        length_penalty=2.0,
        **EVERYTHING,
    )
    assert isinstance(output, library.GenerateBeamDecoderOnlyOutput)
    assert output.sequences.shape == (4, 7)
    check_steps(output, ids(2, 4), 6, 3, use_cache)
    scores = output.sequences_scores
    assert scores.shape == (4,) and (scores < 0).all()
    assert (scores.view(2, 2)[:, 0] >= scores.view(2, 2)[:, 1]).all()
    assert output.beam_indices.shape == (4, 3)


def test_more_results_than_one_come_best_first(model: Any) -> None:
    arguments = {"num_beams": 4, "max_new_tokens": 5}
    one = model.generate(ids(2, 4), **arguments)
    three = model.generate(ids(2, 4), num_return_sequences=3, **arguments)
    assert three.shape == (6, 9) and torch.equal(three[::3], one)


def test_beam_sampling_depends_on_the_seed(model: Any) -> None:
    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.generate(ids(2, 4), num_beams=2, do_sample=True, top_k=20, max_new_tokens=6)

    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))


@pytest.mark.parametrize("early", [True, False, "never"])
def test_beams_may_end_early(library: Library, early: bool | str) -> None:
    model = library.model(CAUSAL)
    endings = model.generate(ids(2, 4), max_new_tokens=3, eos_token_id=None)[:, 5].tolist()
    output = model.generate(
        ids(2, 4),
        num_beams=3,
        max_new_tokens=8,
        early_stopping=early,
        eos_token_id=endings,
        pad_token_id=98,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert output.sequences.shape[1] <= 12 and output.sequences_scores.isfinite().all()
    for row in output.sequences[:, 4:].tolist():
        ended = [place for place, token in enumerate(row) if token in endings]
        assert not ended or set(row[ended[0] + 1 :]) <= {98}


def test_the_length_penalty_turns_beams_to_longer_texts(library: Library) -> None:
    model = library.model(CAUSAL)
    likely = int(model.generate(ids(1, 4), max_new_tokens=1, eos_token_id=None)[0, -1])

    def length(penalty: float) -> int:
        said = model.generate(
            ids(1, 4), num_beams=4, max_new_tokens=8, eos_token_id=likely, length_penalty=penalty
        )
        return said.shape[1]

    assert length(-5.0) <= length(0.0) <= length(5.0) and length(-5.0) < length(5.0)


# --- several tokens a step --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["same", "other"])
@pytest.mark.parametrize("schedule", ["constant", "heuristic"])
def test_an_assistant_changes_no_token(
    library: Library, model: Any, kind: str, schedule: str
) -> None:
    other = library.model(CAUSAL, seed=1, eos_token_id=None)
    assistant = model if kind == "same" else other
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = schedule
    for length in (5, 12):
        said = model.generate(ids(1, 4), assistant_model=assistant, max_length=length)
        assert torch.equal(said, greedily(model, ids(1, 4), length - 4))


def test_an_assisted_text_tells_of_every_token(library: Library, model: Any) -> None:
    plain = model.generate(ids(1, 4), max_new_tokens=6, **EVERYTHING)
    output = model.generate(ids(1, 4), assistant_model=model, max_new_tokens=6, **EVERYTHING)
    assert isinstance(output, library.GenerateDecoderOnlyOutput)
    assert torch.equal(output.sequences, plain.sequences)
    check_steps(output, ids(1, 4), 1, 6, True)
    for one, other in zip(output.scores, plain.scores, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_an_assistant_may_help_with_sampling(model: Any) -> None:
    output = model.generate(
        ids(1, 4), assistant_model=model, do_sample=True, max_new_tokens=6, **EVERYTHING
    )
    check_steps(output, ids(1, 4), 1, 6, True)


@pytest.mark.parametrize("new", [1, 7])
def test_the_length_of_an_assisted_text_is_what_was_said(model: Any, new: int) -> None:
    long = model.generate(ids(1, 4), assistant_model=model, max_new_tokens=new)
    assert long.shape == (1, 4 + new)


def test_an_assisted_text_is_not_shorter_than_was_said(library: Library) -> None:
    model = library.model(CAUSAL)
    likely = int(model.generate(ids(1, 4), max_new_tokens=1, eos_token_id=None)[0, -1])
    arguments = {"min_new_tokens": 5, "max_new_tokens": 9, "eos_token_id": likely}
    said = model.generate(ids(1, 4), assistant_model=model, **arguments)
    assert said.shape[1] >= 9 and torch.equal(said, model.generate(ids(1, 4), **arguments))


@pytest.mark.parametrize("count", [1, 3])
def test_looking_into_the_prompt_changes_no_token(model: Any, count: int) -> None:
    prompt = ids(1, 5).repeat(1, 3)
    output = model.generate(prompt, prompt_lookup_num_tokens=count, max_new_tokens=8, **EVERYTHING)
    assert torch.equal(output.sequences, greedily(model, prompt, 8))
    check_steps(output, prompt, 1, 8, True)


def test_looking_into_the_prompt_stops_at_the_end(library: Library) -> None:
    model = library.model(CAUSAL)
    prompt = torch.tensor([[5, 6, 97, 7, 8, 5, 6]])
    said = model.generate(prompt, prompt_lookup_num_tokens=3, max_new_tokens=8)
    plain = model.generate(prompt, max_new_tokens=8)
    assert torch.equal(said, plain)


@pytest.mark.parametrize("more", [{"use_cache": False}, {"num_return_sequences": 2}])
def test_an_assistant_refuses_what_it_cannot_help_with(model: Any, more: dict[str, Any]) -> None:
    with refuses((ValueError, RuntimeError)):
        model.generate(ids(1, 4), assistant_model=model, do_sample=True, max_new_tokens=3, **more)


# --- where a text begins ----------------------------------------------------------------------


def test_without_a_prompt_it_begins_with_the_first_token(library: Library) -> None:
    said = library.model(CAUSAL).generate(do_sample=False, max_length=7, eos_token_id=None)
    assert said.shape == (1, 7) and said[0, 0] == 96


@pytest.mark.parametrize("width", [1, 5])
def test_padding_on_the_left_changes_nothing(library: Library, model: Any, width: int) -> None:
    prompt = ids(2, 6)
    filler = torch.full((2, width), 98)
    wide = torch.cat((filler, prompt), dim=1)
    mask = torch.cat((torch.zeros_like(filler), torch.ones_like(prompt)), dim=1)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    plain = model(prompt).logits[:, -1]
    said = model(wide, attention_mask=mask, position_ids=places).logits[:, -1]
    assert torch.allclose(said, plain, atol=1e-5)
    text = model.generate(wide, attention_mask=mask, max_new_tokens=6)
    assert torch.equal(text[:, width:], model.generate(prompt, max_new_tokens=6))


@pytest.mark.parametrize("beams", [1, 3])
def test_vectors_may_stand_for_the_prompt(model: Any, beams: int) -> None:
    embeds = model.get_input_embeddings()(ids(2, 4)).detach()
    arguments = {"max_new_tokens": 5, "num_beams": beams}
    plain = model.generate(ids(2, 4), **arguments)
    both = model.generate(ids(2, 4), inputs_embeds=embeds, **arguments)
    alone = model.generate(inputs_embeds=embeds, **arguments)
    other = model.generate(inputs_embeds=torch.randn(embeds.shape) * embeds.std(), **arguments)
    assert torch.equal(both, plain) and torch.equal(alone, plain[:, 4:])
    assert not torch.equal(other, alone)


@pytest.mark.parametrize("name", ["max_length", "max_new_tokens"])
def test_lengths_of_vectors_count(model: Any, name: str) -> None:
    embeds = model.get_input_embeddings()(ids(1, 4)).detach()
    said = model.generate(inputs_embeds=embeds, **{name: 9})
    assert said.shape == (1, 5 if name == "max_length" else 9)


def test_the_shortest_length_counts_vectors(library: Library) -> None:
    model = library.model(CAUSAL)
    likely = int(model.generate(ids(1, 4), max_new_tokens=1, eos_token_id=None)[0, -1])
    embeds = model.get_input_embeddings()(ids(1, 4)).detach()
    arguments = {"eos_token_id": likely, "max_length": 12}
    short = model.generate(inputs_embeds=embeds, **arguments)
    long = model.generate(inputs_embeds=embeds, min_length=7, **arguments)
    assert short.shape[1] == 1 and long.shape[1] >= 3


def test_a_text_goes_on_from_its_cache(model: Any) -> None:
    whole = model.generate(ids(1, 4), max_new_tokens=7, return_dict_in_generate=True)
    start = model.generate(ids(1, 4), max_new_tokens=3, return_dict_in_generate=True)
    assert start.past_key_values.get_seq_length() == 6
    after = model.generate(
        start.sequences,
        past_key_values=start.past_key_values,
        max_new_tokens=4,
        return_dict_in_generate=True,
    )
    assert torch.equal(after.sequences, whole.sequences)
    for one, other in zip(after.past_key_values.layers, whole.past_key_values.layers, strict=True):
        assert torch.allclose(one.keys, other.keys, atol=1e-5)
        assert torch.allclose(one.values, other.values, atol=1e-5)


def test_a_padded_text_goes_on_from_its_cache(model: Any) -> None:
    prompt, mask = ids(2, 5), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    arguments = {"return_dict_in_generate": True, "attention_mask": mask}
    whole = model.generate(prompt, max_new_tokens=7, **arguments)
    start = model.generate(prompt, max_new_tokens=3, **arguments)
    arguments["attention_mask"] = torch.cat((mask, torch.ones(2, 3).long()), dim=1)
    after = model.generate(
        start.sequences, past_key_values=start.past_key_values, max_new_tokens=4, **arguments
    )
    assert torch.equal(after.sequences, whole.sequences)


def test_vectors_go_on_from_their_cache(model: Any) -> None:
    embed = model.get_input_embeddings()
    embeds = embed(ids(1, 4)).detach()
    arguments = {"return_dict_in_generate": True}
    whole = model.generate(inputs_embeds=embeds, max_new_tokens=7, **arguments)
    start = model.generate(inputs_embeds=embeds, max_new_tokens=3, **arguments)
    longer = torch.cat((embeds, embed(start.sequences).detach()), dim=1)
    after = model.generate(
        inputs_embeds=longer, past_key_values=start.past_key_values, max_new_tokens=4, **arguments
    )
    assert torch.equal(after.sequences, whole.sequences[:, 3:])


def test_a_cache_may_have_a_fixed_size(model: Any) -> None:
    plain = model.generate(ids(2, 4), max_new_tokens=6)
    fixed = model.generate(ids(2, 4), max_new_tokens=6, cache_implementation="static")
    assert torch.equal(fixed, plain)
    embeds = model.get_input_embeddings()(ids(2, 4)).detach()
    said = model.generate(inputs_embeds=embeds, max_new_tokens=6, cache_implementation="static")
    assert torch.equal(said, plain[:, 4:])


def test_a_fixed_cache_has_room_for_the_longest_text(model: Any) -> None:
    output = model.generate(
        ids(2, 4), max_new_tokens=6, cache_implementation="static", return_dict_in_generate=True
    )
    assert output.past_key_values.layers[0].keys.shape == (2, 4, 9, 16)


def test_a_cache_may_be_asked_to_grow(model: Any) -> None:
    plain = model.generate(ids(2, 4), max_new_tokens=6)
    said = model.generate(ids(2, 4), max_new_tokens=6, cache_implementation="dynamic")
    assert torch.equal(said, plain)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("assisted", [False, True])
def test_logits_of_the_prompt_may_be_kept(model: Any, keep: int, assisted: bool) -> None:
    more = {"assistant_model": model} if assisted else {}
    said = model.generate(ids(1, 4), max_new_tokens=4, logits_to_keep=keep, **more)
    assert torch.equal(said, greedily(model, ids(1, 4), 4))


def test_places_may_be_given(model: Any) -> None:
    places = torch.arange(4)[None].expand(2, 4)
    said = model.generate(ids(2, 4), position_ids=places, max_new_tokens=4)
    assert torch.equal(said, greedily(model, ids(2, 4), 4))


def test_a_model_prepares_its_own_inputs(library: Library, model: Any) -> None:
    made = model.prepare_inputs_for_generation(ids(1, 4), attention_mask=torch.ones(1, 4).long())
    assert torch.equal(made["input_ids"], ids(1, 4))
    assert torch.equal(made["attention_mask"], torch.ones(1, 4).long())


# --- how long it gets -------------------------------------------------------------------------


def test_twenty_new_tokens_come_where_nothing_is_said(model: Any) -> None:
    assert model.generate(ids(1, 4)).shape == (1, 24)


def test_new_tokens_count_before_the_whole_length(model: Any) -> None:
    assert model.generate(ids(1, 4), max_new_tokens=3).shape == (1, 7)
    assert model.generate(ids(1, 4), max_length=7).shape == (1, 7)
    assert model.generate(ids(1, 4), max_length=20, max_new_tokens=3).shape == (1, 7)


def test_one_ending_or_several(library: Library, model: Any) -> None:
    third = int(model.generate(ids(1, 4), max_new_tokens=3)[0, -1])
    one = model.generate(ids(1, 4), max_new_tokens=9, eos_token_id=third)
    several = model.generate(ids(1, 4), max_new_tokens=9, eos_token_id=[third, 97])
    assert torch.equal(one, several) and one.shape[1] <= 7 and one[0, -1] == third


def test_endings_may_be_a_tensor(model: Any) -> None:
    third = model.generate(ids(1, 4), max_new_tokens=3)[0, -1]
    said = model.generate(ids(1, 4), max_new_tokens=9, eos_token_id=third[None])
    assert said[0, -1] == third and said.shape[1] <= 7


def test_rows_that_are_done_are_filled_up(library: Library) -> None:
    model = library.model(CAUSAL, pad_token_id=None)
    first = int(model.generate(ids(2, 4), max_new_tokens=1, eos_token_id=None)[0, -1])
    said = model.generate(ids(2, 4), max_new_tokens=5, eos_token_id=first)
    assert (said[0, 4:] == first).all()  # no padding token: the ending stands in for it
    said = model.generate(ids(2, 4), max_new_tokens=5, eos_token_id=first, pad_token_id=98)
    assert said[0, 4] == first and (said[0, 5:] == 98).all()


def test_endings_of_the_model_count_where_a_call_has_none(library: Library) -> None:
    model = library.model(CAUSAL)
    third = int(model.generate(ids(1, 4), max_new_tokens=3, eos_token_id=None)[0, -1])
    model.generation_config.eos_token_id = third
    settings = library.GenerationConfig(max_new_tokens=9)
    assert model.generate(ids(1, 4), generation_config=settings)[0, -1] == third
    settings = library.GenerationConfig(max_new_tokens=9, eos_token_id=97)
    assert model.generate(ids(1, 4), generation_config=settings).shape == (1, 13)


def test_a_shortest_length_keeps_the_ending_away(library: Library) -> None:
    model = library.model(CAUSAL)
    likely = int(model.generate(ids(1, 4), max_new_tokens=1, eos_token_id=None)[0, -1])
    for arguments in ({"min_new_tokens": 4}, {"min_length": 8}):
        said = model.generate(ids(1, 4), eos_token_id=likely, max_new_tokens=9, **arguments)
        assert said.shape[1] >= 9
        assert likely not in said[0, 4:8].tolist()


def test_the_last_token_can_be_forced(model: Any) -> None:
    said = model.generate(ids(2, 4), max_new_tokens=3, forced_eos_token_id=11)
    assert (said[:, -1] == 11).all() and said.shape == (2, 7)


def test_a_string_ends_a_text(library: Library, tokenizer_folder: Path) -> None:
    tokenizer = library.GPTNeoXTokenizerFast.from_pretrained(tokenizer_folder)
    values = {"eos_token_id": None, "bos_token_id": 0, "pad_token_id": 1}
    model = library.model(CAUSAL, vocab_size=len(tokenizer), **values)
    plain = model.generate(ids(1, 4), max_new_tokens=10)
    string = tokenizer.decode(plain[0, 6:7])
    said = model.generate(ids(1, 4), max_new_tokens=10, stop_strings=string, tokenizer=tokenizer)
    assert 5 <= said.shape[1] <= 7
    with refuses():
        model.generate(ids(1, 4), max_new_tokens=10, stop_strings=string)


# --- settings ---------------------------------------------------------------------------------


def test_a_call_counts_before_settings_and_these_before_the_model(
    library: Library, model: Any
) -> None:
    model.generation_config.max_new_tokens = 2
    settings = library.GenerationConfig(max_new_tokens=3)
    assert model.generate(ids(1, 4)).shape == (1, 6)
    assert model.generate(ids(1, 4), generation_config=settings).shape == (1, 7)
    said = model.generate(ids(1, 4), generation_config=settings, max_new_tokens=5)
    assert said.shape == (1, 9) and settings.max_new_tokens == 3


@pytest.mark.parametrize("name", ["do_samples", "foo"])
def test_a_misspelt_argument_is_a_value_error(model: Any, name: str) -> None:
    with refuses((ValueError, TypeError)):
        model.generate(ids(1, 4), **{name: True})


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 3},
        {"num_beams": 2, "streamer": object()},
        {"max_length": 3},
    ],
    ids=lambda arguments: "+".join(arguments),
)
def test_what_contradicts_itself_is_a_value_error(model: Any, arguments: dict[str, Any]) -> None:
    with refuses():
        model.generate(ids(1, 4), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"num_beams": 4, "force_words_ids": [[5]]},
        {"dola_layers": "low"},
    ],
    ids=lambda arguments: "+".join(arguments),
)
def test_strategies_that_moved_out_are_a_value_error(model: Any, arguments: dict[str, Any]) -> None:
    with refuses():
        model.generate(ids(1, 4), max_new_tokens=2, **arguments)


def test_no_temperature_goes_with_greedy_search(model: Any) -> None:
    said = model.generate(ids(1, 4), max_new_tokens=3, do_sample=False, temperature=0.0)
    assert torch.equal(said, greedily(model, ids(1, 4), 3))


def test_no_temperature_does_not_go_with_sampling(model: Any) -> None:
    with refuses():
        model.generate(ids(1, 4), max_new_tokens=3, do_sample=True, temperature=0.0)


def test_logits_come_as_the_model_said_them(model: Any) -> None:
    plain = model(ids(2, 4)).logits[:, -1]
    output = model.generate(
        ids(2, 4),
        max_new_tokens=2,
        repetition_penalty=3.0,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert torch.allclose(output.logits[0], plain, atol=1e-5)
    assert not torch.allclose(output.scores[0], plain, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_results_are_of_transformers_classes(library: Library, model: Any, beams: int) -> None:
    """Which programs ask of them that are handed a model of either library."""
    output = model.generate(
        ids(2, 4), max_new_tokens=2, num_beams=beams, return_dict_in_generate=True
    )
    named = "GenerateBeamDecoderOnlyOutput" if beams > 1 else "GenerateDecoderOnlyOutput"
    assert isinstance(output, getattr(transformers.generation, named))
    assert isinstance(output, getattr(library, named))
    assert isinstance(output["past_key_values"], transformers.Cache)
    assert type(model)._is_stateful is False
    assert "GenerationMixin" in str(type(model).__bases__)


def test_nothing_more_comes_than_was_asked_for(model: Any) -> None:
    output = model.generate(ids(2, 4), max_new_tokens=2, return_dict_in_generate=True)
    assert len(output) == 2 and "sequences" in output  # 5.24 calls the other one cache
    assert output["past_key_values"].get_seq_length() == 5


@pytest.mark.parametrize("ours", ["logits_processor", "stopping_criteria"])
def test_one_of_the_user_s_takes_the_place_of_the_same_kind(
    library: Library, model: Any, ours: str
) -> None:
    if ours == "stopping_criteria":
        criteria = library.StoppingCriteriaList([library.MaxLengthCriteria(6)])
        said = model.generate(ids(1, 4), max_new_tokens=9, stopping_criteria=criteria)
        assert said.shape == (1, 6)
    else:
        likely = int(model.generate(ids(1, 4), max_new_tokens=1)[0, -1])
        own = library.LogitsProcessorList([library.MinLengthLogitsProcessor(0, [likely])])
        more = {"min_length": 9, "eos_token_id": likely, "logits_processor": own}
        assert model.generate(ids(1, 4), max_new_tokens=9, **more).shape == (1, 5)


def test_a_processor_of_the_user_s_is_asked(library: Library, model: Any) -> None:
    class Always(library.LogitsProcessor):  # type: ignore[name-defined,misc]
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(torch.full((len(scores),), 13), VOCAB).float()

    said = model.generate(ids(2, 4), max_new_tokens=3, logits_processor=[Always()])
    assert (said[:, 4:] == 13).all()


def test_a_function_may_say_what_is_allowed(model: Any) -> None:
    said = model.generate(
        ids(2, 4), max_new_tokens=5, prefix_allowed_tokens_fn=lambda batch, _: [7 + batch]
    )
    assert (said[0, 4:] == 7).all() and (said[1, 4:] == 8).all()


# --- scores of tokens -------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_scores_of_chosen_tokens_can_be_computed(model: Any, normalize: bool) -> None:
    output = model.generate(
        ids(2, 4), max_new_tokens=5, output_scores=True, return_dict_in_generate=True
    )
    said = model.compute_transition_scores(
        output.sequences, output.scores, normalize_logits=normalize
    )
    scores = torch.stack(output.scores, dim=1)
    scores = scores.log_softmax(dim=-1) if normalize else scores
    expected = scores.gather(2, output.sequences[:, 4:, None]).squeeze(2)
    assert said.shape == (2, 5) and torch.allclose(said, expected, atol=1e-5)


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_scores_of_beams_add_up(
    library: Library, ending: bool, do_sample: bool, penalty: float
) -> None:
    model = library.model(CAUSAL)
    third = int(model.generate(ids(1, 4), max_new_tokens=3, eos_token_id=None)[0, -1])
    output = model.generate(
        ids(2, 4),
        num_beams=4,
        num_return_sequences=2,
        do_sample=do_sample,
        max_new_tokens=6,
        eos_token_id=third if ending else None,
        length_penalty=penalty,
        output_scores=True,
        return_dict_in_generate=True,
    )
    said = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    lengths = (output.beam_indices >= 0).sum(dim=1)
    assert torch.allclose(said.sum(dim=1) / lengths**penalty, output.sequences_scores, atol=1e-4)


# --- guidance and marks -----------------------------------------------------------------------


def test_guidance_of_one_changes_nothing(model: Any) -> None:
    plain = model.generate(ids(2, 4), max_new_tokens=4)
    assert torch.equal(model.generate(ids(2, 4), max_new_tokens=4, guidance_scale=1.0), plain)


@pytest.mark.parametrize("use_cache", [True, False])
def test_guidance_moves_away_from_what_is_said_without_the_prompt(
    model: Any, use_cache: bool
) -> None:
    prompt, negative = ids(1, 4), ids(1, 3, seed=5)
    said = model.generate(
        prompt,
        negative_prompt_ids=negative,
        guidance_scale=1.5,
        max_new_tokens=3,
        use_cache=use_cache,
    )
    text, other = prompt, negative
    for _ in range(3):
        with_it = model(text).logits[:, -1].log_softmax(dim=-1)
        without = model(other).logits[:, -1].log_softmax(dim=-1)
        best = (without + 1.5 * (with_it - without)).argmax(dim=-1)
        text = torch.cat((text, best[:, None]), dim=1)
        other = torch.cat((other, best[:, None]), dim=1)
    assert torch.equal(said, text)


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_a_text_can_be_marked(model: Any, scheme: str) -> None:
    mark = {"bias": 25.0, "seeding_scheme": scheme}
    plain = model.generate(ids(3, 4), max_new_tokens=12)
    marked = model.generate(ids(3, 4), max_new_tokens=12, watermarking_config=mark)
    assert not torch.equal(plain, marked)
    again = model.generate(ids(3, 4), max_new_tokens=12, watermarking_config=mark)
    assert torch.equal(marked, again)


def test_a_strategy_may_be_brought_along(model: Any) -> None:
    def last_token_again(model: Any, input_ids: Tensor, **_: Any) -> Tensor:
        return torch.cat((input_ids, input_ids[:, -1:]), dim=1)

    said = model.generate(ids(2, 4), custom_generate=last_token_again)
    assert torch.equal(said, torch.cat((ids(2, 4), ids(2, 4)[:, -1:]), dim=1))


# --- a model stays what it was ----------------------------------------------------------------


def test_generating_leaves_no_gradients_and_no_state(library: Library, model: Any) -> None:
    said = model.generate(ids(2, 4), max_new_tokens=4)
    assert not said.requires_grad and not model.training
    assert torch.equal(model.generate(ids(2, 4), max_new_tokens=4), said)


def test_half_precision_writes_too(library: Library) -> None:
    model = library.model(CAUSAL, std=0.05, eos_token_id=None).to(torch.bfloat16)
    assert model.generate(ids(2, 4), max_new_tokens=4).shape == (2, 8)


def test_a_model_in_training_mode_writes_too(model: Any) -> None:
    plain = model.generate(ids(2, 4), max_new_tokens=4)
    assert torch.equal(model.train().generate(ids(2, 4), max_new_tokens=4), plain)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_model_that_recomputes_in_training_writes_too(model: Any) -> None:
    model.train().gradient_checkpointing_enable()
    assert model.generate(ids(2, 4), max_new_tokens=4).shape == (2, 8)
