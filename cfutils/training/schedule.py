"""The learning rate by step: linear warm-up, then a cosine to zero after the last step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warm: int, total: int) -> float:
    """Return the rate of a step (from 0 on) out of `total`: peak * (step + 1) / warm in the first `warm` steps.

    Afterwards it is peak * (1 + cos(pi * (step - warm) / (total - warm))) / 2.
    """
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
