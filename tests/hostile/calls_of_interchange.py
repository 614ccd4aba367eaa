"""Good calls of the room of interchange interventions, to be given hostile arguments."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import neox_lab as nl


def calls_of_interchange(model: Any, folder: Path) -> dict[str, Any]:
    """By name: what is called, and with which arguments."""
    site = nl.interchange.Site(("resid_post", 0), -1)
    sides: dict[str, Any] = {"base": ["ab", "cd"], "source": ["cb", "ad"]}
    sides |= {"base_labels": ["a", "b"], "labels": ["b", "a"], "choices": None}
    pairs = nl.interchange.Pairs(**sides)
    others = nl.interchange.Pairs(**{**sides, "base": ["bb", "dd"]})
    asked = {"model": model, "pairs": pairs, "held_out": others}
    training = {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "seed": 0}
    training |= {"nulls": 0, "progress": False}
    causal = nl.interchange.CausalModel(
        "{x}{y}", {"first": lambda x: x}, lambda first, y: first if y == "b" else y
    )
    inputs = [{"x": "a", "y": "b"}, {"x": "c", "y": "b"}]
    planted = nl.gym.CAUSAL["planted"]
    found = nl.interchange.accuracy(model, pairs, site)
    found.save(folder / "found")

    def saved(path: Any) -> Any:
        with tempfile.TemporaryDirectory() as place:
            found.save(str(Path(place) / path) if isinstance(path, str) else path)

    return {
        "interchange.Pairs": (nl.interchange.Pairs, {**sides, "roles": {}, "variable": "first"}),
        "interchange.InterchangeResult.load": (
            nl.interchange.InterchangeResult.load,
            {"path": folder / "found", "model": model, "same": True},
        ),
        "interchange.InterchangeResult.save": (saved, {"path": "kept"}),
        "interchange.Pairs.permuted": (pairs.permuted, {"seed": 0}),
        "interchange.Pairs.split": (pairs.split, {"held_out": 0.5, "seed": 0}),
        "interchange.CausalModel": (
            nl.interchange.CausalModel,
            {"prompt": "{x}", "variables": {"first": lambda x: x}, "label": lambda first: first}
            | {"choices": None, "roles": {"x": "x"}},
        ),
        "interchange.CausalModel.counterfactual": (
            causal.counterfactual,
            {"base": inputs[0], "source": inputs[1], "variable": "first"},
        ),
        "interchange.CausalModel.pairs": (
            causal.pairs,
            {"inputs": inputs, "variable": "first", "count": 2, "seed": 0},
        ),
        "interchange.accuracy": (
            nl.interchange.accuracy,
            {"model": model, "pairs": pairs, "site": site, "batch_size": 2, "seed": 0},
        ),
        "interchange.boundless": (
            nl.interchange.boundless,
            {**asked, "site": site, "most": 2, **training},
        ),
        "interchange.das": (nl.interchange.das, {**asked, "site": site, "rank": 1, **training}),
        "interchange.mask": (
            nl.interchange.mask,
            {**asked, "site": site, "sparsity": 0.1, **training},
        ),
        "interchange.run": (_run, {"model": model, "base": "abcd", "site": site, "source": "cbad"}),
        "interchange.run at a site": (
            _run_at,
            {"model": model, "hook": ("q", 0), "pos": -1, "heads": 0, "subspace": None},
        ),
        "interchange.sweep": (
            nl.interchange.sweep,
            {**asked, "positions": {"last": -1}, "rank": 1, "hook": "resid_post", "layers": [0]}
            | training,
        ),
        "gym.CAUSAL.inputs": (planted.inputs, {"count": 3, "part": "train", "seed": 0}),
        "gym.CAUSAL.pairs": (
            planted.pairs,
            {"variable": "a_is_capital", "count": 3, "part": "train", "seed": 0},
        ),
    }


def _run(model: Any, base: Any, site: Any, source: Any) -> Any:
    return nl.interchange.run(model, base, (site, source))


def _run_at(model: Any, **site: Any) -> Any:
    return nl.interchange.run(model, "abcd", (nl.interchange.Site(**site), "cbad"))
