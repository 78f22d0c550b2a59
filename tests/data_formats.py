"""One small file of each format that targets of one's own are read from (`cfutils.data.files`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

SAID = (
    ("What is 3 + 4?", "7 apples."),
    ("Name a café in Zürich.", "Café «Odeon» 🙂"),
    ("Two lines, please.", "one\n  two"),
)
TURNS = tuple((("user", prompt), ("assistant", response)) for prompt, response in SAID)
CHATS = (
    (("system", "Be brief."), *TURNS[0], *TURNS[1]),
    TURNS[2],
)
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
RESPONSES = tuple(response for _, response in SAID)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _frame(*, prompt: str, response: str) -> pd.DataFrame:
    return pd.DataFrame(SAID, columns=[prompt, response])


def _shared(chats: Any) -> str:
    return _lines([{"conversations": [{"from": SHAREGPT[r], "value": c} for r, c in chat]} for chat in chats])


@dataclass(frozen=True)
class Format:
    """A file of data."""

    file: str
    responses: tuple[str, ...] = RESPONSES
    """What carries loss, item by item."""


FORMATS = {
    "prompt, response (JSONL)": Format("pairs.jsonl", tuple(f" {r}" for r in RESPONSES)),
    "Alpaca (JSON)": Format("alpaca.json"),
    "question, answer (CSV)": Format("questions.csv"),
    "prompt, completion (Parquet)": Format("pairs.parquet"),
    "messages": Format("messages.jsonl"),
    "ShareGPT": Format("sharegpt.jsonl"),
    "ShareGPT, gpt first": Format("greeting.jsonl", ("Hello!", RESPONSES[0])),
    "text": Format("text.jsonl", tuple(f"{p} {r}" for p, r in SAID)),
    "`datasets` folder": Format("saved"),
}


def write(folder: Path) -> None:
    """Write a file of each format."""
    import datasets

    pairs = [{"prompt": f"Question: {p}\nAnswer:", "response": f" {r}"} for p, r in SAID]
    alpaca = [{"instruction": p, "input": "", "output": r} for p, r in SAID]
    alpaca[1]["input"] = "The old town."
    messages = [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in CHATS]
    greeting = (("assistant", "Hello!"), *TURNS[0])
    for name, text in {
        "pairs.jsonl": _lines(pairs), "alpaca.json": json.dumps(alpaca), "messages.jsonl": _lines(messages),
        "sharegpt.jsonl": _shared(CHATS), "greeting.jsonl": _shared([greeting]),
        "text.jsonl": _lines([{"text": f"{p} {r}"} for p, r in SAID]),
    }.items():  # fmt: skip
        (folder / name).write_text(text, encoding="utf-8")
    _frame(prompt="question", response="answer").to_csv(folder / "questions.csv", index=False)
    _frame(prompt="prompt", response="completion").to_parquet(folder / "pairs.parquet")
    datasets.Dataset.from_pandas(_frame(prompt="prompt", response="completion")).save_to_disk(folder / "saved")
