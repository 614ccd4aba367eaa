"""How well scores tell a circuit that is known, such as one planted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neox_lab.checks import several, shown
from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.evaluation import require_shape
from neox_lab.errors import InputError
from neox_lab.results import GridResult


def recovery(
    scores: GridResult, truth: Circuit | Sequence[tuple[str, str]], parallel: bool
) -> dict[str, float]:
    """Compare scores with a truth; see ``EdgeScores.recovery``.

    Args:
        scores: a score for each edge.
        truth: the true circuit.
        parallel: the wiring of the model.

    Raises:
        InputError: the truth is none of this model, or has none or all of its edges.
    """
    table = scores.is_computed
    true = _true(scores, truth, parallel)[table]
    sizes = scores.values[table].abs().double()
    own, others = sizes[true], sizes[~true]
    if not len(own) or not len(others):
        raise InputError(
            f"The truth has {len(own)} of {len(sizes)} edges; some are needed, not all."
        )
    above = torch.searchsorted(others.sort().values, own)  # other edges below each true one
    ties = torch.searchsorted(others.sort().values, own, right=True) - above
    place = sizes.argsort(descending=True, stable=True)[: len(own)]
    return {
        "auroc": float((above + ties / 2).mean(dtype=torch.float64)) / len(others),
        "found": float(true[place].double().mean()),
        "smallest_true": float(own.min()),
        "largest_other": float(others.max()),
    }


def _true(scores: GridResult, truth: Circuit | Sequence[tuple[str, str]], parallel: bool) -> Tensor:
    """True for the edges of the truth, ``[writer, reader]``."""
    if isinstance(truth, Circuit):
        require_shape(truth, scores.labels, parallel)
        return truth.kept
    writers, readers = scores.labels["writer"], scores.labels["reader"]
    true = torch.zeros_like(scores.is_computed)
    for edge in several("truth", truth, "a circuit, or pairs of writer and reader", InputError):
        pair = several("an edge", edge, "a writer and a reader", InputError)
        known = len(pair) == 2 and all(isinstance(name, str) for name in pair)
        known = known and pair[0] in writers and pair[1] in readers
        if not known or not scores.is_computed[writers.index(pair[0]), readers.index(pair[1])]:
            raise InputError(
                f"An edge of the truth is {shown(edge)}, which is no edge of this model; edges are "
                'like ("embed", "L0H1.q") or ("MLP0", "logits").'
            )
        true[writers.index(pair[0]), readers.index(pair[1])] = True
    return true
