"""Who may train on a text: a hash decides, once and for all, so that no text ever changes sides."""

from __future__ import annotations

import hashlib


def is_heldout(text: str, *, share: float = 0.25) -> bool:
    """Whether a text belongs to the held-out side, which is scored and never trained on."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) < share * 16**8
