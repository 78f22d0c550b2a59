"""Write docs/extraction.md: what the rules of `cfutils.evaluation.extraction` read off the golden transcripts.

    python scripts/extraction_table.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cfutils import atomic, paths
from cfutils.data import chat
from cfutils.evaluation import extraction

CASES = paths.root() / "tests" / "evaluation" / "transcripts.json"
PAGE = paths.root() / "docs" / "extraction.md"
TITLES = {
    "transcript": "Thoughts cut off, then a number", "letter": "Choices that are letters",
    "word": "Choices that are words", "number": "Numbers", "integer": "Integers from 0 to 999",
    "expression": "Expressions",
}  # fmt: skip


def rule(name: str, options: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the rule of a group of transcripts."""
    if name in ("letter", "word"):
        return lambda text: extraction.choice(text, options)
    if name == "transcript":
        return lambda text: None if (answer := chat.split(text)[1]) is None else extraction.number(answer)
    return {"number": extraction.number, "integer": extraction.integer, "expression": extraction.expression}[name]


def found() -> Iterator[tuple[str, list[tuple[dict[str, Any], str | None]]]]:
    """Yield (group, transcripts with what its rule reads off each, as text)."""
    for group in json.loads(CASES.read_text(encoding="utf-8")):
        read = rule(group["rule"], group.get("options", {}))
        values = [(case, read(case["text"])) for case in group["cases"]]
        yield group["rule"], [(case, None if value is None else str(value)) for case, value in values]


def page() -> str:
    """Return the page: a table for each group."""
    lines = [
        "# What is read off an answer", "",
        "Made by `python scripts/extraction_table.py` from `tests/evaluation/transcripts.json`; the rules and their",
        "order stand in `cfutils/evaluation/extraction.py`. A dash: no answer, which is wrong, and not `answered`.",
    ]  # fmt: skip
    for group, cases in found():
        lines += ["", f"## {TITLES[group]}", "", "| transcript | text | read |", "|---|---|---|"]
        for case, value in cases:
            lines.append(f"| {_cell(case['about'])} | {_code(case['text'])} | {_code(value) if value else '–'} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{_cell(text).replace(chr(10), '⏎')}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    atomic.write_text(PAGE, page())
    print(PAGE.relative_to(paths.root()))
