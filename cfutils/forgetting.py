"""How much a run forgot, with an honest interval: statistics on tidy frames, no torch.

    items -> paired_drop (one row a run) -> pooled (one row a recipe and settings) -> table, plots

Base and tuned answer the same items, so what is estimated is the mean of item-level differences:
the spread of the items themselves cancels, and effects of a hundredth can be seen on a few hundred
items. The sign is turned so that a drop above 0 always means worse than the base. Trade-off: the
item interval of one run says nothing about other seeds; `pooled` adds the variance over seeds where
there are two or more, and says `n_seeds` so that a figure can state it where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

from cfutils import resampling
from cfutils.errors import UserError
from cfutils.recipes import RECIPES

LOWER_IS_BETTER = frozenset({"nll", "bpb", "bpb_gold", "kl"})
ORDER = ("base", *RECIPES)
"""Recipes in the order of every legend, table and colour map."""
SETTINGS = ["temperature", "ratio", "replay_weight", "lr", "alpha"]
RUN = ["run", "recipe", "seed", *SETTINGS]
CELL = ["group", "task", "metric"]


def _sign(metric: str) -> float:
    """Return -1 where lower is better: drop = sign * (base - tuned)."""
    return -1.0 if metric in LOWER_IS_BETTER else 1.0


def _need(frame: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    if missing := [c for c in columns if c not in frame]:
        raise UserError(f"{what} lacks the columns {', '.join(missing)}")


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
    sqrt(sum se_t^2)/T, items resampled within each task. Resamples hang on `seed`, the task's name
    and its number of items alone.

    Returns columns: `RUN`, group, task, metric, base, tuned, drop, stderr, low, high, n (items),
    level. Units are the metric's. Raises `UserError` if runs were not scored on the same items.
    """
    resampling.check_level(level)
    _need(items, [*RUN, *CELL, "item", "value", "weight"], "items")
    rows, parts = [], {}
    for where, cell in items.groupby(CELL, sort=False):
        base, tuned, weight, runs = resampling.line_up(cell, where)
        change = _sign(where[-1]) * (base[:, None] - tuned)
        mean, stderr = resampling.weighted_mean(change, weight)
        share = weight / weight.sum()
        name = "/".join(where[:2])
        draws = resampling.bootstrap(change, weight, n_boot=n_boot, seed=seed, name=name)
        low, high = resampling.interval(draws, level)
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
    rows += [resampling.macro_mean(cells, metric, level) for metric, cells in parts.items()]
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
    resampling.check_level(level)
    keys = [c for c in ("profile", "recipe", *SETTINGS, *CELL) if c in frame]
    grouped = frame.groupby(keys, dropna=False, sort=False)[value]
    # a seed that diverged (NaN) must show: it is not left out of the mean
    parts = {"mean": grouped.mean(skipna=False), "sd": grouped.std(skipna=False)}
    out = pd.DataFrame({**parts, "n_seeds": grouped.size()}).reset_index()
    n = out["n_seeds"].where(out["n_seeds"] > 1)
    half = stats.t.ppf((1 + level) / 2, n - 1) * out["sd"] / np.sqrt(n)
    return out.assign(low=out["mean"] - half, high=out["mean"] + half, one_seed=out["n_seeds"] == 1)


