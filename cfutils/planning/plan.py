"""What the steps of a profile take together on some devices, kind by kind; what does not fit, and what would fit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cfutils import recipes
from cfutils.errors import UserError
from cfutils.pipeline import pruning
from cfutils.pipeline.store import Step, Store
from cfutils.planning import costs, memory, work
from cfutils.planning.devices import CPU
from cfutils.planning.setting import TUNED_SIZE, Setting

SAMPLE_BYTES = 15
"""Disk that a sampled token takes in the store: ids, log-probabilities and text, compressed."""
SMALLEST_PASS = 1024
"""Fewest pass_tokens that are proposed: below it products are too small to be fast."""
LEFT_OUT = 2
"""Most recipes that are proposed to be left out."""
ORDER = ("base", "healed", "pretrain", "samples", "entropy", "tuned", "averaged", "reduced", "retained", "target",
         "validation", "probe", "estimate", "log")  # fmt: skip
"""Kinds of steps in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All steps of one kind."""

    name: str
    steps: int
    sampled: float
    trained: float
    scored: float
    """Tokens."""
    flops: float
    parts: memory.Parts
    """What the step with the highest peak holds on each device that it takes, in bytes."""
    label: str
    """That step."""
    disk: float
    """Bytes that stay."""
    seconds: float
    """Of devices: a step that takes two counts twice."""
    each: int
    """Devices that a step takes."""

    @property
    def peak(self) -> float:
        """Bytes of a device, at most."""
        return memory.total(self.parts)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run takes."""

    setting: Setting
    count: int
    """Devices that are held for the whole run."""
    kinds: tuple[Kind, ...]
    weights: float
    """Bytes of disk that the weights of runs take at one time, at most, under the profile's `keep_weights`."""
    transient: float
    """Bytes of disk that the largest run takes beside them: its checkpoint, and states of the base."""

    @property
    def seconds(self) -> float:
        """Wall-clock time, if as many steps of a kind run side by side as there are devices for."""
        total, set_ = 0.0, self.setting
        for kind in self.kinds:
            workers = set_.profile.workers
            side = costs.side_by_side(set_.device, count=self.count, each=kind.each, workers=workers)
            total += math.ceil(kind.steps / side) * kind.seconds / kind.each / kind.steps
        return total

    @property
    def dollars(self) -> float:
        """The price of all devices over that time."""
        return self.seconds / 3600 * self.count * self.setting.device.price

    @property
    def all_weights(self) -> float:
        """Bytes of disk that the weights of runs would take if all were kept."""
        return sum(kind.disk for kind in self.kinds if kind.name in pruning.KINDS)

    @property
    def disk(self) -> float:
        """Bytes of disk at one time, at most, without what is transient."""
        return self.weights + sum(kind.disk for kind in self.kinds if kind.name not in pruning.KINDS)

    @property
    def room(self) -> float:
        """Bytes that tensors may take on a device."""
        return self.setting.device.memory - self.setting.device.reserve

    def too_large(self) -> list[Kind]:
        """Return the kinds whose peak exceeds the room on a device."""
        return [kind for kind in self.kinds if kind.peak > self.room]


def make(steps: Iterable[Step], set_: Setting, *, count: int) -> Plan:
    """Return what steps (each once) take; raises `UserError` where a step takes more devices than there are."""
    if count < set_.profile.devices:
        raise UserError(
            f"--count = {count} is not allowed: {set_.profile.name} tunes on devices = {set_.profile.devices}"
        )
    steps = list(steps)
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(step.kind, []).append(step)
    kinds = [_kind(name, groups[name], set_) for name in ORDER if name in groups]
    return Plan(
        setting=set_, count=count, kinds=tuple(kinds), transient=_transient(set_), weights=_weights(steps, set_, count)
    )


def _weights(steps: list[Step], set_: Setting, count: int) -> float:
    p, size = set_.profile, int(memory.weights(set_))
    sized = [replace(step, weight_bytes=size if step.kind in pruning.KINDS else 0) for step in steps]
    side = costs.side_by_side(set_.device, count=count, each=p.devices, workers=p.workers)
    return float(pruning.peak_bytes(sized, p.keep_weights, workers=side))


