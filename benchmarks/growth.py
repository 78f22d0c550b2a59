"""How cost grows with the work: more samples, longer samples, more runs; seconds and peak memory.

On the tiny base, each size in a process of its own; the reference is linear growth.
"""

from __future__ import annotations

import time

import common

AXES = {"samples": (1, 2, 4, 8, 16), "length": (1, 2, 4, 8), "runs": (1, 2, 4, 8)}
SAMPLES, LENGTH = 128, 12


def turn(*, axis: str, times: int, number: int) -> dict:
    """Do `times` as much of one kind of work."""
    lab, folder = common.opened("tiny", epochs=1, n_train=160, workers=1)
    from cfutils.data import mixing
    from cfutils.models import loading, tokenizers
    from cfutils.models.generation.transformers_engine import continue_all
    from cfutils.models.generation.types import Request
    from cfutils.training import trainer

    model = loading.load(folder, dtype=lab.profile.dtype)
    tokenizer = tokenizers.load_tokenizer(folder)
    start = tokenizers.start_token(tokenizer, None)
    chunk = lab.profile.chunk

    def draw(n: int, length: int, stop: tuple[int, ...]) -> None:
        requests = [Request((start,), i) for i in range(n)]
        for begin in range(0, n, chunk):
            continue_all(
                model, requests[begin : begin + chunk], temperature=1.0, max_tokens=length, stop=stop,
                limit=lab.profile.pass_tokens,
            )

    draw(8, 4, ())
    target = common.target(lab.profile, folder)
    clock = time.perf_counter()
    if axis == "samples":
        draw(SAMPLES * times, LENGTH * 4, tokenizers.end_tokens(tokenizer, start))
    elif axis == "length":
        draw(SAMPLES, LENGTH * times, ())
    else:
        for seed in range(times):
            loop = trainer.Loop(
                loading.load(folder, dtype=lab.profile.dtype), None,
                mixing.mix(target, [], ratio=0.0, seed=seed),
                tuning=common.tuning(lab.profile, "ft", seed=seed), execution=lab.profile.execution,
            )  # fmt: skip
            for step in range(len(loop.steps)):
                loop._step(step)
    return {"seconds": time.perf_counter() - clock, "peak_mb": common.peak_mb()}


if __name__ == "__main__":
    common.main(
        __file__, turn, [{"axis": axis, "times": n} for axis, sizes in AXES.items() for n in sizes]
    )
