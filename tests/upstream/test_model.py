"""What upstream's tests say about the five models."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from upstream.library import (
    ANSWER,
    BASE,
    CAUSAL,
    CLASSES,
    SEQUENCE,
    SIZES,
    TOKEN,
    WITH_LOSS,
    Library,
    ids,
    labels_for,
    padded,
    refuses,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
every_class = pytest.mark.parametrize("kind", CLASSES)
every_head = pytest.mark.parametrize("kind", WITH_LOSS)


def first(output: Any) -> Tensor:
    """The tensor of an output that comes first when there are no labels."""
    tensor = output[0]
    assert isinstance(tensor, Tensor)
    return tensor


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


# --- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_base_gives_a_vector_for_every_token(
    library: Library, is_decoder: bool, masked: bool
) -> None:
    model = library.model(BASE, is_decoder=is_decoder, add_cross_attention=is_decoder)
    mask = padded(3, 12) if masked else None
    assert model(ids(3, 12), attention_mask=mask).last_hidden_state.shape == (3, 12, 64)


@pytest.mark.parametrize(
    ("kind", "names", "shape"),
    [
        (CAUSAL, ["logits"], (3, 7, 99)),
        (SEQUENCE, ["logits"], (3, 3)),
        (TOKEN, ["logits"], (3, 7, 3)),
        (ANSWER, ["start_logits", "end_logits"], (3, 7)),
    ],
)
def test_heads_have_their_shapes_and_a_loss(
    library: Library, kind: str, names: list[str], shape: tuple[int, ...]
) -> None:
    model = library.model(kind, num_labels=3)
    output = model(ids(3, 7), attention_mask=torch.ones(3, 7), **labels_for(kind, 3, 7))
    assert output.loss.shape == () and output.loss.isfinite()
    for name in names:
        assert output[name].shape == shape


# --- what one run says ------------------------------------------------------------------------


@every_class
def test_two_runs_say_the_same(library: Library, kind: str) -> None:
    model = library.model(kind)
    assert torch.equal(first(model(ids())), first(model(ids())))


@every_class
def test_a_batch_says_what_its_rows_say(library: Library, kind: str) -> None:
    model = library.model(kind)
    batch = model(ids(), attention_mask=padded(3, 7), output_hidden_states=True)
    for row in range(3):
        one = slice(row, row + 1)
        alone = model(ids()[one], attention_mask=padded(3, 7)[one], output_hidden_states=True)
        assert close(first(alone), first(batch)[one])
        for whole, part in zip(batch.hidden_states, alone.hidden_states, strict=True):
            assert close(part, whole[one])


@every_class
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"output_hidden_states": True, "output_attentions": True},
    ],
    ids=lambda more: "+".join(more) or "plain",
)
def test_a_tuple_holds_what_the_object_holds(
    library: Library, kind: str, more: dict[str, bool]
) -> None:
    model = library.model(kind)
    more = more | labels_for(kind, 3, 7) if kind != BASE else more
    plain = model(ids(), return_dict=False, **more)
    named = model(ids(), return_dict=True, **more).to_tuple()
    assert isinstance(plain, tuple) and len(plain) == len(named)

    def compare(a: Any, b: Any) -> None:
        if isinstance(a, Tensor):
            assert torch.equal(a, b)
        elif isinstance(a, tuple | list):
            for one, other in zip(a, b, strict=True):
                compare(one, other)

    compare(plain, named)


@every_class
@pytest.mark.parametrize("where", ["call", "config"])
def test_attention_comes_for_every_layer_and_last(library: Library, kind: str, where: str) -> None:
    if where == "config":
        model = library.model(kind, output_attentions=True)
        output, both = model(ids()), model(ids(), output_hidden_states=True)
    else:
        model = library.model(kind)
        output = model(ids(), output_attentions=True)
        both = model(ids(), output_attentions=True, output_hidden_states=True)
    assert [pattern.shape for pattern in output.attentions] == [(3, 4, 7, 7)] * 2
    assert close(output.attentions[0].sum(dim=-1), torch.ones(3, 4, 7))
    assert len(both) == len(output) + 1 and list(both.keys())[-1] == "attentions"


@every_class
@pytest.mark.parametrize("where", ["call", "config"])
def test_hidden_states_come_before_every_layer_and_at_the_end(
    library: Library, kind: str, where: str
) -> None:
    if where == "config":
        output = library.model(kind, output_hidden_states=True)(ids())
    else:
        output = library.model(kind)(ids(), output_hidden_states=True)
    assert [state.shape for state in output.hidden_states] == [(3, 7, 64)] * 3


@every_class
def test_some_hidden_states_can_be_asked_for(library: Library, kind: str) -> None:
    model = library.model(kind)
    everything = model(ids(), output_hidden_states=True).hidden_states
    some = model(ids(), output_hidden_states=[0, -1]).hidden_states
    assert len(some) == len(everything) and some[1] is None
    assert close(some[0], everything[0]) and close(some[-1], everything[-1])


def test_gradients_reach_hidden_states_and_attention(library: Library) -> None:
    output = library.model(BASE)(ids(), output_hidden_states=True, output_attentions=True)
    state, pattern = output.hidden_states[0], output.attentions[0]
    state.retain_grad()
    pattern.retain_grad()
    first(output).flatten()[0].backward()
    assert state.grad is not None and pattern.grad is not None


@every_class
def test_vectors_may_stand_for_tokens(library: Library, kind: str) -> None:
    model = library.model(kind, pad_token_id=None)
    embeds = model.get_input_embeddings()(ids(1))
    assert close(first(model(inputs_embeds=embeds)), first(model(input_ids=ids(1))))


@every_class
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_says_the_same(
    library: Library, kind: str, masked: bool, dtype: torch.dtype
) -> None:
    model = library.model(kind, std=0.02).to(dtype)
    mask = padded(3, 7) if masked else None
    opened = first(model(ids(), attention_mask=mask, output_attentions=True))
    if not library.ours:
        model.set_attn_implementation("sdpa")
    fused = first(model(ids(), attention_mask=mask))
    kept = slice(None) if mask is None or opened.shape[:2] != mask.shape else mask.bool()
    assert close(fused[kept], opened[kept], 1e-5 if dtype == torch.float32 else 3e-2)


def test_a_mask_may_say_of_each_query_what_it_sees(library: Library) -> None:
    model = library.model(BASE)
    lowest = torch.finfo(torch.float32).min
    causal = torch.full((7, 7), lowest).triu(1)
    alone = torch.full((7, 7), lowest).fill_diagonal_(0.0)

    def said(mask: Tensor) -> Tensor:
        return first(model(ids(), attention_mask=mask[None, None].expand(3, 1, 7, 7)))

    assert close(said(causal), first(model(ids()))) and not close(said(alone), said(causal))


def test_texts_after_one_another_in_one_row_are_kept_apart(library: Library) -> None:
    model = library.model(CAUSAL)
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    packed = model(ids(1, 7), position_ids=places, use_cache=False).logits
    assert close(packed[:, :3], model(ids(1, 7)[:, :3]).logits)
    assert close(packed[:, 3:], model(ids(1, 7)[:, 3:]).logits)


IN_ORDER = {
    BASE: "attention_mask position_ids inputs_embeds past_key_values use_cache",
    ANSWER: "attention_mask token_type_ids position_ids inputs_embeds start_positions",
    CAUSAL: "attention_mask position_ids inputs_embeds past_key_values labels use_cache",
    SEQUENCE: "attention_mask position_ids inputs_embeds past_key_values labels use_cache",
    TOKEN: "past_key_values attention_mask token_type_ids position_ids inputs_embeds labels",
}


def order(library: Library, kind: str) -> list[str]:
    """Names of the arguments of ``forward`` after the first, as they were before 5.24."""
    names = list(inspect.signature(library.classes[kind].forward).parameters)[2:]
    return ["past_key_values" if name == "cache" else name for name in names]


@pytest.mark.parametrize("kind", [BASE, ANSWER])
def test_arguments_without_names_come_in_order(library: Library, kind: str) -> None:
    wanted = IN_ORDER[kind].split()
    assert order(library, kind)[: len(wanted)] == wanted


@pytest.mark.parametrize("kind", [CAUSAL, SEQUENCE, TOKEN])
def test_the_cache_comes_before_the_labels(library: Library, kind: str) -> None:
    wanted = IN_ORDER[kind].split()
    assert order(library, kind)[: len(wanted)] == wanted


@pytest.mark.parametrize("kind", CLASSES)
def test_the_main_input_comes_first(library: Library, kind: str) -> None:
    names = list(inspect.signature(library.classes[kind].forward).parameters)
    assert names[1] == library.classes[kind].main_input_name == "input_ids"


@every_class
@pytest.mark.parametrize("name", ["cache_position", "cross_attn_head_mask"])
def test_arguments_without_a_meaning_change_nothing(library: Library, kind: str, name: str) -> None:
    model = library.model(kind)
    assert close(first(model(ids(), **{name: torch.zeros(3, 7).long()})), first(model(ids())))


# --- the cache --------------------------------------------------------------------------------


def test_several_tokens_can_follow_a_cache(library: Library) -> None:
    model = library.model(CAUSAL)
    start, after = ids(3, 7), ids(3, 3, seed=1)
    mask = torch.cat((padded(3, 7), torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 1]])), dim=1)
    read = model(start, attention_mask=mask[:, :7], use_cache=True)
    more = {"attention_mask": mask, "output_hidden_states": True}
    at_once = model(torch.cat((start, after), dim=1), **more)
    later = model(after, past_key_values=read.past_key_values, **more)
    for one, other in zip(later.hidden_states, at_once.hidden_states, strict=True):
        assert one.shape[1] == 3 and close(one, other[:, -3:], 1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_a_cache_works_with_and_without_a_mask(library: Library, masked: bool) -> None:
    model = library.model(CAUSAL)
    text = ids(2, 9)
    cache = model(text[:, :6], use_cache=True).past_key_values
    mask = torch.ones(2, 9) if masked else None
    later = model(text[:, 6:], past_key_values=cache, attention_mask=mask).logits
    assert close(later, model(text).logits[:, 6:], 1e-4)


def test_a_cache_holds_keys_and_values_of_every_layer(library: Library) -> None:
    cache = library.model(CAUSAL)(ids(3, 7), use_cache=True).past_key_values
    assert len(cache) == 2 and cache.get_seq_length() == 7
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (3, 4, 7, 16)


def test_no_cache_comes_where_none_is_wanted(library: Library) -> None:
    assert "past_key_values" not in library.model(CAUSAL)(ids(), use_cache=False)
    assert "past_key_values" not in library.model(CAUSAL, use_cache=False)(ids())


@pytest.mark.parametrize("keep", [1, 3, [0, 4]])
def test_logits_can_be_kept_for_some_places(library: Library, keep: int | list[int]) -> None:
    model = library.model(CAUSAL)
    wanted = keep if isinstance(keep, int) else torch.tensor(keep)
    rest = slice(-keep, None) if isinstance(keep, int) else keep
    assert close(model(ids(), logits_to_keep=wanted).logits, model(ids()).logits[:, rest])


# --- training ---------------------------------------------------------------------------------


@every_head
def test_every_weight_gets_a_gradient(library: Library, kind: str) -> None:
    model = library.model(kind).train()
    model(ids(), **labels_for(kind, 3, 7)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_head
@pytest.mark.parametrize("settings", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_recomputing_activations_changes_no_gradient(
    library: Library, kind: str, settings: dict[str, bool] | None
) -> None:
    model = library.model(kind, use_cache=False, classifier_dropout=0.0).train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(ids(), **labels_for(kind, 3, 7)).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    again = gradients()
    assert len(plain) == len(again)
    assert all(close(a, b, 1e-4) for a, b in zip(plain, again, strict=True))


@every_head
def test_what_can_be_recomputed_is_found_and_run_twice(library: Library, kind: str) -> None:
    """And a hook that somebody placed on such a layer runs once, however often its inside does."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model = library.model(kind, use_cache=False).train()
    model.gradient_checkpointing_enable()
    found = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    assert len(found) == model.config.num_hidden_layers
    runs, seen = [], []
    handed = found[0]._gradient_checkpointing_func

    def counted(run: Any, *given: Any) -> Any:
        def again(*inputs: Any) -> Any:
            runs.append(1)
            return run(*inputs)

        return handed(again, *given)

    found[0]._gradient_checkpointing_func = counted
    found[0].register_forward_pre_hook(lambda *given: seen.append(1))
    model(ids(), **labels_for(kind, 3, 7)).loss.backward()
    assert (len(runs), len(seen)) == (2, 1)


