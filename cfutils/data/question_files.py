"""Questions with gold answers in a file of one's own, and the lm-eval task that they make.

A row has `question`, which is asked as "Question: ...\\nAnswer:", or `prompt`, which is asked as it is; and `answer` or
`gold`, or `answers`, a list of accepted ones. With `choices`, a list with the answer among them, the likeliest choice
answers; without, one generated line is compared with the gold answers. A space separates prompt and answer in a file
that has no white space there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfutils.data import files, packaged
from cfutils.errors import UserError, shown

ASKED = ("question", "prompt")
GOLD = ("answer", "gold", "answers")
CHOICES = "choices"


@dataclass(frozen=True)
class Question:
    """One row."""

    where: str
    """For messages: "mine.jsonl, line 3"."""
    asked: str
    prompt: str
    """What the model continues."""
    answers: tuple[str, ...]
    """The accepted ones; the first is the one whose bits per byte are scored."""
    choices: tuple[str, ...]
    """Empty where the answer is generated."""

    @property
    def spaced(self) -> bool:
        """Whether white space stands between the prompt and whatever may follow it."""
        return self.prompt[-1].isspace() or all(text[0].isspace() for text in (*self.answers, *self.choices))


def read(path: Path) -> tuple[Question, ...]:
    """Read all rows; raises `UserError` with the line of the first that is not a question with its answer.

    A question that stands there twice with the same choices is refused: it would weigh twice.
    """
    found: dict[tuple, Question] = {}
    asked = gold = ""
    for where, row in files.rows(path.name, path):
        if not isinstance(row, dict):
            raise UserError(f"{where}: wants an object with named columns, not {type(row).__name__}")
        if not found:
            asked, gold = _column(row, ASKED, "the question", where), _column(row, GOLD, "the gold answer", where)
        one = _question(row, asked, gold, where)
        first = next(iter(found.values()), one)
        if bool(one.choices) != bool(first.choices):
            has, had = ("choices", "none") if one.choices else ("no choices", "some")
            raise UserError(f"{where}: has {has}, and {_line(first)} has {had}; put the two kinds into two files")
        if same := found.get((one.prompt.strip(), one.choices)):
            raise UserError(f"{where}: the question of {_line(same)} again; leave one of them out")
        found[one.prompt.strip(), one.choices] = one
    if not found:
        raise UserError(f"{path.name} holds no question: it is empty")
    return tuple(found.values())


def _line(one: Question) -> str:
    return one.where.rpartition(", ")[2]


def _column(row: dict, names: tuple[str, ...], what: str, where: str) -> str:
    there = [name for name in names if name in row]
    if len(there) != 1:
        raise UserError(
            f"{where}: wants {what} in one column named {' or '.join(names)}; there are "
            f"{', '.join(map(str, row)) or 'none'}"
        )
    return there[0]


def _question(row: dict, asked: str, gold: str, where: str) -> Question:
    if lacking := [name for name in (asked, gold) if name not in row]:
        raise UserError(f"{where}: no column {lacking[0]!r}; there are {', '.join(map(str, row)) or 'none'}")
    question = _text(row[asked], asked, where)
    answers, choices = row[gold], row.get(CHOICES) or []
    answers = answers if isinstance(answers, list) else [answers]
    if not answers:
        raise UserError(f"{where}: wants a gold answer under {gold!r}, not an empty list")
    answers = tuple(_text(one, gold, where) for one in answers)
    if not isinstance(choices, list):
        raise UserError(f"{where}: wants a list of texts under {CHOICES!r}, not {shown(choices)}")
    choices = tuple(_text(one, CHOICES, where) for one in choices)
    if choices:
        _check_choices([one.strip() for one in choices], [one.strip() for one in answers], where)
    prompt = f"Question: {question.strip()}\nAnswer:" if asked == "question" else question
    return Question(where, question, prompt, answers, choices)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: wants a text under {name!r}, not {shown(value)}")
    return files.encodable(value, where)


def _check_choices(choices: list[str], answers: list[str], where: str) -> None:
    if len(set(choices)) < max(2, len(choices)):
        raise UserError(f"{where}: wants at least two choices, each different from the others")
    if len(answers) > 1:
        raise UserError(f"{where}: {len(answers)} gold answers; of choices one is right")
    if answers[0] not in choices:
        raise UserError(
            f"{where}: the gold answer {shown(answers[0])} is not among the choices; give its text, not its number "
            "or letter"
        )


def definition(questions: tuple[Question, ...]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the definition of an lm-eval task, and its documents."""
    spaced = all(one.spaced for one in questions)
    docs = [_doc(one, spaced=spaced) for one in questions]
    more = {"target_delimiter": "" if spaced else " "}
    if questions[0].choices:
        return {
            "output_type": "multiple_choice", "doc_to_text": lambda doc: doc["prompt"],
            "doc_to_choice": lambda doc: doc["choices"], "doc_to_target": lambda doc: doc["gold"],
            "metric_list": packaged.means("acc"), **more,
        }, docs  # fmt: skip
    if any("\n" in answer.strip() for one in questions for answer in one.answers):
        more["generation_kwargs"] = {"until": [], "do_sample": False}  # answers of several lines
    metrics = packaged.means("exact_match", "f1")
    return packaged.generated("prompt", "answers", process_results=scores, metric_list=metrics, **more), docs


def _doc(one: Question, *, spaced: bool) -> dict[str, Any]:
    prompt, answers, choices = one.prompt, list(one.answers), list(one.choices)
    if not spaced:
        prompt, answers, choices = prompt.rstrip(), [a.strip() for a in answers], [c.strip() for c in choices]
    if not choices:
        return {"prompt": prompt, "answers": answers}
    gold = [choice.strip() for choice in choices].index(answers[0].strip())
    return {"prompt": prompt, "choices": choices, "gold": gold}


def scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Best exact match and F1 over the accepted answers, by SQuAD's normalisation.

    That drops signs, points and articles, so that -3.5 is 35 and "A" is nothing: answers that have no letter left are
    compared as they are written, a full stop at the end and case aside.
    """
    from transformers.data.metrics import squad_metrics

    said, golds = _written(results[0]), doc["answers"]
    exact = float(any(_written(gold) == said for gold in golds))
    worded = [gold for gold in golds if any(map(str.isalpha, squad_metrics.normalize_answer(gold)))]
    found = packaged.squad_scores({"answers": worded}, results) if worded else {"em": 0.0, "f1": 0.0}
    return {"exact_match": max(exact, found["em"]), "f1": max(exact, found["f1"])}


def _written(text: str) -> str:
    return text.strip().removesuffix(".").rstrip().casefold()
