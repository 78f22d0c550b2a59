"""What a process that builds for another one does: one step, or a share of one, with what it has loaded kept."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cfutils.pipeline.session import Session
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import Execution


class Built(NamedTuple):
    """How a step was built."""

    seconds: float
    node: str = ""
    """Name of the machine, where there are several."""


_sessions: dict[str, Session] = {}
"""The session of this process, for the last way of execution."""


def build(step: Step, folder: Path, execution: Execution) -> Built:
    """Build one step in the store of a folder."""
    with _silent():
        return Built(Store(folder).ensure_here(step, _session(execution)).record["seconds"])


def build_share(step: Step, folder: Path, execution: Execution, share: tuple[int, int]) -> None:
    """Build the i-th of n shares of a step (`Builder.shares`) in its work folder; its needs are there."""
    store, session = Store(folder), _session(execution)
    needs = {role: store.ensure_here(need, session) for role, need in step.needs.items()}
    with _silent():
        try:
            store.work_on(dataclasses.replace(step, local={**step.local, "share": share}), needs, session)
        except OSError:
            if store.find_here(step) is None:  # else another process has just finished the whole step
                raise


def release() -> None:
    """Free what this process has loaded."""
    for session in _sessions.values():
        session.release()
    _sessions.clear()


def _session(execution: Execution) -> Session:
    if repr(execution) not in _sessions:
        release()
        _sessions[repr(execution)] = Session(execution)
    return _sessions[repr(execution)]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep a builder's progress lines, and those of libraries, off the terminal."""
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield
