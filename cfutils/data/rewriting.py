"""Self-distilled targets: the base rewrites a response, and the rewriting is used if it still answers the same.

Yang et al. (SDFT, arXiv 2402.13669, and sail-sg/sdft): the base is shown prompt and reference answer and asked for its
own response; where the final answer differs, or the text speaks of the reference answer, the original stays.
"""

from __future__ import annotations

import re

from cfutils.data.example import Example

BANNED = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
"""Phrases that answer the request and not the prompt (those of the released code)."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def request(example: Example) -> str:
    """Return what the base is asked (the template of the paper's figure 3)."""
    return (
        "Below are an instruction that describes a task along with a reference answer. Using the reference answer "
        f"as a guide, write your own response.\n### Instruction:\n{example.prompt.strip()}\n"
        f"### Reference Answer:\n{example.response.strip()}\n### Response:"
    )


def final_answer(text: str) -> str:
    """Return a response's final answer in a form that can be compared.

    What follows the last "####" or "answer:", its last number if it has one; without such a mark the last number
    of the text; without a number the last line that is not empty.
    """
    marked = re.split(r"####|answer(?: is)?:?", text, flags=re.IGNORECASE)
    found = NUMBER.findall(marked[-1]) or (NUMBER.findall(text) if len(marked) == 1 else [])
    if found:
        return found[-1].replace(",", "")
    lines = [line.strip() for line in marked[-1].splitlines() if line.strip()]
    return lines[-1].strip(" .*").lower() if lines else ""


def chosen(example: Example, text: str, *, ended: bool) -> Example:
    """Return the item with the base's text as its response, or the same item if the text does not do.

    It does if it `ended` by itself, holds none of `BANNED`, and has the same final answer. It keeps the white space
    that the original begins with.
    """
    text = text.strip()
    banned = any(phrase in text.lower() for phrase in BANNED)
    if not text or not ended or banned or final_answer(text) != final_answer(example.response):
        return example
    space = example.response[: len(example.response) - len(example.response.lstrip())]
    return Example(example.prompt, space + text, example.doc)
