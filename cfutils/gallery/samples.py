"""Samples of the base that a person can read: the first of each set, as they were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cfutils import recipes
from cfutils.gallery.questions import cut
from cfutils.gallery.runs import Part
from cfutils.lab import Lab

EACH = 40
"""Samples of a set that are shown."""
NAMES = {"context_free": "From the start token alone", "contextual": "Behind prompts of the target",
         "template_prefix": "From the chat template's user header"}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One text of the base."""

    index: int
    text: str
    tokens: int
    ended: bool
    """Whether an end token ended it; else it was cut at the length limit."""
    logprob: float
    """Mean log-probability of its tokens under the base at T = 1, nats."""


@dataclass(frozen=True)
class Pool:
    """The first samples of one source and temperature."""

    source: str
    temperature: float
    n: int
    """Samples in the whole set."""
    samples: tuple[Sample, ...]

    @property
    def title(self) -> str:
        """What a person reads above them."""
        return f"{NAMES[self.source]}, T = {self.temperature:g}"


def pools(lab: Lab) -> Part:
    """Return the sets of samples that are here or shipped, the profile's own temperature first, as `Pool`s."""
    replayed = {source for name in lab.profile.recipes for source in recipes.get(name).replay}
    found = []
    for source in (name for name in NAMES if name != "template_prefix" or name in replayed):
        warm = () if source == "contextual" else lab.profile.temperatures
        for t in dict.fromkeys((lab.profile.temperature, *warm)):
            artifact = lab.store.find(lab.steps.samples(source, temperature=t))
            if artifact:
                table = artifact.table("samples")
                found.append(
                    Pool(source, t, len(table), tuple(
                        Sample(int(row.index), cut(row.text), len(row.token_ids), row.finish_reason == "stop",
                               float(np.mean(row.logprobs)))
                        for row in table.head(EACH).itertuples(index=False)
                    ))
                )  # fmt: skip
    if not found:
        return Part.absent("samples")
    notes = [f"The first {EACH} of each set, as they were drawn; none is selected."]
    if any(pool.source == "contextual" for pool in found):
        notes.append("Of those behind prompts only what the base wrote is kept with the sample.")
    return Part(found, tuple(notes))
