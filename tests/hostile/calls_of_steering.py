"""Good calls of the room of steering, to be given hostile arguments."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from dictionaries import random_dictionary

import neox_lab as nl


def calls_of_steering(model: Any, folder: Path) -> dict[str, Any]:
    """By name: what is called, and with which arguments."""
    site = "blocks.0.hook_resid_post"
    asked: dict[str, Any] = {"model": model, "positive": ["ab", "ac"], "site": site}
    found = nl.steering.direction(**asked, negative=["ba", "bd"])
    happy = nl.steering.direction(nl.load(), ["good"], ["bad"], site=site)
    dictionary = random_dictionary(model.config.hidden_size, site)
    steered = {"scale": 1.0, "positions": [1, 2], "mode": "add"}

    def steer(**given: Any) -> Any:
        with found.steer(**given):
            return model("abcd").logits

    def saved(path: Any) -> Any:
        with tempfile.TemporaryDirectory() as place:
            found.save(str(Path(place) / path) if isinstance(path, str) else path)

    def exported(path: Any, layout: Any) -> Any:
        with tempfile.TemporaryDirectory() as place:
            found.export(str(Path(place) / path) if isinstance(path, str) else path, layout)

    found.save(folder / "direction")

    def several(direction: Any, scale: Any, positions: Any, mode: Any) -> Any:
        with nl.steering.steer((direction, scale), positions=positions, mode=mode):
            return model("abcd").logits

    return {
        "steering.direction": (
            nl.steering.direction,
            {**asked, "negative": ["ba", "bd"], "method": "pca", "positions": -1}
            | {"batch_size": 2, "seed": 0},
        ),
        "steering.direction of labels": (
            nl.steering.direction,
            {**asked, "labels": [0, 1], "method": "mean_difference"},
        ),
        "steering.direction of a feature": (
            nl.steering.direction,
            {"model": model, "positive": dictionary, "method": "feature", "feature": 3},
        ),
        "steering.token": (nl.steering.token, {"text": "a"}),
        "steering.steer": (several, {"direction": found, **steered}),
        "steering.Direction.steer": (steer, steered),
        "steering.Direction.on": (found.on, {"model": model, "same": True}),
        "steering.Direction.at": (lambda site: found.at(site), {"site": site}),
        "steering.load": (nl.steering.load, {"path": folder / "direction", "model": model}),
        "steering.Direction.save": (saved, {"path": "kept"}),
        "steering.Direction.export": (exported, {"path": "kept", "layout": "repeng"}),
        "steering.Direction.project": (found.project, {"inputs": ["abcd", "b"]}),
        "steering.Direction.evaluate": (
            found.evaluate,
            {"metric": nl.patching.logit_difference("a", "b"), "inputs": ["abcd", "b"]}
            | {"scales": [0, 1], "texts": ["abcd"], "positions": "last", "mode": "clamp"}
            | {"controls": 1, "batch_size": 1, "seed": 0},
        ),
        "steering.Direction.side_effects": (
            happy.side_effects,
            {"scale": 1.0, "tasks": ["facts"], "mode": "add", "positions": "all"}
            | {"count": 2, "seed": 0},
        ),
        "steering.Direction.control": (found.control, {"kind": "random", "draw": 0}),
    }
