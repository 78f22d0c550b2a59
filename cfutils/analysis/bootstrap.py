"""Paired items as arrays, resampled means, and intervals of scores: the arithmetic below `forgetting`.

Every run of a task is resampled with the same draws, so that runs can be compared with each other and a
run alone gets the same interval as among others. Trade-off: all draws of a task are kept (n_boot x runs
numbers), because the mean over tasks needs them.

Which interval is used where:

- paired drop of one seed, over items: percentile bootstrap (`bootstrap`, `interval`);
- anything over items and seeds: a t interval with Satterthwaite's degrees of freedom
  (`over_items_and_seeds`);
- a score itself (`score_interval`): the same standard error, on a scale that respects the score's range.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from cfutils.errors import UserError, invalid_value

SHARES = frozenset({
    "acc", "acc_norm", "exact_match", "exact_match_flexible", "acc_cut", "pass@2", "pass@4", "thinks", "ended",
    "answered",
})  # fmt: skip
"""Metrics that are shares of answers: between 0 and 1."""
POSITIVE = frozenset({"nll", "bpb", "bpb_gold", "kl", "thought_tokens"})
"""Metrics that cannot fall below 0 and have no upper bound."""


def check_level(level: float) -> None:
    """Refuse a confidence level that does not lie between 0 and 1, such as 95."""
    if not 0 < level < 1:
        raise invalid_value("level", level, "a number between 0 and 1", "0.95 is usual")


def normal_quantile(level: float) -> float:
    """Half the width of a two-sided interval in standard errors: 1.96 for 0.95."""
    check_level(level)
    return float(stats.norm.ppf((1 + level) / 2))


def wilson(count: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (Wilson 1927) of the proportion count / n of independent yes-or-no items."""
    check_level(level)
    found = stats.binomtest(count, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def matrices(cell: pd.DataFrame, where: tuple) -> tuple[pd.DataFrame, np.ndarray]:
    """One (group, task, metric) as values (items x runs) and weights (items,).

    Raises `UserError` if a run has an item twice, if the runs were scored on different items, or if an
    item's weight differs between runs.
    """
    name = " / ".join(map(str, where))
    if cell.duplicated(["run", "item"]).any():
        raise UserError(f"{name}: a run has an item twice; give each run once")
    value = cell.pivot(index="item", columns="run", values="value")
    weight = cell.pivot(index="item", columns="run", values="weight")
    if weight.isna().to_numpy().any():
        raise UserError(f"{name}: runs were scored on different items; use one profile for all")
    if (weight.nunique(axis=1) > 1).any():
        raise UserError(f"{name}: an item's weight differs between runs; use one profile for all")
    return value, weight.iloc[:, 0].to_numpy(float)


def line_up(
    cell: pd.DataFrame, where: tuple
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.Index]:
    """One (group, task, metric) by item: base (n,), tuned (n, runs), weights (n,), run keys.

    Raises as `matrices`, and if there is not exactly one base.
    """
    name = " / ".join(map(str, where))
    value, weight = matrices(cell, where)
    base_runs = cell.loc[cell["recipe"] == "base", "run"].unique()
    if len(base_runs) > 1:
        raise UserError(f"{name}: items of {len(base_runs)} bases; give those of one profile")
    tuned = value.drop(columns=base_runs)
    if len(base_runs):
        base = value[base_runs[0]].to_numpy(float)
    elif where[-1] == "kl":  # KL(base || base) is 0 whether or not it was written down
        base = np.zeros(len(value))
    else:
        raise UserError(f"{name}: no items of the base; score the base too")
    return base, tuned.to_numpy(float), weight, tuned.columns


def weighted_mean(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (runs,) of items (n, runs) and its standard error; NaN for a single item.

    stderr^2 = n/(n-1) * sum w_i^2 (d_i - m)^2 / (sum w_i)^2, that of a linearised ratio mean.
    """
    n, share = len(weight), weight / weight.sum()
    mean = share @ values
    spread = (share[:, None] * (values - mean)) ** 2
    stderr = np.sqrt(spread.sum(0) * n / (n - 1)) if n > 1 else np.full(len(mean), np.nan)
    return mean, stderr


def bootstrap(
    change: np.ndarray, weight: np.ndarray, *, n_boot: int, seed: int, name: str
) -> np.ndarray:
    """Weighted means (n_boot, runs) of resampled items; runs and metrics of a task share draws."""
    n = len(weight)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    draws = np.empty((n_boot, change.shape[1]))
    for start in range(0, n_boot, 250):  # blocks bound the memory: 250 x 10,000 items is 20 MB
        rows = min(250, n_boot - start)
        picks = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n) * weight
        draws[start : start + rows] = counts @ change / counts.sum(1, keepdims=True)
    return draws


def interval(draws: np.ndarray, level: float) -> np.ndarray:
    """Percentile interval (2, runs) of the draws; NaN without draws."""
    if not len(draws):
        return np.full((2, draws.shape[1]), np.nan)
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)


def mean_over_tasks(
    frames: list[pd.DataFrame], metric: str, key: str, columns: Iterable[str]
) -> pd.DataFrame:
    """Mean of the tasks' rows, every task weighed alike, with the standard error of independent tasks.

    frames: one per task, rows identified by `key` in the same order, with `columns` (averaged), stderr
    and n (items). Raises `UserError` if the runs differ in the tasks that were scored.
    """
    if any(list(f[key]) != list(frames[0][key]) for f in frames):
        raise UserError(f"retained / {metric}: runs differ in the tasks scored; no mean")
    out = frames[0][[key]].assign(group="retained", task="mean", metric=metric)
    for column in columns:
        out[column] = np.mean([f[column] for f in frames], axis=0)
    out["stderr"] = np.sqrt(np.sum([f["stderr"] ** 2 for f in frames], axis=0)) / len(frames)
    return out.assign(n=sum(int(f["n"].iloc[0]) for f in frames))


def over_items_and_seeds(
    stderr: pd.Series, sd: pd.Series, n_seeds: pd.Series, level: float
) -> tuple[pd.Series, pd.Series]:
    """Standard error from items and seeds together, and the quantile of t that goes with it.

    With a = stderr^2 over items and b = sd^2/n_seeds over seeds the standard error is sqrt(a + b), and an
    interval reaches t_v sqrt(a + b) to either side, with v = (n_seeds - 1) (a + b)^2 / b^2
    (Satterthwaite 1946, the item part taken as known). Where there is one seed or none, a alone counts,
    with the normal quantile: the interval then does not cover other seeds.
    """
    several = n_seeds > 1
    a, b = stderr**2, (sd**2 / n_seeds).where(several, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.minimum((n_seeds - 1) * (a + b) ** 2 / b**2, 1e9)
    freedom = freedom.where(b > 0, 1e9)
    quantile = pd.Series(stats.t.ppf((1 + level) / 2, freedom), index=stderr.index)
    return np.sqrt(a + b), quantile


def score_interval(
    value: np.ndarray, stderr: np.ndarray, quantile: np.ndarray, n: np.ndarray, metric: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals of scores, which stay within the range that the metric has.

    All arguments are arrays of one length: the score, its standard error, how many standard errors the
    interval reaches (`over_items_and_seeds`), items, and the metric's name.

    - Shares of right answers: the Wilson score interval with `quantile` for z and the effective number of
      items n* = min(n, value (1 - value) / stderr^2) for n (Korn and Graubard 1998; recommended among
      others by Franco, Little, Louis and Slud 2019, doi 10.1093/jssam/smy019). A standard error of zero
      gives n* = n, so that a share of exactly 0 or 1 has an interval too. For a mean over tasks, n being
      the items of all tasks, the bound n* <= n makes the interval wider than need be, never narrower.
    - Metrics that are never negative: the delta method on the logarithm (Oehlert 1992),
      value exp(+- quantile stderr / value). A score of exactly 0 without spread has the interval [0, 0];
      any other score that is not above 0 has none (NaN).
    - Others: value +- quantile stderr.
    """
    half = quantile * stderr
    low, high = value - half, value + half
    share = np.clip(value, 0, 1)  # a share of 1 may be summed to a little more than 1
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.exp(half / value)
        logs = np.where(value > 0, [value / ratio, value * ratio], np.nan)
        logs = np.where((value == 0) & (stderr == 0), 0.0, logs)
        size = np.minimum(n, share * (1 - share) / stderr**2)
        size = np.where(stderr < 1e-9, n, size)  # all items alike, but for rounding
        z2 = quantile**2 / size
        centre = (share + z2 / 2) / (1 + z2)
        reach = np.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    shares = np.clip([centre - reach, centre + reach], 0, 1)
    kinds = [np.isin(metric, list(names)) for names in (SHARES, POSITIVE)]
    return (
        np.select(kinds, [shares[0], logs[0]], low),
        np.select(kinds, [shares[1], logs[1]], high),
    )
