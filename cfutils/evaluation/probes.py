"""What one model does to sequences that are never trained on: probes, estimates of the KL, entropy.

Probes are sequences with NLL and exact full-vocabulary KL(base || tuned) at each token. Items are stored; scores are
sums over them.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cfutils import progress
from cfutils.data.sequences import Sequence, from_samples
from cfutils.evaluation import ITEM, token_scores
from cfutils.evaluation.token_scores import Scored
from cfutils.models.base_states import BaseStates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN = ["task", "sequence", "position", "token", "nll", "kl"]
"""Columns of the frame of token rows."""
TIMED = 256
"""Sequences on which the cost of an estimate is measured."""


def probe(
    work: Path,
    model: torch.nn.Module,
    base_states: BaseStates | None,
    tokenizer: PreTrainedTokenizerBase,
    sequences: dict[str, list[Sequence]],
    *,
    limit: int,
) -> None:
    """Write items.parquet, NLL and KL(base || tuned) on every probe, and tokens.parquet, the same by token.

    base_states: the base; without it the model is the base, and KL is zero.
    sequences: by name of the probe.
    limit: tokens in one forward pass.
    Token rows hold the text, so they are written for `context_free` alone, whose text is the base's own: texts of
    the other probes belong to others, and results are published.
    """
    rows = []
    tokens = pd.DataFrame(columns=TOKEN)
    with progress.task("probe", total=len(sequences), alike=False) as advance:
        for name, batch in sequences.items():
            scored = token_scores.score(model, base_states, batch, limit=limit)
            for number, (sequence, (nll, kl, *_)) in enumerate(zip(batch, scored, strict=True)):
                rows.append(["probe", name, "nll", str(number), nll.mean(), len(nll)])
                rows.append(["probe", name, "kl", str(number), kl.mean(), len(kl)])
                ids = sequence.ids[sequence.first :]
                if n_bytes := len(tokenizer.decode(ids, skip_special_tokens=True).encode()):
                    bits = nll.sum() / (n_bytes * math.log(2))
                    rows.append(["probe", name, "bpb", str(number), bits, n_bytes])
            if name == "context_free":
                tokens = _token_rows(name, batch, scored, tokenizer)
            advance()
    pd.DataFrame(rows, columns=ITEM).to_parquet(work / "items.parquet", index=False)
    tokens.to_parquet(work / "tokens.parquet", index=False)


def _token_rows(
    name: str, batch: list[Sequence], scored: list[Scored], tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    """Return one row per supervised token of a probe."""
    frames = []
    for number, (sequence, one) in enumerate(zip(batch, scored, strict=True)):
        ids = sequence.ids[sequence.first :]
        texts = [tokenizer.decode([i]) for i in ids]
        columns = [name, number, range(len(ids)), texts, one.nll, one.kl]
        frames.append(pd.DataFrame(dict(zip(TOKEN, columns, strict=True))))
    return pd.concat(frames, ignore_index=True)


def estimate(
    work: Path,
    base_states: BaseStates,
    model: torch.nn.Module,
    sequences: list[Sequence],
    *,
    limit: int,
) -> dict[str, Any]:
    """Write estimate.parquet, one row per sequence, in nats: what KL(base || model) is estimated from.

    log_ratio = sum_t log p_0(x_t) - log p(x_t), which the sampled NLL estimates; kl = sum_t KL(p_0 || p) over the
    whole vocabulary at each of the same prefixes; tokens, their number. For x drawn from p_0 both have
    the mean KL(p_0 || p) of sequences (chain rule); kl is the mean of log_ratio given each prefix.
    Returns the seconds that either estimate takes on `timed` sequences.
    """
    found = token_scores.score(model, base_states, sequences, limit=limit)
    pd.DataFrame(
        {
            "tokens": [len(one.nll) for one in found],
            "log_ratio": [(one.nll - one.nll_base).sum() for one in found],
            "kl": [one.kl.sum() for one in found],
        }
    ).to_parquet(work / "estimate.parquet", index=False)
    few, clock = sequences[:TIMED], time.monotonic()
    for one in (base_states.model, model):
        token_scores.score(one, None, few, limit=limit)
    middle = time.monotonic()
    token_scores.score(model, BaseStates(base_states.model, limit=limit), few, limit=limit)
    seconds = {"log_ratio": middle - clock, "kl": time.monotonic() - middle}
    return {"seconds": {k: round(v, 4) for k, v in seconds.items()}, "timed": len(few)}


def entropy(
    work: Path, model: torch.nn.Module, samples: pd.DataFrame, *, limit: int
) -> dict[str, Any]:
    """Write entropy.parquet: the entropy of p_base(. | prefix) at T = 1 along the base's samples, in nats.

    One row per token: sample, position, entropy, logprob (of this forward pass, in nats). The mean distance of the
    latter from the log-probability that the sampling engine reported is returned as `engine_gap`.
    """
    frames, gap = [], []
    found = token_scores.score(model, None, from_samples(samples), limit=limit)
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
