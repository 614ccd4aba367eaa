"""The five classes: losses and their edge cases, outputs, small services, and errors in words."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from oracle import CLASSES, SIZES, padding_masks, pair, randomize, same, tokens
from torch import Tensor, nn

import neox_lab as nl
from neox_lab.errors import ConfigError, InputError
from neox_lab.model.key_value_cache import KeyValueCache

PAD = SIZES["pad_token_id"]
HEADS = CLASSES[1:]
SMALL = {"num_hidden_layers": 2}


def ours_only(name: str, **overrides: Any) -> Any:
    """Our model with large weights, without an oracle."""
    model = getattr(nl, name)(nl.GPTNeoXConfig(**SIZES | SMALL | overrides)).eval()
    randomize(model)
    return model


def compare(theirs: Any, ours: Any, *args: Any, **arguments: Any) -> Any:
    """Run both; every logit agrees to 1e-5 and the loss to 1e-6. Returns our output."""
    with torch.no_grad():
        expected, got = theirs(*args, **arguments), ours(*args, **arguments)
    for name in ("logits", "start_logits", "end_logits", "last_hidden_state"):
        assert (name in got) == (name in expected)
        if name in got:
            assert got[name].shape == expected[name].shape
            same(got[name], expected[name])
    assert (got.get("loss") is None) == (expected.get("loss") is None)
    if got.get("loss") is not None:
        assert got.loss.dtype == expected.loss.dtype
        torch.testing.assert_close(got.loss, expected.loss, rtol=1e-6, atol=1e-6, equal_nan=True)
    return got


# ---------------------------------------------------------------------------- language modelling


@pytest.mark.parametrize("mask_name", padding_masks())
def test_next_token_loss(mask_name: str) -> None:
    theirs, ours = pair(**SMALL)
    ids, mask = tokens(), padding_masks()[mask_name]
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    compare(theirs, ours, ids, attention_mask=mask, labels=labels)


def test_next_token_loss_ignores_minus_100() -> None:
    theirs, ours = pair(**SMALL)
    labels = tokens().clone()
    labels[:, ::2] = -100
    some = compare(theirs, ours, tokens(), labels=labels).loss
    assert not torch.equal(some, compare(theirs, ours, tokens(), labels=tokens()).loss)
    labels[:] = -100
    assert compare(theirs, ours, tokens(), labels=labels).loss.isnan()


@pytest.mark.parametrize("count", [7, torch.tensor(50)], ids=["int", "tensor"])
def test_next_token_loss_divided_by_a_given_count(count: int | Tensor) -> None:
    theirs, ours = pair(**SMALL)
    compare(theirs, ours, tokens(), labels=tokens(), num_items_in_batch=count)


def test_shift_labels_are_taken_as_they_are() -> None:
    theirs, ours = pair(**SMALL)
    moved = tokens(seed=4)
    given = compare(theirs, ours, tokens(), labels=tokens(), shift_labels=moved).loss
    with torch.no_grad():
        assert torch.equal(ours(tokens(), shift_labels=moved).loss, given)


def test_next_token_loss_is_float32_in_half_precision() -> None:
    ours = ours_only("GPTNeoXForCausalLM").bfloat16()
    output = ours(tokens(), labels=tokens())
    assert (output.logits.dtype, output.loss.dtype) == (torch.bfloat16, torch.float32)


def test_labels_and_logits_to_keep_contradict_each_other() -> None:
    theirs, ours = pair(**SMALL)
    with pytest.raises(ValueError):  # noqa: PT011 (transformers' words are its own)
        theirs(tokens(), labels=tokens(), logits_to_keep=3)
    with pytest.raises(InputError, match="logits_to_keep"):
        ours(tokens(), labels=tokens(), logits_to_keep=3)
    with pytest.raises(InputError, match=r"\[3, 5\]"):
        ours(tokens(), labels=tokens()[:, :5])


# ----------------------------------------------------------------------- sequence classification

ROWS = torch.tensor(
    [
        [5, 6, 7, PAD, PAD],  # padded on the right: read at 2
        [PAD, PAD, 5, 6, 7],  # on the left: 4
        [5, PAD, 6, PAD, PAD],  # inside: 2
        [PAD, PAD, PAD, PAD, PAD],  # nothing but padding: 0
        [5, 6, 7, 8, 9],  # none: 4
    ]
)
READ_AT = [2, 4, 2, 0, 4]


def test_each_text_is_read_at_its_last_token() -> None:
    theirs, ours = pair("GPTNeoXForSequenceClassification", num_labels=3, **SMALL)
    output = compare(theirs, ours, ROWS, attention_mask=(ROWS != PAD).long())
    assert output.logits.shape == (5, 3)
    kept = []
    with ours.hooks(fwd_hooks=[("score.hook_out", lambda t, hook: kept.append(t.clone()))]):
        ours(ROWS, attention_mask=(ROWS != PAD).long())
    for row, position in enumerate(READ_AT):
        same(output.logits[row], kept[0][row, position])
    # The attention mask does not say where to read; only the ids do.
    compare(theirs, ours, ROWS, attention_mask=torch.ones_like(ROWS))
    compare(theirs, ours, ROWS)


def test_without_a_padding_token_only_one_text_at_a_time() -> None:
    theirs, ours = pair("GPTNeoXForSequenceClassification", pad_token_id=None, **SMALL)
    compare(theirs, ours, ROWS[:1])
    compare(theirs, ours, inputs_embeds=torch.randn(1, 5, 64))
    for arguments in ({"input_ids": ROWS}, {"inputs_embeds": torch.randn(2, 5, 64)}):
        with pytest.raises(ValueError, match="Cannot handle batch sizes > 1"):
            theirs(**arguments)
        with pytest.raises(InputError, match="Cannot handle batch sizes > 1"):
            ours(**arguments)


def test_vectors_are_read_at_the_last_position_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs, ours = pair("GPTNeoXForSequenceClassification", **SMALL)
    compare(theirs, ours, inputs_embeds=torch.randn(3, 5, 64))
    assert "last position" in caplog.text


INTEGERS = (torch.int32, torch.int64)
SEQUENCE_LABELS: dict[str, tuple[int, Tensor, str]] = {
    "one number": (1, torch.tensor([0.5, -1.0, 2.0]), "regression"),
    "one number, a column": (1, torch.tensor([[0.5], [-1.0], [2.0]]), "regression"),
    "one of several": (4, torch.tensor([0, 3, 1]), "single_label_classification"),
    "one of several, some ignored": (
        4,
        torch.tensor([-100, 3, -100]),
        "single_label_classification",
    ),
    "all ignored": (4, torch.tensor([-100] * 3), "single_label_classification"),
    "several at once": (4, torch.eye(4)[:3] + torch.eye(4)[1:], "multi_label_classification"),
}


@pytest.mark.parametrize("stated", [False, True], ids=["inferred", "stated"])
@pytest.mark.parametrize("case", SEQUENCE_LABELS)
def test_sequence_losses(case: str, stated: bool) -> None:
    labels, targets, problem = SEQUENCE_LABELS[case]
    options = {"problem_type": problem} if stated else {}
    theirs, ours = pair("GPTNeoXForSequenceClassification", num_labels=labels, **options, **SMALL)
    loss = compare(theirs, ours, tokens(), labels=targets).loss
    assert loss.isnan() == (case == "all ignored")
    assert ours.config.problem_type == theirs.config.problem_type == problem


def test_int32_classes() -> None:
    """Transformers takes them for classes too, but then hands them to a loss that wants int64."""
    ours = ours_only("GPTNeoXForSequenceClassification", num_labels=4)
    losses = [ours(tokens(), labels=torch.tensor([0, 3, 1], dtype=d)).loss for d in INTEGERS]
    assert torch.equal(*losses)


def test_regression_with_several_numbers() -> None:
    theirs, ours = pair(
        "GPTNeoXForSequenceClassification", num_labels=3, problem_type="regression", **SMALL
    )
    compare(theirs, ours, tokens(), labels=torch.randn(3, 3))


def test_regression_of_a_single_text() -> None:
    theirs, ours = pair("GPTNeoXForSequenceClassification", num_labels=1, **SMALL)
    compare(theirs, ours, tokens(1), labels=torch.tensor([0.7]))


def test_one_label_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_labels"):
        nl.GPTNeoXConfig(num_labels=1, problem_type="single_label_classification")


def test_sequence_loss_stays_in_the_dtype_of_the_model() -> None:
    ours = ours_only("GPTNeoXForSequenceClassification", num_labels=3).bfloat16()
    assert ours(tokens(), labels=torch.tensor([0, 1, 2])).loss.dtype == torch.bfloat16


# --------------------------------------------------------------------------- tagging, answering


def test_token_loss() -> None:
    theirs, ours = pair("GPTNeoXForTokenClassification", num_labels=5, **SMALL)
    labels = tokens() % 5
    everything = compare(theirs, ours, tokens(), labels=labels).loss
    labels[0, :7] = -100
    assert compare(theirs, ours, tokens(), labels=labels).loss != everything
    assert compare(theirs, ours, tokens(), labels=torch.full_like(labels, -100)).loss.isnan()


def test_tagger_dropout_is_the_configured_one() -> None:
    ours = ours_only("GPTNeoXForTokenClassification", classifier_dropout=0.4)
    assert ours.dropout.p == 0.4
    assert torch.equal(ours(tokens()).logits, ours(tokens()).logits)
    assert not torch.equal(ours.train()(tokens()).logits, ours(tokens()).logits)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ([0, 3, 11], [2, 3, 11]),
        ([[0], [3], [11]], [[2], [3], [11]]),
        ([0, 12, 99], [2, 3, 11]),  # outside the text: ignored
        ([-5, 3, 4], [2, -1, 6]),  # before the text: position 0
        ([12, 12, 12], [2, 3, 11]),  # nothing left on one side: NaN
    ],
    ids=["inside", "columns", "beyond", "negative", "all beyond"],
)
def test_span_loss(start: Any, end: Any) -> None:
    theirs, ours = pair("GPTNeoXForQuestionAnswering", **SMALL)
    positions = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    before = {name: tensor.clone() for name, tensor in positions.items()}
    output = compare(theirs, ours, tokens(), **positions)
    assert output.loss.isnan() == (start == [12, 12, 12])
    assert all(torch.equal(before[name], positions[name]) for name in positions)
    assert output.start_logits.is_contiguous()


def test_span_loss_needs_both_ends() -> None:
    theirs, ours = pair("GPTNeoXForQuestionAnswering", **SMALL)
    assert compare(theirs, ours, tokens(), start_positions=torch.tensor([1, 2, 3])).loss is None
    assert compare(theirs, ours, tokens(), end_positions=torch.tensor([1, 2, 3])).loss is None


def test_answers_have_two_ends_whatever_the_labels() -> None:
    ours = ours_only("GPTNeoXForQuestionAnswering", num_labels=7)
    assert ours.qa_outputs.weight.shape == (2, 64)


@pytest.mark.parametrize("name", ["GPTNeoXForTokenClassification", "GPTNeoXForQuestionAnswering"])
def test_token_types_are_accepted_and_unused(name: str) -> None:
    theirs, ours = pair(name, **SMALL)
    compare(theirs, ours, tokens(), token_type_ids=torch.ones(3, 12, dtype=torch.long))


# ------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_an_output_reads_in_all_four_ways(name: str) -> None:
    theirs, ours = pair(name, **SMALL)
    extras = {"output_hidden_states": True, "output_attentions": True}
    output, expected = ours(tokens(), **extras), theirs(tokens(), **extras)
    assert type(output).__name__ == type(expected).__name__
    assert list(output.keys()) == list(expected.keys()) == list(output)
    assert len(output) == len(output.values()) == len(output.to_tuple())
    for index, (key, value) in enumerate(output.items()):
        assert output[key] is getattr(output, key) is output[index] is output.get(key) is value
        assert key in output
    assert output[:2] == output.to_tuple()[:2]
    assert "loss" not in output
    assert output.get("loss", "none") == "none"
    with pytest.raises(KeyError, match="hidden_states"):
        output["loss"]
    as_tuple = ours(tokens(), return_dict=False, **extras)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(theirs(tokens(), return_dict=False, **extras)) == len(output)
    ours.config.return_dict = False
    assert isinstance(ours(tokens()), tuple)
    assert not isinstance(ours(tokens(), return_dict=True), tuple)


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_hidden_states_and_attentions(name: str) -> None:
    theirs, ours = pair(name)
    extras = {"output_hidden_states": True, "output_attentions": True}
    arguments = {"attention_mask": padding_masks()["left"], **extras}
    output, expected = ours(tokens(), **arguments), theirs(tokens(), **arguments)
    assert (len(output.hidden_states), len(output.attentions)) == (4, 3)
    for part in ("hidden_states", "attentions"):
        for got, wanted in zip(output[part], expected[part], strict=True):
            same(got, wanted)
    assert torch.equal(output.hidden_states[0], ours.get_input_embeddings()(tokens()))
    if name == "GPTNeoXModel":
        assert output.hidden_states[-1] is output.last_hidden_state
    plain = ours(tokens())
    assert plain.hidden_states is None
    assert plain.attentions is None


@torch.no_grad()
def test_the_configuration_can_ask_for_extras() -> None:
    ours = ours_only("GPTNeoXForCausalLM", output_hidden_states=True, output_attentions=True)
    output = ours(tokens())
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
    quiet = ours(tokens(), output_hidden_states=False, output_attentions=False)
    assert tuple(quiet) == ("logits", "past_key_values")


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_starting_and_stopping_on_every_class(name: str) -> None:
    ours = ours_only(name, num_hidden_layers=3)
    full = ours(tokens(), output_hidden_states=True)
    stopped = ours(tokens(), stop_at_layer=2, output_hidden_states=True)
    assert type(stopped).__name__ == "BaseModelOutputWithPast"
    assert torch.equal(stopped.last_hidden_state, full.hidden_states[2])
    assert len(stopped.hidden_states) == 3
    resumed = ours(inputs_embeds=stopped.last_hidden_state, start_at_layer=2)
    for key in ("logits", "start_logits", "end_logits", "last_hidden_state"):
        if key in full and name != "GPTNeoXForSequenceClassification":
            assert torch.equal(resumed[key], full[key])
    with pytest.raises(InputError, match="residual stream"):
        ours(tokens(), start_at_layer=1)


# ------------------------------------------------------------------------------- small services

HEAD_KEYS = {
    "GPTNeoXModel": {},
    "GPTNeoXForCausalLM": {"embed_out.weight": (211, 64)},
    "GPTNeoXForSequenceClassification": {"score.weight": (2, 64)},
    "GPTNeoXForTokenClassification": {"classifier.weight": (2, 64), "classifier.bias": (2,)},
    "GPTNeoXForQuestionAnswering": {"qa_outputs.weight": (2, 64), "qa_outputs.bias": (2,)},
}


def expected_keys(name: str, layers: int, attention_bias: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes as published checkpoints have them."""
    keys: dict[str, tuple[int, ...]] = {"embed_in.weight": (211, 64)}
    for i in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            keys |= {f"layers.{i}.{norm}.weight": (64,), f"layers.{i}.{norm}.bias": (64,)}
        for path, rows, columns in (
            ("attention.query_key_value", 192, 64),
            ("attention.dense", 64, 64),
            ("mlp.dense_h_to_4h", 96, 64),
            ("mlp.dense_4h_to_h", 64, 96),
        ):
            keys[f"layers.{i}.{path}.weight"] = (rows, columns)
            if attention_bias or path.startswith("mlp"):
                keys[f"layers.{i}.{path}.bias"] = (rows,)
    keys |= {"final_layer_norm.weight": (64,), "final_layer_norm.bias": (64,)}
    prefix = "" if name == "GPTNeoXModel" else "gpt_neox."
    return {prefix + key: shape for key, shape in keys.items()} | HEAD_KEYS[name]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CLASSES)
