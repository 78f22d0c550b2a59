"""Lines for people, and events for the batch runner."""

from __future__ import annotations

import json
import os
from typing import Any


def say(text: str) -> None:
    """Print a line that stays, above the live one (`progress`); in one piece, for another thread may write too."""
    print(f"{text}\n", end="", flush=True)


def emit(event: str, **fields: Any) -> None:
    """Tell the batch runner what happened: one JSON line in the file named by CFUTILS_EVENTS."""
    if target := os.environ.get("CFUTILS_EVENTS"):
        with open(target, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")
