"""The page that a run ends with: which notebooks stand on it, and their executed copies beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from pathlib import Path

from cfutils import paths, profiles, progress
from cfutils.errors import UserError
from cfutils.gallery import copies, page
from cfutils.lab import Lab
from cfutils.runner import notebook as sources
from cfutils.runner.jobs import Job, prepare
from cfutils.runner.notebook import Notebook


def write(profile: str, jobs: Sequence[Job], good: Container[str] = ()) -> list[Path]:
    """Write the page of every folder that the notebooks draw into, where figures are; return their paths.

    profile: as it was asked for. good: names of the notebooks whose executed copy stands for these jobs.
    """
    original = profiles.load(profile)
    executed = paths.runs() / "notebooks" / original.name
    found: dict[str, tuple[Lab, list[Notebook]]] = {}
    for job in jobs:
        lab = _lab(original, job.profile)
        found.setdefault(lab.name, (lab, []))[1].append(job.notebook)
    written = []
    for name, (lab, own) in found.items():
        folder = paths.figures(name)
        if not any(folder.glob("*.png")):
            continue
        for one in own:
            if one.name in good:
                copies.write(executed / f"{one.name}.ipynb", f"{one.number} · {one.title}", folder)
        whole = {job.notebook.name for job in prepare(profile, (), ())} if name == original.name else set()
        shown = [one for one in sources.notebooks() if one in own or one.name in whole or _drawn(one, folder)]
        with progress.task("report and gallery"):  # lm-eval reads its tasks with bars of its own
            written.append(page.write(lab, shown))
    return written


def again(profile: str) -> Path:
    """Write the page of a profile from what there is, without running a notebook.

    Raises `UserError` where there are no figures.
    """
    found = write(profile, prepare(profile, (), ()))
    if not found:
        raise UserError(f"profile {profile} has no figures yet: `cfutils run {profile}` draws them")
    return found[0]


def _lab(original: profiles.Profile, changed: profiles.Profile) -> Lab:
    """Return the lab of a notebook, which draws into a folder of its own where parameters differ from the profile's."""
    names = sorted(field.name for field in dataclasses.fields(profiles.Profile))
    values = {name: getattr(changed, name) for name in names}
    return Lab(original, **{name: v for name, v in values.items() if v != getattr(original, name)})


def _drawn(one: Notebook, folder: Path) -> bool:
    return any((folder / f"{name}.png").is_file() for name in one.figures)
