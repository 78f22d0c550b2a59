"""One tuning run, from folders and sequences to tuned weights and a log; `loop` states what is minimised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfutils import progress
from cfutils.data import mixing
from cfutils.data.sequences import Sequence
from cfutils.events import say
from cfutils.models import loading, precision
from cfutils.models.base_states import BaseStates
from cfutils.profiles import Execution
from cfutils.training import adapters, afterwards, penalties, weighting
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
    computed = tuning.dtype
    if autocast and tuning.dtype == "float32":
        computed = "float32, bf16 autocast"
    say(f"  {computed}; {reason}")
    trust, limit = execution.trust_remote_code, execution.pass_tokens
    model = loading.load(base_folder, dtype=tuning.dtype, trust_remote_code=trust)
    fixed: dict[Sequence, Any] = {}
    if tuning.weighting in weighting.FIXED:
        with progress.task("NLL under the base"):
            nll = weighting.token_nlls(model, mixed.target, limit=limit)
        weights = weighting.FIXED[tuning.weighting](nll, tuning.weighting_strength)
        fixed = dict(zip(mixed.target, weights, strict=True))
    base_states = None
    frozen = [*(mixed.replay if tuning.replay_loss == "kl" else ())]
    frozen += mixed.target if tuning.target_kl is not None else ()
    if frozen:
        base_states = BaseStates(model, work / "states.safetensors", limit=limit)
        base_states.freeze(frozen)
    if start_folder is not None:
        model = loading.load(start_folder, dtype=tuning.dtype, trust_remote_code=trust)
    model = adapters.wrap(model, tuning)
    fisher = penalties.fisher_of(model, pool) if tuning.ewc_weight is not None else None
    loop = Loop(
        model, base_states, mixed, tuning=tuning, execution=execution, autocast=autocast, label=label,
        fixed=fixed, fisher=fisher,
    )  # fmt: skip
    log = loop.run(work / "checkpoint.safetensors")
    log.to_parquet(work / "log.parquet", index=False)
    if tuning.train != "all":
        model = adapters.merge(model, work / adapters.FOLDER)
    afterwards.save(model, work, base_folder, trust_remote_code=trust)
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
