"""Every recipe at one target score, that of a treatment: how much each forgets there, and the paired difference.

Exploratory: it compares all with all, to choose a method by; claims are judged by `verdicts`.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from cfutils.analysis import contrasts
from cfutils.analysis.claims import ALPHA, BITS, Measure
from cfutils.analysis.crossed import Crossed
from cfutils.analysis.paired import Pool
from cfutils.analysis.significance import benjamini_hochberg
from cfutils.errors import UserError

COLUMNS = [
    "recipe", "drop", "low", "high", "difference", "difference_low", "difference_high", "p", "p_adjusted", "reach",
    "target_gap", "target_metric", "metric", "seeds", "items",
]  # fmt: skip


def at_one_target(items: pd.DataFrame, *, treatment: str = "cfs", measure: Measure = BITS) -> pd.DataFrame:
    """Drop of every recipe at the treatment's target score, on its own frontier; the smallest drop first.

    items: item-level results of the study "frontier" or "methods", base included. The treatment is at the middle of its
    knob.

    Returns `COLUMNS`. drop, low, high (95 %, seeds and items crossed): how much worse than the base, in the metric's
    unit. difference: the recipe's drop minus the treatment's, paired by seed and item; above 0 the recipe forgets
    more; p_adjusted is Benjamini and Hochberg's over all recipes, NaN with one seed. reach: "same" target score, or
    "learns less" or "learns more" where the frontier does not reach it, with target_gap (treatment minus recipe)
    in target_metric (`contrasts.match`). Raises `UserError` without a base, the treatment or the measure.
    """
    pool = Pool(items)
    scores, ours = pool.scores(measure), pool.line(treatment)
    if pool.base is None or scores is None or ours is None:
        raise UserError(f"items lack the base, {treatment}, or {measure.metric} of group {measure.group}")
    rows = []
    for recipe in pool.recipes:
        pair = contrasts.against(pool, treatment, recipe)
        if pair.problem:
            continue
        base = pool.only(pool.base, len(pair.seeds))
        row = {"recipe": recipe, "metric": measure.metric, "reach": "same", "seeds": len(pair.seeds)}
        row |= _ends("drop", scores.estimate(base - pair.theirs), "low", "high")
        row["items"] = len(scores.weight)
        if recipe != treatment:
            found = scores.estimate(pair.ours - pair.theirs)
            row |= _ends("difference", found, "difference_low", "difference_high")
            row["p"] = float(found.p()) if found.n_seeds > 1 else float("nan")
        if pair.gap is not None:
            row |= {"target_gap": float(pair.gap.effect), "target_metric": pair.metric}
            if not pair.matched:
                row["reach"] = "learns less" if pair.gap.effect > 0 else "learns more"
        rows.append(row)
    out = pd.DataFrame(rows).reindex(columns=COLUMNS)
    out["p_adjusted"] = benjamini_hochberg(out["p"].astype(float))
    return out.sort_values("drop", ignore_index=True)


def treatment(table: pd.DataFrame) -> str:
    """Return the recipe that the others of a frame of `at_one_target` are compared with: it has no difference."""
    return table.loc[table["difference"].isna(), "recipe"].iloc[0]


def comparable(row: Mapping) -> bool:
    """Whether the difference in a row of `at_one_target` can be read: at one target score, or one is better at both."""
    return row["reach"] == "same" or (row["reach"] == "learns less") == (row["difference"] > 0)


def remark(row: Mapping) -> str:
    """Return what keeps the difference in a row of `at_one_target` from standing, in words; "" where it stands."""
    if not comparable(row):
        return f"{row['reach']}: not comparable"
    reach = "" if row["reach"] == "same" else row["reach"]
    noise = "one seed" if pd.isna(row["p_adjusted"]) else "" if row["p_adjusted"] < ALPHA else "within noise"
    return ", ".join(filter(None, (reach, noise)))


def _ends(name: str, found: Crossed, low: str, high: str) -> dict[str, float]:
    ends = map(float, found.interval(1 - ALPHA))
    return {name: float(found.effect), **dict(zip((low, high), ends, strict=True))}