def test_state_dict_has_the_published_keys(name: str, bias: bool) -> None:
    ours = ours_only(name, attention_bias=bias)
    shapes = {key: tuple(tensor.shape) for key, tensor in ours.state_dict().items()}
    assert shapes == expected_keys(name, layers=2, attention_bias=bias)
    assert not list(ours.buffers())


def test_published_module_paths_exist() -> None:
    """Paths that adapters and other libraries address."""
    ours = ours_only("GPTNeoXForCausalLM")
    for path in (
        "gpt_neox.emb_dropout",
        "gpt_neox.layers.0.post_attention_dropout",
        "gpt_neox.layers.0.post_mlp_dropout",
        "gpt_neox.layers.1.attention.query_key_value",
        "gpt_neox.layers.1.mlp.dense_4h_to_h",
        "embed_out",
    ):
        assert isinstance(ours.get_submodule(path), nn.Module)
    assert ours.lm_head is ours.embed_out
    assert ours.base_model is ours.backbone is ours.gpt_neox
    assert ours.base_model_prefix == "gpt_neox"
    assert ours.main_input_name == "input_ids"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", CLASSES)
def test_num_parameters(name: str, tied: bool) -> None:
    theirs, ours = pair(name, tie_word_embeddings=tied, **SMALL)
    for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**options) == theirs.num_parameters(**options), options
    ours.requires_grad_(False)
    assert ours.num_parameters(only_trainable=True) == 0
    assert ours.get_memory_footprint() == 4 * ours.num_parameters()
    assert ours.half().get_memory_footprint() == 2 * ours.num_parameters()
    assert ours.dtype == torch.float16
    assert ours.device == torch.device("cpu")


