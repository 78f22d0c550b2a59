"""Several tests at once, and the exact test of right and wrong answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def holm(p: Sequence[float]) -> np.ndarray:
    """p adjusted so that the chance of any false finding among all tests stays below alpha (Holm 1979).

    The k-th smallest of m is multiplied by m - k + 1, at most 1, never below an earlier one. NaN (not tested) stays
    NaN and does not count.
    """
    return _stepwise(
        p, lambda ordered: np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1))
    )


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """p adjusted so that the expected share of false ones among the findings stays below alpha (1995).

    The k-th smallest of m is multiplied by m / k, never above a later one. NaN stays NaN and does not count.
    """

    def rise(ordered: np.ndarray) -> np.ndarray:
        scaled = ordered * len(ordered) / np.arange(1, len(ordered) + 1)
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _stepwise(p, rise)


def _stepwise(p: Sequence[float], adjust) -> np.ndarray:
    p = np.asarray(p, float)
    out = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    out[order] = np.minimum(1.0, adjust(p[order]))
    return out


def mcnemar(difference: np.ndarray) -> float:
    """Two-sided exact binomial p of McNemar's test (1947) on differences of right (1) and wrong (0) answers.

    difference: (seeds, items). With one seed this is McNemar's test: of the items that one side alone has right, is
    half on each side? With several, answers to one item are not independent, so that an item counts once, by the sign
    of its sum over seeds. Items without a difference do not count; none at all gives 1. NaN gives NaN.
    """
    total = difference.sum(0)
    if not np.isfinite(total).all():
        return np.nan
    up, down = int((total > 0).sum()), int((total < 0).sum())
    return float(stats.binomtest(up, up + down, 0.5).pvalue) if up + down else 1.0
