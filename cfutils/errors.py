"""The one error that a user can cause and mend.

Everything else that is raised is a fault of the program and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, a missing piece or a full disk: one clear message, no traceback on the command line."""


def bad(name: str, value: object, allowed: str, fix: str = "") -> UserError:
    """Build the error that names the parameter, the value given, what is allowed, and the fix."""
    message = f"{name} = {value!r} is not allowed: {allowed}."
    return UserError(f"{message} {fix}" if fix else message)
