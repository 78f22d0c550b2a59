"""The whole suite in one go: notebooks through papermill, in order, each with what it takes.

Everything that a user can get wrong (a notebook's name, a parameter, a value, the profile) is
refused before the first kernel starts, because a run may take hours. A notebook that fails takes
with it only those that need it. Trade-off: one kernel at a time, since parallel kernels race for
ports (nteract/papermill#511) and for the GPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from cfutils import assets, fresh, paths, profiles
from cfutils import notebook as sources
from cfutils.errors import UserError, bad
from cfutils.notebook import Notebook
from cfutils.steps import Steps
from cfutils.store import Store

GOOD, UNCHANGED, FAILED = "good", "unchanged", "failed"
SKIPPED, INTERRUPTED, NOT_RUN = "skipped", "interrupted", "not run"
KEPT = ("built ", "damaged", "wait:", "warning")
"""Beginnings of progress lines that stay on a terminal; others are overwritten by the next one."""


@dataclass
class Result:
    """What became of one notebook: a line of the summary."""

    notebook: str
    status: str = NOT_RUN
    seconds: float = 0.0
    built: int = 0
    """Artifacts built."""
    reused: int = 0
    """Artifacts found and not built by this notebook."""
    models: int = 0
    """Times that a language model's weights were loaded."""
    figures: list[str] = field(default_factory=list)
    reason: str = ""
    """Why it is not good."""

    def count(self, events: Iterable[dict[str, Any]]) -> None:
        """Take the counts from the events of one execution."""
        steps: dict[str, set] = {"built": set(), "reused": set()}
        for event in events:
            if event["event"] in steps:
                steps[event["event"]].add((event["kind"], event["key"]))
            elif event["event"] == "model":
                self.models += 1
            elif (
                event["event"] == "figure"
                and (name := Path(event["path"]).stem) not in self.figures
            ):
                self.figures.append(name)
        self.built, self.reused = len(steps["built"]), len(steps["reused"] - steps["built"])


    def unchanged(self, note: dict[str, Any]) -> None:
        """Take the counts from an earlier execution that still stands."""
        self.status, self.reused = UNCHANGED, len(note["artifacts"])
        self.figures = list(dict.fromkeys(Path(path).stem for path in note["files"]))


class Job(NamedTuple):
    """One notebook with the parameters that it is to run with."""

    notebook: Notebook
    parameters: dict[str, Any]
    """What papermill injects: what was given, and the profile."""
    profile: profiles.Profile
    """The profile as this notebook's Lab will see it."""


def prepare(profile: str, names: Iterable[str], given: Iterable[str]) -> list[Job]:
    """Check everything that was asked for; raises `UserError` for anything that cannot run.

    A notebook about one base is left out of a whole run of another, and refused if it was named.
    """
    names = tuple(names)
    profiles.load(
        profile
    )  # first, so that a misspelt profile is named and not what follows from it
    chosen = sources.select(names)
    arguments = sources.arguments(chosen, given)
    known = {f.name for f in dataclasses.fields(profiles.Profile)}
    jobs, lost = [], set()
    for notebook in chosen:
        values = arguments[notebook.number]
        stated = {name: p.default for name, p in notebook.parameters.items()} | values
        loaded = profiles.load(
            profile, **{k: v for k, v in stated.items() if k in known and v is not None}
        )
        if notebook.base and loaded.base != notebook.base:
            if names:
                raise bad("notebook", notebook.name, f"a profile with base {notebook.base}",
                          f"it is about no other, and {profile} has {loaded.base}")  # fmt: skip
            lost |= values.keys()
            continue
        parameters = {"profile": profile} if "profile" in notebook.parameters else {}
        jobs.append(Job(notebook, parameters | values, loaded))
    for name in sorted(lost - {name for job in jobs for name in job.parameters}):
        raise UserError(f"-p {name}: no notebook that {profile} runs takes it: it is about another base")
    return jobs


