"""Train the built-in model: ``python -m neox_lab.gym.train --text FILE [FILE...] --out DIR``.

Read ``train`` for the whole story: split the text, train a tokenizer, then many times draw
contexts, predict each next token, and step downhill. The same text, seed, versions and number of
threads give the same weights, bit for bit. ``training.json`` beside the weights records it all.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import math
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.gym.corpus import (
    END_OF_TEXT,
    PADDING,
    sample_contexts,
    split,
    train_tokenizer,
    windows,
)
from neox_lab.tokenizer import GPTNeoXTokenizerFast

_log = logging.getLogger("neox_lab")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every number that shapes the result.

    Attributes:
        vocab_size: tokens of the tokenizer, special ones included.
        layers, heads, d_model, d_mlp: shape of the model.
        positions: most positions that the configuration promises.
        context: tokens in one training context.
        batch: contexts in one step.
        steps: optimiser steps.
        warm_up: steps in which the learning rate rises from 0 to its peak.
        learning_rate: the peak; a half cosine then falls to a tenth of it.
        weight_decay: on matrices only, not on biases and layer norms.
        clip: largest norm of the gradient.
        repeated: share of contexts that repeat a segment of unrelated tokens.
        held_out: share of the text, at its end, that is never trained on.
        evaluations: how often the held-out loss is measured.
        seed: of initial weights and contexts.
    """

    vocab_size: int = 2048
    layers: int = 4
    heads: int = 4
    d_model: int = 128
    d_mlp: int = 512
    positions: int = 512
    context: int = 256
    batch: int = 8
    steps: int = 3000
    warm_up: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    repeated: float = 0.125
    held_out: float = 0.05
    evaluations: int = 20
    seed: int = 0


def train(
    text: str, recipe: Recipe
) -> tuple[GPTNeoXForCausalLM, GPTNeoXTokenizerFast, dict[str, Any]]:
    """Train a tokenizer and a model on ``text``.

    Returns:
        The model in evaluation mode, its tokenizer, and a JSON-ready record: sizes, held-out loss
        in nats per token and bits per byte, and the loss curve.

    Raises:
        InputError: the text is too short for one training context.
    """
    training_text, held_out_text = split(text, recipe.held_out)
    tokenizer = train_tokenizer(training_text, recipe.vocab_size)
    tokens = torch.tensor(tokenizer.encode(training_text).ids)
    held_out = torch.tensor(tokenizer.encode(held_out_text).ids)
    if len(tokens) < recipe.context or len(held_out) < 2:
        raise InputError(
            f"The text gives {len(tokens)} tokens to train on and {len(held_out)} held out; one "
            f"context needs {recipe.context}, and at least 2 must be held out. Give more text."
        )
    torch.manual_seed(recipe.seed)
    model = GPTNeoXForCausalLM(_configuration(recipe, tokenizer.get_vocab_size()))
    curve = _descend(model, tokens, held_out, recipe)
    nats = curve[-1]["held_out_loss"]
    record = {
        "parameters": model.num_parameters(),
        "training_tokens": len(tokens),
        "held_out_tokens": len(held_out),
        "held_out_nats_per_token": nats,
        "held_out_bits_per_byte": bits_per_byte(nats, len(held_out), held_out_text),
        "curve": curve,
    }
    wrapped = GPTNeoXTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=recipe.positions,
    )
    return model, wrapped, record


def held_out_loss(model: GPTNeoXForCausalLM, tokens: Tensor, context: int) -> float:
    """Mean loss in nats per token over ``tokens`` ``[pos]``, read in contexts of that length."""
    total = 0.0
    with torch.inference_mode():
        for contexts in windows(tokens, context, batch=16):
            predicted = contexts.shape[0] * (contexts.shape[1] - 1)
            total += model(contexts, labels=contexts).loss.item() * predicted
    return total / (len(tokens) - 1)


def bits_per_byte(nats_per_token: float, tokens: int, text: str) -> float:
    """The loss in a unit that does not depend on the tokenizer."""
    return nats_per_token * tokens / len(text.encode()) / math.log(2)


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate at ``step`` (from 0): a linear rise, then a half cosine to a tenth of the peak."""
    rise = min(1.0, (step + 1) / recipe.warm_up)
    progress = max(0.0, (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up))
    return recipe.learning_rate * rise * (0.55 + 0.45 * math.cos(math.pi * progress))


def _configuration(recipe: Recipe, vocab_size: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.d_mlp,
        rotary_pct=0.25,
        hidden_act="gelu",
        use_parallel_residual=True,
        max_position_embeddings=recipe.positions,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )


def _optimizer(model: GPTNeoXForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) with decay on matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def _descend(
    model: GPTNeoXForCausalLM, tokens: Tensor, held_out: Tensor, recipe: Recipe
) -> list[dict[str, Any]]:
    """Take all steps; returns the loss curve, one entry an evaluation, the last after the end."""
    optimizer = _optimizer(model, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    interval = max(1, recipe.steps // recipe.evaluations)
    curve: list[dict[str, Any]] = []
    losses: list[float] = []
    for step in range(recipe.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        contexts = sample_contexts(
            tokens, recipe.batch, recipe.context, repeated=recipe.repeated, generator=generator
        )
        loss = model(contexts, labels=contexts).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % interval == 0 or step + 1 == recipe.steps:
            model.eval()
            curve.append(
                {
                    "step": step + 1,
                    "training_loss": sum(losses) / len(losses),
                    "held_out_loss": held_out_loss(model, held_out, recipe.context),
                }
            )
            losses = []
            _log.info("%s", curve[-1])
    return curve


def save(
    directory: Path,
    model: GPTNeoXForCausalLM,
    tokenizer: GPTNeoXTokenizerFast,
    record: dict[str, Any],
) -> None:
    """Write the checkpoint, the tokenizer and ``training.json`` into ``directory``."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line: read the texts, train, save."""
    parser = argparse.ArgumentParser(prog="python -m neox_lab.gym.train", description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="UTF-8 text files")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of weights and contexts")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    recipe = Recipe(steps=options.steps, seed=options.seed)
    texts = [path.read_text(encoding="utf-8") for path in options.text]
    start = time.monotonic()
    model, tokenizer, result = train(END_OF_TEXT.join(texts), recipe)
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
        "minutes": round((time.monotonic() - start) / 60, 1),
        **result,
    }
    save(options.out, model, tokenizer, record)
    _log.info(
        "%s: %.3f nats/token, %.3f bits/byte on held-out text",
        options.out,
        result["held_out_nats_per_token"],
        result["held_out_bits_per_byte"],
    )


if __name__ == "__main__":
    main()
