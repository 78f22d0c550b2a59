"""Healing of a base whose weights were rounded: training on prose until held-out prose stops improving.

Weights that were stored in few bits are off their minimum, and any training on good text may bring them nearer to
it. A drop that is measured from such a base is the sum of what is forgotten and what is healed; measured from a
healed one it is the first alone, as far as prose can heal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.events import say

if TYPE_CHECKING:
    import torch

    from cfutils.data.sequences import Sequence
    from cfutils.profiles import Execution


@dataclass(frozen=True, kw_only=True)
class Healing:
    """How a base is healed."""

    documents: int = 2048
    """Documents of prose, each seen at most once."""
    heldout: int = 128
    """Documents that are never trained on; their NLL decides when to stop."""
    batch: int = 16
    """Documents in one optimiser step."""
    lr: float = 5e-5
    """Peak learning rate; it falls as a cosine over all documents."""
    interval: int = 8
    """Optimiser steps between two looks at held-out prose."""
    patience: int = 3
    """Looks without a better one, after which training stops."""


def heal(
    work: Path, base_folder: Path, prose: list[Sequence], *, healing: Healing, look: Callable[[torch.nn.Module], float],
    dtype: str, autocast: bool | None, execution: Execution,
) -> dict[str, Any]:  # fmt: skip
    """Train a base on prose and write the weights of the lowest held-out NLL, with log.parquet, into `work`.

    look: mean NLL of held-out prose under a model, in nats per token. Weights are trained in fp32 and written in
    `dtype`. A killed run begins again, for what was seen before is not known any more. Returns notes: steps of the
    weights that were kept, NLL before and after.
    """
    import numpy as np
    import pandas as pd

    from cfutils.data import mixing
    from cfutils.models import loading, precision
    from cfutils.training import afterwards
    from cfutils.training.loop import Loop
    from cfutils.training.settings import Tuning

    trust = execution.trust_remote_code
    model = loading.load(base_folder, dtype="float32", trust_remote_code=trust)
    tuning = Tuning(
        seed=0, lr=healing.lr, epochs=1, batch_size=healing.batch, warmup=0.1, weight_decay=0.0, clip=1.0,
        dtype=dtype, autocast=autocast, ratio=None, replay_weight=None, replay_loss="nll", train="all",
        l2_weight=None, lora_rank=None,
    )  # fmt: skip
    mixed = mixing.mix(prose, [], ratio=0.0, seed=tuning.seed)
    loop = Loop(
        model, None, mixed, tuning=tuning, execution=execution, autocast=precision.autocast(autocast), label="prose"
    )
    seen = [look(model)]
    best = 0  # of no steps: the base itself

    def stop(steps: int) -> bool:
        nonlocal best
        if steps % healing.interval:
            return False
        seen.append(look(model))
        say(f"  held-out prose {seen[-1]:.4f} nats per token after {steps} steps; {seen[0]:.4f} before")
        if seen[-1] < seen[best]:
            best = len(seen) - 1
            afterwards.save(model, work, base_folder, trust_remote_code=trust)
        return len(seen) - 1 - best >= healing.patience

    afterwards.save(model, work, base_folder, trust_remote_code=trust)
    checkpoint = work / "checkpoint.safetensors"
    checkpoint.unlink(missing_ok=True)
    log = loop.run(checkpoint, stop=stop)
    checkpoint.unlink(missing_ok=True)
    if dtype != "float32":
        del model, loop
        best_model = loading.load(work, dtype=dtype, trust_remote_code=trust)
        afterwards.save(best_model, work, base_folder, trust_remote_code=trust)
    looks = pd.DataFrame({"steps": healing.interval * np.arange(len(seen)), "heldout_nll": seen})
    log = log.assign(steps=log["step"] + 1).merge(looks, on="steps", how="outer")
    log.to_parquet(work / "log.parquet", index=False)
    return {"steps": healing.interval * best, "nll_before": seen[0], "nll_after": seen[best]}
