"""Building what notebooks need while they run, by several processes (profiles with `workers` above 1, a cluster).

Without it each notebook would start processes of its own and wait for them before drawing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Self

from cfutils.pipeline import parallel
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import Profile


class Ahead:
    """A thread that builds the steps of several notebooks in their order; a context manager.

    A step that fails is left to its notebook, which builds it again and reports the error.
    """

    def __init__(
        self, needs: Sequence[list[Step]], profile: Profile, store: Store, report: Callable[[str], None]
    ) -> None:
        """`needs` holds what each notebook reads."""
        missing = [{step.key: step for step in store.missing(tops)} for tops in needs]
        steps = {key: step for own in missing for key, step in own.items()}
        self._pending, taken = [set(own) for own in missing], set()
        self.built: list[set[str]] = [set() for _ in needs]
        """Keys of what was built for each notebook."""
        self._owner = {}
        for number, keys in enumerate(self._pending):
            self._owner |= {key: number for key in keys - taken}
            taken |= keys
        self._ready = [threading.Event() for _ in needs]
        self._stopped = False
        self._mark(None)
        self._thread = threading.Thread(
            target=self._run, args=(list(steps.values()), profile, store, report), daemon=True
        )

    def wait(self, number: int) -> None:
        """Wait until all that a notebook needs is built, or has failed."""
        while not self._ready[number].wait(1.0):  # in short waits, so that an interrupt gets through
            if not self._thread.is_alive():
                return

    def _run(
        self, steps: list[Step], profile: Profile, store: Store, report: Callable[[str], None]
    ) -> None:
        try:
            if steps:
                from cfutils.studies import pruner  # and pandas, which `cfutils list` does without

                parallel.build(
                    steps, store, profile.execution, workers=profile.workers, go_on=self._ended,
                    report=report, pruner=pruner(profile, store, steps),
                )  # fmt: skip
        finally:
            for event in self._ready:
                event.set()

    def _ended(self, step: Step, error: BaseException | None) -> bool:
        if error is None:
            self.built[self._owner[step.key]].add(step.key)
            self._mark(step.key)
        else:  # what depends on it will never come
            for keys, event in zip(self._pending, self._ready, strict=True):
                if step.key in keys:
                    event.set()
        return not self._stopped

    def _mark(self, key: str | None) -> None:
        for keys, event in zip(self._pending, self._ready, strict=True):
            keys.discard(key)
            if not keys:
                event.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped = True
        if exc[0] is not None:
            parallel.kill()
        self._thread.join()
