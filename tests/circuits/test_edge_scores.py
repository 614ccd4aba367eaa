"""Scores of edges against autograd on the network written out by hand, and against runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuit_oracle import ByHand
from patching_oracle import prompts, small
from test_circuit_runs import METRIC, texts
from torch import Tensor

from neox_lab.circuits import scores
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.circuits.scoring import METHODS
from neox_lab.errors import InputError
from neox_lab.experiments.prompt_pairs import pair

STEPS = 3


def slopes_by_hand(
    hand: ByHand, ids: Tensor, wrote: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Gradient of the metric at what each reader sees ``[pos, d_model]``.

    Args:
        wrote: what some writers write, instead of what they would.
    """
    leaves: dict[str, Tensor] = {}

    def seen(reader: str, before: dict[str, Tensor]) -> Tensor:
        total = torch.zeros_like(before["embed"])
        for name, value in before.items():
            total = total + (wrote[name] if wrote and name in wrote else value)
        leaves[reader] = torch.zeros_like(total).requires_grad_()
        return total + leaves[reader]

    logits = hand.run(ids, seen)[1][-1]
    names = list(leaves)
    ends = [leaves[name] for name in names]
    found = torch.autograd.grad(logits[7] - logits[11], ends, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def by_hand(
    hand: ByHand, method: str, clean: Tensor, corrupted: Tensor
) -> dict[tuple[str, str], float]:
    with torch.no_grad():
        own, other = hand.run(clean)[0], hand.run(corrupted)[0]
    change = {name: other[name] - own[name] for name in own}

    def embedded(share: float) -> dict[str, Tensor]:
        return {"embed": own["embed"] + share * change["embed"]}

    places, shares = np.polynomial.legendre.leggauss(STEPS)
    rule = [((1 + x) / 2, share / 2) for x, share in zip(places, shares, strict=True)]
    found: dict[tuple[str, str], float] = {}

    def averaged(each: list[dict[str, Tensor]], reader: str) -> Tensor:
        return sum(w * e[reader] for (_, w), e in zip(rule, each, strict=True))  # type: ignore[return-value]

    if method == "ig-activations":
        for name in own:
            each = [
                slopes_by_hand(hand, clean, {name: own[name] + x * change[name]}) for x, _ in rule
            ]
            for reader in each[0]:
                slope = averaged(each, reader)
                found[name, reader] = float((change[name] * slope).sum())
        return found
    if method == "eap":
        rule = [(0, 1)]
    elif method == "both-ends":
        rule = [(0, 0.5), (1, 0.5)]
    each = [slopes_by_hand(hand, clean, embedded(x)) for x, _ in rule]
    for reader in each[0]:
        slope = averaged(each, reader)
        for name in own:
            found[name, reader] = float((change[name] * slope).sum())
    return found


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "exact"])
def test_estimates_are_those_of_autograd_by_hand(method: str, parallel: bool) -> None:
    model = small(use_parallel_residual=parallel).double()
    clean, corrupted, clean_side, corrupted_side = texts()
    result = scores(model, clean_side, corrupted_side, METRIC, method, steps=STEPS)  # type: ignore[arg-type]
    assert result.per_row is not None
    hand = ByHand(model)
    for row, ids in enumerate(clean):
        expected = by_hand(hand, method, ids, corrupted[row])
        for w, writer in enumerate(result.labels["writer"]):
            for r, reader in enumerate(result.labels["reader"]):
                if result.is_computed[w, r]:
                    want = torch.tensor(expected[writer, reader])
                    torch.testing.assert_close(
                        result.per_row[row, w, r], want, rtol=2e-6, atol=2e-6
                    )
    torch.testing.assert_close(result.values, result.per_row.mean(0), equal_nan=True)


@pytest.mark.parametrize("parallel", [True, False])
def test_exact_scores_are_runs_without_the_edge(parallel: bool) -> None:
    model = small(use_parallel_residual=parallel).double()
    _, _, clean, corrupted = texts()
    result = scores(model, clean, corrupted, METRIC, "exact")
    runs = CircuitRuns(pair(model, corrupted, clean, METRIC), "resample")
    table = result.is_computed
    without = table.repeat(int(table.sum()), 1, 1)
    for number, (w, r) in enumerate(table.nonzero().tolist()):
        without[number, w, r] = False
    expected = (runs.measure(without) - runs.clean).mean(-1)
    torch.testing.assert_close(result.values[table].double(), expected, rtol=1e-5, atol=1e-5)
    assert result.per_row is not None and result.check().largest_miss < 1e-5
    torch.testing.assert_close(result.values, result.per_row.mean(0), equal_nan=True)
    everything = runs.measure(torch.zeros_like(table)[None]).mean() - runs.clean.mean()
    assert result.total == pytest.approx(float(everything), abs=1e-5)


def test_the_integral_over_a_writer_is_the_effect_of_replacing_it() -> None:
    model = small().double()
    clean, corrupted = prompts(3, 8, first=2)
    result = scores(model, clean, corrupted, METRIC, "ig-activations", steps=40)
    runs = CircuitRuns(pair(model, corrupted, clean, METRIC), "resample")
    table = result.is_computed
    without = table.repeat(len(table), 1, 1)
    without[torch.arange(len(table)), torch.arange(len(table))] = False
    expected = (runs.measure(without) - runs.clean).mean(-1)
    torch.testing.assert_close(
        result.values.nan_to_num().sum(1).double(), expected, rtol=1e-4, atol=1e-4
    )


def test_gradients_of_weights_and_hooks_stay_as_they_were() -> None:
    model = small()
    clean, corrupted = prompts(2, 6, first=1)
    before = model(clean).logits
    for method in METHODS:
        scores(model, clean, corrupted, METRIC, method, steps=2)  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(clean).logits, before)


def test_bad_questions_are_named() -> None:
    model = small()
    clean, corrupted = prompts(2, 6, first=1)
    with pytest.raises(InputError, match="method"):
        scores(model, clean, corrupted, METRIC, "acdc")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="steps"):
        scores(model, clean, corrupted, METRIC, steps=0)
    with pytest.raises(InputError, match="same tokens"):
        scores(model, clean, clean, METRIC)
    with pytest.raises(InputError, match="gradient"):
        scores(model, clean, corrupted, lambda logits: logits.argmax(-1).float().mean())
