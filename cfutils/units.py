"""Durations and sizes as a person reads them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return 75 as 1:15 and 3675 as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """Return a time that is only estimated, in one unit: 35 s, 14 min, 3.2 h."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def size(number: float) -> str:
    """Return a number of bytes as a person reads it: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
