"""What a study consists of, before it is run: its steps and its runs, and whether they are decided yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pandas as pd

from cfutils import recipes
from cfutils.analysis import forgetting, recommend, selection
from cfutils.analysis.claims import PLAIN
from cfutils.errors import UserError
from cfutils.pipeline import pruning
from cfutils.pipeline.pruning import Pruner
from cfutils.pipeline.steps import GROUPS, Steps
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import Profile
from cfutils.recipes import Plan

BASE = {**dict.fromkeys(field.name for field in fields(Plan)), "recipe": "base", "seed": -1}
"""Settings of the base in tidy frames, where a run's are `Plan.settings`."""
NOTEBOOKS = {
    "00": ("base", "mixture"), "01": ("samples",), "02": ("learning_rate", "methods"), "03": ("methods",),
    "04": ("temperature",), "05": ("ratio", "weight"), "06": ("estimates",),
    "07": ("selection", "frontier", "temperature", "ratio", "estimates"),
    "08": ("base", "methods", "temperature", "ratio"), "09": ("selection", "methods", "ratio"),
}  # fmt: skip
"""The studies that each notebook reads, as its metadata say: whose weights may go is decided by all of them."""


def planned(profile: Profile, store: Store, study: str) -> tuple[list[Step], list[Plan]]:
    """Return the steps and the runs of a study as `Lab.study` will see them; nothing is built.

    The frontier's are at the profile's learning rates as long as they are not `decided`.
    """
    steps = Steps(profile, store)
    if study == "frontier":
        steps = Steps(profile, store, rates=_known_rates(steps))
    return steps.study(study), steps.plans(study) if study in recipes.STUDIES else []


def decided(profile: Profile, store: Store, study: str) -> bool:
    """Whether a study's runs are known: those of the frontier are once every run of the selection has been scored."""
    return study != "frontier" or bool(_known_rates(Steps(profile, store)))


def _known_rates(steps: Steps) -> dict[str, float]:
    frames = []
    for plan in recipes.study(steps.profile, "selection"):
        artifact = steps.store.find(steps.scores(plan, "validation"))
        if artifact is None:
            return {}
        columns = {**plan.settings(), "run": steps.run(plan).key}
        frames.append(beside(columns, artifact.table("items")))
    chosen = selection.choose_lr(pd.concat(frames, ignore_index=True))
    return chosen.set_index("recipe")["lr"].to_dict()


def beside(settings: dict[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """Put a run's settings in columns before a frame's own."""
    columns = pd.DataFrame({k: [v] * len(frame) for k, v in settings.items()}, index=frame.index)
    return pd.concat([columns.astype(dict.fromkeys(forgetting.SETTINGS, float)), frame], axis=1)


def read(profile: Profile, store: Store) -> list[Step]:
    """Return the steps that the notebooks of a profile's whole run read, as far as they are decided."""
    names = dict.fromkeys(name for number in profile.notebooks for name in NOTEBOOKS.get(number, ()))
    return [step for name in names if decided(profile, store, name) for step in planned(profile, store, name)[0]]


def pruner(profile: Profile, store: Store, tops: Iterable[Step] = ()) -> Pruner:
    """Return what prunes weights by a profile's `keep_weights` while some steps are built."""
    tops = [*read(profile, store), *tops] if profile.keep_weights != "all" else []
    return Pruner(store, tops, profile.keep_weights, lambda: recommended(profile, store))


def check_disk(profile: Profile, store: Store, tops: Iterable[Step]) -> None:
    """Raise `UserError` if the disk cannot hold what is missing for some steps under a profile's `keep_weights`."""
    missing, later = store.missing(tops), []
    if profile.keep_weights != "all":
        later = store.missing(read(profile, store))
    need = pruning.peak_bytes(missing, profile.keep_weights, later=later, workers=profile.workers)
    store.check_disk(missing, need)


def recommended(profile: Profile, store: Store) -> set[str]:
    """Return the keys of the runs whose weights `keep_weights: recommended` keeps, of the first seed.

    Of the runs of the study "methods" that are scored: plain fine-tuning, which all others are compared with, until
    every run is scored, and the one that `analysis.recommend` recommends.
    """
    steps, frames, waiting = Steps(profile, store), [], False
    plans = recipes.study(profile, "methods")
    for plan in (None, *plans):
        found = [store.find(steps.scores(plan, group)) for group in GROUPS]
        if not all(found):
            waiting = True
            continue
        columns = {"profile": profile.name, **(plan.settings() if plan else BASE),
                   "run": (steps.run(plan) if plan else steps.base).key}  # fmt: skip
        frames += [beside(columns, artifact.table("items")) for artifact in found]
    first = [plan for plan in plans if plan.seed == profile.seeds[0]]
    plain = {steps.run(plan).key for plan in first if plan.recipe == PLAIN}
    try:
        table = recommend.compare(pd.concat(frames, ignore_index=True))
    except (UserError, ValueError):  # neither base nor plain fine-tuning is scored yet
        return plain
    row = table[table["recommended"]].iloc[0]
    chosen = {
        steps.run(plan).key for plan in first
        if plan.recipe == row["recipe"] and all(
            (pd.isna(row[k]) and pd.isna(v)) or row[k] == v
            for k, v in pd.Series(plan.settings()).astype(object).items() if k in forgetting.SETTINGS
        )
    }  # fmt: skip
    return chosen | plain if waiting else chosen