def pooled(
    items: pd.DataFrame, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Paired drop of every recipe and settings over its seeds: what tables and figures show.

    Each item's value is first averaged over seeds, then paired with the base. Stderr and interval
    hold the variance over items and that over seeds (`resampling.over_items_and_seeds`). With one
    seed the interval is the percentile bootstrap over items, which leaves seeds out.

    Returns columns: recipe, `SETTINGS`, group, task, metric, base, tuned, drop, stderr, low, high,
    n, level, n_seeds, sd_seeds. Raises as `paired_drop`.
    """
    runs = paired_drop(items, n_boot=0, level=level)
    keys = ["recipe", *SETTINGS]
    seeds = over_seeds(runs).rename(columns={"sd": "sd_seeds"})
    seeds = seeds[[*keys, *CELL, "n_seeds", "sd_seeds"]]
    same = items.groupby([*keys, *CELL, "item"], dropna=False, sort=False)
    mean = {"value": same["value"].mean(skipna=False), "weight": same["weight"].first()}
    mean = pd.DataFrame(mean).reset_index()
    mean["run"] = mean.groupby(keys, dropna=False, sort=False).ngroup().astype(str)
    out = paired_drop(mean.assign(seed=0), n_boot=n_boot, level=level, seed=seed)
    out = out.drop(columns=["run", "seed"]).merge(seeds, on=[*keys, *CELL], validate="one_to_one")
    many = out["n_seeds"] > 1
    stderr, half = resampling.over_items_and_seeds(
        out["stderr"], out["sd_seeds"], out["n_seeds"], level
    )
    over = {"stderr": stderr, "low": out["drop"] - half, "high": out["drop"] + half}
    return out.assign(**{name: value.where(many, out[name]) for name, value in over.items()})


def against(items: pd.DataFrame, recipe: str) -> pd.DataFrame:
    """Every other recipe against one, item by item and seed by seed: `pooled` with it as the base.

    drop = sign * (recipe - other), so above 0 the other is the worse one. What both share, hard items
    or an order of the data, cancels. Seeds that only one of them has are left out.

    Returns the columns of `pooled`; tuned is other - recipe, base is 0. Raises `UserError` if `recipe`
    does not have just one run a seed, or stands alone.
    """
    pair = ["seed", *CELL, "item"]
    own = items.loc[items["recipe"] == recipe, [*pair, "value"]]
    if own.empty or own.duplicated(pair).any():
        found = "no run" if own.empty else "two runs of one seed"
        raise UserError(f"items hold {found} of {recipe}: give one run a seed to compare with")
    gaps = items[~items["recipe"].isin(["base", recipe])].merge(own, on=pair, suffixes=("", "_own"))
    if gaps.empty:
        raise UserError(f"items hold no other recipe to compare with {recipe}")
    gaps = gaps.assign(value=gaps["value"] - gaps["value_own"])
    level = gaps.drop_duplicates(pair[1:]).assign(recipe="base", run=recipe, seed=-1, value=0.0)
    level[SETTINGS] = np.nan
    return pooled(pd.concat([level, gaps], ignore_index=True))


def score_interval(drops: pd.DataFrame) -> pd.DataFrame:
    """Add tuned_low, tuned_high: the interval of the paired drop, laid around the tuned score.

    The base's score counts as known, so that two recipes and the base can be read off one axis.
    """
    up = drops["metric"].isin(LOWER_IS_BETTER)
    low = np.where(up, drops["base"] + drops["low"], drops["base"] - drops["high"])
    high = np.where(up, drops["base"] + drops["high"], drops["base"] - drops["low"])
    return drops.assign(tuned_low=low, tuned_high=high)


def verdict(low: float, high: float) -> str:
    """Read an interval of a drop: "worse", "better", or "within noise" where it straddles zero."""
    if np.isnan(low) or np.isnan(high):
        return "no interval"
    return "worse" if low > 0 else "better" if high < 0 else "within noise"


def flips(items: pd.DataFrame) -> pd.DataFrame:
    """Items that turned from right to wrong and back, against what guessing turns (2510.17776).

    forgotten = share right then wrong, gained = share wrong then right (metric acc). With k choices
    both have the chance level (1 - a_pre)(1 - a_post)/(k - 1), and forgotten has the ceiling
    (k a_pre - 1)/(k - 1). Where k differs between items, 1/(k - 1) is averaged. The chance level
    takes guesses before and after for independent; close models guess alike, so that `*_adjusted`
    may be below 0.

    Scored items do not tell k: add it as a column `choices` where it is known. Without it the chance
    level, the ceiling and what is adjusted by them are NaN; forgotten and gained need no k.
    Returns columns: `RUN`, group, task, n, a_pre, a_post, forgotten, gained, chance,
    forgotten_adjusted, gained_adjusted, forgotten_max.
    """
    acc = items[items["metric"] == "acc"]
    rows = []
    for where, cell in acc.groupby(CELL, sort=False):
        base, tuned, _, runs = resampling.line_up(cell, where)
        before, after = base[:, None] > 0.5, tuned > 0.5
        inverse = np.nan
        if "choices" in cell:
            inverse = (1 / (cell.drop_duplicates("item")["choices"].astype(float) - 1)).mean()
        a_pre, a_post = before.mean(), after.mean(0)
        forgotten, gained = (before & ~after).mean(0), (~before & after).mean(0)
        chance = (1 - a_pre) * (1 - a_post) * inverse
        rows.append(
            pd.DataFrame(
                {
                    "run": runs, "group": where[0], "task": where[1], "n": len(base),
                    "a_pre": a_pre, "a_post": a_post, "forgotten": forgotten, "gained": gained,
                    "chance": chance, "forgotten_adjusted": forgotten - chance,
                    "gained_adjusted": gained - chance,
                    "forgotten_max": a_pre - (1 - a_pre) * inverse,
                }
            )
        )  # fmt: skip
    if not rows:
        raise UserError("items hold no metric acc; flips need right and wrong answers")
    known = acc.loc[acc["recipe"] != "base", RUN].drop_duplicates("run")
    return by_recipe(known.merge(pd.concat(rows), on="run", validate="one_to_many"))


def trail(
    drops: pd.DataFrame, recipe: str, along: str, *, metric: str = "bpb_gold"
) -> pd.DataFrame:
    """Points of one recipe in the order of a setting: target NLL and mean retained drop.

    A trail along alpha begins at the base (alpha 0) and ends at plain fine-tuning (alpha 1), which
    is what weight averaging is at its ends. From `pooled`, or one seed of `paired_drop`.

    Returns columns: `along`, target (nats per token), base, tuned, drop, low, high.
    """
    keys, values = ["recipe", *SETTINGS], ["base", "tuned", "drop", "low", "high"]
    target = drops[(drops["group"] == "target") & (drops["metric"] == "nll")]
    target = target[[*keys, "tuned", "base"]].rename(columns={"tuned": "target", "base": "start"})
    kept = (drops["group"] == "retained") & (drops["task"] == "mean") & (drops["metric"] == metric)
    both = target.merge(drops.loc[kept, [*keys, *values]], on=keys)
    own = both[(both["recipe"] == recipe) & both[along].notna()]
    if own.duplicated(along).any():
        raise UserError(f"{recipe} has two runs at one {along}; keep one setting of the others")
    if along == "alpha" and len(own):
        level = own["base"].iloc[0]
        zero = {"alpha": 0.0, "target": own["start"].iloc[0], "base": level, "tuned": level}
        zero |= dict.fromkeys(("drop", "low", "high"), 0.0)
        ends = both[(both["recipe"] == "ft") & both["lr"].isin(own["lr"])].assign(alpha=1.0)
        own = pd.concat([own, pd.DataFrame([zero]), ends]).drop_duplicates(along)
    return own.sort_values(along, ignore_index=True)[[along, "target", *values]]


def matched_target(
    drops: pd.DataFrame,
    targets: float | Sequence[float],
    *,
    recipe: str = "wise_ft",
    along: str = "alpha",
    metric: str = "bpb_gold",
) -> pd.DataFrame:
    """Retained drop of a recipe where its trail reaches given target NLLs (nats per token).

    Between neighbours of the trail, drop and both ends of its interval are interpolated linearly in
    target NLL. Where the trail passes a target more than once the smallest drop counts (one would
    choose that point); outside its range the answer is NaN, never an extrapolation.

    Returns columns: recipe, along, target, drop, low, high.
    """
    points = trail(drops, recipe, along, metric=metric)
    names, rows = ["drop", "low", "high"], []
    for target in np.atleast_1d(targets):
        found = []
        for p, q in pairwise(points.to_dict("records")):
            if min(p["target"], q["target"]) <= target <= max(p["target"], q["target"]):
                gap = q["target"] - p["target"]
                share = (target - p["target"]) / gap if gap else 0.0
                found.append([p[c] + share * (q[c] - p[c]) for c in names])
        best = min(found, default=[np.nan] * 3)
        row = {"recipe": recipe, "along": along, "target": target}
        rows.append(row | dict(zip(names, best, strict=True)))
    return pd.DataFrame(rows)


def table(
    drops: pd.DataFrame, *, metrics: Sequence[str] = ("acc", "margin", "bpb_gold"),
    probe: str = "context_free",
) -> pd.DataFrame:  # fmt: skip
    """One row a recipe and settings, the base first: what notebook and README print.

    From a frame of `pooled`. Columns: recipe, `SETTINGS`, n_seeds, target_nll (nats per token),
    target_bpb, target_exact_match (where it is scored), then for each metric M of the mean over retained
    tasks: M, M_drop, M_low, M_high, M_verdict; then kl, kl_stderr (nats per token, on `probe`).
    """
    keys = ["recipe", *SETTINGS]
    out = drops[[*keys, "n_seeds"]].drop_duplicates(keys)
    start = pd.DataFrame({"recipe": ["base"], "n_seeds": [0]})
    cells = [("target", None, m, f"target_{m}") for m in ("nll", "bpb", "exact_match")]
    cells += [("retained", "mean", m, m) for m in metrics] + [("probe", probe, "kl", "kl")]
    for group, task, metric, name in cells:
        part = drops[(drops["group"] == group) & (drops["metric"] == metric)]
        part = part[part["task"] == task] if task else part
        if part.empty:
            continue
        if part.duplicated(keys).any():
            raise UserError(f"two {group} tasks with metric {metric}; give drops of one target")
        columns = {"tuned": name}
        start[name] = part["base"].iloc[0]
        if group == "probe":
            columns["stderr"] = f"{name}_stderr"
            start[f"{name}_stderr"] = 0.0
        if group == "retained":
            judged = [verdict(*row) for row in part[["low", "high"]].to_numpy(float)]
            part = part.assign(verdict=judged)
            columns |= {c: f"{name}_{c}" for c in ("drop", "low", "high", "verdict")}
            start[[f"{name}_drop", f"{name}_low", f"{name}_high"]] = 0.0
            start[f"{name}_verdict"] = "base"
        part = part[[*keys, *columns]].rename(columns=columns)
        out = out.merge(part, on=keys, how="left", validate="one_to_one")
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
    """Return one row a (group, task, metric): value = sum(w v) / sum(w), its standard error, and n.

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
