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
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Literal

import torch
from tokenizers import Tokenizer

from neox_lab.config import GPTNeoXConfig
from neox_lab.data.batches import padded
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.files import write_text
from neox_lab.gym import corpus, training_texts
from neox_lab.gym.evaluation import evaluate, repeat_loss
from neox_lab.tasks.language import measure
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import TrainingResult, fit
from neox_lab.tokenizer import GPTNeoXTokenizerFast

_log = logging.getLogger("neox_lab")
MEASURED = 20_000  # characters of held-out English that are read during training


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        context: tokens in one training context.
        batch: contexts in one step.
        steps: optimiser steps.
        english: share of contexts that are passages of English.
        repeated: share of contexts that repeat unrelated tokens.
        recalled: share of contexts that look unrelated tokens up; the rest is the small world.
        warm_up: share of the steps in which the learning rate rises from 0 to its peak.
        decay: how it falls afterwards; see ``TrainingSettings``.
        weight_decay: on matrices only, not on biases and layer norms.
        more: kinds of sentences of the world to have more of, once for each time they stand here.
    """

    context: int
    batch: int
    steps: int
    english: float
    repeated: float
    recalled: float
    warm_up: float
    decay: Literal["constant", "cosine"]
    weight_decay: float
    more: tuple[str, ...] = ()


HARD = ("ioi", "tracking") * 3 + ("tales", "opinions") * 5
TOLD = (
    ("ioi", "pronouns", "lore", "facts", "questions") * 2
    + ("tales", "opinions") * 8
    + ("verdicts",) * 4
)
LAST = (
    *("people",) * 8,
    *("ioi",) * 6,
    *("naming", "tales") * 5,
    *("pronouns",) * 4,
    *("opinions",) * 3,
    *("lore", "questions", "tracking", "verdicts") * 2,
    *("facts", "greater_than"),
)
REST = (
    *("strange",) * 12,
    *("people",) * 8,
    *("ioi", "naming", "tales", "tracking") * 4,
    *("pronouns", "opinions") * 3,
    *("lore", "questions", "induction") * 2,
)
PHASES = (
    # Half of it repeats, in short contexts: heads learn to look up what followed a token.
    Phase(64, 32, 2500, 0.05, 0.5, 0.0, 0.04, "constant", 0.01),
    # Now what followed some places after it, which stories ask for.
    Phase(64, 32, 3500, 0.05, 0.1, 0.3, 0.01, "constant", 0.05, HARD),
    # Mostly the small world, and more of what is hard.
    Phase(96, 20, 4000, 0.06, 0.2, 0.1, 0.01, "constant", 0.1, TOLD),
    # Longer contexts, down to a rate of 0; and once more, with any word for anyone.
    Phase(128, 16, 5000, 0.08, 0.2, 0.05, 0.01, "cosine", 0.1, LAST),
    Phase(128, 16, 3000, 0.08, 0.15, 0.1, 0.1, "cosine", 0.1, REST),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every number that shapes the result.

    Attributes:
        vocab_size: tokens of the tokenizer, special ones included.
        layers, heads, d_model, d_mlp: shape of the model.
        rotary: share of each head's dimensions that tell positions.
        positions: most positions that the configuration promises.
        spread: standard deviation of the initial matrices.
        bias_spread: standard deviation of the initial biases of queries and keys.
        phases: stretches of training, one after the other.
        learning_rate: the peak.
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
    bias_spread: float = 1.0
    phases: tuple[Phase, ...] = PHASES
    learning_rate: float = 3e-3
    held_out: float = 0.05
    snapshots: tuple[int, ...] = (0, 128, 512, 1000, 1250, 1500, 1750, 2500, 6000)
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)


def train(
    text: str, recipe: Recipe, out: Path, *, evaluate_every: int = 250
) -> tuple[GPTNeoXForCausalLM, list[TrainingResult]]:
    """Train a tokenizer and a model on the small world and on ``text``.

    ``out`` gets ``revisions/step...`` on the way, and ``run`` while the run is not finished.

    Returns:
        The model in evaluation mode, with its tokenizer, and how each phase went; fewer phases
        than the recipe has if the user stopped it.

    Raises:
        InputError: the text is too short for one training context.
    """
    training_text, held_out_text = corpus.divide(text, recipe.held_out)
    tokenizer = make_tokenizer(training_text, recipe)
    model = initial(recipe, len(tokenizer))
    model.tokenizer = tokenizer

    results: list[TrainingResult] = []

    def keep(step: int) -> None:
        step += sum(result.steps for result in results)
        if step in recipe.snapshots:
            save_half(model, out / "revisions" / f"step{step}", torch.bfloat16)

    def measured() -> dict[str, float]:
        found = evaluate(model, count=50).frame
        first, second = repeat_loss(model)
        english = measure(model, [held_out_text[:MEASURED]], recipe.phases[-1].context)["loss"]
        numbers = dict(zip(found["task"], found["accuracy"], strict=True))
        numbers |= {"first_copy_loss": first, "second_copy_loss": second, "loss": english}
        _log.info("%s", {name: round(value, 3) for name, value in numbers.items()})
        return numbers

    if not (out / "run").exists():
        keep(0)
    for number, phase in enumerate(recipe.phases):
        result = fit(
            model,
            contexts(tokenizer.backend_tokenizer, training_text, phase, recipe.seed + number),
            lambda rows: padded(rows, 1),
            TrainingSettings(
                steps=phase.steps,
                batch_size=phase.batch,
                learning_rate=recipe.learning_rate,
                weight_decay=phase.weight_decay,
                warm_up=phase.warm_up,
                decay=phase.decay,
                evaluate_every=evaluate_every,
                seed=recipe.seed,
            ),
            evaluate=measured,
            directory=out / "run" / str(number),
            after_step=keep,
        )
        results.append(result)
        if result.interrupted:
            break
    return model, results


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


def contexts(
    tokenizer: Tokenizer, text: str, phase: Phase, seed: int
) -> list[dict[str, list[int]]]:
    """All contexts of a phase, each seen once, as examples for ``fit``.

    Raises:
        InputError: the text has fewer tokens than one context.
    """
    tokens = tokenizer.encode(text).ids
    if len(tokens) < phase.context:
        raise InputError(
            f"The text gives {len(tokens)} tokens to train on; one context needs {phase.context}. "
            "Give more text."
        )
    count, length = phase.steps * phase.batch, phase.context
    shares = phase.english, phase.repeated, phase.recalled
    english, repeated, recalled = (round(share * count) for share in shares)
    world = count - english - repeated - recalled
    random, pools = Random(seed), corpus.repeatable(tokenizer)
    rows = [
        *corpus.passages(tokens, english, length, random),
        *corpus.repeats(pools, repeated, length, random),
        *training_texts.recalls(pools, recalled, length, random),
        *corpus.world_contexts(tokenizer, world, length, random, phase.more),
    ]
    return [{"input_ids": ids, "labels": labels} for ids, labels in rows]


@torch.no_grad()
def initial(recipe: Recipe, vocab_size: int) -> GPTNeoXForCausalLM:
    """The untrained model, set up so that heads can learn to look things up early.

    The biases of queries and keys start at random instead of at 0. With rotary positions
    the biases of queries and keys alone decide at which distance a head looks, whatever the
    tokens; at 0 neither has a gradient without the other. And the unembedding starts as a copy of
    the embedding: a head that copies then does so for every token at once, the rare ones too.
    """
    torch.manual_seed(recipe.seed)
    model = GPTNeoXForCausalLM(configuration(recipe, vocab_size)).float()
    for name, parameter in model.named_parameters():
        if name.endswith("query_key_value.bias"):
            # Stored per head as queries, keys, values.
            parameter.view(recipe.heads, 3, -1)[:, :2].normal_(0.0, recipe.bias_spread)
    model.embed_out.weight.copy_(model.gpt_neox.embed_in.weight)
    return model


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


def save_half(model: GPTNeoXPreTrainedModel, directory: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint in half precision; the model itself is left as it is."""
    copy.deepcopy(model).to(dtype).save_pretrained(directory)


