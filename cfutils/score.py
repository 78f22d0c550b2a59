"""Scores of one model: retained tasks, target, probes; item by item, so that comparisons can be paired.

Retained tasks go through lm-eval's own definitions (`harness`). An accuracy on a hundred items has a
standard error of four to five points, so beside it stands the continuous reading of the same items:
`margin`, the log-likelihood of the right choice minus the best wrong one (nats), and `bpb_gold`, bits
per byte of the right choice or response. `acc` is the share answered right, by choice or by generation.
Probes are sequences never trained on: NLL and exact full-vocabulary KL(base || tuned) at each token.
What is stored are items; scores are sums over them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cfutils import harness, models, skills, tasks, tokens
from cfutils.profiles import Profile
from cfutils.replay import Sequence, from_samples
from cfutils.store import say
from cfutils.tasks import Example
from cfutils.tokens import Remembered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ITEM = ["group", "task", "metric", "item", "value", "weight"]

PART = 512
"""Retained items that are scored, and kept, together, if their tasks hold that many."""
TIMED = 256
"""Sequences on which the cost of an estimate is measured."""
HEADLINE = ("acc", "exact_match", "exact_match_flexible")
"""Metrics of the target's own task that are kept."""


def retained(
    work: Path, load: Callable[[], torch.nn.Module], folder: Path, *, profile: Profile
) -> None:
    """Score the retained tasks; write items.parquet, one finished part (some tasks) at a time."""
    parts = []
    for number, group in enumerate(_groups(profile)):
        part = work / f"part-{number}.parquet"
        parts.append(part)
        if part.exists():
            continue
        items = lm_eval_items(load(), folder, *group, group="retained", profile=profile)
        items.to_parquet(part.with_suffix(".tmp"), index=False)
        part.with_suffix(".tmp").replace(part)
    frames = [pd.read_parquet(part) for part in parts]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=ITEM)
    frame.to_parquet(work / "items.parquet", index=False)
    for part in parts:
        part.unlink()


def _groups(profile: Profile) -> Iterator[tuple[dict[str, Any], dict[str, list[int]]]]:
    """Yield (tasks, chosen items) by name: what is scored, and kept, together."""
    chosen: dict[str, Any] = {}
    indices: dict[str, list[int]] = {}
    for name in profile.retained:
        task = tasks.lm_eval_task(name, local=profile.benchmarks == "package")
        chosen[name] = task
        indices[name] = tasks.evenly(len(task.eval_docs), profile.limit)
        if sum(map(len, indices.values())) >= PART:
            yield chosen, indices
            chosen, indices = {}, {}
    if chosen:
        yield chosen, indices


def _gold(
    model: torch.nn.Module, folder: Path, name: str, docs: dict[str, dict], profile: Profile
) -> pd.DataFrame:
    """Bits per byte of the right responses of a skill that is answered by generation."""
    tokenizer = models.load_tokenizer(folder, trust_remote_code=profile.trust_remote_code)
    sequences = []
    for doc in docs.values():
        head = tokenizer(doc["prompt"])["input_ids"]
        tail = tokenizer(doc["response"], add_special_tokens=False)["input_ids"]
        sequences.append(Sequence((*head, *tail), first=len(head)))
    scored = tokens.score(model, None, sequences, limit=profile.pass_tokens)
    rows = []
    for (item, doc), one in zip(docs.items(), scored, strict=True):
        n_bytes = len(doc["response"].encode())
        value = one.nll.sum() / (n_bytes * math.log(2))
        rows.append(["retained", name, "bpb_gold", item, value, float(n_bytes)])
    return pd.DataFrame(rows, columns=ITEM)


def lm_eval_items(
    model: torch.nn.Module,
    folder: Path,
    chosen: dict[str, Any],
    indices: dict[str, list[int]],
    *,
    group: str,
    profile: Profile,
) -> pd.DataFrame:
    """Score chosen items of lm-eval tasks by name; return the items frame.

    Metrics keep lm-eval's names; those of a filter other than the first are named metric_filter. Where
    a skill is retained its exact match is `acc`, and bits per byte of its responses stand beside it.
    """
    found = harness.evaluate(model, folder, chosen, indices=indices, profile=profile)
    frames = []
    for name, task in chosen.items():
        rows: list[list] = []
        first = found[name][0]["filter"]
        for sample in found[name]:
            suffix = "" if sample["filter"] == first else f"_{sample['filter'].split('-')[0]}"
            item = str(sample["doc_id"])
            for metric in sample["metrics"]:
                rows.append([group, name, metric + suffix, item, float(sample[metric]), 1.0])
            if task.OUTPUT_TYPE == "multiple_choice":
                rows += [[group, name, *row] for row in _continuous(task, sample, item)]
        frames.append(pd.DataFrame(rows, columns=ITEM))
        if group == "retained" and name in skills.skills() and task.OUTPUT_TYPE == "generate_until":
            frames[-1]["metric"] = frames[-1]["metric"].replace("exact_match", "acc")
            docs = {str(i): task.eval_docs[i] for i in indices[name]}
            frames.append(_gold(model, folder, name, docs, profile))
        say(f"  {name}: {len(indices[name])} items")
    return pd.concat(frames, ignore_index=True)


def _continuous(task: Any, sample: dict, item: str) -> list[list]:
    """Margin and bits per byte of one multiple-choice item, from its choices' log-likelihoods."""
    doc = sample["doc"]
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        gold = task.doc_to_choice(doc).index(gold)
    logliks = [float(answer[0]) for answer in sample["filtered_resps"]]
    right = logliks.pop(gold)
    n_bytes = len(sample["arguments"][gold][1].encode())
    return [
        ["margin", item, right - max(logliks), 1.0],
        ["bpb_gold", item, -right / (n_bytes * math.log(2)), float(n_bytes)],
    ]


