"""When the base's own answer takes the place of a response, and when the original stays."""

from __future__ import annotations

import pytest

from cfutils.data import rewriting
from cfutils.data.example import Example

ITEM = Example("Question: 2 bags of 1,000?\nAnswer:", " 2 * 1,000 = 2,000\n#### 2,000", {"a": 1})


@pytest.mark.parametrize("text, answer", [
    ("so 3 * 4 = 12\n#### 12", "12"), ("The answer is: 1,250.", "1250"), ("It is 7.5 in all", "7.5"),
    ("Answer: B", "b"), ("Reasons.\nAnswer: **B**.", "b"), ("one two\nthree \n\n", "three"), ("", ""), ("-4", "-4"),
    ("#### none, though 3", "3"), ("Answer: no 5\nAnswer: yes", "yes"),
])  # fmt: skip
def test_final_answers_by_hand(text, answer):
    assert rewriting.final_answer(text) == answer


def test_the_request_shows_prompt_and_answer():
    found = rewriting.request(ITEM)
    assert found.index("### Instruction:\nQuestion: 2 bags") < found.index("### Reference Answer:\n2 * 1,000")
    assert found.endswith("### Response:")


def test_an_answer_that_is_the_same_is_taken():
    """With the white space that the original begins with, and the record of the item."""
    found = rewriting.chosen(ITEM, "\nTwo bags hold 2000.\n", ended=True)
    assert (found.prompt, found.response, found.doc) == (ITEM.prompt, " Two bags hold 2000.", ITEM.doc)


@pytest.mark.parametrize("text, ended", [
    ("Two bags hold 1000.", True), ("Two bags hold 2000.", False), ("", True),
    ("As the Reference answer says, 2000", True),
])  # fmt: skip
def test_the_original_stays_otherwise(text, ended):
    assert rewriting.chosen(ITEM, text, ended=ended) is ITEM
