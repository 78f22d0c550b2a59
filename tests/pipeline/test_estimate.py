"""What is missing is estimated by like artifacts, from records made by hand."""

from __future__ import annotations

import json

import pytest

from cfutils import paths
from cfutils.pipeline import estimate
from cfutils.pipeline.builder import Builder
from cfutils.pipeline.estimate import HERE, Expected, expected, sentence
from cfutils.pipeline.results import export
from cfutils.pipeline.steps import Steps
from cfutils.pipeline.store import Artifact, Step, Store

BASE = Step(Builder("base", 1, None), {"hub": "a/b"})
OTHER = Step(Builder("base", 1, None), {"hub": "c/d"})
SHIPPED = "shipped, Abacus"


def tuned(n_train: int, base: Step = BASE, **tuning: object) -> Step:
    tuning = {"epochs": 3, "ratio": None, "seed": 0, **tuning}
    params = {"target": {"n_train": n_train}, "tuning": tuning}
    return Step(Builder("tuned", 1, None), params, {"base": base})


def samples(n: int, max_tokens: int, base: Step = BASE) -> Step:
    return Step(Builder("samples", 1, None), {"n": n, "max_tokens": max_tokens}, {"base": base})


def record(step: Step, seconds: float, n_bytes: int = 0) -> dict:
    return {
        "key": step.key, "inputs": step.inputs, "seconds": seconds, "started": "2026-01-01", "notes": {},
        "machine": {"cpu": "Abacus"}, "files": {"model.safetensors": {"bytes": n_bytes, "sha256": ""}},
    }  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout without shipped results."""
    monkeypatch.setenv("CFUTILS_ROOT", str(tmp_path))
    monkeypatch.setenv("CFUTILS_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def built(root):
    """Put the record of a step into the store."""

    def put(step: Step, seconds: float, n_bytes: int = 0) -> None:
        place = Store().place(step)
        place.mkdir(parents=True)
        (place / "record.json").write_text(json.dumps(record(step, seconds, n_bytes)))

    return put


@pytest.fixture
def shipped(root):
    """Ship the records of steps, in a folder of results."""

    def put(name: str, *found: tuple[Step, float]) -> None:
        artifacts = [Artifact(step.kind, step.key, record(step, seconds), path=root) for step, seconds in found]
        export(paths.results(name), artifacts, [], tokens=())

    return put


def seconds(step: Step) -> float | None:
    (one,) = expected([step], Store())
    return one.seconds


def test_seconds_and_bytes_are_those_of_as_much_work(built):
    """600 samples of 128 tokens, after 300 of 64 in 20 s: four times the tokens."""
    built(samples(300, 64), 20.0, 1000)
    (one,) = expected([samples(600, 128)], Store())
    assert one == Expected("samples", 80.0, 4000.0, HERE)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (tuned(300, seed=1), 30.0),
        (tuned(600), 60.0),
        (tuned(300, epochs=1), 10.0),
        (tuned(300, ratio=0.6), 75.0),  # six tenths are replay: all tokens are 1 / 0.4 of the target's
    ],
)
def test_tuning_takes_as_long_as_items_epochs_and_replay(built, step, wanted):
    built(tuned(300), 30.0)
    assert seconds(step) == pytest.approx(wanted)


def test_every_kind_of_a_real_profile_has_its_size(tiny_profile):
    """A size of None would be an unknown time although like artifacts are there."""
    steps = Steps(tiny_profile.change(estimated=["ft"]), Store())
    tops = [step for name in ("samples", "selection", "methods", "estimates") for step in steps.study(name)]
    tops.append(steps.pretrain())
    for step in Store().missing(tops):
        assert estimate._work(step.inputs) > 0, step.kind
    kinds = {step.kind for step in Store().missing(tops)}
    assert set(estimate.WORK) <= kinds


def test_all_items_of_a_task_are_no_size(built):
    def retained(limit):
        return Step(Builder("retained", 1, None), {"tasks": {"tasks": ["a"], "limit": limit}}, {"base": BASE})

    built(retained(10), 5.0)
    assert seconds(retained(20)) == 10.0 and seconds(retained(None)) is None
    built(retained(None), 90.0)
    assert seconds(retained(20)) == 10.0 and seconds(retained(None)) == 90.0


def test_of_like_artifacts_the_most_alike_count_and_their_median(built):
    for seed, took in enumerate((10.0, 12.0, 50.0)):  # one was disturbed
        built(tuned(300, seed=seed, loss="kl"), took)
    built(tuned(300, seed=3, loss="nll"), 4.0)
    assert seconds(tuned(300, seed=9, loss="kl")) == 12.0
    assert seconds(tuned(300, seed=9, loss="nll")) == 4.0


def test_an_artifact_of_another_base_or_kind_says_nothing(built):
    built(tuned(300, base=OTHER), 30.0)
    built(OTHER, 600.0)
    assert seconds(tuned(300)) is None and seconds(samples(10, 10)) is None and seconds(BASE) is None


def test_what_was_built_here_comes_before_what_ships(built, shipped):
    shipped("one", (tuned(300, loss="kl"), 100.0), (samples(10, 10), 7.0))
    assert expected([tuned(300, loss="kl")], Store()) == [Expected("tuned", 100.0, 0, SHIPPED)]
    built(tuned(300, loss="nll"), 30.0)
    assert expected([tuned(300, loss="kl")], Store()) == [Expected("tuned", 30.0, 0, HERE)]
    assert seconds(samples(20, 10)) == 14.0


def test_what_was_about_as_much_work_comes_before_what_was_built_here(built, shipped):
    """900 samples: 100 here are a ninth of it, 300 that ship are a third."""
    shipped("one", (samples(300, 10), 30.0))
    built(samples(100, 10), 20.0)
    assert expected([samples(800, 10)], Store()) == [Expected("samples", 160.0, 0, HERE)]
    assert expected([samples(900, 10)], Store()) == [Expected("samples", 90.0, 0, SHIPPED)]


def test_how_far_the_nearest_is_in_size_is_said(built):
    built(samples(100, 10), 20.0)
    built(samples(10, 10), 9.0)
    assert expected([samples(9000, 10)], Store()) == [Expected("samples", 1800.0, 0, f"{HERE}, much smaller")]
    assert expected([samples(1, 10)], Store()) == [Expected("samples", 0.9, 0, f"{HERE}, much larger")]


def test_weights_take_the_disk_that_the_step_states(built):
    built(tuned(300), 30.0, 5)
    step = Step(Builder("tuned", 1, None), tuned(600).params, {"base": BASE}, weight_bytes=6_000_000)
    assert expected([step], Store()) == [Expected("tuned", 60.0, 6_000_000, HERE)]
    new = Step(Builder("averaged", 1, None), {}, {"base": BASE}, weight_bytes=6_000_000)
    assert expected([new], Store()) == [Expected("averaged", None, 6_000_000)]


def test_a_damaged_record_is_none(built, root):
    built(tuned(300), 30.0)
    built(tuned(300, seed=1), 30.0)
    (Store().place(tuned(300)) / "record.json").write_text("{")
    (root / "runs" / "tuned" / ".work-x").mkdir()
    (root / "runs" / "tuned" / ".work-x" / "record.json").write_text(json.dumps(record(tuned(300), 1e6)))
    assert seconds(tuned(300, seed=2)) == 30.0


@pytest.mark.parametrize(
    ("found", "workers", "said"),
    [
        ([], 1, ""),
        ([Expected("tuned", 40.0, 6e6, HERE)], 2,
         "1 step is missing: about 40 s, measured on like steps (built here); 6 MB of disk"),
        ([Expected("tuned", 600.0, 6e8, HERE), Expected("samples", 1080.0, 6e8, SHIPPED)], 2,
         "2 steps are missing: about 14 min, measured on like steps (built here; shipped, Abacus); 1.2 GB of disk"),
        ([Expected("tuned", 7200.0, 0, SHIPPED), Expected("base", None, 0), Expected("pretrain", None, 0)], 1,
         "3 steps are missing: about 2.0 h for 1 of them, measured on like steps (shipped, Abacus); "
         "time unknown for 2 of them, nothing like them was measured (base, pretrain)"),
        ([Expected("base", None, 600e6)], 1,
         "1 step is missing: time unknown, nothing like it was measured (base); 600 MB of disk"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_is_known_and_on_what_it_rests(found, workers, said):
    assert sentence(found, workers=workers) == said
