"""Samples drawn from the base: context-free and contextual, kept with all that describes them.

A context-free sample is x ~ p_base given the start token alone: temperature T, no top-k, no top-p, ended
by an end token or cut at max_tokens (which makes it a draw from the law of the first tokens). A
contextual sample is the base's own continuation of a target prompt. Drawn in chunks with a seed for each
index, so a killed job goes on where it was and gives the same samples.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfutils import models
from cfutils.engines import Engine, Request
from cfutils.profiles import Profile
from cfutils.store import Artifact, Step, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODE = ("cfutils.sampling", "cfutils.engines", *models.CODE)
SEED_BLOCK = 1_000_000
STREAMS = {"context_free": 1, "probe": 2, "contextual": 3}
"""Disjoint blocks of seeds: the probe is never a sample that replay may contain."""

Prompts = Callable[["PreTrainedTokenizerBase"], list[tuple[int, ...]]]


def samples_step(
    profile: Profile,
    base: Step,
    stream: str,
    *,
    n: int,
    temperature: float,
    engine: Callable[[Path], Engine],
    prompts: Prompts | None = None,
    prompts_key: Any = None,
) -> Step:
    """Return the step that draws `n` samples of a stream (one of STREAMS).

    `prompts` gives the token ids that contextual samples continue, with `prompts_key` for what decides
    them; without it every sample continues the start token alone. `engine` opens (or hands out) an
    engine for the base's folder.
    """
    params = {
        "stream": stream,
        "n": n,
        "temperature": temperature,
        "max_tokens": profile.max_tokens,
        "start_token": profile.start_token,
        "engine": profile.engine,
        "dtype": profile.dtype,
        "chunk": profile.chunk,
        "prompts": prompts_key,
    }
    build = functools.partial(_draw, profile=profile, params=params, prompts=prompts, engine=engine)
    label = f"{n} {stream} samples at T={temperature:g}"
    return Step("samples", params, build, needs={"base": base}, code=CODE, label=label)


def _draw(
    work: Path,
    needs: dict[str, Artifact],
    *,
    profile: Profile,
    params: dict[str, Any],
    prompts: Prompts | None,
    engine: Callable[[Path], Engine],
) -> dict[str, Any]:
    folder = models.folder(needs["base"])
    tokenizer = models.load_tokenizer(folder, trust_remote_code=profile.trust_remote_code)
    start = models.start_token(tokenizer, profile.start_token)
    stop = models.end_tokens(tokenizer, start)
    heads = prompts(tokenizer) if prompts else [(start,)] * params["n"]
    block = STREAMS[params["stream"]] * SEED_BLOCK
    parts = []
    for begin in range(0, params["n"], params["chunk"]):
        part = work / f"part-{begin:06d}.parquet"
        parts.append(part)
        if part.exists():
            continue
        indices = range(begin, min(begin + params["chunk"], params["n"]))
        requests = [Request(heads[i], block + i) for i in indices]
        drawn = engine(folder).draw(
            requests, temperature=params["temperature"], max_tokens=params["max_tokens"], stop=stop
        )
        frame = pd.DataFrame(
            {
                "index": list(indices),
                "seed": [r.seed for r in requests],
                "temperature": params["temperature"],
                "prompt_ids": [list(r.prompt) for r in requests],
                "token_ids": [c.token_ids for c in drawn],
                "logprobs": [c.logprobs for c in drawn],
                "finish_reason": [c.finish_reason for c in drawn],
                "text": tokenizer.batch_decode(
                    [c.token_ids for c in drawn], skip_special_tokens=True
                ),
            }
        )
        frame.to_parquet(part.with_suffix(".tmp"), index=False)
        os.replace(part.with_suffix(".tmp"), part)
        say(f"  {indices[-1] + 1} of {params['n']} samples")
    frame = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    frame.to_parquet(work / "samples.parquet", index=False)
    for part in parts:
        part.unlink()
    return {
        "start_token": tokenizer.convert_ids_to_tokens(start),
        "start_id": start,
        "end_ids": list(stop),
        "base": needs["base"].notes["about"],
        "tokens": int(frame["token_ids"].map(len).sum()),
    }


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
            "logprob_stderr": spread.std(ddof=1) / np.sqrt(len(group)) if len(group) > 1 else np.nan,
            "duplicates": pd.Series(tokens).duplicated(keep=False).mean(),
        }
        for n in (1, 2, 3):
            grams = [t[i : i + n] for t in tokens for i in range(len(t) - n + 1)]
            row[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
        rows.append(row)
    return pd.DataFrame(rows)
