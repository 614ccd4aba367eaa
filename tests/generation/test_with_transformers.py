"""What users have from transformers goes into our models, and ours into transformers'.

Caches, settings and assistants of either library, in the other; each against the same call with
what belongs to the library, or with the other model throughout.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from oracle import pair, sorted_draws, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import GenerationError, InputError
from neox_lab.model.key_value_cache import KeyValueCache

SIDES = ["theirs", "ours"]
IDS = tokens(2, 9)
NAMES = ["past_key_values", "cache"]


@pytest.fixture(autouse=True)
def _quiet(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with sorted_draws(), torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return dict(zip(SIDES, pair(attention="sdpa", max_position_embeddings=256), strict=True))


def knows(model: Any, name: str) -> bool:
    """Whether ``forward`` has an argument of that name: transformers' older one has no cache."""
    newest = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)
    return name != "cache" or newest or isinstance(model, nl.GPTNeoXForCausalLM)


# --- caches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("reader", "writer"), [*itertools.product(SIDES, SIDES)])
def test_forward_goes_on_from_either_cache(
    models: dict[str, Any], reader: str, writer: str, name: str
) -> None:
    if not knows(models[writer], name):
        pytest.skip("this version of transformers has no cache=")
    whole = models["theirs"](IDS).logits
    cache = models[reader](IDS[:, :5], use_cache=True).past_key_values
    step = models[writer](IDS[:, 5:8], **{name: cache})
    assert torch.allclose(step.logits, whole[:, 5:8], atol=1e-5)
    assert step.past_key_values is cache and cache.get_seq_length() == 8
    again = models[writer](IDS[:, 8:], **{name: cache})
    assert torch.allclose(again.logits, whole[:, 8:], atol=1e-5)
    keys = [tuple(layer.keys.shape) for layer in cache.layers]
    assert keys == [(2, 4, 9, 16)] * 3


@pytest.mark.parametrize("kind", ["GPTNeoXModel", "GPTNeoXForTokenClassification"])
def test_every_class_takes_the_cache(kind: str) -> None:
    theirs, ours = pair(kind, attention="sdpa")
    cache = transformers.DynamicCache()
    ours(IDS[:, :5], cache=cache)
    got = ours(IDS[:, 5:], cache=cache)[0]
    assert torch.allclose(got, theirs(IDS)[0][:, 5:], atol=1e-5)


def test_an_output_has_its_cache_by_both_names(models: dict[str, Any]) -> None:
    output = models["ours"](IDS, use_cache=True)
    kept = output.past_key_values
    assert isinstance(kept, KeyValueCache)
    assert output.cache is output["cache"] is output["past_key_values"] is kept
    assert "cache" in output and output.get("cache") is kept
    written = models["ours"].generate(IDS, max_new_tokens=2, return_dict_in_generate=True)
    assert written.cache is written["cache"] is written.past_key_values
    without = models["ours"](IDS, use_cache=False)
    assert without.cache is None and "cache" not in without
    assert not hasattr(nl.GPTNeoXForQuestionAnswering(models["ours"].config)(IDS), "cache")


def test_of_two_caches_the_new_name_counts(models: dict[str, Any]) -> None:
    ours = models["ours"]
    caches = [ours(IDS[:, :length], use_cache=True).cache for length in (5, 2)]
    step = ours(IDS[:, 5:], cache=caches[0], past_key_values=caches[1])
    assert torch.allclose(step.logits, ours(IDS).logits[:, 5:], atol=1e-5)


