"""Free disk: work folders that a kill has left, weights of scored runs, or everything that can be built again.

Only what the suite itself has named is touched (a runs folder may be shared, by CFUTILS_RUNS), and nothing that
a process is building at the moment.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cfutils import paths
from cfutils.errors import UserError, invalid_value
from cfutils.pipeline import integrity
from cfutils.pipeline.builders.scoring import PROBE, RETAINED, TARGET, VALIDATION
from cfutils.pipeline.pruning import KINDS
from cfutils.runner.terminal import table
from cfutils.units import about, size

SCORES = tuple(builder.kind for builder in (RETAINED, TARGET, PROBE, VALIDATION))
"""Kinds of artifacts that hold a run's scores."""
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


def clean(
    *, everything: bool = False, yes: bool = False, weights: bool = False, kinds: Collection[str] = (),
    dry_run: bool = False,
) -> str:  # fmt: skip
    """Remove unfinished work, or with `everything` results too, or those of some kinds; return a report.

    weights: prune the weights of runs that have been scored, whatever profile they are of; their records, logs and
    scores stay. dry_run: remove nothing, and list what there is, with the price of building it again.
    Raises `UserError` if results would be removed without `yes`, or for a kind that there is nothing of.
    """
    records = _records()
    if unknown := set(kinds) - {record.kind for record in records}:
        there = ", ".join(sorted({record.kind for record in records})) or "nothing is built"
        raise invalid_value("--kind", ",".join(sorted(unknown)), f"kinds that there are: {there}")
    if dry_run:
        chosen = [one for one in records if not kinds or one.kind in kinds]
        return _listing([one for one in chosen if one.kind in KINDS and one.scores] if weights else chosen, records)
    if weights:
        return _prune([one for one in records if one.kind in (kinds or KINDS)])
    found = [
        piece for piece in pieces()
        if piece.path.parent.name in kinds or (not kinds and (everything or not piece.finished))
    ]  # fmt: skip
    finished = [piece for piece in found if piece.finished]
    if finished and not yes:
        total = size(sum(piece.bytes for piece in finished))
        option = f"--kind {','.join(kinds)}" if kinds else "--all"
        raise UserError(
            f"{option} removes {len(finished)} finished results ({total}), which may take hours to "
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
    what = "folders and files" if everything or kinds else "unfinished pieces"
    return "\n".join([*busy, f"removed {gone} {what}, {size(freed)}"])


@dataclass
class Record:
    """What the record of a finished artifact says."""

    kind: str
    key: str
    path: Path
    seconds: float
    needs: tuple[str, ...]
    scores: int = 0
    """Scores here that were made from it."""


def _records() -> list[Record]:
    """Return what is built here, with what depends on it. Records that cannot be read are left out."""
    found: dict[str, Record] = {}
    for path in sorted(paths.runs().glob("*/*/record.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            kind, needs = record["inputs"]["kind"], tuple(record["inputs"]["needs"].values())
            found[record["key"]] = Record(kind, record["key"], path.parent, record["seconds"], needs)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for record in found.values():
        for need in (found[key] for key in set(record.needs) if key in found):
            need.scores += record.kind in SCORES
    return list(found.values())


def _listing(chosen: Collection[Record], records: Collection[Record]) -> str:
    """Return a table of what is built, by kind: how much, the seconds that it took, and what depends on it."""
    readers: dict[str, Counter] = {}
    for record in records:
        for key in set(record.needs):
            readers.setdefault(key, Counter())[record.kind] += 1
    rows = []
    for kind in sorted({one.kind for one in chosen}):
        own = [one for one in chosen if one.kind == kind]
        total = sum(Piece(one.path, one.path, finished=True).bytes for one in own)
        pruned = sum(integrity.is_pruned(one.path) for one in own)
        made = sum((readers.get(one.key, Counter()) for one in own), Counter())
        depends = ", ".join(f"{n} {name}" for name, n in sorted(made.items()))
        count = f"{len(own)}" + (f" ({pruned} pruned)" if pruned else "")
        rows.append((kind, count, size(total), about(sum(one.seconds for one in own)), depends))
    return table(("kind", "count", "size", "to build again", "what was made from it"), rows)


def _prune(records: Iterable[Record]) -> str:
    """Prune the weights of runs that a score was made from."""
    gone = freed = seconds = 0
    for record in records:
        if record.kind in KINDS and record.scores:
            taken = integrity.prune_unless_busy(record.path, record.path.with_name(f".lock-{record.key}"))
            gone, freed, seconds = gone + bool(taken), freed + taken, seconds + bool(taken) * record.seconds
    return f"pruned the weights of {gone} runs, {size(freed)}; building them again would take {about(seconds)}"
