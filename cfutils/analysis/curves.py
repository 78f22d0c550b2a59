"""Curves of one recipe along a setting, and what it retains where it reaches a given target score.

Weight averaging can be put at any point between base and plain fine-tuning by choosing alpha, so that it
can be compared with every other recipe at the same target score. Frames are those of `forgetting.pooled`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from cfutils.analysis.forgetting import KEYS
from cfutils.errors import UserError
from cfutils.recipes import RECIPES


def trail(
    drops: pd.DataFrame,
    recipe: str,
    along: str,
    *,
    metric: str = "bpb_gold",
    target_metric: str = "nll",
) -> pd.DataFrame:
    """Points of one recipe in the order of a setting: target score and mean retained drop.

    A trail along alpha begins at the base (alpha 0) and ends at the run that is averaged with it (alpha 1): plain
    fine-tuning for WiSE-FT. From `pooled`, or one seed of `paired_drop`.

    Returns columns: `along`, target (nats per token for NLL), base, tuned, drop, low, high.
    """
    values = ["base", "tuned", "drop", "low", "high"]
    target = drops[(drops["group"] == "target") & (drops["metric"] == target_metric)]
    target = target[[*KEYS, "tuned", "base"]].rename(columns={"tuned": "target", "base": "start"})
    kept = (drops["group"] == "retained") & (drops["task"] == "mean") & (drops["metric"] == metric)
    both = target.merge(drops.loc[kept, [*KEYS, *values]], on=KEYS)
    own = both[(both["recipe"] == recipe) & both[along].notna()]
    if own.duplicated(along).any():
        raise UserError(f"{recipe} has two runs at one {along}; keep one setting of the others")
    if along == "alpha" and len(own):
        level = own["base"].iloc[0]
        zero = {"alpha": 0.0, "target": own["start"].iloc[0], "base": level, "tuned": level}
        zero |= dict.fromkeys(("drop", "low", "high"), 0.0)
        ends = both[(both["recipe"] == RECIPES[recipe].of) & both["lr"].isin(own["lr"])].assign(alpha=1.0)
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
    choose that point); outside its range the result is NaN, never an extrapolation.

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
