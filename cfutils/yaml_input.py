"""The YAML that a person writes: profile files, and values on the command line.

A strict subset of YAML 1.2, because YAML 1.1 (what `yaml.safe_load` reads) takes 1e-5 for a text, 007
for an octal number, `on` for true and, of two equal keys, silently the last. Anchors, aliases and tags
are refused: a profile needs none, and nested aliases grow without bound when they are expanded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cfutils.errors import UserError, shown

MAX_BYTES = 65_536
"""Largest profile file and largest value."""
MAX_DEPTH = 10
"""Deepest nesting; a profile needs 2."""
MAX_DIGITS = 100
"""Longest number, in characters."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars; lists and tables with text keys; no anchors, aliases, tags or repeated keys."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refusal("anchors and aliases (&, *) are not allowed: write the value out", event)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _refusal(f"the tag {shown(tag)} is not allowed: write plain values", event)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                name = shown(key.value) if isinstance(key, yaml.ScalarNode) else "a list or table"
                raise _refusal(f"{name} is not allowed as a key: a key must be a text", key)
            if key.value in seen:
                raise _refusal(f"the key {shown(key.value)} occurs twice: keep one", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > MAX_DIGITS:  # int() refuses more than 4,300 digits
            raise _refusal(f"a number of more than {MAX_DIGITS} characters", node)
        whole = node.tag == "tag:yaml.org,2002:int"
        return int(node.value) if whole else float(node.value)


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|None|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _refusal(problem: str, where: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def parse(text: str) -> Any:
    """Return the value of a YAML text: None, bool, int, float, str, or lists and tables of them.

    Raises `UserError` with the line and the column of what is not allowed.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{len(text):,} characters of YAML: at most {MAX_BYTES:,} are allowed")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{where}{what}") from None
    except yaml.reader.ReaderError as error:
        what = f"the character U+{error.character:04X} at position {error.position}"
        raise UserError(f"{what} is not allowed: remove it") from None
    except (ValueError, OverflowError) as error:  # of \U escapes and numbers that PyYAML does not check
        raise UserError(f"not valid YAML: {str(error)[:200]}") from None


def read(path: Path) -> Any:
    """Return the value of a YAML file in UTF-8; raises `UserError` naming the file."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"the file is larger than {MAX_BYTES:,} bytes")
        return parse(content.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except UserError as error:
        raise UserError(f"{path.name} is not a valid profile: {error}") from None
