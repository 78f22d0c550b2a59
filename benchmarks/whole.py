"""The whole default run, cold (nothing built) and warm (nothing changed)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import common


def turn(*, profile: str, number: int) -> dict:
    """Run every notebook twice, in folders of their own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "CFUTILS_RUNS": f"{folder}/runs", "CFUTILS_FIGURES": f"{folder}/figures"
        }  # fmt: skip
        seconds = []
        for _ in range(2):
            clock = time.perf_counter()
            command = [sys.executable, "-m", "cfutils", "run", profile]
            subprocess.run(command, env=environment, check=True, capture_output=True)
            seconds.append(time.perf_counter() - clock)
    return {"cold_s": seconds[0], "warm_s": seconds[1]}


if __name__ == "__main__":
    common.main(__file__, turn, [{"profile": "tiny"}], rounds=1)
