"""Keys that follow content, artifacts that are built once, whole, and survive kills; shipped results beneath."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pandas as pd
import pytest

from cfutils import digests
from cfutils.errors import UserError
from cfutils.pipeline import provenance, results
from cfutils.pipeline.builder import Builder
from cfutils.pipeline.results import Shipped
from cfutils.pipeline.store import Rebuild, Step, Store

SESSION = None  # these builders load nothing


def text_step(text="hello", *, calls=None, needs=None, version=1, build=None, **settings):
    """A step that writes one file and one table, and notes its name in `calls`."""

    def write(work, needs, params, session):
        if calls is not None:
            calls.append(text)
        (work / "text.txt").write_text(text + "".join(sorted(needs)), encoding="utf-8")
        pd.DataFrame({"letter": list(text)}).to_parquet(work / "items.parquet")
        return {"length": len(text)}

    builder = Builder("text", version, build or write)
    return Step(builder, {"text": text}, needs or {}, f"text {text}", **settings)


# ---- keys


def test_a_key_is_the_digest_of_the_canonical_json():
    step = Step(Builder("thing", 3, None), {"b": 2, "a": [1, None, 0.5]})
    spelled = '{"kind":"thing","needs":{},"params":{"a":[1,null,0.5],"b":2},"version":3}'
    assert digests.canonical(step.inputs) == spelled
    assert step.key == hashlib.sha256(spelled.encode()).hexdigest()[:20]


def test_a_key_does_not_depend_on_order_label_place_or_code():
    one = Step(Builder("thing", 1, None), {"a": 1, "b": 2}, label="one", weight_bytes=5)
    two = Step(Builder("thing", 1, print), {"b": 2, "a": 1}, label="two", local={"path": "/x"})
    assert one.key == two.key


def test_a_key_changes_with_kind_version_params_and_needs():
    up, other = text_step("up"), text_step("other")
    a, b, newer = (Builder(k, v, None) for k, v in (("a", 1), ("b", 1), ("a", 2)))
    steps = [
        Step(a, {"x": 1}), Step(b, {"x": 1}), Step(newer, {"x": 1}), Step(a, {"x": 2}),
        Step(a, {"x": 1}, {"up": up}), Step(a, {"x": 1}, {"up": other}), Step(a, {"x": 1}, {"down": up}),
    ]  # fmt: skip
    assert len({step.key for step in steps}) == len(steps)


def test_nan_is_refused():
    with pytest.raises(ValueError):
        digests.digest({"x": float("nan")})


# ---- build once


def test_built_once_then_reused_with_a_record(store, events):
    calls = []
    step = text_step(calls=calls)
    assert store.find(step) is None
    artifact = store.ensure(step, SESSION)
    assert artifact.path == store.folder / "text" / step.key
    assert artifact.notes == {"length": 5}
    assert (artifact.path / "text.txt").read_text() == "hello"
    again = Store(store.folder).ensure(step, SESSION)  # another process would see the same
    assert calls == ["hello"] and again == artifact
    record = json.loads((artifact.path / "record.json").read_text())
    assert record["inputs"] == step.inputs and record["key"] == step.key
    sha = hashlib.sha256(b"hello").hexdigest()
    assert record["files"]["text.txt"] == {"sha256": sha, "bytes": 5}
    assert set(record["files"]) == {"text.txt", "items.parquet"}
    assert record["code"] == provenance.code_digest(__name__)
    assert {"started", "seconds", "versions", "machine", "code"} <= set(record)
    built, reused = events()
    assert built.pop("seconds") >= 0
    about = {"kind": "text", "key": step.key, "label": "text hello"}
    assert built == {"event": "built", **about}
    assert reused == {"event": "reused", **about, "shipped": False, "changed": []}


def test_what_is_needed_is_built_first_and_only_what_is_missing(store):
    calls = []
    a = text_step("a", calls=calls)
    b = text_step("b", calls=calls, needs={"a": a})
    c = text_step("c", calls=calls, needs={"a": a, "b": b})
    store.ensure(b, SESSION)
    assert calls == ["a", "b"]
    store.ensure(c, SESSION)
    assert calls == ["a", "b", "c"]
    assert [s.params["text"] for s in c.walk()] == ["a", "a", "b", "c"]


def test_no_events_without_the_variable(store, monkeypatch):
    monkeypatch.delenv("CFUTILS_EVENTS", raising=False)
    store.ensure(text_step(), SESSION)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "record gone", "record cut"])
def test_a_damaged_artifact_is_built_again(store, damage, capsys):
    calls = []
    step = text_step(calls=calls)
    path = store.ensure(step, SESSION).path
    if damage == "changed":
        (path / "text.txt").write_text("jello")
    elif damage == "cut":
        (path / "text.txt").write_text("hel")
    elif damage == "gone":
        (path / "text.txt").unlink()
    elif damage == "record gone":
        (path / "record.json").unlink()
    else:
        (path / "record.json").write_text('{"files": {')
    again = Store(store.folder).ensure(step, SESSION)
    assert calls == ["hello", "hello"]
    assert (again.path / "text.txt").read_text() == "hello"
    assert "damaged: text hello" in capsys.readouterr().out


def later(seconds=60.0, changed=None):
    return str(Rebuild(time.time() + seconds, changed))


def test_rebuild_builds_again_what_is_older(store, monkeypatch):
    calls = []
    step = text_step(calls=calls)
    store.ensure(step, SESSION)
    monkeypatch.setenv("CFUTILS_REBUILD", later())
    Store(store.folder).ensure(step, SESSION)
    assert len(calls) == 2
    monkeypatch.setenv("CFUTILS_REBUILD", later(-60))
    Store(store.folder).ensure(step, SESSION)
    assert len(calls) == 2


def age(artifact, **changes):
    """Let an artifact be older, made by other code, or with other versions."""
    path = artifact.path / "record.json"
    path.write_text(json.dumps({**artifact.record, **changes}))


@pytest.mark.parametrize(
    "wanted, changes, again",
    [
        ({"code"}, {"code": "other"}, ["b", "c"]),
        ({"versions"}, {"code": "other"}, []),
        ({"versions"}, {"versions": {"torch": "0"}}, ["b", "c"]),
        ({"code", "versions"}, {}, []),
    ],
)
def test_rebuild_changed_builds_what_changed_and_what_depends_on_it(
    store, monkeypatch, wanted, changes, again
):
    """a <- b <- c, and d <- a: other code made b."""
    calls = []
    a = text_step("a", calls=calls)
    b = text_step("b", calls=calls, needs={"a": a})
    c, d = text_step("c", calls=calls, needs={"b": b}), text_step("d", calls=calls, needs={"a": a})
    for step in (c, d):
        store.ensure(step, SESSION)
    age(store.find(b), **changes)
    calls.clear()
    monkeypatch.setenv("CFUTILS_REBUILD", later(changed=frozenset(wanted)))
    second = Store(store.folder)
    assert [s.params["text"] for s in second.missing([c, d])] == again
    for step in (c, d):
        second.ensure(step, SESSION)
    assert calls == again


def test_what_was_made_by_other_code_is_reused_and_reported(store, events):
    calls = []
    step = text_step(calls=calls)
    age(store.ensure(step, SESSION), code="other", versions={"torch": "0"})
    events()
    Store(store.folder).ensure(step, SESSION)
    assert calls == ["hello"] and events()[0]["changed"] == ["code", "versions"]


# ---- shipped results


@pytest.fixture
def shipped(store, tmp_path) -> Shipped:
    """Results of `b`, made from `a`, exported from a store that is gone afterwards."""
    b = text_step("b", needs={"a": text_step("a")})
    artifact = store.ensure(b, SESSION)
    folder = tmp_path / "results" / "tiny"
    sizes = results.export(folder, [artifact], [store.record(step) for step in b.walk()], tokens=())
    assert set(sizes) == {"records.parquet", "items.parquet"} and min(sizes.values()) > 0
    shutil.rmtree(store.folder)
    return Shipped(folder)


def test_a_shipped_table_is_read_and_nothing_upstream_is_built(store, shipped, events):
    calls = []
    b = text_step("b", calls=calls, needs={"a": text_step("a", calls=calls)})
    events()
    fresh = Store(store.folder, shipped)
    assert fresh.missing([b]) == []
    artifact = fresh.ensure(b, SESSION)
    assert artifact.path is None and artifact.notes == {"length": 1}
    assert artifact.table("items")["letter"].tolist() == ["b"]
    assert calls == [] and events()[0]["shipped"] is True
    day = artifact.record["started"][:10]
    assert str(shipped).startswith("made on ") and day in str(shipped)


def test_what_is_built_is_built_from_artifacts_of_this_machine(store, shipped):
    """c needs b, which is shipped as a table alone: both are built, and a below them."""
    calls = []
    b = text_step("b", calls=calls, needs={"a": text_step("a", calls=calls)})
    c = text_step("c", calls=calls, needs={"b": b})
    fresh = Store(store.folder, shipped)
    assert [s.params["text"] for s in fresh.missing([b, c])] == ["a", "b", "c"]
    fresh.ensure(c, SESSION)
    assert calls == ["a", "b", "c"]


def test_weights_have_a_record_and_no_tables(store, shipped):
    a = text_step("a")
    assert Store(store.folder, shipped).record(a)["label"] == "text a"
    assert not shipped.holds(a.key) and Store(store.folder, shipped).find(a) is None


def test_rebuild_ignores_shipped_results_and_rebuild_changed_those_of_today(
    store, shipped, monkeypatch
):
    b = text_step("b", needs={"a": text_step("a")})
    monkeypatch.setenv("CFUTILS_REBUILD", later())
    assert Store(store.folder, shipped).find(b) is None
    monkeypatch.setenv("CFUTILS_REBUILD", later(changed=frozenset({"code"})))
    assert Store(store.folder, shipped).find(b).shipped is shipped
    shipped.records[b.needs["a"].key]["code"] = "other"  # the code of what it was made from changed
    assert Store(store.folder, shipped).find(b) is None


def test_results_too_large_to_ship_change_nothing(store, tmp_path, monkeypatch):
    artifact = store.ensure(text_step(), SESSION)
    folder = tmp_path / "results" / "tiny"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    monkeypatch.setattr(results, "LIMIT", 100)
    with pytest.raises(UserError, match=r"at most 0\.0001 MB .* largest file is records\.parquet"):
        results.export(folder, [artifact], [], tokens=())
    assert [path.name for path in folder.iterdir()] == ["old"]


def test_prompts_of_others_do_not_ship(store, tmp_path):
    def write(work, needs, params, session):
        pd.DataFrame({"prompt_ids": [[1, 2, 3]], "text": ["own words"]}).to_parquet(
            work / "samples.parquet"
        )

    step = text_step(build=write)
    results.export(tmp_path / "r", [store.ensure(step, SESSION)], [], tokens=())
    assert list(Shipped(tmp_path / "r").table("samples", step.key)) == ["text"]


@pytest.mark.parametrize("ship", [True, False])
def test_scores_of_tokens_ship_only_where_they_are_shown(store, tmp_path, ship):
    def write(work, needs, params, session):
        for name in ("items", "tokens"):
            pd.DataFrame({"value": [1.0]}).to_parquet(work / f"{name}.parquet")

    step = text_step(build=write)
    results.export(tmp_path / "r", [store.ensure(step, SESSION)], [], tokens=[step.key] if ship else [])
    found = Shipped(tmp_path / "r")
    assert found.records[step.key]["tables"] == ["items", "tokens"][: 1 + ship]


def test_a_failed_build_leaves_no_artifact_and_no_lock(store):
    def fail(work, needs, params, session):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.ensure(text_step(build=fail), SESSION)
    assert store.find(text_step()) is None
    assert store.ensure(text_step(), SESSION).notes == {"length": 5}


# ---- kills, other processes, full disks

CHUNKS = """
import os, signal, sys, time
from pathlib import Path
from cfutils.pipeline.builder import Builder
from cfutils.pipeline.store import Step, Store

