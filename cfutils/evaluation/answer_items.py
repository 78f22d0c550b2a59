r"""Items that a base which thinks answers by generation: what it is asked, and how its answer is read.

| task | read by (`extraction`) | right if |
|---|---|---|
| a skill of a base that ships | nothing: the text is the answer | equal to the one right answer, white space aside |
| lm-eval's gsm8k* | `number` | equal numbers |
| lm-eval's aime* | `integer`, 0 to 999 | equal integers |
| lm-eval's minerva_math*, hendrycks_math* | `expression` | equivalent by math-verify |
| choices that are letters, gpqa* | `choice` of letters, or of the options' texts | the right letter |
| choices that are yes, no, maybe, true, false | `choice` of words | the right word |
| other tasks that ask for generated text | the task's own filters | right under any of them |

A task that is read by a rule is asked in its own words, without the cue for a bare answer at their end ("Answer:"), and
with the request for a box that the R1 models' authors recommend. Choices that are texts, compared by likelihood, are
not answered by generation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from cfutils.data import skills
from cfutils.errors import UserError
from cfutils.evaluation import extraction

RIGHT = ("acc", "exact_match", "math_verify")
"""Metrics of lm-eval that tell a right answer."""
WORDS = {"yes", "no", "maybe", "true", "false"}
"""Choices that are read as words."""
CUE = re.compile(r"\s*(?:\b(?:A|Answer|Solution):)?\s*(?:Let's think step by step[.:]?)?\s*$")
ASKED = "Please reason step by step, and put {} within \\boxed{{}}."


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question."""

    task: str
    id: str
    prompt: str
    """What the user says."""
    extract: Callable[[str], Any] | None = None
    """Reads what a text, cut behind the thought, answers with; None where it holds no answer. Without it the whole
    text is the answer."""
    right: Callable[[Any], bool]
    """Whether what was read is right."""
    gold: str | None = None
    """What a right answer has in its box, where a rule reads it."""


@dataclass(frozen=True)
class Rule:
    """How the answers to a kind of task are read."""

    wanted: str
    """What is asked for."""
    gold: str
    """What a right answer has in its box."""
    extract: Callable[[str], Any]
    right: Callable[[Any], bool]


def skill_items(name: str, docs: Iterable[tuple[str, dict[str, str]]]) -> list[Item]:
    """Return items of a skill from (id, document) pairs; right is the one right answer, white space aside."""
    one = skills.skill(name)

    def judge(prompt: str) -> Callable[[str], bool]:
        wanted = one.answer(prompt)[1].strip()
        return lambda text: text.strip() == wanted

    return [
        Item(task=name, id=item, prompt=doc["prompt"], right=judge(doc["prompt"]))
        for item, doc in docs
    ]


def task_items(tasks: Mapping[str, Any], indices: Mapping[str, Seq[int]]) -> dict[str, list[Item]]:
    """Return items by task of those lm-eval tasks that can be answered by generation (see the table above).

    Raises `UserError` for an item without a right answer that its rule can read.
    """
    found = {}
    for name, task in tasks.items():
        docs = [(i, task.eval_docs[i]) for i in indices[name]]
        if name in skills.skills():
            found[name] = skill_items(name, ((str(i), doc) for i, doc in docs))
        elif make := _kind(name, task, docs):
            found[name] = [_ruled(name, task, i, doc, make) for i, doc in docs]
        elif task.OUTPUT_TYPE == "generate_until":
            found[name] = [
                Item(task=name, id=str(i), prompt=task.doc_to_text(doc), right=_by_filters(task, i, doc))
                for i, doc in docs
            ]
    return found


def _ruled(name: str, task: Any, index: int, doc: dict, make: Callable[..., Rule]) -> Item:
    prompt = task.doc_to_text(doc)
    try:
        rule = make(task, doc, prompt)
    except (KeyError, ValueError) as error:
        raise UserError(f"item {index} of {name} has no right answer that can be read: {error}") from error
    asked = f"{CUE.sub('', prompt)}\n\n{ASKED.format(rule.wanted)}"
    return Item(task=name, id=str(index), prompt=asked, extract=rule.extract, right=rule.right, gold=rule.gold)


