"""`cfutils run PROFILE --shrink`: the whole run of a hub profile in minutes, before its hours on GPUs are paid for.

Base, data sets and revisions keep their names and are fetched by them, from a hub on this machine that serves a tiny
base with random weights and made-up records. Sizes alone are changed, those that data/shrink.yaml lists. Store, figures
and the hub's cache are folders of their own, so that nothing of a rehearsal is ever taken for a result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cfutils import atomic, paths, profiles, yaml_input
from cfutils.data import hub_access
from cfutils.environment import variables
from cfutils.errors import UserError, invalid_value
from cfutils.events import say
from cfutils.profiles import Profile
from cfutils.rehearsal import models, records
from cfutils.rehearsal.hub import Hub

SUFFIX = "-rehearsal"
"""Ends the name of a shrunk profile, which its figures, notebooks and pages show."""
TOKEN = "hf_rehearsal"
"""Stands for the user's own token, which never leaves for a hub that is none."""


def overrides() -> dict[str, Any]:
    """Return the sizes that a rehearsal has in place of the profile's."""
    return yaml_input.read(paths.data() / "shrink.yaml")


def shrunk(profile: Profile, stated: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a profile's YAML file (`stated`) with those sizes.

    Raises `UserError` for a base without a stand-in.
    """
    if profile.base not in models.STAND_INS:
        raise invalid_value(
            "--shrink", profile.name, f"a profile with base {' or '.join(models.STAND_INS)}",
            f"{profile.base} has no stand-in; smoke is a profile that runs in minutes.",
        )  # fmt: skip
    thinks = profile.think_budget is not None
    smaller = {name: value for name, value in overrides().items() if thinks or name != "think_budget"}
    about = f"Rehearsal of {profile.name}: a random base, made-up records; its numbers mean nothing."
    return {**stated, **smaller, "about": about}


@contextmanager
def of(name: str) -> Iterator[str]:
    """Serve what a profile fetches and point every library there; yield the path of the shrunk profile.

    Kernels, builders and vLLM's processes inherit the environment, which is put back in the end.
    Raises `UserError` if a library has read its environment already.
    """
    if "huggingface_hub" in sys.modules:
        raise UserError("--shrink must come before huggingface_hub is imported, which reads HF_ENDPOINT once")
    profile = profiles.load(name)
    values = shrunk(profile, profiles.stated(name))
    folder = paths.runs() / "rehearsal"
    shrunk_file = folder / f"{profile.name}{SUFFIX}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(shrunk_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    gated = frozenset(name for name, data_set in records.DATA_SETS.items() if data_set.gated)
    with Hub(folder / "hub", gated=gated) as hub, variables(environment(hub.endpoint, folder)):
        write(profiles.load(shrunk_file), folder / "hub")  # imports the libraries
        say(f"{values['about']}\nhub on this machine: {hub.endpoint}; all files below {folder}")
        yield str(shrunk_file)


def environment(endpoint: str, folder: Path) -> dict[str, str | None]:
    """Return the variables that send the libraries to a hub and keep all that is written below `folder`."""
    return {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "HF_HUB_CACHE": None, "HF_DATASETS_CACHE": None,
        "HF_ASSETS_CACHE": None, "HF_XET_CACHE": None, "HUGGINGFACE_HUB_CACHE": None, "TRANSFORMERS_CACHE": None,
        "HF_MODULES_CACHE": None, "HF_HUB_OFFLINE": None, "HF_DATASETS_OFFLINE": None, "TRANSFORMERS_OFFLINE": None,
        "HF_TOKEN": TOKEN, "HF_TOKEN_PATH": None, "HUGGING_FACE_HUB_TOKEN": None, "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": None, "VLLM_USE_MODELSCOPE": None,
        **{name: None for name in os.environ if name.lower() in ("http_proxy", "all_proxy")},
        "CFUTILS_ROOT": str(paths.root()), "CFUTILS_RUNS": str(folder / "runs"),
        "CFUTILS_FIGURES": str(folder / "figures"),
    }  # fmt: skip


def write(profile: Profile, folder: Path) -> None:
    """Write the repositories that a profile fetches into a hub's folder.

    Raises `UserError` for a data set without made-up records.
    """
    wanted: dict[str, set[str]] = {}
    for repo, configuration in hub_access.data_sets(profile.target, profile.retained, profile.benchmarks):
        if repo not in records.DATA_SETS:
            raise invalid_value(
                "--shrink", profile.name, f"a profile without {repo}, of which there are no made-up records",
                "Remove its task from a copy of the profile, and rehearse that.",
            )  # fmt: skip
        wanted.setdefault(repo, set()).update({configuration} - {None})
    for repo, configurations in wanted.items():
        records.write(repo, folder / "datasets" / repo, sorted(configurations))
    if not (there := folder / "models" / profile.base / "README.md").exists():  # written last
        models.write(profile.base, there.parent, records.texts())

