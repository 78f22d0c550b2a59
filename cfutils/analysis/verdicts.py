"""Verdicts on the declared claims (`claims`), from item-level results, by one function for all of them.

    table(items) -> one row per claim, rival and measure -> summary(table): one row per claim

The unit is the pair (seed, item): the drop of the rival minus that of the treatment, which is the treatment's score
minus the rival's, so that the base cancels. Above 0 the treatment retains more. `crossed` has the variance.

Checks, in this order; the first that applies is the verdict:

1. not testable: a recipe or a score is missing; one seed; plain fine-tuning did not forget (`contrasts.premise`).
2. inconclusive: a run has no finite score.
3. not comparable: target scores differ (`contrasts.match`), the rival's frontier does not reach the treatment's, and
   what retains more has learned less. What retains more and learns more is better, if 5 finds the difference.
4. equivalent: two one-sided tests put the difference within +-delta (Schuirmann 1987). A difference that is there but
   too small to matter is equivalent, not supported.
5. supported, contradicted: the two-sided test finds a difference, in the direction claimed or against it.
6. inconclusive: neither is shown. `detectable` and `seeds_needed` say what it would take.

4 and 5 take p adjusted by Holm over the rivals of one claim and measure. Pairs by item and the paired question follow
Miller (arXiv 2411.00640), warnings below 300 independent items Bowyer et al. (arXiv 2503.01747).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cfutils.analysis import contrasts, mechanism
from cfutils.analysis.bootstrap import SHARES
from cfutils.analysis.claims import ALPHA, CLAIMS, Claim, Measure
from cfutils.analysis.contrasts import Contrast, Problem
from cfutils.analysis.paired import Pool, Scores
from cfutils.analysis.significance import holm, mcnemar
from cfutils.errors import invalid_value

FEW = 300
"""Independent items below which an interval may be too narrow."""
VERDICTS = (
    "supported",
    "contradicted",
    "equivalent",
    "inconclusive",
    "not comparable",
    "not testable",
)
COLUMNS = [
    "claim", "statement", "rival", "metric", "effect", "low", "high", "p", "p_adjusted", "p_equivalent", "delta",
    "seeds", "items", "detectable", "seeds_needed", "target_gap", "target_low", "target_high", "target_metric",
    "matched", "mcnemar_p", "warning", "primary", "verdict", "reason",
]  # fmt: skip
FAMILY = ["claim", "statement", "metric"]
"""Rows whose p are adjusted together."""


def table(
    items: pd.DataFrame,
    *,
    temperature: pd.DataFrame | None = None,
    ratio: pd.DataFrame | None = None,
    estimates: pd.DataFrame | None = None,
    thinking: Sequence[str] = (),
    claims: Sequence[Claim] = CLAIMS,
) -> pd.DataFrame:
    """Judge the claims: one row per claim, rival and measure.

    items: item-level results of the study "methods" or "frontier" (`Study.items`), base included; temperature, ratio:
    those of these studies; estimates: `Lab.estimates`. Claims about results that are not given are left out. A
    column `cluster` marks items of one passage or prompt. thinking: retained tasks that the base solves by thinking.

    Returns `COLUMNS`. effect, low, high (95 %), delta and detectable (at alpha 0.05, power 0.8) are in the metric's
    unit; p is two-sided; p_adjusted and p_equivalent (of a difference of delta or more) are Holm's. target_gap, above
    0 where the treatment learned more, is in target_metric: right answers, or NLL where these cannot tell
    (`contrasts.match`); matched is "as run", "interpolated" or "". mcnemar_p is the exact test, for measures of right
    and wrong answers as they were run. With one seed low and high cover items alone. C7: effect is the bias, p that of
    a bias of 10 % of the KL or less; C9: effect is Spearman's rho, delta and p are those of the bound (`mechanism`).
    """
    frames = {"methods": items, "temperature": temperature, "ratio": ratio}
    asked = {claim.study for claim in claims}
    pools = {name: Pool(frame) for name, frame in frames.items() if frame is not None and name in asked}
    rows = []
    for claim in claims:
        if claim.test == "unbiased" and estimates is not None:
            rows += mechanism.bias_rows(claim, estimates)
        elif claim.test == "predicts":
            rows += mechanism.prediction_rows(claim, pools["methods"])
        elif claim.study in pools:
            rows += _rows(claim, pools[claim.study], thinking)
    out = pd.DataFrame(rows, columns=[*COLUMNS, "problem", "test", "unit"])
    tested = out["problem"].isna() & np.isfinite(out["p"].astype(float))
    for _, places in out[tested].groupby(FAMILY, sort=False).groups.items():
        for raw, adjusted in (("p", "p_adjusted"), ("p_equivalent", "p_equivalent")):
            out.loc[places, adjusted] = holm(out.loc[places, raw])
    found = [
        row["problem"] or decide(row)
        for row in out.replace({"problem": {np.nan: None}}).to_dict("records")
    ]
    out["verdict"], out["reason"] = zip(*found, strict=True) if found else ([], [])
    return out[COLUMNS]


def along(items: pd.DataFrame, setting: str, *, recipes: Sequence[str]) -> pd.DataFrame:
    """Judge, for each of several recipes, whether a setting of its replay matters (C6): a frame of `table`.

    items: item-level results of the study of that setting, base and plain fine-tuning included. Holm's adjustment is
    over all values of all recipes. Raises `UserError` for another setting than temperature and ratio.
    """
    declared = {claim.study: claim for claim in CLAIMS if claim.test == "differs"}
    if setting not in declared:
        raise invalid_value("setting", setting, "one of " + ", ".join(declared))
    claims = [replace(declared[setting], treatment=recipe) for recipe in recipes]
    return table(items, **{setting: items}, claims=claims)


def _rows(claim: Claim, pool: Pool, thinking: Sequence[str]) -> list[dict]:
    """Rows of a claim that compares runs, before adjustment."""
    tasks = {m: tuple(thinking) if m.skills == "thinking" else () for m in claim.measures}
    scores = {
        m: None if m.skills == "thinking" and not thinking else pool.scores(m, tasks[m])
        for m in claim.measures
    }
    measured = [m for m in claim.measures if scores[m] is not None]
    pairs = contrasts.of_claim(claim, pool)
    if not measured:
        first = claim.measures[0]
        reason = (
            "the base has no skills of thinking"
            if first.skills == "thinking"
            else f"no {first.metric} was scored"
        )
        return [
            _blank(claim, first, pair.rival) | {"problem": ("not testable", reason)}
            for pair in pairs
        ]
    rows = []
    for measure in measured:
        for pair in pairs:
            row = _blank(claim, measure, pair.rival)
            if pair.ours is not None:
                row |= _numbers(pair, measure, scores[measure])
            rows.append(
                row | {"problem": _problem(pool, pair, measure, tasks[measure], row["effect"])}
            )
    return rows


def _blank(claim: Claim, measure: Measure, rival: str) -> dict:
    """A row without numbers."""
    numbers = [
        "effect",
        "low",
        "high",
        "p",
        "p_adjusted",
        "p_equivalent",
        "detectable",
        "seeds_needed",
    ]
    numbers += ["target_gap", "target_low", "target_high", "mcnemar_p"]
    return dict.fromkeys(numbers, np.nan) | {
        "claim": claim.id, "statement": claim.statement, "rival": rival, "metric": measure.metric,
        "delta": measure.delta, "primary": measure.primary, "seeds": 0, "items": 0, "target_metric": "",
        "matched": "", "warning": "", "test": claim.test, "unit": measure.unit, "problem": None,
    }  # fmt: skip


def _numbers(pair: Contrast, measure: Measure, scores: Scores) -> dict:
    found = scores.estimate(pair.ours - pair.theirs)
    low, high = found.interval(1 - ALPHA)
    row = {
        "effect": float(found.effect), "low": float(low), "high": float(high), "seeds": found.n_seeds,
        "items": found.n_items, "seeds_needed": found.seeds_needed(measure.delta, alpha=ALPHA),
        "matched": ("interpolated" if pair.interpolated else "as run") if pair.matched else "",
    }  # fmt: skip
    if found.n_seeds > 1:
        row |= {"p": float(found.p()), "p_equivalent": float(found.p_equivalent(measure.delta)),
                "detectable": float(found.detectable(alpha=ALPHA))}  # fmt: skip
    if pair.gap is not None:
        ends = (float(pair.gap.effect), *map(float, pair.gap.interval(1 - ALPHA)))
        row |= dict(zip(("target_gap", "target_low", "target_high"), ends, strict=True))
        row["target_metric"] = pair.metric
    if measure.metric in SHARES and not pair.interpolated:
        row["mcnemar_p"] = mcnemar(scores.of(pair.ours) - scores.of(pair.theirs))
    warnings = [f"{found.n_units} independent items, fewer than {FEW}"] * (found.n_units < FEW)
    warnings += ["two seeds: intervals may be too narrow"] * (found.n_seeds == 2)
    return row | {"warning": "; ".join(warnings)}


def _problem(
    pool: Pool, pair: Contrast, measure: Measure, tasks: Sequence[str], effect: float
) -> Problem | None:
    """The first of the checks that no test is needed for."""
    if pair.problem:
        return pair.problem
    if len(pair.seeds) == 1:
        return "not testable", "one seed"
    if found := contrasts.premise(pool, pair, measure, tasks):
        return found
    if pair.gap is None:
        return "not comparable", "the target was not scored"
    gap = float(pair.gap.effect)
    if not np.isfinite([gap, effect]).all():
        return "inconclusive", "a run has no finite score: it diverged"
    return None


def decide(row: dict) -> Problem:
    """Verdict and reason from adjusted p: the checks 3 to 6, and those of C7 and C9."""
    effect, delta, unit = row["effect"], row["delta"], row["unit"]
    if not np.isfinite([effect, row["p_adjusted"]]).all():
        return "inconclusive", "there is no interval"
    differs, within = row["p_adjusted"] < ALPHA, row["p_equivalent"] < ALPHA
    if row["test"] == "predicts":
        side = "above" if effect > delta else "below"
        words = {"above": "supported", "below": "contradicted"}
        return (
            words[side] if differs else "inconclusive"
        ), f"rho {effect:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    if row["test"] == "unbiased":
        verdict = "supported" if within else "contradicted" if differs else "inconclusive"
        return verdict, f"bias {effect:+.3g} {unit}; {delta:.3g} would matter"
    if not row["matched"]:
        gap, more = row["target_gap"], "less" if row["target_gap"] > 0 else "more"
        learns = f"learns {more}: {abs(gap):.3f} in {row['target_metric']} of the target"
        if gap * effect <= 0:
            return "not comparable", f"{row['rival']} {learns}"
        if not differs:
            return "inconclusive", f"{row['rival']} {learns}; that it retains {more} is not shown"
        verdict = "supported" if gap > 0 or row["test"] == "differs" else "contradicted"
        return verdict, f"{row['rival']} retains {more}, by {abs(effect):.3f} {unit}, and {learns}"
    if within:
        return "equivalent", f"the difference is within {delta:g} {unit}"
    if differs:
        more = "less" if effect > 0 else "more"
        verdict = "supported" if effect > 0 or row["test"] == "differs" else "contradicted"
        return verdict, f"{row['rival']} retains {more}, by {abs(effect):.3f} {unit}"
    if row["p"] < ALPHA:
        return "inconclusive", "a difference that does not stand correction for several rivals"
    return "inconclusive", f"neither a difference nor its absence within {delta:g} is shown"


def summary(verdicts: pd.DataFrame, *, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One row per claim, from a frame of `table` (of the same claims): the verdict by its first measure.

    A claim about each of several rivals (family "all") is supported if the tests against all of them find the
    difference, each at alpha without correction (intersection-union test, Berger 1982); contradicted if one of them
    contradicts it; otherwise the verdict that all share, or inconclusive. A claim that one of several differs (family
    "any") is supported if one test does, after Holm. Rivals that were not testable are named and do not count.

    Returns columns: claim, statement, verdict, rival (the one that decides: of "all" the hardest to beat), effect,
    low, high, delta, detectable, seeds, items, metric, others (verdicts by other measures), reason, refuted_by.
    """
    declared = {(claim.id, claim.statement): claim for claim in claims}
    rows = []
    for key, own in verdicts.groupby(["claim", "statement"], sort=False):
        claim, by_metric = declared[key], {}
        own = own[own["primary"] | ~own["primary"].any()] if claim.test == "unbiased" else own
        for metric, part in own.groupby("metric", sort=False):
            by_metric[metric] = _whole(part, claim.family)
        (metric, (verdict, row)), *others = by_metric.items()
        first = own[own["metric"] == metric]
        reason = "; ".join(
            f"{r}: {v}" for r, v in zip(first["rival"], first["verdict"], strict=True)
        )
        if len(first) == 1 or verdict == "not testable":
            reason = row["reason"]
        columns = [
            "rival",
            "effect",
            "low",
            "high",
            "delta",
            "detectable",
            "seeds",
            "items",
            "metric",
        ]
        rows.append(
            {"claim": claim.id, "statement": claim.statement, "verdict": verdict, **row[columns],
             "others": "; ".join(f"{name}: {found[0]}" for name, found in others), "reason": reason,
             "refuted_by": claim.refuted_by}
        )  # fmt: skip
    return pd.DataFrame(rows)


