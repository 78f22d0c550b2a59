"""Questions that stand among what is tuned on."""

from __future__ import annotations

import pytest

from cfutils.data import overlap
from cfutils.data.example import Example

LONG = "What did the old sailor give to the boy before he left?"
TURNS = (("system", "Be brief."), ("user", "Who barks?"))


@pytest.mark.parametrize(
    "question, example",
    [
        ("Who barks?", Example("Who barks?", "a dog", {})),
        ("who  barks", Example("Question: Who barks?\nAnswer:", " a cat", {})),  # whatever the answer
        ("Q: Who barks?\nA:", Example("Who barks?", "a dog", {})),
        ("Who barks?", Example("Be brief.\n\nWho barks?", "a dog", {}, turns=TURNS)),
        (LONG, Example("", f"A tale. {LONG} A knife.", {})),
        (LONG, Example(f"Read this, then answer. {LONG.upper()}", "A knife.", {})),
    ],
)
def test_what_is_trained_on(question, example):
    assert overlap.trained_on(["Another?", question], [Example("x", "y", {}), example]) == [1]


@pytest.mark.parametrize(
    "question, example",
    [
        ("Who barks?", Example("Who barks at night?", "a dog", {})),
        ("Who barks?", Example("", "Who barks? A dog.", {})),  # too short to count within a text
        ("3 + 4?", Example("3 - 4?", "-1", {})),
        ("-3?", Example("3?", "3", {})),
        (LONG, Example("", LONG.replace("boy", "girl"), {})),
        ("?", Example("", "a text", {})),
    ],
)
def test_what_is_not(question, example):
    assert overlap.trained_on([question], [example]) == []


def test_a_question_that_is_asked_twice_counts_in_both_places():
    assert overlap.trained_on(["a b", "c", "A b?"], [Example("a b", "x", {})] * 2) == [0, 2]
