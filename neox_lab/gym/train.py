"""Train the built-in model: ``python -m neox_lab.gym.train --text FILE [FILE...] --out DIR``.

Read ``train`` for the whole story: train a tokenizer on the small world and on English text, make
contexts of both and of repeated tokens, and let ``tasks.training.fit`` do the rest. The same text,
seed, versions and number of threads give the same weights, bit for bit; a run that was stopped goes
on where it was. ``training.json`` beside the weights records it all.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import logging
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.gym import corpus
from neox_lab.gym.evaluation import evaluate, repeat_loss
from neox_lab.tasks.batches import padded
from neox_lab.tasks.language import measure
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import TrainingResult, fit
from neox_lab.tokenizer import GPTNeoXTokenizerFast

_log = logging.getLogger("neox_lab")
MEASURED = 20_000  # characters of held-out English that are read during training


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every number that shapes the result.

    Attributes:
        vocab_size: tokens of the tokenizer, special ones included.
        layers, heads, d_model, d_mlp: shape of the model.
        rotary: share of each head's dimensions that tell positions.
        positions: most positions that the configuration promises.
        spread: standard deviation of the initial weights.
        context: tokens in one training context.
        batch: contexts in one step.
        steps: optimiser steps.
        warm_up: share of the steps in which the learning rate rises from 0 to its peak.
        learning_rate: the peak; a half cosine then falls to 0.
        weight_decay: on matrices only, not on biases and layer norms.
        english: share of contexts that are passages of English.
        repeated: share of contexts that repeat unrelated tokens; the rest is the small world.
        held_out: share of the English text, at its end, that is never trained on.
        snapshots: steps after which the weights are kept.
        seed: of initial weights and contexts.
    """

    vocab_size: int = 2048
    layers: int = 4
    heads: int = 4
    d_model: int = 128
    d_mlp: int = 256
    rotary: float = 0.5
    positions: int = 512
    spread: float = 0.06
    context: int = 256
    batch: int = 8
    steps: int = 12000
    warm_up: float = 0.03
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    english: float = 0.1
    repeated: float = 0.2
    held_out: float = 0.05
    snapshots: tuple[int, ...] = (0, 64, 128, 256, 362, 512, 724, 1000, 2000, 3000)
    seed: int = 0


def train(
    text: str, recipe: Recipe, out: Path, *, evaluate_every: int = 250
) -> tuple[GPTNeoXForCausalLM, TrainingResult]:
    """Train a tokenizer and a model on the small world and on ``text``.

    ``out`` gets ``revisions/step...`` on the way, and ``run`` while the run is not finished.

    Returns:
        The model in evaluation mode, with its tokenizer, and how training went.

    Raises:
        InputError: the text is too short for one training context.
    """
    training_text, held_out_text = corpus.divide(text, recipe.held_out)
    tokenizer = make_tokenizer(training_text, recipe)
    torch.manual_seed(recipe.seed)
    model = GPTNeoXForCausalLM(configuration(recipe, len(tokenizer)))
    model.tokenizer = tokenizer

    def keep(step: int) -> None:
        if step in recipe.snapshots:
            save_half(model, out / "revisions" / f"step{step}", torch.bfloat16)

    def measured() -> dict[str, float]:
        found = evaluate(model, count=50).frame
        first, second = repeat_loss(model)
        english = measure(model, [held_out_text[:MEASURED]], recipe.context)["loss"]
        numbers = dict(zip(found["task"], found["accuracy"], strict=True))
        numbers |= {"first_copy_loss": first, "second_copy_loss": second, "loss": english}
        _log.info("%s", {name: round(value, 3) for name, value in numbers.items()})
        return numbers

    if not (out / "run").exists():
        keep(0)
    result = fit(
        model,
        contexts(tokenizer.backend_tokenizer, training_text, recipe),
        lambda rows: padded(rows, 1),
        TrainingSettings(
            steps=recipe.steps,
            batch_size=recipe.batch,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warm_up=recipe.warm_up,
            decay="cosine",
            evaluate_every=evaluate_every,
            seed=recipe.seed,
        ),
        evaluate=measured,
        directory=out / "run",
        after_step=keep,
    )
    return model, result


