"""Scores of one model: retained tasks, target, probes; item by item, so that comparisons can be paired.

Retained tasks go through lm-eval's own definitions and HFLM. An accuracy on a hundred items has a
standard error of four to five points, so beside it stands the continuous reading of the same items:
`margin`, the log-likelihood of the right choice minus the best wrong one (nats), and `bpb_gold`, bits
per byte of the right choice. Probes are sequences never trained on: NLL and exact full-vocabulary
KL(base || tuned) at each token. What is stored are items; scores are sums over them.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cfutils import losses, models, tasks
from cfutils.profiles import Profile
from cfutils.replay import Sequence
from cfutils.store import say
from cfutils.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ITEM = ["group", "task", "metric", "item", "value", "weight"]

HEADLINE = ("acc", "exact_match", "exact_match_flexible")
"""Metrics of the target's own task that are kept."""


def retained(
    work: Path, load: Callable[[], torch.nn.Module], folder: Path, *, profile: Profile
) -> None:
    """Score the retained tasks; write items.parquet, one finished task at a time."""
    parts = []
    for name in profile.retained:
        part = work / f"part-{name}.parquet"
        parts.append(part)
        if part.exists():
            continue
        task = tasks.lm_eval_task(name, local=profile.benchmarks == "package")
        indices = tasks.evenly(len(task.eval_docs), profile.limit)
        items = lm_eval_items(
            load(), folder, task, indices=indices, group="retained", profile=profile
        )
        items.to_parquet(part.with_suffix(".tmp"), index=False)
        part.with_suffix(".tmp").replace(part)
    frames = [pd.read_parquet(part) for part in parts]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=ITEM)
    frame.to_parquet(work / "items.parquet", index=False)
    for part in parts:
        part.unlink()