def main(arguments: list[str] | None = None, recipe: Recipe | None = None) -> None:
    """Command line: read the texts, train, save."""
    recipe = recipe or Recipe()
    parser = argparse.ArgumentParser(prog="python -m neox_lab.gym.train", description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="UTF-8 text files")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="of weights and contexts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    torch.set_num_threads(options.threads)
    recipe = dataclasses.replace(recipe, seed=options.seed)
    text = corpus.END_OF_TEXT.join(path.read_text(encoding="utf-8") for path in options.text)
    model, results = train(text, recipe, options.out)
    if results[-1].interrupted:
        _log.info("stopped; the same command goes on")
        return
    save_half(model, options.out, torch.float16)
    assert model.tokenizer is not None  # train sets it
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
        "minutes": round(sum(result.seconds for result in results) / 60, 1),
        "steps": recipe.steps,
        "parameters": model.num_parameters(),
        "training_tokens": sum(p.steps * p.batch * p.context for p in recipe.phases),
        "curve": curve(results),
    }
    write_text(options.out / "training.json", json.dumps(record, indent=1) + "\n")
    shutil.rmtree(options.out / "run")


def curve(results: Sequence[TrainingResult]) -> list[dict[str, float]]:
    """The steps with an evaluation, and the mean training loss since the one before."""
    found: list[dict[str, float]] = []
    losses: list[float] = []
    before = 0
    for result in results:
        for record in result.history:
            losses.append(record["loss"])
            if "validation_loss" in record:
                kept = {"step": before + record["step"], "training_loss": sum(losses) / len(losses)}
                kept |= {n: v for n, v in record.items() if n.startswith("validation_")}
                found.append({name: round(value, 4) for name, value in kept.items()})
                losses = []
        before += result.steps
    return found


if __name__ == "__main__":
    main()
