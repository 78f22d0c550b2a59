"""What a study consists of, before it is run: its steps and its runs, and whether they are decided yet."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pandas as pd

from cfutils import recipes
from cfutils.analysis import forgetting, selection
from cfutils.pipeline.steps import Steps
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import Profile
from cfutils.recipes import Plan

BASE = {**dict.fromkeys(field.name for field in fields(Plan)), "recipe": "base", "seed": -1}
"""Settings of the base in tidy frames, where a run's are `Plan.settings`."""


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
