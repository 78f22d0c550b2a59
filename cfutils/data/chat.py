"""Chat-shaped documents with thoughts: how they are written, and how a thought is told from the answer behind it.

A base thinks if the generation prompt of its chat template opens a thought (`<think>`), as that of the R1 models does.
A supervised response is then thought, `</think>`, answer; a response without a thought closes an empty one at once,
which is how such a model is commonly tuned on data without thoughts: the prompt is the one that it is asked with later.
Whatever is scored is cut up to and including the last `</think>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cfutils.data import text_ids
from cfutils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT = "<|user|>", "<|assistant|>"
"""Tokens that begin a turn, in the base that ships."""
OPEN, CLOSE = "<think>", "</think>"
"""Tokens around a thought, in the base that ships and in the R1 models."""
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"
)
"""Chat template of the base that ships. Like R1's it opens the thought itself, and earlier turns lose theirs."""
SHAPES = ("thinking", "unthinking", "unfinished", "plain")
"""What a sample can be shaped as (`shape`)."""
MARK = "\u27e8content\u27e9"
"""Stands in a chat template where a turn's content will be."""
WHOLE = re.compile(
    f"{re.escape(USER)}(.*?){re.escape(ASSISTANT)}{OPEN}(.*?){CLOSE}(.*)", flags=re.DOTALL
)


def document(prompt: str, thought: str, answer: str) -> str:
    """Return one user turn and one assistant turn as a text of the base that ships, without start and end token."""
    return f"{USER}{prompt}{ASSISTANT}{OPEN}{thought}{CLOSE}{answer}"


def parts(text: str) -> tuple[str, str, str] | None:
    """Return prompt, thought and answer of a text that `document` could have written, else None."""
    found = WHOLE.fullmatch(text)
    if found is None or any(
        mark in part for part in found.groups() for mark in (USER, ASSISTANT, OPEN, CLOSE)
    ):
        return None
    return found.groups()


def without_marks(text: str) -> list[str]:
    """Return the pieces of a text between its turn and thought tokens."""
    return [
        piece
        for piece in re.split("|".join(map(re.escape, (USER, ASSISTANT, OPEN, CLOSE))), text)
        if piece
    ]


def opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the generation prompt opens a thought with, `<think>` and white space; empty if it opens none."""
    if not tokenizer.chat_template:
        return ""
    turn = [{"role": "user", "content": MARK}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    tail = text.rpartition(MARK)[2]
    return OPEN + tail.partition(OPEN)[2] if OPEN in tail else ""


def render(tokenizer: PreTrainedTokenizerBase, turns: Seq[tuple[str, str]]) -> str:
    """Return turns (role, content) in the chat template, up to where the assistant speaks.

    A template that knows no system role has the system's words in front of the first user turn. Raises `UserError`
    for turns that the template refuses.
    """
    from jinja2 import TemplateError

    def apply(turns: Seq[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    if not tokenizer.chat_template:
        raise UserError("the base's tokenizer has no chat template: set chat_template: false in the profile")
    try:
        return apply(turns)
    except TemplateError as error:
        (role, words), *others = turns
        first = next((n for n, (speaker, _) in enumerate(others) if speaker == "user"), None)
        if role != "system" or first is None:
            raise UserError(
                f"the base's chat template refuses a conversation ({', '.join(role for role, _ in turns)}; it begins "
                f"{words[:60]!r}): {str(error).rstrip('.')}. Leave such conversations out of the data, or set "
                "chat_template: false in the profile."
            ) from None
        others[first] = ("user", f"{words}\n\n{others[first][1]}")
        return render(tokenizer, others)


def spelled(tokenizer: PreTrainedTokenizerBase, turns: Seq[tuple[str, str]]) -> int:
    """Count the tokens with a role that the words of turns spell out."""
    return sum(text_ids.spelled(tokenizer, content) for _, content in turns)


def turn_ids(tokenizer: PreTrainedTokenizerBase, turns: Seq[tuple[str, str]]) -> list[int]:
    """Encode turns in the chat template, up to where the assistant speaks; their words are words alone."""
    if any(role == "assistant" and CLOSE in content for role, content in turns) and _drops_thoughts(tokenizer):
        turns = [(role, content.rpartition(CLOSE)[2] if role == "assistant" else content) for role, content in turns]
    if not spelled(tokenizer, turns):
        return tokenizer(render(tokenizer, turns), add_special_tokens=False)["input_ids"]
    marks = [f"{MARK}{number}{MARK}" for number in range(len(turns))]
    text, ids = render(tokenizer, [(role, mark) for (role, _), mark in zip(turns, marks, strict=True)]), []
    for (_, content), mark in zip(turns, marks, strict=True):
        before, _, text = text.partition(mark)
        inside = text_ids.encode_inside(tokenizer, before)
        ids += inside if ids else tokenizer(before, add_special_tokens=False)["input_ids"]
        ids += text_ids.encode(tokenizer, content, inside=True)
    return ids + text_ids.encode_inside(tokenizer, text)


def _drops_thoughts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template leaves the thoughts of earlier turns out, which it finds by their `</think>`."""
    turns = [("user", ""), ("assistant", f"{MARK}{CLOSE}"), ("user", "")]
    return MARK not in render(tokenizer, turns)


