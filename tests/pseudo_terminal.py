"""A real pseudo-terminal for tests: what a program writes to it, and what its screen shows in the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


class Terminal:
    """A program whose three streams are a terminal of so many columns; it leads a session of its own."""

    def __init__(self, argv: list[str], *, columns: int = 100, env: dict[str, str] | None = None) -> None:
        self.written = ""
        self._mine, theirs = pty.openpty()
        self.resize(columns)
        before = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CFUTILS_PROGRESS")}
        self.process = subprocess.Popen(
            argv, cwd=HERE, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**before, "TERM": "xterm", **(env or {})}, preexec_fn=_control,
        )  # fmt: skip
        os.close(theirs)

    def resize(self, columns: int) -> None:
        """Give the window another width."""
        fcntl.ioctl(self._mine, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text: str) -> None:
        """Press keys: "\\x03" is Ctrl-C."""
        os.write(self._mine, text.encode())

    def until(self, done: Callable[[str], bool], *, seconds: float = 60) -> str:
        """Read until what was written satisfies a condition, or the program has ended; return all that was written."""
        deadline = time.monotonic() + seconds
        data = self.written.encode()
        while not done(self.written) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # how the end of a terminal reads
                if piece := os.read(self._mine, 65536):
                    data += piece
                    self.written = data.decode(errors="ignore")
                    continue
            break
        return self.written

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code, and all that was written."""
        self.until(lambda _: False)
        code = self.process.wait(60)
        os.close(self._mine)
        return code, self.written


def _control() -> None:
    """Make the terminal the one that controls the session: Ctrl-C reaches it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def python(code: str, **settings: object) -> Terminal:
    """Run Python code in a terminal."""
    return Terminal([sys.executable, "-c", code], **settings)


def screen(written: str) -> list[str]:
    """Return the lines that a terminal shows in the end, which knows \\r, \\n and the erasing of a line's rest."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+", written):
        if piece == "\x1b[K":
            lines[row] = lines[row][:column]
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
            column += len(piece)
    return lines


def states(written: str) -> list[str]:
    """Return every state of the live line, in order."""
    return re.findall(r"\r([^\r\n\x1b]+)\x1b\[K", written)
