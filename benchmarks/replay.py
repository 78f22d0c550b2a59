"""Replay by full-vocabulary KL beside replay by NLL: what a step costs, and what keeping the base's states saves.

Both arms tune on the same mix of target and context-free samples; only the loss of the replay tokens
differs. `kl_live` runs the base at every step, as it is usually done.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import common

STEPS, BATCH = 4, 8
ARMS = ("nll", "kl", "kl_live")


def turn(*, arm: str, base: str, number: int) -> dict:
    """Tune for some steps; the first is not timed."""
    lab, folder = common.opened(
        base, batch_size=BATCH, n_train=STEPS * BATCH, epochs=1, engine="transformers", n_samples=64,
        ratio=0.5,
    )  # fmt: skip
    from cfutils.data import mixing, sequences
    from cfutils.models import loading, packing
    from cfutils.models.base_states import BaseStates
    from cfutils.training import trainer

    target = common.target(lab.profile, folder)
    pool = sequences.from_samples(lab.ensure(lab.steps.samples("context_free")).table("samples"))
    lab.session.release()
    tuning = common.tuning(lab.profile, "cfs" if arm == "nll" else "cf_kl")
    mixed = mixing.mix(target, pool, ratio=tuning.ratio, seed=0)
    model, states, once = loading.load(folder, dtype=tuning.dtype), None, 0.0
    if arm == "kl":
        path = Path(tempfile.mkdtemp()) / "states.safetensors"
        clock = time.perf_counter()
        states = BaseStates(model, path, limit=lab.profile.pass_tokens)
        states.freeze(mixed.replay)
        once = time.perf_counter() - clock
    if arm == "kl_live":
        states = Live(loading.load(folder, dtype=tuning.dtype), packing)
    loop = trainer.Loop(model, states, mixed, tuning=tuning, execution=lab.profile.execution)
    seconds, losses = [], []
    for step in range(len(loop.steps)):
        clock = time.perf_counter()
        losses.append(loop._step(step)["replay_loss"])
        seconds.append(time.perf_counter() - clock)
    return {
        "seconds_per_step": statistics.mean(seconds[1:]),
        "once_s": once,
        "peak_mb": common.peak_mb(),
        "losses": [round(x, 6) for x in losses],
    }


class Live:
    """A base that runs at every step."""

    def __init__(self, base, packing) -> None:
        self.base, self.packing, self.head = base, packing, packing.Head(base)

    def hidden(self, sequences):
        """Return last hidden states, computed now."""
        import torch

        with torch.no_grad():
            found = self.packing.documents(sequences, self.base.device)
            return self.packing.last_hidden(self.base, found.packed)[found.rows]


if __name__ == "__main__":
    common.main(
        __file__, turn, [{"arm": arm, "base": base} for base in ("smollm2", "tiny") for arm in ARMS]
    )
