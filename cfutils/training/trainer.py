"""One tuning run, from folders and sequences to tuned weights and a log; `loop` states what is minimised."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cfutils import progress
from cfutils.data import mixing
from cfutils.data.sequences import Sequence
from cfutils.events import say
from cfutils.models import loading, precision
from cfutils.profiles import Execution
from cfutils.training import adapters, afterwards, checkpoints, distributed, launch, weighting
from cfutils.training.job import CHECKPOINT, Job
from cfutils.training.loop import BETAS, Loop
from cfutils.training.settings import Tuning

__all__ = ["BETAS", "Loop", "Tuning", "tune"]


def tune(
    work: Path,
    base_folder: Path,
    target: list[Sequence],
    pool: list[Sequence],
    *,
    tuning: Tuning,
    execution: Execution,
    label: str,
    start_folder: Path | None = None,
) -> dict[str, Any]:
    """Tune the base; write weights, tokenizer and log.parquet into `work`; return notes.

    pool: sequences that replay is chosen from, or those that EWC's Fisher is measured on.
    label: name of the run in messages.
    start_folder: weights to begin with in place of the base's, which stay what the KL is measured from.
    Weights are trained in fp32, whatever type they are written in: in 16 bits a step of AdamW at a small learning rate
    is lost in rounding. With several devices the loop runs in processes of its own (`launch`).
    Resumes from the checkpoint that it finds in `work`. The notes state supervised target and replay tokens, the
    ratio that was reached, tokens that the pool lacked, optimiser steps, and the precision of the computation.
    Raises `UserError` if the loss is not finite.
    """
    mixed = mixing.mix(
        target, pool, ratio=tuning.ratio or 0.0, seed=tuning.seed,
        fresh_epochs=tuning.epochs if tuning.fresh else 1,
    )  # fmt: skip
    if mixed.shortfall:
        say(
            f"  shortfall: the pool lacks {mixed.shortfall} tokens; ratio {mixed.ratio:.3f} instead "
            f"of {tuning.ratio:g}. Raise n_samples or max_tokens."
        )
    autocast, reason = precision.autocast(tuning.autocast), precision.bf16()[1]
    computed = "float32, bf16 autocast" if autocast else "float32"
    if tuning.dtype != "float32":
        computed += f", written in {tuning.dtype}"
    say(f"  {computed}; {reason}")
    trust = execution.trust_remote_code
    load = functools.partial(loading.load, dtype="float32", trust_remote_code=trust)
    job = Job(
        work=work, folder=start_folder or base_folder, mixed=mixed, pool=pool if tuning.ewc_weight is not None else (),
        tuning=tuning, execution=execution, autocast=autocast, label=label, fixed={},
    )  # fmt: skip
    several = launch.wanted(execution)
    if several:
        launch.check(job)
    checkpoint = work / CHECKPOINT
    model = load(base_folder)
    if tuning.weighting in weighting.FIXED:
        with progress.task("NLL under the base"):
            nll = weighting.token_nlls(model, mixed.target, limit=execution.pass_tokens)
        weights = weighting.FIXED[tuning.weighting](nll, tuning.weighting_strength)
        job = replace(job, fixed=dict(zip(mixed.target, weights, strict=True)))
    states = job.states(model)
    if several:
        del model, states  # the processes need the memory
        loading.free()
        launch.train(job)
        model = adapters.wrap(load(job.folder), tuning)
        trained = [p for p in model.parameters() if p.requires_grad]
        log = pd.DataFrame(checkpoints.restore(checkpoint, trained, None, distributed.alone())[1])
    else:
        model = adapters.wrap(load(start_folder) if start_folder else model, tuning)
        log = job.loop(model, states, distributed.alone()).run(checkpoint)
    log.to_parquet(work / "log.parquet", index=False)
    if tuning.train != "all":
        model = adapters.merge(model, work / adapters.FOLDER)
    afterwards.save(model.to(getattr(torch, tuning.dtype)), work, base_folder, trust_remote_code=trust)
    for left in (*work.glob("checkpoint.*"), *work.glob("states.*")):  # half a file, after a kill
        left.unlink()
    return {
        "target_tokens": mixed.target_tokens if tuning.target else 0,
        "replay_tokens": mixed.replay_tokens,
        "ratio_reached": round(mixed.ratio, 4),
        "shortfall": mixed.shortfall,
        "steps": len(log),
        "precision": computed,
    }
