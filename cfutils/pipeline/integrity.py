"""Whether the files of an artifact are what its record states, and whether its weights were pruned on purpose.

    record.json    never changes; its `files` state what was built
    pruned.json    there once the weights were pruned: when, and how many bytes

The mark is written before a file is removed, so that a kill in between leaves an artifact that is pruned.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cfutils import atomic
from cfutils.digests import file_digest

MARK = "pruned.json"
STAYS = ("log.parquet",)
"""Files that stay of an artifact whose weights are pruned, beside the record and the mark."""


def is_pruned(place: Path) -> bool:
    """Whether the weights of an artifact were pruned."""
    return (place / MARK).is_file()


def damaged(place: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the files whose content is not what the record states; those that were pruned are not missed.

    A digest is computed once for each state of a file (size and time of change, kept beside the
    artifact); computing it at each call would read gigabytes to redraw a figure.
    """
    if is_pruned(place):
        files = {name: stated for name, stated in files.items() if name in STAYS}
    note = place.with_name(f".checked-{place.name}")
    try:
        checked = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        checked = {}
    wrong, states = [], {}
    for name, stated in files.items():
        path = place / name
        if not path.is_file() or path.stat().st_size != stated["bytes"]:
            wrong.append(name)
            continue
        states[name] = [path.stat().st_mtime_ns, stated["sha256"]]
        if states[name] != checked.get(name) and file_digest(path) != stated["sha256"]:
            wrong.append(name)
    if not wrong and states != checked:
        with suppress(FileNotFoundError):  # another process has just written the same
            atomic.write_text(note, json.dumps(states))
    return wrong


def weights(place: Path) -> list[Path]:
    """Return the files that pruning removes, also those that a kill has left of an earlier pruning."""
    stay = {place / name for name in ("record.json", MARK, *STAYS)}
    return [path for path in sorted(place.rglob("*")) if path.is_file() and path not in stay]


def prune_unless_busy(place: Path, lock: Path) -> int:
    """Prune, unless a process holds the artifact's lock: it is building or pruning it. Return the bytes freed."""
    try:
        with FileLock(lock, timeout=0):
            return prune(place) if place.is_dir() else 0
    except Timeout:
        return 0


def prune(place: Path) -> int:
    """Mark an artifact as pruned and remove its weights; return the bytes that this freed."""
    found = weights(place)
    freed = sum(path.stat().st_size for path in found)
    if not is_pruned(place):
        mark = {"pruned": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "bytes": freed}
        atomic.write_text(place / MARK, json.dumps(mark) + "\n")
    for path in found:
        path.unlink()
    for folder in sorted((path for path in place.rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
    return freed
