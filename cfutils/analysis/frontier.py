"""Recipes at one target score: each on its own frontier, the runs that differ in its knob or learning rate.

Retained scores are compared where target scores are equal. Between the points of a frontier, in the order of their
target score, every item's score is interpolated linearly; so a recipe at a target score is a weighted mean of its
runs, with weights for each seed that depend on target scores alone, and the same statistics (`crossed`) serve. So
does the area under the frontier. The weights' own noise, that of the target scores, is not in the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cfutils.analysis.claims import BITS, POSITION, Measure
from cfutils.analysis.paired import Line, Pool
from cfutils.errors import UserError


def weights_at(targets: Sequence[float], at: float | Sequence[float]) -> np.ndarray:
    """Weights of points with given target scores that interpolate between the two around `at`.

    Beyond either end the nearest point has all the weight; points at one target score share it. Returns (points,), or
    (len(at), points); each row sums to 1.
    """
    levels, place = np.unique(np.asarray(targets, float), return_inverse=True)
    equal = (place == np.arange(len(levels))[:, None]) / np.bincount(place)[:, None]
    hats = [np.interp(at, levels, hat) for hat in np.eye(len(levels))]
    return np.stack(hats, axis=-1) @ equal


def weights_over(targets: Sequence[float], low: float, high: float) -> np.ndarray:
    """Weights (points,) whose mean is that of the interpolated frontier between two target scores.

    This is the area under the frontier (trapezoids) divided by the width of the range.
    """
    targets = np.asarray(targets, float)
    knots = np.unique([low, high, *targets[(targets > low) & (targets < high)]])
    return np.trapezoid(weights_at(targets, knots), knots, axis=0) / (high - low)


def at_target(pool: Pool, line: Line, seeds: Sequence[int], targets: np.ndarray) -> np.ndarray:
    """Weights (seeds, runs) of a recipe's runs at a target score (`pool.target`) for each seed.

    Points whose target score is NaN in any seed (a run diverged) are left out if there are others.
    """
    runs = line.at(seeds)
    score = pool.target[runs]
    finite = np.isfinite(score).all(1)
    if finite.any():
        runs, score = runs[finite], score[finite]
    elif len(runs) > 1:
        runs, score = runs[:1], score[:1]
    out = np.zeros((len(seeds), len(pool.runs)))
    for row, target in enumerate(targets):
        usable = len(runs) > 1 and np.isfinite(target)
        share = weights_at(score[:, row], target) if usable else np.eye(len(runs))[0]
        np.add.at(out[row], runs[:, row], share)
    return out


def areas(
    items: pd.DataFrame,
    *,
    recipes: Sequence[str] | None = None,
    between: tuple[float, float] | None = None,
    against: str | None = None,
    measure: Measure = BITS,
    level: float = 0.95,
) -> pd.DataFrame:
    """Mean retained drop of each recipe over a range of target scores: its area under the frontier.

    recipes: those compared; None takes all with two points or more. between: range of the target NLL (nats per token);
    None takes what the frontiers of all these recipes have in common, in every seed. against: also the difference
    from this recipe, seed by seed and item by item (above 0: worse than it), each over what the two have in common.

    Returns columns: recipe, metric, points, target_low, target_high, drop, low, high, difference, difference_low,
    difference_high, seeds, items; NaN for a recipe whose frontier does not reach over `between`. Raises `UserError` if
    there is no base, no frontier, or no common range.
    """
    pool = Pool(items)
    scores = pool.scores(measure)
    if pool.base is None or scores is None:
        raise UserError(f"items hold no base or no {measure.metric} of group {measure.group}")
    lines = {name: pool.line(name) for name in recipes or pool.recipes}
    lines = {name: line for name, line in lines.items() if line is not None and len(line.runs) > 1}
    if not lines:
        raise UserError("items hold no recipe with two points: give those of the study frontier")
    seeds = sorted(set.intersection(*(set(line.seeds) for line in lines.values())))
    ends = {name: _range(pool, line, seeds) for name, line in lines.items()}
    if against is not None and against not in lines:
        raise UserError(f"items hold no two points of {against}: give those of the study frontier")
    spans = {
        name: between or _common([ends[name], ends[against]] if against else list(ends.values()))
        for name in lines
    }
    if not any(low < high for low, high in spans.values()):
        ranges = ", ".join(f"{name} {a:.3g} to {b:.3g}" for name, (a, b) in ends.items())
        raise UserError(
            f"these frontiers have no target {POSITION} in common ({ranges}); name fewer recipes"
        )
    rows = []
    for name, line in lines.items():
        low, high = spans[name]
        mixes = {
            one: _over(pool, lines[one], seeds, low, high)
            for one in {name, against or name}
            if low < high and ends[one][0] <= low and high <= ends[one][1]
        }
        row = {"recipe": name, "metric": measure.metric, "points": len(line.runs), "target_low": low,
               "target_high": high, "seeds": len(seeds), "items": len(scores.weight)}  # fmt: skip
        if name in mixes:
            drop = scores.estimate(pool.only(pool.base, len(seeds)) - mixes[name])
            row |= dict(
                zip(("drop", "low", "high"), (drop.effect, *drop.interval(level)), strict=True)
            )
        if name in mixes and against in mixes and name != against:
            gap = scores.estimate(mixes[against] - mixes[name])
            ends_of = (gap.effect, *gap.interval(level))
            row |= dict(
                zip(("difference", "difference_low", "difference_high"), ends_of, strict=True)
            )
        rows.append(row)
    columns = ["recipe", "metric", "points", "target_low", "target_high", "drop", "low", "high"]
    columns += ["difference", "difference_low", "difference_high", "seeds", "items"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _range(pool: Pool, line: Line, seeds: Sequence[int]) -> tuple[float, float]:
    """Range of target scores that a frontier spans in every seed; NaN where a run diverged."""
    score = pool.target[line.at(seeds)]
    return float(score.min(0).max()), float(score.max(0).min())


def _common(ends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """What ranges have in common; a frontier of which a run diverged, or whose points coincide, has no say."""
    known = [(low, high) for low, high in ends if low < high]
    return (max(low for low, _ in known), min(high for _, high in known)) if known else (0.0, 0.0)


def _over(pool: Pool, line: Line, seeds: Sequence[int], low: float, high: float) -> np.ndarray:
    runs = line.at(seeds)
    out = np.zeros((len(seeds), len(pool.runs)))
    for row in range(len(seeds)):
        np.add.at(out[row], runs[:, row], weights_over(pool.target[runs[:, row]], low, high))
    return out
