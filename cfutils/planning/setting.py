"""What all steps of a plan share: profile, shape of the base, device, and what is known of items."""

from __future__ import annotations

from dataclasses import dataclass

from cfutils.models import precision
from cfutils.planning import workloads
from cfutils.planning.architecture import Architecture
from cfutils.planning.devices import CPU, Device
from cfutils.planning.workloads import Target, Task
from cfutils.profiles import Profile

TUNED_SIZE = 4
"""Bytes of a weight, a gradient or a moment in tuning: fp32, whatever type weights are written in."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all steps of a plan share."""

    profile: Profile
    shape: Architecture
    device: Device
    target: Target
    tasks: dict[str, Task]

    @classmethod
    def of(cls, profile: Profile, shape: Architecture, device: Device) -> Setting:
        """Look up what is known of target and tasks."""
        target, tasks = workloads.target(profile), workloads.tasks(profile)
        return cls(profile=profile, shape=shape, device=device, target=target, tasks=tasks)

    @property
    def size(self) -> int:
        """Bytes of a weight in sampling, scoring and on disk; while it is tuned it has `TUNED_SIZE`."""
        return 2 if self.profile.dtype == "bfloat16" else 4

    @property
    def autocast(self) -> bool:
        """Whether that device tunes in bf16 autocast."""
        asked = precision.autocast(self.profile.autocast) if self.device.name == CPU else self.profile.autocast
        return asked is None or asked

    @property
    def sample(self) -> float:
        """Mean tokens of a context-free sample."""
        return workloads.sample(self.profile.base, self.profile.max_tokens)