def test_recomputing_can_be_switched_on_in_the_configuration(library: Library) -> None:
    config = library.config()
    config.gradient_checkpointing = True
    assert library.classes[CAUSAL](config).is_gradient_checkpointing


@every_class
def test_recomputing_is_off_until_it_is_switched_on(library: Library, kind: str) -> None:
    model = library.model(kind)
    assert not model.is_gradient_checkpointing
    for switch, state in ((model.gradient_checkpointing_enable, True), (None, False)):
        (switch or model.gradient_checkpointing_disable)()
        assert model.is_gradient_checkpointing is state
        said = [m.gradient_checkpointing for m in model.modules() if _has_flag(m)]
        assert said and all(flag is state for flag in said)


def _has_flag(module: nn.Module) -> bool:
    return hasattr(module, "gradient_checkpointing")


@every_class
def test_recomputing_has_its_new_name(library: Library, kind: str) -> None:
    model = library.model(kind)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


@every_class
def test_a_class_says_that_it_can_recompute(library: Library, kind: str) -> None:
    assert library.classes[kind].supports_gradient_checkpointing is True


@every_class
def test_inputs_can_be_made_to_want_gradients_and_no_more(library: Library, kind: str) -> None:
    model = library.model(kind).requires_grad_(False)
    model.enable_input_require_grads()
    assert first(model(ids())).requires_grad
    model.disable_input_require_grads()
    assert not first(model(ids())).requires_grad