def test_pythia_70m_has_the_published_size() -> None:
    config = nl.GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
    )
    with torch.device("meta"):
        model = nl.GPTNeoXForCausalLM(config)
    assert model.num_parameters() == 70_426_624


def test_fresh_weights_are_drawn_as_configured() -> None:
    config = nl.GPTNeoXConfig(**SIZES, initializer_range=0.5)
    ours = nl.GPTNeoXForTokenClassification(config)
    block = ours.gpt_neox.layers[1]
    for weight in (block.mlp.dense_h_to_4h.weight, ours.gpt_neox.embed_in.weight):
        assert weight.std().item() == pytest.approx(0.5, rel=0.1)
        assert weight.mean().abs() < 0.05
    assert not block.attention.dense.bias.any()
    assert (block.input_layernorm.weight == 1).all()


def test_get_and_set_embeddings() -> None:
    ours = ours_only("GPTNeoXForCausalLM")
    assert ours.get_input_embeddings() is ours.gpt_neox.embed_in
    assert ours.get_output_embeddings() is ours.embed_out
    assert ours_only("GPTNeoXModel").get_output_embeddings() is None
    embedding, unembedding = nn.Embedding(50, 64), nn.Linear(64, 50, bias=False)
    ours.set_input_embeddings(embedding)
    ours.set_output_embeddings(unembedding)
    assert ours.gpt_neox.embed_in is embedding
    assert ours(tokens(vocab=50)).logits.shape == (3, 12, 50)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_resize_token_embeddings(tied: bool) -> None:
    ours = ours_only("GPTNeoXForCausalLM", tie_word_embeddings=tied)
    before = ours(tokens()).logits
    weight = ours.embed_out.weight.clone()

    returned = ours.resize_token_embeddings(300, pad_to_multiple_of=64)
    assert returned is ours.get_input_embeddings()
    assert returned.num_embeddings == ours.config.vocab_size == 320
    assert ours.gpt_neox.config.vocab_size == ours.embed_out.out_features == 320
    assert (ours.embed_out.weight is returned.weight) == tied
    after = ours(tokens()).logits
    same(after[..., :211], before)
    new = ours.embed_out.weight[211:]
    same(new, weight.mean(0).expand_as(new), tolerance=1e-3)
    assert new.std(0).min() > 0, "new rows must differ from one another"

    ours.resize_token_embeddings(400, mean_resizing=False)
    drawn = ours.get_input_embeddings().weight[320:]
    assert drawn.std().item() == pytest.approx(0.02, rel=0.1)

    ours.resize_token_embeddings(100)
    assert torch.equal(ours.embed_out.weight, weight[:100])
    small = tokens(vocab=100)
    assert ours(small).logits.shape == (3, 12, 100)
    with pytest.raises(ConfigError, match="at least 1"):
        ours.resize_token_embeddings(0)