def _kind(name: str, steps: list[Step], set_: Setting) -> Kind:
    each = set_.profile.devices if name == "tuned" else 1
    works = [work.work(step, set_) for step in steps]
    peaks = [(step, memory.peak(step, set_)) for step in steps]
    largest, parts = max(peaks, key=lambda pair: memory.total(pair[1]))
    disk = {"base": 1, "healed": 1, "tuned": len(steps), "averaged": len(steps), "reduced": len(steps)}.get(name, 0)
    return Kind(
        name=name, steps=len(steps), sampled=sum(w.sampled for w in works), trained=sum(w.trained for w in works),
        scored=sum(w.scored for w in works), flops=sum(w.flops for w in works), parts=parts, label=largest.label,
        disk=disk * memory.weights(set_) + SAMPLE_BYTES * (name == "samples") * sum(w.sampled for w in works),
        seconds=sum(costs.seconds(w, set_.device, over=each) * each for w in works), each=each,
    )  # fmt: skip


def _transient(set_: Setting) -> float:
    p, shape = set_.profile, set_.shape
    trained = TUNED_SIZE * (shape.adapters(memory.lora_rank(p)) if p.train == "lora" else shape.parameters)
    replayed = p.ratio / (1 - p.ratio) * p.n_train * set_.target.supervised
    return 3 * trained + replayed * shape.hidden * set_.size


def fixes(plan: Plan, steps: list[Step], kind: Kind) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield changes to the profile with which a kind of steps fits, and its peak then.

    Single changes first; if none is enough, the first of their sums that is.
    """
    found, together = False, {}
    for change in _changes(plan, steps, kind):
        if (peak := _peak_with(plan, steps, kind, change)) <= plan.room:
            found = True
            yield change, peak
    if not found:
        for change in _changes(plan, steps, kind):
            together |= change
            if (peak := _peak_with(plan, steps, kind, together)) <= plan.room:
                yield together, peak
                return


def _changes(plan: Plan, steps: list[Step], kind: Kind) -> list[dict[str, Any]]:
    p = plan.setting.profile
    smaller = [{"pass_tokens": n} for n in (p.pass_tokens // 2, p.pass_tokens // 4) if n >= SMALLEST_PASS]
    if kind.name not in ("tuned", "healed"):
        found = [{"chunk": p.chunk // n} for n in (2, 4) if p.chunk >= 8 * n] if kind.name == "samples" else smaller
        return found + ([] if p.dtype == "bfloat16" else [{"dtype": "bfloat16"}])
    found = [] if p.gradient_checkpointing else [{"gradient_checkpointing": True}]
    found += smaller
    own = [step for step in steps if step.kind == kind.name]
    large = {_recipe(one) for one in own if memory.total(memory.peak(one, plan.setting)) > plan.room}
    if len(rest := [name for name in p.recipes if name not in large]) >= max(1, len(p.recipes) - LEFT_OUT):
        found.append({"recipes": rest})
    found += [{"devices": n} for n in (2, 4, 8) if p.devices < n <= plan.count]
    if plan.setting.device.name != CPU and not p.offload:
        found.append({"offload": True})
    low = [name for name in p.recipes if not (row := recipes.get(name)).penalty and row.train == "all"]
    if p.train == "all" and low:
        found.append({"train": "lora"} | ({} if len(low) == len(p.recipes) else {"recipes": low}))
    return found


def _recipe(step: Step) -> str:
    return step.label.partition(" ")[0]  # a run's label begins with it (`recipes.Plan.label`)


def _peak_with(plan: Plan, steps: list[Step], kind: Kind, change: dict[str, Any]) -> float:
    set_ = replace(plan.setting, profile=plan.setting.profile.change(**change))
    peaks = []
    for step in steps:
        if step.kind == kind.name and (kind.name != "tuned" or _recipe(step) in set_.profile.recipes):
            if change.get("train") == "lora" and step.params["tuning"]["lora_rank"] is None:
                low = {**step.params["tuning"], "train": "lora", "lora_rank": memory.lora_rank(set_.profile)}
                step = replace(step, params={**step.params, "tuning": low})
            peaks.append(memory.total(memory.peak(step, set_)))
    return max(peaks, default=0.0)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Steps of a kind that were built, here or where the results ship from."""

    kind: str
    steps: int
    predicted: float
    seconds: float
    """Medians of a step."""
    machine: str


def measured(steps: Iterable[Step], set_: Setting, store: Store) -> list[Measured]:
    """Return, by kind and machine, what is predicted and what was measured of steps that have a record."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for step in steps:
        took = work.work(step, set_)
        if took.parts and (record := store.record(step)):
            machine = record["machine"].get("gpu") or record["machine"]["cpu"]
            found.setdefault((step.kind, machine), []).append((costs.seconds(took, set_.device), record["seconds"]))
    return [
        Measured(
            kind=kind, machine=machine, steps=len(pairs), predicted=statistics.median(p for p, _ in pairs),
            seconds=statistics.median(s for _, s in pairs),
        )
        for (kind, machine), pairs in sorted(found.items(), key=lambda one: ORDER.index(one[0][0]))
    ]
