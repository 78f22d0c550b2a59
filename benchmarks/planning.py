"""What `cfutils plan` predicts, measured: seconds and peak memory of each kind of step, each in a process of its own.

A turn builds one step whose upstream steps other turns have built. Before the clock starts the same step is built as
small as can be, so that what libraries load when they are first used is there. Memory is the largest resident size
(VmRSS, read every 10 ms) less what it was then: weights are a mapped file, and count. malloc is told to give blocks of
256 kB or more back at once (MALLOC_MMAP_THRESHOLD_); left to itself glibc keeps up to a third more, which no tensor
uses. One thread; seconds are those of the processor, so that other work on the machine counts little.
"""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
import threading
import time
from pathlib import Path

import common

SMALL = {
    "tiny": {"pass_tokens": 4096, "batch_size": 64, "n_samples": 600, "chunk": 300, "epochs": 4, "n_probe": 64},
    "smollm2": {"n_train": 24, "n_heldout": 16, "n_validation": 8, "n_samples": 32, "n_contextual": 8, "limit": 6,
                "n_probe": 8, "n_estimate": 16, "engine": "transformers", "chunk": 32},
}  # fmt: skip
"""Profiles, with sizes at which a step takes a minute at most."""
LEAST = {"n_train": 8, "n_heldout": 4, "n_validation": 4, "n_samples": 16, "n_contextual": 8, "limit": 1, "n_probe": 2,
         "n_generate": 2, "n_estimate": 8, "epochs": 1, "max_new_tokens": 4}  # fmt: skip
STEPS = ("samples", "probe samples", "tuned ft", "tuned cfs", "tuned cf_kl", "tuned lora", "tuned l2", "averaged",
         "retained", "target", "validation", "probe", "estimate", "entropy")  # fmt: skip
"""What is measured; scores are those of plain fine-tuning."""


def turn(*, profile: str, step: str, number: int) -> dict:
    """Build one step."""
    import torch

    from cfutils import paths, profiles
    from cfutils.pipeline.session import Session
    from cfutils.pipeline.store import Store

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        first = profiles.load("tiny", **LEAST)
        with Session(first.execution) as session:
            Store(Path(folder)).ensure_here(chosen(first, step), session)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    one = profiles.load(profile, **SMALL[profile])
    wanted, store = chosen(one, step), Store(paths.runs() / f"planning-{profile}-{number}")
    with Session(one.execution) as session:
        for need in wanted.needs.values():
            store.ensure_here(need, session)
        session.release()
        with Memory() as memory:
            before = os.times()
            artifact = store.ensure_here(wanted, session)
            after = os.times()
    seconds = sum(after[i] - before[i] for i in range(4))
    n_bytes = sum(file["bytes"] for file in artifact.record["files"].values())
    return {
        "seconds": round(seconds, 2), "memory_mb": round(memory.peak / 1e6, 1), "disk_mb": round(n_bytes / 1e6, 3),
        **predicted(one, wanted),
    }  # fmt: skip


def predicted(profile, step) -> dict:
    """Return what the plan says of a step, and the calibration of the processor at this moment that it says it for."""
    from cfutils.planning import architecture, costs, devices, memory, work
    from cfutils.planning.setting import Setting

    device = devices.measured(threads=1)
    set_ = Setting.of(profile, architecture.read(profile.base), device)
    found = {
        "predicted_seconds": costs.seconds(work.work(step, set_), device),
        "predicted_mb": memory.total(memory.peak(step, set_)) / 1e6,
    }
    calibrated = {"bf16": device.bf16, "fp32": device.fp32, "bandwidth": device.bandwidth}
    return {**{k: round(v, 2) for k, v in found.items()}, **{k: round(v / 1e9, 1) for k, v in calibrated.items()}}


def chosen(profile, step: str):
    """Return a step by its name in `STEPS`."""
    from cfutils import recipes
    from cfutils.pipeline.steps import Steps
    from cfutils.pipeline.store import Store

    steps, (kind, _, recipe) = Steps(profile, Store()), step.partition(" ")

    def run(name: str):
        return recipes.plans(profile, name, seed=0)[0]

    match kind:
        case "samples":
            return steps.samples("context_free")
        case "tuned":
            return steps.run(run(recipe))
        case "averaged":
            return steps.run(run("wise_ft"))
        case "estimate":
            return steps.estimate(run("ft"), "context_free", n=profile.n_samples, purpose="replay")
        case "entropy":
            return steps.entropy("context_free")
        case "probe" if recipe:
            return steps.samples("context_free", purpose="probe")
    return steps.scores(run("ft"), kind)


class Memory:
    """The most memory that this process holds inside the block beyond what it held before, in bytes."""

    def __enter__(self) -> Memory:
        self.peak, self._before, self._done = 0, _own(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.peak = max(self.peak, _own() - self._before)
            time.sleep(0.01)


def _own() -> int:
    """Resident bytes of this process."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(text.partition("VmRSS:")[2].split()[0])


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    settings = [{"profile": profile, "step": step} for profile in SMALL for step in STEPS]
    common.main(__file__, turn, settings, rounds=1)