def test_resized_weights_still_learn() -> None:
    ours = ours_only("GPTNeoXForCausalLM")
    ours.resize_token_embeddings(250)
    ours(tokens(vocab=250), labels=tokens(vocab=250)).loss.backward()
    assert ours.get_input_embeddings().weight.grad.shape == (250, 64)
    ours.gpt_neox.embed_in.weight.requires_grad_(False)
    ours.resize_token_embeddings(260)
    assert not ours.gpt_neox.embed_in.weight.requires_grad, "frozen embeddings must stay frozen"


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_copies_are_equal_and_independent(name: str, how: Any) -> None:
    ours = ours_only(name, tie_word_embeddings=True)
    output = ours(tokens())[0]
    with ours.hooks(fwd_hooks=[("hook_embed", lambda tensor, hook: tensor * 0)]):
        other = how(ours)
        assert torch.equal(other(tokens())[0], output), "hooks must stay with the original"
        assert not torch.equal(ours(tokens())[0], output)
    seen: list[str] = []
    with other.hooks(fwd_hooks=[("hook_embed", lambda tensor, hook: seen.append(hook.name))]):
        other(tokens())
        other.backbone(tokens())
        ours(tokens())
    assert seen == ["hook_embed"] * 2
    if name == "GPTNeoXForCausalLM":
        assert other.embed_out.weight is other.gpt_neox.embed_in.weight
    other.get_input_embeddings().weight.zero_()
    assert torch.equal(ours(tokens())[0], output)


