"""The whole suite in one run: notebooks through papermill, in order, each with its parameters.

Bad input (a notebook's name, a parameter, a value, the profile) is refused before the first kernel starts,
because a run may take hours. If a notebook fails, only those that need it are skipped. Trade-off: one kernel at
a time, since parallel kernels race for ports (nteract/papermill#511) and for the GPU; what notebooks need is
built by several processes meanwhile, where the profile has `workers`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cfutils import atomic, display, paths, progress
from cfutils.data import assets, hub_access
from cfutils.errors import UserError
from cfutils.events import say
from cfutils.pipeline import ray_cluster
from cfutils.pipeline.results import Shipped
from cfutils.pipeline.steps import Steps
from cfutils.pipeline.store import Rebuild, Step
from cfutils.profiles import Profile
from cfutils.progress import Advance
from cfutils.runner import fresh, plan
from cfutils.runner.ahead import Ahead
from cfutils.runner.jobs import Job, prepare, store_of
from cfutils.runner.terminal import table
from cfutils.units import duration

GOOD, UNCHANGED, FAILED = "good", "unchanged", "failed"
SKIPPED, INTERRUPTED, NOT_RUN = "skipped", "interrupted", "not run"
KEPT = ("built ", "damaged", "wait:", "warning", "reused")
"""Beginnings of a notebook's lines that stay on a terminal; others show for a moment."""
STOPPED = 130
"""Exit code of a run that was interrupted, which writes no page."""


@dataclass
class Result:
    """What became of one notebook: a line of the summary."""

    notebook: str
    status: str = NOT_RUN
    seconds: float = 0.0
    built: int = 0
    """Artifacts built."""
    reused: int = 0
    """Artifacts found and not built for this notebook."""
    shipped: int = 0
    """Those of them that are shipped results."""
    changed: int = 0
    """Those of them that other code or library versions made."""
    models: int = 0
    """Times that a model was loaded, apart from the shipped base of demonstrations in plain torch."""
    figures: list[str] = field(default_factory=list)
    reason: str = ""
    """Why it is not good."""

    def count(self, events: Iterable[dict[str, Any]], built: Iterable[str] = ()) -> None:
        """Take the counts from the events of one execution, and keys of what was built for it before."""
        steps: dict[str, set] = {"built": set(built), "reused": set()}
        shipped, changed = set(), set()
        for event in events:
            if event["event"] in steps:
                steps[event["event"]].add(event["key"])
                if event.get("shipped"):
                    shipped.add(event["key"])
                if event.get("changed"):
                    changed.add(event["key"])
            elif event["event"] == "model":
                self.models += Path(event["path"]) != paths.data() / "tiny"
            elif (
                event["event"] == "figure"
                and (name := Path(event["path"]).stem) not in self.figures
            ):
                self.figures.append(name)
        self.built, self.reused = len(steps["built"]), len(steps["reused"] - steps["built"])
        self.shipped, self.changed = len(shipped), len(changed - steps["built"])

    def unchanged(self, note: dict[str, Any]) -> None:
        """Take the counts from an earlier execution that still stands."""
        self.status, self.reused = UNCHANGED, len(note["artifacts"])
        self.figures = list(dict.fromkeys(Path(path).stem for path in note["files"]))


def run(
    profile: str,
    names: Iterable[str] = (),
    given: Iterable[str] = (),
    *,
    rebuild: bool = False,
    rebuild_changed: Iterable[str] | None = None,
    ray: str | None = None,
) -> int:
    """Execute notebooks in order; return the exit code.

    `rebuild` builds again what is there and ignores shipped results; `rebuild_changed` ("code", "versions")
    only what differs from the present in these, and what depends on it. `ray` is the address of a cluster that
    builds (`ray_cluster`).
    0 if all are good, 1 if some failed, 130 if interrupted. Raises `UserError` before any runs.
    """
    jobs = prepare(profile, names, given)
    if rebuild or rebuild_changed:
        changed = None if rebuild else frozenset(rebuild_changed)
        os.environ["CFUTILS_REBUILD"] = str(Rebuild(time.time(), changed))
    try:
        needs = _make_ready(jobs)
        folder = paths.runs() / "notebooks" / jobs[0].profile.name
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0), ray_cluster.use(ray):
            if store_of(jobs[0].profile).missing(step for tops in needs for step in tops):
                rows = (row for job in jobs for row in plan.plan(job.profile, job.notebook.studies))
                say(plan.outlook(rows, workers=_at_once(jobs[0].profile)))
            code, results = _run(jobs, needs, folder)
    except Timeout:
        raise UserError(f"a run of profile {profile} is under way: wait") from None
    finally:
        os.environ.pop("CFUTILS_REBUILD", None)
    if code != STOPPED:
        from cfutils.runner import pages

        good = {result.notebook for result in results if result.status in (GOOD, UNCHANGED)}
        for path in pages.write(profile, jobs, good):
            print(f"report and gallery: {path}", flush=True)
    return code


def _at_once(profile: Profile) -> int:
    """Return how many steps are built at a time. Raises `UserError` for a cluster that cannot build them."""
    if ray_cluster.wanted():
        return ray_cluster.Cluster(paths.runs(), profile.execution, profile.workers).at_once
    return profile.workers


