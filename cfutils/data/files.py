"""Target items from data as people have them, and a count of whatever was met on the way.

JSONL, a JSON array, CSV, TSV, Parquet, a folder of Hugging Face `datasets`, or `hub:ID`; with prompt and response,
prompt and completion, question and answer, Alpaca's instruction, input and output, chat messages, or text alone.
Nothing is dropped in silence: what is left out is counted, and what cannot be read ends with the line it stands in.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cfutils.data.example import Example
from cfutils.errors import UserError, invalid_value

HUB = "hub:"
"""In front of the id of a data set on the hub."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("instruction", "output"),
    ("instruction", "response"),
)  # fmt: skip
"""Columns of a prompt and what answers it, the first pair that is there."""
CHATS = ("messages", "conversations", "conversation")
"""Columns of a list of turns."""
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
"""Other names of roles (ShareGPT, Gemma)."""
PARAGRAPH = "\n\n"


@dataclass(frozen=True)
class Found:
    """What was read."""

    examples: tuple[Example, ...]
    shape: str
    """The columns that were used, "prompt, completion" for example."""
    counts: Mapping[str, int]
    """rows; left out: empty answers, empty prompts, exact duplicates; kept: repeated prompts, turns beyond the first
    that a conversation's assistant says."""


def is_file(name: str) -> bool:
    """Whether the name of a target is that of data of one's own, rather than of a target that is known."""
    return name.startswith(HUB) or name.lower().endswith(SUFFIXES) or Path(name).expanduser().is_dir()


def digest(name: str, path: Path | None) -> str:
    """Return what decides the items: the bytes of the file or folder, or the id on the hub."""
    if path is None:
        return name
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def read(name: str, path: Path | None, *, columns: Mapping[str, str] | None = None) -> Found:
    """Read all items.

    name: as the user gave it. path: the file or folder, None for `hub:ID`. columns: which column holds what, where
    names differ: {"prompt": "query", "response": "gold"} for example; the keys are prompt and response, messages, or
    text.

    An assistant's turns each become an item of their own, behind all that was said before, so that each is trained as
    the model will be asked for it. Raises `UserError` with the line or row for what cannot be read.
    """
    counts: Counter[str] = Counter()
    found: dict[tuple, Example] = {}
    same: Counter[str] = Counter()
    shape: tuple[str, ...] | None = None
    for where, row in rows(name, path):
        counts["rows"] += 1
        if not isinstance(row, dict):
            raise UserError(f"{where}: wants an object with named columns, not {type(row).__name__}")
        shape = shape or _shape(row, columns or {}, where)
        for turn, (example, lacking) in enumerate(_examples(row, shape, where)):
            counts["later turns"] += turn > 0
            if lacking:
                counts[f"empty {lacking}"] += 1
                continue
            key = (example.turns, example.prompt, example.response)
            if key in found:
                counts["exact duplicates"] += 1
                continue
            number = same[example.prompt or example.response]
            same[example.prompt or example.response] += 1
            counts["repeated prompts"] += number > 0
            found[key] = replace(example, number=number)
    if not found:
        left = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        raise UserError(f"{_short(name)} holds no item" + (f" ({left})" if left else ": it is empty"))
    return Found(tuple(found.values()), ", ".join(shape), {k: n for k, n in counts.items() if n})


def _short(name: str) -> str:
    return name if name.startswith(HUB) else Path(name).name


