"""Good calls of the room of circuits, to be given hostile arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import neox_lab as nl
from neox_lab.experiments.metrics import logit_difference


def calls_of_circuits(model: Any, folder: Path) -> dict[str, Any]:
    """By name: what is called, and with which arguments."""
    asked: dict[str, Any] = {"clean": "abcd", "corrupted": "abed"}
    asked |= {"metric": logit_difference("a", "b")}
    scores = nl.circuits.scores(model, **asked, method="eap")
    circuit = scores.circuit(edges=5)
    scores.to_eap_ig(folder / "scores.json")
    circuit.to_eap_ig(folder / "circuit.pt")
    more = {**asked, "model": model, "ablation": "resample", "random": 1, "seed": 0}
    return {
        "circuits.acdc": (
            nl.circuits.acdc,
            {"model": model, **asked, "threshold": 0.01, "ablation": "zero", "orders": 1}
            | {"seed": 0, "progress": False},
        ),
        "circuits.read_circuit": (nl.circuits.read_circuit, {"path": folder / "circuit.pt"}),
        "circuits.read_scores": (nl.circuits.read_scores, {"path": folder / "scores.json"}),
        "circuits.scores": (
            nl.circuits.scores,
            {"model": model, **asked, "method": "eap", "steps": 2},
        ),
        "circuits.scores.circuit": (
            scores.circuit,
            {"edges": 5, "share": None, "method": "greedy", "helping": False},
        ),
        "circuits.scores.faithfulness": (
            scores.faithfulness,
            {"shares": [0.5], "method": "greedy", "helping": False, **more},
        ),
        "circuits.circuit.evaluate": (circuit.evaluate, more),
        "circuits.circuit.overlap": (circuit.overlap, {"other": circuit}),
    }
