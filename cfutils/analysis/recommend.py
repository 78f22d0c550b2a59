"""Which of some runs to take: the one that keeps most among those that have learned as much as plain fine-tuning.

For a user's own model and data, where nothing is claimed of methods and one run has to be chosen. A run has learned
as much if its target score is at most the window of `claims.WINDOWS` below that of plain fine-tuning, or if it learned
`ENOUGH` of what plain fine-tuning did, from the base's score on. Where the best
one's advantage over plain fine-tuning is within noise, plain fine-tuning is recommended: it is simplest.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cfutils.analysis.claims import ALPHA, BITS, KL, PLAIN, WINDOWS, Measure
from cfutils.analysis.contrasts import match
from cfutils.analysis.forgetting import SETTINGS
from cfutils.analysis.paired import Pool
from cfutils.errors import UserError

ENOUGH = 0.95
"""Share of what plain fine-tuning learned that counts as all of it."""
MOST = 0.9
"""Share of what plain fine-tuning learned from which on a run that learned less is worth a mention."""
COLUMNS = [
    "recipe", *SETTINGS, "target", "target_gap", "share", "learned", "drop", "low", "high", "saved", "saved_low",
    "saved_high", "kl", "metric", "target_metric", "seeds", "items", "recommended",
]  # fmt: skip


def compare(items: pd.DataFrame) -> pd.DataFrame:
    """Compare all runs with plain fine-tuning, and recommend one.

    items: item-level results, base and plain fine-tuning included, each recipe at one setting or several. The measure
    is bits per byte of right answers, or KL on context-free samples where nothing retained was scored.

    Returns `COLUMNS`, one row per recipe and settings, the base first. target: the target score, of `target_metric`;
    target_gap: plain fine-tuning's score minus the run's, above 0 where the run has learned less (NLL: turned so);
    share: of what plain fine-tuning learned, from the base's score on.
    drop, low, high: how much worse than the base, in the measure's unit; saved: plain fine-tuning's drop minus the
    run's, paired by seed and item. Intervals are at 95 %; with one seed they cover items alone. Raises `UserError`
    without a base, plain fine-tuning, or anything that is scored.
    """
    pool = Pool(items)
    plain = pool.line(PLAIN)
    if pool.base is None or plain is None:
        raise UserError("items lack the base or plain fine-tuning: both are what runs are compared with")
    if len(plain.runs) > 1:
        raise UserError("items hold plain fine-tuning at several settings; give one")
    measure = next((m for m in (BITS, KL) if pool.scores(m)), None)
    if measure is None or pool.window is None:
        raise UserError("items hold no target score, or neither right answers nor KL on context-free samples")
    rows = [
        _row(pool, measure, name, line.settings.loc[point], line.runs[point], plain.runs[0])
        for name in pool.recipes
        for line in [pool.line(name)]
        for point in range(len(line.runs))
    ]
    start = {"recipe": "base", "target": float(pool.window[0].means()[pool.base]), "drop": 0.0, "kl": 0.0}
    common = {"metric": measure.metric, "target_metric": pool.window[1], "items": len(pool.scores(measure).weight)}
    out = pd.DataFrame([start, *rows]).assign(**common).reindex(columns=COLUMNS)
    learned = (start["target"] - out["target"]).to_numpy(float)
    full = learned[out["recipe"] == PLAIN][0]
    out["share"] = learned / full if full else np.nan
    enough = out["recipe"].ne("base") & (out["share"] >= ENOUGH)
    out["learned"] = out["learned"].eq(True) | enough
    return out.assign(recommended=np.arange(len(out)) == _choice(out))


def _row(
    pool: Pool, measure: Measure, name: str, settings: pd.Series, runs: np.ndarray, plain: np.ndarray
) -> dict:
    ours, theirs = pool.only(runs), pool.only(plain)
    scores, kl, window = pool.scores(measure), pool.scores(KL), pool.window[0]
    drop = scores.estimate(pool.only(pool.base, len(runs)) - ours)
    found = {"recipe": name, **settings, "target": float(window.means()[runs].mean()), "seeds": len(runs)}
    found |= dict(zip(("drop", "low", "high"), (drop.effect, *drop.interval(1 - ALPHA)), strict=True))
    found["kl"] = float(kl.means()[runs].mean()) if kl else np.nan
    if name == PLAIN:
        return {**found, "target_gap": 0.0, "learned": True}
    gap, by, alike = match(pool, theirs - ours)
    saved = scores.estimate(ours - theirs)
    found |= dict(zip(("saved", "saved_low", "saved_high"), (saved.effect, *saved.interval(1 - ALPHA)), strict=True))
    found["target_gap"] = float(window.estimate(theirs - ours).effect)
    return {**found, "learned": bool(alike or gap.effect <= WINDOWS[by])}


def _choice(table: pd.DataFrame) -> int:
    """Place of the recommended row."""
    plain = int(table.index[table["recipe"] == PLAIN][0])
    usable = table[table["learned"].eq(True) & np.isfinite(table["drop"].astype(float))]
    if usable.empty:
        return plain
    best = int(usable["drop"].astype(float).idxmin())
    return best if best != plain and table["saved_low"][best] > 0 else plain


def reasons(table: pd.DataFrame) -> list[str]:
    """Say in sentences what a table of `compare` recommends, what it costs and keeps, and what is within noise."""
    plain, own = (table[mask].iloc[0] for mask in (table["recipe"] == PLAIN, table["recommended"]))
    unit = (BITS if own["metric"] == BITS.metric else KL).unit
    found = [f"Plain fine-tuning: {_drop(plain, unit)}."]
    if own["recipe"] == PLAIN:
        learned = table[table["learned"].eq(True) & (table["recipe"] != PLAIN)]
        if plain["low"] <= 0:
            found.append("It did not forget as far as these items tell: there is nothing to mitigate.")
        elif learned.empty:
            found.append("No other run learned as much.")
        else:
            best = learned.loc[learned["drop"].astype(float).idxmin()]
            found.append(
                f"The best of the others, {name(best)}, saves {_span(best, 'saved')} {unit}: within noise. "
                "Plain fine-tuning is recommended, as the simplest."
            )
    else:
        found.append(
            f"Recommended: {name(own)}: {_drop(own, unit)}, that is {_span(own, 'saved')} less than plain fine-tuning."
        )
        cost, share = own["target_gap"], own["share"]
        found.append(
            f"Target {own['target_metric']}: {own['target']:.3f} against {plain['target']:.3f} of plain fine-tuning "
            f"({'no worse' if cost <= 0 else f'{cost:.3f} worse, {share:.0%} of what it learned'})."
        )
        others = table["learned"].eq(True) & ~table["recommended"] & (table["recipe"] != PLAIN)
        near = table[others & (table["low"] <= own["high"])]
        if len(near):
            found.append(f"Not told apart by these intervals: {'; '.join(name(row) for _, row in near.iterrows())}.")
    if len(cheaper := _trade(table, own)):
        best = cheaper.loc[cheaper["drop"].astype(float).idxmin()]
        found.append(
            f"If {best['share']:.0%} of what plain fine-tuning learned is enough, {name(best)} forgets less: "
            f"{_drop(best, unit)}."
        )
    if own["seeds"] == 1:
        found.append("One seed: the intervals cover items alone, and another seed may turn a small difference.")
    if own["items"] < 300:
        found.append(f"{own['items']} retained items: below 300 a small difference is easily missed.")
    return found


def name(row: pd.Series) -> str:
    """Return a run's recipe with the settings that it has, "Context-free KL (ratio 0.5, T 1)" for example."""
    from cfutils.recipes import RECIPES

    marks = {"ratio": "ratio", "temperature": "T", "alpha": "α", "strength": "strength"}
    shown = [f"{mark} {row[key]:g}" for key, mark in marks.items() if pd.notna(row[key])]
    label = RECIPES[row["recipe"]].label if row["recipe"] in RECIPES else row["recipe"]
    return f"{label} ({', '.join(shown)})" if shown else label


def _trade(table: pd.DataFrame, own: pd.Series) -> pd.DataFrame:
    """Runs that learned less than the window allows, but most, and forget clearly less than the recommended one."""
    less = table["learned"].eq(False) & (table["share"] >= MOST)
    return table[less & (table["high"] < own["low"])]


HEADER = ("run", "target", "drop [95 %]", "less than plain fine-tuning [95 %]", "KL from the base")
"""What `cells` are headed with."""


def cells(row: pd.Series) -> list[str]:
    """Return a row of a table of `compare` as the texts of a table for people."""
    own = row["recipe"] != "base"
    saved = _span(row, "saved") + ("" if row["learned"] else ", learned less") if pd.notna(row["saved"]) else ""
    return [
        name(row) if own else "base", f"{row['target']:.3f}",
        f"{row['drop']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" if own else "", saved,
        f"{row['kl']:.3f}" if pd.notna(row["kl"]) else "",
    ]  # fmt: skip


def _drop(row: pd.Series, unit: str) -> str:
    return f"a drop of {row['drop']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] {unit}"


def _span(row: pd.Series, column: str) -> str:
    return f"{row[column]:+.3f} [{row[f'{column}_low']:+.3f}, {row[f'{column}_high']:+.3f}]"
