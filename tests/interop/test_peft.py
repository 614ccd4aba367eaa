"""PEFT around both libraries' models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs what `pip install -e '.[interop]'` brings")

import peft
import torch
from oracle import same
from upstream.library import (
    ANSWER,
    CAUSAL,
    SEQUENCE,
    TOKEN,
    Library,
    ids,
    labels_for,
    load,
    refuses,
)

from interop.surroundings import logged, model_of, trainer_of

VIRTUAL = {"num_virtual_tokens": 3}
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", LORA),
    "lora everywhere": ("LoraConfig", LORA | {"target_modules": "all-linear"}),
    "dora": ("LoraConfig", LORA | {"use_dora": True}),
    "ia3": ("IA3Config", {}),
    "prompt tuning": ("PromptTuningConfig", VIRTUAL),
    "p-tuning": ("PromptEncoderConfig", VIRTUAL | {"encoder_hidden_size": 16}),
    "prefix tuning": ("PrefixTuningConfig", VIRTUAL),
}
MERGED = ("lora", "lora everywhere", "dora", "ia3")
KINDS = {CAUSAL: "CAUSAL_LM", SEQUENCE: "SEQ_CLS", TOKEN: "TOKEN_CLS", ANSWER: "QUESTION_ANS"}


def wrapped(library: Library, method: str, kind: str = CAUSAL) -> Any:
    """A PEFT model whose trained part depends on its own names and sizes alone."""
    name, settings = METHODS[method]
    config = getattr(peft, name)(task_type=KINDS[kind], **settings)
    model = peft.get_peft_model(model_of(library, kind), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.2 * drawn if method != "ia3" else 1 + 0.2 * drawn)
    return model


def both(method: str, kind: str = CAUSAL) -> tuple[Any, Any]:
    return wrapped(load("transformers"), method, kind), wrapped(load("neox_lab"), method, kind)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_are_equal(method: str) -> None:
    theirs, ours = both(method)
    inputs = ids(3, 7)
    mask = torch.ones_like(inputs)
    sides = []
    for model in (theirs, ours):
        output = model(input_ids=inputs, attention_mask=mask, labels=inputs)
        output.loss.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        sides.append((output, gradients))
    (expected, their_gradients), (got, our_gradients) = sides
    same(got.logits, expected.logits)
    same(got.loss, expected.loss)
    for mine, wanted in zip(our_gradients, their_gradients, strict=True):
        same(mine, wanted, 1e-4)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_text_is_written(method: str) -> None:
    theirs, ours = both(method)
    inputs = ids(2, 5)
    arguments = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    arguments["attention_mask"] = torch.ones_like(inputs)
    expected = theirs.generate(input_ids=inputs, **arguments)
    assert torch.equal(ours.generate(input_ids=inputs, **arguments), expected)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_can_be_saved_and_read(library: Library, method: str, tmp_path: Path) -> None:
    model = wrapped(library, method)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(model_of(library), tmp_path).eval()
    inputs = ids(2, 5)
    same(again(input_ids=inputs).logits, model(input_ids=inputs).logits)


@pytest.mark.parametrize("method", MERGED)
def test_an_adapter_can_be_merged(library: Library, method: str, tmp_path: Path) -> None:
    model = wrapped(library, method)
    inputs = ids(2, 5)
    expected = model(input_ids=inputs).logits
    merged = model.merge_and_unload()
    same(merged(inputs).logits, expected, 1e-4)
    merged.save_pretrained(tmp_path)
    same(type(merged).from_pretrained(tmp_path)(inputs).logits, expected, 1e-4)


@pytest.mark.parametrize("method", MERGED)
def test_an_adapter_can_be_switched_off(library: Library, method: str) -> None:
    model = wrapped(library, method)
    inputs = ids(2, 5)
    with model.disable_adapter():
        same(model(input_ids=inputs).logits, model_of(library)(inputs).logits)


# PEFT keeps the whole head beside the adapter, and can do so to no head that has one itself; it
# counts labels of learnt tokens. Both libraries' models are refused alike.
NOT_PEFT = [
    *((kind, "lora everywhere") for kind in (TOKEN, ANSWER)),
    *((TOKEN, method) for method in ("prompt tuning", "p-tuning")),
]
TASKS = [(kind, m) for kind in KINDS for m in METHODS if (kind, m) not in NOT_PEFT]


def answers(model: Any, kind: str) -> list[torch.Tensor]:
    """Loss and logits of every task."""
    inputs = ids(3, 7)
    arguments = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}
    output = model(**arguments, **labels_for(kind, 3, 7))
    return [x for x in output.to_tuple() if isinstance(x, torch.Tensor) and x.is_floating_point()]


@pytest.mark.parametrize(("kind", "method"), TASKS)
def test_adapters_of_one_library_are_read_by_the_other(
    kind: str, method: str, tmp_path: Path
) -> None:
    theirs, ours = both(method, kind)
    expected = answers(theirs, kind)
    for got, wanted in zip(answers(ours, kind), expected, strict=True):
        same(got, wanted)
    for model, other in ((theirs, "neox_lab"), (ours, "transformers")):
        model.save_pretrained(tmp_path / other)
        base = model_of(load(other), kind)
        again = peft.PeftModel.from_pretrained(base, tmp_path / other).eval()
        for got, wanted in zip(answers(again, kind), expected, strict=True):
            same(got, wanted)


@pytest.mark.parametrize(("kind", "method"), NOT_PEFT)
def test_what_peft_cannot_do_it_cannot_do_with_either(
    library: Library, kind: str, method: str
) -> None:
    with refuses((TypeError, ValueError)):
        answers(wrapped(library, method, kind), kind)


@pytest.mark.parametrize("source", ["transformers", "neox_lab"])
def test_adapters_inside_models_are_read_by_the_other(source: str, tmp_path: Path) -> None:
    model = model_of(load(source))
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(task_type="CAUSAL_LM", **LORA), adapter_name="one")
    model.save_pretrained(tmp_path)
    other = model_of(load("neox_lab" if source == "transformers" else "transformers"))
    other.load_adapter(str(tmp_path), adapter_name="one")
    assert other.active_adapters() == ["one"]
    same(other(ids(2, 5)).logits, model(ids(2, 5)).logits)
    outside = peft.PeftModel.from_pretrained(model_of(load("neox_lab")), tmp_path).eval()
    same(outside(input_ids=ids(2, 5)).logits, model(ids(2, 5)).logits)


@pytest.mark.parametrize("method", ["lora", "prompt tuning"])
def test_the_trainer_saves_and_resumes_adapters(
    library: Library, method: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "label_names": None}
    whole = trainer_of(wrapped(library, method), tmp_path, **arguments)
    whole.train()
    assert (tmp_path / "checkpoint-2" / "adapter_config.json").is_file()
    again = trainer_of(wrapped(library, method), tmp_path, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(again) == pytest.approx(logged(whole), rel=1e-5)


def test_a_frozen_model_can_recompute(library: Library, tmp_path: Path) -> None:
    plain = trainer_of(wrapped(library, "lora"), tmp_path)
    plain.train()
    recomputing = trainer_of(wrapped(library, "lora"), tmp_path, activation_checkpointing=True)
    recomputing.train()
    assert logged(recomputing) == pytest.approx(logged(plain), rel=1e-5)


def test_adapters_can_be_added_to_the_model_itself(library: Library, tmp_path: Path) -> None:
    model, inputs = model_of(library), ids(2, 5)
    before = model(inputs).logits.detach()
    config = peft.LoraConfig(task_type="CAUSAL_LM", **LORA)
    torch.manual_seed(0)
    model.add_adapter(config, adapter_name="one")
    model.add_adapter(config, adapter_name="two")
    assert model.active_adapters() == ["two"]
    model.set_adapter("one")
    assert model.active_adapters() == ["one"]
    one = model(inputs).logits.detach()
    assert float((one - before).abs().max()) > 1e-3
    model.disable_adapters()
    same(model(inputs).logits, before)
    model.enable_adapters()
    same(model(inputs).logits, one)
    tensors = model.get_adapter_state_dict("one")
    assert tensors and all("lora_" in name for name in tensors)

    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    again = model_of(library)
    again.load_adapter(str(tmp_path))
    same(again(inputs).logits, one)
    model.delete_adapter("one")
    model.set_adapter("two")
    assert model.active_adapters() == ["two"]


def test_what_adapters_refuse(library: Library) -> None:
    model = model_of(library)
    with refuses():
        model.set_adapter("default")
    with refuses():
        model.disable_adapters()
    model.add_adapter(peft.LoraConfig(**LORA))
    with refuses():
        model.add_adapter(peft.LoraConfig(**LORA))
    with refuses():
        model.add_adapter(peft.PromptTuningConfig(**VIRTUAL), adapter_name="prompt")
