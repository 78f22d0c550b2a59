"""From items to a score and its standard error, worked by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from cfutils.analysis import forgetting
from cfutils.evaluation import scores


def item_frame(values, weights):
    rows = zip("ab" * len(values), values, weights, strict=False)
    columns = ["item", "value", "weight"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(group="probe", task="prose", metric="nll")[scores.ITEM]


def test_a_score_is_a_weighted_mean_with_the_error_of_a_ratio():
    """Values 1, 3 with weights 1, 3: (1 + 9) / 4 = 2.5.

    Residuals w (v - 2.5): -1.5 and 1.5; n / (n - 1) = 2, so sqrt(2 * (2.25 + 2.25)) / 4 = 0.75.
    """
    row = forgetting.aggregate(item_frame([1, 3], [1, 3])).iloc[0]
    assert (row.value, row.stderr, row.n) == (2.5, 0.75, 2)
    assert (row.group, row.task, row.metric) == ("probe", "prose", "nll")


def test_with_equal_weights_it_is_the_mean_and_its_standard_error():
    """1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, over n = 3."""
    row = forgetting.aggregate(item_frame([1, 2, 6], [5, 5, 5])).iloc[0]
    assert row.value == 3 and row.stderr == pytest.approx(math.sqrt(7 / 3))
    assert math.isnan(forgetting.aggregate(item_frame([4], [2])).iloc[0].stderr)
