"""Whether a notebook's last good execution still stands, so that it need not be repeated.

As in make: the same source, parameters, profile, code, versions and shipped results, every artifact that it used
still in the store, and every figure still there with the bytes that it drew. Otherwise the notebook is executed
again, which builds only what is missing. Executing all notebooks of a finished study anew takes about a minute.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cfutils import paths
from cfutils.data import own_tasks, targets
from cfutils.digests import digest, file_digest
from cfutils.pipeline.provenance import source_digest, versions
from cfutils.profiles import Profile
from cfutils.runner.notebook import Notebook


@functools.cache
def _package_digest() -> str:
    """Digest of all code of this package, blind to comments and docstrings."""
    root = Path(__file__).parent.parent
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return digest({name: source_digest(root / name) for name in files})


def _key(notebook: Notebook, parameters: Mapping[str, Any], profile: Profile) -> str:
    return digest(
        {
            "source": file_digest(notebook.path),
            "parameters": dict(parameters),
            "profile": dataclasses.asdict(profile),
            "target": targets.stamp(profile.target),
            "kept": [own_tasks.digest(name) for name in profile.retained if own_tasks.is_own(name)],
            "code": _package_digest(),
            "versions": versions(),
            "shipped": _stamp(paths.results(profile.name) / "records.parquet"),
            "figures": os.environ.get("CFUTILS_FIGURES"),
        }
    )


def _stamp(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def _note(notebook: Notebook, folder: Path) -> Path:
    return folder / f"{notebook.name}.fresh.json"


def remember(
    notebook: Notebook,
    parameters: Mapping[str, Any],
    profile: Profile,
    *,
    folder: Path,
    events: Iterable[Mapping[str, Any]],
) -> None:
    """Write down what a good execution was made of and what it drew."""
    artifacts, files = {}, {}
    for event in events:
        if event["event"] in ("built", "reused") and not event.get("shipped"):
            artifacts[f"{event['kind']}/{event['key']}"] = None
        elif event["event"] == "figure":
            drawn = Path(event["path"])
            for path in sorted(drawn.parent.glob(f"{drawn.stem}.*")):
                files[str(path)] = file_digest(path)
    note = {
        "key": _key(notebook, parameters, profile),
        "artifacts": list(artifacts),
        "files": files,
    }
    _note(notebook, folder).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def recall(
    notebook: Notebook, parameters: Mapping[str, Any], profile: Profile, *, folder: Path
) -> dict[str, Any] | None:
    """Return what the last good execution used and drew if it still stands, else None."""
    try:
        note = json.loads(_note(notebook, folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    stands = (
        note["key"] == _key(notebook, parameters, profile)
        and (folder / f"{notebook.name}.ipynb").is_file()
        and all((paths.runs() / name / "record.json").is_file() for name in note["artifacts"])
        and all(_stamp(Path(path)) == stated for path, stated in note["files"].items())
    )
    return note if stands else None
