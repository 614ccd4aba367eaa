"""Good calls of the room of circuits, to be given hostile arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dictionaries import random_dictionary

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
    width = model.config.hidden_size
    transcoder = random_dictionary(
        width, "blocks.0.mlp.hook_in", site_out="blocks.0.hook_mlp_out", kind="ReLU"
    )
    graph = nl.circuits.attribution_graph(model, transcoder, "abcd", progress=False)
    node = graph.prune().nodes["name"].iloc[0]
    pruned = nl.circuits.prune_edges(model, **asked, edges=15, steps=3, progress=False)
    more = {**asked, "model": model, "ablation": "resample", "random": 1, "seed": 0}
    return {
        "circuits.acdc": (
            nl.circuits.acdc,
            {"model": model, **asked, "threshold": 0.01, "ablation": "zero", "orders": 1}
            | {"seed": 0, "progress": False},
        ),
        "circuits.attribution_graph": (
            nl.circuits.attribution_graph,
            {"model": model, "transcoders": [transcoder], "prompt": "abcd", "max_features": 5}
            | {"interventions": 1, "progress": False, "target": ["a"]},
        ),
        "circuits.attribution_graph.prune": (graph.prune, {"nodes": 0.5, "edges": 0.5}),
        "circuits.attribution_graph.view": (
            graph.view,
            {"groups": {"one": [node]}, "pinned": [node], "pages": "pages"},
        ),
        "circuits.attribution_graph.to_neuronpedia": (
            graph.to_neuronpedia,
            {"path": folder / "graph.json", "slug": "x", "scan": "y", "groups": {"one": [node]}}
            | {"pinned": [node]},
        ),
        "circuits.neuron_scores": (
            nl.circuits.neuron_scores,
            {"model": model, **asked, "method": "eap", "steps": 2},
        ),
        "circuits.neuron_scores.check": (
            nl.circuits.neuron_scores(model, **asked, method="eap").check,
            {"k": 2, "neurons": 3},
        ),
        "circuits.node_scores": (
            nl.circuits.node_scores,
            {"model": model, **asked, "method": "exact", "steps": 2},
        ),
        "circuits.node_scores.circuit": (
            nl.circuits.node_scores(model, **asked, method="eap").circuit,
            {"nodes": 2, "share": None, "helping": True},
        ),
        "circuits.node_scores.faithfulness": (
            nl.circuits.node_scores(model, **asked, method="eap").faithfulness,
            {"shares": [0.5], "helping": False, **more},
        ),
        "circuits.prune_edges": (
            nl.circuits.prune_edges,
            {"model": model, **asked, "edges": 5, "share": None, "objective": "kl"}
            | {"ablation": "zero", "steps": 2, "learning_rate": 0.1, "seed": 0, "progress": False}
            | {"seeds": 1},
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
        "circuits.scores.recovery": (scores.recovery, {"truth": [("embed", "logits")]}),
        "circuits.circuit.evaluate": (circuit.evaluate, more),
        "circuits.pruned.evaluate": (pruned.evaluate, more),
        "circuits.circuit.overlap": (circuit.overlap, {"other": circuit}),
        "gym.planted_ioi": (nl.gym.planted_ioi, {"parallel": False}),
        "gym.planted_ioi().pairs": (nl.gym.planted_ioi().pairs, {"count": 2, "seed": 0}),
        "gym.planted_two_step": (nl.gym.planted_two_step, {"parallel": False}),
    }
