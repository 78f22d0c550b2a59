"""How much a run forgot, with an interval: statistics on tidy frames, without torch.

    items -> paired_drop (one row per run) -> pooled (one row per recipe and settings) -> table, plots
    items -> levels (scores themselves, one row per recipe and settings)

Base and tuned model answer the same items, so the estimate is the mean of item-level differences: the
spread between items cancels, and effects of a hundredth can be seen on a few hundred items. The sign is
turned so that a drop above 0 always means worse than the base. Trade-off: the item interval of one run
does not cover other seeds; `pooled` adds the variance over seeds where there are two or more, and gives
`n_seeds` so that one seed is never read as a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from cfutils.analysis import bootstrap
from cfutils.errors import UserError
from cfutils.recipes import RECIPES

LOWER_IS_BETTER = frozenset({"nll", "bpb", "bpb_gold", "kl"})
NEITHER_IS_BETTER = frozenset({"thinks", "thought_tokens"})
"""Metrics of which neither more nor less is worse: they have `levels` and no drop."""
ORDER = ("base", *RECIPES)
"""Recipes in the order of every legend, table and colour map."""
SETTINGS = ["temperature", "ratio", "replay_weight", "lr", "alpha", "strength"]
RUN = ["run", "recipe", "seed", *SETTINGS]
KEYS = ["recipe", *SETTINGS]
CELL = ["group", "task", "metric"]


def _sign(metric: str) -> float:
    """Return -1 where lower is better: drop = sign * (base - tuned)."""
    return -1.0 if metric in LOWER_IS_BETTER else 1.0


def with_strength(items: pd.DataFrame) -> pd.DataFrame:
    """Return item-level results with the column `strength`: NaN where they were saved before recipes had it."""
    return items if "strength" in items else items.assign(strength=np.nan)


def complete(items: pd.DataFrame) -> pd.DataFrame:
    """Return item-level results with every column they need; raises `UserError` if one is missing."""
    items = with_strength(items)
    if missing := [c for c in [*RUN, *CELL, "item", "value", "weight"] if c not in items]:
        raise UserError(f"items lacks the columns {', '.join(missing)}")
    return items


def once(items: pd.DataFrame) -> pd.DataFrame:
    """Return `complete` results in which the items of a run that is in several studies are there once."""
    return complete(items).drop_duplicates(["run", *CELL, "item"])


def by_recipe(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by recipe in display order, then settings and seed; unknown recipes come last."""
    keys = [c for c in ("recipe", *SETTINGS, "seed") if c in frame]
    rank = {name: place for place, name in enumerate(ORDER)}
    return frame.sort_values(
        keys,
        key=lambda c: c.map(lambda r: rank.get(r, len(rank))) if c.name == "recipe" else c,
        kind="stable",
        ignore_index=True,
    )


