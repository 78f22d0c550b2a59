"""A step's lock: others wait for its holder as long as that shows signs of life."""

from __future__ import annotations

import threading
import time

import pytest
from filelock import FileLock

from cfutils.errors import UserError
from cfutils.pipeline import locks


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "SILENT", 0.5)


def test_a_holder_that_lives_is_waited_for(tmp_path, quick, capsys):
    """It holds the lock for three times as long as a silent one would be waited for."""
    path, order = tmp_path / ".lock-1", []
    held = threading.Event()

    def holder():
        with locks.hold(path, "tuned ft"):
            held.set()
            time.sleep(1.5)
            order.append("holder")

    thread = threading.Thread(target=holder)
    thread.start()
    held.wait()
    with locks.hold(path, "tuned ft"):
        order.append("other")
    thread.join()
    assert order == ["holder", "other"]
    assert capsys.readouterr().out == "wait: another process builds tuned ft\n"


def test_nobody_waits_for_ever_for_a_holder_without_signs_of_life(tmp_path, quick):
    path = tmp_path / ".lock-1"
    with FileLock(path), pytest.raises(UserError, match=r"tuned ft.*no sign of life.*delete .*lock-1"), \
            locks.hold(path, "tuned ft"):  # fmt: skip
        pass
    with locks.hold(path, "tuned ft"):
        pass


def test_a_deleted_lock_frees_those_who_wait(tmp_path, quick):
    path = tmp_path / ".lock-1"
    with FileLock(path):
        timer = threading.Timer(0.2, path.unlink)
        timer.start()
        with locks.hold(path, "tuned ft"):
            assert not timer.is_alive()
