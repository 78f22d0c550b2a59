"""Free disk: work folders that a kill has left, or everything that can be built again.

Only what the suite itself has named is touched (a runs folder may be shared, by CFUTILS_RUNS), and nothing that
a process is building at the moment.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cfutils import paths
from cfutils.errors import UserError
from cfutils.units import size

_KEY = re.compile(r"(\.work-)?([0-9a-f]{20})")


@dataclass(frozen=True)
class Piece:
    """A folder or file that may be removed."""

    path: Path
    lock: Path
    """Held by a process that works on it."""
    finished: bool
    """Whether it is a result, rather than what a kill has left of one."""

    @property
    def bytes(self) -> int:
        """Size on disk."""
        inside = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(path.lstat().st_size for path in inside if path.is_file())


def pieces() -> Iterator[Piece]:
    """Yield what lies in the runs folder and was made by the suite."""
    for path in sorted(paths.runs().glob("*/*")):
        if path.parent.name == "notebooks":
            lock = path / ".lock"
            for left in (*path.glob(".*.running.ipynb"), *path.glob("*.part")):
                yield Piece(left, lock, finished=False)
            if lock.exists():
                yield Piece(path, lock, finished=True)
        elif path.is_dir() and (match := _KEY.fullmatch(path.name)):
            yield Piece(path, path.with_name(f".lock-{match[2]}"), finished=not match[1])


def clean(*, everything: bool = False, yes: bool = False) -> str:
    """Remove unfinished work, or with `everything` results too; return a report.

    Raises `UserError` if results would be removed without `yes`.
    """
    found = [piece for piece in pieces() if everything or not piece.finished]
    finished = [piece for piece in found if piece.finished]
    if finished and not yes:
        total = size(sum(piece.bytes for piece in finished))
        raise UserError(
            f"--all removes {len(finished)} finished results ({total}), which may take hours to "
            "build again; add --yes if you mean it"
        )
    gone = freed = 0
    busy = []
    for piece in found:
        if not piece.path.exists():  # removed with the folder that it was in
            continue
        with ExitStack() as held:
            try:
                held.enter_context(FileLock(piece.lock, timeout=0))
            except Timeout:
                busy.append(f"{piece.path} is in use and stays")
                continue
            taken = piece.bytes
            shutil.rmtree(piece.path) if piece.path.is_dir() else piece.path.unlink()
            gone, freed = gone + 1, freed + taken
    what = "folders and files" if everything else "unfinished pieces"
    return "\n".join([*busy, f"removed {gone} {what}, {size(freed)}"])
