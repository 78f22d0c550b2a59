"""What a run would build: every step with its state, nothing built or loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cfutils.pipeline import estimate
from cfutils.pipeline.steps import Steps, all_steps
from cfutils.profiles import Profile
from cfutils.runner.jobs import prepare, store_of
from cfutils.runner.terminal import indent, table
from cfutils.units import about, duration


def dry_run(profile: str, names: Iterable[str] = (), given: Iterable[str] = ()) -> int:
    """Print what `run` would do: each notebook's parameters, each artifact built, shipped or missing."""
    seen: dict[str, dict[str, Any]] = {}
    jobs = prepare(profile, names, given)
    for job in jobs:
        notebook, rows = job.notebook, []
        stated = {n: p.default for n, p in notebook.parameters.items() if p.default is not None}
        values = ", ".join(f"{k}={v!r}" for k, v in (stated | job.parameters).items())
        print(f"{notebook.name}: {notebook.title}\n  with {values or 'no parameters'}")
        for row in plan(job.profile, notebook.studies):
            if row["key"] not in seen:
                seen[row["key"]] = row
                rows.append(step_row(row))
        print(indent(table((), rows)) if rows else "  builds nothing that is not listed above")
        print()
    missing = sum(row["state"] == "missing" for row in seen.values())
    print(f"{len(seen)} steps: {len(seen) - missing} there, {missing} missing. Nothing was run.")
    if missing:
        print(outlook(seen.values(), workers=jobs[0].profile.workers))
    return 0


def outlook(rows: Iterable[dict[str, Any]], *, workers: int) -> str:
    """Return how long the missing rows of plans will take, and how much disk, in a sentence; "" if none is missing."""
    missing = {row["key"]: row["expected"] for row in rows if row["state"] == "missing"}
    return estimate.sentence(missing.values(), workers=workers)


def plan(profile: Profile, studies: Iterable[str]) -> list[dict[str, Any]]:
    """Return what these studies need, one row per step, deepest first; nothing is built or loaded.

    Columns: state (built, shipped, missing, or unneeded: it is upstream of shipped results alone), kind,
    label, key, seconds, changes, and what a missing one will take (`estimate.Expected`).
    """
    from cfutils.studies import planned  # and pandas, which `cfutils list` does without

    store = store_of(profile)
    Steps(profile, store).check()
    tops = [step for name in studies for step in planned(profile, store, name)[0]]
    lacking = store.missing(tops)
    missing = {s.key: e for s, e in zip(lacking, estimate.expected(lacking, store), strict=True)}
    rows = []
    for step in all_steps(tops):
        artifact = store.find(step)
        state = "missing" if step.key in missing else "unneeded"
        if artifact:
            state = "built" if artifact.path else "shipped"
        record = artifact.record if artifact else None
        rows.append({
            "state": state, "kind": step.kind, "label": step.label, "key": step.key,
            "seconds": record["seconds"] if record else None,
            "changes": store.changes(step, record) if record else set(),
            "expected": missing.get(step.key),
        })  # fmt: skip
    return rows


def step_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Return one artifact's line: its state, kind, label, key, how long it took, what changed since."""
    seconds = "" if row["seconds"] is None else duration(row["seconds"])
    if row["expected"] and row["expected"].seconds is not None:
        seconds = f"~{about(row['expected'].seconds)}"
    changed = f"other {' and '.join(sorted(row['changes']))}" if row["changes"] else ""
    return row["state"], row["kind"], row["label"], row["key"], seconds, changed
