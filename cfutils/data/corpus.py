"""Documents of the tiny base's pretraining: a declared mixture of kinds.

Document i depends on (seed, i) alone: its kind is drawn by the declared shares, then its text. Items whose
prompt is held out never occur.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from cfutils.data import prose, skills
from cfutils.data.splits import is_heldout

PROSE = ("wikipedia", "stories")
"""Kinds that are real prose; the others are skills."""
PASSAGE = 260
"""Largest length of a passage of whole sentences, in characters."""


@dataclass(frozen=True)
class Document:
    """One text of the mixture, and its kind."""

    kind: str
    text: str


@functools.cache
def _passages(kind: str) -> tuple[tuple[str, ...], ...]:
    """Return the sentences of each document of prose on the training side."""
    texts = (t for t in prose.documents(kind) if not is_heldout(t))
    split = (re.split(r"(?<=[.!?])\s+", " ".join(text.split())) for text in texts)
    short = (tuple(s for s in sentences if len(s) <= PASSAGE) for sentences in split)
    return tuple(sentences for sentences in short if sentences)


def _passage(kind: str, rng: Random) -> str:
    """Return consecutive whole sentences from a random one on, as many as fit."""
    sentences = rng.choice(_passages(kind))
    at = rng.randrange(len(sentences))
    text = sentences[at]
    for sentence in sentences[at + 1 :]:
        if len(text) + 1 + len(sentence) > PASSAGE:
            break
        text = f"{text} {sentence}"
    return text


def document(index: int, *, seed: int) -> Document:
    """Return document `index` of the stream that the seed decides."""
    rng = Random(f"{seed}-{index}")
    mixture = skills.world()["mixture"]
    kind = rng.choices(tuple(mixture), tuple(mixture.values()))[0]
    if kind in PROSE:
        return Document(kind, _passage(kind, rng))
    one = skills.skill(kind)
    while is_heldout(prompt := one.draw(rng)):
        pass
    return Document(kind, prompt + one.solve(prompt))


def documents(n: int, *, seed: int, first: int = 0) -> Iterator[Document]:
    """Yield n documents of a stream, from `first` on."""
    return (document(i, seed=seed) for i in range(first, first + n))


def data_digest(n: int, *, seed: int) -> str:
    """Return the SHA-256 of the first n documents of a stream, a null byte behind each."""
    found = hashlib.sha256()
    for one in documents(n, seed=seed):
        found.update(one.text.encode() + b"\0")
    return found.hexdigest()