def run(
    profile: str, names: Iterable[str] = (), given: Iterable[str] = (), *, force: bool = False
) -> int:
    """Execute notebooks in order; return the exit code.

    0 if all are good, 1 if some failed, 130 if interrupted. Raises `UserError` before any runs.
    """
    jobs = prepare(profile, names, given)
    _make_ready(jobs)
    folder = paths.runs() / "notebooks" / jobs[0].profile.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _run(jobs, folder, force=force)
    except Timeout:
        raise UserError(f"a run of profile {profile} is under way: wait") from None


def _make_ready(jobs: Sequence[Job]) -> None:
    """Refuse bad bases, targets and full disks, and fetch data packages, before hours are spent."""
    store = Store()
    needed, packages = [], {}
    for job in jobs:
        steps = Steps(job.profile, store)
        needed += [step for name in job.notebook.studies for step in steps.study(name)]
        packages |= dict.fromkeys(steps.assets() if job.notebook.studies else [])
    for name in packages:
        assets.folder(name)
    store.check_disk(needed)


def _run(jobs: Sequence[Job], folder: Path, *, force: bool) -> int:
    started, clock, terminal = time.time(), time.monotonic(), Terminal()
    env = _kernel_env() | ({"CFUTILS_FORCE": f"{started:.2f}"} if force else {})
    results = [Result(job.notebook.name) for job in jobs]
    lost: dict[str, str] = {}  # number -> name, of notebooks that did not come to a good end
    code = 0
    try:
        for job, result in zip(jobs, results, strict=True):
            if blockers := [lost[number] for number in job.notebook.needs if number in lost]:
                result.status, result.reason = SKIPPED, f"needs {', '.join(blockers)}"
                terminal.line(f"{job.notebook.name}: skipped, {result.reason}")
            elif not force and (note := fresh.recall(*job, folder=folder)):
                result.unchanged(note)
                terminal.line(f"{job.notebook.name}: unchanged")
            else:
                _run_one(job, result, folder, env, terminal)
            if result.status not in (GOOD, UNCHANGED):
                lost[job.notebook.number], code = job.notebook.name, 1
    except KeyboardInterrupt:
        code = 130
    seconds = time.monotonic() - clock
    terminal.line("\n" + summary(results, seconds))
    _write_json(
        folder / "summary.json",
        {
            "profile": jobs[0].profile.name,
            "parameters": {job.notebook.name: job.parameters for job in jobs},
            "force": force,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(seconds, 1),
            "exit_code": code,
            "notebooks": [dataclasses.asdict(result) for result in results],
        },
    )
    return code


def _run_one(
    job: Job, result: Result, folder: Path, env: dict[str, str], terminal: Terminal
) -> None:
    from cfutils import execute

    notebook, clock = job.notebook, time.monotonic()
    terminal.line(f"{notebook.name}: {notebook.title}")

    def show(line: str) -> None:
        terminal.progress(f"{notebook.number} +{duration(time.monotonic() - clock)} | ", line)

    try:
        failure = execute.run(notebook, job.parameters, folder=folder, env=env, show=show)
        result.status, result.reason = (FAILED, str(failure)) if failure else (GOOD, "")
    except KeyboardInterrupt:
        result.status, result.reason = INTERRUPTED, "interrupted"
        raise
    finally:
        result.seconds = round(time.monotonic() - clock, 1)
        events = execute.read_events(execute.events_file(notebook, folder))
        result.count(events)
        if result.status == GOOD:
            fresh.remember(*job, folder=folder, events=events)
        terminal.line(_closing(result, folder))


def _closing(result: Result, folder: Path) -> str:
    took = duration(result.seconds)
    if result.status == GOOD:
        return f"{result.notebook}: good in {took}"
    lines = [f"{result.notebook}: {result.status.upper()} after {took}", f"  {result.reason}"]
    for what, ending in (
        ("log", "log"),
        ("notebook as it ended", "failed.ipynb"),
        ("last good output, which stays", "ipynb"),
    ):
        if (path := folder / f"{result.notebook}.{ending}").exists():
            lines.append(f"  {what}: {path}")
    return "\n".join(lines)