@every_head
def test_recomputing_and_wanting_gradients_go_together(library: Library, kind: str) -> None:
    model = library.model(kind, use_cache=False).train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model(ids(), **labels_for(kind, 3, 7)).loss.backward()
    grad = model.get_input_embeddings().weight.grad
    assert grad is not None and grad.isfinite().all() and grad.abs().sum() > 0


def test_targets_that_are_shifted_already_count_alone(library: Library) -> None:
    model = library.model(CAUSAL)
    logits = model(ids()).logits
    likely, unlikely = logits.argmax(dim=-1), logits.argmin(dim=-1)

    def loss(labels: Tensor, shifted: Tensor) -> Tensor:
        return model(ids(), labels=labels, shift_labels=shifted).loss

    assert loss(ids(), likely) < loss(ids(), unlikely)
    assert torch.equal(loss(ids(), likely), loss(ids(seed=1), likely))


def test_the_loss_can_be_shared_out_over_more_than_the_batch(library: Library) -> None:
    model = library.model(CAUSAL)
    mean = model(ids(), labels=ids()).loss
    shared = model(ids(), labels=ids(), num_items_in_batch=36).loss
    assert close(shared * 36, mean * 18)


@pytest.mark.parametrize(
    ("problem", "labels", "dtype"),
    [
        ("multi_label_classification", 2, torch.float),
        ("single_label_classification", 2, torch.long),
        ("regression", 1, torch.float),
    ],
)
@pytest.mark.filterwarnings("error:Using a target size")
def test_a_classifier_learns_three_kinds_of_problem(
    library: Library, problem: str, labels: int, dtype: torch.dtype
) -> None:
    model = library.model(SEQUENCE, problem_type=problem, num_labels=labels).train()
    wide = dtype == torch.float and labels > 1
    targets = torch.zeros((3, labels) if wide else (3,)).to(dtype)
    model(ids(), labels=targets).loss.backward()
    assert model.score.weight.grad.isfinite().all()


