"""Runs and items as arrays that statistics on pairs need: which runs a recipe has, and what every item scored.

A recipe's score, on one setting or between several, is a matrix (seeds, runs) of weights over runs; what two recipes
score on the items of a seed, and the difference, is that matrix times the scores of the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from cfutils.analysis import bootstrap, crossed
from cfutils.analysis.claims import PLAIN, POSITION, WINDOWS, Measure
from cfutils.analysis.forgetting import LOWER_IS_BETTER, RUN, SETTINGS, once
from cfutils.errors import UserError


@dataclass(frozen=True)
class Line:
    """The runs of one recipe: its points (settings), each with all of these seeds."""

    recipe: str
    settings: pd.DataFrame
    """One row per point, sorted."""
    seeds: tuple[int, ...]
    runs: np.ndarray
    """(points, seeds): places in `Pool.runs`."""

    def at(self, seeds: Sequence[int]) -> np.ndarray:
        """Runs (points, len(seeds)) of some of the seeds."""
        return self.runs[:, [self.seeds.index(seed) for seed in seeds]]

    @property
    def varies(self) -> list[str]:
        """Settings in which the points differ."""
        return [c for c in SETTINGS if self.settings[c].nunique(dropna=False) > 1]


@dataclass(frozen=True)
class Scores:
    """What every run scored on the items of one measure."""

    value: np.ndarray
    """(runs, items)."""
    weight: np.ndarray
    """(items,)."""
    task: np.ndarray
    """(items,): integers."""
    cluster: np.ndarray
    """(items,): integers."""
    sign: float
    """-1 where lower is better."""

    def of(self, mix: np.ndarray) -> np.ndarray:
        """Scores (seeds, items) of weighted runs (seeds, runs); runs without weight play no part."""
        used = np.flatnonzero(mix.any(0))
        return mix[:, used] @ self.value[used]

    def estimate(self, mix: np.ndarray) -> crossed.Crossed:
        """Mean of weighted runs whose weights sum to 0: above 0, those with weight above 0 are better."""
        return crossed.estimate(
            self.sign * self.of(mix), self.weight, task=self.task, cluster=self.cluster
        )

    def means(self) -> np.ndarray:
        """Weighted mean of every run (runs,), every task alike."""
        own = [self.task == t for t in np.unique(self.task)]
        return np.mean([self.value[:, o] @ self.weight[o] / self.weight[o].sum() for o in own], axis=0)


class Pool:
    """Items of one base and its runs. Raises `UserError` if they do not line up."""

    def __init__(self, items: pd.DataFrame) -> None:
        """Take item-level results; a run that occurs twice, in two studies, counts once."""
        self.items = once(items)
        self.runs = self.items[RUN].drop_duplicates("run", ignore_index=True)
        bases = np.flatnonzero(self.runs["recipe"] == "base")
        if len(bases) > 1:
            raise UserError(f"items of {len(bases)} bases; give those of one profile")
        self.base = int(bases[0]) if len(bases) else None
        self.recipes = [name for name in self.runs["recipe"].unique() if name != "base"]
        self._lines: dict[str, Line | None] = {}
        self._known: dict[tuple[Measure, tuple[str, ...]], Scores | None] = {}

    def line(self, recipe: str) -> Line | None:
        """The runs of a recipe, with the seeds that all of its points have; None if there is none."""
        if recipe not in self._lines:
            self._lines[recipe] = self._line(recipe)
        return self._lines[recipe]

    def _line(self, recipe: str) -> Line | None:
        own = self.runs[self.runs["recipe"] == recipe]
        if own.empty:
            return None
        if own.duplicated([*SETTINGS, "seed"]).any():
            raise UserError(
                f"items hold two runs of one seed of {recipe} at the same settings; give one"
            )
        own = own.sort_values([*SETTINGS, "seed"], kind="stable")
        point = own.groupby(SETTINGS, dropna=False, sort=False).ngroup()
        place = pd.Series(own.index, [point, own["seed"]]).unstack()
        place = place.dropna(axis=1).astype(int)
        settings = own.loc[~point.duplicated(), SETTINGS].reset_index(drop=True)
        return Line(recipe, settings, tuple(place.columns), place.to_numpy())

    def only(self, runs: int | np.ndarray, n_seeds: int | None = None) -> np.ndarray:
        """Weights (seeds, runs) that take one run for each seed, or the same run for all `n_seeds`."""
        places = np.full(n_seeds, runs) if n_seeds else np.asarray(runs)
        return np.eye(len(self.runs))[places]

    def scores(self, measure: Measure, tasks: Sequence[str] = ()) -> Scores | None:
        """Scores of all runs on a measure's items, of all its tasks or some; None if there are none."""
        key = measure, tuple(tasks)
        if key not in self._known:
            self._known[key] = self._read(*key)
        return self._known[key]

    def _read(self, measure: Measure, tasks: tuple[str, ...]) -> Scores | None:
        where = (self.items["group"] == measure.group) & (self.items["metric"] == measure.metric)
        if measure.task:
            where &= self.items["task"] == measure.task
        if tasks:
            where &= self.items["task"].isin(tasks)
        values, weights, codes, clusters = [], [], [], []
        for name, cell in self.items[where].groupby("task", sort=False):
            place = (measure.group, name, measure.metric)
            value, weight = bootstrap.matrices(cell, place)
            value = self._with_base(value, measure, place)
            cluster = value.index
            if "cluster" in cell and cell["cluster"].notna().any():
                cluster = cell.drop_duplicates("item").set_index("item")["cluster"][value.index]
            values.append(value.to_numpy(float).T)
            weights.append(weight)
            codes.append(np.full(len(value), len(codes)))
            code = pd.factorize(cluster)[0]
            alone = code < 0  # an item without a cluster is its own
            code[alone] = code.max() + 1 + np.arange(alone.sum())
            clusters.append(code)
        if not codes:
            return None
        arrays = [np.concatenate(part, axis=-1) for part in (values, weights, codes, clusters)]
        return Scores(*arrays, -1.0 if measure.metric in LOWER_IS_BETTER else 1.0)

    def _with_base(self, value: pd.DataFrame, measure: Measure, where: tuple) -> pd.DataFrame:
        """Columns in the order of the runs; KL(base || base) is 0, whether or not it was written down."""
        if self.base is not None and measure.metric == "kl":
            value = value.assign(**{self.runs["run"][self.base]: 0.0})
        if missing := set(self.runs["run"]) - set(value):
            raise UserError(
                f"{' / '.join(where)}: {len(missing)} runs were not scored on it; leave their study out"
            )
        return value[self.runs["run"].tolist()]

    def on_target(self, metric: str) -> Scores | None:
        """Scores of all runs on the target, by a metric of `claims.WINDOWS`; None if there are none."""
        return self.scores(Measure(metric, group="target", delta=WINDOWS[metric], unit=""))

    @cached_property
    def window(self) -> tuple[Scores, str] | None:
        """Scores by which targets are matched, and their metric; None without target scores.

        Right answers count if plain fine-tuning, the mean of its points, gives more than the base beyond noise. Where
        it does not, they stay at chance: alike in two runs whatever these have learned, so that NLL tells them apart.
        """
        found = {metric: scores for metric in WINDOWS if (scores := self.on_target(metric))}
        if not found:
            return None
        metric = next((m for m, scores in found.items() if self._learned(scores)), list(found)[-1])
        return found[metric], metric

    def _learned(self, scores: Scores) -> bool:
        """Whether plain fine-tuning is above the base beyond noise; taken for granted where either is missing."""
        plain = self.line(PLAIN)
        if self.base is None or plain is None:
            return True
        mix = self.only(plain.runs.T).mean(axis=1) - self.only(self.base, len(plain.seeds))
        return bool(scores.estimate(mix).interval()[0] > 0)

    @cached_property
    def target(self) -> np.ndarray:
        """Place of every run (runs,) on a frontier: its target NLL, or what there is."""
        found = self.on_target(POSITION) or (self.window and self.window[0])
        return found.means() if found else np.full(len(self.runs), np.nan)
