"""What a builder is. A module of its own, so that a builder's code is what it computes and not what keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session
    from cfutils.pipeline.store import Artifact

Needs = dict[str, "Artifact"]
"""Upstream artifacts by role."""


@dataclass(frozen=True)
class Builder:
    """What builds one kind of artifact."""

    kind: str
    """A folder below runs/."""
    version: int
    """Raised by hand when the numbers that it computes change on purpose."""
    build: Callable[[Path, Needs, dict[str, Any], Session], dict[str, Any] | None]
    """`build(work, needs, params, session)` writes files into the folder `work`, resuming what it finds there,
    and returns notes: small facts, as JSON."""
    gpus: Literal["none", "one", "devices"] = "one"
    """GPUs that it takes on a cluster that has any: none, one, or the profile's `devices`."""
    shares: Callable[[Mapping[str, Any]], int] = lambda params: 1
    """In how many shares several processes may build it, by its parameters. With `params["share"]` = (i, n) it builds
    the i-th of n in its work folder; without, it joins what is there and builds the rest."""

    @property
    def module(self) -> str:
        """The module whose code it runs."""
        return self.build.__module__
