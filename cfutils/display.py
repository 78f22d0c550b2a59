"""Where the open tasks of `progress` are shown, and in which words.

On a terminal they are a line that is rewritten in place. In Jupyter they are a bar that is taken away at the end: no
widget, which papermill would keep half full (nteract/papermill#617). Into a file or a pipe a plain line is written now
and then. A process that was started with `environment()` shows nothing: it keeps its tasks in a file, for the process
that has started it. A thread draws, so that no loop waits for a terminal.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import html
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from tqdm.utils import disp_len, disp_trim

from cfutils import atomic
from cfutils.units import duration

VARIABLE = "CFUTILS_PROGRESS"
"""The folder where processes that another one has started keep their tasks."""
PARENT = "CFUTILS_PROGRESS_PARENT"
"""The process whose task theirs is part of, where a launcher stands between the two."""
PLAIN_EVERY = (10.0, 600.0)
"""Seconds between two plain lines, at least and at most; in between a twentieth of the time that has passed."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What has been done of a task; times in seconds since the epoch."""

    what: str
    total: float | None
    """None: nobody knows how much there is."""
    unit: str
    done: float
    rate: float | None
    """Units a second, where that is known."""
    note: str
    begun: float
    updated: float

    def left(self, now: float) -> float | None:
        """Return the seconds still needed at the measured speed; None where that is unknown.

        Between two updates it falls, by the time of one unit at most: a loop that hangs is never about to end.
        """
        if not self.total or not self.rate:
            return None
        return max(0.0, (self.total - self.done) / self.rate - min(now - self.updated, 1 / self.rate))

    def shown(self, now: float) -> str:
        """Return the task in words, as the innermost one."""
        if self.total is None:
            words = f"{self.what} · {duration(now - self.begun)}"
        else:
            words = f"{self.what} {self.done:,.0f}/{self.total:,.0f}{self.unit and f' {self.unit}'}"
            if (left := self.left(now)) is not None:
                words += f" · {duration(left)} left"
        return f"{words} · {self.note}" if self.note else words


def words(tasks: list[State], *, more: int = 0, width: int | None = None, now: float | None = None) -> str:
    """Return open tasks, outermost first, as one line: names, how far the innermost is, then those around it.

    more: how many further processes are at work.
    width: columns that there are; the note, then outer names are left out where the line would be longer.
    """
    now, inner = time.time() if now is None else now, tasks[-1]
    names = [one.what for one in tasks[:-1] if one.total is None]
    around = [
        f"{one.what} {min(one.done + 1, one.total):,.0f} of {one.total:,.0f}"
        for one in reversed(tasks[:-1])
        if one.total is not None
    ] + ([f"{more + 1} at once"] if more else [])
    noted, bare = inner.shown(now), replace(inner, note="").shown(now)
    for some, core in [(names, noted), *((names[n:], bare) for n in range(len(names) + 1))]:
        text = "".join(c if c.isprintable() else " " for c in " · ".join([*some, core, *around]))
        if width is None or disp_len(text) <= width:
            return text
    return disp_trim(text, width)


def environment() -> dict[str, str]:
    """Return the variables with which a process is started whose tasks are to be shown by this one."""
    return {VARIABLE: os.environ.get(VARIABLE) or str(_folder())}


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cfutils-progress-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _has_folder() -> bool:
    return bool(_folder.cache_info().currsize)


def others() -> tuple[list[State], int]:
    """Return the open tasks of a process that this one has started, of one that that one has started, and so on.

    Of several the one that has been at it longest is followed; how many more there are is returned too.
    """
    found: dict[int, list[tuple[float, int, list[State]]]] = {}
    for path in _folder().glob("*.json") if _has_folder() else ():
        with contextlib.suppress(OSError, ValueError):  # it is gone, or its process is
            os.kill(int(path.stem), 0)
            kept = json.loads(path.read_text(encoding="utf-8"))
            tasks = [State(**one) for one in kept["tasks"]]
            found.setdefault(kept["parent"], []).append((tasks[0].begun, int(path.stem), tasks))
    tasks, more, pid = [], 0, os.getpid()
    while below := found.pop(pid, None):
        _, pid, own = min(below, key=lambda one: one[:2])
        tasks, more = tasks + own, more + len(below) - 1
    return tasks, more