def test_a_classifier_of_one_class_runs(library: Library) -> None:
    config = library.config()
    config.problem_type, config.num_labels = "single_label_classification", 1
    model = library.classes[SEQUENCE](config).train()
    model(ids(), labels=torch.zeros(3).long()).loss.backward()


def test_a_small_model_learns_a_row_by_heart(library: Library) -> None:
    torch.manual_seed(0)
    model = library.classes[CAUSAL](library.config(eos_token_id=None)).train()
    row = torch.arange(1, 20).repeat(2)[None, :32]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(row, labels=row).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    said = model.eval().generate(row[:, :10], max_new_tokens=10, do_sample=False)
    assert torch.equal(said, row[:, :20])


# --- embeddings -------------------------------------------------------------------------------


@every_class
def test_embeddings_can_be_read_and_replaced(library: Library, kind: str) -> None:
    model = library.model(kind)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    other = nn.Embedding(10, 10)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    output = model.get_output_embeddings()
    assert isinstance(output, nn.Linear) if kind == CAUSAL else output is None


@every_class
def test_the_vocabulary_can_grow_and_shrink(library: Library, kind: str) -> None:
    model = library.model(kind)
    before = model.get_input_embeddings()
    weights = before.weight.detach().clone()
    grown = model.resize_token_embeddings(109)
    assert type(grown) is type(before) and grown.weight.shape == (109, 64)
    assert model.config.vocab_size == 109
    assert close(grown.weight[:99].mean(dim=0), grown.weight[99:].mean(dim=0), 1e-2)
    model(torch.tensor([[5, 108]]))
    shrunk = model.resize_token_embeddings(84)
    assert model.config.vocab_size == 84 and torch.equal(shrunk.weight, weights[:84])
    model(torch.tensor([[5, 83]]))


