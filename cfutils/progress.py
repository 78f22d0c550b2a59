"""One live line for everything long: what, how far, how long still.

    with progress.task("tuning", total=96) as advance:
        for batch in batches:
            ...
            advance()

Open tasks (a notebook, a step, an inner loop, of all threads and of the processes that they have started) are one line:

    03 forgetting analysis · cfs seed=0 · tuning 41/96 · 1:20 left · step 5 of 31

`display` shows it. Loops do nothing but count: tqdm's counter, with its moving average of the speed. As long as a task
is open, bars of other libraries, which are tqdm's, are not drawn.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from cfutils import display
from cfutils.display import Display, State

Advance = Callable[..., None]
"""`advance(n=1, note=None)`: so much more is done (fractions are fine); a note says something about it."""
SMOOTHING = 0.1
"""Weight of the newest second, or unit if it takes longer, in the average speed."""


class _Counter(tqdm):
    """tqdm's counter and average, without a bar."""

    monitor_interval = 0

    def __init__(self, what: str, total: float | None, unit: str, done: float, alike: bool) -> None:
        super().__init__(
            desc=what, total=total, unit=unit, initial=done, smoothing=SMOOTHING, mininterval=1.0, miniters=0,
            gui=True, disable=False,
        )  # fmt: skip
        self.note, self.alike = "", alike

    def display(self, *_: Any, **__: Any) -> None:
        """Draw nothing."""

    def advance(self, n: float = 1, note: str | None = None) -> None:
        if note is not None:
            self.note = note
        self.update(n)

    def state(self) -> State:
        rate = self.format_dict["rate"] if self.alike else None
        if self.alike and rate is None and self.n > self.initial:  # there is no average yet
            rate = (self.n - self.initial) / max(time.time() - self.start_t, 1e-6)
        return State(
            what=self.desc, total=None if self.total is None else float(self.total), unit=self.unit,
            done=float(self.n), rate=rate, note=self.note, begun=self.start_t, updated=self.last_print_t,
        )  # fmt: skip


_open: dict[int, list[_Counter]] = {}
"""Open tasks of each thread, outermost first."""
_display: Display | None = None
"""Shows them, as long as there are any."""
_lock = threading.RLock()


@contextlib.contextmanager
def task(
    what: str, total: float | None = None, *, unit: str = "", done: float = 0, alike: bool = True
) -> Iterator[Advance]:
    """Show a task while it is open; yields `advance`.

    total: how much there is to do, in `unit`s (a plural, left out where `what` says it); None if nobody knows.
    done: what an earlier run has done of it, which does not count for the speed.
    alike: whether each unit takes about as long as any other; else it is not said how much time is left.
    """
    global _display
    counter, thread = _Counter(what, total, unit, done, alike), threading.get_ident()
    with _lock:
        _open.setdefault(thread, []).append(counter)
        if _display is None:
            tqdm.__init__ = _undrawn(tqdm.__init__)
            _display = display.here(_states)
    try:
        yield counter.advance
    finally:
        with _lock:
            _open[thread].remove(counter)
            if not _open[thread]:
                del _open[thread]
            if not _open:
                closed, _display = _display, None
                tqdm.__init__ = tqdm.__init__.__wrapped__
                closed.close()
        counter.close()


def ignore(n: float = 1, note: str | None = None) -> None:
    """An `advance` of a task that nobody shows."""


def rewrites() -> bool:
    """Whether open tasks are shown by a line or a bar that is rewritten, and not by lines that stay."""
    return isinstance(_display, display.Line | display.Bar)


def _states() -> list[State]:
    """Return the open tasks of this process; a copy, for its threads go on."""
    return [counter.state() for stack in list(_open.values()) for counter in list(stack)]


def _undrawn(init: Callable[..., None]) -> Callable[..., None]:
    """Return tqdm's constructor such that bars are not drawn."""

    @functools.wraps(init)
    def wrapped(self: tqdm, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **(kwargs if isinstance(self, _Counter) else {**kwargs, "disable": True}))

    return wrapped
