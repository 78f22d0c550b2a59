"""Token sequences, and which of their tokens carry loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from cfutils.data import chat, text_ids
from cfutils.data.example import Example
from cfutils.errors import invalid_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PARAGRAPH = "\n\n"


@dataclass(frozen=True)
class Sequence:
    """Token ids, of which those from index `first` on carry loss (first >= 1: nothing predicts token 0)."""

    ids: tuple[int, ...]
    first: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= len(self.ids):
            raise invalid_value("first", self.first, f"an index from 1 to {len(self.ids)}")

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.ids) - self.first


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat_template: bool,
    turns: tuple[tuple[str, str], ...] = (),
) -> list[int]:  # fmt: skip
    """Encode a target prompt as the tokenizer does (its own BOS, if it adds one), or in its template.

    turns: (role, content) of a conversation that is the prompt; without a template their contents are paragraphs.
    """
    if chat_template:
        return chat.turn_ids(tokenizer, turns or (("user", prompt),))
    return text_ids.encode(tokenizer, f"{prompt}{PARAGRAPH}" if turns else prompt, bos=True)


def response_text(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, chat_template: bool
) -> str:
    """Return the supervised text of a target item: its thought is kept where the base thinks (`chat.response`)."""
    if not chat_template or not example.prompt:
        return example.response
    return chat.response(tokenizer, example.response, example.thinking)


def from_example(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, chat_template: bool, start: int | None = None
) -> Sequence:
    """Return prompt, response and (if there is one) end token; the latter two carry loss.

    start: the start token, which stands before a text without a prompt.
    """
    text = response_text(tokenizer, example, chat_template=chat_template)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    thinks = text != example.response  # its tokens around the thought are meant as such
    if not example.prompt:
        return Sequence((start, *text_ids.encode(tokenizer, text), *end), first=1)
    alone = text_ids.encode_inside(tokenizer, text) if thinks else text_ids.encode(tokenizer, text, inside=True)
    turns = example.turns or (("user", example.prompt),)
    head = prompt_ids(tokenizer, example.prompt, chat_template=chat_template, turns=example.turns)
    if not chat_template:
        both = prompt_ids(tokenizer, example.prompt + PARAGRAPH * bool(example.turns) + text, chat_template=False)
    elif text_ids.spelled(tokenizer, text) > thinks or chat.spelled(tokenizer, turns):
        both = []
    else:
        both = tokenizer(chat.render(tokenizer, turns) + text, add_special_tokens=False)["input_ids"]
    return Sequence((*head, *text_ids.behind(head, both, alone), *end), first=len(head))


def from_samples(samples: pd.DataFrame) -> list[Sequence]:
    """Return samples as sequences: what was drawn carries loss, what it continues does not."""
    return [
        Sequence((*map(int, row.prompt_ids), *map(int, row.token_ids)), first=len(row.prompt_ids))
        for row in samples.itertuples()
    ]


def from_text(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    start: int,
    max_tokens: int,
    end: int | None = None,
) -> list[Sequence]:
    """Return documents behind the start token, cut at max_tokens as samples are; all tokens carry loss.

    end: token that closes each text, where the texts are whole documents.
    """
    tail = () if end is None else (end,)
    ids = ((*tokenizer(text, add_special_tokens=False)["input_ids"], *tail) for text in texts)
    return [Sequence((start, *found[:max_tokens]), 1) for found in ids]
