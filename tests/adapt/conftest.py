"""A file of one's own, a study of it as small as it gets on the tiny random base, and the command in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cfutils.adapt import check, command, deliver
from cfutils.profiles import Profile

HOW = {"budget": 1e9, "keep": ("largest",), "columns": {}, "start_token": None, "lora": None, "n_seeds": 1,
       "dry_run": False, "command": ["cfutils", "adapt"]}  # fmt: skip


def write_items(folder: Path) -> Path:
    """Write 48 items, 2 of them with a tag in the text."""
    path = folder / "mine.jsonl"
    tags = ["<script>alert(1)</script>"] * 2 + [""] * 46
    items = [{"prompt": f"Say {i}", "completion": f" number {i}{tag}"} for i, tag in enumerate(tags)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Make every part of a study as small as it gets."""
    patch.setattr(check.sizes, "MAX_TOKENS", 12)
    patch.setattr(check.sizes, "PROBE", 2)
    fit = check.sizes.fit

    def smaller(facts, *, budget):
        found = fit(facts, budget=budget)
        return check.sizes.replace(found, n_train=12, n_validation=2, n_heldout=4, epochs=1, limit=2)

    patch.setattr(check.sizes, "fit", smaller)


@pytest.fixture
def mine(tmp_path):
    """Items of one's own."""
    return write_items(tmp_path)


@pytest.fixture
def small(monkeypatch):
    """Small studies."""
    make_small(monkeypatch)


@pytest.fixture
def delivered(store, tiny_base, mine, small, tmp_path):
    out = tmp_path / "out"
    said = command.adapt(str(tiny_base), str(mine), str(out), **HOW)
    return out, said

ARGV = ["adapt", "--base", "shipped:tiny", "--data", "mine.jsonl", "--keep", "largest", "--lora", "4", "--out", "out"]
ASKED = {"base": "shipped:tiny", "data": "mine.jsonl", "budget": 1800.0, "keep": ["largest"], "columns": {},
         "start_token": None, "lora": 4, "seeds": 1}  # fmt: skip


class Adapt:
    """`cfutils adapt --lora` on the tiny base, as a person starts it: a process of its own, in a folder.

    The study that the command has fitted, a small one, is there already, so that the speed of the machine, by which it
    is fitted, decides nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.runs = folder, folder / "out", folder / "runs"
        rows = [{"prompt": f"Say {i}:", "completion": f" number {i}"} for i in range(48)]
        folder.mkdir(exist_ok=True)
        (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        profile = Profile(
            name="adapt-mine", about="mine.jsonl on shipped:tiny", base="shipped:tiny", target="mine.jsonl",
            retained=("largest",), recipes=("ft", "wise_ft"), alphas=(0.3, 0.7), ablation_recipes=("cfs", "cf_kl"),
            ratios=(0.3, 0.6), lr_factors=(1.0,), train="lora", strengths={"lora": 4}, lr=1.6e-2, n_train=12,
            n_validation=4, n_heldout=4, batch_size=4, n_samples=32, chunk=8, max_tokens=32, n_probe=8, limit=8,
            max_new_tokens=16, engine="transformers", notebooks=("09",),
        )  # fmt: skip
        deliver.begin(self.out, profile, ASKED, ["a small study"])

    def start(self, **how: Any) -> subprocess.Popen:
        """Start the command."""
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        env = {**os.environ, "CFUTILS_RUNS": str(self.runs), **threads}
        return subprocess.Popen(
            [sys.executable, "-m", "cfutils", *ARGV], cwd=self.folder, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
        )  # fmt: skip

    def run(self, **how: Any) -> tuple[int, str]:
        """Run the command to its end; return its exit code and what it says on stderr."""
        process = self.start(**how)
        said = process.communicate(timeout=600)[1]
        return process.returncode, said

    def delivered(self) -> dict[str, bytes]:
        """Every file that it wrote."""
        return {str(p.relative_to(self.out)): p.read_bytes() for p in sorted(self.out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def adapted(tmp_path_factory) -> Adapt:
    """The command, run to its end without an interruption."""
    whole = Adapt(tmp_path_factory.mktemp("whole"))
    code, said = whole.run()
    assert code == 0, said
    return whole
