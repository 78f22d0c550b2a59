"""Recipes at one target score, and areas under frontiers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cfutils.analysis import contrasts, frontier
from cfutils.analysis.claims import BITS
from cfutils.analysis.paired import Pool
from cfutils.errors import UserError

NAN = float("nan")


def test_weights_at_a_target_score():
    assert frontier.weights_at([1, 4, 2], 3).tolist() == [0, 0.5, 0.5]
    assert frontier.weights_at([1, 4, 2], [0, 1.25, 9]).tolist() == [
        [1, 0, 0],
        [0.75, 0, 0.25],
        [0, 1, 0],
    ]
    # points at one score share it
    assert frontier.weights_at([2, 2, 4], [2, 3]).tolist() == [[0.5, 0.5, 0], [0.25, 0.25, 0.5]]
    assert frontier.weights_at([2], 7).tolist() == [1]


def test_weights_over_a_range():
    # points 0 1 3 from 0.5 to 2: half of it with means 1/4 3/4 0, the rest with 0 3/4 1/4, by widths 0.5 and 1
    assert frontier.weights_over([0, 1, 3], 0.5, 2) == pytest.approx(
        [0.125 / 1.5, 1.125 / 1.5, 0.25 / 1.5]
    )


@pytest.fixture
def sweep(make_items, over_seeds):
    """cfs at target NLL 0.75, and ft at 1 and 0.5: bits 1.3, 1.2 and 2."""
    return make_items(
        [
            *over_seeds("cfs", bits=1.3, nll=0.75),
            *over_seeds("ft", bits=1.2, nll=1.0, lr=0.1),
            *over_seeds("ft", bits=2.0, nll=0.5, lr=0.2),
        ]
    )


def test_a_rival_is_interpolated_at_the_target_score_of_each_seed(sweep):
    own = (sweep["recipe"] == "cfs") & (sweep["metric"] == "nll")
    sweep.loc[own & (sweep["seed"] == 1), "value"] = 0.6
    pool = Pool(sweep)
    pair = contrasts.against(pool, "cfs", "ft")
    weights = pair.theirs[:, pool.line("ft").runs.T]
    # 0.75 lies half way from 1 to 0.5; 0.6 has a fifth of the first
    assert np.array([weights[i, i] for i in range(3)]) == pytest.approx(
        np.array([[0.5, 0.5], [0.2, 0.8], [0.5, 0.5]])
    )
    assert pair.interpolated and pair.matched
    # rival 1.6, 1.84, 1.6: mean 1.68
    assert pool.scores(BITS).estimate(pair.ours - pair.theirs).effect == pytest.approx(0.38)


def test_a_point_that_diverged_is_left_out(sweep):
    lost = (sweep["lr"] == 0.2) & (sweep["seed"] == 0)
    sweep.loc[lost, "value"] = NAN
    pool = Pool(sweep)
    pair = contrasts.against(pool, "cfs", "ft")
    assert not pair.interpolated
    assert not pair.matched  # 1 is not 0.75
    assert pool.scores(BITS).estimate(pair.ours - pair.theirs).effect == pytest.approx(-0.1)


def test_areas_by_hand(sweep, make_items, over_seeds):
    out = frontier.areas(sweep).set_index("recipe")
    # drops 0.2 and 1 at the ends of the range: 0.6 between them; cfs has one point and no frontier
    assert out.index.tolist() == ["ft"]
    row = out.loc["ft"]
    assert (row["drop"], row["target_low"], row["target_high"], row["points"]) == pytest.approx(
        (0.6, 0.5, 1, 2)
    )
    assert row["low"] < 0.6 < row["high"]
    out = frontier.areas(sweep, between=(0.9, 1.0)).set_index("recipe")
    # at 0.9 the drop is 0.36: mean of 0.2 and 0.36
    assert out.loc["ft", "drop"] == pytest.approx(0.28)
    assert np.isnan(frontier.areas(sweep, between=(0.9, 1.1))["drop"][0])


def test_areas_are_compared_over_what_frontiers_have_in_common(make_items, over_seeds):
    runs = [
        *over_seeds("ft", bits=1.2, nll=1.0, lr=0.1),
        *over_seeds("ft", bits=2.0, nll=0.5, lr=0.2),
    ]
    runs += [
        *over_seeds("cfs", bits=1.1, nll=0.9, replay_weight=1.0),
        *over_seeds("cfs", bits=1.3, nll=0.4, lr=1.0),
    ]
    out = frontier.areas(make_items(runs), against="cfs").set_index("recipe")
    assert out.loc["ft", ["target_low", "target_high"]].tolist() == pytest.approx([0.5, 0.9])
    # ft: 2 at 0.5, 1.36 at 0.9: drop 0.68. cfs over its own range: 1.3 at 0.4, 1.1 at 0.9
    assert out["drop"].to_dict() == pytest.approx({"ft": 0.68, "cfs": 0.2})
    # and 1.26 at 0.5, 1.1 at 0.9, where ft is: drop 0.18
    assert out.loc["ft", "difference"] == pytest.approx(0.5)
    assert out.loc["ft", "difference_low"] < 0.5 < out.loc["ft", "difference_high"]
    assert np.isnan(out.loc["cfs", "difference"])


def test_frontiers_without_a_common_range_are_named(make_items, over_seeds):
    runs = [
        *over_seeds("ft", bits=1.2, nll=1.0, lr=0.1),
        *over_seeds("ft", bits=2.0, nll=0.8, lr=0.2),
    ]
    runs += [
        *over_seeds("cfs", bits=1.1, nll=0.6, lr=0.1),
        *over_seeds("cfs", bits=1.3, nll=0.4, lr=0.2),
    ]
    with pytest.raises(UserError, match=r"ft 0.8 to 1, cfs 0.4 to 0.6"):
        frontier.areas(make_items(runs))
    with pytest.raises(UserError, match="no recipe with two points"):
        frontier.areas(make_items(over_seeds("ft", bits=1.2, nll=1.0)))
