"""Which weights may go: those of runs from which everything has been made that is going to be read.

`keep_weights` of the profile says what stays of them: all, those of the run that is recommended, or of the latest one.
Steps are built in an order that makes this early: as soon as a run is tuned, it is scored, averaged and measured, and
only then the next one is tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from cfutils.events import say
from cfutils.pipeline.builders.tuning import AVERAGED, REDUCED, TUNED
from cfutils.pipeline.store import Step, Store
from cfutils.units import size

Keep = Literal["all", "recommended", "last"]
KINDS = (TUNED.kind, AVERAGED.kind, REDUCED.kind)
"""Kinds of artifacts whose weights may be pruned; a base's stay."""
AT_MOST = {"last": 1, "recommended": 2}
"""Scored runs that keep their weights: under `recommended` plain fine-tuning and the best of the others so far."""


class Dependents:
    """What is made from the weights of each run, among some steps."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.of: dict[str, dict[str, Step]] = {}
        """By key of a run: the steps that need its weights, by key."""
        self.runs: dict[str, Step] = {}
        """The runs, by key."""
        for step in steps:
            if step.kind in KINDS:
                self.runs.setdefault(step.key, step)
                self.of.setdefault(step.key, {})
            for need in step.needs.values():
                if need.kind in KINDS:
                    self.of.setdefault(need.key, {})[step.key] = step

    def done(self, run: Step, store: Store) -> bool:
        """Whether all that needs a run's weights is there (what has been pruned itself is)."""
        made = self.of.get(run.key, {})
        return bool(made) and all(store.find(step) for step in made.values())


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Return steps, deepest first (as `Store.missing` has them), so that whatever is made from a run follows it."""
    pending = {step.key: step for step in steps}
    dependents = Dependents(pending.values()).of
    found: dict[str, Step] = {}

    def put(step: Step) -> None:
        if step.key in found or step.key not in pending:
            return
        for need in step.needs.values():
            put(need)
        if step.key in found:  # put as a dependent of one of its needs
            return
        found[step.key] = step
        for made in sorted(dependents.get(step.key, {}).values(), key=lambda one: one.kind in KINDS):
            if not any(need.kind in KINDS and need.key in pending and need.key not in found
                       for need in made.needs.values()):  # fmt: skip
                put(made)

    for step in pending.values():
        put(step)
    return list(found.values())


def peak_bytes(steps: Iterable[Step], keep: Keep, *, later: Iterable[Step] = (), workers: int = 1) -> int:
    """Return the most disk that weights take at one time while missing steps are built in order and pruned.

    later: other missing steps, which are built another time; runs that they need stay. With several workers as many
    steps less one are ahead of the order. The largest of the scored runs are taken to be those that are kept.
    """
    steps = in_order(steps)
    largest = max((step.weight_bytes for step in steps), default=0)
    if keep == "all":
        return sum(step.weight_bytes for step in steps)
    left = {key: set(made) for key, made in Dependents([*steps, *later]).of.items()}
    there: dict[str, int] = {}
    scored: list[int] = []
    other = most = 0
    for step in steps:
        if step.kind in KINDS:
            there[step.key] = step.weight_bytes
        else:
            other += step.weight_bytes
        kept = sum(sorted(scored)[-AT_MOST[keep] :])
        most = max(most, other + sum(there.values()) + kept)
        for need in step.needs.values():
            if need.key in there:
                left[need.key].discard(step.key)
                if not left[need.key]:
                    scored.append(there.pop(need.key))
    return most + (workers - 1) * largest


class Pruner:
    """Prunes by a profile's policy while its steps are built."""

    def __init__(
        self, store: Store, tops: Iterable[Step], keep: Keep, chosen: Callable[[], Collection[str]] = tuple
    ) -> None:
        """tops: everything that is going to be read. chosen: keys of the runs that `recommended` keeps, of those that
        have been scored so far."""
        self.store, self.keep, self.chosen = store, keep, chosen
        self._dependents = Dependents(step for top in tops for step in top.walk())

    def after(self, step: Step) -> int:
        """Prune what may go now that a step is built; return the bytes freed."""
        if self.keep == "all" or not any(need.kind in KINDS for need in step.needs.values()):
            return 0
        return self.sweep()

    def sweep(self) -> int:
        """Prune all runs that may go; return the bytes freed."""
        there = [run for run in self._dependents.runs.values() if self.store.find_here(run)]
        scored = [run for run in there if self._dependents.done(run, self.store)]
        if self.keep == "last":
            kept = {max(there, key=lambda run: self.store.record(run)["finished"]).key} if there else set()
        else:
            kept = set(self.chosen()) if scored else set()
        freed = 0
        for run in scored:
            if run.key not in kept and (gone := self.store.prune(run)):
                say(f"pruned: {run.label} ({size(gone)}), whose scores are all there")
                freed += gone
        return freed