def unit(row: Mapping) -> str:
    """Return what the effect in a row of `table` or `summary` is measured in."""
    claim = next(c for c in CLAIMS if (c.id, c.statement) == (row["claim"], row["statement"]))
    if claim.test == "predicts":
        return "rank correlation"
    found = {m.metric: m.unit for m in claim.measures}.get(row["metric"], claim.measures[0].unit)
    return f"{found}, bias" if claim.test == "unbiased" else found


def _whole(part: pd.DataFrame, family: str) -> tuple[str, pd.Series]:
    """Verdict of a claim by one measure, and the row that decides."""
    tested = part[part["verdict"] != "not testable"]
    if tested.empty:
        return "not testable", part.iloc[0]
    words = set(tested["verdict"])
    evidence = (np.sign(tested["effect"]) * (1 - tested["p"])).fillna(0)
    if family == "any":
        found = tested[tested["verdict"] == "supported"]
        row = tested.loc[(tested if found.empty else found)["p"].fillna(1).idxmin()]
        return (
            "supported"
            if "supported" in words
            else words.pop()
            if len(words) == 1
            else "inconclusive"
        ), row
    row = tested.loc[evidence.idxmin()]
    if "contradicted" in words:
        return "contradicted", row
    each = (tested["verdict"] == "supported") | (
        (tested["verdict"] == "inconclusive") & (tested["p"] < ALPHA) & (tested["effect"] > 0)
    )
    if each.all():
        return "supported", row
    return (words.pop() if len(words) == 1 else "inconclusive"), row
