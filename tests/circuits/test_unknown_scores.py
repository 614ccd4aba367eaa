"""A score that nobody knows is no largest score: after Ctrl-C, or where the model gives NaN."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from patching_oracle import prompts, small
from torch import Tensor

from neox_lab.circuits import EdgeScores, acdc, node_scores, prune_edges, scores
from neox_lab.errors import InputError, NeoxLabWarning
from neox_lab.experiments.metrics import logit_difference

METRIC = logit_difference(7, 11)


class Interrupted:
    """A metric during whose ``call``-th call somebody presses Ctrl-C."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self, logits: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return (logits[:, -1, 7] - logits[:, -1, 11]).mean()


def refused(result: EdgeScores, folder: Path) -> None:
    """Nothing that ranks or keeps the scores goes on."""
    tries: list[Any] = [
        lambda: result.circuit(edges=5),
        lambda: result.circuit(share=0.5, method="greedy", helping=True),
        lambda: result.faithfulness(),
        lambda: result.recovery([("embed", "logits")]),
        lambda: result.to_eap_ig(folder / "scores.json"),
    ]
    for one in tries:
        with pytest.raises(InputError, match="scores are not known, the first that of embed"):
            one()
    assert not list(folder.iterdir())


def test_an_interrupted_sweep_says_so_and_makes_no_circuit(tmp_path: Path) -> None:
    clean, corrupted = prompts(8, 6, first=1)  # more tokens than are computed at once
    model = small()
    whole = scores(model, clean, corrupted, METRIC, "exact")
    some = next(
        found
        for call in range(4, 800, 7)
        for found in [scores(model, clean, corrupted, Interrupted(call), "exact")]
        if bool(found.is_computed.any())
    )
    known = some.is_computed
    assert 0 < int(known.sum()) < int(whole.is_computed.sum())
    torch.testing.assert_close(some.values[known], whole.values[known], rtol=1e-4, atol=1e-5)
    assert some.title == f"Edges by exact (interrupted after {int(known.sum())} of 69)"
    assert len(some.frame) == int(known.sum()) and not some.frame["value"].isna().any()
    refused(some, tmp_path)


def test_scores_that_are_nan_make_no_circuit(tmp_path: Path) -> None:
    clean, corrupted = prompts(2, 6, first=1)
    model = small()
    with torch.no_grad():
        model.gpt_neox.layers[1].attention.dense.weight[3, 4] = math.nan
    with pytest.warns(NeoxLabWarning):
        refused(scores(model, clean, corrupted, METRIC, "eap"), tmp_path)
    with pytest.warns(NeoxLabWarning):
        nodes = node_scores(model, clean, corrupted, METRIC)
    with pytest.raises(InputError, match="9 of 9 scores are not known, the first that of embed"):
        nodes.circuit(nodes=3)


@pytest.mark.parametrize("cut", [False, True])
def test_searches_refuse_a_metric_that_is_nan(cut: bool) -> None:
    clean, corrupted = prompts(2, 6, first=1)
    model = small()
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[(corrupted if cut else clean)[0, 1]] = math.nan
    says = "model with every edge cut" if cut else "whole model"
    for search in (
        lambda: acdc(model, clean, corrupted, METRIC, 0.05, progress=False),
        lambda: prune_edges(model, clean, corrupted, METRIC, edges=9, steps=2, progress=False),
    ):
        with pytest.raises(InputError, match=f"The metric of the {says} is NaN"):
            search()
