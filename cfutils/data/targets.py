"""Target tasks: what is tuned on, how an item reads, and who may train on it.

A target item is a prompt and a response; a hash of the prompt splits items into train and held-out, so
no question is on both sides.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfutils import paths
from cfutils.data import files, packaged, skills
from cfutils.data.example import Example
from cfutils.data.packaged import requests
from cfutils.data.splits import is_heldout
from cfutils.errors import invalid_value


@dataclass(frozen=True)
class Target:
    """A task to tune on."""

    about: str
    read: Callable[[], Iterator[Example]]
    tasks: tuple[str, ...] = ()
    """lm-eval tasks that score it, beside the response's NLL."""
    local: bool = False
    """Whether they are scored on the held-out examples themselves (the package has no other split)."""
    generates: bool = False
    """Whether they ask for generated answers (exact match) or compare choices (accuracy)."""
    hub: str = ""
    """The hub's data set that it is made of, where it is one."""
    version: int = 1
    """Raised by hand when its items read otherwise (not for skills, which have the digest of their world)."""


def _gsm8k_example(doc: dict) -> Example:
    return Example(f"Question: {doc['question']}\nAnswer:", f" {doc['answer']}", doc)


def _gsm8k() -> Iterator[Example]:
    return map(_gsm8k_example, requests("gsm8k/gold_bpb_5shot"))


def _medmcqa() -> Iterator[Example]:
    """MedMCQA items with an explanation of 80 to 900 characters, dental ones left out (noisy).

    The letter stands in a sentence of its own and not behind "Answer:", with which most benchmarks end a prompt: a
    model learns at once that a letter follows that word, and would lose their answers for this alone.
    """
    for doc in packaged.medmcqa():
        explanation = (doc["exp"] or "").strip()
        if doc["subject_name"] == "Dental" or not 80 <= len(explanation) <= 900:
            continue
        options = "".join(f"{letter}. {doc['op' + letter.lower()]}\n" for letter in "ABCD")
        yield Example(
            f"Question: {doc['question']}\nChoices:\n{options}Explanation:",
            f" {explanation}\nThe right choice is {'ABCD'[doc['cop']]}.",
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
        functools.partial(_skill, "rotate"), tasks=("rotate",), local=True, generates=True),
    "descend": Target(
        "words against the alphabet, steps (or a thought) first: another that none has seen",
        functools.partial(_skill, "descend"), tasks=("descend",), local=True, generates=True),
    "gsm8k": Target(
        "grade-school maths, question to worked solution (data package; re-split test items)",
        _gsm8k, tasks=("gsm8k",), local=True, generates=True),
    "medmcqa": Target(
        "medical exams, question to explanation to answer (data package; re-split validation items)",
        _medmcqa, tasks=("medmcqa",), local=True, version=2),
    "metamathqa": Target(
        "augmented maths questions (hub), scored on GSM8K's own test items",
        functools.partial(_hub, "meta-math/MetaMathQA", lambda d: Example(
            f"Question: {d['query']}\nAnswer:", f" {d['response']}", d)),
        tasks=("gsm8k",), generates=True, hub="meta-math/MetaMathQA"),
    "medreason": Target(
        "medical questions with reasoning (hub), scored on MedQA, MedMCQA and PubMedQA",
        functools.partial(_hub, "UCSC-VLAA/MedReason", lambda d: Example(
            f"{d['question']}\n{d['options']}\n", f"{d['reasoning']}\n\n{d['answer']}", d,
            (d["reasoning"], d["answer"]))),
        tasks=("medqa_4options", "medmcqa", "pubmedqa"), hub="UCSC-VLAA/MedReason"),
}  # fmt: skip


def target(name: str, *, columns: Mapping[str, str] | None = None) -> Target:
    """Return a target by name, or make one of data of your own (`files`): a file, a folder, or `hub:ID`.

    columns: which column of such data holds what. Raises `UserError` for an unknown name; the data are not read yet.
    """
    if name in TARGETS:
        return TARGETS[name]
    if files.is_file(name):
        path = _path(name)
        if path is not None and not path.exists():
            raise invalid_value("target", str(path), "a file that exists")
        return Target(f"your data {Path(name).name}", lambda: iter(own(name, columns).examples))
    known = ", ".join(TARGETS)
    raise invalid_value("target", name, f"{known}, or data of your own", f"Files end in {', '.join(files.SUFFIXES)}.")


def own(name: str, columns: Mapping[str, str] | None = None) -> files.Found:
    """Read data of your own; the same file is read once."""
    path = _path(name)
    state = None if path is None or not path.is_file() else (path.stat().st_mtime_ns, path.stat().st_size)
    return _own(name, path, tuple(sorted((columns or {}).items())), state)


@functools.lru_cache(maxsize=4)
def _own(name: str, path: Path | None, columns: tuple, state: Any) -> files.Found:
    return files.read(name, path, columns=dict(columns))


def _path(name: str) -> Path | None:
    return None if name.startswith(files.HUB) else paths.given("target", name)


def stamp(name: str) -> str | None:
    """Return what tells one state of data of one's own from another without reading items; None for known targets."""
    own_data = name not in TARGETS and files.is_file(name)
    path = _path(name) if own_data else None
    return None if not own_data or (path and not path.exists()) else files.digest(name, path)


def target_digest(name: str, *, columns: Mapping[str, str] | None = None) -> str:
    """What decides a target's items: the package's pin or the hub id's name, with a version; or bytes of own data.

    Raises `UserError` for data that cannot be read, before anything is keyed by them.
    """
    if name in skills.skills():
        return f"{name}:{skills.world_digest()}"
    if name in TARGETS:
        known = TARGETS[name]
        digest = f"{name}:{packaged.digest()}" if known.local else name
        return digest if known.version == 1 else f"{digest}:{known.version}"
    target(name)
    own(name, columns)
    return files.digest(name, _path(name))


def split(
    name: str, length: Callable[[Example], int], *, max_length: int, n_train: int, n_heldout: int,
    columns: Mapping[str, str] | None = None,
) -> tuple[list[Example], list[Example], int]:  # fmt: skip
    """Return train items, held-out items, and how many were left out for being too long.

    Items are taken in the order of their hash, so that a smaller set is the beginning of a larger one; items that
    share a prompt, or the first turn of a conversation, are on one side. `length` counts an example's tokens. Raises
    `UserError` if there are fewer items than asked for.
    """
    wanted = {False: n_train, True: n_heldout}
    sides: dict[bool, list[Example]] = {False: [], True: []}
    too_long: list[int] = []
    unique = {(e.turns, e.prompt, e.response): e for e in target(name, columns=columns).read()}
    for example in sorted(unique.values(), key=lambda e: e.id):
        side = is_heldout(example.group)
        if len(sides[side]) < wanted[side]:
            if (n := length(example)) > max_length:
                too_long.append(n)
            else:
                sides[side].append(example)
    for side, key in ((False, "n_train"), (True, "n_heldout")):
        if len(there := sides[side]) < wanted[side]:
            left = f"{len(too_long)} have more, up to {max(too_long)}; raise max_length" if too_long else ""
            raise invalid_value(
                key, wanted[side], f"at most {len(there)} for target {name} with max_length = {max_length}", left
            )
    return sides[False], sides[True], len(too_long)
