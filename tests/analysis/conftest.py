"""Item-level results of runs whose scores are plain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import forgetting

N = 400
CELLS = {
    "bits": ("retained", "arc", "bpb_gold"), "right": ("retained", "arc", "acc"),
    "kl": ("probe", "context_free", "kl"), "inputs": ("probe", "target_inputs", "kl"),
    "nll": ("target", "gsm8k", "nll"), "exact": ("target", "gsm8k", "exact_match"),
}  # fmt: skip


@pytest.fixture
def make_items():
    """Items of the base and of runs, each a dict: recipe, seed, settings, and the mean of every score by `CELLS`.

    Of the 400 items of a score half lie `jitter` above and half below the mean, not the same ones in each run.
    """

    def make(runs, *, jitter=0.01, n=N):
        frames = []
        base = {"recipe": "base", "seed": -1, "bits": 1.0, "kl": 0.0, "nll": 3.0}
        for number, run in enumerate([base, *runs]):
            settings = {name: run.get(name, np.nan) for name in forgetting.SETTINGS}
            signs = np.random.default_rng(number).permutation(np.tile([-1, 1], n // 2))
            for name, (group, task, metric) in CELLS.items():
                if (name not in run and number) or not any(name in one for one in runs):
                    continue
                mean, width = (
                    run.get(name, 0.0),
                    0.0 if number == 0 or name in ("nll", "exact") else jitter,
                )
                frames.append(
                    pd.DataFrame(
                        {"profile": "p", "run": f"run{number}", "recipe": run["recipe"], "seed": run["seed"],
                         **settings, "group": group, "task": task, "metric": metric,
                         "item": [str(i) for i in range(n)], "value": mean + width * signs, "weight": 1.0}
                    )
                )  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    return make


@pytest.fixture
def over_seeds():
    """Runs of one recipe for seeds 0, 1, 2."""
    return lambda recipe, **scores: [
        {"recipe": recipe, "seed": seed, **scores} for seed in range(3)
    ]