@pytest.mark.parametrize("name", CLASSES)
def test_a_frozen_model_passes_gradients_to_its_inputs(name: str) -> None:
    ours = ours_only(name).requires_grad_(False)
    ours.enable_input_require_grads()
    seen: list[Tensor] = []
    keep = [("hook_embed", lambda gradient, hook: seen.append(gradient))]
    with ours.hooks(bwd_hooks=keep):
        ours(tokens())[0].sum().backward()
    assert seen[0].abs().max() > 0
    assert ours.can_generate() == (name == "GPTNeoXForCausalLM")


# -------------------------------------------------------------------------------- bad arguments

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"input_ids": tokens(), "inputs_embeds": torch.zeros(3, 12, 64)}, "got both"),
    "neither": ({}, "got neither"),
    "neither, midway": ({"start_at_layer": 1}, "got neither"),
    "one axis": ({"input_ids": tokens()[0]}, r"shape \[12\]; .*input_ids\[None\]"),
    "three axes": ({"input_ids": tokens()[None]}, r"expected whole numbers \[batch, pos\]"),
    "fractions": ({"input_ids": tokens().float()}, "float32"),
    "id above the vocabulary": (
        {"input_ids": torch.tensor([[4, 500, 211]])},
        r"from 4 to 500, .* vocab_size, which is 211\. .*resize_token_embeddings\(len",
    ),
    "negative id": ({"input_ids": torch.tensor([[-1, 5]])}, "from -1 to 5, .* at least 0"),
    "vectors without positions": ({"inputs_embeds": torch.zeros(3, 64)}, r"\[batch, pos, 64\]"),
    "narrow vectors": ({"inputs_embeds": torch.zeros(3, 5, 63)}, r"\[3, 5, 63\]"),
    "mask of other texts": (
        {"input_ids": tokens(), "attention_mask": torch.ones(2, 12)},
        r"shape \[2, 12\]; expected \[batch, pos\] = \[3, 12\]",
    ),
    "mask of another batch": (
        {"input_ids": tokens(), "attention_mask": torch.ones(2, 12)},
        r"shape \[2, 12\]",
    ),
    "mask with three axes": (
        {"input_ids": tokens(), "attention_mask": torch.ones(3, 12, 12)},
        "or a 4-D mask",
    ),
    "4-D mask too small": (
        {"input_ids": tokens(), "attention_mask": torch.ones(3, 1, 12, 11)},
        r"= \[3, 1, 12, 12\]",
    ),
    "4-D mask of another batch": (
        {"input_ids": tokens(), "attention_mask": torch.ones(2, 1, 12, 12)},
        r"shape \[2, 1, 12, 12\]",
    ),
    "positions without rows": (
        {"input_ids": tokens(), "position_ids": torch.arange(12)},
        r"shape \[12\]; expected \[3, 12\] or \[1, 12\]",
    ),
    "positions of another batch": (
        {"input_ids": tokens(), "position_ids": torch.arange(12).expand(2, 12)},
        r"shape \[2, 12\]; expected \[3, 12\]",
    ),
    "too few positions": (
        {"input_ids": tokens(), "position_ids": torch.arange(11)[None]},
        r"shape \[1, 11\]",
    ),
    "no such layer": ({"input_ids": tokens(), "stop_at_layer": 3}, "2 layers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained(case: str) -> None:
    arguments, words = BAD[case]
    for name in CLASSES:
        with pytest.raises(InputError, match=words):
            ours_only(name)(**arguments)


def test_bad_caches_are_explained() -> None:
    ours = ours_only("GPTNeoXForCausalLM")
    cache = ours(tokens()).past_key_values
    legacy = tuple(tuple(layer) for layer in cache)
    with pytest.raises(InputError, match="is a tuple; expected the KeyValueCache"):
        ours(tokens()[:, :1], past_key_values=legacy)
    with pytest.raises(InputError, match="holds a batch of 3, the new tokens are a batch of 2"):
        ours(tokens(2, 1), past_key_values=cache.copy())
    with pytest.raises(InputError, match="model with 5 layers; this one has 2"):
        ours(tokens(), past_key_values=KeyValueCache(5))
    mask = torch.ones(2, 13)
    with pytest.raises(InputError, match=r"= \[3, 13\], .*\(12 of them cached\)"):
        ours(tokens(3, 1), past_key_values=cache.copy(), attention_mask=mask)
    ours.gradient_checkpointing_enable()
    with pytest.raises(InputError, match="checkpointing"):
        ours.train()(tokens()[:, :1], past_key_values=cache)


@pytest.mark.parametrize("keep", [torch.tensor([0.5]), torch.zeros(2, 2), torch.zeros(1, 1, 1)])
def test_bad_logits_to_keep_is_explained(keep: Tensor) -> None:
    with pytest.raises(InputError, match="logits_to_keep has shape"):
        ours_only("GPTNeoXForCausalLM")(tokens(), logits_to_keep=keep)


@pytest.mark.parametrize("shape", [(11,), (3, 11), (1, 12), (12, 1)])
def test_a_mask_of_logits_to_keep_has_the_shape_of_the_tokens(shape: tuple[int, ...]) -> None:
    model = ours_only("GPTNeoXForCausalLM")
    with pytest.raises(InputError, match="logits_to_keep is a mask"):
        model(tokens(), logits_to_keep=torch.ones(shape, dtype=torch.bool))
    mask = torch.arange(12) % 3 == 1
    same(model(tokens(), logits_to_keep=mask).logits, model(tokens()).logits[:, mask])


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="output_atentions"):
        ours_only("GPTNeoXForCausalLM")(tokens(), output_atentions=True)


def test_a_text_without_tokens_has_no_logits() -> None:
    ours = ours_only("GPTNeoXForCausalLM")
    assert ours(torch.empty(2, 0, dtype=torch.long)).logits.shape == (2, 0, 211)
    assert ours(torch.empty(0, 4, dtype=torch.long)).logits.shape == (0, 4, 211)