def lm_eval_items(
    model: torch.nn.Module,
    folder: Path,
    task: Any,
    *,
    indices: list[int],
    group: str,
    profile: Profile,
) -> pd.DataFrame:
    """Run one lm-eval task on chosen items through HFLM; return the items frame.

    Metrics keep lm-eval's names; those of a filter other than the first are named metric_filter.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    tokenizer = models.load_tokenizer(folder, trust_remote_code=profile.trust_remote_code)
    name, generates = task.config.task, task.OUTPUT_TYPE == "generate_until"
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars stick under papermill
        lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=profile.score_batch,
        )
        if generates:
            task.set_config("generation_kwargs", {"max_gen_toks": profile.max_new_tokens}, update=True)
        result = evaluate(  # not simple_evaluate, which lists every installed package at each call
            lm,
            {name: task},
            samples={name: indices},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=profile.chat_template,
        )
    rows: list[list] = []
    first = result["samples"][name][0]["filter"]
    for sample in result["samples"][name]:
        suffix = "" if sample["filter"] == first else f"_{sample['filter'].split('-')[0]}"
        item = str(sample["doc_id"])
        for metric in sample["metrics"]:
            rows.append([group, name, metric + suffix, item, float(sample[metric]), 1.0])
        if task.OUTPUT_TYPE == "multiple_choice":
            rows += [[group, name, *row] for row in _continuous(task, sample, item)]
    say(f"  {name}: {len(indices)} items")
    return pd.DataFrame(rows, columns=ITEM)


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
    scored = token_scores(model, None, sequences, size=profile.score_batch)
    for example, (nll, _) in zip(examples, scored, strict=True):
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
        found = lm_eval_items(model, folder, task, indices=indices, group="target", profile=profile)
        items = pd.concat([items, found[found["metric"].isin(HEADLINE)]], ignore_index=True)
    items.to_parquet(work / "items.parquet", index=False)


def probe(
    work: Path,
    model: torch.nn.Module,
    base: torch.nn.Module | Remembered | None,
    tokenizer: PreTrainedTokenizerBase,
    sequences: dict[str, list[Sequence]],
    *,
    size: int,
) -> None:
    """Write items.parquet and tokens.parquet: NLL and KL(base || tuned) on every probe.

    Without a base the model is the base, and KL is zero.
    """
    rows, tokens = [], []
    for name, batch in sequences.items():
        scored = token_scores(model, base, batch, size=size)
        for number, (sequence, (nll, kl)) in enumerate(zip(batch, scored, strict=True)):
            rows.append(["probe", name, "nll", str(number), nll.mean(), len(nll)])
            rows.append(["probe", name, "kl", str(number), kl.mean(), len(kl)])
            ids = sequence.ids[sequence.first :]
            columns = {
                "task": name,
                "sequence": number,
                "position": range(len(ids)),
                "token": [tokenizer.decode([i]) for i in ids],
                "nll": nll,
                "kl": kl,
            }
            tokens.append(pd.DataFrame(columns))
        say(f"  probe {name}: {len(batch)} sequences")
    pd.DataFrame(rows, columns=ITEM).to_parquet(work / "items.parquet", index=False)
    pd.concat(tokens, ignore_index=True).to_parquet(work / "tokens.parquet", index=False)


class Remembered:
    """A frozen model whose repeated passes cost its head alone, since all tuned models meet one base.

    The last hidden states of each batch are kept in `hidden` (batch x length x width, not vocabulary);
    the same states through the same head give the same logits. Where an architecture changes logits
    after its head, nothing is kept and every pass is a whole one.
    """

    def __init__(self, model: torch.nn.Module, hidden: dict[bytes, torch.Tensor]) -> None:
        self._model, self._hidden = model, hidden
        self._head = model.get_output_embeddings()

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Return what the model returns; only its logits where the batch was met before."""
        key = str(tuple(input_ids.shape)).encode() + input_ids.cpu().numpy().tobytes()
        if key in self._hidden:
            return SimpleNamespace(logits=self._head(self._hidden[key].to(input_ids.device)))
        caught: list[torch.Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        out = self._model(input_ids=input_ids, attention_mask=attention_mask)
        hook.remove()
        if torch.equal(self._head(caught[0]), out.logits):
            self._hidden[key] = caught[0].cpu()
        return out


@torch.inference_mode()
def token_scores(
    model: torch.nn.Module,
    base: torch.nn.Module | Remembered | None,
    batch: list[Sequence],
    *,
    size: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each sequence's (NLL, KL(base || model)) at its supervised tokens, in nats.

    Without a base the model is the base, and KL is zero. `size` is the number of sequences in one
    forward pass.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for begin in range(0, len(batch), size):
        rows = batch[begin : begin + size]
        ids, seen, mask = next(losses.micro_batches(rows, len(rows), by_length=False))
        ids, seen, mask = ids.to(model.device), seen.to(model.device), mask.to(model.device)
        logits = model(input_ids=ids, attention_mask=seen).logits
        chosen, targets = losses.supervised(logits, ids, mask)
        nll = losses.token_nll(chosen, targets)
        kl = torch.zeros_like(nll)
        if base is not None:
            base_logits = base(input_ids=ids, attention_mask=seen).logits
            kl = losses.token_kl(losses.supervised(base_logits, ids, mask)[0], chosen)
        edges = np.cumsum([s.supervised for s in rows])[:-1]
        parts = (np.split(t.double().cpu().numpy(), edges) for t in (nll, kl))
        found += zip(*parts, strict=True)
    return found


@torch.inference_mode()
def entropy(work: Path, model: torch.nn.Module, samples: pd.DataFrame) -> dict[str, Any]:
    """Write entropy.parquet: the entropy of p_base(. | prefix) at T = 1 along the base's samples.

    One row a token: sample, position, entropy, logprob (this forward pass's, in nats); its mean distance
    from the log-probability that the sampling engine stated is returned as `engine_gap`.
    """
    frames, gap = [], []
    for row in samples.itertuples():
        prompt, drawn = list(row.prompt_ids), list(row.token_ids)
        ids = torch.tensor([prompt + drawn], device=model.device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, len(prompt) :] = True
        chosen, targets = losses.supervised(model(input_ids=ids).logits, ids, mask)
        logprob = -losses.token_nll(chosen, targets).cpu().numpy()
        gap.append(np.abs(logprob - np.asarray(row.logprobs)).mean())
        columns = {
            "sample": row.index,
            "position": range(len(drawn)),
            "entropy": losses.token_entropy(chosen).cpu().numpy(),
            "logprob": logprob,
        }
        frames.append(pd.DataFrame(columns))
    pd.concat(frames, ignore_index=True).to_parquet(work / "entropy.parquet", index=False)
    return {"engine_gap": float(np.mean(gap))}
