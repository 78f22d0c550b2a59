"""A task of lm-eval in a YAML file of one's own: what it is made from, and the task itself, each item tried.

What it names is found as lm-eval finds it: includes and Python files beside the YAML file, data files from the working
directory; data that are not there are looked for beside the YAML file too. Functions named with `!function` are the
user's own code, and are run.
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cfutils import paths
from cfutils.data import files, task_index
from cfutils.digests import digest as digest_of
from cfutils.digests import file_digest
from cfutils.errors import UserError, shown

LOADERS = ("json", "csv", "parquet", "arrow", "text", "pandas", "xml")
"""What a dataset_path names where the data files are one's own."""
SHAPES = {"metric_list": list, "generation_kwargs": dict, "dataset_kwargs": dict, "fewshot_config": dict}
JSON = (".jsonl", ".ndjson", ".json")
"""Data files that are read ahead, as the reader of `datasets` names no line."""


def definition(path: Path) -> dict[str, Any]:
    """Return the definition, what it includes merged into it, functions as names; data files by their full paths.

    Raises `UserError` for what is no definition of one task, and for includes and data files that are not there.
    """
    with _one_line(path, "is no task of lm-eval"):
        found = task_index.definition(path)
    if "group" in found or "task_list" in found or isinstance(found.get("task"), list):
        raise UserError(f"{path.name} is a group of tasks; give a file with one task, or several such files")
    for key, shape in SHAPES.items():
        value = shape() if found.get(key) is None else found[key]
        if not isinstance(value, shape) or (shape is list and not all(isinstance(one, dict) for one in value)):
            wanted = "a list of tables" if shape is list else "a table"
            raise UserError(f"{path.name}: {key} wants {wanted}, not {shown(value)}")
    return _located(found, path)


def digest(path: Path) -> str:
    """Return what decides the task: its file, those it includes, the Python files it names, its data on this machine.

    What those Python files import, and data on the hub, are not in it.
    """
    data = _data(definition(path))
    return digest_of([file_digest(one) for one in (*_sources(path), *data)])


def is_local(path: Path) -> bool:
    """Whether the items are on this machine."""
    found = definition(path)
    return bool(_data(found)) or "custom_dataset" in found


def _sources(path: Path) -> list[Path]:
    """Return the YAML file, the files that it includes, and the Python files that any of these takes functions from."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found, python = [path], []
    for one in yaml.parse(path.read_text(encoding="utf-8")):
        if isinstance(one, yaml.ScalarEvent) and one.tag == "!function":
            module = path.parent / (one.value.rpartition(".")[0].replace(".", "/") + ".py")
            python += [module] if module.is_file() else []
    includes = load_yaml(path, resolve_func=False, recursive=False).get("include") or []
    for one in includes if isinstance(includes, list) else [includes]:
        found += _sources(path.parent / one)
    return list(dict.fromkeys([*found, *python]))


def _located(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a definition with full paths of the data that lie on this machine."""
    source, kwargs = found.get("dataset_path"), dict(found.get("dataset_kwargs") or {})
    starts = [Path.cwd(), path.parent, paths.root()]
    if "custom_dataset" in found:
        return found
    if source is None:
        raise UserError(f"{path.name} names no data: a dataset_path is missing")
    if source not in LOADERS:  # a folder, whose files the data loader finds in it, or the hub's
        there = [start / str(source) for start in starts if (start / str(source)).is_dir()]
        return {**found, "dataset_path": str(there[0].resolve()) if there else source}
    folder, given = kwargs.pop("data_dir", None), kwargs.get("data_files")
    if not folder and not given:
        raise UserError(f"{path.name} names no data: data_files are missing under dataset_kwargs")
    if folder:
        starts, given = [Path(_one(folder, starts, path))], given or "**"
    kwargs["data_files"] = (
        {split: _all(some, starts, path) for split, some in given.items()}
        if isinstance(given, dict)
        else _all(given, starts, path)
    )
    return {**found, "dataset_kwargs": kwargs}


def _all(given: str | list[str], starts: list[Path], path: Path) -> list[str]:
    found = []
    for text in given if isinstance(given, list) else [given]:
        if "://" in str(text):
            found.append(text)
            continue
        whole = next((start / str(text) for start in starts if (start / str(text)).exists()), None)
        matches = (sorted(glob.glob(str(start / str(text)), recursive=True)) for start in starts)
        there = [str(whole)] if whole else next(filter(None, matches), [])
        found += [str(Path(one).resolve()) for one in there if Path(one).is_file()] or [_one(text, starts, path)]
    return found


def _one(text: str, starts: list[Path], path: Path) -> str:
    """Return the full path of what is there; raises `UserError` with the folders that were looked into."""
    for start in starts:
        if (start / str(text)).exists():
            return str((start / str(text)).resolve())
    looked = " or ".join(dict.fromkeys(map(str, starts)))
    raise UserError(f"{path.name}: its data {text} are not there; looked for in {looked}")


def _data(found: dict[str, Any]) -> list[Path]:
    """Return the data files on this machine that a located definition names."""
    source = found.get("dataset_path")
    if source not in LOADERS:
        folder = Path(source or "")
        return [f for f in sorted(folder.rglob("*")) if f.is_file()] if folder.is_absolute() else []
    given = found["dataset_kwargs"]["data_files"]
    named = itertools.chain.from_iterable(given.values()) if isinstance(given, dict) else given
    return [Path(one) for one in named if "://" not in one]


