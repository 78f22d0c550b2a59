"""Several processes train what one trains, are killed and resume, and say in one line what went wrong.

The slow tests start two processes with gloo, on the base that ships.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file
from test_trainer import EXECUTION, POOL, TARGET, tuning_of

from cfutils import paths
from cfutils.errors import UserError
from cfutils.training import distributed, settings, trainer

BASE = paths.data() / "tiny"


def test_divide_gives_each_process_about_as_many_tokens():
    """Longest first, each to the smallest part: 8 | 7; 8 | 7 5; 8 4 | 7 5; 8 4 | 7 5 3 (a tie: 12 | 12)."""
    found = distributed.divide([4, 8, 3, 7, 5], 2)
    assert sorted(map(sorted, found)) in ([[0, 1], [2, 3, 4]], [[0, 1, 2], [3, 4]])
    assert distributed.divide([5], 3).count([]) == 2
    assert distributed.divide([2, 9, 4], 1) == [[0, 1, 2]]


@pytest.mark.parametrize(("devices", "offload", "name"), [(2, False, "devices"), (1, True, "offload")])
def test_osf_is_refused_before_anything_is_computed(devices, offload, name):
    with pytest.raises(UserError, match=f"{name} = .* recipes that train 'osf'"):
        settings.check_devices("osf", devices=devices, offload=offload)
    settings.check_devices("osf", devices=1, offload=False)
    settings.check_devices("lora", devices=devices, offload=offload)


def run(work: Path, recipe: str, *, devices: int, how: dict | None = None, **changes):
    work.mkdir(exist_ok=True)
    trainer.tune(
        work, BASE, TARGET, POOL, tuning=tuning_of(recipe, epochs=3, lr=1e-4, **changes),
        execution=replace(EXECUTION, devices=devices, **(how or {})), label=f"{recipe} seed=0",
    )  # fmt: skip
    return pd.read_parquet(work / "log.parquet").drop(columns="seconds"), load_file(work / "model.safetensors")


def same(one, two):
    pd.testing.assert_frame_equal(one[0], two[0], atol=1e-3, rtol=1e-4)
    assert max((one[1][k] - two[1][k]).abs().max().item() for k in one[1]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ft", "cfs", "cf_kl", "l2", "lora"])
def test_two_processes_train_what_one_does(tmp_path, recipe):
    """Twelve steps, in passes of unequal number: 32 tokens each; activations are computed again."""
    how = {"pass_tokens": 32, "gradient_checkpointing": True}
    one = run(tmp_path / "one", recipe, devices=1, how=how)
    two = run(tmp_path / "two", recipe, devices=2, how=how)
    same(one, two)
    left = {p.name for p in (tmp_path / "two").iterdir()}
    assert left == {p.name for p in (tmp_path / "one").iterdir()}, "nothing of the processes is in the artifact"


@pytest.mark.slow
def test_an_error_of_a_process_comes_back_as_it_is(tmp_path):
    with pytest.raises(UserError, match=r"^loss is not finite at step \d of ft seed=0 .*Lower lr"):
        work = tmp_path / "work"
        work.mkdir()
        trainer.tune(
            work, BASE, TARGET, POOL, tuning=tuning_of("ft", lr=1e30), execution=replace(EXECUTION, devices=2),
            label="ft seed=0",
        )  # fmt: skip


def children(pid: int) -> list[int]:
    """Processes below one, nearest first."""
    own = [int(i) for i in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*own, *(below for one in own for below in children(one))]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "parent"])
def test_a_killed_run_resumes_to_the_same_result(tmp_path, victim):
    """SIGKILL of one process, or of the one that started them, behind the first checkpoint."""
    how = {"checkpoint_minutes": 1e-9}
    work = tmp_path / "killed"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path\n"
        f"import test_distributed as t; t.run(Path({str(work)!r}), 'cf_kl', devices=2, how={how!r})"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while not (work / "checkpoint.safetensors").exists():
        assert starter.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    below = children(starter.pid)
    assert len(below) >= 3  # torchrun and two
    os.kill(below[-1] if victim == "rank" else starter.pid, signal.SIGKILL)
    errors = starter.communicate()[1]
    if victim == "rank":
        assert "a training process was killed" in errors.splitlines()[-1]
    while any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text() for pid in below):
        assert time.monotonic() < end, "processes outlive the one that started them"
        time.sleep(0.2)
    assert not (work / "log.parquet").exists()
    same(run(tmp_path / "whole", "cf_kl", devices=1), run(work, "cf_kl", devices=2))
