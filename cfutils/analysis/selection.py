"""Learning rates, chosen before anything is compared.

They are chosen by the validation part of the target alone, on runs with seeds of their own; neither retained scores
nor the items that are scored have a say in them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cfutils.analysis import bootstrap
from cfutils.errors import UserError

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