def in_notebook() -> bool:
    """Whether this is the kernel of somebody's notebook (not of one that the suite executes by itself)."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return hasattr(shell, "kernel") and VARIABLE not in os.environ


def here(tasks: Callable[[], list[State]]) -> Display:
    """Return the display of this process, which shows what `tasks()` returns, outermost first, until it is closed."""
    folder = os.environ.get(VARIABLE)
    if folder and not (_has_folder() and Path(folder) == _folder()):
        return File(tasks, Path(folder))
    if in_notebook():
        return Bar(tasks)
    if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return Line(tasks)
    return Plain(tasks)


class Display:
    """Shows tasks every so often, in a thread of its own."""

    every = 1.0
    """Seconds between two states."""

    def __init__(self, tasks: Callable[[], list[State]]) -> None:
        self._tasks, self._closed = tasks, threading.Event()
        self._thread = threading.Thread(target=self._run, name="cfutils-progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            while not self._closed.wait(self.every):
                if tasks := self._tasks():
                    self.show(tasks)

    def show(self, tasks: list[State]) -> None:
        """Show the tasks of this process, and those of processes that it has started."""

    def clear(self) -> None:
        """Take away what is shown."""

    def close(self) -> None:
        """Stop, and leave no trace."""
        self._closed.set()
        try:
            self._thread.join()
        finally:
            self.clear()


class Line(Display):
    """One line of a terminal, rewritten in place; whatever else is printed goes above it."""

    every = 0.25

    def __init__(self, tasks: Callable[[], list[State]]) -> None:
        self._stream, self._shown, self._screen = sys.stdout, "", threading.RLock()
        self._midline = False
        """Whether text was printed without the end of its line, which is not drawn over."""
        self._streams = {}
        for name in ("stdout", "stderr"):
            if (stream := getattr(sys, name)).isatty():
                self._streams[name] = stream, _Above(stream, self)
                setattr(sys, name, self._streams[name][1])
        super().__init__(tasks)

    def show(self, tasks: list[State]) -> None:
        below, more = others()
        text = words(tasks + below, more=more, width=shutil.get_terminal_size().columns - 1)
        with self._screen:
            if text != self._shown and not self._midline:
                self._stream.write(f"\r{text}\x1b[K")
                self._stream.flush()
                self._shown = text

    def clear(self) -> None:
        with self._screen:
            if self._shown:
                self._erase()

    def _erase(self) -> None:
        self._stream.write("\r\x1b[K")
        self._stream.flush()
        self._shown = ""

    def print(self, stream: TextIO, text: str) -> int:
        """Print above the line, which comes back in its next state."""
        with self._screen:
            if not self._midline:  # also where no line is shown: the terminal may have echoed ^C
                self._erase()
            self._midline = not text.endswith("\n") if text else self._midline
            return stream.write(text)

    def close(self) -> None:
        try:
            super().close()
        finally:
            for name, (stream, above) in self._streams.items():
                if getattr(sys, name) is above:
                    setattr(sys, name, stream)


class _Above:
    """A stream of a terminal that is written above its line."""

    def __init__(self, stream: TextIO, line: Line) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        return self._line.print(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Bar(Display):
    """An output of a Jupyter cell that is updated in place, and is empty in the end."""

    def __init__(self, tasks: Callable[[], list[State]]) -> None:
        self._output = None
        super().__init__(tasks)

    def show(self, tasks: list[State]) -> None:
        from IPython.display import display

        below, more = others()
        tasks = tasks + below
        text, inner = words(tasks, more=more), tasks[-1]
        bar = f'<progress max="{inner.total}" value="{inner.done}"></progress> ' if inner.total else ""
        bundle = {"text/plain": text, "text/html": bar + html.escape(text)}
        if self._output is None:
            self._output = display(bundle, raw=True, display_id=True)
        else:
            self._output.update(bundle, raw=True)

    def clear(self) -> None:
        if self._output is not None:
            self._output.update({}, raw=True)


class Plain(Display):
    """Lines that stay, more and more seldom the longer it takes."""

    def __init__(self, tasks: Callable[[], list[State]]) -> None:
        self._stream, self._begun = sys.stdout, time.monotonic()
        self._next = self._begun + PLAIN_EVERY[0]
        super().__init__(tasks)

    def show(self, tasks: list[State]) -> None:
        if (now := time.monotonic()) >= self._next:
            below, more = others()
            self._stream.write(words(tasks + below, more=more) + "\n")  # in one piece, as `events.say` does
            self._stream.flush()
            least, most = PLAIN_EVERY
            self._next = now + min(max(least, (now - self._begun) / 20), most)


class File(Display):
    """A file with the tasks of this process, for the one that has started it."""

    every = 0.5

    def __init__(self, tasks: Callable[[], list[State]], folder: Path) -> None:
        self._path, self._kept = folder / f"{os.getpid()}.json", ""
        self._parent = int(os.environ.get(PARENT) or os.getppid())
        super().__init__(tasks)

    def show(self, tasks: list[State]) -> None:
        text = json.dumps({"parent": self._parent, "tasks": [asdict(one) for one in tasks]})
        if text != self._kept:
            atomic.write_text(self._path, text)
            self._kept = text

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)