def _shape(row: dict, columns: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Return the columns to read, from those of the first row."""
    if columns:
        chosen = tuple(columns.get(part, part) for part in _parts(columns))
        if lacking := [name for name in chosen if name not in row]:
            raise UserError(f"{where}: no column {lacking[0]!r}; there are {', '.join(map(str, row))}")
        return chosen
    for pair in PAIRS:
        if set(pair) <= row.keys():
            return (*pair, "input") if pair[0] == "instruction" and "input" in row else pair
    for name in (*CHATS, "text"):
        if name in row:
            return (name,)
    wanted = "; ".join([*(" and ".join(pair) for pair in PAIRS), *CHATS, "text"])
    raise UserError(
        f"{where}: no columns to train on. There are {', '.join(map(str, row)) or 'none'}; wanted are {wanted}. "
        "Or say which is which with columns, {prompt: ..., response: ...} for example."
    )


def _parts(columns: Mapping[str, str]) -> tuple[str, ...]:
    for parts in (("prompt", "response"), ("messages",), ("text",)):
        if set(columns) <= set(parts):
            return parts
    raise invalid_value("columns", dict(columns), "names for prompt and response, for messages, or for text")


def _examples(row: dict, shape: tuple[str, ...], where: str) -> Iterator[tuple[Example, str | None]]:
    """Yield the items of a row, each with what it lacks ("answers", "prompts"), if it lacks something."""
    first = row.get(shape[0])
    if isinstance(first, list):
        turns = _turns(first, f"{where}, {shape[0]}")
        if len(shape) > 1:  # a conversation in two columns
            rest = row.get(shape[1])
            turns += _turns(rest if isinstance(rest, list) else [], f"{where}, {shape[1]}")
        if not any(role == "assistant" for role, _ in turns):
            raise UserError(f"{where}: a conversation in which the assistant says nothing")
        for at, (role, content) in enumerate(turns):
            if role == "assistant":
                before = tuple(turns[:at])
                prompt = PARAGRAPH.join(said for _, said in before)
                lacking = None if content.strip() else "answers"
                yield Example(prompt, content, row, turns=before), lacking
        return
    values = [_text(row, name, where) for name in shape]
    if len(shape) == 1:
        yield Example("", values[0], row), None if values[0].strip() else "texts"
        return
    prompt, response = values[:2]
    if shape[0] == "instruction":  # Alpaca's are words alone, without what separates them
        prompt = PARAGRAPH.join(part for part in (prompt, *values[2:]) if part.strip()) + PARAGRAPH
    lacking = "answers" if not response.strip() else None if prompt.strip() else "prompts"
    yield Example(prompt, response, row), lacking


def _text(row: dict, name: str, where: str) -> str:
    """Return the text of a column; an input that is absent is empty."""
    value = row.get(name, "" if name == "input" else None)
    if name == "input" and value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: wants a text under {name!r}, not {json.dumps(value, default=str)[:60]}")
    return encodable(value, where)


def _turns(turns: list, where: str) -> list[tuple[str, str]]:
    """Return (role, content) of a list of messages, also of ShareGPT's from and value."""
    found = []
    for number, turn in enumerate(turns, start=1):
        here = f"{where}, turn {number}"
        if not isinstance(turn, dict):
            raise UserError(f"{here}: wants an object with role and content")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        role = ROLES.get(role, role)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise UserError(
                f"{here}: wants a role (system, user, assistant) and a text under content, not {role!r} and "
                f"{json.dumps(content, default=str)[:60]}"
            )
        found.append((role, encodable(content, here)))
    return found


def encodable(text: str, where: str) -> str:
    """Return a text as it is; raises `UserError` for half a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: half a surrogate pair, which is no character") from None
    return text


# ---- rows


def rows(name: str, path: Path | None) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) of every row; where is for messages, "mine.csv, line 3" for example.

    Raises `UserError` with the line for what cannot be read.
    """
    if path is None or path.is_dir():
        yield from _hugging_face(name, path)
        return
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            table = parquet.read_table(path).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{path.name} is not a Parquet file ({error})") from None
        yield from ((f"{path.name}, row {n}", row) for n, row in enumerate(table, start=1))
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path.name} is not UTF-8 text (line {line}: {error.reason})") from None
    if kind in (".csv", ".tsv"):
        yield from _delimited(path, text)
    elif kind == ".json" and (whole := _whole(text)) is not None:
        yield from ((f"{path.name}, item {n}", row) for n, row in enumerate(whole, start=1))
    else:
        for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 ends no line
            if line.strip():
                yield (where := f"{path.name}, line {number}"), _json(line, where)


def _whole(text: str) -> list | None:
    """Return the array of a JSON file, None if it holds lines instead; an object around one list is that list."""
    try:
        found = _json(text, "")
    except UserError:
        if text.lstrip().startswith("["):
            raise
        return None
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        return lists[0] if len(found) == 1 and lists else [found]
    return found if isinstance(found, list) else [found]


def _json(text: str, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict:
        names = Counter(name for name, _ in pairs)
        if twice := [name for name, n in names.items() if n > 1]:
            raise UserError(f"{where or 'the file'}: the column {twice[0]!r} stands there twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where or 'the file'}: not valid JSON ({error})") from None


def _delimited(path: Path, text: str) -> Iterator[tuple[str, dict]]:
    csv.field_size_limit(sys.maxsize)
    head = text.partition("\n")[0]
    mark = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=mark)  # a quoted value may hold line ends
    try:
        names = next(rows, [])
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise UserError(f"{path.name}: the column {twice[0]!r} stands there twice")
        for row in rows:
            where = f"{path.name}, line {rows.line_num}"
            if any(row) and len(row) != len(names):
                raise UserError(f"{where}: {len(row)} values for {len(names)} columns")
            if any(row):
                yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path.name}, line {rows.line_num}: not valid CSV ({error})") from None


def _hugging_face(name: str, path: Path | None) -> Iterator[tuple[str, dict]]:
    import datasets

    if path is None:
        rows = datasets.load_dataset(name.removeprefix(HUB), split="train")
    else:
        try:
            rows = datasets.load_from_disk(str(path))
        except FileNotFoundError:
            raise invalid_value(
                "target", str(path), "a folder written by datasets' save_to_disk", "Or give one of its files."
            ) from None
        if isinstance(rows, datasets.DatasetDict):
            if "train" not in rows and len(rows) > 1:
                raise invalid_value("target", str(path), f"a folder with a split named train, not {', '.join(rows)}")
            rows = rows["train"] if "train" in rows else next(iter(rows.values()))
    yield from ((f"{_short(name)}, row {n}", row) for n, row in enumerate(rows, start=1))
