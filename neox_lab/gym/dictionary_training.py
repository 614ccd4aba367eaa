"""Train dictionaries of the built-in model: ``python -m neox_lab.gym.dictionary_training --out D``.

``D`` gets a file for the residual stream after each layer and one for the MLP of each layer, and
``card.json``: settings, and what was measured on contexts that nothing was trained on. The contexts
come from the generators that made the model's own training data. The same seed, versions and number
of threads give the same files; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import cast

import torch

from neox_lab import activations
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.family.loading import load
from neox_lab.files import write_text
from neox_lab.gym import corpus
from neox_lab.gym.built_in_dictionaries import write
from neox_lab.gym.dictionary_evaluation import classes, named, quality
from neox_lab.interrupts import whole_answers
from neox_lab.model.identity import identity
from neox_lab.sae import Dictionary, Recipe, train
from neox_lab.sae import load as load_dictionary
from neox_lab.sae.rows import tokens_of

_log = logging.getLogger("neox_lab")

LATENTS, K = 512, 16
STEPS, BATCH = 1500, 1024
LENGTH = 128  # tokens of a context
WORLD, REPEATED = 2000, 500  # contexts of each kind
RECIPE = Recipe(learning_rate=3e-3)
SEED = 0


def contexts(
    model: GPTNeoXForCausalLM, world: int, repeated: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of contexts: sentences of the world, then unrelated tokens again.

    Args:
        model: whose tokenizer it is.
        world: contexts of the first kind.
        repeated: contexts of the second kind.
        seed: of what they say.
    """
    assert model.tokenizer is not None
    tokenizer, random = model.tokenizer.backend_tokenizer, Random(seed)
    pools = corpus.repeatable(tokenizer)
    return [
        *corpus.world_contexts(tokenizer, world, LENGTH, random),
        *corpus.repeats(pools, repeated, LENGTH, random),
    ]


def sites(layers: int) -> dict[str, tuple[str, str]]:
    """What each dictionary reads and writes, by its name."""
    found = {}
    for layer in range(layers):
        block = f"blocks.{layer}"
        found[f"resid_post_{layer}"] = (f"{block}.hook_resid_post",) * 2
        found[f"mlp_{layer}"] = (f"{block}.mlp.hook_in", f"{block}.hook_mlp_out")
    return found


def folder(name: str) -> str:
    """What sparsify calls the folder of a dictionary: the module whose output it writes."""
    kind, _, layer = name.rpartition("_")
    return f"layers.{layer}.mlp" if kind == "mlp" else f"layers.{layer}"


def trained(
    model: GPTNeoXForCausalLM, run: Path, *, steps: int = STEPS, share: float = 1.0
) -> dict[str, Dictionary]:
    """All dictionaries, by name.

    Args:
        model: the built-in model.
        run: folder for what is needed on the way.
        steps: of each training.
        share: of the usual contexts.
    """
    rows = contexts(model, round(WORLD * share), round(REPEATED * share), SEED)
    stored = activations.collect(
        model,
        [ids for ids, _ in rows],
        ["resid_post", "mlp_out", "blocks.*.mlp.hook_in"],
        run / "activations",
        dtype="float16",
    )
    found = {}
    for name, (site_in, site_out) in sites(model.config.num_hidden_layers).items():
        with whole_answers():  # the next would be trained, and this one written as it is
            result = train(
                stored,
                site=site_in,
                site_out=site_out,
                latents=LATENTS,
                k=K,
                steps=steps,
                batch_size=BATCH,
                seed=SEED,
                to=run / name,
                recipe=RECIPE,
            )
        _log.info("%s: held-out FVU %.3f", name, result.held_out.fvu)
        found[name] = result.dictionary
    return found


def card(
    model: GPTNeoXForCausalLM, found: Mapping[str, Dictionary], contexts_each: int = 300
) -> dict[str, object]:
    """What was measured of dictionaries.

    Args:
        model: their model.
        found: dictionaries by name.
        contexts_each: of the world, to choose features on, and as many to measure on; with these
            a quarter as many of unrelated tokens.
    """
    repeated = max(1, contexts_each // 4)
    search, test = (contexts(model, contexts_each, repeated, SEED + n) for n in (1, 2))
    masks = [classes(model, rows, repeated) for rows in (search, test)]
    dictionaries, features = [], []
    for name, dictionary in found.items():
        site = {"site": dictionary.site_out}
        dictionaries.append({"dictionary": name} | site | quality(model, dictionary, test))
        read = [
            tokens_of(model, [ids for ids, _ in rows], *(dictionary.site_in,) * 2).x
            for rows in (search, test)
        ]
        given = ((x, mask) for x, mask in zip(read, masks, strict=True))
        rows = named(dictionary, next(given), next(given))
        features += [{"dictionary": name} | row for row in rows]
        _log.info("%s", dictionaries[-1])
    return {
        "model": identity(model)._asdict(),
        "settings": {
            "latents": LATENTS,
            "k": K,
            "steps": STEPS,
            "batch_size": BATCH,
            "contexts": {"world": WORLD, "repeated": REPEATED, "tokens_each": LENGTH},
            "seed": SEED,
            "recipe": dataclasses.asdict(RECIPE),
        },
        "measured_on": {"world": contexts_each, "repeated": repeated, "seed": SEED + 2},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "tokenizers", "numpy")},
        },
        "threads": torch.get_num_threads(),
        "dictionaries": _rounded(dictionaries),
        "features": _rounded(features),
    }


def _rounded(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    return [{n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()} for row in rows]


def main(arguments: list[str] | None = None) -> None:
    """Command line: train, save and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m neox_lab.gym.dictionary_training", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual contexts")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    model = load()
    assert isinstance(model, GPTNeoXForCausalLM)
    made = trained(model, options.out / "run", steps=options.steps, share=options.share)
    folders = {name: options.out / folder(name) for name in made}
    for name, dictionary in made.items():
        write(folders[name], dictionary)
    # What is measured is what was written.
    written = {name: cast(Dictionary, load_dictionary(folders[name])) for name in made}
    record = card(model, written, max(4, round(300 * options.share)))
    write_text(options.out / "card.json", json.dumps(record, indent=1) + "\n")
    shutil.rmtree(options.out / "run")


if __name__ == "__main__":
    main()
