"""Probing every layer: python benchmarks/probing.py [--rows N] [--data FILE.csv] [--device D].

``nl.probing.probe`` beside the loop one would write by hand with scikit-learn: for each layer run
the model and keep that layer's activations, then for each strength of regularisation fit a
LogisticRegression, choose on validation, and fit once more on shuffled labels as a control. Same
model (the built-in one), same texts, same position. Prints seconds and test accuracy by layer.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import neox_lab as nl
from neox_lab.experiments import probing

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header, timed

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)


def generated(rows: int) -> tuple[list[str], list[str]]:
    """Sentences with a singular or a plural subject."""
    nouns = ["king", "man", "house", "river", "law", "city", "friend", "book", "day", "ship"]
    verbs = ["saw", "found", "left", "knew", "made", "lost", "read", "took"]
    places = ["the old town", "a great field", "the night", "his hand", "the new church"]
    whole = [
        (f"The {noun}{end} {verb} {place}", "many" if end else "one")
        for noun, end, verb, place in itertools.product(nouns, ("", "s"), verbs, places)
    ]
    chosen = np.random.default_rng(0).permutation(len(whole))[:rows]
    return [whole[at][0] for at in chosen], [whole[at][1] for at in chosen]


@torch.no_grad()
def layer_by_layer(model: Any, texts: list[str], layer: int) -> Any:
    """Activations `[text, d_model]` of one layer at each text's last token."""
    found = []
    for start in range(0, len(texts), 32):
        batch = model.tokenizer(
            texts[start : start + 32], padding=True, padding_side="right", return_tensors="pt"
        )
        ids = batch["input_ids"].to(model.device)
        _, cache = model.run_with_cache(ids, f"blocks.{layer}.hook_resid_post")
        last = batch["attention_mask"].sum(dim=1) - 1
        found.append(cache["resid_post", layer].cpu()[torch.arange(len(last)), last])
    return torch.cat(found).numpy()


def plain(model: Any, texts: list[str], labels: list[str]) -> list[float]:
    """The loop by hand; test accuracy of each layer."""
    targets = np.unique(labels, return_inverse=True)[1]
    train, validation, test = probing._parts(targets, ["a", "b"], None, 0)
    shuffled = np.random.default_rng(0).permutation(targets[train])
    scores = []
    for layer in range(model.config.num_hidden_layers):
        x = layer_by_layer(model, texts, layer)
        scale = StandardScaler().fit(x[train])
        x = scale.transform(x)
        for wanted in (targets[train], shuffled):
            tried = [
                LogisticRegression(C=strength, max_iter=1000).fit(x[train], wanted)
                for strength in STRENGTHS
            ]
            best = max(tried, key=lambda one: one.score(x[validation], targets[validation]))
            if wanted is not shuffled:
                scores.append(best.score(x[test], targets[test]))
    return scores


def main() -> None:
    """Time both sides, taking turns."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--data", help="a csv file with columns text and label, instead")
    add_device(parser)
    options = parser.parse_args()
    print(header(options.device))
    warnings.simplefilter("ignore")
    texts, labels = generated(options.rows)
    if options.data:
        frame = pd.read_csv(options.data).sample(options.rows, random_state=0)
        texts, labels = frame["text"].tolist(), frame["label"].tolist()
    model = nl.load(device=options.device)
    sides = {
        "scikit-learn loop": lambda: plain(model, texts, labels),
        "neox_lab": lambda: nl.probing.probe(model, texts, labels).frame["score"].tolist(),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    scores: dict[str, list[float]] = {}
    for _ in range(3):
        for side in times:
            seconds, scores[side] = timed(lambda side=side: sides[side](), options.device)
            times[side].append(seconds)
    print(f"{len(texts)} texts, {model.config.num_hidden_layers} layers, with control; medians\n")
    for side, taken in times.items():
        by_layer = " ".join(f"{score:.3f}" for score in scores[side])
        print(
            f"{side:18} {np.median(taken):7.2f} s   accuracy {mean(scores[side]):.3f}: {by_layer}"
        )
    ours, theirs = times["neox_lab"], times["scikit-learn loop"]
    print(f"\nspeed-up {np.median(np.array(theirs) / np.array(ours)):.1f}x")


if __name__ == "__main__":
    main()
