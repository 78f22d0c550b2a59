"""Intervals below `forgetting`, each worked by hand in the comment beside it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import bootstrap
from cfutils.errors import UserError

Z = 1.959964
NAN = float("nan")


def ends(value, stderr, n, metric, quantile=Z):
    """The interval of one score."""
    one = [np.array([v]) for v in (value, stderr, quantile, n, metric)]
    low, high = bootstrap.score_interval(*one)
    return float(low[0]), float(high[0])


@pytest.mark.parametrize(("count", "n"), [(5, 10), (1, 40), (37, 40)])
def test_a_share_of_independent_items_has_wilsons_interval(count, n):
    """stderr^2 = p (1 - p)/n makes n* = n."""
    p = count / n
    found = ends(p, math.sqrt(p * (1 - p) / n), n, "acc")
    assert found == pytest.approx(bootstrap.wilson(count, n), abs=1e-6)


def test_a_share_without_spread_has_an_interval_inside_its_range():
    # z^2/(n + z^2) = 3.841459/13.841459
    assert ends(0.0, 0.0, 10, "exact_match") == pytest.approx((0, 0.277533), abs=1e-6)
    assert ends(1 + 1e-15, 2e-17, 10, "exact_match") == pytest.approx((0.722467, 1), abs=1e-6)


def test_spread_over_seeds_lowers_the_effective_number_of_items():
    # p = 1/2 and stderr^2 = 0.05: n* = 5, as 2.5 of 5 items; never more than n
    half = math.sqrt(0.25 * Z**2 / 5 + Z**4 / 100) / (1 + Z**2 / 5)
    assert ends(0.5, math.sqrt(0.05), 10, "acc") == pytest.approx((0.5 - half, 0.5 + half))
    assert ends(0.5, 1e-3, 10, "acc") == pytest.approx(bootstrap.wilson(5, 10), abs=1e-6)


def test_metrics_that_are_never_negative_have_log_intervals():
    # 0.04 exp(+- 2 * 0.02/0.04) = 0.04/e, 0.04 e
    found = ends(0.04, 0.02, 100, "nll", quantile=2)
    assert found == pytest.approx((0.04 / math.e, 0.04 * math.e))
    assert ends(0.0, 0.0, 9, "kl") == (0, 0)
    assert np.isnan(ends(-1e-9, 1e-9, 9, "kl")).all()
    assert np.isnan(ends(NAN, NAN, 9, "bpb_gold")).all()


def test_other_metrics_have_symmetric_intervals():
    assert ends(-1.0, 0.5, 7, "margin", quantile=2) == (-2, 0)


def test_items_and_seeds_together():
    """a = 4, b = 9/3: sqrt(7); v = 2 * 49/9 = 10.889; t(0.975, 10.889) = 2.2037."""
    frame = pd.DataFrame({"stderr": [2.0, 2.0, 2.0], "sd": [3.0, 0.0, NAN], "n": [3, 3, 1]})
    stderr, quantile = bootstrap.over_items_and_seeds(
        frame["stderr"], frame["sd"], frame["n"], 0.95
    )
    assert stderr.tolist() == pytest.approx([math.sqrt(7), 2, 2])
    # without spread over seeds, or with one seed, the quantile is the normal one
    assert quantile.tolist() == pytest.approx([2.2037, Z, Z], abs=1e-4)


def test_the_mean_over_tasks_needs_the_same_runs():
    task = pd.DataFrame({"run": ["a", "b"], "drop": [1.0, 3.0], "stderr": [3.0, 0.0], "n": [5, 5]})
    other = task.assign(drop=[2.0, 5.0], stderr=[4.0, 2.0], n=7)
    out = bootstrap.mean_over_tasks([task, other], "acc", "run", ["drop"])
    # (1 + 2)/2 and sqrt(9 + 16)/2; (3 + 5)/2 and sqrt(0 + 4)/2
    assert out[["drop", "stderr", "n"]].to_numpy().tolist() == [[1.5, 2.5, 12], [4, 1, 12]]
    with pytest.raises(UserError, match="retained / acc: runs differ"):
        bootstrap.mean_over_tasks([task, other.iloc[::-1]], "acc", "run", ["drop"])
