"""Questions that stand in data that are tuned on: what they score is memory, not what was kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from cfutils.data.example import Example

LONG = 8
"""Words from which on a question counts wherever it stands: fewer occur in a text by chance."""
MARKS = ".,;:?!\"'()"


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text without case, white space and the marks around them; signs such as + are words."""
    return tuple(word.strip(MARKS) or word for word in text.casefold().split())


def _question(text: str) -> tuple[str, ...]:
    """Return the words of a question without "Question:" in front and "Answer:" behind."""
    found = words(text)
    found = found[1:] if found[:1] in (("question",), ("q",)) else found
    return found[:-1] if found[-1:] in (("answer",), ("a",)) else found


def trained_on(questions: Sequence[str], examples: Iterable[Example]) -> list[int]:
    """Return the places of the questions that are the prompt, or what a user says, of an example.

    One of `LONG` words or more counts too where it stands in any text of an example.
    """
    asked, long, found = defaultdict(list), defaultdict(list), set()
    for place, question in enumerate(questions):
        if whole := _question(question):
            asked[whole].append(place)
            if len(whole) >= LONG:
                long[whole[:LONG]].append((whole, place))
    for example in examples:
        for text in (example.prompt, *(said for role, said in example.turns if role == "user")):
            found.update(asked.get(_question(text), ()))
        whole = words(f"{example.prompt} {example.response}") if long else ()
        for start in range(len(whole) - LONG + 1):
            for question, place in long.get(whole[start : start + LONG], ()):
                if whole[start : start + len(question)] == question:
                    found.add(place)
    return sorted(found)
