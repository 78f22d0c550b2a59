"""Crossed variance by hand, and what its intervals cover where the truth is known."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats

from cfutils.analysis import bootstrap
from cfutils.analysis.crossed import Crossed, estimate
from cfutils.errors import UserError


def known(effect, *, seed=0.0, item=0.0, cell=0.0, freedom=1e9, n_seeds=3):
    """An estimate whose parts are given."""
    parts = (np.float64(part) for part in (effect, seed, item, cell, freedom))
    names = ("effect", "seed_part", "item_part", "cell_part", "item_freedom")
    return Crossed(**dict(zip(names, parts, strict=True)), n_seeds=n_seeds, n_items=9, n_units=9)


def test_two_seeds_and_three_items_by_hand():
    # means of seeds 3, 5; of items 3, 3, 6; of all 4. MS seeds 3 (1 + 1)/1 = 6, items 2 (1 + 1 + 4)/2 = 6;
    # what is left is -1 0 1 / 1 0 -1: MS 4/2 = 2. Variance (6 + 6 - 2)/6, parts (6 - 2)/6, (6 - 2)/6, 2/6
    found = estimate(np.array([[1, 2, 6], [5, 4, 6.0]]), np.ones(3))
    assert found.effect == pytest.approx(4)
    parts = (found.seed_part, found.item_part, found.cell_part, found.variance)
    assert parts == pytest.approx((2 / 3, 2 / 3, 1 / 3, 10 / 6))
    # seeds with their cells are 3/5 of it: 1/v = 0.6/1 + 0.4/2
    assert found.freedom == pytest.approx(1.25)
    half = stats.t.ppf(0.975, 1.25) * np.sqrt(10 / 6)
    assert found.interval() == pytest.approx((4 - half, 4 + half))
    assert found.p() == pytest.approx(2 * stats.t.sf(4 / np.sqrt(10 / 6), 1.25))
    assert (found.n_seeds, found.n_items, found.n_units) == (2, 3, 3)


def test_a_part_below_zero_is_zero():
    # seeds 3, 3: MS 0; items 2, 2, 5: MS 6; left -1 0 1 / 1 0 -1: MS 2. Seeds (0 - 2)/6 becomes 0
    found = estimate(np.array([[1, 2, 6], [3, 2, 4.0]]), np.ones(3))
    assert (found.seed_part, found.item_part, found.cell_part) == pytest.approx((0, 2 / 3, 1 / 3))
    assert (found.variance, found.freedom) == pytest.approx((1, 2))


def test_one_seed_is_the_weighted_mean_over_items():
    change, weight = np.array([[1, 2, 6, 3.0]]), np.array([1, 2, 3, 1.0])
    found = estimate(change, weight)
    mean, stderr = bootstrap.weighted_mean(change.T, weight)
    assert (found.effect, found.stderr) == pytest.approx((mean[0], stderr[0]))
    assert np.isnan(found.seed_part) and found.freedom == 3
    assert np.isnan(found.seeds_needed(0.1))


def test_tasks_count_alike():
    # task 0: 0 2, mean 1, variance 2/2; task 1: 3 3 3 3, without spread: mean 2, variance 1/4, one degree of freedom
    change, task = np.array([[0, 3, 3, 2, 3, 3.0]]), np.array([0, 1, 1, 0, 1, 1])
    found = estimate(change, np.ones(6), task=task)
    assert (found.effect, found.variance, found.freedom) == pytest.approx((2, 0.25, 1))


def test_items_of_a_cluster_count_once():
    change = np.array([[1, 1, 4, 4.0], [2, 2, 3, 3]])
    together = estimate(change, np.ones(4), cluster=np.array([7, 7, 3, 3]))
    single = estimate(change[:, ::2], np.ones(2))
    assert (together.effect, together.variance) == pytest.approx((single.effect, single.variance))
    assert (together.n_items, together.n_units) == (4, 2)
    assert together.variance > estimate(change, np.ones(4)).variance
    # the same number names another cluster in another task
    apart = estimate(
        change, np.ones(4), task=np.array([0, 0, 1, 1]), cluster=np.array([1, 2, 1, 2])
    )
    assert apart.n_units == 4


def test_no_spread_one_cluster_and_a_run_that_diverged():
    same = estimate(np.zeros((3, 5)), np.ones(5))
    assert (same.stderr, same.p(), same.p_equivalent(0.1)) == (0, 1, 0)
    assert estimate(np.ones((3, 5)), np.ones(5)).p() == 0
    assert np.isnan(estimate(np.ones((3, 2)), np.ones(2), cluster=np.zeros(2)).p())
    change = np.ones((3, 5))
    change[1, 2] = np.nan
    broken = estimate(change, np.ones(5))
    assert np.isnan(
        [broken.effect, broken.p(), broken.detectable(), broken.seeds_needed(0.1)]
    ).all()


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="one value for each item"):
        estimate(np.ones((2, 3)), np.ones(2))
    with pytest.raises(UserError, match=r"weight = 0\.0"):
        estimate(np.ones((2, 2)), np.array([0.0, 1]))


def test_two_one_sided_tests_by_hand():
    # stderr 0.005: from 0.01 to 0.02 are 2 of them, from -0.02 to 0.01 six; the normal tail beyond 2 is 0.02275
    found = known(0.01, item=25e-6)
    assert found.p_equivalent(0.02) == pytest.approx(0.02275, abs=1e-5)
    assert found.p() == pytest.approx(2 * 0.02275, abs=2e-5)
    # below alpha just where the 90 % interval lies within
    assert known(0.02 - 1.646 * 0.005, item=25e-6).p_equivalent(0.02) < 0.05
    assert known(0.02 - 1.644 * 0.005, item=25e-6).p_equivalent(0.02) > 0.05


def test_smallest_detectable_effect_by_hand():
    # 1.959964 + 0.841621 standard errors
    assert known(0.0, item=1.0).detectable() == pytest.approx(2.801585, abs=1e-5)
    # two degrees of freedom: 4.302653 + 1.060660
    assert known(0.0, seed=1.0).detectable() == pytest.approx(5.363313, abs=1e-5)


def test_seeds_needed_by_hand():
    # seeds alone, standard deviation 1, effect 1: t_5/sqrt 6 = 2.571/2.449 > 1, t_6/sqrt 7 = 2.447/2.646 < 1
    assert known(1.0, seed=1 / 3).seeds_needed(0.5) == 7
    # to show |0| < 1: one-sided t_3/sqrt 4 = 2.353/2 > 1, t_4/sqrt 5 = 2.132/2.236 < 1
    assert known(0.0, seed=1 / 3).seeds_needed(1.0) == 5
    # items alone: 1.96 standard errors of 1 are never less than 1
    assert known(1.0, item=1.0).seeds_needed(0.5) == np.inf
    assert known(3.0, item=1.0).seeds_needed(0.5) == 2


# ---- simulation

REPLICATIONS = 4000
MIXES = {
    # shares of variance: seeds, items, cells, clusters, seed x cluster
    "items": (0, 1, 0, 0, 0),
    "clusters": (0, 0.3, 0, 0.7, 0),
    "seeds": (1, 0, 0, 0, 0),
    "mostly seeds": (0.9, 0.1, 0, 0, 0),
    "seeds and items": (0.5, 0.5, 0, 0, 0),
    "seeds and cells": (0.6, 0.1, 0.3, 0, 0),
    "few seeds, many cells": (0.2, 0.3, 0.5, 0, 0),
    "all": (0.25, 0.2, 0.15, 0.25, 0.15),
    "clustered": (0.1, 0.2, 0.2, 0.3, 0.2),
}


@functools.lru_cache(maxsize=2)
def simulate(mix, *, n_seeds=3, n_items=200, size=5, replications=REPLICATIONS, seed=0):
    """Differences (replications, seeds, items) with mean 0, whose grand mean has variance 1, and the clusters."""
    normal = np.random.default_rng(seed).standard_normal
    n = n_items // size
    by_seed, item, cell, cluster, both = np.sqrt(mix)
    change = by_seed * np.sqrt(n_seeds) * normal((replications, n_seeds, 1))
    change = change + item * np.sqrt(n_items) * normal((replications, 1, n_items))
    change += cell * np.sqrt(n_seeds * n_items) * normal((replications, n_seeds, n_items))
    grouped = cluster * np.sqrt(n) * normal((replications, 1, n))
    grouped = grouped + both * np.sqrt(n_seeds * n) * normal((replications, n_seeds, n))
    return change + np.repeat(grouped, size, axis=-1), np.repeat(np.arange(n), size)


@pytest.mark.parametrize("name", MIXES)
def test_intervals_cover_what_they_say(name):
    """3 seeds, 200 items in clusters of 5: within two points of 95 %."""
    change, cluster = simulate(MIXES[name])
    found = estimate(change, np.ones(200), cluster=cluster)
    low, high = found.interval()
    assert abs(np.mean((low <= 0) & (high >= 0)) - 0.95) < 0.02
    low, high = found.interval(
        0.9
    )  # of the two one-sided tests: wider than need be where seeds and items mix
    assert 0.885 < np.mean((low <= 0) & (high >= 0)) < 0.935
    assert np.sqrt(np.mean(found.variance)) == pytest.approx(1, abs=0.1)


def test_nothing_but_cells_is_covered_a_little_too_well():
    found = estimate(*simulate((0, 0, 1, 0, 0))[:1], np.ones(200))
    low, high = found.interval()
    assert 0.95 <= np.mean((low <= 0) & (high >= 0)) <= 0.98


def test_clusters_that_are_overlooked_are_not_covered():
    change, _ = simulate(MIXES["clusters"])
    low, high = estimate(change, np.ones(200)).interval()
    assert np.mean((low <= 0) & (high >= 0)) < 0.85