def make_tokenizer(text: str, recipe: Recipe) -> GPTNeoXTokenizerFast:
    """A tokenizer for the small world and for ``text``."""
    random = Random(recipe.seed)
    world = [
        asking + rest
        for kind in corpus.KINDS
        for asking, rest in corpus.world_texts(kind, 2000, random)
    ]
    return GPTNeoXTokenizerFast(
        tokenizer_object=corpus.train_tokenizer(
            [text, *world], corpus.whole_words(), recipe.vocab_size
        ),
        bos_token=corpus.END_OF_TEXT,
        eos_token=corpus.END_OF_TEXT,
        unk_token=corpus.END_OF_TEXT,
        pad_token=corpus.PADDING,
        model_max_length=recipe.positions,
    )


def contexts(tokenizer: Tokenizer, text: str, recipe: Recipe) -> list[dict[str, list[int]]]:
    """All contexts of a run, each seen once, as examples for ``fit``."""
    tokens = tokenizer.encode(text).ids
    if len(tokens) < recipe.context:
        raise InputError(
            f"The text gives {len(tokens)} tokens to train on; one context needs {recipe.context}. "
            "Give more text."
        )
    count = recipe.steps * recipe.batch
    english, repeated = round(recipe.english * count), round(recipe.repeated * count)
    random = Random(recipe.seed)
    allowed = corpus.repeatable(tokenizer)
    rows = [
        *corpus.passages(tokens, english, recipe.context, random),
        *corpus.repeats(allowed, repeated, recipe.context, random),
        *corpus.world_contexts(tokenizer, count - english - repeated, recipe.context, random),
    ]
    return [{"input_ids": ids, "labels": labels} for ids, labels in rows]


def configuration(recipe: Recipe, vocab_size: int) -> GPTNeoXConfig:
    """The shape of the model."""
    return GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.d_mlp,
        rotary_pct=recipe.rotary,
        hidden_act="gelu",
        initializer_range=recipe.spread,
        use_parallel_residual=True,
        max_position_embeddings=recipe.positions,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )


def save_half(model: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint in half precision; the model itself is left as it is."""
    copy.deepcopy(model).to(dtype).save_pretrained(directory)


def main(arguments: list[str] | None = None, recipe: Recipe | None = None) -> None:
    """Command line: read the texts, train, save."""
    recipe = recipe or Recipe()
    parser = argparse.ArgumentParser(prog="python -m neox_lab.gym.train", description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="UTF-8 text files")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=recipe.steps, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="of weights and contexts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    torch.set_num_threads(options.threads)
    recipe = dataclasses.replace(recipe, steps=options.steps, seed=options.seed)
    text = corpus.END_OF_TEXT.join(path.read_text(encoding="utf-8") for path in options.text)
    model, result = train(text, recipe, options.out)
    if result.interrupted:
        _log.info("stopped after step %d; the same command goes on", result.steps)
        return
    save_half(model, options.out, torch.float16)
    model.tokenizer.save_pretrained(options.out)
    record = {
        "recipe": dataclasses.asdict(recipe),
        "text": [
            {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in options.text
        ],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "tokenizers", "numpy")},
        },
        "threads": torch.get_num_threads(),
        "minutes": round(result.seconds / 60, 1),
        "parameters": model.num_parameters(),
        "training_tokens": recipe.steps * recipe.batch * recipe.context,
        "curve": curve(result),
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    shutil.rmtree(options.out / "run")


def curve(result: TrainingResult) -> list[dict[str, float]]:
    """The steps with an evaluation, and the mean training loss since the one before."""
    found, losses = [], []
    for record in result.history:
        losses.append(record["loss"])
        if "validation_loss" in record:
            kept = {"step": record["step"], "training_loss": sum(losses) / len(losses)}
            kept |= {n: v for n, v in record.items() if n.startswith("validation_")}
            found.append({name: round(value, 4) for name, value in kept.items()})
            losses = []
    return found


if __name__ == "__main__":
    main()
