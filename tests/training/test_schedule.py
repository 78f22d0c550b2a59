"""Linear warm-up, then a cosine to zero: rates worked by hand."""

from __future__ import annotations

import math

import pytest

from cfutils.training import schedule


@pytest.mark.parametrize(
    "warm, total, rates",
    [
        # warm-up 1/2, 1; then (1 + cos(pi i / 4)) / 2 for i = 0..3
        (2, 6, [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (1, 3, [1, 1, 0.5]),  # cos(pi / 2) = 0
        (0, 2, [1, 0.5]),
        (4, 3, [0.25, 0.5, 0.75]),  # a warm-up longer than the run
        (1, 1, [1]),
    ],
)
def test_rates_by_hand(warm, total, rates):
    found = [schedule.learning_rate(step, peak=3e-3, warm=warm, total=total) for step in range(total)]
    assert found == pytest.approx([3e-3 * rate for rate in rates])


def test_the_rate_behind_the_last_step_is_zero():
    assert schedule.learning_rate(10, peak=1.0, warm=2, total=10) == 0
