"""Whether two sets of results agree: the same runs computed twice, on another machine or by other code."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from cfutils.analysis import bootstrap
from cfutils.analysis.forgetting import CELL, SETTINGS, with_strength
from cfutils.errors import UserError

RUN = ["profile", "recipe", "seed", *SETTINGS]
"""What makes two runs the same run; the column `run`, a name in a store, may differ."""
IDENTICAL = 1e-9
"""Largest absolute difference of an item at which two results count as identical."""
ROUNDING = 1e-4
"""Largest absolute difference of an item that counts as rounding."""
_NUMBERS = ("a", "b", "difference", "stderr", "low", "high", "largest", "freedom")


def compare(items_a: pd.DataFrame, items_b: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Differences b - a by group, task and metric, and of the mean over retained tasks (task "mean").

    Both frames hold item-level results: `RUN`, group, task, metric, item, value, weight. Runs and items
    are matched by these columns. An item's difference is averaged over the runs in common; the interval
    is over items, paired: mean +- t stderr with n - 1 degrees of freedom, for the mean over tasks those of
    Welch and Satterthwaite. It does not cover seeds.

    Returns columns: group, task, metric, runs and items (numbers in common), rows, only_a, only_b (rows in
    common and of one side alone), a, b (weighted means over what is in common), difference, stderr, low,
    high, largest (absolute difference of one item of one run), level, agreement:

    - "identical": no item differs by more than 1e-9 (NaN on both sides counts as equal);
    - "within rounding": none by more than 1e-4;
    - "agree": the interval of the mean difference holds zero;
    - "differ": it does not, or there is none (one item, or a value that is NaN on one side alone);
    - "nothing in common": no row is in both.

    Raises `UserError` if columns are missing, a row is there twice, or an item's weights differ.
    """
    bootstrap.check_level(level)
    keys = [*RUN, *CELL, "item"]
    items_a, items_b = with_strength(items_a), with_strength(items_b)
    for name, frame in (("items_a", items_a), ("items_b", items_b)):
        if missing := [c for c in [*keys, "value", "weight"] if c not in frame]:
            raise UserError(f"{name} lacks the columns {', '.join(missing)}")
        if frame.duplicated(keys).any():
            raise UserError(f"{name} holds an item of a run twice; give each run once")
    columns = [*keys, "value", "weight"]
    both = items_a[columns].merge(
        items_b[columns], on=keys, how="outer", suffixes=("_a", "_b"), indicator="side", sort=False
    )
    common = both["side"] == "both"
    if (both.loc[common, "weight_a"] != both.loc[common, "weight_b"]).any():
        raise UserError("an item's weight differs between the two: these are not the same items")
    rows = [_cell(where, cell, level) for where, cell in both.groupby(CELL, sort=False)]
    out = pd.DataFrame(rows)
    kept = out[(out["group"] == "retained") & (out["items"] > 0)]
    means = [_mean(metric, part, level) for metric, part in kept.groupby("metric", sort=False)]
    out = pd.concat([out, pd.DataFrame(means)], ignore_index=True)
    return out.drop(columns="freedom").assign(level=level, agreement=out.apply(_word, axis=1))


def _cell(where: tuple, cell: pd.DataFrame, level: float) -> dict:
    """The row of one group, task and metric."""
    row = dict(zip(CELL, where, strict=True))
    side = cell["side"].value_counts()
    own = cell[cell["side"] == "both"]
    counts = {
        "runs": len(own.drop_duplicates(RUN)), "items": own["item"].nunique(), "rows": len(own),
        "only_a": int(side["left_only"]), "only_b": int(side["right_only"]),
    }  # fmt: skip
    row |= counts
    if own.empty:
        return row | dict.fromkeys(_NUMBERS, np.nan)
    change = (own["value_b"] - own["value_a"]).where(
        own["value_a"].notna() | own["value_b"].notna(), 0.0
    )
    by_item = own.assign(change=change).groupby("item", sort=False)
    names = ["value_a", "value_b", "change"]
    values = by_item[names].mean(skipna=False).to_numpy(float)
    mean, stderr = bootstrap.weighted_mean(values, by_item["weight_a"].first().to_numpy(float))
    found = {"a": mean[0], "b": mean[1], "difference": mean[2], "stderr": stderr[2],
             "largest": change.abs().max(skipna=False), "freedom": len(values) - 1}  # fmt: skip
    return row | found | _interval(found, level)


def _mean(metric: str, part: pd.DataFrame, level: float) -> dict:
    """The row of the mean over retained tasks, each weighed alike, tasks independent."""
    row = {"group": "retained", "task": "mean", "metric": metric, "runs": part["runs"].min()}
    row |= {name: part[name].sum() for name in ("items", "rows", "only_a", "only_b")}
    variance = part["stderr"] ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance.sum(skipna=False) ** 2 / (variance**2 / part["freedom"]).sum()
    found = {name: part[name].mean(skipna=False) for name in ("a", "b", "difference")}
    found |= {"stderr": np.sqrt(variance.sum(skipna=False)) / len(part), "freedom": freedom,
              "largest": part["largest"].max(skipna=False)}  # fmt: skip
    return row | found | _interval(found, level)


def _interval(found: dict, level: float) -> dict[str, float]:
    """Ends of the interval; without any spread there is no t, and the interval is the difference."""
    t = stats.t.ppf((1 + level) / 2, found["freedom"])
    half = t * found["stderr"] if found["stderr"] else 0.0
    return {"low": found["difference"] - half, "high": found["difference"] + half}


def _word(row: pd.Series) -> str:
    if not row["items"]:
        return "nothing in common"
    if row["largest"] <= IDENTICAL:
        return "identical"
    if row["largest"] <= ROUNDING:
        return "within rounding"
    return "agree" if row["low"] <= 0 <= row["high"] else "differ"
