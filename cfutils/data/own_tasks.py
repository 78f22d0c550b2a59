"""Kept abilities of one's own: a file of questions with gold answers (`question_files`), or an lm-eval task in a YAML
file (`task_files`). Scores are shown under the file's name without its ending; its bytes decide the artifact's key.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfutils import paths
from cfutils.data import files, overlap, question_files, targets, task_files
from cfutils.errors import invalid_value

YAML = (".yaml", ".yml")
SUFFIXES = (*files.SUFFIXES, *YAML)


def is_own(name: str) -> bool:
    """Whether a retained task is a file of one's own, rather than a task that is known."""
    return name.lower().endswith(SUFFIXES)


def label(name: str) -> str:
    """Return the name that scores are shown under: the file's without its ending, or the task's own."""
    return Path(name).stem if is_own(name) else name


def digest(name: str) -> str:
    """Return what decides the items of a file; raises `UserError` for one that cannot be read."""
    path = _path(name)
    found = task_files.digest(path) if _is_yaml(path) else files.digest(name, path)
    return f"{path.name}:{found}"


def definition(name: str) -> dict[str, Any]:
    """Return the lm-eval definition in a YAML file, functions as names; nothing that matters for questions."""
    path = _path(name)
    return task_files.definition(path) if _is_yaml(path) else {}


def load(name: str) -> Any:
    """Return the lm-eval task of a file, which `check` must have accepted."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    path = _path(name)
    if _is_yaml(path):
        return task_files.load(path, name=label(name))
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every data set made here
    config, docs = question_files.definition(question_files.read(path))
    data = {"custom_dataset": lambda **_: {"test": Dataset.from_list(docs)}, "test_split": "test"}
    return ConfigurableTask(config={"task": label(name), **config, **data})


def check(name: str, *, target: str, columns: Mapping[str, str] | None, fetch: bool = False) -> None:
    """Raise `UserError` for the first item that cannot be scored, or if any is among those that are tuned on.

    target, columns: what is tuned on, as in `targets.own`; an empty target tunes on nothing that is known.
    fetch: whether the hub is read too, for data of a YAML file and for targets that lie there.
    """
    path = _path(name)
    if not fetch and target in targets.TARGETS and not targets.TARGETS[target].local:
        target = ""
    if fetch or not _is_yaml(path) or task_files.is_local(path):
        state = targets.stamp(target) if target else None
        _check(name, digest(name), target, state, tuple(sorted((columns or {}).items())))


@functools.lru_cache(maxsize=64)
def _check(name: str, state: str, target: str, target_state: str | None, columns: tuple) -> None:
    """Check one state of a file against one state of the target; both are parts of the cache's key."""
    path = _path(name)
    if _is_yaml(path):
        asked = task_files.check(path, name=label(name))
    else:
        asked = [(one.where, one.asked) for one in question_files.read(path)]
    if not target:
        return
    examples = targets.target(target, columns=dict(columns)).read()
    if found := overlap.trained_on([question for _, question in asked], examples):
        raise invalid_value(
            "retained", name,
            f"a file whose questions are not tuned on, and {len(found)} of its {len(asked)} are among the items of "
            f"{target} (first: {asked[found[0]][0]})",
            "Leave them out of one of the two.",
        )  # fmt: skip


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in YAML


def _path(name: str) -> Path:
    path = paths.given("retained", name).absolute()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise invalid_value("retained", name, "a file that exists and can be read")
    return path
