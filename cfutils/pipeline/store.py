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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils import paths, progress
from cfutils.digests import digest, file_digest
from cfutils.errors import UserError, disk_full
from cfutils.events import emit, say
from cfutils.pipeline import integrity, locks, provenance
from cfutils.pipeline.builder import Builder, Needs
from cfutils.pipeline.rebuild import Rebuild
from cfutils.pipeline.results import Shipped
from cfutils.units import duration, size

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
    work_bytes: int = 0
    """Roughly how much more its work folder takes until it is done."""

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
        """Return the artifact to read from, here or shipped; None if it is missing, or to be built again.

        Of a run whose weights were pruned record, notes and log can be read.
        """
        return self._find(step) or self._find_shipped(step)

    def find_here(self, step: Step) -> Artifact | None:
        """Return the artifact to build from: of this machine, and with its weights, if it has any."""
        return None if integrity.is_pruned(self.place(step)) else self._find(step)

    def _find(self, step: Step) -> Artifact | None:
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
            damaged = integrity.damaged(place, record["files"])
        except (OSError, ValueError, KeyError) as error:
            record, damaged = {}, [f"record.json ({error})"]
        if damaged:
            say(f"damaged: {step.label or step.kind} {step.key}: {', '.join(damaged)}; built again")
            return None
        return Artifact(step.kind, step.key, record, path=place)

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
        with locks.hold(place.with_name(f".lock-{step.key}"), f"{step.kind} {step.label}"):
            if artifact := self.find_here(step):  # built by another process while this one waited
                return self._reuse(step, artifact)
            if integrity.is_pruned(place) and (record := self.record(step)):
                seconds = duration(record["seconds"])
                say(f"pruned: the weights of {step.label} are needed and built again, which took {seconds} before")
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

    def work_on(self, step: Step, needs: Needs, session: Session) -> tuple[Path, dict[str, Any]]:
        """Run a step's builder in its work folder; return the folder and the builder's notes."""
        work = self.place(step).with_name(f".work-{step.key}")
        work.mkdir(parents=True, exist_ok=True)
        return work, step.builder.build(work, needs, {**step.params, **step.local}, session) or {}

    def _build(self, step: Step, place: Path, needs: Needs, session: Session) -> Artifact:
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
        with progress.task(step.label or step.kind):
            work, notes = self.work_on(step, needs, session)
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

    def prune(self, step: Step) -> int:
        """Remove the weights of a run that is here; return the bytes freed, 0 where another process is at work on it.

        Record and log stay, and scores made from it stand; what needs the weights again builds them again.
        """
        place = self.place(step)
        if not (place / "record.json").is_file():
            return 0
        return integrity.prune_unless_busy(place, place.with_name(f".lock-{step.key}"))

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

    def check_disk(self, steps: Iterable[Step], need: int | None = None) -> None:
        """Raise `UserError` if the disk cannot hold what is missing for these steps.

        need: the most that weights take at one time, where some are pruned (`pruning.peak_bytes`); None: all of them.
        Three times the largest is added for the checkpoint (weights and two moments) beside it, and the largest of
        the files that a step keeps while it works.
        """
        missing = self.missing(steps)
        sizes = [step.weight_bytes for step in missing]
        need = sum(sizes) if need is None else need
        need += 3 * max(sizes, default=0) + max((step.work_bytes for step in missing), default=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise UserError(
                f"disk too full: about {size(need)} are needed below {self.folder}, {size(free)} are free. Free some "
                "space, run `cfutils clean`, set keep_weights to last, or set CFUTILS_RUNS to a folder on a larger "
                "disk."
            )
