"""transformers' Trainer around both libraries' models: the same log, the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs what `pip install -e '.[interop]'` brings")

import numpy as np
import torch
from oracle import same
from transformers import (
    DataCollatorForLanguageModeling,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from upstream.library import WITH_LOSS, Library, load

from interop.surroundings import examples, logged, model_of, trainer_of

TOLERANCE = 2e-5


def both() -> tuple[Library, Library]:
    return load("transformers"), load("neox_lab")


def assert_same_log(theirs: Any, ours: Any, name: str = "loss") -> None:
    expected = logged(theirs, name)
    assert expected
    np.testing.assert_allclose(logged(ours, name), expected, rtol=TOLERANCE, atol=TOLERANCE)


def assert_same_weights(ours: Any, theirs: Any) -> None:
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    for got, wanted in pairs:
        same(got.detach(), wanted.detach(), 1e-4)


@pytest.mark.parametrize("kind", WITH_LOSS)
@pytest.mark.parametrize("accumulated", [1, 3])
def test_losses_in_the_log_are_equal(kind: str, accumulated: int, tmp_path: Path) -> None:
    trainers = []
    for library in both():
        trainer = trainer_of(
            model_of(library, kind), tmp_path, kind, gradient_accumulation_steps=accumulated
        )
        trainer.train()
        trainers.append(trainer)
    theirs, ours = trainers
    assert_same_log(theirs, ours)
    assert_same_log(theirs, ours, "grad_norm")
    assert_same_weights(ours.model, theirs.model)


@pytest.mark.parametrize(
    "arguments",
    [
        {"label_smoothing_factor": 0.1},
        {"average_tokens_across_devices": False},
        {"include_num_input_tokens_seen": "all"},
        {"neftune_noise_alpha": 5.0},
        {"bf16": True},
        {"optim": "adamw_torch", "learning_rate": 1e-3},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_settings_of_the_trainer_have_the_same_effect(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    trainers = []
    for library in both():
        trainers.append(trainer_of(model_of(library), tmp_path, **arguments))
        trainers[-1].train()
    theirs, ours = trainers
    expected, got = logged(theirs), logged(ours)
    tolerance = 2e-2 if "bf16" in arguments else TOLERANCE
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    if "include_num_input_tokens_seen" in arguments:
        name = "num_input_tokens_seen"
        assert logged(ours, name) == logged(theirs, name) != []


@pytest.mark.parametrize("kind", WITH_LOSS)
def test_evaluation_and_prediction_are_equal(kind: str, tmp_path: Path) -> None:
    seen = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"seen": 1.0}

    results = []
    for library in both():
        trainer = trainer_of(model_of(library, kind), tmp_path, kind, compute_metrics=metrics)
        results.append((trainer.evaluate(), trainer.predict(examples(kind, count=5, seed=2))))
    (expected, theirs), (got, ours) = results
    assert got["eval_loss"] == pytest.approx(expected["eval_loss"], rel=TOLERANCE)
    assert got["eval_seen"] == 1.0
    assert type(ours.predictions) is type(theirs.predictions)
    sides = [p if isinstance(p, tuple) else (p,) for p in (ours.predictions, theirs.predictions)]
    for mine, wanted in zip(*sides, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours.label_ids, theirs.label_ids)
    assert set(ours.metrics) == set(theirs.metrics)
    assert len(seen) == 4


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    """Asked of ours alone: transformers 5.23 itself does not find its unembedding again.

    Its checkpoint holds ``embed_out``; loading it again logs ``lm_head.weight`` as missing.
    """
    trainer = trainer_of(
        model_of(load("neox_lab")),
        tmp_path,
        learning_rate=50.0,  # gets worse, so that the first checkpoint is the best
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    losses = logged(trainer, "eval_loss")
    assert min(losses[:-1]) < losses[-1]
    assert trainer.state.best_metric == pytest.approx(min(losses))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_a_checkpoint_can_be_read(library: Library, tied: bool, tmp_path: Path) -> None:
    model = model_of(library, tie_word_embeddings=tied)
    trainer = trainer_of(model, tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    again = type(model).from_pretrained(folder, config=model.config)
    assert_same_weights(again, model)


def test_a_checkpoint_is_a_model_of_its_own(library: Library, tmp_path: Path) -> None:
    model = model_of(library)
    trainer = trainer_of(model, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    assert (folder / "config.json").is_file()
    assert_same_weights(type(model).from_pretrained(folder), model)


def test_a_training_can_be_resumed(tmp_path: Path) -> None:
    """Asked of ours alone, for the same reason."""
    library = load("neox_lab")
    whole = trainer_of(model_of(library), tmp_path / "whole")
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 2}
    first = trainer_of(model_of(library), tmp_path / "parts", **saving)
    first.train()
    second = trainer_of(library.model(seed=1), tmp_path / "parts", **saving)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert logged(second) == pytest.approx(logged(whole), rel=1e-5)
    assert_same_weights(second.model, whole.model)


@pytest.mark.parametrize("settings", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_recomputing_changes_no_loss(
    library: Library, settings: dict[str, bool] | None, tmp_path: Path
) -> None:
    plain = trainer_of(model_of(library), tmp_path, max_steps=2)
    plain.train()
    model = model_of(library)
    recomputing = trainer_of(
        model,
        tmp_path,
        max_steps=2,
        activation_checkpointing=True,
        activation_checkpointing_kwargs=settings,
    )
    recomputing.train()
    assert model.is_gradient_checkpointing
    assert logged(recomputing) == pytest.approx(logged(plain), rel=1e-5)


class Sampler(TrainerCallback):
    """Writes a little after every step, as people do to watch a training."""

    def on_step_end(self, args: Any, state: Any, control: Any, **around: Any) -> None:
        around["model"].generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3)


def test_sampling_between_steps_changes_nothing(library: Library, tmp_path: Path) -> None:
    plain = trainer_of(model_of(library), tmp_path)
    plain.train()
    model = model_of(library)
    sampling = trainer_of(
        model, tmp_path, callbacks=[Sampler()], save_strategy="steps", save_steps=2
    )
    sampling.train()
    assert logged(sampling) == logged(plain)


def test_special_tokens_of_the_tokenizer_reach_the_model(
    library: Library, tokenizer: Any, tmp_path: Path
) -> None:
    model = model_of(library, vocab_size=len(tokenizer))
    trainer_of(model, tmp_path, max_steps=1, processing_class=tokenizer).train()
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_the_tokenizer_goes_with_the_checkpoint(
    library: Library, tokenizer: Any, tmp_path: Path
) -> None:
    model = model_of(library, vocab_size=len(tokenizer))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = trainer_of(
        model,
        tmp_path,
        max_steps=1,
        processing_class=tokenizer,
        data_collator=collator,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    again = library.GPTNeoXTokenizerFast.from_pretrained(tmp_path / "checkpoint-1")
    assert again("The quick fox").input_ids == tokenizer("The quick fox").input_ids


def test_predicting_with_generate(tmp_path: Path) -> None:
    predictions = []
    for library in both():
        model = model_of(library)
        arguments = Seq2SeqTrainingArguments(
            str(tmp_path),
            predict_with_generate=True,
            generation_max_length=12,
            per_device_eval_batch_size=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Seq2SeqTrainer(model, arguments)
        predictions.append(trainer.predict(examples(count=4)))
    theirs, ours = predictions
    np.testing.assert_array_equal(ours.predictions, theirs.predictions)
    assert ours.metrics["test_loss"] == pytest.approx(theirs.metrics["test_loss"], rel=TOLERANCE)
