"""Forward passes over texts in which every common prefix is computed once; log-likelihoods of continuations.

The choices of one question form one tree that begins with the question; a prefix shared by more texts than one
pass can hold (the examples of a few-shot prompt) is a trunk, computed once. Logits are computed only where a
continuation is scored, some rows at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cfutils import progress
from cfutils.errors import UserError
from cfutils.models import lm_head, packed_rows, packing
from cfutils.models.lm_head import Head
from cfutils.models.packed_rows import Block, Trunk

TRUNK = 64
"""Tokens that texts must share to have a trunk."""
SHARED = 8
"""Tokens that two texts must share to be in one tree (or half of the shorter one)."""
LONGEST = 512
"""Tokens in one tree, unless its texts share more than half; attention grows with the square of them."""


@dataclass(frozen=True)
class Text:
    """A text, and the tokens that its last positions should predict."""

    ids: tuple[int, ...]
    """Context and continuation, without the last token."""
    wanted: tuple[int, ...]
    """The continuation."""


@dataclass
class _Tree:
    block: Block = field(default_factory=Block)
    paths: list[tuple[int, list[int]]] = field(default_factory=list)
    """Index of each text, and the places of its tokens, from the first behind the trunk to the last."""


@dataclass(frozen=True)
class Reading:
    """One forward pass over some of the texts."""

    hidden: Tensor
    """(tokens, width): last hidden states of a row."""
    paths: list[tuple[int, list[int]]]
    """Index of each text, and the places in the row of its tokens behind the trunk."""
    trunk: Trunk
    """The prefix of them all."""
    kept: Trunk | None
    """Keys and values of the row, if they are to be kept."""


def read(
    model: torch.nn.Module, texts: Seq[Text], *, limit: int, keep: bool = False
) -> Iterator[Reading]:
    """Yield forward passes of at most `limit` tokens (or one tree) which together hold every text once.

    The places whose states predict `wanted` are never part of a trunk. Raises `UserError` for a model that
    computes no packed rows (`packing.supports_packing`).
    """
    if not packing.supports_packing(model):
        raise UserError(
            f"{type(model).__name__} computes no packed rows, which common prefixes need: score its texts one by one"
        )
    for start, group in _families(texts, limit):
        trunk = Trunk(len(start))
        if start:
            packing.last_hidden(
                model, packed_rows.row([packed_rows.chain(start)], model.device, record=trunk)
            )
        trees = list(_trees(texts, group, len(start)))
        for places in packing.by_length([len(tree.block.ids) for tree in trees], limit=limit):
            some, kept = [trees[i] for i in places], Trunk() if keep else None
            blocks = [tree.block for tree in some]
            begins = itertools.accumulate((len(b.ids) for b in blocks), initial=0)
            paths = [
                (index, [begin + place for place in path])
                for begin, tree in zip(begins, some, strict=False)
                for index, path in tree.paths
            ]
            packed = packed_rows.row(blocks, model.device, trunk=trunk, record=kept)
            yield Reading(packing.last_hidden(model, packed), paths, trunk, kept)


def loglikelihoods(
    model: torch.nn.Module, texts: Seq[Text], *, limit: int
) -> list[tuple[float, bool]]:
    """Return log p(continuation | context) in nats, and whether greedy decoding would give it."""
    sums, greedy = np.zeros(len(texts)), np.ones(len(texts), bool)
    head, total = Head(model), sum(len(text.ids) for text in texts)
    with torch.inference_mode(), progress.task("scoring", total=total, unit="tokens") as advance:
        for reading in read(model, texts, limit=limit):
            _score(head, reading, texts, sums, greedy)
            advance(sum(len(texts[index].ids) for index, _ in reading.paths))
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
        if tree.paths and common < (half if full else min(SHARED, half)):
            yield tree
            tree, path, common = _Tree(), [], 0
        path, last = tree.block.grow(path[:common], ids[common:]), ids
        tree.paths.append((index, path))
    if tree.paths:
        yield tree


def _score(
    head: Head, reading: Reading, texts: Seq[Text], sums: np.ndarray, greedy: np.ndarray
) -> None:
    """Add one pass's log-likelihoods to `sums`, and clear `greedy` where another token is more likely."""
    rows: dict[int, int] = {}
    pairs = []
    for index, path in reading.paths:
        wanted = texts[index].wanted
        for place, token in zip(path[len(path) - len(wanted) :], wanted, strict=True):
            pairs.append((rows.setdefault(place, len(rows)), token, index))
    hidden = reading.hidden[list(rows)]
    row, token, index = np.array(sorted(pairs)).T
    size = lm_head.LOGIT_ROWS
    edges = np.searchsorted(row, range(0, len(rows) + size, size))
    for begin, (lo, hi) in zip(range(0, len(rows), size), itertools.pairwise(edges), strict=True):
        logits = head(hidden[begin : begin + size])
        places = torch.from_numpy(np.stack([row[lo:hi] - begin, token[lo:hi]]))
        here, wanted = places.to(logits.device)
        value = logits[here, wanted] - logits.logsumexp(-1)[here]
        right = logits.argmax(-1)[here] == wanted
        np.add.at(sums, index[lo:hi], value.double().cpu().numpy())
        np.logical_and.at(greedy, index[lo:hi], right.cpu().numpy())
