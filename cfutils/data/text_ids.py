"""From texts that people wrote to token ids: words alone, whatever tokens with a role they spell out.

A tokenizer reads "<|end|>" in a text as the token that ends a document. In data that is a mistake, or an attack; here
such a text is encoded as the letters it consists of.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def controls(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens with a role, by text: special ones, and added ones that are not white space."""
    return _controls(tokenizer, len(tokenizer), tuple(tokenizer.all_special_ids))


@functools.lru_cache(maxsize=8)
def _controls(tokenizer: PreTrainedTokenizerBase, size: int, special_ids: tuple[int, ...]) -> dict[str, int]:
    special = zip(tokenizer.all_special_tokens, special_ids, strict=True)
    return {text: i for text, i in {**tokenizer.get_added_vocab(), **dict(special)}.items() if text.strip()}


def spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Count the tokens with a role that a text spells out."""
    return sum(text.count(control) for control in controls(tokenizer))


CUT = "\ue0f1"
"""Stands where a text is cut: a character of private use."""


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool = False) -> list[int]:
    """Encode words. bos: with the tokenizer's own BOS, if it adds one; an EOS that it adds is left out."""
    if spelled(tokenizer, text):  # each is cut behind its first letter, where no tokenizer sees the token any more
        for control in sorted(controls(tokenizer), key=len, reverse=True):
            text = text.replace(control, f"{control[0]}{CUT}{control[1:]}")
    first, *rest = text.split(CUT)
    ids = tokenizer(first, add_special_tokens=bos)["input_ids"]
    if bos and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return [*ids, *(i for piece in rest for i in tokenizer(piece, add_special_tokens=False)["input_ids"])]


def behind(head: list[int], both: list[int], alone: list[int]) -> list[int]:
    """Return the tokens of a text that follows a prompt, as they are met in generation.

    head: the prompt's; both: those of prompt and text encoded together; alone: those of the text. Where the prompt's
    own tokens are the beginning of both, it is what follows them, since some tokenizers put a space before whatever
    they encode alone; where a token reaches over the boundary, the text is encoded alone.
    """
    return both[len(head) :] if both[: len(head)] == head else alone
