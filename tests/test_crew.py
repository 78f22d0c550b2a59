"""Builders side by side: what they build is what one process builds, and what goes wrong is told."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool

import pandas as pd
import pytest

from cfutils import crew
from cfutils.errors import UserError
from cfutils.lab import Lab
from cfutils.store import Store

SMALL = {
    "n_train": 8, "n_heldout": 4, "n_generate": 4, "n_probe": 2, "n_samples": 6, "n_contextual": 4,
    "max_tokens": 12, "limit": 2, "epochs": 1, "retained": ["job", "category"], "seeds": [0],
    "recipes": ["ft", "cfs"],
}  # fmt: skip


def lab(folder, **changes) -> Lab:
    return Lab("tiny", store=Store(folder), **(SMALL | changes))


@pytest.fixture(autouse=True)
def fresh_pool(monkeypatch, tmp_path):
    monkeypatch.setenv("CFUTILS_RUNS", str(tmp_path / "side"))
    crew._pool.cache_clear()
    yield
    crew._pool.cache_clear()


@pytest.mark.slow
def test_two_processes_build_what_one_does(tmp_path, capfd):
    alone = lab(tmp_path / "alone", workers=1).study("methods")
    together = lab(tmp_path / "side", workers=2).study("methods")
    columns = ["recipe", "seed", "group", "task", "metric"]
    both = alone.scores.merge(together.scores, on=columns, suffixes=("", "_side"))
    assert len(both) == len(alone.scores) == len(together.scores)
    pd.testing.assert_series_equal(
        both["value"], both["value_side"], check_names=False, rtol=1e-3, atol=1e-3
    )
    assert "built run: ft" in capfd.readouterr().out


@pytest.mark.slow
def test_an_error_of_a_builder_comes_back(tmp_path):
    broken = lab(tmp_path / "side", workers=2, n_train=3999)  # fewer are short enough
    with pytest.raises(UserError, match="n_train"):
        broken.study("methods")


@pytest.mark.slow
def test_a_dead_builder_is_told_and_replaced(tmp_path):
    one = lab(tmp_path / "side", workers=2)
    dying = crew._pool(2).submit(os._exit, 1)
    with pytest.raises(BrokenProcessPool):
        dying.result()
    assert one.study("methods").scores["recipe"].nunique() == 3
