"""Intervals, p-values and correlations, against scipy or their formulas."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neox_lab.data import statistics
from neox_lab.errors import InputError

NUMBERS = st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=12)


def test_statistics_of_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(8, 2, generator=generator) + torch.tensor([0.0, 5.0])
    low, high = statistics.bootstrap_interval(samples)
    mean = samples.mean(dim=0)
    assert bool(((low < mean) & (mean < high)).all())
    error = statistics.standard_error(samples)
    torch.testing.assert_close(error, samples.std(dim=0) / 8**0.5)
    assert float(high[1] - low[1]) == pytest.approx(3.9 * float(error[1]), rel=0.3)
    exact = statistics.sign_flip_p_values(samples)
    assert float(exact[1]) == pytest.approx(2 / 2**8)  # all plus, and all minus
    assert float(exact[0]) > 0.05
    many = torch.randn(30, 1, generator=generator)
    assert float(statistics.sign_flip_p_values(many + 3)[0]) == pytest.approx(1 / 2001)
    assert float(statistics.sign_flip_p_values(torch.zeros(5, 1))[0]) == 1.0


def test_grids_get_what_scipy_gives_each_cell() -> None:
    samples = torch.randn(9, 3, 2, generator=torch.Generator().manual_seed(1)).double() + 0.3
    exact = stats.permutation_test(
        (samples.numpy(),),
        lambda x, axis: np.abs(x.mean(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        alternative="greater",  # of the size of the mean: two-sided
        n_resamples=math.inf,
    )
    np.testing.assert_allclose(statistics.sign_flip_p_values(samples), exact.pvalue)
    np.testing.assert_allclose(statistics.standard_error(samples), stats.sem(samples, axis=0))
    low, high = statistics.bootstrap_interval(samples, draws=20_000)
    wanted = stats.bootstrap(
        (samples.numpy(),), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    np.testing.assert_allclose(low, wanted.low, atol=0.03)
    np.testing.assert_allclose(high, wanted.high, atol=0.03)


def test_bootstrap_of_a_statistic_draws_rows_anew() -> None:
    values = np.random.default_rng(3).normal(size=40)
    drawn = np.random.default_rng(0).integers(0, 40, (1000, 40))
    ends = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    assert statistics.mean_interval(values) == pytest.approx(tuple(ends))
    ends = np.quantile(np.median(values[drawn], axis=1), [0.05, 0.95])
    found = statistics.statistic_interval(
        40, lambda rows: float(np.median(values[rows])), level=0.9
    )
    assert found == pytest.approx(tuple(ends))


def test_one_row_says_nothing_about_others() -> None:
    """An interval without width would say that it does."""
    ends = [
        *statistics.mean_interval([2.5]),
        *statistics.statistic_interval(1, lambda rows: 2.5),
        *statistics.bootstrap_interval(torch.ones(1, 3)),
    ]
    assert all(bool(torch.as_tensor(end).isnan().all()) for end in ends)


def test_an_interval_of_what_is_not_finite_is_nan() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in ([1.0, math.nan, 2.0], [1.0, math.inf, 2.0]):
            assert all(map(math.isnan, statistics.mean_interval(values)))


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(8, 10, 0.490, 0.943), (0, 10, 0.0, 0.278)]
)
def test_wilson_interval(right: int, count: int, low: float, high: float) -> None:
    assert statistics.wilson_interval(right, count) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("count", [1, 7, 54, 400])
def test_wilson_interval_is_scipys(count: int, level: float) -> None:
    for right in {0, 1, count // 3, count - 1, count}:
        known = stats.binomtest(right, count).proportion_ci(level, method="wilson")
        ours = statistics.wilson_interval(right, count, level)
        assert ours == pytest.approx((known.low, known.high), abs=1e-12)
        assert 0 <= ours[0] <= right / count <= ours[1] <= 1


def test_wilson_interval_ends_where_shares_end() -> None:
    """Rounding would leave 10 of 10 right outside of their own interval."""
    for count in range(1, 200):
        assert statistics.wilson_interval(0, count)[0] == 0
        assert statistics.wilson_interval(count, count)[1] == 1


def test_intervals_of_too_little_are_not_numbers() -> None:
    for interval in (statistics.wilson_interval(0, 0), statistics.wilson_interval(math.nan, 5)):
        assert all(map(math.isnan, interval))
    assert all(map(math.isnan, statistics.normal_interval([1.0])))
    assert bool(statistics.standard_error(torch.ones(1, 2)).isnan().all())


def test_normal_interval() -> None:
    low, high = statistics.normal_interval([1.0, 2.0, 4.0, 5.0])
    margin = 1.959964 * np.std([1, 2, 4, 5], ddof=1) / 2
    assert (low, high) == pytest.approx((3 - margin, 3 + margin))


@settings(max_examples=50, deadline=None)
@given(one=NUMBERS, seed=st.integers(0, 9))
def test_correlations_are_pandas(one: list[float], seed: int) -> None:
    import pandas as pd

    pair = pd.DataFrame({"one": one, "other": np.random.default_rng(seed).normal(size=len(one))})
    for ranks, name in ((False, "pearson"), (True, "spearman")):
        found = statistics.correlation(
            pair["one"].to_numpy(), pair["other"].to_numpy(), ranks=ranks
        )
        if pair["one"].nunique() == 1:
            assert math.isnan(found)
        elif np.ptp(one) > 1e-3:
            wanted = pair["one"].corr(pair["other"], method=name)
            assert found == pytest.approx(wanted, abs=1e-6)
    assert math.isnan(statistics.correlation(np.ones(1), np.ones(1)))


def test_no_certainty_where_there_is_no_number() -> None:
    effects = torch.tensor([[1.0, float("nan")], [2.0, 2.0], [3.0, 1.0]])
    values = statistics.sign_flip_p_values(effects)
    assert values[0] == pytest.approx(0.25)
    assert values[1].isnan()


def test_effects_that_cancel_say_nothing() -> None:
    """Their mean is nothing but rounding, and every flip is as far from zero."""
    effects = torch.tensor([[0.1], [0.2], [-0.3]], dtype=torch.float64)
    assert statistics.sign_flip_p_values(effects).item() == 1.0


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, math.nan, "0.95", True])
def test_a_level_is_a_share(level: Any) -> None:
    samples = torch.randn(5, 2)
    for ask in (
        lambda: statistics.bootstrap_interval(samples, level),
        lambda: statistics.statistic_interval(5, lambda rows: float(rows.mean()), level=level),
        lambda: statistics.wilson_interval(3, 5, level),
        lambda: statistics.normal_interval([1.0, 2.0], level),
    ):
        with pytest.raises(InputError, match="level="):
            ask()


@pytest.mark.parametrize("draws", [0, -1, 1.5, True])
def test_something_is_drawn(draws: Any) -> None:
    samples = torch.randn(14, 2)
    for ask in (
        lambda: statistics.bootstrap_interval(samples, draws=draws),
        lambda: statistics.sign_flip_p_values(samples, draws=draws),
        lambda: statistics.statistic_interval(5, lambda rows: float(rows.mean()), draws=draws),
    ):
        with pytest.raises(InputError, match="draws="):
            ask()


def test_no_pair_has_no_mean() -> None:
    for empty in (torch.zeros(0, 3), torch.zeros(0), torch.tensor(1.0)):
        for ask in (
            statistics.standard_error,
            statistics.bootstrap_interval,
            statistics.sign_flip_p_values,
        ):
            with pytest.raises(InputError, match="no pair"):
                ask(empty)
    with pytest.raises(InputError, match="no row"):
        statistics.mean_interval([])


def test_a_statistic_of_nan_is_nan() -> None:
    rows = np.array([1.0, np.nan, 3.0, 2.0])
    straight = np.arange(4.0)
    pairs = (statistics.mean_interval(rows), statistics.normal_interval(rows))
    found = [
        *(end for pair in pairs for end in pair),
        *(statistics.correlation(rows, straight, ranks=ranks) for ranks in (False, True)),
    ]
    grid = torch.tensor(np.stack([rows, straight], axis=1))  # the second cell is sound
    for cells in (
        statistics.standard_error(grid),
        *statistics.bootstrap_interval(grid),
        statistics.sign_flip_p_values(grid),
    ):
        assert math.isnan(cells[0]) and math.isfinite(cells[1])
    assert all(map(math.isnan, found))
