"""Keys that follow content, artifacts that are built once, whole, and survive kills."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from cfutils import store as stores
from cfutils.errors import UserError
from cfutils.store import Step, Store


def text_step(text="hello", *, calls=None, needs=None, **settings):
    """A step that writes one file, and says so in `calls`."""

    def build(work, needs):
        if calls is not None:
            calls.append(text)
        (work / "text.txt").write_text(text + "".join(sorted(needs)), encoding="utf-8")
        return {"length": len(text)}

    return Step("text", {"text": text}, build, needs=needs or {}, label=f"text {text}", **settings)


# ---- keys


def test_a_key_is_the_digest_of_the_canonical_json():
    step = Step("thing", {"b": 2, "a": [1, None, 0.5]}, build=None)
    spelled = '{"code":{},"kind":"thing","needs":{},"params":{"a":[1,null,0.5],"b":2}}'
    assert stores.canonical(step.inputs) == spelled
    assert step.key == hashlib.sha256(spelled.encode()).hexdigest()[:20]
    assert step.key == "01069942d87b86e0b64d"


def test_a_key_does_not_depend_on_the_order_of_a_dict_or_on_the_label():
    one = Step("thing", {"a": 1, "b": 2}, build=None, label="one", weight_bytes=5)
    two = Step("thing", {"b": 2, "a": 1}, build=print, label="two")
    assert one.key == two.key


def test_a_key_changes_with_kind_params_needs_and_code():
    up, other = text_step("up"), text_step("other")
    steps = [
        Step("a", {"x": 1}, build=None),
        Step("b", {"x": 1}, build=None),
        Step("a", {"x": 2}, build=None),
        Step("a", {"x": 1}, build=None, needs={"up": up}),
        Step("a", {"x": 1}, build=None, needs={"up": other}),
        Step("a", {"x": 1}, build=None, needs={"down": up}),
        Step("a", {"x": 1}, build=None, code=("cfutils.errors",)),
        Step("a", {"x": 1}, build=None, code=("cfutils.paths",)),
    ]
    assert len({step.key for step in steps}) == len(steps)


def test_nan_is_refused():
    with pytest.raises(ValueError):
        stores.digest({"x": float("nan")})


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module's source; returns its code digest."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source):
        (tmp_path / "tiny_module.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        stores.code_digest.cache_clear()
        return stores.code_digest("tiny_module")

    yield write
    stores.code_digest.cache_clear()


def test_comments_docstrings_and_layout_do_not_change_a_code_digest(module):
    plain = module("RATE = 3\n\n\ndef f(x):\n    return x + 1\n")
    told = '"""Doc."""\n\nRATE = 3  # why\n"""What it is."""\n\n\ndef f(x):\n    """Add."""\n'
    assert module(told + "    return (x\n            + 1)\n") == plain
    classy = module("class A:\n    x: int = 1\n")
    assert module('class A:\n    """A."""\n\n    x: int = 1\n    """X."""\n') == classy


@pytest.mark.parametrize(
    "source",
    [
        "RATE = 4\n\n\ndef f(x):\n    return x + 1\n",
        "RATE = 3\n\n\ndef f(x):\n    return x + 2\n",
        "RATE = 3\n\n\ndef f(y):\n    return y + 1\n",
        'RATE = 3\n\n\ndef f(x):\n    print("x")\n    return x + 1\n',
    ],
)
def test_a_change_of_code_changes_the_digest(module, source):
    plain = module("RATE = 3\n\n\ndef f(x):\n    return x + 1\n")
    assert module(source) != plain


def test_a_missing_module_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"cfutils\.nothing"):
        stores.code_digest("cfutils.nothing")


# ---- build once


def test_built_once_then_reused_with_a_record(store, events):
    calls = []
    step = text_step(calls=calls)
    assert store.find(step) is None
    artifact = store.ensure(step)
    assert artifact.path == store.folder / "text" / step.key
    assert artifact.notes == {"length": 5}
    assert (artifact.path / "text.txt").read_text() == "hello"
    again = Store(store.folder).ensure(step)  # another process would see the same
    assert calls == ["hello"] and again == artifact
    record = json.loads((artifact.path / "record.json").read_text())
    assert record["inputs"] == step.inputs and record["key"] == step.key
    sha = hashlib.sha256(b"hello").hexdigest()
    assert record["files"] == {"text.txt": {"sha256": sha, "bytes": 5}}
    assert {"started", "seconds", "versions", "machine"} <= set(record)
    built, reused = events()
    assert built.pop("seconds") >= 0
    about = {"kind": "text", "key": step.key, "label": "text hello"}
    assert built == {"event": "built", **about} and reused == {"event": "reused", **about}


def test_what_is_needed_is_built_first_and_only_what_is_missing(store):
    calls = []
    a = text_step("a", calls=calls)
    b = text_step("b", calls=calls, needs={"a": a})
    c = text_step("c", calls=calls, needs={"a": a, "b": b})
    store.ensure(b)
    assert calls == ["a", "b"]
    store.ensure(c)
    assert calls == ["a", "b", "c"]
    assert [s.params["text"] for s in c.walk()] == ["a", "a", "b", "c"]


def test_no_events_without_the_variable(store, monkeypatch):
    monkeypatch.delenv("CFUTILS_EVENTS", raising=False)
    store.ensure(text_step())


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "record gone", "record cut"])
def test_a_damaged_artifact_is_built_again(store, damage, capsys):
    calls = []
    step = text_step(calls=calls)
    path = store.ensure(step).path
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
    again = Store(store.folder).ensure(step)
    assert calls == ["hello", "hello"]
    assert (again.path / "text.txt").read_text() == "hello"
    assert "damaged: text hello" in capsys.readouterr().out


def test_force_builds_again_what_is_older(store, monkeypatch):
    calls = []
    step = text_step(calls=calls)
    store.ensure(step)
    monkeypatch.setenv("CFUTILS_FORCE", str(time.time() + 60))
    Store(store.folder).ensure(step)
    assert len(calls) == 2
    monkeypatch.setenv("CFUTILS_FORCE", str(time.time() - 60))
    Store(store.folder).ensure(step)
    assert len(calls) == 2


def test_a_failed_build_leaves_no_artifact_and_no_lock(store):
    def fail(work, needs):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.ensure(Step("text", {"text": "hello"}, fail))
    assert store.find(text_step()) is None
    assert store.ensure(text_step()).notes == {"length": 5}


# ---- kills, other processes, full disks

CHUNKS = """
import os, signal, sys, time
from pathlib import Path
from cfutils.store import Step, Store

