"""Items that turned from right to wrong and back."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cfutils.analysis import bootstrap
from cfutils.analysis.forgetting import CELL, RUN, by_recipe, complete
from cfutils.errors import UserError


def table(items: pd.DataFrame) -> pd.DataFrame:
    """Items that turned from right to wrong and back, against what guessing turns (arXiv 2510.17776).

    forgotten = share right then wrong, gained = share wrong then right (metric acc). With k choices
    both have the chance level (1 - a_pre)(1 - a_post)/(k - 1), and forgotten has the ceiling
    (k a_pre - 1)/(k - 1). Where k differs between items, 1/(k - 1) is averaged. The chance level
    assumes that guesses before and after are independent; similar models guess alike, so `*_adjusted`
    may be below 0.

    Scored items do not carry k: add it as a column `choices` where it is known. Without it the chance
    level, the ceiling and what is adjusted by them are NaN; forgotten and gained need no k.
    Returns columns: `RUN`, group, task, n, a_pre, a_post, forgotten, gained, chance,
    forgotten_adjusted, gained_adjusted, forgotten_max.
    """
    items = complete(items)
    acc = items[items["metric"] == "acc"]
    rows = []
    for where, cell in acc.groupby(CELL, sort=False):
        base, tuned, _, runs = bootstrap.line_up(cell, where)
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