def paired_drop(
    items: pd.DataFrame, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Item-level paired drop of every run, task and metric, and the mean over retained tasks.

    With d_i the signed difference of item i and w_i its weight, drop = m = sum w_i d_i / sum w_i,
    stderr^2 = n/(n-1) * sum w_i^2 (d_i - m)^2 / (sum w_i)^2 (linearised ratio mean; for equal
    weights that is s^2/n). low, high: percentile bootstrap over items (`n_boot` = 0 leaves them
    NaN). Task "mean" of group "retained" weighs every task alike: mean of m_t, stderr
    sqrt(sum se_t^2)/T, items resampled within each task. Resamples depend on `seed`, the task's name
    and its number of items alone.

    Returns columns: `RUN`, group, task, metric, base, tuned, drop, stderr, low, high, n (items),
    level. Units are the metric's. Metrics of `NEITHER_IS_BETTER` are left out. Raises `UserError` if runs
    were not scored on the same items.
    """
    bootstrap.check_level(level)
    items = complete(items)
    items = items[~items["metric"].isin(NEITHER_IS_BETTER)]
    rows, parts = [], {}
    for where, cell in items.groupby(CELL, sort=False):
        base, tuned, weight, runs = bootstrap.line_up(cell, where)
        change = _sign(where[-1]) * (base[:, None] - tuned)
        mean, stderr = bootstrap.weighted_mean(change, weight)
        share = weight / weight.sum()
        name = "/".join(where[:2])
        draws = bootstrap.bootstrap(change, weight, n_boot=n_boot, seed=seed, name=name)
        low, high = bootstrap.interval(draws, level)
        one = pd.DataFrame(
            {
                "run": runs, "group": where[0], "task": where[1], "metric": where[2],
                "base": share @ base, "tuned": share @ tuned, "drop": mean, "stderr": stderr,
                "low": low, "high": high, "n": len(weight),
            }
        )  # fmt: skip
        rows.append(one)
        if where[0] == "retained":
            parts.setdefault(where[-1], []).append((one, draws))
    for metric, cells in parts.items():
        frames, draws = zip(*cells, strict=True)
        mean = bootstrap.mean_over_tasks(list(frames), metric, "run", ("base", "tuned", "drop"))
        low, high = bootstrap.interval(np.mean(draws, axis=0), level)
        rows.append(mean.assign(low=low, high=high))
    out = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["run"])
    known = items.loc[items["recipe"] != "base", RUN].drop_duplicates("run")
    out = known.merge(out, on="run", how="inner", validate="one_to_many")
    return by_recipe(out.assign(level=level))


def over_seeds(frame: pd.DataFrame, value: str = "drop", *, level: float = 0.95) -> pd.DataFrame:
    """Mean, standard deviation and t interval over seeds of one column.

    Rows that differ in seed and run alone are one group; interval = mean +- t_{n-1} sd / sqrt(n).
    With one seed sd and interval are NaN and `one_seed` is true, so that a plot can say so.

    Returns the grouping columns with mean, sd, low, high, n_seeds, one_seed.
    """
    bootstrap.check_level(level)
    keys = [c for c in ("profile", "recipe", *SETTINGS, *CELL) if c in frame]
    grouped = frame.groupby(keys, dropna=False, sort=False)[value]
    # a seed that diverged (NaN) must show: it is not left out of the mean
    parts = {"mean": grouped.mean(skipna=False), "sd": grouped.std(skipna=False)}
    out = pd.DataFrame({**parts, "n_seeds": grouped.size()}).reset_index()
    n = out["n_seeds"].where(out["n_seeds"] > 1)
    half = stats.t.ppf((1 + level) / 2, n - 1) * out["sd"] / np.sqrt(n)
    return out.assign(low=out["mean"] - half, high=out["mean"] + half, one_seed=out["n_seeds"] == 1)


def levels(items: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Scores themselves, base included: each recipe and settings with the interval of its own score.

    Each item's value is averaged over seeds; value is the weighted mean of that over items, and task
    "mean" of group "retained" the mean over tasks, each weighed alike. The standard error holds items and
    seeds (`bootstrap.over_items_and_seeds`), and the interval stays within the metric's range
    (`bootstrap.score_interval`). With one seed it covers items alone; the base has no seed (n_seeds 0).
    To compare two recipes use `verdicts`: their intervals here share hard items, so they may overlap
    where the paired difference is clear.

    Returns columns: recipe, `SETTINGS`, group, task, metric, value, stderr, low, high, n (items), level,
    n_seeds, sd_seeds. Units are the metric's. Raises `UserError` if runs were not scored on the same items.
    """
    bootstrap.check_level(level)
    items = complete(items)
    known = items[RUN].drop_duplicates("run", ignore_index=True)
    known["key"] = known.groupby(KEYS, dropna=False, sort=False).ngroup()
    key_of = known.set_index("run")["key"]
    singles, rows, parts = [], [], {}
    for where, cell in items.groupby(CELL, sort=False):
        value, weight = bootstrap.matrices(cell, where)
        place = dict(zip(CELL, where, strict=True))
        own, _ = bootstrap.weighted_mean(value.to_numpy(float), weight)
        singles.append(pd.DataFrame({"run": value.columns, **place, "value": own}))
        owner = key_of[value.columns].to_numpy()
        keys = np.unique(owner)
        over_runs = [value.to_numpy(float)[:, owner == key].mean(1) for key in keys]
        mean, stderr = bootstrap.weighted_mean(np.column_stack(over_runs), weight)
        one = pd.DataFrame(
            {"key": keys, **place, "value": mean, "stderr": stderr, "n": len(weight)}
        )
        rows.append(one)
        if where[0] == "retained":
            parts.setdefault(where[-1], []).append(one)
    rows += [bootstrap.mean_over_tasks(f, metric, "key", ["value"]) for metric, f in parts.items()]
    runs = pd.concat(singles, ignore_index=True)
    kept = runs[runs["group"] == "retained"].groupby(["run", "group", "metric"], sort=False)
    mean = kept["value"].mean(skipna=False).reset_index().assign(task="mean")
    runs = pd.concat([runs, mean])
    seeds = runs.merge(known[["run", "key"]], on="run").groupby(["key", *CELL], sort=False)["value"]
    spread = {"n_seeds": seeds.size(), "sd_seeds": seeds.std(skipna=False)}
    out = pd.concat(rows, ignore_index=True).merge(
        pd.DataFrame(spread).reset_index(), on=["key", *CELL], validate="one_to_one"
    )
    out = known.drop_duplicates("key")[["key", *KEYS]].merge(out, on="key").drop(columns="key")
    out.loc[out["recipe"] == "base", "n_seeds"] = 0
    out["stderr"], quantile = bootstrap.over_items_and_seeds(
        out["stderr"], out["sd_seeds"], out["n_seeds"], level
    )
    numbers = [c.to_numpy() for c in (out["value"], out["stderr"], quantile, out["n"])]
    low, high = bootstrap.score_interval(*numbers, out["metric"].to_numpy())
    columns = ["value", "stderr", "low", "high", "n", "level", "n_seeds", "sd_seeds"]
    return by_recipe(out.assign(low=low, high=high, level=level))[[*KEYS, *CELL, *columns]]


def pooled(
    items: pd.DataFrame, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Paired drop of every recipe and settings over its seeds: what tables and figures show.

    Each item's value is first averaged over seeds, then paired with the base. Stderr and interval
    hold the variance over items and that over seeds (`bootstrap.over_items_and_seeds`). With one
    seed the interval is the percentile bootstrap over items, which leaves seeds out.

    stderr, low and high belong to the drop. Intervals of the two scores themselves, from `levels`, are
    base_low, base_high and tuned_low, tuned_high. A run that is in several studies counts once.

    Returns columns: recipe, `SETTINGS`, group, task, metric, base, tuned, drop, stderr, low, high,
    n, level, n_seeds, sd_seeds, base_low, base_high, tuned_low, tuned_high. Raises as `paired_drop`.
    """
    items = once(items)
    runs = paired_drop(items, n_boot=0, level=level)
    seeds = over_seeds(runs).rename(columns={"sd": "sd_seeds"})
    seeds = seeds[[*KEYS, *CELL, "n_seeds", "sd_seeds"]]
    same = items.groupby([*KEYS, *CELL, "item"], dropna=False, sort=False)
    mean = {"value": same["value"].mean(skipna=False), "weight": same["weight"].first()}
    mean = pd.DataFrame(mean).reset_index()
    mean["run"] = mean.groupby(KEYS, dropna=False, sort=False).ngroup().astype(str)
    out = paired_drop(mean.assign(seed=0), n_boot=n_boot, level=level, seed=seed)
    out = out.drop(columns=["run", "seed"]).merge(seeds, on=[*KEYS, *CELL], validate="one_to_one")
    many = out["n_seeds"] > 1
    stderr, quantile = bootstrap.over_items_and_seeds(
        out["stderr"], out["sd_seeds"], out["n_seeds"], level
    )
    half = quantile * stderr
    over = {"stderr": stderr, "low": out["drop"] - half, "high": out["drop"] + half}
    out = out.assign(**{name: value.where(many, out[name]) for name, value in over.items()})

    scores = levels(items, level=level)
    own = scores["recipe"] == "base"
    ends = {"low": "base_low", "high": "base_high"}
    base = scores.loc[own, [*CELL, *ends]].rename(columns=ends)
    out = out.merge(base, on=CELL, how="left", validate="many_to_one")
    # KL(base || base) is 0, whether or not it was written down
    out.loc[(out["metric"] == "kl") & (out["base"] == 0), list(ends.values())] = 0.0
    ends = {"low": "tuned_low", "high": "tuned_high"}
    tuned = scores.loc[~own, [*KEYS, *CELL, *ends]].rename(columns=ends)
    return out.merge(tuned, on=[*KEYS, *CELL], validate="one_to_one")


def verdict(low: float, high: float, n_seeds: int) -> str:
    """Read an interval of a drop: "worse", "better", or "within noise" where it holds zero.

    One seed gives no verdict but "one seed": its interval covers items alone, and another seed may turn
    it. Without an interval (a run diverged, or a single item) it is "no interval".
    """
    if np.isnan(low) or np.isnan(high):
        return "no interval"
    if n_seeds == 1:
        return "one seed"
    return "worse" if low > 0 else "better" if high < 0 else "within noise"


def verdicts(drops: pd.DataFrame) -> list[str]:
    """`verdict` of every row of a frame of `pooled`."""
    rows = drops[["low", "high", "n_seeds"]].to_numpy(float)
    return [verdict(low, high, int(seeds)) for low, high, seeds in rows]


def table(
    drops: pd.DataFrame, *, metrics: Sequence[str] = ("acc", "margin", "bpb_gold"),
    probe: str = "context_free",
) -> pd.DataFrame:  # fmt: skip
    """One row per recipe and settings, the base first: what notebook and README print.

    From a frame of `pooled`. Columns: recipe, `SETTINGS`, n_seeds, target_nll (nats per token),
    target_bpb, target_exact_match (where it is scored), then for each metric M of the mean over retained
    tasks: M, M_drop, M_low, M_high, M_verdict; then kl, kl_stderr (nats per token, on `probe`).
    """
    out = drops[[*KEYS, "n_seeds"]].drop_duplicates(KEYS)
    start = pd.DataFrame({"recipe": ["base"], "n_seeds": [0]})
    cells = [("target", None, m, f"target_{m}") for m in ("nll", "bpb", "exact_match")]
    cells += [("retained", "mean", m, m) for m in metrics] + [("probe", probe, "kl", "kl")]
    for group, task, metric, name in cells:
        part = drops[(drops["group"] == group) & (drops["metric"] == metric)]
        part = part[part["task"] == task] if task else part
        if part.empty:
            continue
        if part.duplicated(KEYS).any():
            raise UserError(f"two {group} tasks with metric {metric}; give drops of one target")
        columns = {"tuned": name}
        start[name] = part["base"].iloc[0]
        if group == "probe":
            columns["stderr"] = f"{name}_stderr"
            start[f"{name}_stderr"] = 0.0
        if group == "retained":
            part = part.assign(verdict=verdicts(part))
            columns |= {c: f"{name}_{c}" for c in ("drop", "low", "high", "verdict")}
            start[[f"{name}_drop", f"{name}_low", f"{name}_high"]] = 0.0
            start[f"{name}_verdict"] = "base"
        part = part[[*KEYS, *columns]].rename(columns=columns)
        out = out.merge(part, on=KEYS, how="left", validate="one_to_one")
    return by_recipe(pd.concat([start, out])).reindex(columns=out.columns)


def relation(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """How closely two quantities go together over runs: Pearson r, R2 = r^2, Kendall tau-b, n.

    R2 is that of the least-squares line. Pairs with a value that is not finite are left out; below
    three pairs, or where one side is constant, all but n are NaN.
    """
    pairs = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
    a, b = pairs[np.isfinite(pairs).all(1)].T
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"r": np.nan, "r2": np.nan, "tau": np.nan, "n": len(a)}
    r = float(stats.pearsonr(a, b).statistic)
    return {"r": r, "r2": r**2, "tau": float(stats.kendalltau(a, b).statistic), "n": len(a)}


def aggregate(items: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (group, task, metric): value = sum(w v) / sum(w), its standard error, and n.

    The standard error is that of a ratio of sums over independent items:
    sqrt(n / (n - 1) sum (w (v - value))^2) / sum(w).
    """
    rows = []
    for keys, group in items.groupby(["group", "task", "metric"], sort=False):
        v, w, n = group["value"].to_numpy(float), group["weight"].to_numpy(float), len(group)
        value = (w * v).sum() / w.sum()
        residual = (w * (v - value)) ** 2
        stderr = np.sqrt(n / (n - 1) * residual.sum()) / w.sum() if n > 1 else np.nan
        rows.append([*keys, value, stderr, n])
    return pd.DataFrame(rows, columns=["group", "task", "metric", "value", "stderr", "n"])
