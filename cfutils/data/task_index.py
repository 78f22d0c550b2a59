"""lm-eval's tasks, groups and tags by name: their definitions, read without any data, and the tasks themselves."""

from __future__ import annotations

import difflib
import functools
import json
import logging
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils import atomic, paths
from cfutils.errors import UserError, invalid_value
from cfutils.events import say

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry

OUTPUT_TYPES = ("multiple_choice", "generate_until", "loglikelihood")
"""Kinds of requests that are scored; the other one, loglikelihood_rolling, has no metric of a single item."""
WITHOUT_ITEMS = {"f1", "mcc", "matthews_corrcoef", "bleu", "chrf", "ter", "brier_score", "likelihood"}
"""Metrics of a whole data set, which have no value for a single item."""
FEWSHOT_SEED = 1234
"""lm-eval's default seed of the choice of examples."""


def folder() -> Path:
    """Return the folder of lm-eval's own definitions."""
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks"


@functools.cache
def entries() -> dict[str, Entry]:
    """Return lm-eval's index: kind, file and members by name.

    lm-eval builds it from its 15,000 files, in half a minute; kinds and file names are therefore kept in data/cache,
    by version of lm-eval.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry, Kind

    file = paths.cache() / f"lm-eval-{metadata.version('lm-eval')}-tasks.json"
    if not file.is_file():
        say("index lm-eval's tasks (once)")
        found = {
            name: [one.kind.name, str(one.yaml_path.relative_to(folder())) if one.yaml_path else None,
                   sorted(one.tags)]
            for name, one in TaskManager().task_index.items()
        }  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file, json.dumps(found))
    return {
        name: Entry(name, Kind[kind], folder() / path if path else None, tags=set(tags))
        for name, (kind, path, tags) in json.loads(file.read_text(encoding="utf-8")).items()
    }


def definition(path: Path) -> dict[str, Any]:
    """Return the definition in a YAML file of lm-eval's; functions in it stay names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(path, resolve_func=False)


def definitions(name: str) -> dict[str, dict[str, Any]]:
    """Return the definitions of a task, or of all tasks of a group or tag, by name; no data are loaded.

    Raises `UserError` for a name that lm-eval does not know.
    """
    if name not in entries():
        close = difflib.get_close_matches(name, entries(), n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else ""
        raise invalid_value(
            "retained", name, "a task, group or tag of lm-eval (`lm-eval ls tasks`)", hint
        )
    return dict(_members(name, {}))


def _members(name: str, overrides: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tasks below a name, as lm-eval builds them: what a group sets overrides its members' own."""
    entry = entries()[name]
    if entry.kind.name == "TAG":
        for member in sorted(entry.tags):
            yield from _members(member, overrides)
        return
    found = definition(entry.yaml_path)
    if entry.kind.name == "GROUP":
        yield from _group(name, found, overrides)
    else:
        yield name, {**found, **overrides}


def _group(
    group: str, found: dict[str, Any], overrides: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    own = {k: v for k, v in found.items() if k not in _group_fields()}
    overrides = {**own, **overrides}
    members = found.get("task") or []
    for member in [members] if isinstance(members, str) else members:
        if isinstance(member, str):
            member = {"task": member}
        more = {**overrides, **{k: v for k, v in member.items() if k not in ("task", "group")}}
        name = member.get("group", member.get("task"))
        if name in entries():
            yield from _members(name, more)
        elif "group" in member:
            yield from _group(f"{group}::{name}", member, overrides)
        else:
            yield f"{group}::{name}", more


@functools.cache
def _group_fields() -> set[str]:
    import dataclasses

    from lm_eval.config.group import GroupConfig

    return {field.name for field in dataclasses.fields(GroupConfig)}


def load(name: str) -> dict[str, Any]:
    """Return the task of a name, or all tasks of a group or tag, by name, with their data from the hub.

    Raises `UserError` if these cannot be fetched, or a library that the task imports is missing.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # warnings about fields of the definitions
    manager = TaskManager(include_defaults=False)
    manager.task_index.update(entries())
    try:
        return manager.load([name])["tasks"]
    except (OSError, ImportError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the items of {name} cannot be loaded from the hub: {said}") from error


def refusal(found: dict[str, Any]) -> str | None:
    """Return why a task cannot be scored, if its definition shows that."""
    if "class" in found:
        return "its requests are made by a Python class of its own"
    kind = found.get("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        return f"its output_type is {kind}; known are {', '.join(OUTPUT_TYPES)}"
    if found.get("unsafe_code"):
        return "it executes code that the model has written"
    if found.get("doc_to_image") or found.get("doc_to_audio"):
        return "its items are not text alone"
    settings = found.get("generation_kwargs") or {}
    warm = float(settings.get("temperature") or 0) > 0 and settings.get("do_sample") is not False
    if kind == "generate_until" and (settings.get("do_sample") or warm):
        return "it samples its answers (do_sample); only greedy answers are scored"
    metrics = [str(one.get("metric")) for one in found.get("metric_list") or []]
    if metrics and set(metrics) <= WITHOUT_ITEMS:
        return f"its metrics ({', '.join(metrics)}) have no value for a single item"
    return None


def fewshot_refusal(found: dict[str, Any], n: int) -> str | None:
    """Return why a task cannot have `n` examples in front of each item, if its definition shows that."""
    config = found.get("fewshot_config") or {}
    split = config.get("split", found.get("fewshot_split"))
    samples = config.get("samples")
    if split is None and isinstance(samples, list):
        return f"its definition holds {len(samples)} examples" if n > len(samples) else None
    if split is None and samples is None:
        names = ("training_split", "validation_split", "test_split")
        split = next((found[s] for s in names if found.get(s)), None)
    if split is not None and split == (found.get("test_split") or found.get("validation_split")):
        return f"its only examples are the items that are scored (split {split!r})"
    return None
