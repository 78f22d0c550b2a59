"""Content-keyed artifacts with provenance: what is built once is not built again.

A `Step` states what an artifact is made from. Its key is the digest of kind, parameters, upstream keys and the
version of its builder, so it is known before anything is built and survives refactoring: a builder's version is
raised by hand when its numbers change on purpose (golden tests fail when they change otherwise). The record
holds the code, library versions and machine that made the artifact; where they differ from the present the
artifact is reused, and the difference is reported. An artifact is written in a work folder that outlives a kill,
so that a builder may resume in it, and is then moved whole to `runs/<kind>/<key>/`. Below the store lies a
read-only layer of shipped results (`results`).
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cfutils import atomic, paths, progress
from cfutils.digests import digest, file_digest
from cfutils.errors import UserError, disk_full
from cfutils.events import emit, say
from cfutils.pipeline import provenance
from cfutils.pipeline.builder import Builder, Needs
from cfutils.pipeline.results import Shipped
from cfutils.units import size

if TYPE_CHECKING:
    import pandas as pd

    from cfutils.pipeline.session import Session

@dataclass(frozen=True)
class Artifact:
    """One thing that was built: a folder written whole, or a row of the shipped results."""

    kind: str
    key: str
    record: Mapping[str, Any]
    path: Path | None = None
    """Its folder; None if it is shipped, and then there are tables and no other files."""
    shipped: Shipped | None = None

    @property
    def notes(self) -> dict[str, Any]:
        """What the builder returned: small facts to read without opening a file."""
        return self.record["notes"]

    def table(self, name: str) -> pd.DataFrame:
        """Return one of its tables, NAME.parquet."""
        if self.path is None:
            return self.shipped.table(name, self.key)
        import pandas as pd

        return pd.read_parquet(self.path / f"{name}.parquet")

    @property
    def model_folder(self) -> Path:
        """The Hugging Face folder that it is or points to."""
        return Path(self.notes.get("path") or self.path)


@dataclass(frozen=True)
class Step:
    """What an artifact is made from, and how."""

    builder: Builder
    params: Mapping[str, Any]
    """Everything but upstream artifacts that decides the content; JSON values."""
    needs: Mapping[str, Step] = field(default_factory=dict)
    """Upstream steps by role."""
    label: str = ""
    """What a person reads in progress lines and tables."""
    local: Mapping[str, Any] = field(default_factory=dict)
    """Where things are on this machine: parameters of the builder that decide no content."""
    weight_bytes: int = 0
    """Roughly how much disk the artifact takes, for the check before the work."""

    @property
    def kind(self) -> str:
        """Kind of artifact."""
        return self.builder.kind

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """The plain inputs that the key is a digest of; kept in the record."""
        return {
            "kind": self.kind,
            "version": self.builder.version,
            "params": dict(self.params),
            "needs": {role: step.key for role, step in self.needs.items()},
        }

    @functools.cached_property
    def key(self) -> str:
        """Digest of the inputs."""
        return digest(self.inputs)

    def walk(self) -> Iterable[Step]:
        """Yield everything this step needs, deepest first, then itself."""
        for step in self.needs.values():
            yield from step.walk()
        yield self


@dataclass(frozen=True)
class Rebuild:
    """What is to be built again although it is there: `cfutils run --rebuild` and `--rebuild-changed`."""

    before: float = 0.0
    """Only what was finished before this time (seconds since the epoch): the start of the run."""
    changed: frozenset[str] | None = None
    """Only what differs from the present in one of these ("code", "versions"); None: all of it."""

    @classmethod
    def from_environment(cls) -> Rebuild:
        """Read what the batch runner has put into CFUTILS_REBUILD: a time, and perhaps kinds of change."""
        before, _, changed = os.environ.get("CFUTILS_REBUILD", "0").partition(":")
        return cls(float(before), frozenset(changed.split(",")) if changed else None)

    def wants(self, record: Mapping[str, Any], changes: set[str]) -> bool:
        """Whether an artifact, changed in these things since it was made, is to be built again."""
        changed = self.changed is None or bool(self.changed & changes)
        return record["finished"] < self.before and changed

    def __str__(self) -> str:
        return f"{self.before:.2f}" + (f":{','.join(sorted(self.changed))}" if self.changed else "")


class Store:
    """The artifacts of one machine, below one folder, and the shipped results beneath them."""

    def __init__(self, folder: Path | None = None, shipped: Shipped | None = None) -> None:
        self.folder = folder or paths.runs()
        self.shipped = shipped
        self.rebuild = Rebuild.from_environment()
        self._sound: dict[str, Artifact] = {}
        self._stale: dict[str, bool] = {}

    def place(self, step: Step) -> Path:
        """Return the folder of a step's artifact, there or not."""
        return self.folder / step.kind / step.key

    def find(self, step: Step) -> Artifact | None:
        """Return the artifact to read from, here or shipped; None if it is missing, or to be built again."""
        return self.find_here(step) or self._find_shipped(step)

    def find_here(self, step: Step) -> Artifact | None:
        """Return the artifact to build from: whatever is built is built from artifacts of this machine."""
        if step.key not in self._sound:
            artifact = self._read(step)
            if artifact is None or self._is_stale(step):
                return None
            self._sound[step.key] = artifact
        return self._sound[step.key]

    def _find_shipped(self, step: Step) -> Artifact | None:
        if self.shipped is None or not self.shipped.holds(step.key) or self._is_stale(step):
            return None
        return Artifact(step.kind, step.key, self.shipped.record(step.key), shipped=self.shipped)

    def record(self, step: Step) -> Mapping[str, Any] | None:
        """Return the record of an artifact, here or shipped; of shipped results weights have one too."""
        if artifact := self._sound.get(step.key):
            return artifact.record
        try:
            return json.loads((self.place(step) / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self.shipped.record(step.key) if self.shipped else None

    def changes(self, step: Step, record: Mapping[str, Any]) -> set[str]:
        """Return in what the present differs from the time when an artifact was made: code, versions."""
        now = {"code": provenance.code_digest(step.builder.module), "versions": provenance.versions()}
        return {name for name, value in now.items() if record.get(name) != value}

    def _is_stale(self, step: Step) -> bool:
        """Whether `rebuild` wants this artifact built again, or one that it was made from."""
        if not self.rebuild.before:
            return False
        if step.key not in self._stale:
            self._stale[step.key] = (record := self.record(step)) is not None and (
                self.rebuild.wants(record, self.changes(step, record))
                or any(self._is_stale(need) for need in step.needs.values())
                or any(
                    upstream["finished"] > record["finished"]
                    for need in step.needs.values()
                    if (upstream := self.record(need))
                )
            )
        return self._stale[step.key]

    def _read(self, step: Step) -> Artifact | None:
        place = self.place(step)
        if not place.is_dir():
            return None
        try:
            record = json.loads((place / "record.json").read_text(encoding="utf-8"))
            damaged = self._damaged(place, record["files"])
        except (OSError, ValueError, KeyError) as error:
            record, damaged = {}, [f"record.json ({error})"]
        if damaged:
            say(f"damaged: {step.label or step.kind} {step.key}: {', '.join(damaged)}; built again")
            return None
        return Artifact(step.kind, step.key, record, path=place)

    def _damaged(self, place: Path, files: dict[str, dict[str, Any]]) -> list[str]:
        """Return the files whose content is not what the record states.

        A digest is computed once for each state of a file (size and time of change, kept beside the
        artifact); computing it at each call would read gigabytes to redraw a figure.
        """
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

    def ensure(self, step: Step, session: Session) -> Artifact:
        """Return the artifact to read from, building it and whatever it needs if it is neither here nor shipped.

        Raises `UserError` before the work if the disk cannot hold what is to be written.
        """
        if artifact := self.find(step):
            return self._reuse(step, artifact)
        return self.ensure_here(step, session)

    def ensure_here(self, step: Step, session: Session) -> Artifact:
        """Return the artifact on this machine, also where it is shipped."""
        if artifact := self.find_here(step):
            return self._reuse(step, artifact)
        needs = {role: self.ensure_here(need, session) for role, need in step.needs.items()}
        self.check_disk([step])
        place = self.place(step)
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._lock(step):
            if artifact := self.find_here(step):  # built by another process while this one waited
                return self._reuse(step, artifact)
            shutil.rmtree(place, ignore_errors=True)
            try:
                return self._build(step, place, needs, session)
            except Exception as error:
                if why := disk_full(error):
                    raise UserError(
                        f"{why}: {step.label or step.kind} in {self.folder}. What was built before stays: free some "
                        "space and give the same command again."
                    ) from error
                raise

    def _reuse(self, step: Step, artifact: Artifact) -> Artifact:
        emit(
            "reused", kind=step.kind, key=step.key, label=step.label,
            shipped=artifact.path is None, changed=sorted(self.changes(step, artifact.record)),
        )  # fmt: skip
        return artifact

    def _build(self, step: Step, place: Path, needs: Needs, session: Session) -> Artifact:
        work = place.with_name(f".work-{step.key}")
        work.mkdir(exist_ok=True)
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
        with progress.task(step.label or step.kind):
            notes = step.builder.build(work, needs, {**step.params, **step.local}, session) or {}
        seconds = time.monotonic() - clock
        files = sorted(
            path for path in work.rglob("*") if path.is_file() and path.name != "record.json"
        )
        record = {
            "key": step.key,
            "label": step.label,
            "inputs": step.inputs,
            "started": started,
            "finished": round(time.time(), 2),
            "seconds": round(seconds, 2),
            "code": provenance.code_digest(step.builder.module),
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "notes": notes,
            "files": {
                path.relative_to(work).as_posix(): {
                    "sha256": file_digest(path),
                    "bytes": path.stat().st_size,
                }
                for path in files
            },
        }
        (work / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for path in (*files, work / "record.json"):  # on disk before the name is
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.replace(work, place)
        say(f"built {step.kind}: {step.label} in {seconds:.0f} s")
        emit("built", kind=step.kind, key=step.key, label=step.label, seconds=round(seconds, 2))
        self._stale.pop(step.key, None)
        self._sound[step.key] = Artifact(step.kind, step.key, record, path=place)
        return self._sound[step.key]

    def _lock(self, step: Step) -> FileLock:
        lock = FileLock(self.place(step).with_name(f".lock-{step.key}"))
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            say(f"wait: another process builds {step.kind} {step.label}")
            return lock.acquire()

    def missing(self, steps: Iterable[Step]) -> list[Step]:
        """Return what must be built for these steps, deepest first: nothing upstream of what is there."""
        found: dict[str, Step] = {}

        def visit(step: Step) -> None:
            if step.key not in found and self.find_here(step) is None:
                for need in step.needs.values():
                    visit(need)
                found[step.key] = step

        for step in steps:
            if self.find(step) is None:
                visit(step)
        return list(found.values())

    def check_disk(self, steps: Iterable[Step]) -> None:
        """Raise `UserError` if the disk cannot hold what is missing for these steps.

        Three times the largest is added for the checkpoint (weights and two moments) beside it.
        """
        sizes = [step.weight_bytes for step in self.missing(steps)]
        need = sum(sizes) + 3 * max(sizes, default=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise UserError(
                f"disk too full: about {size(need)} are needed below {self.folder}, {size(free)} are free. Free some "
                "space, run `cfutils clean`, or set CFUTILS_RUNS to a folder on a larger disk."
            )