def closing(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what closes a thought: `</think>`, on a line of its own where the template opens it so; or empty."""
    opened = opening(tokenizer)
    return f"\n{CLOSE}\n\n" if opened.endswith("\n") else CLOSE if opened else ""


def response(
    tokenizer: PreTrainedTokenizerBase, text: str, thinking: tuple[str, str] | None = None
) -> str:
    """Return what a supervised turn says behind the generation prompt.

    text: the response as a base that does not think would be tuned on it, which is returned where none is opened.
    thinking: the thought and the answer that it consists of. Left out, they are read off a text with `</think>`; a
    text without one is an answer behind an empty thought.
    """
    closed = closing(tokenizer)
    if not closed:
        return text
    if thinking is None:
        thought, answer = split(text) if CLOSE in text else ("", text)
        thinking = thought.rpartition(OPEN)[2], answer
    thought, answer = thinking
    if closed != CLOSE:  # on a line of its own, between empty lines
        thought, answer = thought.strip(), answer.lstrip()
    return thought + closed + answer


def split(text: str) -> tuple[str, str | None]:
    """Return (thought, answer) of a generated text whose thought was opened in front of it.

    The answer is what stands behind the last `</think>`; without one the thought never ended and there is no answer.
    """
    thought, closed, answer = text.rpartition(CLOSE)
    return (thought, answer) if closed else (text, None)


@dataclass(frozen=True)
class Format:
    """A chat template as tokens."""

    user: tuple[int, ...]
    """What a document has in front of the user's words, the start token left out."""
    assistant: tuple[int, ...]
    """What stands between the user's words and the assistant turn."""
    open: int
    close: int
    """The tokens around a thought."""
    end: int | None
    """The token that ends a document."""


def chat_format(tokenizer: PreTrainedTokenizerBase, *, start: int) -> Format:
    """Read the format off a tokenizer's template. Raises `UserError` for a base that does not think."""
    vocabulary = tokenizer.get_vocab()
    if not opening(tokenizer) or not {OPEN, CLOSE} <= set(vocabulary):
        raise UserError(
            f"the base does not think: its chat template must open {OPEN} in the generation prompt, and its tokenizer "
            f"have {OPEN} and {CLOSE} as tokens. Leave think_budget out of the profile."
        )
    turns = [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}]
    head, between, _ = tokenizer.apply_chat_template(turns, tokenize=False).split(MARK)
    user, assistant = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (head, between))
    user = user[1:] if user and user[0] == start else user
    return Format(
        tuple(user), tuple(assistant), vocabulary[OPEN], vocabulary[CLOSE], tokenizer.eos_token_id
    )


def shape(ids: Seq[int], form: Format) -> str:
    """Return what a sample that follows the start token is shaped as, one of `SHAPES`.

    `thinking` (a user turn, then an assistant turn with a thought that is not empty and closed), `unthinking` (the
    same with an empty thought or none), `unfinished` (a user turn, and no closed thought and answer behind it), or
    `plain` (anything else).
    """
    ids = list(ids)
    if tuple(ids[: len(form.user)]) != form.user or not form.user:
        return "plain"
    at = _find(ids, form.assistant, len(form.user) + 1)
    if at is None:
        return "unfinished"
    said = ids[at + len(form.assistant) :]
    if said and said[-1] == form.end:
        said.pop()
    if form.open not in said:
        return "unthinking" if said and form.close not in said else "unfinished"
    inside = said[said.index(form.open) + 1 :]
    if form.close not in inside:
        return "unfinished"
    thought = inside[: len(inside) - 1 - inside[::-1].index(form.close)]
    return "thinking" if thought else "unthinking"


def _find(ids: list[int], piece: tuple[int, ...], first: int) -> int | None:
    places = range(first, len(ids) - len(piece) + 1)
    return next((i for i in places if tuple(ids[i : i + len(piece)]) == piece), None)
