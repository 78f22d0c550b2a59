"""What is chosen before anything is compared: learning rates, and how much of a run an average keeps.

Both choices are functions of scores alone. Learning rates are chosen by the validation part of the target, on runs
with seeds of their own; neither retained scores nor the items that are scored have a say in them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cfutils.analysis import bootstrap
from cfutils.analysis.forgetting import LOWER_IS_BETTER
from cfutils.errors import UserError, invalid_value

POINT = ["lr", "replay_weight", "alpha", "strength"]
"""What the runs of one recipe's grid differ in."""


def choose_lr(items: pd.DataFrame) -> pd.DataFrame:
    """Choose each recipe's learning rate by validation NLL alone (study "selection").

    A point of the grid scores the weighted mean NLL of the validation items, each averaged over seeds. The best is the
    lowest; points whose paired difference from it is at most one standard error (over items,
    `bootstrap.weighted_mean`) tie with it, and of these the smallest learning rate is chosen, and its lowest NLL.
    With a single item nothing ties.

    items: recipe, seed, run, `POINT`, group, metric, item, value, weight; rows of other groups, metrics and of the base
    are ignored. Returns one row per recipe in the order of the items: recipe, `POINT`, nll (nats per token), best_lr,
    best_nll, points (of the grid), tied. Raises `UserError` without validation items.
    """
    wanted = (items["group"] == "validation") & (items["metric"] == "nll") & (items["recipe"] != "base")
    if not wanted.any():
        raise UserError('items hold no NLL of group "validation": give those of the study "selection"')
    rows = []
    for recipe, own in items[wanted].groupby("recipe", sort=False):
        cells = own.assign(point=own.groupby(POINT, dropna=False, sort=False).ngroup())
        points = cells.drop_duplicates("point").set_index("point")[POINT]
        value = cells.pivot_table("value", "item", "point", aggfunc="mean")
        weight = cells.groupby("item")["weight"].first()[value.index].to_numpy(float)
        nll, _ = bootstrap.weighted_mean(value.to_numpy(float), weight)
        best = int(np.argmin(nll))
        gap, stderr = bootstrap.weighted_mean(value.to_numpy(float) - value.to_numpy(float)[:, [best]], weight)
        ties = points[(gap <= np.nan_to_num(stderr)) | (np.arange(len(gap)) == best)]
        smallest = ties.index[ties["lr"] == ties["lr"].min()]
        chosen = min(smallest, key=lambda point: nll[point])
        rows.append({
            "recipe": recipe, **points.loc[chosen], "nll": nll[chosen], "best_lr": points.loc[best, "lr"],
            "best_nll": nll[best], "points": len(points), "tied": len(ties),
        })  # fmt: skip
    return pd.DataFrame(rows)


def choose_alpha(
    items: pd.DataFrame,
    *,
    window: float,
    recipe: str = "wise_ft",
    of: str = "ft",
    metric: str = "bpb_gold",
    target_metric: str = "nll",
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Choose alpha of an average: the best retained score among those whose target score is near that of the run.

    The run itself is alpha = 1. An alpha is allowed if its target score is at most `window` worse than that of
    alpha = 1 (units of `target_metric`); the allowed one with the best mean over retained tasks is chosen. Seeds, and
    items within each task, are resampled `n_boot` times and the choice is made again: its quantiles are the interval,
    and with one seed it covers items alone.

    items: of one study with both recipes at one learning rate. Returns one row per alpha: alpha, gap (target,
    above 0 is worse), retained, allowed, chosen, share (of resamples that choose it), and the interval of the chosen
    alpha: low, high. Raises `UserError` if there is no run of `of` at that rate.
    """
    if window < 0:
        raise invalid_value("window", window, "a difference of target scores from 0")
    bootstrap.check_level(level)
    own = items[items["recipe"] == recipe]
    ends = items[(items["recipe"] == of) & items["lr"].isin(own["lr"])].assign(alpha=1.0)
    if own.empty or ends.empty or own["lr"].nunique() > 1:
        raise UserError(f"items hold no run of {recipe} and of {of} at one learning rate")
    both = pd.concat([own[own["alpha"] < 1], ends])
    target = _arrays(both[(both["group"] == "target") & (both["metric"] == target_metric)])
    tasks = _arrays(both[(both["group"] == "retained") & (both["metric"] == metric)])
    if len(target) != 1 or not tasks:
        raise UserError(f"items hold no target {target_metric} or no retained {metric} of {recipe} and {of}")
    alphas = np.array(sorted(both["alpha"].unique()))
    signs = [-1.0 if name in LOWER_IS_BETTER else 1.0 for name in (target_metric, metric)]
    n_seeds, rng = target[0][0].shape[2], np.random.default_rng(seed)

    def scores(resampled: bool) -> tuple[np.ndarray, np.ndarray]:
        seeds = rng.integers(n_seeds, size=n_seeds) if resampled else np.arange(n_seeds)
        found = []
        for value, weight in (*target, *tasks):
            picks = rng.integers(len(weight), size=len(weight)) if resampled else np.arange(len(weight))
            found.append(weight[picks] @ value[picks][:, :, seeds].mean(2) / weight[picks].sum())
        return signs[0] * (found[0][-1] - found[0]), np.mean(found[1:], axis=0)

    def choice(gap: np.ndarray, retained: np.ndarray) -> int:
        return int(np.argmax(np.where(gap <= window, signs[1] * retained, -np.inf)))

    gap, retained = scores(False)
    again = np.array([choice(*scores(True)) for _ in range(n_boot)], int)
    low, high = np.quantile(alphas[again], [(1 - level) / 2, (1 + level) / 2]) if n_boot else (np.nan, np.nan)
    return pd.DataFrame({
        "alpha": alphas, "gap": gap, "retained": retained, "allowed": gap <= window,
        "chosen": np.arange(len(alphas)) == choice(gap, retained),
        "share": np.bincount(again, minlength=len(alphas)) / max(1, n_boot), "low": low, "high": high,
    })  # fmt: skip


def _arrays(items: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return values (items, alphas, seeds) and weights (items,) of each task; raises if they do not line up."""
    found = []
    for name, cell in items.groupby("task", sort=False):
        table = cell.pivot(index="item", columns=["alpha", "seed"], values="value").sort_index(axis=1)
        shape = (len(table), cell["alpha"].nunique(), cell["seed"].nunique())
        if table.shape[1] != shape[1] * shape[2] or table.isna().to_numpy().any():
            raise UserError(f"{name}: every alpha and seed must be scored on the same items")
        weight = cell.groupby("item")["weight"].first()[table.index].to_numpy(float)
        found.append((table.to_numpy(float).reshape(shape), weight))
    return found
