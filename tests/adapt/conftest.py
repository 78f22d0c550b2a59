"""A file of one's own, and a study of it as small as it gets, on the tiny random base."""

from __future__ import annotations

import json

import pytest

from cfutils.adapt import check, command

HOW = {"budget": 1e9, "keep": ("largest",), "columns": {}, "start_token": None, "lora": None, "n_seeds": 1,
       "dry_run": False, "command": ["cfutils", "adapt"]}  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    """48 items of one's own, 2 of them with a tag in the text."""
    path = tmp_path / "mine.jsonl"
    tags = ["<script>alert(1)</script>"] * 2 + [""] * 46
    items = [{"prompt": f"Say {i}", "completion": f" number {i}{tag}"} for i, tag in enumerate(tags)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def small(monkeypatch):
    """Every part as small as it gets."""
    monkeypatch.setattr(check.sizes, "MAX_TOKENS", 12)
    monkeypatch.setattr(check.sizes, "PROBE", 2)
    fit = check.sizes.fit

    def smaller(facts, *, budget):
        found = fit(facts, budget=budget)
        return check.sizes.replace(found, n_train=12, n_validation=2, n_heldout=4, epochs=1, limit=2)

    monkeypatch.setattr(check.sizes, "fit", smaller)


@pytest.fixture
def delivered(store, tiny_base, mine, small, tmp_path):
    out = tmp_path / "out"
    said = command.adapt(str(tiny_base), str(mine), str(out), **HOW)
    return out, said
