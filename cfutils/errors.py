"""The error that a user can cause and fix, and how a value is shown in it.

Everything else that is raised is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re

LONGEST = 200
"""Characters of a value that a message shows in full."""


class UserError(ValueError):
    """Bad input, a missing file or a full disk: one clear message, no traceback on the command line."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Numbers of the system for a disk that takes no more."""


def disk_full(error: Exception) -> str | None:
    """Return in words that a disk takes no more, whichever library found out; None for any other error."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors
        number = int(found[1])
    return os.strerror(number) if number in FULL else None


def shown(value: object) -> str:
    """Return the repr of a value, cut in the middle if it is longer than `LONGEST` characters."""
    try:
        text = repr(value)
    except Exception:  # an integer of more than 4,300 digits, nesting beyond the recursion limit
        return f"<{type(value).__name__} too large to show>"
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 40]}...{text[-20:]} ({len(text):,} characters)"


def invalid_value(name: str, value: object, allowed: str, fix: str = "") -> UserError:
    """Build the error that names the parameter, the value given, what is allowed, and the fix."""
    message = f"{name} = {shown(value)} is not allowed: {allowed}."
    return UserError(f"{message} {fix}" if fix else message)