@every_class
def test_the_vocabulary_can_be_rounded_up(library: Library, kind: str) -> None:
    model = library.model(kind)
    for size, rows in ((99, 128), (112, 128), (129, 192), (128, 128)):
        made = model.resize_token_embeddings(size, pad_to_multiple_of=64)
        assert made.weight.shape[0] == model.config.vocab_size == rows


def test_rounding_up_to_no_whole_number_is_a_value_error(library: Library) -> None:
    with refuses():
        library.model(BASE).resize_token_embeddings(99, pad_to_multiple_of=1.3)


@every_class
def test_a_tiny_vocabulary_can_grow(library: Library, kind: str) -> None:
    model = library.model(kind, vocab_size=4, **dict.fromkeys(_SPECIAL, 3))
    grown = model.resize_token_embeddings(14).weight
    assert grown.shape == (14, 64)
    assert close(grown[:4].mean(dim=0), grown[4:].mean(dim=0), 1e-2)


_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


def test_resizing_without_a_size_changes_nothing(library: Library) -> None:
    model = library.model(BASE)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.config.vocab_size == 99


@every_class
def test_a_resized_model_knows_its_vocabulary(library: Library, kind: str) -> None:
    model = library.model(kind)
    model.resize_token_embeddings(128)
    assert model.vocab_size == model.config.vocab_size == 128


def test_untied_embeddings_are_both_resized(library: Library) -> None:
    model = library.model(CAUSAL, tie_word_embeddings=False)
    for size in (109, 84):
        model.resize_token_embeddings(size)
        assert model.get_output_embeddings().weight.shape == (size, 64)
        assert model(torch.tensor([[1, size - 1]])).logits.shape == (1, 2, size)


def test_tied_embeddings_stay_tied_when_resized(library: Library) -> None:
    model = library.model(CAUSAL, tie_word_embeddings=True)
    model.resize_token_embeddings(109)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_resized_output_embeddings_are_not_drawn_again(library: Library) -> None:
    model = library.model(CAUSAL)
    model.resize_token_embeddings(109)
    weight = model.get_output_embeddings().weight.detach().clone()
    model.post_init()
    assert torch.equal(model.get_output_embeddings().weight, weight)


# --- names ------------------------------------------------------------------------------------


@every_class
def test_a_head_stands_on_a_base(library: Library, kind: str) -> None:
    model = library.model(kind)
    assert (model.base_model is model) is (kind == BASE)
    if kind != BASE:
        assert getattr(model, model.base_model_prefix) is model.base_model
        assert type(model.base_model) is library.classes[BASE]


@every_class
def test_a_class_knows_its_configuration(library: Library, kind: str) -> None:
    assert library.classes[kind].config_class is library.GPTNeoXConfig


@every_class
def test_a_class_knows_whether_it_writes(library: Library, kind: str) -> None:
    assert library.classes[kind].can_generate() is (kind == CAUSAL)


@every_class
def test_attention_can_be_chosen_on_a_model(library: Library, kind: str) -> None:
    model = library.model(kind)
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name
    with refuses():
        model.set_attn_implementation("foo")
    assert model.config._attn_implementation == "eager"


def test_attention_can_be_chosen_when_a_model_is_loaded(library: Library, tmp_path: Path) -> None:
    library.model(BASE).save_pretrained(tmp_path)
    for name in ("sdpa", "eager"):
        loaded = library.classes[BASE].from_pretrained(tmp_path, attn_implementation=name)
        assert loaded.config._attn_implementation == name


# --- saving and loading -----------------------------------------------------------------------


