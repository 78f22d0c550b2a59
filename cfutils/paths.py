"""Where things lie: every folder of the suite, found from one root.

The root is the environment variable CFUTILS_ROOT, else the nearest folder above the working
directory or above this package that holds both `notebooks/` and `profiles/`. Nothing depends on
the working directory of a kernel (a relative path would, see nteract/papermill#316).
"""

from __future__ import annotations

import os
from pathlib import Path

from cfutils.errors import UserError


def root() -> Path:
    """Return the folder that holds notebooks/ and profiles/."""
    if set_by_user := os.environ.get("CFUTILS_ROOT"):
        return Path(set_by_user).resolve()
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "notebooks").is_dir() and (folder / "profiles").is_dir():
                return folder
    raise UserError(
        "no folder with notebooks/ and profiles/ above the working directory; "
        "set CFUTILS_ROOT to the checkout of the suite"
    )


def profiles() -> Path:
    """Scale as data: one YAML file a profile."""
    return root() / "profiles"


def notebooks() -> Path:
    """Sources of the notebooks, without outputs."""
    return root() / "notebooks"


def data() -> Path:
    """What ships with the suite, and below it what does not (`cache`, `runs`)."""
    return root() / "data"


def cache() -> Path:
    """Unpacked data packages; safe to delete, fetched again."""
    return data() / "cache"


def runs() -> Path:
    """Artifacts of the store, and the executed notebooks; safe to delete, built again.

    CFUTILS_RUNS moves it, to a larger disk say.
    """
    return Path(os.environ.get("CFUTILS_RUNS") or data() / "runs")


def figures(profile: str) -> Path:
    """Figures of one profile: NAME.png, NAME.pdf, NAME.csv."""
    return Path(os.environ.get("CFUTILS_FIGURES") or root() / "figures") / profile
