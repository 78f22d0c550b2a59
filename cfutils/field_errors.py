"""What pydantic says of a wrong value, in one line and in our words."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from cfutils.errors import UserError, invalid_value, shown
from cfutils.recipes import RECIPES

_KINDS = {
    "integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text",
    "array": "a list", "object": "a table", "null": "null",
}  # fmt: skip
_LIMITS = {
    ("minimum", "maximum"): " from {:,} to {:,}",
    ("exclusiveMinimum", "maximum"): " above {:,} and at most {:,}",
    ("minimum", "exclusiveMaximum"): " in [{:,}, {:,})",
    ("minLength", "maxLength"): " of {:,} to {:,} characters",
    ("minItems", "maxItems"): " of {:,} to {:,} different values",
}


def user_error(error: ValidationError, schemas: dict[str, dict[str, Any]]) -> UserError:
    """Build one line from pydantic's list: the first error in full, and the names of the other fields.

    schemas: the JSON schema of each field.
    """
    errors = error.errors(include_url=False)
    if missing := [e["loc"][0] for e in errors if e["type"] == "missing"]:
        return UserError(f"missing, and without a default: {', '.join(missing)}")
    first = errors[0]
    if isinstance(own := first.get("ctx", {}).get("error"), UserError):
        return own
    field, *path = first["loc"]
    schema, where = schemas[field], field
    if path[1:] == ["[key]"]:
        schema, where = {"type": "string", **schema["propertyNames"]}, f"key of {field}"
    elif path:
        schema, where = schema.get("items") or schema["additionalProperties"], f"{field}[{shown(path[0])}]"
    others = list(dict.fromkeys(e["loc"][0] for e in errors if e["loc"][0] != field))
    also = f"Also wrong: {', '.join(others)}." if others else ""
    value = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
    return invalid_value(where, value, _words(schema), also)


def _words(schema: dict) -> str:
    """Return in words what a JSON schema admits."""
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if "enum" in schema or schema.get("format") == "recipe":
        return "one of " + ", ".join(map(repr, schema.get("enum") or RECIPES))
    words = _KINDS[schema["type"]]
    for keys, text in _LIMITS.items():
        if schema.keys() >= set(keys):
            words += text.format(*(schema[key] for key in keys))
    if "description" in schema:
        words += f" ({schema['description']})"
    each = schema.get("items") or schema.get("additionalProperties")
    return f"{words}, each {_words(each)}" if each else words