def target(
    work: Path,
    model: torch.nn.Module,
    folder: Path,
    examples: list[Example],
    sequences: list[Sequence],
    *,
    profile: Profile,
) -> None:
    """Write items.parquet: NLL and bits per byte of held-out responses, and the target's own task."""
    name, row = Path(profile.target).stem, tasks.target(profile.target)
    rows: list[list] = []
    scored = tokens.score(model, None, sequences, limit=profile.pass_tokens)
    for example, (nll, *_) in zip(examples, scored, strict=True):
        text = nll[:-1].sum()  # the end token has no bytes
        n_bytes = len(example.response.encode())
        rows.append(["target", name, "nll", example.id, nll.mean(), len(nll)])
        rows.append(["target", name, "bpb", example.id, text / (n_bytes * math.log(2)), n_bytes])
    items = pd.DataFrame(rows, columns=ITEM)
    wanted = profile.n_generate if row.generates else profile.n_heldout
    if row.task and wanted:
        docs = [e.doc for e in examples[:wanted]] if row.local else None
        task = tasks.lm_eval_task(row.task, docs=docs, local=row.local)
        indices = tasks.evenly(len(task.eval_docs), wanted)
        one = ({row.task: task}, {row.task: indices})
        found = lm_eval_items(model, folder, *one, group="target", profile=profile)
        items = pd.concat([items, found[found["metric"].isin(HEADLINE)]], ignore_index=True)
    items.to_parquet(work / "items.parquet", index=False)


def probe(
    work: Path,
    model: torch.nn.Module,
    base: Remembered | None,
    tokenizer: PreTrainedTokenizerBase,
    sequences: dict[str, list[Sequence]],
    *,
    limit: int,
) -> None:
    """Write items.parquet and tokens.parquet: NLL and KL(base || tuned) on every probe.

    Without a base the model is the base, and KL is zero.
    """
    rows, along = [], []
    for name, batch in sequences.items():
        scored = tokens.score(model, base, batch, limit=limit)
        for number, (sequence, (nll, kl, *_)) in enumerate(zip(batch, scored, strict=True)):
            rows.append(["probe", name, "nll", str(number), nll.mean(), len(nll)])
            rows.append(["probe", name, "kl", str(number), kl.mean(), len(kl)])
            ids = sequence.ids[sequence.first :]
            if n_bytes := len(tokenizer.decode(ids, skip_special_tokens=True).encode()):
                bits = nll.sum() / (n_bytes * math.log(2))
                rows.append(["probe", name, "bpb", str(number), bits, n_bytes])
            columns = {
                "task": name,
                "sequence": number,
                "position": range(len(ids)),
                "token": [tokenizer.decode([i]) for i in ids],
                "nll": nll,
                "kl": kl,
            }
            along.append(pd.DataFrame(columns))
        say(f"  probe {name}: {len(batch)} sequences")
    pd.DataFrame(rows, columns=ITEM).to_parquet(work / "items.parquet", index=False)
    pd.concat(along, ignore_index=True).to_parquet(work / "tokens.parquet", index=False)


def estimate(
    work: Path,
    base: torch.nn.Module,
    model: torch.nn.Module,
    sequences: list[Sequence],
    *,
    limit: int,
) -> dict[str, Any]:
    """Write estimate.parquet, one row a sequence, in nats: what estimates KL(base || model).

    log_ratio = sum_t log p_0(x_t) - log p(x_t), what sampled NLL sees; kl = sum_t KL(p_0 || p) over the
    whole vocabulary at each of the same prefixes; tokens, their number. For x drawn from p_0 both have
    the mean KL(p_0 || p) of sequences (chain rule); kl is log_ratio's mean given each prefix.
    """
    found = tokens.score(model, Remembered(base, {}), sequences, limit=limit)
    pd.DataFrame(
        {
            "tokens": [len(one.nll) for one in found],
            "log_ratio": [(one.nll - one.nll_base).sum() for one in found],
            "kl": [one.kl.sum() for one in found],
        }
    ).to_parquet(work / "estimate.parquet", index=False)
    few, clock = sequences[:TIMED], time.monotonic()
    for one in (base, model):
        tokens.score(one, None, few, limit=limit)
    middle = time.monotonic()
    tokens.score(model, Remembered(base, {}), few, limit=limit)
    seconds = {"log_ratio": middle - clock, "kl": time.monotonic() - middle}
    return {"seconds": {k: round(v, 4) for k, v in seconds.items()}, "timed": len(few)}


def entropy(
    work: Path, model: torch.nn.Module, samples: pd.DataFrame, *, limit: int
) -> dict[str, Any]:
    """Write entropy.parquet: the entropy of p_base(. | prefix) at T = 1 along the base's samples.

    One row a token: sample, position, entropy, logprob (this forward pass's, in nats); its mean distance
    from the log-probability that the sampling engine stated is returned as `engine_gap`.
    """
    frames, gap = [], []
    found = tokens.score(model, None, from_samples(samples), limit=limit)
    for row, one in zip(samples.itertuples(), found, strict=True):
        gap.append(np.abs(-one.nll - np.asarray(row.logprobs)).mean())
        columns = {
            "sample": row.index,
            "position": range(len(one.nll)),
            "entropy": one.entropy,
            "logprob": -one.nll,
        }
        frames.append(pd.DataFrame(columns))
    pd.concat(frames, ignore_index=True).to_parquet(work / "entropy.parquet", index=False)
    return {"engine_gap": float(np.mean(gap))}
