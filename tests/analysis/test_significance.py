"""Corrections for several tests, and McNemar's test, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cfutils.analysis.significance import benjamini_hochberg, holm, mcnemar

NAN = float("nan")


def test_holm_by_hand():
    # 0.01 * 3, 0.03 * 2, 0.04 * 1 raised to 0.06; what was not tested is no member of the family
    assert holm([0.01, 0.04, NAN, 0.03]) == pytest.approx([0.03, 0.06, NAN, 0.06], nan_ok=True)
    assert holm([0.5, 0.6]).tolist() == [1, 1]
    assert holm([]).tolist() == []


def test_benjamini_hochberg_by_hand():
    # 0.04 * 3/3, 0.03 * 3/2 lowered to 0.04, 0.01 * 3
    assert benjamini_hochberg([0.01, 0.04, NAN, 0.03]) == pytest.approx(
        [0.03, 0.04, NAN, 0.04], nan_ok=True
    )


def test_mcnemar_by_hand():
    # 8 and 1 of 9: 2 (1 + 9)/2^9
    difference = np.array([[1] * 8 + [-1] + [0] * 20])
    assert mcnemar(difference) == pytest.approx(20 / 512)
    # an item counts once: its seeds agree, or cancel
    assert mcnemar(np.vstack([difference, difference])) == pytest.approx(20 / 512)
    assert mcnemar(np.vstack([difference, -difference])) == 1
    assert mcnemar(np.zeros((1, 5))) == 1
    assert np.isnan(mcnemar(np.array([[1, NAN]])))
