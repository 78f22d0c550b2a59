"""The lock of a step: one process builds it, whichever machine it runs on.

The lock is the system's (flock), which lets go when its holder dies. Where the holder's machine died, the server of a
shared file system lets go once the machine's lease has run out (NFS 4, GPFS, Lustre: about a minute or two). NFS 3
waits until that machine is back, so nobody waits for ever: the holder gives a sign of life, and whoever has waited
without seeing one raises.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cfutils.errors import UserError
from cfutils.events import say
from cfutils.units import duration

BEAT = 30.0
"""Seconds between two signs of life: the lock file is touched."""
SILENT = 900.0
"""Seconds without one after which the holder is taken for dead."""


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock, waiting for it first. Raises `UserError` if it is held and its holder shows no sign of life."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"wait: another process builds {what}")
        _wait(lock, path, what)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), name="cfutils-lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        lock.release()


def _wait(lock: FileLock, path: Path, what: str) -> None:
    seen, since = None, time.monotonic()
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=BEAT)
            return
        with suppress(OSError):
            touched = path.stat().st_mtime_ns  # compared with itself alone: clocks of machines differ
            if touched != seen:
                seen, since = touched, time.monotonic()
        if time.monotonic() - since > SILENT:
            raise UserError(
                f"{what}: the process that builds it has shown no sign of life for {duration(SILENT)}. End it, or if "
                f"its machine is gone, delete {path}; then give the same command again."
            )


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)
