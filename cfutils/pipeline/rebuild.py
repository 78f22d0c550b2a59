"""What is to be built again although it is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rebuild:
    """What is to be built again although it is there: `cfutils run --rebuild` and `--rebuild-changed`."""

    before: float = 0.0
    """Only what was finished before this time (seconds since the epoch): the start of the run."""
    changed: frozenset[str] | None = None
    """Only what differs from the present in one of these ("code", "versions"); None: all of it."""

    @classmethod
    def from_environment(cls) -> Rebuild:
        """Read what the batch runner has put into CFUTILS_REBUILD: a time, and perhaps kinds of change."""
        before, _, changed = os.environ.get("CFUTILS_REBUILD", "0").partition(":")
        return cls(float(before), frozenset(changed.split(",")) if changed else None)

    def wants(self, record: Mapping[str, Any], changes: set[str]) -> bool:
        """Whether an artifact, changed in these things since it was made, is to be built again."""
        changed = self.changed is None or bool(self.changed & changes)
        return record["finished"] < self.before and changed

    def __str__(self) -> str:
        return f"{self.before:.2f}" + (f":{','.join(sorted(self.changed))}" if self.changed else "")
