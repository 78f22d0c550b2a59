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


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool = False, inside: bool = False
) -> list[int]:  # fmt: skip
    """Encode words. bos: with the tokenizer's own BOS, if it adds one; an EOS that it adds is left out.

    inside: the words stand behind others (`encode_inside`).
    """
    if spelled(tokenizer, text):  # each is cut behind its first letter, where no tokenizer sees the token any more
        for control in sorted(controls(tokenizer), key=len, reverse=True):
            text = text.replace(control, f"{control[0]}{CUT}{control[1:]}")
    first, *rest = text.split(CUT)
    ids = encode_inside(tokenizer, first) if inside else tokenizer(first, add_special_tokens=bos)["input_ids"]
    if bos and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return [*ids, *(i for piece in rest for i in encode_inside(tokenizer, piece))]


def encode_inside(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text that stands behind another, tokens with a role included.

    SentencePiece's tokenizers put a space in front of whatever they encode; here it is put in front of `CUT` instead.
    """
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    letter = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    if [str(token)[:1] for token in letter[:1]] != ["▁"]:
        return alone
    mark, both = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (CUT, CUT + text))
    return behind(mark, both, alone)


def behind(head: list[int], both: list[int], alone: list[int]) -> list[int]:
    """Return the tokens of a text that follows a prompt, as they are met in generation.

    head: the prompt's; both: those of prompt and text encoded together; alone: those of the text. Where the prompt's
    own tokens are the beginning of both, it is what follows them; where a token reaches over the boundary, the text
    is encoded alone.
    """
    return both[len(head) :] if both[: len(head)] == head else alone