def test_a_run_with_hooks_knows_the_cache_by_its_new_name(models: dict[str, Any]) -> None:
    ours = models["ours"]
    past = ours(IDS[:, :5], use_cache=True).cache
    _, kept = ours.run_with_cache(IDS[:, 5:], "blocks.1.attn.hook_pattern", cache=past)
    assert kept["blocks.1.attn.hook_pattern"].shape == (2, 4, 4, 9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
@pytest.mark.parametrize("filled", [0, 5])
def test_generate_goes_on_from_a_dynamic_cache(
    models: dict[str, Any], filled: int, settings: dict[str, Any], name: str
) -> None:
    texts = []
    for model in models.values():
        cache = transformers.DynamicCache()
        if filled:
            model(IDS[:, :filled], past_key_values=cache)
        torch.manual_seed(0)
        given = {name if knows(model, name) else "past_key_values": cache}
        if settings.get("num_beams") and filled and model is models["theirs"]:
            given = {}  # theirs does not repeat the rows of a cache for its beams
        texts.append(model.generate(IDS, max_new_tokens=8, pad_token_id=1, **given, **settings))
    assert texts[1].tolist() == texts[0].tolist()


def test_transformers_generates_on_from_our_cache(models: dict[str, Any]) -> None:
    plain = models["ours"].generate(IDS, max_new_tokens=6, pad_token_id=1)
    for cache in (KeyValueCache(3), models["ours"](IDS[:, :5], use_cache=True).cache):
        said = models["theirs"].generate(
            IDS, past_key_values=cache, max_new_tokens=6, pad_token_id=1
        )
        assert said.tolist() == plain.tolist()


def test_a_cache_with_a_fixed_room_is_refused(models: dict[str, Any]) -> None:
    ours = models["ours"]
    fixed = transformers.StaticCache(config=models["theirs"].config, max_cache_len=20)
    with pytest.raises(InputError, match=r"StaticCache.*DynamicCache"):
        ours(IDS, past_key_values=fixed)
    with pytest.raises(GenerationError, match=r"StaticCache.*DynamicCache"):
        ours.generate(IDS, cache=fixed)
    other = transformers.DynamicCache(config=transformers.GPTNeoXConfig(num_hidden_layers=2))
    with pytest.raises(InputError, match="2 layers"):
        ours(IDS, cache=other)


# --- settings ---------------------------------------------------------------------------------


def test_settings_of_transformers_are_taken(models: dict[str, Any]) -> None:
    settings = transformers.GenerationConfig(
        max_new_tokens=7, do_sample=True, temperature=2.0, top_k=30, pad_token_id=1
    )
    texts = []
    for model in models.values():
        torch.manual_seed(0)
        texts.append(model.generate(IDS, generation_config=settings))
    assert texts[1].tolist() == texts[0].tolist() and texts[0].shape == (2, 16)


def test_settings_of_transformers_can_be_a_model_s(models: dict[str, Any]) -> None:
    ours = pair()[1]
    ours.generation_config = transformers.GenerationConfig(max_new_tokens=3, num_beams=2)
    assert ours.generation_config.num_beams == 2
    assert ours.generate(IDS).shape == (2, 12)
    with pytest.raises(GenerationError, match="int"):
        ours.generation_config = 3


@pytest.mark.parametrize(
    "more",
    [
        {"labels": IDS},
        {"trust_remote_code": False, "assistant_tokenizer": None, "synced_gpus": False},
        {"attention_mask": torch.ones(1, 9).long()},
        {"attention_mask": torch.ones(2, 11).long()},
        {"cache_implementation": "hybrid"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_a_call_may_hold_beside(models: dict[str, Any], more: dict[str, Any]) -> None:
    call = {"inputs": IDS, "max_new_tokens": 6, "pad_token_id": 1, **more}
    texts = [model.generate(**call).tolist() for model in models.values()]
    assert texts[1] == texts[0]


# --- where the tokens stand -------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_places_count_on_from_those_given(
    models: dict[str, Any], padded: bool, settings: dict[str, Any]
) -> None:
    mask = torch.ones_like(IDS)
    mask[0, : 3 if padded else 0] = 0
    places = torch.stack((torch.arange(9), torch.arange(9) * 3 + 4))  # turned unlike the plain ones
    texts = [
        model.generate(
            IDS,
            attention_mask=mask,
            position_ids=places,
            max_new_tokens=8,
            pad_token_id=1,
            **settings,
        )
        for model in models.values()
    ]
    assert texts[1].tolist() == texts[0].tolist()


def test_packed_texts_stay_apart_while_everything_is_read_again(models: dict[str, Any]) -> None:
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, 9)
    call = {"position_ids": places, "max_new_tokens": 6, "pad_token_id": 1, "use_cache": False}
    texts = [model.generate(IDS, **call) for model in models.values()]
    assert texts[1].tolist() == texts[0].tolist()
    second = models["ours"].generate(IDS[:, 4:], max_new_tokens=6, pad_token_id=1)
    assert texts[1][:, 9:].tolist() == second[:, 5:].tolist()


# --- assistants -------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [False, True])
def test_a_model_of_transformers_assists(models: dict[str, Any], sample: bool) -> None:
    helper = pair(num_hidden_layers=1, seed=1)[0]
    said: list[Tensor] = []
    for assistant in (models["theirs"], helper):
        torch.manual_seed(0)
        said.append(
            models["ours"].generate(
                IDS[:1],
                max_new_tokens=12,
                pad_token_id=1,
                eos_token_id=None,
                do_sample=sample,
                assistant_model=assistant,
            )
        )
        assert said[-1].shape == (1, 21)
    plain = models["ours"].generate(IDS[:1], max_new_tokens=12, eos_token_id=None)
    assert sample or [text.tolist() for text in said] == [plain.tolist()] * 2


def test_our_model_assists_one_of_transformers(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = models["theirs"], models["ours"]
    drafts: list[int] = []
    generate = type(ours).generate

    def counted(*inputs: Any, **arguments: Any) -> Any:
        output = generate(*inputs, **arguments)
        drafts.append(len(output.scores))
        return output

    monkeypatch.setattr(type(ours), "generate", counted)
    call = {"inputs": IDS[:1], "max_new_tokens": 12, "pad_token_id": 1, "eos_token_id": None}
    said = theirs.generate(assistant_model=ours, **call)
    assert said.tolist() == theirs.generate(**call).tolist()
    assert sum(drafts) >= 10 and len(drafts) < 12  # it agrees with itself: few calls


# --- training mode ----------------------------------------------------------------------------


def test_recomputing_in_training_changes_no_text() -> None:
    ours = pair()[1]
    calls = {"greedy": {}, "beams": {"num_beams": 3}, "lookup": {"prompt_lookup_num_tokens": 3}}
    before = [ours.generate(IDS[:1], max_new_tokens=8, **more).tolist() for more in calls.values()]
    ours.train().gradient_checkpointing_enable()
    after = [ours.generate(IDS[:1], max_new_tokens=8, **more).tolist() for more in calls.values()]
    assert after == before
    streamed = [step.token for step in ours.stream(IDS[:1], max_new_tokens=8)]
    assert streamed == before[0][0][9:]
    with torch.enable_grad():
        loss = ours(IDS, labels=IDS).loss
        loss.backward()
        cache = ours.eval()(IDS[:, :3], use_cache=True).cache
        with pytest.raises(InputError, match="checkpointing"):
            ours.train()(IDS[:, 3:], cache=cache)
    assert ours.is_gradient_checkpointing and bool(ours.embed_out.weight.grad.abs().sum() > 0)
