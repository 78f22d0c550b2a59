"""Steps built side by side: in several processes of this machine, or on a cluster (`ray_cluster`).

A small model does not get faster with more cores, many small runs do. A step is submitted when everything it
needs is there. Trade-off: a process has its share of the cores where a build alone has all, so rounding may differ
in the last digits between settings of `workers`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Protocol

from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from cfutils import display, progress
from cfutils.errors import UserError
from cfutils.events import say
from cfutils.pipeline import ray_cluster, worker
from cfutils.pipeline.pruning import Pruner, in_order
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import Execution

IDLE_SECONDS = 600
"""After which a process without work ends."""


class Executor(Protocol):
    """Where steps are built."""

    slots: float
    """How many steps it takes at a time."""

    def submit(self, step: Step) -> Future[worker.Built]:
        """Begin to build a step whose needs are there."""

    def error(self, step: Step, error: BaseException) -> BaseException:
        """Return why a step was not built, given what its future raised; raises it where nothing else can be either."""

    def cancel(self, futures: Iterable[Future]) -> None:
        """Give up steps that were submitted."""

    def kill(self) -> None:
        """End whatever is under way; the next build resumes it."""


class Processes:
    """Processes of this machine, each on its share of the cores."""

    def __init__(self, folder: Path, execution: Execution, workers: int) -> None:
        threads = max(1, (os.cpu_count() or 1) // workers)
        env = {"OMP_NUM_THREADS": str(threads), **display.environment()}
        self.slots = workers
        self._pool = get_reusable_executor(max_workers=workers, timeout=IDLE_SECONDS, env=env)
        self._where = folder, execution

    def submit(self, step: Step) -> Future[worker.Built]:
        return self._pool.submit(worker.build, step, *self._where)

    def error(self, step: Step, error: BaseException) -> BaseException:
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a builder process died, for want of memory perhaps. What was built stays: run again, "
                "with a smaller `workers` in the profile if it happens twice."
            ) from error
        return error

    def cancel(self, futures: Iterable[Future]) -> None:
        for future in futures:
            future.cancel()

    def kill(self) -> None:
        self._pool.shutdown(wait=False, kill_workers=True)


_executors: list[Executor] = []
"""The one executor of this process, once there is one."""


def wanted(workers: int, steps: int) -> bool:
    """Whether so many steps are built by other processes than this one."""
    return ray_cluster.wanted() or min(workers, steps) > 1


def executor(folder: Path, execution: Execution, *, workers: int) -> Executor:
    """Return where the steps of a store are built: the cluster, if one is named, else `workers` processes.

    Raises `UserError` for a cluster that cannot build them.
    """
    found = (
        ray_cluster.Cluster(folder, execution, workers)
        if ray_cluster.wanted()
        else Processes(folder, execution, workers)
    )
    _executors[:] = [found]
    return found


def build(
    steps: Iterable[Step],
    store: Store,
    execution: Execution,
    *,
    workers: int,
    go_on: Callable[[Step, BaseException | None], bool] | None = None,
    report: Callable[[str], None] = say,
    pruner: Pruner | None = None,
) -> None:
    """Build what is missing for some steps, in order as far as possible; whatever is made from a run follows it.

    Raises what a builder raised once the steps under way have ended; what was built stays. With `go_on`,
    which is called when a step has ended (with its error, if it failed), failures end nothing but what depends
    on them, and the answer False ends the work.
    """
    waiting = {step.key: step for step in in_order(store.missing(steps))}
    where = executor(store.folder, execution, workers=workers)
    running: dict[Future[worker.Built], Step] = {}
    failed: BaseException | None = None
    try:
        with progress.task("step", total=len(waiting), alike=False) as advance:
            while waiting or running:
                for step in _ready(waiting, running, slots=where.slots - len(running)):
                    del waiting[step.key]
                    running[where.submit(step)] = step
                if not running:  # what is left depends on what failed
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    advance()
                    if (error := future.exception()) is None:
                        built = future.result()
                        on = f" on {built.node}" if built.node else ""
                        report(f"built {step.kind}: {step.label} in {built.seconds:.0f} s{on}")
                        if pruner:
                            pruner.after(step)
                    else:
                        error = where.error(step, error)
                        failed = failed or error
                        _drop(step, waiting)
                        if go_on is None:
                            waiting.clear()
                    if go_on and not go_on(step, error):
                        waiting.clear()
    finally:
        where.cancel(running)
    if failed and go_on is None:
        raise failed


def kill() -> None:
    """End what this process has others build, if anything; it is resumed by the next build."""
    for one in _executors:
        one.kill()


def _ready(waiting: dict[str, Step], running: dict[Future, Step], *, slots: float) -> list[Step]:
    """Return the first steps whose needs are all there."""
    pending = {*waiting, *(step.key for step in running.values())}
    found = []
    for step in waiting.values():
        if len(found) >= slots:
            break
        if not any(need.key in pending for need in step.needs.values()):
            found.append(step)
    return found


def _drop(failed: Step, waiting: dict[str, Step]) -> None:
    """Give up what depends on a step that failed."""
    for key in [k for k, s in waiting.items() if any(n.key == failed.key for n in s.walk())]:
        del waiting[key]
