"""What a claim compares: two sets of runs at one target score, and whether they can be compared at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfutils.analysis import frontier
from cfutils.analysis.claims import PLAIN, POSITION, WINDOWS, Claim, Measure
from cfutils.analysis.crossed import Crossed
from cfutils.analysis.forgetting import SETTINGS
from cfutils.analysis.paired import Line, Pool
from cfutils.errors import UserError

Problem = tuple[str, str]
"""Verdict and reason of a comparison that cannot be made."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Treatment and rival as weights over runs (`paired`), seed by seed."""

    rival: str
    """Name in tables."""
    problem: Problem | None = None
    """Why there is no comparison, if there is none."""
    seeds: tuple[int, ...] = ()
    ours: np.ndarray | None = None
    """(seeds, runs): the treatment."""
    theirs: np.ndarray | None = None
    """(seeds, runs): the rival, at the treatment's target score where it has several points."""
    gap: Crossed | None = None
    """Target score of the treatment minus that of the rival; above 0, the treatment learned more."""
    metric: str | None = None
    """What the gap is measured in."""
    matched: bool = False
    """Whether target scores are alike."""

    @property
    def interpolated(self) -> bool:
        """Whether the rival lies between points of its frontier."""
        return self.theirs is not None and bool(((self.theirs > 0) & (self.theirs < 1)).any())


def of_claim(claim: Claim, pool: Pool) -> list[Contrast]:
    """Contrasts of a claim that compares recipes, or values of a setting."""
    if claim.test == "differs":
        return along(pool, claim.treatment, claim.study, claim.reference)
    return [against(pool, claim.treatment, rival) for rival in claim.rivals]


def against(pool: Pool, treatment: str, rival: str) -> Contrast:
    """A recipe and one rival, at the recipe's target score.

    The recipe is at its one point, or at the middle of those in which its knob varies, which is its default. A rival
    with several points is interpolated between the two nearest in target score, seed by seed; its knob is thus chosen
    by target scores alone.
    """
    ours, theirs = pool.line(treatment), pool.line(rival)
    for name, line in ((treatment, ours), (rival, theirs)):
        if line is None:
            return Contrast(rival=rival, problem=("not testable", f"{name} was not run"))
    seeds = tuple(seed for seed in ours.seeds if seed in theirs.seeds)
    if not seeds:
        return Contrast(
            rival=rival, problem=("not testable", f"{treatment} and {rival} share no seed")
        )
    runs = ours.at(seeds)[middle(ours)]
    mix = frontier.at_target(pool, theirs, seeds, pool.target[runs])
    return _contrast(pool, rival, seeds, pool.only(runs), mix)


def along(pool: Pool, recipe: str, setting: str, reference: float | None) -> list[Contrast]:
    """A recipe at the reference value of a setting and at every other, each as it was run.

    Of the runs that differ in this setting alone, the largest set counts. The weight of replay that goes with a share
    of replay, so that every token counts alike, is no setting of its own.
    """
    line = pool.line(recipe)
    if line is None:
        return [Contrast(rival=recipe, problem=("not testable", f"{recipe} was not run"))]
    points = line.settings.assign(extra=0.0)
    fixed = [c for c in SETTINGS if c != setting]
    if setting == "ratio":
        share = points["ratio"] / (1 - points["ratio"])
        points["extra"] = (points["replay_weight"] / share).round(6)
        fixed = [c for c in fixed if c != "replay_weight"]
    sets = points.groupby([*fixed, "extra"], dropna=False, sort=False)[setting].transform("nunique")
    keys = points[[*fixed, "extra"]].loc[sets.idxmax()]
    same = (points[keys.index].eq(keys) | (points[keys.index].isna() & keys.isna())).all(axis=1)
    values = {float(points[setting][place]): place for place in points.index[same]}
    first = min(values) if reference is None else reference
    rivals = sorted(set(values) - {first})
    if first not in values or not rivals:
        reason = f"{recipe} was not run at {setting} {first:g} and at another"
        return [Contrast(rival=recipe, problem=("not testable", reason))]
    ours, at = pool.only(line.runs[values[first]]), [line.runs[values[value]] for value in rivals]
    names = [f"{recipe} at {setting} {value:g}" for value in rivals]
    return [
        _contrast(pool, name, line.seeds, ours, pool.only(runs))
        for name, runs in zip(names, at, strict=True)
    ]


def middle(line: Line) -> int:
    """Place of the point in the middle of a recipe's sweep; raises `UserError` if more than one setting varies."""
    if len(line.varies) > 1:
        raise UserError(
            f"{line.recipe} varies in {', '.join(line.varies)}: give one study, where its knob alone varies"
        )
    return (len(line.runs) - 1) // 2


def _contrast(
    pool: Pool, rival: str, seeds: Sequence[int], ours: np.ndarray, theirs: np.ndarray
) -> Contrast:
    gap, metric, matched = match(pool, ours - theirs)
    return Contrast(
        rival=rival, seeds=tuple(seeds), ours=ours, theirs=theirs, gap=gap, metric=metric, matched=matched
    )  # fmt: skip


def match(pool: Pool, mix: np.ndarray) -> tuple[Crossed | None, str | None, bool]:
    """The gap of target scores, the metric that it is in, and whether they are alike.

    They are if the gap is within the window (`claims.WINDOWS`) in the metric of `Pool.window`. If it is not but its
    interval holds zero, right answers are too few to tell, and NLL decides, which is far more precise.
    """
    if pool.window is None:
        return None, None, False
    scores, metric = pool.window
    gap = scores.estimate(mix)
    low, high = gap.interval()
    unclear = abs(gap.effect) > WINDOWS[metric] and low <= 0 <= high
    if unclear and metric != POSITION and (nll := pool.on_target(POSITION)):
        gap, metric = nll.estimate(mix), POSITION
    return gap, metric, bool(abs(gap.effect) <= WINDOWS[metric])


def premise(
    pool: Pool, contrast: Contrast, measure: Measure, tasks: Sequence[str] = ()
) -> Problem | None:
    """Why there is nothing to mitigate, if so: plain fine-tuning, at the same target score, did not forget.

    It did if its drop is at least the smallest that matters and the lower end of its interval is above 0.
    """
    if pool.base is None:
        return "not testable", "there is no base among the items"
    plain = pool.line(PLAIN)
    places = [i for i, seed in enumerate(contrast.seeds) if plain and seed in plain.seeds]
    if not places:
        return (
            "not testable",
            "plain fine-tuning was not run: nothing shows that there is something to retain",
        )
    seeds = [contrast.seeds[i] for i in places]
    targets = contrast.ours[places] @ np.nan_to_num(pool.target)
    mix = frontier.at_target(pool, plain, seeds, targets)
    drop = pool.scores(measure, tasks).estimate(pool.only(pool.base, len(seeds)) - mix)
    low, high = drop.interval()
    if low > 0 and drop.effect >= measure.delta:
        return None
    if not np.isfinite(drop.effect):
        return "inconclusive", "plain fine-tuning has no finite score: it diverged"
    return "not testable", (
        f"plain fine-tuning did not forget: drop {drop.effect:.3f} [{low:.3f}, {high:.3f}] {measure.unit}"
    )
