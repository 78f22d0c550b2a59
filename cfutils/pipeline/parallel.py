"""Several processes that build side by side, each on its share of the cores.

A small model does not get faster with more cores, many small runs do. A step is submitted when everything it
needs is there. Trade-off: a process has one thread where a build alone has two, so rounding may differ in the
last digits between settings of `workers`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from cfutils import display, progress
from cfutils.errors import UserError
from cfutils.events import say
from cfutils.pipeline.session import Session
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import Execution

IDLE_SECONDS = 600
"""After which a process without work ends."""
_pools: list = []
"""The one pool of this process, once there is one."""


def build(
    steps: Iterable[Step],
    store: Store,
    execution: Execution,
    *,
    workers: int,
    go_on: Callable[[Step, BaseException | None], bool] | None = None,
    report: Callable[[str], None] = say,
) -> None:
    """Build what is missing for some steps, in order as far as possible.

    Raises what a builder raised once the steps under way have ended; what was built stays. With `go_on`,
    which is called when a step has ended (with its error, if it failed), failures end nothing but what depends
    on them, and the answer False ends the work.
    """
    waiting = {step.key: step for step in store.missing(steps)}
    threads = max(1, (os.cpu_count() or 1) // workers)
    env = {"OMP_NUM_THREADS": str(threads), **display.environment()}
    pool = get_reusable_executor(max_workers=workers, timeout=IDLE_SECONDS, env=env)
    _pools[:] = [pool]
    running: dict[Future, Step] = {}
    failed: BaseException | None = None
    try:
        with progress.task("step", total=len(waiting), alike=False) as advance:
            while waiting or running:
                for step in _ready(waiting, running, slots=workers - len(running)):
                    del waiting[step.key]
                    running[pool.submit(_build, step, store.folder, execution)] = step
                if not running:  # what is left depends on what failed
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    advance()
                    error = future.exception()
                    if error is None:
                        report(f"built {step.kind}: {step.label} in {future.result():.0f} s")
                    elif isinstance(error, BrokenProcessPool):
                        raise UserError(
                            "a builder process died, for want of memory perhaps. What was built stays: run again, "
                            "with a smaller `workers` in the profile if it happens twice."
                        ) from error
                    else:
                        failed = failed or error
                        _drop(step, waiting)
                        if go_on is None:
                            waiting.clear()
                    if go_on and not go_on(step, error):
                        waiting.clear()
    finally:
        for future in running:
            future.cancel()
    if failed and go_on is None:
        raise failed


def kill() -> None:
    """End the processes, if there are any; what they were building is resumed by the next build."""
    for pool in _pools:
        pool.shutdown(wait=False, kill_workers=True)


def _ready(waiting: dict[str, Step], running: dict[Future, Step], *, slots: int) -> list[Step]:
    """Return the first steps whose needs are all there."""
    pending = {*waiting, *(step.key for step in running.values())}
    found = []
    for step in waiting.values():
        if len(found) == slots:
            break
        if not any(need.key in pending for need in step.needs.values()):
            found.append(step)
    return found


def _drop(failed: Step, waiting: dict[str, Step]) -> None:
    """Give up what depends on a step that failed."""
    for key in [k for k, s in waiting.items() if any(n.key == failed.key for n in s.walk())]:
        del waiting[key]


_sessions: dict[str, Session] = {}
"""The session of this process, for the last way of execution."""


def _build(step: Step, folder: Path, execution: Execution) -> float:
    """Build one step in a process of the pool; return the seconds it took."""
    if repr(execution) not in _sessions:
        _sessions.clear()
        _sessions[repr(execution)] = Session(execution)
    with _silent():
        return Store(folder).ensure(step, _sessions[repr(execution)]).record["seconds"]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep a builder's progress lines, and those of libraries, off the terminal."""
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield
