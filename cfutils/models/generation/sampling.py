"""Samples from a base model, written to disk with everything that describes them.

A context-free sample is x ~ p_base given the start token alone: temperature T, no top-k, no top-p, ended
by an end token or cut at max_tokens (which makes it a draw from the distribution of the first tokens). A
contextual sample is the base's own continuation of a target prompt. Samples are drawn and written chunk by
chunk, each index with a seed of its own, so a killed job resumes and ends with the same samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfutils import atomic, progress
from cfutils.errors import invalid_value
from cfutils.models.generation.types import Engine, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED_BLOCK = 1_000_000
"""Seeds reserved for one set of samples; set number n begins at n * SEED_BLOCK."""
SETS = {
    "replay": 1, "probe": 2, "contextual": 3, "estimate": 4, "reference": 5, "template_prefix": 6,
    "recovery": 7, "rewritten": 8,
}  # fmt: skip
"""Numbers of the sets: their seeds are disjoint, so no probe is also a sample that replay may contain."""


def open_engine(
    name: str,
    folder: Path,
    *,
    dtype: str,
    max_length: int,
    chunk: int,
    pass_tokens: int,
    trust_remote_code: bool = False,
) -> Engine:
    """Return the engine of a name, "vllm" or "transformers", for the model in a Hugging Face folder.

    max_length: most tokens of a prompt and its completion together (vLLM alone needs to know).
    chunk: sequences decoded at the same time.
    pass_tokens: tokens in one forward pass over prompts (transformers; vLLM has its own budget).
    Raises `UserError` for another name.
    """
    if name == "vllm":
        from cfutils.models.generation.vllm_engine import VllmEngine

        return VllmEngine(
            folder, dtype=dtype, max_length=max_length, chunk=chunk, trust_remote_code=trust_remote_code
        )
    if name == "transformers":
        from cfutils.models.generation.transformers_engine import TransformersEngine

        return TransformersEngine(
            folder, dtype=dtype, chunk=chunk, pass_tokens=pass_tokens, trust_remote_code=trust_remote_code
        )
    raise invalid_value("engine", name, "'vllm' or 'transformers'")


def draw(
    work: Path,
    *,
    engine: Callable[[], Engine],
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[tuple[int, ...]],
    first_seed: int,
    temperature: float,
    max_tokens: int,
    stop: tuple[int, ...],
    chunk: int,
    share: tuple[int, int] | None = None,
) -> int | None:
    """Continue each prompt (token ids) once, write work/samples.parquet, and return the number of tokens.

    Prompt i has seed first_seed + i. Each call of the engine gets `chunk` prompts, which are written to a
    part file of their own; parts that exist are kept, and `engine` is called only where some are missing. With
    vLLM, which seeds calls and not requests, the samples depend on `chunk`. `stop` are the ids that end a sample.
    With a share (i, n) only every n-th chunk from the i-th on is drawn, and the parts are left to a later call
    without it, which joins them; None is returned. Raises `UserError` for more prompts than a set has seeds.
    """
    total = len(prompts)
    if total > SEED_BLOCK:
        raise invalid_value("number of samples", total, f"at most {SEED_BLOCK:,} in one set")
    first, every = share or (0, 1)
    chunks = [range(begin, min(begin + chunk, total)) for begin in range(0, total, chunk)][first::every]
    total = sum(map(len, chunks))
    parts = [work / f"part-{indices.start:06d}-{indices.stop:06d}.parquet" for indices in chunks]
    missing = [pair for pair in zip(chunks, parts, strict=True) if not pair[1].exists()]
    done = total - sum(len(indices) for indices, _ in missing)
    with progress.task("sampling", total=total, unit="samples", done=done) as advance:
        for indices, part in missing:
            requests = [Request(prompts[i], first_seed + i) for i in indices]
            drawn = engine().draw(
                requests, temperature=temperature, max_tokens=max_tokens, stop=stop, advance=advance
            )
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
            with atomic.replacing(part) as unfinished:
                frame.to_parquet(unfinished, index=False)
    if share:
        return None
    frame = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    frame.to_parquet(work / "samples.parquet", index=False)
    for part in work.glob("part-*"):  # also those of a killed job with another size of chunks
        part.unlink()
    return int(frame["token_ids"].map(len).sum())


def describe(samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (source, temperature): size, length, EOS share, log-probability, repetition.

    logprob is the mean log p_base(token) in nats with a standard error that treats samples, not tokens,
    as independent; distinct_n is the number of different n-grams divided by that of all n-grams; duplicates
    is the share of samples whose tokens are also those of another sample.
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