def _kernel_env() -> dict[str, str]:
    """Variables for kernels: this suite's root and this very package, and a fixed order of sets."""
    package = str(Path(__file__).resolve().parent.parent)
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != package]
    return {
        "CFUTILS_ROOT": str(paths.root()),
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join([package, *others]),
    }


def summary(results: Iterable[Result], seconds: float) -> str:
    """Return the table that ends a run."""
    rows = [
        (
            r.notebook,
            r.status,
            duration(r.seconds),
            r.built,
            r.reused,
            r.models,
            len(r.figures),
            r.reason,
        )
        for r in results
    ]
    header = ("notebook", "status", "time", "built", "reused", "models loaded", "figures", "")
    good = sum(row[1] in (GOOD, UNCHANGED) for row in rows)
    return f"{table(header, rows)}\n\n{good} of {len(rows)} good, {duration(seconds)} in all"


def dry_run(
    profile: str, names: Iterable[str] = (), given: Iterable[str] = (), *, force: bool = False
) -> int:
    """Print what `run` would do: each notebook's parameters, each artifact built or missing."""
    from cfutils import lab

    seen: dict[tuple[str, str], bool] = {}
    for job in prepare(profile, names, given):
        notebook, rows = job.notebook, []
        stated = {n: p.default for n, p in notebook.parameters.items() if p.default is not None}
        values = ", ".join(f"{k}={v!r}" for k, v in (stated | job.parameters).items())
        print(f"{notebook.name}: {notebook.title}\n  with {values or 'no parameters'}")
        steps = lab.plan(job.profile, list(notebook.studies))
        for step in steps:
            if (step["kind"], step["key"]) not in seen:
                seen[step["kind"], step["key"]] = step["built"] and not force
                rows.append(step_row(step, force=force))
        print(indent(table((), rows)) if rows else "  builds nothing that is not listed above")
        print()
    built = sum(seen.values())
    print(f"{len(seen)} steps: {built} built, {len(seen) - built} missing. Nothing was run.")
    return 0


def step_row(step: dict[str, Any], *, force: bool = False) -> tuple[str, ...]:
    """Return one artifact's line: whether it is built, kind, label, key, how long it took."""
    state = "missing" if not step["built"] else "again" if force else "built"
    seconds = "" if step["seconds"] is None else duration(step["seconds"])
    return state, step["kind"], step["label"], step["key"], seconds


class Terminal:
    """Where progress goes: line by line into a file or pipe, one rewritten line on a terminal."""

    def __init__(self) -> None:
        self.stream = sys.stdout
        self.rewrites = self.stream.isatty()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        print(("\r\x1b[K" if self.rewrites else "") + text, file=self.stream, flush=True)

    def progress(self, prefix: str, text: str) -> None:
        """Show a line of a notebook's output."""
        if not self.rewrites or text.startswith(KEPT):
            self.line(prefix + text)
        else:
            width = shutil.get_terminal_size().columns - 1
            print("\r\x1b[K" + (prefix + text)[:width], end="", file=self.stream, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows in aligned columns: numbers to the right, the rest to the left."""
    cells = [list(map(str, row)) for row in ([header] if header else []) + list(rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(isinstance(row[i], int) for row in rows) for i in range(len(widths))]
    return "\n".join(
        "  ".join(
            c.rjust(w) if right else c.ljust(w)
            for c, w, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    )


def indent(text: str) -> str:
    """Move lines two columns to the right."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def duration(seconds: float) -> str:
    """Return 75 as 1:15 and 3675 as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _write_json(path: Path, value: Any) -> None:
    work = path.with_name(f".{path.name}.work")
    work.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(work, path)
