"""Folders of the suite, found from one root, and paths that a user gives.

The root is the environment variable CFUTILS_ROOT, else the nearest folder above the working
directory or above this package that holds both `notebooks/` and `profiles/`. Nothing depends on
the working directory of a kernel (a relative path would, see nteract/papermill#316).
"""

from __future__ import annotations

import os
from pathlib import Path

from cfutils.errors import UserError, invalid_value


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
    """Profiles: one YAML file each."""
    return root() / "profiles"


def notebooks() -> Path:
    """Sources of the notebooks, without outputs."""
    return root() / "notebooks"


def data() -> Path:
    """Data that ship with the suite, and below them those that do not (`cache`, `runs`)."""
    return root() / "data"


def cache() -> Path:
    """Unpacked data packages; safe to delete, fetched again."""
    return data() / "cache"


def runs() -> Path:
    """Artifacts of the store and the executed notebooks; safe to delete, they are built again.

    The environment variable CFUTILS_RUNS puts them elsewhere, on a larger disk for example.
    """
    return Path(os.environ.get("CFUTILS_RUNS") or data() / "runs")


def results(profile: str) -> Path:
    """Results of one profile that ship with the suite (tables and records, no weights)."""
    return data() / "results" / profile


def figures(profile: str) -> Path:
    """Figures of one profile: NAME.png, NAME.pdf, NAME.csv."""
    return Path(os.environ.get("CFUTILS_FIGURES") or root() / "figures") / profile


def given(name: str, text: str) -> Path:
    """Return the path that parameter `name` gives, with `~` expanded; nothing needs to be there.

    What is not found from here is looked for from the suite's root: notebooks run in other folders.

    Raises `UserError` for what no file system can hold or show: a null byte, a part that is too long, the
    home of an unknown user, a folder without permission.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return root() / path if (root() / path).exists() else path
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise invalid_value(name, text, f"a path that can be read ({reason.rstrip('.')})") from None
    return path