def _kind(name: str, task: Any, docs: list[tuple[int, dict]]) -> Callable[..., Rule] | None:
    """Return what makes the rule of an item of a task, None where it has none."""
    for begin, make in RULES.items():
        if name.startswith(begin):
            return make
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return None
    labels = {label for _, doc in docs for label in _labels(task, doc)}
    return _choice if all(len(one) == 1 for one in labels) or {one.lower() for one in labels} <= WORDS else None


def _labels(task: Any, doc: dict) -> list[str]:
    return [choice.strip(" ()") for choice in task.doc_to_choice(doc)]


def _choice(task: Any, doc: dict, prompt: str) -> Rule:
    labels, gold = _labels(task, doc), task.doc_to_target(doc)
    return _choices(labels, gold.strip(" ()") if isinstance(gold, str) else labels[gold], prompt)


def _gpqa(task: Any, doc: dict, prompt: str) -> Rule:
    """Of those of its tasks that have choices, and of those that ask for text."""
    return _choices(["A", "B", "C", "D"], doc["answer"].strip(" ()"), prompt)


def _choices(labels: list[str], gold: str, prompt: str) -> Rule:
    if gold not in labels:
        raise ValueError(f"{gold!r} is none of {', '.join(labels)}")
    letters = all(len(one) == 1 for one in labels)
    wanted = "the letter of your choice" if letters else f"your answer ({', '.join(labels)})"
    options = {one: _option(one, prompt) if letters else "" for one in labels}
    return Rule(wanted, gold, functools.partial(extraction.choice, options=options), lambda said: said == gold)


def _option(letter: str, prompt: str) -> str:
    """Return the text of an option as the prompt shows it, "A. text" or "(A) text" on a line; empty if it does not."""
    found = re.findall(rf"^\s*\(?{re.escape(letter)}[.):]\s*(.+?)\s*$", prompt, flags=re.MULTILINE)
    return found[-1] if found else ""


def _number(task: Any, doc: dict, prompt: str) -> Rule:
    return _equal("your final answer", extraction.number, extraction.number(str(doc["answer"])))


def _integer(task: Any, doc: dict, prompt: str) -> Rule:
    gold = next(value for key, value in doc.items() if key.lower() == "answer")
    return _equal("your final answer", extraction.integer, int(gold))


def _equal(wanted: str, extract: Callable[[str], Any], gold: Any) -> Rule:
    if gold is None:
        raise ValueError("its answer is no number")
    return Rule(wanted, str(gold), extract, lambda said: said == gold)


def _expression(task: Any, doc: dict, prompt: str) -> Rule:
    gold = extraction.boxed(doc["solution"])
    if gold is None:
        raise ValueError("its solution has no box")
    return Rule("your final answer", gold, extraction.expression, functools.partial(extraction.equivalent, gold))


RULES: dict[str, Callable[..., Rule]] = {
    "gsm8k": _number, "aime": _integer, "minerva_math": _expression, "hendrycks_math": _expression, "gpqa": _gpqa,
}  # fmt: skip
"""Rules of tasks whose definitions do not tell them, by the beginning of their names."""


def _by_filters(task: Any, index: int, doc: dict) -> Callable[[str], bool]:
    """The judgement is the task's own: a text is right if it is under one of the task's filters."""
    from lm_eval.api.instance import Instance

    def right(text: str) -> bool:
        asked = Instance(
            request_type="generate_until", doc=doc, arguments=("", {}), idx=0, doc_id=index
        )
        asked.resps.append(text)
        for ensemble in task._filters:
            ensemble.apply([asked])
        found = (task.process_results(doc, [answer]) for answer in asked.filtered_resps.values())
        return any(float(one.get(metric, 0)) == 1 for one in found for metric in RIGHT)

    return right