def check(path: Path, *, name: str) -> list[tuple[str, str]]:
    """Try every item of the task; return (where, question) of each.

    Raises `UserError` for whatever is wrong with definition, data, functions or an item.
    """
    from lm_eval.api.registry import metric_registry

    found = definition(path)
    metrics = [str(one.get("metric")) for one in found.get("metric_list") or () if not one.get("hf_evaluate")]
    unknown = [m for m in metrics if m not in metric_registry and "/" not in m]  # a function's name has its folder
    if unknown and "process_results" not in found:
        raise UserError(f"{path.name}: lm-eval knows no metric {unknown[0]!r}")
    for file in _data(found):
        if file.suffix.lower() in JSON and not sum(1 for _ in files.rows(file.name, file)):
            raise UserError(f"{path.name}: its data file {file.name} is empty")
    task = load(path, name=name)
    _try(task, path)
    return _asked(task, path)


def load(path: Path, *, name: str) -> Any:
    """Return the task under a name, its functions and data loaded."""
    found = definition(path)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # warnings about fields of the definition
    with _one_line(path, "cannot be made into a task"), contextlib.redirect_stderr(io.StringIO()):  # progress bars
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks._yaml_loader import load_yaml

        config = {**load_yaml(path), **{k: found[k] for k in ("dataset_path", "dataset_kwargs") if k in found}}
        return ConfigurableTask(config={**{k: v for k, v in config.items() if k != "tag"}, "task": name})


def _asked(task: Any, path: Path) -> list[tuple[str, str]]:
    found = []
    for number, doc in enumerate(task.eval_docs, start=1):
        text = task.doc_to_text(doc)
        if task.multiple_input:  # the choices are what is asked
            text = task.doc_to_choice(doc)[text]
        found.append((f"{path.name}, item {number}", str(text)))
    return found


def _try(task: Any, path: Path) -> None:
    """Raise `UserError` for the first item that cannot be scored."""
    seen: set[tuple] = set()
    for number, doc in enumerate(task.eval_docs, start=1):
        with _one_line(path, f"item {number}"):
            text, gold = task.doc_to_text(doc), task.doc_to_target(doc)
            if task.OUTPUT_TYPE == "multiple_choice":
                wrong = _wrong_choice(task, doc, text if task.multiple_input else gold)
            else:
                first = gold[0] if isinstance(gold, list | tuple) and gold else gold
                wrong = "no gold answer" if first is None or not str(first).strip() or first == [] else None
            seen.add((text, str(task.doc_to_choice(doc)) if task.config.doc_to_choice is not None else None))
            if wrong is None and number == 1:
                wrong = _wrong_score(task, doc, gold)
        if wrong:
            raise UserError(f"{path.name}, item {number}: {wrong}")
    if len(seen) == 1 < len(task.eval_docs):
        same = str(next(iter(seen))[0])[:60]
        raise UserError(
            f"{path.name}: all {len(task.eval_docs)} items ask the same, {same!r}; is it the name of a column that the "
            "data do not have?"
        )


def _wrong_choice(task: Any, doc: dict, gold: Any) -> str | None:
    choices = task.doc_to_choice(doc)
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        return f"wants a list of at least two texts as choices, not {str(choices)[:60]}"
    golds = gold if isinstance(gold, list) else [gold]
    right = [c in choices if isinstance(c, str) else isinstance(c, int) and 0 <= c < len(choices) for c in golds]
    if not right or not all(right):
        return f"the gold answer {str(gold)[:60]!r} is not among its {len(choices)} choices"
    return None


def _wrong_score(task: Any, doc: dict, gold: Any) -> str | None:
    """Score an item as if it was answered right; return what is wrong with its scores."""
    from lm_eval.api.instance import Instance

    if task.OUTPUT_TYPE == "generate_until":
        text = str(gold[0] if isinstance(gold, list | tuple) else gold)
        asked = [Instance("generate_until", doc, ("", {}), 0, resps=[text])]
        for ensemble in task._filters:
            ensemble.apply(asked)
        found = [task.process_results(doc, [answer]) for answer in asked[0].filtered_resps.values()]
    else:
        requests = task.construct_requests(doc, "", metadata=(None, 0, None))
        n = len(requests) if isinstance(requests, list) else 1
        found = [task.process_results(doc, [(-1.0, False)] * n)]
    for metric, value in ((m, v) for scores in found for m, v in scores.items()):
        if np.ndim(value) == 0 and not isinstance(value, bool | int | float | np.number):
            return f"its metric {metric} is {str(value)[:60]!r}, not a number"
    return None


@contextlib.contextmanager
def _one_line(path: Path, what: str) -> Iterator[None]:
    """Turn what lm-eval, `datasets` or the user's own functions raise into one line.

    It names the line of YAML that cannot be read, or that of the user's Python file that failed.
    """
    try:
        yield
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{path.name}, line {line}: not valid YAML ({error.problem})") from error
    except Exception as error:  # whatever it is, it is in the user's file
        cause = error.__cause__ or error
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == path.parent]
        where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        said = next(iter(str(cause).splitlines()), "")
        if isinstance(cause, KeyError) and not frames:
            said += "; is it a split or a column that the data have?"
        raise UserError(f"{path.name}: {what} ({type(cause).__name__}{where}: {said[:200]})") from error
