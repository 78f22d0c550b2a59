"""What a run is made of: notebooks with their parameters, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from cfutils import profiles
from cfutils.errors import UserError, invalid_value
from cfutils.pipeline.results import Shipped
from cfutils.pipeline.store import Step, Store
from cfutils.runner import notebook as sources
from cfutils.runner.notebook import Notebook


class Job(NamedTuple):
    """One notebook with the parameters that it is to run with."""

    notebook: Notebook
    parameters: dict[str, Any]
    """What papermill injects: what was given, and the profile."""
    profile: profiles.Profile
    """The profile as this notebook's Lab will see it."""

    def reads(self, store: Store) -> list[Step]:
        """Return the steps that the notebook's studies read, without doubles, as far as they are decided."""
        from cfutils.studies import (  # and pandas, which `cfutils list` does without
            decided,
            planned,
        )

        known = (name for name in self.notebook.studies if decided(self.profile, store, name))
        studies = (planned(self.profile, store, name)[0] for name in known)
        return list({step.key: step for steps in studies for step in steps}.values())


def prepare(profile: str, names: Iterable[str], given: Iterable[str]) -> list[Job]:
    """Check everything that was asked for; raises `UserError` for anything that cannot run.

    A whole run is of the profile's notebooks. One about another base is left out of it, and refused if it was named.
    """
    names = tuple(names)
    whole = profiles.load(profile).notebooks  # first: a misspelt profile is named, not what follows from it
    chosen = [n for n in sources.select(names) if names or n.number in whole]
    arguments = sources.arguments(chosen, given)
    jobs, lost = [], set()
    for notebook in chosen:
        values = arguments[notebook.number]
        stated = {name: p.default for name, p in notebook.parameters.items()} | values
        loaded = profiles.load(
            profile, **{k: v for k, v in stated.items() if k in profiles.FIELDS and v is not None}
        )
        if notebook.base and loaded.base != notebook.base:
            if names:
                raise invalid_value("notebook", notebook.name, f"a profile with base {notebook.base}",
                          f"it is about no other, and {profile} has {loaded.base}")  # fmt: skip
            lost |= values.keys()
            continue
        parameters = {"profile": profile} if "profile" in notebook.parameters else {}
        jobs.append(Job(notebook, parameters | values, loaded))
    for name in sorted(lost - {name for job in jobs for name in job.parameters}):
        raise UserError(
            f"-p {name}: no notebook that {profile} runs takes it: it is about another base"
        )
    return jobs


def store_of(profile: profiles.Profile) -> Store:
    """Return the store, with the profile's shipped results as its second layer."""
    return Store(shipped=Shipped.of(profile.name))
