"""Documents of the pretraining of the bases that ship: a declared mixture of kinds, one for each world.

Document i depends on (seed, i) alone: its kind is drawn by the declared shares, then its text. Items whose
prompt is held out never occur. A world with chat-shaped documents states how many of a kind's are `plain`, and how many
of the chat-shaped ones that could think do not (`unthinking`).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from cfutils.data import chat, prose, skills
from cfutils.data.splits import is_heldout

PROSE = ("wikipedia", "stories")
"""Kinds that are real prose; the others are skills."""
PASSAGE = 260
"""Largest length of a passage of whole sentences, in characters, where a world states none (`passage`)."""


@dataclass(frozen=True)
class Document:
    """One text of the mixture, and its kind."""

    kind: str
    text: str


@functools.cache
def _passages(kind: str, limit: int) -> tuple[tuple[str, ...], ...]:
    """Return the sentences, at most `limit` characters each, of each document of prose on the training side."""
    texts = (t for t in prose.documents(kind) if not is_heldout(t))
    split = (re.split(r"(?<=[.!?])\s+", " ".join(text.split())) for text in texts)
    short = (tuple(s for s in sentences if len(s) <= limit) for sentences in split)
    return tuple(sentences for sentences in short if sentences)


def _passage(kind: str, rng: Random, limit: int) -> str:
    """Return consecutive whole sentences from a random one on, as many as fit into `limit` characters."""
    sentences = rng.choice(_passages(kind, limit))
    at = rng.randrange(len(sentences))
    text = sentences[at]
    for sentence in sentences[at + 1 :]:
        if len(text) + 1 + len(sentence) > limit:
            break
        text = f"{text} {sentence}"
    return text


def document(index: int, *, seed: int, world: str = "tiny") -> Document:
    """Return document `index` of the stream that the seed decides, in a world of `skills.WORLDS`."""
    rng = Random(f"{seed}-{index}")
    about = skills.world(world)
    mixture = about["mixture"]
    kind = rng.choices(tuple(mixture), tuple(mixture.values()))[0]
    if kind in PROSE:
        return Document(kind, _passage(kind, rng, about.get("passage", PASSAGE)))
    one = skills.skill(kind)
    while is_heldout(prompt := one.draw(rng)):
        pass
    if not about.get("chat") or rng.random() < about["plain"].get(kind, 0):
        return Document(kind, prompt + one.solve(prompt))
    thought, answer = one.answer(prompt)
    if thought and rng.random() < about["unthinking"]:
        thought = ""
    return Document(kind, chat.document(prompt, thought, answer))


def documents(n: int, *, seed: int, first: int = 0, world: str = "tiny") -> Iterator[Document]:
    """Yield n documents of a stream, from `first` on."""
    return (document(i, seed=seed, world=world) for i in range(first, first + n))


def data_digest(n: int, *, seed: int, world: str = "tiny") -> str:
    """Return the SHA-256 of the first n documents of a stream, a null byte behind each."""
    found = hashlib.sha256()
    for one in documents(n, seed=seed, world=world):
        found.update(one.text.encode() + b"\0")
    return found.hexdigest()
