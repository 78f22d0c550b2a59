"""How long what is missing will take to build, and how much disk, by what like artifacts took.

An artifact is like a step if it is of the same kind and made from the same base. Of those, the ones that were about as
much work come first, then those built on this machine, then those that share most parameters. The step is given the
median of their seconds for as much work as its own. Where nothing like it was measured, nothing is claimed.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cfutils import paths
from cfutils.digests import canonical
from cfutils.pipeline.results import Shipped
from cfutils.pipeline.store import Step, Store
from cfutils.units import about, size

HERE = "built here"
SCALE = 8.0
"""Times as much or as little work that is about as much: beyond it what does not grow with the work (loading a model,
say) is a large part of one of the two."""
WORK: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "pretrain": lambda p: p["settings"]["documents"],
    "samples": lambda p: p["n"] * p["max_tokens"],
    "tuned": lambda p: p["target"]["n_train"] * p["tuning"]["epochs"] / (1 - (p["tuning"]["ratio"] or 0)),
    "retained": lambda p: len(p["tasks"]["tasks"]) * p["tasks"]["limit"],
    "target": lambda p: p["n_heldout"],
    "validation": lambda p: p["n_validation"],
    "probe": lambda p: p["n_probe"],
    "estimate": lambda p: p["n"],
}
"""What the time of a kind is proportional to, of its parameters; that of others depends on the base alone."""


@dataclass(frozen=True)
class Expected:
    """What a step will take."""

    kind: str
    seconds: float | None
    """None: nothing like it was measured."""
    bytes: float
    """Of disk; 0 where neither its weights nor a like artifact tell."""
    source: str = ""
    """Where that was measured: built here, or shipped, on which processor; and whether it was far more or less work."""


@dataclass(frozen=True)
class _Measured:
    """A record, as far as it counts here."""

    params: frozenset[str]
    work: float | None
    seconds: float
    bytes: int
    source: str


def expected(steps: Iterable[Step], store: Store) -> list[Expected]:
    """Return what each of some steps will take, without those that it is made from."""
    steps = list(steps)
    known: dict[Any, list[_Measured]] = {}
    for record, source in _records({step.kind for step in steps}, store):
        inputs = record["inputs"]
        n_bytes = sum(file["bytes"] for file in record["files"].values())
        one = _Measured(_flat(inputs["params"]), _work(inputs), record["seconds"], n_bytes, source)
        known.setdefault(_family(inputs, record["key"]), []).append(one)
    return [_expected(step, known.get(_family(step.inputs, step.key), [])) for step in steps]


def _expected(step: Step, family: list[_Measured]) -> Expected:
    if not family:
        return Expected(step.kind, None, step.weight_bytes)
    work, params = _work(step.inputs), _flat(step.params)
    times = [work / one.work if work and one.work else 1.0 for one in family]
    ranks = [
        (min(0.0, math.log(SCALE) - abs(math.log(k))), one.source == HERE, len(one.params & params))
        for one, k in zip(family, times, strict=True)
    ]
    best = max(ranks)
    nearest = [(one, k) for one, k, rank in zip(family, times, ranks, strict=True) if rank == best]
    seconds = statistics.median(one.seconds * k for one, k in nearest)
    n_bytes = step.weight_bytes or statistics.median(one.bytes * k for one, k in nearest)
    one, k = nearest[0]
    far = ", much smaller" if k > SCALE else ", much larger" if k < 1 / SCALE else ""
    return Expected(step.kind, seconds, n_bytes, one.source + far)


def sentence(found: Iterable[Expected], *, workers: int = 1) -> str:
    """Say what steps will take together, and on which measurements that rests; "" for no steps.

    workers: steps that are built at the same time.
    """
    if not (found := list(found)):
        return ""
    known, unknown = ([one for one in found if (one.seconds is None) == no] for no in (False, True))
    kinds = ", ".join(dict.fromkeys(one.kind for one in unknown))
    disk = sum(one.bytes for one in found)
    parts = []
    if known:
        seconds = sum(one.seconds for one in known) / min(workers, len(known))
        sources = sorted({one.source for one in known})
        which = f" for {len(known):,} of them" if unknown else ""
        parts.append(f"about {about(seconds)}{which}, measured on like steps ({'; '.join(sources)})")
    if unknown:
        which = f" for {len(unknown):,} of them" if known else ""
        parts.append(f"time unknown{which}, nothing like {'them' if len(unknown) > 1 else 'it'} was measured ({kinds})")
    parts += [f"{size(disk)} of disk"] if disk else []
    return f"{len(found):,} step{'s are' if len(found) > 1 else ' is'} missing: {'; '.join(parts)}"


def _records(kinds: set[str], store: Store) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the records of some kinds, and their sources: this machine's, then those of all shipped results."""
    for kind in sorted(kinds):
        for path in (store.folder / kind).glob("[!.]*/record.json"):
            try:
                yield json.loads(path.read_text(encoding="utf-8")), HERE
            except (OSError, ValueError):  # removed meanwhile, or damaged
                continue
    for folder in sorted((paths.data() / "results").glob("*")):
        for record in Shipped(folder).records.values():
            if record["inputs"]["kind"] in kinds:
                yield record, f"shipped, {record['machine'].get('gpu') or record['machine']['cpu']}"


def _family(inputs: Mapping[str, Any], key: str) -> tuple[str, str | None, bool]:
    """Return what like artifacts have in common: kind, base, and whether they have a size.

    A base itself is like no other.
    """
    base = key if inputs["kind"] == "base" else inputs["needs"].get("base")
    return inputs["kind"], base, _work(inputs) is None


def _work(inputs: Mapping[str, Any]) -> float | None:
    """Return the amount of work in a kind's own unit; None where parameters do not tell it (all items of a task)."""
    try:
        return float(WORK[inputs["kind"]](inputs["params"])) if inputs["kind"] in WORK else 1.0
    except (KeyError, TypeError):
        return None


def _flat(params: Mapping[str, Any], above: str = "") -> frozenset[str]:
    """Return a parameter per element, with its name and value."""
    found: set[str] = set()
    for name, value in params.items():
        place = f"{above}.{name}"
        found |= _flat(value, place) if isinstance(value, Mapping) else {f"{place}={canonical(value)}"}
    return frozenset(found)
