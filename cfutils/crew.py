"""Builders side by side: processes that share out what a study lacks, each on its own cores.

A small model does not get faster with more cores, many small runs do. Each process takes a unit (a run
and its scores, say), builds it through the store, whose locks keep two from building one thing, and
takes the next. Processes live as long as this one and no longer. Trade-off: a process has one thread
where another setting has two, so rounding may differ in the last digits between settings of `workers`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from cfutils.errors import UserError
from cfutils.profiles import Profile
from cfutils.steps import Steps
from cfutils.store import Store, say


def build(profile: Profile, study: str, units: Sequence[Sequence[str]]) -> None:
    """Build units (keys of steps of the study, in order) by `profile.workers` processes.

    Raises what a builder raised, once the units under way have ended; what was built stays.
    """
    try:
        tasks = _submit(profile, study, units)
    except BrokenProcessPool:  # a process died while nothing was built
        _pool.cache_clear()
        tasks = _submit(profile, study, units)
    failed: BaseException | None = None
    try:
        for done in as_completed(tasks):
            failed = failed or _tell(done, tasks)
    except KeyboardInterrupt:
        _cancel(tasks)
        raise
    if failed:
        raise failed


def _submit(profile: Profile, study: str, units: Sequence[Sequence[str]]) -> list[Future]:
    pool = _pool(profile.workers)
    return [pool.submit(_unit, profile, study, tuple(keys)) for keys in units]


def _tell(done: Future, tasks: list[Future]) -> BaseException | None:
    """Print what a unit built, or return why it failed and call the rest off."""
    if done.cancelled():
        return None
    error = done.exception()
    if error is None:
        for line in done.result():
            say(line)
        return None
    _cancel(tasks)
    if isinstance(error, BrokenProcessPool):
        _pool.cache_clear()
        return UserError(
            "a builder process died, for want of memory perhaps. What was built stays: run again, with "
            "a smaller `workers` in the profile if it happens twice."
        )
    return error


def _cancel(tasks: list[Future]) -> None:
    for task in tasks:
        task.cancel()


@functools.cache
def _pool(workers: int) -> ProcessPoolExecutor:
    threads = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(os.getpid(), threads)
    )


def _start(parent: int, threads: int) -> None:
    """Begin a process: quiet, with its share of the cores, and gone when its parent is."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_kept: dict[str, Steps] = {}
"""The steps of the last profile, whose workshop keeps the base loaded."""


def _unit(profile: Profile, study: str, keys: tuple[str, ...]) -> list[str]:
    """Build some steps of a study, in a process of the pool; return a line for each that was built."""
    if repr(profile) not in _kept:
        _kept.clear()
        _kept[repr(profile)] = Steps(profile, Store())
    steps = _kept[repr(profile)]
    known = {step.key: step for step in steps.study(study)}
    lines = []
    for key in keys:
        missing = {s.key: s for s in known[key].walk() if steps.store.find(s) is None}
        steps.store.ensure(known[key])
        for step in missing.values():
            record = steps.store.find(step).record
            lines.append(f"built {step.kind}: {step.label} in {record['seconds']:.0f} s")
    return lines
