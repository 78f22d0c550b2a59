"""lm-eval's tasks, groups and tags by name: their definitions, read without any data, and the tasks themselves."""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import importlib.util
import json
import logging
import random
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils import atomic, paths
from cfutils.data import hub_tasks
from cfutils.errors import UserError, invalid_value
from cfutils.events import say

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry

OUTPUT_TYPES = ("multiple_choice", "generate_until", "loglikelihood")
"""Kinds of requests that are scored; the other one, loglikelihood_rolling, has no metric of a single item."""
WITHOUT_ITEMS = {"f1", "mcc", "matthews_corrcoef", "bleu", "chrf", "ter", "brier_score", "likelihood"}
"""Metrics of a whole data set, which have no value for a single item."""
OTHER_SAMPLING = {"top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "num_beams"}
"""Settings of sampled answers that the suite's engines do not have."""
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
        yield name, {**found, **hub_tasks.MOVED.get(name, {}), **overrides}


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

    A process fetches them once (MMLU has 57 configurations, each of which takes requests), and gets copies, whose
    settings may be changed. Raises `UserError` if they cannot be fetched, or a library that a task imports is missing.
    """
    found = {}
    for one, task in _fetched(name, entries()[name].yaml_path).items():
        found[one] = copy.copy(task)
        found[one]._config = copy.copy(task.config)
    return found


@functools.lru_cache(maxsize=64)
def _fetched(name: str, path: Path | None) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # warnings about fields of the definitions
    manager = TaskManager(include_defaults=False)
    manager.task_index.update(entries())
    moved = hub_tasks.MOVED.get(name)
    asked = {**load_yaml(path), **moved} if moved else name
    state = random.getstate()
    random.seed(0)  # GPQA's choices are shuffled as they are loaded; lm-eval's own runs seed this generator with 0
    try:
        return manager.load([asked])["tasks"]
    except (OSError, ImportError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the items of {name} cannot be loaded from the hub: {said}") from error
    finally:
        random.setstate(state)


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
    if kind == "generate_until" and sampling(settings)[0] and (others := sorted(OTHER_SAMPLING & settings.keys())):
        return f"it samples its answers with {', '.join(others)}; known are temperature and top_p"
    metrics = [str(one.get("metric")) for one in found.get("metric_list") or []]
    if metrics and set(metrics) <= WITHOUT_ITEMS:
        return f"its metrics ({', '.join(metrics)}) have no value for a single item"
    return None


def sampling(settings: Mapping[str, Any]) -> tuple[float, float]:
    """Return temperature and top-p of the answers of a task, from its generation_kwargs; temperature 0 is greedy."""
    temperature = settings.get("temperature")
    if settings.get("do_sample") is False or (temperature is None and not settings.get("do_sample")):
        return 0.0, 1.0
    return float(1.0 if temperature is None else temperature), float(settings.get("top_p") or 1.0)


def missing_modules(found: dict[str, Any]) -> str | None:
    """Return what to install for the functions of a task, None if all that they import is there."""
    paths_ = {value.rpartition(".")[0] for value in _texts(found) if value.startswith(str(folder()))}
    lacking = sorted({one for path in paths_ for one in _imports(f"{path}.py") if not _is_there(one)})
    return f"{', '.join(lacking)} is missing: {'; '.join(_install(one) for one in lacking)}" if lacking else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


@functools.cache
def _imports(file: str) -> frozenset[str]:
    """Return the packages that a file's functions import."""
    path = Path(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in their texts
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) if path.is_file() else []
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    packages = {name.partition(".")[0] for name in named}
    return frozenset(one for one in packages if not (path.parent / f"{one}.py").exists())  # beside it: lm-eval's own


@functools.cache
def _is_there(package: str) -> bool:
    return package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None


def _install(package: str) -> str:
    """Return the command that installs a package: the extra of lm-eval that has it, where one has."""
    for requirement in metadata.requires("lm_eval") or ():
        name, _, extra = requirement.partition("extra ==")
        if extra and re.sub(r"[-_.]+", "_", name).lower().startswith(package.lower()):
            return f"pip install 'lm_eval[{extra.strip(chr(39) + chr(34) + ' ')}]'"
    return f"pip install {package.replace('_', '-')}"


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
