"""Samples drawn from the base: context-free and contextual, kept with all that describes them.

A context-free sample is x ~ p_base given the start token alone: temperature T, no top-k, no top-p, ended
by an end token or cut at max_tokens (which makes it a draw from the law of the first tokens). A
contextual sample is the base's own continuation of a target prompt. Drawn in chunks with a seed for each
index, so a killed job goes on where it was and gives the same samples.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfutils.engines import Engine, Request
from cfutils.store import Artifact, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED_BLOCK = 1_000_000
STREAMS = {"context_free": 1, "probe": 2, "contextual": 3, "estimate": 4, "reference": 5}
"""Disjoint blocks of seeds: the last two and the probe are never samples that replay may contain."""


def draw(
    work: Path,
    *,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    heads: list[tuple[int, ...]],
    stream: str,
    temperature: float,
    max_tokens: int,
    stop: tuple[int, ...],
    chunk: int,
) -> int:
    """Continue each head (token ids) once; write samples.parquet into `work`, resuming its chunks.

    `stream` (one of STREAMS) decides the block of seeds, `stop` the ids that end a sample. Returns the
    number of tokens drawn.
    """
    block, total = STREAMS[stream] * SEED_BLOCK, len(heads)
    parts = []
    for begin in range(0, total, chunk):
        part = work / f"part-{begin:06d}.parquet"
        parts.append(part)
        if part.exists():
            continue
        indices = range(begin, min(begin + chunk, total))
        requests = [Request(heads[i], block + i) for i in indices]
        drawn = engine.draw(requests, temperature=temperature, max_tokens=max_tokens, stop=stop)
        texts = tokenizer.batch_decode([c.token_ids for c in drawn], skip_special_tokens=True)
        frame = pd.DataFrame(
            {
                "index": list(indices),
                "seed": [r.seed for r in requests],
                "temperature": temperature,
                "prompt_ids": [list(r.prompt) for r in requests],
                "token_ids": [c.token_ids for c in drawn],
                "logprobs": [c.logprobs for c in drawn],
                "finish_reason": [c.finish_reason for c in drawn],
                "text": texts,
            }
        )
        frame.to_parquet(part.with_suffix(".tmp"), index=False)
        os.replace(part.with_suffix(".tmp"), part)
        say(f"  {indices[-1] + 1} of {total} samples")
    frame = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    frame.to_parquet(work / "samples.parquet", index=False)
    for part in parts:
        part.unlink()
    return int(frame["token_ids"].map(len).sum())


def read(artifact: Artifact) -> pd.DataFrame:
    """Return the samples frame of an artifact."""
    return pd.read_parquet(artifact.path / "samples.parquet")


def describe(samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row a (source, temperature): size, length, EOS share, log-probability, repetition.

    logprob is the mean log p_base(token) in nats with a standard error that treats samples, not tokens,
    as independent; distinct_n is the share of different n-grams among all; duplicates is the share of
    samples whose tokens another sample has too.
    """
    rows = []
    for (source, temperature), group in samples.groupby(["source", "temperature"], sort=False):
        tokens = [tuple(ids) for ids in group["token_ids"]]
        sums = group["logprobs"].map(np.sum).to_numpy(float)
        lengths = np.array([len(t) for t in tokens], float)
        mean = sums.sum() / lengths.sum()
        spread = (sums - mean * lengths) / lengths.mean()
        row = {
            "source": source,
            "temperature": temperature,
            "samples": len(group),
            "tokens": int(lengths.sum()),
            "mean_length": lengths.mean(),
            "eos_share": (group["finish_reason"] == "stop").mean(),
            "logprob": mean,
            "logprob_stderr": spread.std(ddof=1) / np.sqrt(len(group))
            if len(group) > 1
            else np.nan,
            "duplicates": pd.Series(tokens).duplicated(keep=False).mean(),
        }
        for n in (1, 2, 3):
            grams = [t[i : i + n] for t in tokens for i in range(len(t) - n + 1)]
            row[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
        rows.append(row)
    return pd.DataFrame(rows)
