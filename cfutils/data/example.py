"""One item that is tuned on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """One target item."""

    prompt: str
    """What stands before the response; empty for a text that is trained on whole."""
    response: str
    doc: dict[str, Any]
    """The native record, for lm-eval's own task on held-out items."""
    thinking: tuple[str, str] | None = None
    """Thought and answer that the response consists of, for a base that thinks; None: it is an answer alone."""
    turns: tuple[tuple[str, str], ...] = ()
    """(role, content) of all that was said before, of an item that is part of a conversation."""
    number: int = 0
    """Items before this one that have the same prompt, and other answers."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the prompt, or of a text that has none; then the number, if any."""
        found = hashlib.sha256((self.prompt or self.response).encode()).hexdigest()[:16]
        return f"{found}-{self.number}" if self.number else found

    @property
    def group(self) -> str:
        """The text whose hash decides between train and held-out: items that share it stay on one side."""
        said = (content for role, content in self.turns if role == "user")
        return next(said, self.prompt or self.response)
