"""What is pruned and when, what stays of it, and how much disk that takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
from filelock import FileLock

from cfutils import recipes
from cfutils.errors import UserError
from cfutils.pipeline import integrity, pruning
from cfutils.pipeline.builder import Builder
from cfutils.pipeline.pruning import Pruner
from cfutils.pipeline.steps import Steps
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import load
from cfutils.runner import notebook
from cfutils.studies import NOTEBOOKS

SESSION = None  # these builders load nothing
GB = 1_000_000_000


def _weights(work, needs, params, session):
    (work / "model.safetensors").write_bytes(b"w" * 100)
    (work / "adapter").mkdir()
    (work / "adapter" / "config.json").write_text("{}")
    (work / "log.parquet").write_bytes(b"log")


def _score(work, needs, params, session):
    assert (needs["model"].path / "model.safetensors").read_bytes() == b"w" * 100
    (work / "items.parquet").write_bytes(b"items")


def run(name, **needs):
    return Step(Builder("tuned", 1, _weights), {"name": name}, needs, name, weight_bytes=2 * GB)


def average(of):
    return Step(Builder("averaged", 1, _weights), {}, {"tuned": of}, f"average of {of.label}", weight_bytes=2 * GB)


def score(group, of):
    return Step(Builder(group, 1, _score), {}, {"model": of}, f"{group} of {of.label}")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def study():
    """Three runs with two scores each, in the order that a study lists them; the first is averaged too."""
    runs = [run("a"), run("b"), run("c")]
    runs.append(average(runs[0]))
    return runs, [score(group, one) for one in runs for group in ("target", "retained")]


def build(store, scores, keep, chosen=tuple):
    """Build as a lab does; return the most runs that have had their weights at one time."""
    pruner, most = Pruner(store, scores, keep, chosen), 0
    for step in pruning.in_order(store.missing(scores)):
        store.ensure_here(step, SESSION)
        most = max(most, len(list(store.folder.glob("*/*/model.safetensors"))))
        pruner.after(step)
    return most


def kept(store, runs):
    return [one.label for one in runs if store.find_here(one)]


def test_whatever_is_made_from_a_run_follows_it(store, study):
    labels = [step.label for step in pruning.in_order(store.missing(study[1]))]
    assert labels == [
        "a", "target of a", "retained of a", "average of a", "target of average of a", "retained of average of a",
        "b", "target of b", "retained of b", "c", "target of c", "retained of c",
    ]  # fmt: skip


def test_all_keeps_all(store, study):
    runs, scores = study
    assert build(store, scores, "all") == 4
    assert kept(store, runs) == ["a", "b", "c", "average of a"]


def test_last_keeps_the_latest_run(store, study):
    runs, scores = study
    assert build(store, scores, "last") == 2  # a run and its average, then the run before and the next
    assert kept(store, runs) == ["c"]
    assert Store(store.folder).missing(scores) == [] and all(store.find(one) for one in scores)


def test_recommended_keeps_what_is_chosen(store, study):
    runs, scores = study
    build(store, scores, "recommended", lambda: {runs[1].key})
    assert kept(store, runs) == ["b"]


def test_a_run_stays_until_all_that_is_going_to_be_read_is_there(store, study):
    runs, scores = study
    later = score("estimate", runs[0])
    pruner = Pruner(store, [*scores, later], "recommended")
    for step in pruning.in_order(store.missing(scores)):
        store.ensure_here(step, SESSION)
        pruner.after(step)
    assert kept(store, runs) == ["a"]
    store.ensure_here(later, SESSION)
    pruner.after(later)
    assert kept(store, runs) == []


def test_what_stays_of_a_pruned_run(store):
    one = run("a")
    record = store.ensure(one, SESSION).record
    assert store.prune(one) == 102  # 100 bytes of weights, 2 of the adapter's file
    place = store.place(one)
    assert sorted(path.name for path in place.iterdir()) == ["log.parquet", "pruned.json", "record.json"]
    assert json.loads((place / "record.json").read_text()) == record
    assert json.loads((place / "pruned.json").read_text())["bytes"] == 102
    fresh = Store(store.folder)
    assert fresh.find(one).record == record and fresh.find_here(one) is None


def test_pruned_is_not_damaged_but_a_pruned_run_can_be(store, capsys):
    one = run("a")
    store.ensure(one, SESSION)
    store.prune(one)
    assert Store(store.folder).find(one) and "damaged" not in capsys.readouterr().out
    (store.place(one) / "log.parquet").write_bytes(b"gol")
    assert Store(store.folder).find(one) is None
    assert "damaged: a" in capsys.readouterr().out


def test_pruned_weights_that_are_needed_again_are_built_again(store, capsys):
    one = run("a")
    store.ensure_here(score("target", one), SESSION)
    store.prune(one)
    store.ensure_here(score("retained", one), SESSION)
    assert "the weights of a are needed and built again, which took" in capsys.readouterr().out
    assert store.find_here(one) and not integrity.is_pruned(store.place(one))


def test_a_kill_while_pruning_leaves_a_run_that_is_pruned(tmp_path, store):
    """The process dies when the first file has gone: the run is pruned, not damaged, and the next pruning ends it."""
    one = run("a")
    store.ensure(one, SESSION)
    place = store.place(one)
    code = (
        "import os, sys; from pathlib import Path; from cfutils.pipeline import integrity\n"
        "whole = Path.unlink\n"
        "def once(path, *a, **k):\n    whole(path, *a, **k)\n"
        "    if place in path.parents and '.part' not in path.name: os._exit(9)\n"
        "place = Path(sys.argv[1]); Path.unlink = once\n"
        "integrity.prune(place)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(place)], env={**os.environ}).returncode == 9
    assert len(integrity.weights(place)) == 1  # of two files one is left
    fresh = Store(store.folder)
    assert fresh.find(one) and fresh.find_here(one) is None
    fresh.prune(one)
    assert integrity.weights(place) == []


def test_a_run_that_another_process_builds_is_left_alone(store):
    one = run("a")
    store.ensure(one, SESSION)
    with FileLock(store.place(one).with_name(f".lock-{one.key}")):
        assert store.prune(one) == 0
    assert store.find_here(one)


def test_another_process_sees_that_weights_were_pruned(store):
    one, other = run("a"), Store(store.folder)
    store.ensure(one, SESSION)
    assert other.find_here(one)
    store.prune(one)
    assert other.find_here(one) is None
    other.ensure_here(score("target", one), SESSION)  # builds it again, and does not fail


def test_disk_that_a_policy_needs(study, store, monkeypatch):
    """Four models of 2 GB: all 8 GB. last: a run beside its average, or beside the one before, 4 GB; with two workers
    a third, 6 GB. recommended: two that are kept and a new one, 6 GB. A checkpoint of three times the largest: 6 GB
    more, so that `last` takes 10 GB."""
    scores = study[1]
    missing = store.missing(scores)
    assert pruning.peak_bytes(missing, "all") == 8 * GB
    assert pruning.peak_bytes(missing, "last") == 4 * GB
    assert pruning.peak_bytes(missing, "recommended") == 6 * GB
    assert pruning.peak_bytes(missing, "last", workers=2) == 6 * GB
    later = [score("estimate", study[0][1])]  # b stays: a run that is kept, b, and c
    assert pruning.peak_bytes(missing, "last", later=later) == 6 * GB
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 9 * GB))
    with pytest.raises(UserError, match="about 10 GB are needed"):
        store.check_disk(missing, 4 * GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 11 * GB))
    store.check_disk(missing, 4 * GB)


def test_many_runs_do_not_need_many_models(store):
    scores = [score("target", run(str(i))) for i in range(24)]
    assert pruning.peak_bytes(store.missing(scores), "last") == 4 * GB
    assert build(store, scores, "last") == 2


def test_studies_of_notebooks_are_those_that_the_notebooks_name():
    assert {one.number: one.studies for one in notebook.select(())} == NOTEBOOKS


def test_a_policy_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="keep_weights"):
        load("tiny", keep_weights="best")


def test_stored_states_of_the_base_are_part_of_the_disk_check(tiny_base):
    """300 items of 32 tokens, and 1.5 times as many of replay at a share of 0.6: 14,400 tokens, and the last
    matrix, each row of the base's width in fp32. Plain fine-tuning keeps none."""
    profile = load("tiny", base=str(tiny_base))
    steps = Steps(profile, Store())
    config = json.loads((tiny_base / "config.json").read_text())
    kl, plain = (steps.run(recipes.plan(profile, name, seed=0)) for name in ("cf_kl", "ft"))
    assert kl.work_bytes == pytest.approx((14_400 + config["vocab_size"]) * config["hidden_size"] * 4, abs=4)
    assert plain.work_bytes == 0
