"""`cfutils results`: put a profile's results into the shipped layer, and compare two sets of results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from cfutils import paths, profiles, recipes
from cfutils.analysis import agreement
from cfutils.errors import UserError, invalid_value
from cfutils.pipeline import results
from cfutils.pipeline.results import Shipped
from cfutils.pipeline.steps import GROUPS, Steps, all_steps
from cfutils.pipeline.store import Store
from cfutils.profiles import Profile
from cfutils.runner.jobs import prepare, store_of
from cfutils.runner.terminal import table
from cfutils.studies import BASE, beside, planned
from cfutils.units import size

HERE = "here"


def export(name: str, given: Iterable[str] = ()) -> str:
    """Write what there is of what a profile's notebooks read into data/results/PROFILE; return a report.

    given: other values of their parameters, as NAME=VALUE. Steps that are missing are counted: a long study ships after
    every finished run, also of seeds that the profile does not list yet. Raises `UserError` if there is nothing to
    ship, or too much.
    """
    jobs = prepare(name, (), given)
    profile = jobs[0].profile
    store = store_of(profile)
    tops = {step.key: step for job in jobs for step in job.reads(store)}
    artifacts = {key: found for key, step in tops.items() if (found := store.find(step))}
    if not artifacts:
        raise UserError(f"nothing of profile {name} is built: `cfutils run {name}` builds it")
    there = [step for key, step in tops.items() if key in artifacts]
    records = [record for step in all_steps(there) if (record := store.record(step))]
    folder = paths.results(profile.name)
    steps = Steps(profile, store)  # notebook 03 shows tokens, of the runs that compare methods
    shown = {steps.scores(plan, "probe").key for plan in (None, *steps.plans("methods"))}
    sizes = results.export(folder, artifacts.values(), records, tokens=shown)
    rows = [(file, size(n)) for file, n in sizes.items()]
    missing = len(tops) - len(artifacts)
    return (
        f"{table((), rows)}\n{len(artifacts)} of {len(tops)} artifacts, {size(sum(sizes.values()))} in {folder}"
        + (f"; {missing} are not built yet" if missing else "")
    )


def compare(a: str, b: str) -> pd.DataFrame:
    """Compare two sets of results of one profile, run by run and item by item (`agreement.compare`).

    Each is a profile's name (its shipped results), a folder of results, or "here" (this machine's store).
    """
    profile = _profile(a if a != HERE else b)
    sides = [_items(profile, _store(side)) for side in (a, b)]
    for side, items in zip((a, b), sides, strict=True):
        if items.empty:
            raise UserError(f"{side} holds no scores of profile {profile.name} as it is today")
    return agreement.compare(*sides)


def _profile(side: str) -> Profile:
    if side == HERE:
        raise invalid_value(
            "results compare", f"{HERE} {HERE}", "one of them a profile or a folder"
        )
    return profiles.load(Path(side).name if Path(side).is_dir() else side)


def _store(side: str) -> Store:
    if side == HERE:
        return Store()
    folder = Path(side) if Path(side).is_dir() else paths.results(side)
    shipped = Shipped(folder)
    if not shipped.records:
        raise invalid_value(
            "results", side, "a profile with shipped results, a folder of them, or here"
        )
    return Store(folder=paths.runs() / "none", shipped=shipped)


def _items(profile: Profile, store: Store) -> pd.DataFrame:
    """Items of every score of every study that a store holds."""
    steps, frames = Steps(profile, store), []
    plans = {plan: None for name in recipes.STUDIES for plan in planned(profile, store, name)[1]}
    for plan in (None, *plans):
        columns = {"profile": profile.name, **(plan.settings() if plan else BASE)}
        for group in (*GROUPS, "validation"):
            step = steps.scores(plan, group)
            if artifact := store.find(step):
                run = step.needs["model"].key
                frames.append(beside(columns | {"run": run}, artifact.table("items")))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
