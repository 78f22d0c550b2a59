"""Log-likelihoods of continuations, every common beginning computed once.

Choices of one question stand in one tree that begins with the question; a beginning that more questions
share than one pass can hold (the examples of a few-shot prompt) is a trunk, computed once. Logits are
made where a continuation is scored and nowhere else, some rows at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from cfutils import packing
from cfutils.packing import Block, Head, Trunk

TRUNK = 64
"""Tokens that texts must share to have a trunk."""
SHARED = 8
"""Tokens that two texts must share to stand in one tree (or half of the shorter one)."""
LONGEST = 512
"""Tokens in one tree, unless its texts share more than half; attention grows with the square of them."""
ROWS = 128
"""Rows of logits that are made at a time."""


@dataclass(frozen=True)
class Text:
    """What is read, and which tokens its last positions should predict."""

    ids: tuple[int, ...]
    """Context and continuation, without the last token."""
    wanted: tuple[int, ...]
    """The continuation."""


@dataclass
class _Tree:
    block: Block = field(default_factory=Block)
    texts: list[tuple[int, list[int]]] = field(default_factory=list)
    """Index of each text, and the places whose states predict its continuation."""


def loglikelihoods(
    model: torch.nn.Module, texts: Seq[Text], *, limit: int
) -> list[tuple[float, bool]]:
    """Return log p(continuation | context) in nats, and whether greedy decoding would give it.

    `limit` is the number of tokens in one forward pass. The model is one that `packing.prepare` took.
    """
    sums, greedy = np.zeros(len(texts)), np.ones(len(texts), bool)
    head = Head(model)
    with torch.inference_mode():
        for start, group in _families(texts, limit):
            trunk = Trunk(len(start))
            if start:
                first = packing.row([packing.chain(start)], model.device, record=trunk)
                packing.last_hidden(model, first)
            trees = list(_trees(texts, group, len(start)))
            sizes = [len(tree.block.ids) for tree in trees]
            for places in packing.by_length(sizes, limit=limit):
                _score(model, head, [trees[i] for i in places], trunk, texts, sums, greedy)
    return list(zip(sums.tolist(), greedy.tolist(), strict=True))


def _common(a: Seq[int], b: Seq[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _families(texts: Seq[Text], limit: int) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Yield (trunk, indices of its texts in the order of their tokens); all texts without a trunk last."""
    rest: list[int] = []
    family: list[int] = []
    shared = size = 0
    order = sorted(range(len(texts)), key=lambda i: texts[i].ids)

    def close() -> Iterator[tuple[tuple[int, ...], list[int]]]:
        begin = min((len(texts[i].ids) - len(texts[i].wanted) for i in family), default=0)
        begin = min(begin, shared)
        if size > limit and len(family) > 1 and begin >= TRUNK:
            yield texts[family[0]].ids[:begin], list(family)
        else:
            rest.extend(family)

    for index in order:
        ids = texts[index].ids
        common = _common(texts[family[-1]].ids, ids) if family else 0
        if family and common < TRUNK:
            yield from close()
            family, common = [], 0
        shared = min(shared, common) if len(family) > 1 else common
        size = size + len(ids) - common if family else len(ids)
        family.append(index)
    yield from close()
    if rest:
        yield (), rest


def _trees(texts: Seq[Text], group: list[int], depth: int) -> Iterator[_Tree]:
    """Yield trees of texts that follow each other in the order of their tokens, below a trunk."""
    tree, path, last = _Tree(), [], ()
    for index in group:
        ids = texts[index].ids[depth:]
        common = _common(last, ids)
        half = (min(len(last), len(ids)) + 1) // 2
        full = len(tree.block.ids) + len(ids) - common > LONGEST
        if tree.texts and common < (half if full else min(SHARED, half)):
            yield tree
            tree, path, common = _Tree(), [], 0
        path, last = tree.block.grow(path[:common], ids[common:]), ids
        tree.texts.append((index, path[len(path) - len(texts[index].wanted) :]))
    if tree.texts:
        yield tree


def _score(model, head, trees, trunk, texts, sums, greedy) -> None:
    """Add to `sums`, and take from `greedy`, what one pass over some trees tells of their texts."""
    begin, rows, pairs = 0, {}, []
    for tree in trees:
        for index, places in tree.texts:
            for place, token in zip(places, texts[index].wanted, strict=True):
                pairs.append((rows.setdefault(begin + place, len(rows)), token, index))
        begin += len(tree.block.ids)
    packed = packing.row([tree.block for tree in trees], model.device, trunk=trunk)
    hidden = packing.last_hidden(model, packed)[list(rows)]
    row, token, index = np.array(sorted(pairs)).T
    edges = np.searchsorted(row, range(0, len(rows) + ROWS, ROWS))
    for number, (lo, hi) in enumerate(itertools.pairwise(edges)):
        logits = head(hidden[number * ROWS : (number + 1) * ROWS])
        here, wanted = torch.from_numpy(np.stack([row[lo:hi] - number * ROWS, token[lo:hi]])).to(
            logits.device
        )
        value = logits[here, wanted] - logits.logsumexp(-1)[here]
        right = logits.argmax(-1)[here] == wanted
        np.add.at(sums, index[lo:hi], value.double().cpu().numpy())
        np.logical_and.at(greedy, index[lo:hi], right.cpu().numpy())