def _make_ready(jobs: Sequence[Job]) -> list[list[Step]]:
    """Refuse bad bases, targets, tasks and full disks, and fetch data packages, before hours are spent.

    Returns the steps that each notebook reads.
    """
    store = store_of(jobs[0].profile)
    needs, packages, hub = [job.reads(store) for job in jobs], {}, {}
    for job, tops in zip(jobs, needs, strict=True):
        if store.missing(tops):
            steps = Steps(job.profile, store)
            steps.check()
            hub.update(dict.fromkeys(steps.on_hub()))
            packages |= dict.fromkeys(steps.assets())
    hub_access.check(hub)
    for name in packages:
        assets.folder(name)
    from cfutils.studies import check_disk  # and pandas, which `cfutils list` does without

    check_disk(jobs[0].profile, store, [step for tops in needs for step in tops])
    return needs


def _run(jobs: Sequence[Job], needs: list[list[Step]], folder: Path) -> tuple[int, list[Result]]:
    started, clock = time.time(), time.monotonic()
    rebuilding = "CFUTILS_REBUILD" in os.environ
    results = [Result(job.notebook.name) for job in jobs]
    lost: dict[str, str] = {}  # number -> name, of notebooks that did not come to a good end
    code = 0
    profile = jobs[0].profile
    side_by_side = profile.workers > 1 or ray_cluster.wanted()
    ahead = Ahead(needs, profile, store_of(profile), say) if side_by_side else None
    try:
        with ahead or nullcontext():
            for number, (job, result) in enumerate(zip(jobs, results, strict=True)):
                if blockers := [lost[n] for n in job.notebook.needs if n in lost]:
                    result.status, result.reason = SKIPPED, f"needs {', '.join(blockers)}"
                    say(f"{job.notebook.name}: skipped, {result.reason}")
                elif not rebuilding and (note := fresh.recall(*job, folder=folder)):
                    result.unchanged(note)
                    say(f"{job.notebook.name}: unchanged")
                else:
                    with progress.task(job.notebook.name.replace("_", " ")) as advance:
                        if ahead:
                            ahead.wait(number)
                        built = ahead.built[number] if ahead else set()
                        _run_one(job, result, folder, advance, built)
                if result.status not in (GOOD, UNCHANGED):
                    lost[job.notebook.number], code = job.notebook.name, 1
    except KeyboardInterrupt:
        code = STOPPED
    seconds = time.monotonic() - clock
    say("\n" + summary(results, seconds, store_of(profile).shipped))
    written = {
        "profile": profile.name,
        "parameters": {job.notebook.name: job.parameters for job in jobs},
        "rebuild": rebuilding,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 1),
        "exit_code": code,
        "notebooks": [dataclasses.asdict(result) for result in results],
    }
    atomic.write_text(folder / "summary.json", json.dumps(written, indent=1) + "\n")
    return code, results


def _run_one(job: Job, result: Result, folder: Path, advance: Advance, built: set[str]) -> None:
    from cfutils.runner import execute

    notebook, clock = job.notebook, time.monotonic()
    say(f"{notebook.name}: {notebook.title}")

    def show(line: str) -> None:
        if progress.rewrites() and not line.startswith(KEPT):
            advance(0, note=line)
        else:
            say(f"{notebook.number} +{duration(time.monotonic() - clock)} | {line}")

    try:
        failure = execute.run(notebook, job.parameters, folder=folder, env=_kernel_env(), show=show)
        result.status, result.reason = (FAILED, str(failure)) if failure else (GOOD, "")
    except KeyboardInterrupt:
        result.status, result.reason = INTERRUPTED, "interrupted"
        raise
    finally:
        result.seconds = round(time.monotonic() - clock, 1)
        events = execute.read_events(execute.events_file(notebook, folder))
        result.count(events, built)
        if result.status == GOOD:
            fresh.remember(*job, folder=folder, events=events)
        say(_closing(result, folder))


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
    package = str(Path(__file__).resolve().parents[2])
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != package]
    return {
        "CFUTILS_ROOT": str(paths.root()),
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # no widgets, on purpose
        "PYTHONPATH": os.pathsep.join([package, *others]),
        "TQDM_DISABLE": "1",  # bars that a notebook's own cells start would stick
        **display.environment(),
    }


def summary(results: Iterable[Result], seconds: float, shipped: Shipped | None = None) -> str:
    """Return the table that ends a run."""
    results = list(results)
    header = (
        "notebook",
        "status",
        "time",
        "built",
        "reused",
        "shipped",
        "models loaded",
        "figures",
        "",
    )
    rows = [
        (r.notebook, r.status, duration(r.seconds), r.built, r.reused, r.shipped, r.models,
         len(r.figures), r.reason)
        for r in results
    ]  # fmt: skip
    lines = [table(header, rows), ""]
    if any(r.shipped for r in results):
        lines.append(f"shipped results: {shipped}; --rebuild computes them here")
    if changed := sum(r.changed for r in results):
        lines.append(
            f"{changed} artifacts were made by other code or library versions and reused: "
            "`cfutils status --changed` lists them, `cfutils run --rebuild-changed` builds them again"
        )
    good = sum(r.status in (GOOD, UNCHANGED) for r in results)
    lines.append(f"{good} of {len(rows)} good, {duration(seconds)} in all")
    return "\n".join(lines)
