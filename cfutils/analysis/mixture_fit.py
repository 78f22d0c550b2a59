"""Kinds of document among a base's samples against its pretraining mixture: counts and a test of fit.

Only for the bases that ship, whose mixtures are known. Whatever is not one of its skills counts as prose.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from cfutils.analysis import bootstrap
from cfutils.data import skills
from cfutils.errors import UserError

PROSE = "prose"


def declared(world: str = "tiny") -> pd.Series:
    """Return the declared share of each kind in a world, the two kinds of prose taken together, prose first."""
    mixture = pd.Series(skills.world(world)["mixture"], name="share")
    known = skills.skills()
    kind = [name if name in known else PROSE for name in mixture.index]
    return mixture.groupby(kind, sort=False).sum()


def table(samples: pd.DataFrame, *, level: float = 0.95, world: str = "tiny") -> pd.DataFrame:
    """Count kinds among samples; columns of `samples`: source, temperature, text (prompt included).

    Returns one row per (source, temperature, kind): count, n (samples), share, low, high (Wilson score
    interval), right (share of the count that is a complete and correct text of its kind; NaN for prose).
    The rows of source "mixture" hold the declared shares. A kind outside the mixture has rows only where
    it occurs.
    """
    if missing := [c for c in ("source", "temperature", "text") if c not in samples]:
        raise UserError(f"samples lack the columns {', '.join(missing)}")
    expected = declared(world)
    found = [skills.recognise(text, world_name=world) for text in samples["text"]]
    marked = samples[["source", "temperature"]].assign(
        kind=[kind or PROSE for kind, _ in found], right=[right for _, right in found]
    )
    first = {"source": "mixture", "temperature": np.nan}
    rows = [first | {"kind": kind, "share": share} for kind, share in expected.items()]
    for (source, temperature), group in marked.groupby(["source", "temperature"], sort=False):
        outside = [kind for kind in group["kind"].unique() if kind not in expected]
        for kind in [*expected.index, *outside]:
            own = group[group["kind"] == kind]
            low, high = bootstrap.wilson(len(own), len(group), level=level)
            right = own["right"].mean() if kind != PROSE and len(own) else np.nan
            rows.append(
                {"source": source, "temperature": temperature, "kind": kind, "count": len(own),
                 "n": len(group), "share": len(own) / len(group), "low": low, "high": high,
                 "right": right}
            )  # fmt: skip
    return pd.DataFrame(rows)


def fit(counts: pd.DataFrame, *, world: str = "tiny") -> pd.DataFrame:
    """Pearson's chi-square test of each set of samples in `table` against the declared shares.

    Returns source, temperature, n, chi2, dof, p, and tv, the total variation distance
    1/2 sum |share - declared|, with tv_chance, the average of a perfect sampler of n texts. With many
    samples even a tiny misfit gives a small p; tv says how large the misfit is.
    """
    expected = declared(world).to_numpy()
    names = declared(world).index
    rows = []
    drawn = counts[counts["source"] != "mixture"]
    for (source, temperature), group in drawn.groupby(["source", "temperature"], sort=False):
        by_kind = group.set_index("kind")["count"]
        seen = by_kind.reindex(names).fillna(0).to_numpy(float, copy=True)
        n = by_kind.sum()
        seen[names.get_loc(PROSE)] += n - seen.sum()  # kinds outside the mixture
        test = stats.chisquare(seen, expected * n)
        # mean absolute deviation of a binomial share, from its normal limit
        chance = 0.5 * np.sqrt(2 * expected * (1 - expected) / (np.pi * n)).sum()
        rows.append(
            {"source": source, "temperature": temperature, "n": int(n), "chi2": test.statistic,
             "dof": len(expected) - 1, "p": test.pvalue,
             "tv": 0.5 * np.abs(seen / n - expected).sum(), "tv_chance": chance}
        )  # fmt: skip
    return pd.DataFrame(rows)
