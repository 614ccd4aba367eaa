"""Circuits: the edges of the network that a behaviour needs, found, scored and put to the test.

scores = nl.circuits.scores(model, clean, corrupted, metric)      each edge's effect
circuit = scores.circuit(edges=200)                               the edges that matter most
circuit.evaluate()                                                does it do the job alone?
nl.circuits.node_scores(..)  .neuron_scores(..)                   heads and MLPs; neurons
nl.circuits.acdc(..)  .prune_edges(..)                            searches by edge, by gradient
nl.circuits.attribution_graph(model, transcoders, "The king")     features that made it say so
"""

from __future__ import annotations

from neox_lab.circuits.attribution_graphs.building import attribution_graph
from neox_lab.circuits.attribution_graphs.result import AttributionGraph
from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.curve import FaithfulnessCurve
from neox_lab.circuits.evaluation import Evaluation
from neox_lab.circuits.part_scores import NeuronScores, NodeScores, neuron_scores, node_scores
from neox_lab.circuits.pruning import PrunedEdges, prune_edges
from neox_lab.circuits.scoring import EdgeScores, read_circuit, read_scores, scores
from neox_lab.circuits.search import AcdcResult, acdc

__all__ = [
    "AcdcResult",
    "AttributionGraph",
    "Circuit",
    "EdgeScores",
    "Evaluation",
    "FaithfulnessCurve",
    "NeuronScores",
    "NodeScores",
    "PrunedEdges",
    "acdc",
    "attribution_graph",
    "neuron_scores",
    "node_scores",
    "prune_edges",
    "read_circuit",
    "read_scores",
    "scores",
]