folder, mode = sys.argv[1:]

def build(work, needs):
    with open(Path(folder) / "calls", "a") as file:
        file.write("call\\n")
    if mode == "slow":
        time.sleep(1.5)
    for i in range(3):
        (work / f"chunk-{i}").write_text(str(i))
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

Store(Path(folder) / "runs").ensure(Step("chunks", {"n": 3}, build, label="chunks"))
"""


def child(tmp_path, mode):
    return subprocess.Popen([sys.executable, "-c", CHUNKS, str(tmp_path), mode])


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_build_killed_half_way_resumes_from_what_is_there(tmp_path):
    assert child(tmp_path, "kill").wait(60) == -signal.SIGKILL
    found = []

    def build(work, needs):
        found.extend(sorted(path.name for path in work.iterdir()))
        for i in range(1, 3):
            (work / f"chunk-{i}").write_text(str(i))

    store = Store(tmp_path / "runs")
    step = Step("chunks", {"n": 3}, build, label="chunks")
    assert store.find(step) is None  # half an artifact is none
    artifact = store.ensure(step)
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
        store.ensure(top)
    assert calls == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 6_600_000_000))
    store.check_disk([top])
    store.ensure(top)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))
    Store(store.folder).check_disk([top])  # nothing is missing: nothing is needed