folder, mode = sys.argv[1:]

def build(work, needs, params, session):
    with open(Path(folder) / "calls", "a") as file:
        file.write("call\\n")
    if mode == "slow":
        time.sleep(1.5)
    for i in range(3):
        (work / f"chunk-{i}").write_text(str(i))
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

Store(Path(folder) / "runs").ensure(Step(Builder("chunks", 1, build), {"n": 3}, label="chunks"), None)
"""


def child(tmp_path, mode):
    return subprocess.Popen([sys.executable, "-c", CHUNKS, str(tmp_path), mode])


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_build_killed_half_way_resumes_from_what_is_there(tmp_path):
    assert child(tmp_path, "kill").wait(60) == -signal.SIGKILL
    found = []

    def build(work, needs, params, session):
        found.extend(sorted(path.name for path in work.iterdir()))
        for i in range(1, 3):
            (work / f"chunk-{i}").write_text(str(i))

    store = Store(tmp_path / "runs")
    step = Step(Builder("chunks", 1, build), {"n": 3}, label="chunks")
    assert store.find(step) is None  # half an artifact is none
    artifact = store.ensure(step, SESSION)
    assert found == ["chunk-0"]
    assert sorted(artifact.record["files"]) == ["chunk-0", "chunk-1", "chunk-2"]
    assert not list((tmp_path / "runs" / "chunks").glob(".work-*"))


def test_two_processes_at_once_build_once(tmp_path):
    children = [child(tmp_path, "slow") for _ in range(2)]
    assert [c.wait(60) for c in children] == [0, 0]
    assert (tmp_path / "calls").read_text() == "call\n"


def test_a_full_disk_is_told_before_anything_is_built(store, monkeypatch):
    """2 GB missing plus 3 x 1.5 GB for the checkpoint beside it = 6.5 GB."""
    Usage = namedtuple("Usage", "total used free")
    calls = []
    up = text_step("up", calls=calls, weight_bytes=500_000_000)
    top = text_step("top", calls=calls, needs={"up": up}, weight_bytes=1_500_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 6_400_000_000))
    with pytest.raises(UserError, match=r"6\.5 GB are needed .* 6\.4 GB are free.*CFUTILS_RUNS"):
        store.check_disk([top])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1_000_000_000))
    with pytest.raises(UserError, match="disk too full"):
        store.ensure(top, SESSION)
    assert calls == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 6_600_000_000))
    store.check_disk([top])
    store.ensure(top, SESSION)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))
    Store(store.folder).check_disk([top])  # nothing is missing: nothing is needed