@pytest.fixture
def saved(library: Library, tmp_path: Path) -> Callable[..., Any]:
    """Save a model of a class and return it; its folder is ``tmp_path``."""

    def save(kind: str, **values: Any) -> Any:
        model = library.model(kind, **values)
        model.save_pretrained(tmp_path)
        return model

    return save


@every_class
def test_a_saved_model_says_the_same(
    library: Library, saved: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    model = saved(kind)
    assert (tmp_path / "config.json").exists()
    assert (tmp_path / "generation_config.json").exists() is (kind == CAUSAL)
    again = library.classes[kind].from_pretrained(tmp_path)
    assert close(first(again(ids())), first(model(ids())))
    again.save_pretrained(tmp_path / "second")
    third = library.classes[kind].from_pretrained(tmp_path / "second")
    assert close(first(third(ids())), first(model(ids())))


@every_class
def test_weights_lie_in_memory_in_order(
    library: Library, saved: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    for model in (saved(kind), library.classes[kind].from_pretrained(tmp_path)):
        assert all(parameter.is_contiguous() for parameter in model.parameters())


@every_class
def test_weights_may_come_from_a_dictionary(library: Library, kind: str) -> None:
    model = library.model(kind)
    made = library.classes[kind].from_pretrained(
        pretrained_model_name_or_path=None, config=model.config, state_dict=model.state_dict()
    )
    assert made.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in model.state_dict().items())


@every_class
def test_weights_that_come_from_nowhere_are_drawn(library: Library, kind: str) -> None:
    made = library.classes[kind].from_pretrained(None, config=library.config(), state_dict={})
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        assert tensor.device.type == "cpu" and tensor.isfinite().all(), name
    assert 0.01 < made.get_input_embeddings().weight.std() < 0.03
    assert first(made(ids())).isfinite().all()


@every_class
def test_a_torch_file_holds_the_weights(library: Library, kind: str, tmp_path: Path) -> None:
    model = library.model(kind)
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    other = library.model(kind, seed=1)
    other.load_state_dict(torch.load(tmp_path / "weights.bin"))
    assert close(first(other(ids())), first(model(ids())))


@every_class
def test_an_old_torch_checkpoint_is_read(library: Library, kind: str, tmp_path: Path) -> None:
    model = library.model(kind)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    again = library.classes[kind].from_pretrained(tmp_path)
    assert close(first(again(ids())), first(model(ids())))


@every_head
def test_what_a_base_lacks_is_named(library: Library, kind: str, tmp_path: Path) -> None:
    model = library.model(kind)
    model.base_model.save_pretrained(tmp_path)
    made, info = library.classes[kind].from_pretrained(tmp_path, output_loading_info=True)
    own = {name for name, _ in model.named_parameters() if not name.startswith("gpt_neox")}
    assert set(info["missing_keys"]) == own
    assert close(first(made.base_model(ids())), first(model.base_model(ids())))


@every_head
def test_a_base_reads_its_part_of_a_head(
    library: Library, saved: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    model = saved(kind)
    base, info = library.classes[BASE].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert close(first(base(ids())), first(model.base_model(ids())))


@every_class
def test_a_file_that_holds_nothing_of_the_model_is_said(
    library: Library, saved: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    model = saved(kind)
    safetensors.torch.save_file(
        {"tensor": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    if library.ours:  # an error here, see docs/differences.md
        with refuses(OSError):
            library.classes[kind].from_pretrained(tmp_path)
        return
    _, info = library.classes[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {name for name, _ in model.named_parameters()}


@every_class
def test_weights_are_saved_as_safetensors(
    library: Library, saved: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    model = saved(kind)
    assert not list(tmp_path.glob("*.bin"))
    again, info = library.classes[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_saving_takes_the_names_upstream_gives(library: Library, tmp_path: Path) -> None:
    model = library.model(BASE)
    model.save_pretrained(save_directory=tmp_path, is_main_process=True, safe_serialization=True)
    assert (tmp_path / "model.safetensors").exists()


def test_tied_weights_share_their_storage(library: Library, tmp_path: Path) -> None:
    model = library.model(CAUSAL, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert len(stored) == len(dict(model.named_parameters()))  # tied ones count once
    again, info = library.classes[CAUSAL].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    for made in (model, again):
        assert made.get_output_embeddings().weight is made.get_input_embeddings().weight


def test_untied_weights_are_both_saved(library: Library, tmp_path: Path) -> None:
    model = library.model(CAUSAL, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    again, info = library.classes[CAUSAL].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert close(again(ids()).logits, model(ids()).logits)
    assert again.get_output_embeddings().weight is not again.get_input_embeddings().weight


@pytest.mark.parametrize("kind", [BASE, SEQUENCE])
def test_other_shapes_are_a_runtime_error(
    library: Library, saved: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    saved(SEQUENCE)
    other = {"num_labels": 42} if kind == SEQUENCE else {"vocab_size": 98}
    with refuses(RuntimeError):
        library.classes[kind].from_pretrained(tmp_path, **other)


def test_other_shapes_can_be_drawn_again(
    library: Library, saved: Callable[..., Any], tmp_path: Path
) -> None:
    model = saved(SEQUENCE)
    made, info = library.classes[SEQUENCE].from_pretrained(
        tmp_path, num_labels=42, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert made(ids()).logits.shape == (3, 42)
    names = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    assert names == {"score.weight"} and made.score.weight.mean().abs() < 0.1
    assert close(first(made.base_model(ids())), first(model.base_model(ids())))


def test_what_is_drawn_again_is_reported(
    library: Library,
    saved: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # whatever ran before has set
    saved(SEQUENCE)
    library.classes[SEQUENCE].from_pretrained(tmp_path, num_labels=42, ignore_mismatched_sizes=True)
    assert "score.weight" in caplog.text and "mismatch" in caplog.text.lower()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "auto", torch.float16])
def test_the_old_name_of_the_dtype_means_the_new(
    library: Library, saved: Callable[..., Any], tmp_path: Path, dtype: Any
) -> None:
    saved(CAUSAL)
    old = library.classes[CAUSAL].from_pretrained(tmp_path, torch_dtype=dtype)
    new = library.classes[CAUSAL].from_pretrained(tmp_path, dtype=dtype)
    for a, b in zip(old.parameters(), new.parameters(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@every_class
def test_a_model_can_be_made_without_memory(library: Library, kind: str) -> None:
    with torch.device("meta"):
        model = library.classes[kind](library.config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@every_class
def test_a_model_made_without_memory_can_be_filled(library: Library, kind: str) -> None:
    with torch.device("meta"):
        model = library.classes[kind](library.config()).eval()
    model.to_empty(device="cpu")
    model.init_weights()
    assert first(model(ids())).isfinite().all()


@every_class
def test_a_model_can_be_loaded_onto_the_device_of_a_context(
    library: Library, saved: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    saved(kind)
    with torch.device("cpu"):
        model = library.classes[kind].from_pretrained(tmp_path)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_loading_into_no_memory_is_a_runtime_error(
    library: Library, saved: Callable[..., Any], tmp_path: Path
) -> None:
    saved(BASE)
    with torch.device("meta"), refuses(RuntimeError):
        library.classes[BASE].from_pretrained(tmp_path)


def test_the_unembedding_has_its_old_name_on_disk(
    library: Library, saved: Callable[..., Any], tmp_path: Path
) -> None:
    model = saved(CAUSAL)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["embed_out.weight"], model.lm_head.weight)


def test_the_unembedding_may_have_its_new_name_on_disk(library: Library, tmp_path: Path) -> None:
    model = library.model(CAUSAL)
    model.save_pretrained(tmp_path, save_original_format=False)
    assert "lm_head.weight" in safetensors.torch.load_file(tmp_path / "model.safetensors")
    again = library.classes[CAUSAL].from_pretrained(tmp_path)
    assert close(again(ids()).logits, model(ids()).logits)


def test_a_saved_model_can_be_cut_into_pieces(library: Library, tmp_path: Path) -> None:
    model = library.model(CAUSAL)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = library.classes[CAUSAL].from_pretrained(tmp_path)
    assert close(again(ids()).logits, model(ids()).logits)


@every_class
def test_a_copy_is_a_model_of_its_own(library: Library, kind: str) -> None:
    model = library.model(kind)
    before = first(model(ids())).clone()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_input_embeddings().weight.zero_()
    assert torch.equal(first(model(ids())), before)


# --- the rotary embedding ---------------------------------------------------------------------

SCALED = {"default": {}, "linear": {"factor": 10.0}, "dynamic": {"factor": 10.0}}
SCALED["yarn"] = {"factor": 10.0}


def rotary(library: Library, kind: str, **values: Any) -> Any:
    """A base model with one scaling of its positions, made for 24 of them."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, **SCALED[kind]}
    return library.model(BASE, rope_parameters=rope, max_position_embeddings=24, **values)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_scaled_positions_say_something_else(library: Library, kind: str) -> None:
    plain, scaled = rotary(library, "default"), rotary(library, kind)
    short, long = ids(1, 10), ids(1, 36)
    alike = close(first(scaled(short)), first(plain(short)))
    assert alike is (kind == "dynamic")  # dynamic scaling waits for a long text
    assert not close(first(scaled(long)), first(plain(long)))


def test_linear_scaling_divides_positions(library: Library) -> None:
    plain, scaled = rotary(library, "default"), rotary(library, "linear")
    places = 10 * torch.arange(8)[None]
    said = first(scaled(ids(1, 8), position_ids=places))
    assert close(said, first(plain(ids(1, 8))), 1e-4)


def test_dynamic_scaling_forgets_a_long_text(library: Library) -> None:
    model = rotary(library, "dynamic")
    before = first(model(ids(1, 10)))
    model(ids(1, 36))
    assert close(first(model(ids(1, 10))), before)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_part_of_each_head_may_turn(library: Library, share: float) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}
    assert first(library.model(BASE, rope_parameters=rope)(ids(1, 10))).shape == (1, 10, 64)


@pytest.mark.parametrize("size", [12, 20])
def test_odd_parts_of_heads_are_rounded_up(library: Library, size: int) -> None:
    model = library.model(BASE, hidden_size=4 * size, rotary_pct=0.25)
    assert first(model(ids(1, 10))).shape == (1, 10, 4 * size)


# --- tracing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BASE, CAUSAL])
def test_a_model_can_be_exported(library: Library, kind: str) -> None:
    model = library.model(kind, use_cache=False)
    inputs = {"input_ids": ids(), "attention_mask": torch.ones(3, 7).long()}
    exported = torch.export.export(model, (), inputs, strict=False).module()
    assert close(exported(**inputs)[0], first(model(**inputs)), 1e-4)


@pytest.mark.parametrize("kind", [BASE, CAUSAL])
def test_a_model_can_be_used_after_it_was_exported(library: Library, kind: str) -> None:
    model = library.model(kind, use_cache=False)
    before = library.model(kind, use_cache=False)(ids())[0]
    torch.export.export(model, (), {"input_ids": ids(), "return_dict": False}, strict=False)
    assert torch.equal(torch.as_tensor(first(model(ids()))), before)


@every_head
def test_a_model_can_be_compiled_for_training(library: Library, kind: str) -> None:
    torch._dynamo.reset()
    model = library.model(kind, use_cache=False, classifier_dropout=0.0).train()
    plain = model(ids(), **labels_for(kind, 3, 7)).loss
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    loss = compiled(ids(), **labels_for(kind, 3, 7)).loss
    loss.backward()
    assert close(loss, plain) and all(p.grad is not None for p in model.parameters())


@every_class
def test_outputs_can_be_written_to_by_name(library: Library, kind: str) -> None:
    output = library.model(kind)(ids())
    name = next(iter(output.keys()))
    output[name] = torch.zeros(2)
    assert torch.equal(output[0], torch.zeros(2)) and torch.equal(output[name], output[0])


@every_class
def test_outputs_are_dictionaries(library: Library, kind: str) -> None:
    output = library.model(kind)(ids())
    assert isinstance(output, dict) and list(output) == list(output.keys())
    leaves, _ = torch.utils._pytree.tree_flatten(output)
    assert any(leaf is output[0] for leaf in leaves)


@every_class
def test_outputs_and_caches_are_of_transformers_classes(library: Library, kind: str) -> None:
    output = library.model(kind)(ids())
    named = getattr(transformers.modeling_outputs, type(output).__name__)
    assert isinstance(output, named) and isinstance(output, transformers.utils.ModelOutput)
    if "past_key_values" in output:
        assert isinstance(output["past_key_values"], transformers.Cache)
        assert isinstance(output["past_key_values"], transformers.DynamicCache)


def test_the_sizes_here_are_small(library: Library) -> None:
    assert library.model(CAUSAL).num_parameters() < 10**6 and SIZES["num_hidden_layers"] == 2
