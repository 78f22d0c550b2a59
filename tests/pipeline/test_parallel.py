"""Builders side by side: what they build is what one process builds, and failures are reported."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pandas as pd
import pytest

from cfutils import display, progress
from cfutils.errors import UserError
from cfutils.lab import Lab
from cfutils.pipeline import parallel
from cfutils.pipeline.builder import Builder
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import load

SMALL = {
    "n_train": 8, "n_heldout": 4, "n_generate": 4, "n_probe": 2, "n_samples": 6, "n_contextual": 4,
    "max_tokens": 12, "limit": 2, "epochs": 1, "retained": ["job", "category"], "seeds": [0],
    "recipes": ["ft", "cfs"],
}  # fmt: skip
EXECUTION = load("tiny").execution


def _write(work: Path, needs: dict, params: dict, session: object) -> dict:
    if params.get("die"):
        os._exit(1)
    if params.get("fail"):
        raise UserError("it cannot be done")
    (work / "pid").write_text(str(os.getpid()))
    return {"needs": sorted(needs)}


def _slowly(work: Path, needs: dict, params: dict, session: object) -> dict:
    with progress.task("tuning", total=20) as advance:
        for _ in range(20):
            time.sleep(0.1)
            advance()
    return {}


TEXT = Builder("text", 1, _write)


def step(name: str, *needs: Step, **params) -> Step:
    return Step(TEXT, {"name": name, **params}, {s.params["name"]: s for s in needs}, name)


def built(store: Store, *steps: Step) -> list[str]:
    return [s.params["name"] for s in steps if store.find_here(s)]


@pytest.fixture
def tree():
    """a <- b, c; b, c <- d; e stands alone."""
    a = step("a")
    b, c = step("b", a), step("c", a)
    return a, b, c, step("d", b, c), step("e")


def test_needs_are_built_first_in_other_processes(store, tree):
    lines = []
    parallel.build(tree[3:], store, EXECUTION, workers=2, report=lines.append)
    assert built(store, *tree) == list("abcde")
    assert store.find_here(tree[3]).notes == {"needs": ["b", "c"]}
    assert str(os.getpid()) not in {(store.place(s) / "pid").read_text() for s in tree}
    assert len(lines) == 5 and lines[0].startswith("built text: ")


def test_what_builders_are_at_is_shown_by_the_process_that_has_started_them(store, monkeypatch, capsys):
    monkeypatch.setattr(display, "PLAIN_EVERY", (0.5, 0.5))
    steps = [Step(Builder("text", 1, _slowly), {"n": n}, label=f"run {n}") for n in range(2)]
    parallel.build(steps, store, EXECUTION, workers=2)
    lines = capsys.readouterr().out.splitlines()
    shown = re.compile(r"run [01] · tuning \d+/20 · 0:0\d left · step 1 of 2 · 2 at once")
    assert any(map(shown.fullmatch, lines))
    assert {"built text: run 0 in 2 s", "built text: run 1 in 2 s"} < set(lines)
    assert display.others() == ([], 0)


def test_an_error_ends_the_work_and_what_was_built_stays(store):
    ok, bad = step("ok"), step("bad", fail=True)
    with pytest.raises(UserError, match="cannot be done"):
        parallel.build([ok, bad, step("after", bad)], store, EXECUTION, workers=2)
    assert store.find_here(bad) is None
    parallel.build([ok], store, EXECUTION, workers=2)
    assert built(store, ok) == ["ok"]


def test_with_go_on_only_what_depends_on_a_failure_is_left_out(store):
    bad = step("bad", fail=True)
    after, other = step("after", bad), step("other")
    ended = []

    def go_on(one, error):
        ended.append((one.params["name"], type(error)))
        return True

    parallel.build([bad, after, other], store, EXECUTION, workers=2, go_on=go_on)
    assert sorted(ended) == [("bad", UserError), ("other", type(None))]
    assert built(store, bad, after, other) == ["other"]


def test_go_on_may_end_the_work(store):
    steps = [step(f"s{i}") for i in range(6)]
    parallel.build(steps, store, EXECUTION, workers=1, go_on=lambda *_: False)
    assert built(store, *steps) == ["s0"]


def test_a_dead_process_is_reported_and_replaced(store):
    with pytest.raises(UserError, match="a builder process died"):
        parallel.build([step("x", die=True)], store, EXECUTION, workers=2)
    ok = step("ok")
    parallel.build([ok], store, EXECUTION, workers=2)
    assert built(store, ok) == ["ok"]


@pytest.mark.slow
def test_two_processes_build_what_one_does(tmp_path, capfd):
    def study(name, **changes):
        return Lab("tiny", store=Store(tmp_path / name), **(SMALL | changes)).study("methods")

    alone, together = study("alone", workers=1), study("side", workers=2)
    columns = ["recipe", "seed", "group", "task", "metric"]
    both = alone.scores.merge(together.scores, on=columns, suffixes=("", "_side"))
    assert len(both) == len(alone.scores) == len(together.scores)
    pd.testing.assert_series_equal(
        both["value"], both["value_side"], check_names=False, rtol=1e-3, atol=1e-3
    )
    assert "built tuned: ft" in capfd.readouterr().out


@pytest.mark.slow
def test_an_error_of_a_builder_comes_back(tmp_path):
    lab = Lab("tiny", store=Store(tmp_path), **(SMALL | {"workers": 2, "n_train": 3999}))
    with pytest.raises(UserError, match="n_train"):  # fewer are short enough
        lab.study("methods")
