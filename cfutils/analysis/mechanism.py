"""Tests of the claims that explain: the estimate of the KL (C7), and what the KL predicts (C9)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from cfutils.analysis import bootstrap, estimators
from cfutils.analysis.claims import ALPHA, BITS, Claim
from cfutils.analysis.paired import Pool

N_BOOT = 2000
FEWEST = 5
"""Recipes below which a rank correlation says nothing."""


def bias_rows(claim: Claim, estimates: pd.DataFrame) -> list[dict]:
    """Rows for the claim that the sample NLL (`log_ratio`) has the mean that it should have.

    For every tuned model, source and temperature, effect is the estimate minus the KL by the exact sum at each prefix,
    on other samples (`estimators.bias`), and delta is `claim.bound` times that KL. The claim is about context-free
    samples at T = 1; other sources are secondary rows, where the same test should fail. The unit is the sequence: the
    tuned model is given, so one seed is enough.
    """
    found = estimators.bias(estimates, level=1 - ALPHA)
    z = bootstrap.normal_quantile(1 - ALPHA)
    rows = []
    for row in found[found["estimator"] == "log_ratio"].to_dict("records"):
        delta, bias = claim.bound * row["reference"], row["bias"]
        stderr = (row["bias_high"] - bias) / z
        at_one = row["source"] == "context_free" and row["temperature"] == 1
        drawn = "" if pd.isna(row["temperature"]) else f" at T = {row['temperature']:g}"
        equivalent = max(
            stats.norm.sf((delta + bias) / stderr), stats.norm.sf((delta - bias) / stderr)
        )
        rows.append(
            {"claim": claim.id, "statement": claim.statement, "rival": row["recipe"],
             "metric": f"bias, {row['source']}{drawn}", "effect": bias, "low": row["bias_low"],
             "high": row["bias_high"], "p": min(1.0, 2 * stats.norm.sf((abs(bias) - delta) / stderr)),
             "p_adjusted": np.nan, "p_equivalent": equivalent, "delta": delta, "seeds": 1, "items": row["n"],
             "detectable": (stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(0.8)) * stderr,
             "seeds_needed": np.nan, "matched": "", "warning": "", "primary": at_one, "problem": None,
             "test": claim.test, "unit": row["unit"]}
        )  # fmt: skip
    return sorted(rows, key=lambda row: not row["primary"])


def prediction_rows(claim: Claim, pool: Pool) -> list[dict]:
    """Rows for the claim that KL on a probe predicts the drop in bits per byte, one per probe.

    One point per recipe and settings, each the mean over its seeds; effect is Spearman's rho over points. Recipes are
    resampled with all their points: low and high are percentiles, p is twice the share of resamples on the far side of
    the bound (`delta`). This is correlation over the recipes that were run, not cause.
    """
    kept, rows = pool.scores(BITS), []
    lines = [line for name in pool.recipes if (line := pool.line(name)) is not None]
    for measure in claim.measures:
        probe = pool.scores(measure)
        row = {
            "claim": claim.id, "statement": claim.statement, "rival": f"{len(lines)} recipes",
            "metric": f"kl on {measure.task}", "delta": claim.bound, "matched": "", "primary": measure.primary,
            "test": claim.test, "unit": "rho", "seeds": min((len(line.seeds) for line in lines), default=0),
            "items": sum(len(line.runs) for line in lines), "p_equivalent": np.nan, "warning": "", "problem": None,
        }  # fmt: skip
        rows.append(row)
        if kept is None or probe is None or pool.base is None:
            row["problem"] = ("not testable", f"no drop, or no KL on {measure.task}, was scored")
            continue
        drop, kl = -kept.sign * (kept.means() - kept.means()[pool.base]), probe.means()
        points = [(kl[line.runs].mean(1), drop[line.runs].mean(1)) for line in lines]
        if row["seeds"] == 1:
            row["problem"] = ("not testable", "one seed")
        elif len(lines) < FEWEST:
            row["problem"] = ("not testable", f"{len(lines)} recipes, fewer than {FEWEST}")
        else:
            row |= _rank(points, claim.bound)
    return rows


def _rank(points: list[tuple[np.ndarray, np.ndarray]], bound: float) -> dict:
    """Spearman's rho with interval and p, over recipes given as (KL of points, drop of points).

    A value that is not finite (a run diverged) has no rank: then there is no number.
    """
    kl, drop = (np.concatenate(side) for side in zip(*points, strict=True))
    owner = np.repeat(np.arange(len(points)), [len(own) for own, _ in points])
    picks = np.random.default_rng(0).multinomial(
        len(points), np.full(len(points), 1 / len(points)), N_BOOT
    )
    (rho,) = spearman(kl, drop, np.ones((1, len(kl))))
    draws = spearman(kl, drop, picks[:, owner])
    draws = draws[np.isfinite(draws)]  # a resample of one recipe alone may have no spread
    if not np.isfinite(rho):
        return {"effect": np.nan, "low": np.nan, "high": np.nan, "p": np.nan}
    low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2])
    far = min(np.mean(draws <= bound), np.mean(draws >= bound))
    return {"effect": float(rho), "low": low, "high": high, "p": min(1.0, 2 * max(far, 1 / N_BOOT))}


def spearman(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's rho (draws,) of points that occur as often as `counts` (draws, points) says.

    Equal points share their mean rank. NaN where a value is not finite, or all points of a draw are equal.
    """
    if not np.isfinite([x, y]).all():
        return np.full(len(counts), np.nan)
    centred = []
    for values in (x, y):
        below = (values < values[:, None]) + (values == values[:, None]) / 2
        rank = counts @ below.T
        centred.append(rank - (counts * rank).sum(1, keepdims=True) / counts.sum(1, keepdims=True))
    a, b = centred
    products = [(counts * one * other).sum(1) for one, other in ((a, b), (a, a), (b, b))]
    spread = products[1] * products[2]
    out = np.full(len(counts), np.nan)
    return np.divide(products[0], np.sqrt(spread), out=out, where=spread > 1e-12)
