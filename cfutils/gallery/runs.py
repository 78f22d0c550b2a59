"""Which runs the page shows: of every recipe and setting the first seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfutils import recipes
from cfutils.analysis import forgetting, plots
from cfutils.lab import Lab
from cfutils.pipeline.steps import groups
from cfutils.pipeline.store import Artifact
from cfutils.recipes import Plan
from cfutils.studies import planned

if TYPE_CHECKING:
    from cfutils.runner.notebook import Notebook


@dataclass(frozen=True)
class Part:
    """One explorer of the page: what it shows, and what it does not."""

    data: Any = None
    """JSON values; None where there is nothing to show."""
    notes: tuple[str, ...] = ()
    """What is missing or left out, a sentence each."""

    @classmethod
    def absent(cls, what: str) -> Part:
        """Say that something is neither here nor shipped."""
        return cls(
            notes=(f"No {what} are here: they are neither built on this machine nor shipped. A run builds them.",)
        )


@dataclass(frozen=True)
class Run:
    """A run that is shown."""

    plan: Plan
    label: str
    """Recipe and the settings that differ within it."""

    @property
    def id(self) -> str:
        """Name of the run in links: the recipe and its marks, "cfs,ratio=0.6" for example."""
        return ",".join([self.plan.recipe, *self.label.removeprefix(plots.label(self.plan.recipe)).split()])


def shown(lab: Lab, notebooks: Iterable[Notebook]) -> tuple[list[Run], int]:
    """Return the first run of every recipe and setting of the notebooks' studies, and the number of all runs.

    Studies that score no retained task are left out. Runs are in the order of every table of the suite, built or not.
    """
    found: dict[Plan, Plan] = {}
    everything: set[Plan] = set()
    for study in dict.fromkeys(name for notebook in notebooks for name in notebook.studies):
        if study in recipes.STUDIES and "retained" in groups(study):
            for plan in planned(lab.profile, lab.store, study)[1]:
                everything.add(plan)
                found.setdefault(replace(plan, seed=0), plan)
    if not found:
        return [], 0
    frame = pd.DataFrame([plan.settings() for plan in found.values()]).assign(place=range(len(found)))
    frame = forgetting.by_recipe(frame.astype(dict.fromkeys(forgetting.SETTINGS, float)))
    plans = list(found.values())
    labels = plots.row_labels(frame)
    return [Run(plans[i], text) for i, text in zip(frame["place"], labels, strict=True)], len(everything)


def holds(artifact: Artifact, table: str) -> bool:
    """Whether an artifact has a table: shipped ones have those alone that a figure is drawn from."""
    if artifact.path is None:
        return table in artifact.record["tables"]
    return (artifact.path / f"{table}.parquet").is_file()


def numbers(values: pd.Series) -> list[float | int | None]:
    """Return values for JSON with three decimals, whole ones without a point; None where there is none."""
    rounded = [round(float(v), 3) if np.isfinite(v) else None for v in values]
    return [int(v) if v is not None and v == int(v) else v for v in rounded]


def made(lab: Lab, runs: Iterable[Run]) -> str:
    """Say where the scores that are shown come from; "" where there are none."""
    found = [lab.store.find(lab.steps.scores(run.plan, "retained")) for run in runs]
    here = [artifact.record for artifact in found if artifact and artifact.path]
    shipped = sum(artifact is not None and artifact.path is None for artifact in found)
    parts = [f"scores of {shipped} runs are shipped results, {lab.store.shipped}"] if shipped else []
    if here:
        machines = sorted({r["machine"].get("gpu") or r["machine"]["cpu"] for r in here})
        days = sorted({r["started"][:10] for r in here})
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        parts.append(f"scores of {len(here)} runs were built here, on {', '.join(machines)}, {span}")
    return "; ".join(parts)
