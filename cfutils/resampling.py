"""Items of base and tuned runs lined up, and means of them resampled: arrays below `forgetting`.

Every run of a task is resampled by the same draws, so that runs can be compared with each other and
a run alone gives the same interval as among others. Trade-off: draws are kept whole, which costs
memory (n_boot x runs a task), because the mean over tasks needs them.
"""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
from scipy import stats

from cfutils.errors import UserError, bad


def check_level(level: float) -> None:
    """Refuse a confidence level that is no share between 0 and 1, such as 95."""
    if not 0 < level < 1:
        raise bad("level", level, "a share between 0 and 1", "0.95 is usual")


def normal_quantile(level: float) -> float:
    """Half the width of a two-sided interval in standard errors: 1.96 for 0.95."""
    check_level(level)
    return float(stats.norm.ppf((1 + level) / 2))


def wilson(count: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of independent yes-or-no items."""
    check_level(level)
    found = stats.binomtest(count, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def line_up(
    cell: pd.DataFrame, where: tuple
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.Index]:
    """One task and metric by item: base (n,), tuned (n, runs), weights (n,), run keys."""
    name = " / ".join(map(str, where))
    if cell.duplicated(["run", "item"]).any():
        raise UserError(f"{name}: a run has an item twice; give each run once")
    value = cell.pivot(index="item", columns="run", values="value")
    weight = cell.pivot(index="item", columns="run", values="weight")
    if weight.isna().to_numpy().any():
        raise UserError(f"{name}: runs were scored on different items; use one profile for all")
    if (weight.nunique(axis=1) > 1).any():
        raise UserError(f"{name}: an item's weight differs between runs; use one profile for all")
    base_runs = cell.loc[cell["recipe"] == "base", "run"].unique()
    if len(base_runs) > 1:
        raise UserError(f"{name}: items of {len(base_runs)} bases; give those of one profile")
    tuned = value.drop(columns=base_runs)
    if len(base_runs):
        base = value[base_runs[0]].to_numpy(float)
    elif where[-1] == "kl":  # KL(base || base) is 0 whether or not somebody wrote it down
        base = np.zeros(len(value))
    else:
        raise UserError(f"{name}: no items of the base; score the base too")
    return base, tuned.to_numpy(float), weight.iloc[:, 0].to_numpy(float), tuned.columns


def weighted_mean(change: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (runs,) of items (n, runs) and its standard error; NaN for a single item.

    stderr^2 = n/(n-1) * sum w_i^2 (d_i - m)^2 / (sum w_i)^2, that of a linearised ratio mean.
    """
    n, share = len(weight), weight / weight.sum()
    mean = share @ change
    spread = (share[:, None] * (change - mean)) ** 2
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


def macro_mean(
    cells: list[tuple[pd.DataFrame, np.ndarray]], metric: str, level: float
) -> pd.DataFrame:
    """Mean over tasks, each task equal, from the tasks' rows and their independent draws."""
    frames = [frame for frame, _ in cells]
    if any(list(f["run"]) != list(frames[0]["run"]) for f in frames):
        raise UserError(f"retained / {metric}: runs differ in the tasks scored; no mean")
    low, high = interval(np.mean([draws for _, draws in cells], axis=0), level)
    out = frames[0][["run", "group"]].assign(task="mean", metric=metric)
    for column in ("base", "tuned", "drop"):
        out[column] = np.mean([f[column] for f in frames], axis=0)
    out["stderr"] = np.sqrt(np.sum([f["stderr"] ** 2 for f in frames], axis=0)) / len(frames)
    return out.assign(low=low, high=high, n=sum(int(f["n"].iloc[0]) for f in frames))


def over_items_and_seeds(
    stderr: pd.Series, sd: pd.Series, n_seeds: pd.Series, level: float
) -> tuple[pd.Series, pd.Series]:
    """Standard error from items and seeds together, and half the width of its interval.

    With a = stderr^2 over items and b = sd^2/n_seeds over seeds: sqrt(a + b), and t_v sqrt(a + b)
    with v = (n_seeds - 1) (a + b)^2 / b^2 (Satterthwaite 1946, item part taken as known). NaN
    where there is one seed.
    """
    a, b = stderr**2, sd**2 / n_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.minimum((n_seeds - 1) * (a + b) ** 2 / b**2, 1e9)
    freedom = freedom.where(b > 0, 1e9)
    return np.sqrt(a + b), stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(a + b)
