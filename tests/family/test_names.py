"""Names, keywords and orders that code written for transformers' classes relies on."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from oracle import CLASSES, SIZES, pair, same, tokens
from torch import Tensor, nn
from transformers.utils.generic import find_labels

import neox_lab as nl
from neox_lab.errors import CheckpointError, ConfigError, InputError, ShapeError

BASE, CAUSAL, SEQUENCE, TOKEN, ANSWER = CLASSES
SMALL = {"num_hidden_layers": 2}
every_class = pytest.mark.parametrize("kind", CLASSES)
every_head = pytest.mark.parametrize("kind", CLASSES[1:])


def targets(kind: str, ids: Tensor) -> dict[str, Tensor]:
    batch = len(ids)
    if kind == ANSWER:
        return {"start_positions": torch.zeros(batch).long(), "end_positions": ids[:, 0] % 5}
    return {"labels": ids[:, 0] % 2 if kind == SEQUENCE else ids % 2}


# --- what a Trainer sees ---------------------------------------------------------------------


@every_class
def test_a_trainer_finds_the_same_targets_and_counts_them_alike(kind: str) -> None:
    theirs, ours = pair(kind, **SMALL)
    assert find_labels(type(ours)) == find_labels(type(theirs))
    assert getattr(ours, "loss_type", None) == theirs.loss_type
    order = [list(inspect.signature(each.forward).parameters) for each in (ours, theirs)]
    given = [name for name in order[1] if name != "kwargs"]
    assert order[0][: len(given)] == given


@every_head
@pytest.mark.parametrize("count", [None, 7, torch.tensor(7)])
def test_the_loss_of_a_part_of_a_batch(kind: str, count: int | Tensor | None) -> None:
    """Only the language model divides by the count it is told; the others take it and go on."""
    theirs, ours = pair(kind, **SMALL)
    ids = tokens()
    more = targets(kind, ids) | ({} if count is None else {"num_items_in_batch": count})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(ours(ids, **more).loss, theirs(ids, **more).loss)


@every_head
def test_loss_functions_take_what_theirs_take(kind: str) -> None:
    theirs, ours = pair(kind, **SMALL)
    ids, logits = tokens(), torch.randn(3, 12, 2)
    arguments: dict[str, Any] = {"config": ours.config, "num_items_in_batch": 5, "unknown": 1}
    if kind == CAUSAL:
        logits = torch.randn(3, 12, ours.config.vocab_size)
        arguments |= {"logits": logits, "labels": ids, "vocab_size": ours.config.vocab_size}
        arguments["ignore_index"] = int(ids[0, 3])
    elif kind == SEQUENCE:
        arguments |= {"logits": logits, "pooled_logits": logits[:, 0], "labels": ids[:, 0] % 2}
    elif kind == TOKEN:
        arguments |= {"logits": logits, "labels": ids % 2}
    else:
        start, end = logits.unbind(-1)
        arguments |= {"start_logits": start, "end_logits": end} | targets(kind, ids)
    arguments.pop("unknown" if kind in (SEQUENCE, TOKEN, ANSWER, CAUSAL) else "")
    same(ours.loss_function(**arguments), theirs.loss_function(**arguments))


@every_head
def test_another_loss_can_be_put_in(kind: str) -> None:
    _, ours = pair(kind, **SMALL)
    ours.loss_function = lambda *_, **__: torch.tensor(5.0)
    assert ours(tokens(), **targets(kind, tokens())).loss == 5.0


# --- arguments -------------------------------------------------------------------------------


@every_class
def test_what_means_nothing_is_ignored_with_one_warning(kind: str) -> None:
    _, ours = pair(kind, **SMALL)
    plain = ours(tokens())[0]
    with pytest.warns(UserWarning, match="makes nothing of cache_position, of_my_collator") as seen:
        told = ours(tokens(), cache_position=torch.arange(12), of_my_collator=1)[0]
    assert len(seen) == 1 and torch.equal(told, plain)


@every_class
def test_what_looks_misspelt_is_an_error(kind: str) -> None:
    _, ours = pair(kind, **SMALL)
    with pytest.raises(TypeError, match=r"attention_masks.*Did you mean 'attention_mask'"):
        ours(tokens(), attention_masks=None)


@every_class
@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "position_ids", "inputs_embeds"])
def test_lists_are_refused_in_words(kind: str, name: str) -> None:
    _, ours = pair(kind, **SMALL)
    given = {} if name in ("input_ids", "inputs_embeds") else {"input_ids": tokens()}
    with pytest.raises(InputError, match=r"is a list.*expected a tensor"):
        ours(**given, **{name: [[1, 2, 3]]})


@every_head
def test_lists_of_targets_are_refused_in_words(kind: str) -> None:
    _, ours = pair(kind, **SMALL)
    given = {name: value.tolist() for name, value in targets(kind, tokens()).items()}
    with pytest.raises(InputError, match="is a list; expected a tensor"):
        ours(tokens(), **given)


@pytest.mark.parametrize("shape", [(5,), (1, 2, 5)])
def test_ids_of_other_dimensions_are_refused_in_words(shape: tuple[int, ...]) -> None:
    model = nl.load()
    ids = torch.ones(shape, dtype=torch.long)
    calls = [
        model,
        model.run_with_cache,
        model.run_with_hooks,
        model.cache_size,
        model.check,
        lambda ids: nl.lens.logit_lens(model, ids),
    ]
    if len(shape) == 3:  # a single text may be [pos] where text is written
        calls += [model.generate, model.generate_with_cache, lambda ids: list(model.stream(ids))]
    for call in calls:
        with pytest.raises(ValueError, match="batch, pos"):
            call(ids)


def test_question_answering_takes_use_cache_and_a_cache() -> None:
    theirs, ours = pair(ANSWER, **SMALL)
    ids = tokens()
    for use_cache in (True, False):
        same(ours(ids, use_cache=use_cache).start_logits, theirs(ids).start_logits)
    past = ours.gpt_neox(ids[:, :5], use_cache=True).past_key_values
    same(ours(ids[:, 5:], past_key_values=past).end_logits, theirs(ids).end_logits[:, 5:])


# --- names -----------------------------------------------------------------------------------


@every_class
def test_names_of_a_model(kind: str) -> None:
    theirs, ours = pair(kind, **SMALL)
    assert ours.name_or_path == theirs.name_or_path == ""
    assert ours.base_model_prefix == theirs.base_model_prefix
    assert type(ours.get_decoder()).__name__ == type(theirs.get_decoder()).__name__
    assert type(ours).config_class is nl.GPTNeoXConfig
    assert type(ours).can_generate() is type(theirs).can_generate()


def test_where_a_model_came_from_is_its_name(tmp_path: Path) -> None:
    _, ours = pair(CAUSAL, **SMALL)
    ours.save_pretrained(tmp_path)
    again = nl.GPTNeoXForCausalLM.from_pretrained(pretrained_model_name_or_path=tmp_path)
    assert again.name_or_path == str(tmp_path)


def test_recomputing_in_the_configuration_is_used_up() -> None:
    config = nl.GPTNeoXConfig(**SIZES | SMALL, gradient_checkpointing=True)
    model = nl.GPTNeoXForCausalLM(config)
    assert model.is_activation_checkpointing
    assert not hasattr(config, "gradient_checkpointing")
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del config.hidden_size


def test_recomputing_takes_its_dictionary_by_position() -> None:
    _, ours = pair(CAUSAL, **SMALL)
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    assert ours.is_gradient_checkpointing
    ours.activation_checkpointing_disable()
    ours.activation_checkpointing_enable({"use_reentrant": True}, 1, False)
    assert ours.is_activation_checkpointing


def test_inputs_want_gradients_until_they_do_not() -> None:
    _, ours = pair(CAUSAL, **SMALL)
    ours.requires_grad_(False)
    for _ in range(2):
        ours.enable_input_require_grads()
    assert ours(tokens()).logits.requires_grad
    ours.disable_input_require_grads()
    ours.disable_input_require_grads()
    assert not ours(tokens()).logits.requires_grad


def test_save_pretrained_by_upstream_names(tmp_path: Path) -> None:
    _, ours = pair(CAUSAL, **SMALL)
    ours.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    ours.save_pretrained(tmp_path / "one", True, save_function=torch.save, safe_serialization=True)
    assert (tmp_path / "one" / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="safetensors only"):
        ours.save_pretrained(tmp_path / "two", safe_serialization=False)
    with pytest.raises(TypeError, match=r"max_shard_sise.*Did you mean 'max_shard_size'"):
        ours.save_pretrained(tmp_path / "two", max_shard_sise=3)


def test_a_device_may_be_auto() -> None:
    assert nl.load(device="auto").device.type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="'nowhere' is not a device of this machine"):
        nl.load(device="nowhere")


def test_the_reason_why_there_is_no_such_device_is_one_sentence() -> None:
    """PyTorch tells of a missing back end in thousands of characters."""
    absent = [name for name in ("mps", "xpu", "hpu", "cuda:77") if not _is_there(name)]
    assert absent
    for name in absent:
        with pytest.raises(ConfigError, match=f'^.{name}. is not .*"auto", which is') as told:
            nl.load(device=name)
        assert len(str(told.value)) < 600


def _is_there(device: str) -> bool:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):
        return False
    return True


# --- weights by either name ------------------------------------------------------------------


@every_class
def test_state_dictionaries_load_both_ways(kind: str) -> None:
    theirs, ours = pair(kind, **SMALL)
    fresh = getattr(nl, kind)(ours.config).eval()
    assert not any(fresh.load_state_dict(theirs.state_dict()))
    same(fresh(tokens())[0], theirs(tokens())[0])
    back = getattr(transformers, kind).from_pretrained(
        None, config=theirs.config, state_dict=ours.state_dict()
    )
    same(ours(tokens())[0], back.eval()(tokens())[0])


def test_a_head_can_be_put_in_by_its_other_name() -> None:
    _, ours = pair(CAUSAL, **SMALL)
    head = nn.Linear(ours.config.hidden_size, 7, bias=False)
    ours.lm_head = head
    assert ours.embed_out is ours.lm_head is head
    assert "lm_head" not in dict(ours.named_children())


@every_class
def test_a_model_of_transformers_becomes_ours(kind: str) -> None:
    theirs, _ = pair(kind, **SMALL)
    ours = nl.from_transformers(theirs.train())
    assert type(ours) is getattr(nl, kind) and not ours.training
    same(ours(tokens())[0], theirs.eval()(tokens())[0])
    next(theirs.parameters()).data.zero_()
    assert next(ours.parameters()).abs().sum() > 0, "the weights are shared"


def test_what_goes_with_a_model_of_transformers_comes_too(tmp_path: Path) -> None:
    theirs, _ = pair(CAUSAL, **SMALL)
    theirs = theirs.to(torch.bfloat16)
    theirs.generation_config.max_new_tokens = 3
    built_in = nl.load().tokenizer
    assert built_in is not None
    built_in.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = nl.from_transformers(theirs, tokenizer)
    assert ours.dtype == torch.bfloat16
    assert isinstance(ours, nl.GPTNeoXForCausalLM)
    assert ours.generation_config.max_new_tokens == 3
    assert ours.tokenizer is not None
    assert ours.tokenizer("The king went").input_ids == tokenizer("The king went").input_ids
    assert nl.from_transformers(theirs, built_in).tokenizer is built_in


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tied_and_narrow_weights_come_as_they_are(kind: str, dtype: torch.dtype) -> None:
    theirs, _ = pair(kind, **SMALL, tie_word_embeddings=True, num_labels=3)
    theirs = theirs.to(dtype)
    ours = nl.from_transformers(theirs)
    theirs.tie_weights()
    weights = {name.replace("lm_head", "embed_out"): w for name, w in theirs.state_dict().items()}
    assert set(ours.state_dict()) == set(weights)
    for name, weight in ours.state_dict().items():
        assert weight.dtype == dtype and torch.equal(weight, weights[name]), name
    if kind == CAUSAL:
        assert ours.get_parameter("embed_out.weight") is ours.get_input_embeddings().weight


TEXT = "The king went  to\n\n the city, n\u00e9? 12345 @@new"


@pytest.mark.parametrize("kind", ["file", "object", "left", "added", "GPTNeoXTokenizerFast"])
def test_tokenizers_that_were_never_saved_come_too(kind: str, tmp_path: Path) -> None:
    built_in = nl.load().tokenizer
    assert built_in is not None
    built_in.save_pretrained(tmp_path)
    file, end = str(tmp_path / "tokenizer.json"), {"eos_token": "<|endoftext|>"}
    fast = transformers.PreTrainedTokenizerFast
    if kind == "object":
        tokenizer = fast(tokenizer_object=tokenizers.Tokenizer.from_file(file), **end)
    elif kind == "GPTNeoXTokenizerFast":
        tokenizer = transformers.GPTNeoXTokenizerFast(tokenizer_file=file, **end)
    else:
        side = "left" if kind == "left" else "right"
        tokenizer = fast(tokenizer_file=file, padding_side=side, **end)
    if kind == "added":
        assert tokenizer.add_tokens(["@@new"]) == 1
    assert not tokenizer.name_or_path
    theirs, _ = pair(CAUSAL, **SMALL | {"vocab_size": len(tokenizer)})
    ours = nl.from_transformers(theirs, tokenizer).tokenizer
    assert ours is not None
    assert ours(TEXT).input_ids == tokenizer(TEXT)["input_ids"]
    assert ours.decode(ours(TEXT).input_ids) == tokenizer.decode(tokenizer(TEXT)["input_ids"])
    assert ours.padding_side == tokenizer.padding_side
    assert ours.eos_token == tokenizer.eos_token


def test_what_is_no_such_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes one of.*got a Linear"):
        nl.from_transformers(nn.Linear(2, 2))  # type: ignore[arg-type]
    theirs, _ = pair(CAUSAL, **SMALL)
    theirs.gpt_neox.layers[0].attention.dense.adapter = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"adapter.*merge them first"):
        nl.from_transformers(theirs)


def test_shapes_that_differ_are_both_kinds_of_error(tmp_path: Path) -> None:
    _, ours = pair(CAUSAL, **SMALL)
    ours.save_pretrained(tmp_path)
    for kind in (ShapeError, CheckpointError, RuntimeError, OSError):
        with pytest.raises(kind, match="does not fit the configuration"):
            nl.GPTNeoXForCausalLM.from_pretrained(tmp_path, vocab_size=17)


def test_saving_in_the_names_of_transformers_5(tmp_path: Path) -> None:
    theirs, ours = pair(CAUSAL, **SMALL)
    ours.save_pretrained(tmp_path, save_original_format=False)
    assert safetensors.torch.load_file(tmp_path / "model.safetensors").keys() == set(
        copy.copy(theirs.state_dict())
    )


# --- what else a model is asked --------------------------------------------------------------


@every_class
def test_attention_can_be_chosen_and_changes_no_number(kind: str, tmp_path: Path) -> None:
    _, ours = pair(kind, **SMALL)
    before = ours(tokens())[0]
    ours.save_pretrained(tmp_path)
    for name in ("eager", "sdpa"):
        ours.set_attn_implementation(name)
        assert ours.config._attn_implementation == name
        loaded = type(ours).from_pretrained(tmp_path, attn_implementation=name)
        made = type(ours).from_config(ours.config, attn_implementation=name)
        assert loaded.config._attn_implementation == made.config._attn_implementation == name
        assert made.config is not ours.config
        assert torch.equal(ours(tokens())[0], before)
    with pytest.raises(ConfigError, match="flash_attention_2"):
        ours.set_attn_implementation("flash_attention_2")


@every_class
@pytest.mark.parametrize("wanted", [[0], [-1], [1, -2, 7, -9], (2,), [7], 1, [], 0, True])
def test_hidden_states_of_some_layers(kind: str, wanted: Any) -> None:
    theirs, ours = pair(kind, **SMALL)
    got = ours(tokens(), output_hidden_states=wanted).hidden_states
    expected = theirs(tokens(), output_hidden_states=wanted).hidden_states
    assert (got is None) == (expected is None)
    for one, other in zip(got or (), expected or (), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            same(one, other)


def test_what_is_no_text_and_no_selection_is_refused_in_words() -> None:
    model = nl.load()
    with pytest.raises(InputError, match="no text"):
        model.to_tokens(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="neither text nor token ids"):
        model.to_str_tokens(None)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"Vectors have shape \[5\]"):
        model.run_with_cache(torch.randn(5))
    ids = model.to_tokens("The king went")
    with pytest.raises(InputError, match="logits_to_keep is a list"):
        model(ids, logits_to_keep=[0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shift_labels is a list"):
        model(ids, shift_labels=ids.tolist())  # type: ignore[arg-type]
