"""Packed rows: blocks of tokens that do not attend to each other, one behind the other without padding.

A block is a document, or a tree of documents with common beginnings. Each of its tokens is in the row
(1, tokens) once, so that no linear layer computes padding; only attention, the smaller part, gets the blocks
side by side as a batch. A trunk is a common beginning of many blocks, whose keys and values are computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

WASTE, FREE = 1.5, 64**2
"""Padded attention scores of a group are at most WASTE times those of its blocks alone, plus FREE."""


@dataclass
class Block:
    """A tree of tokens, parents before children; without branches it is a document."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Place in the block of the token before each; -1 for the first."""

    def grow(self, path: list[int], ids: Iterable[int]) -> list[int]:
        """Add tokens behind the last of a path; return the places from the first to the last of them."""
        ids, begin = list(ids), len(self.ids)
        if not ids:
            return list(path)
        self.parents += [path[-1] if path else -1, *range(begin, begin + len(ids) - 1)]
        self.ids += ids
        return [*path, *range(begin, begin + len(ids))]

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield (parent, begin, end) of tokens each of which follows the one before it."""
        starts = [i for i, parent in enumerate(self.parents) if parent != i - 1 or i == 0]
        for begin, end in zip(starts, [*starts[1:], len(self.ids)], strict=True):
            yield self.parents[begin], begin, end

    @property
    def branches(self) -> bool:
        """Whether a token has another than the one before it as its parent."""
        return len(list(self.runs())) > 1


def chain(ids: Iterable[int]) -> Block:
    """A block that is one document."""
    block = Block()
    block.grow([], ids)
    return block


@dataclass(frozen=True)
class Trunk:
    """A beginning that every block of a row continues: its length, and keys and values by layer."""

    length: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Consecutive blocks of a row that are one batch in attention, padded to the longest."""

    tokens: slice
    """Where they stand in the row."""
    places: Tensor
    """(tokens,): index of each into blocks x longest."""
    shape: tuple[int, int]
    """Blocks, and the longest one's tokens."""
    mask: Tensor | None
    """(blocks, 1, longest, trunk + longest): what each token attends to; None: all before it in its block."""

    def spread(self, states: Tensor) -> Tensor:
        """Put what stands in a row, (tokens, ...), side by side: (blocks, longest, ...)."""
        states, n = states[self.tokens], self.shape[0] * self.shape[1]
        if len(states) < n:
            states = states.new_zeros(n, *states.shape[1:]).index_copy(0, self.places, states)
        return states.unflatten(0, self.shape)

    def gather(self, states: Tensor) -> Tensor:
        """Undo `spread`."""
        flat = states.flatten(0, 1)
        return flat if len(flat) == len(self.places) else flat.index_select(0, self.places)


@dataclass(frozen=True)
class Row:
    """Blocks one behind the other, and how attention groups them."""

    ids: Tensor
    """(1, tokens)."""
    positions: Tensor
    """(1, tokens): place in its document, the trunk counted."""
    groups: list[Group]
    trunk: Trunk
    record: Trunk | None = None
    """Where keys and values of this row are kept, if they are wanted."""


def row(
    blocks: Seq[Block], device: torch.device, *, trunk: Trunk | None = None, record: Trunk | None = None
) -> Row:
    """Lay blocks out in a row; attention pads least where neighbours are of like length."""
    trunk = trunk or Trunk()
    ids, positions, groups = [], [], []
    for block in blocks:
        depth: list[int] = []
        for parent, begin, end in block.runs():
            first = depth[parent] + 1 if parent >= 0 else trunk.length
            depth += range(first, first + end - begin)
        ids += block.ids
        positions += depth
    begin = 0
    for some in _alike(blocks):
        shape = (len(some), max(len(b.ids) for b in some))
        places = [n * shape[1] + i for n, block in enumerate(some) for i in range(len(block.ids))]
        mask = None
        if trunk.length or any(block.branches for block in some):
            mask = _seen(some, shape, trunk.length).to(device)
        tokens = slice(begin, begin + len(places))
        groups.append(Group(tokens, torch.tensor(places, device=device), shape, mask))
        begin = tokens.stop
    tensors = (torch.tensor([x], device=device) for x in (ids, positions))
    return Row(*tensors, groups, trunk, record)


def _alike(blocks: Seq[Block]) -> Iterator[list[Block]]:
    """Yield consecutive groups of blocks whose padded attention costs little more than each block alone."""
    group: list[Block] = []
    longest = alone = 0
    for block in blocks:
        n = len(block.ids)
        longest, alone = max(longest, n), alone + n * n
        if group and (len(group) + 1) * longest**2 > WASTE * alone + FREE:
            yield group
            group, longest, alone = [], n, n * n
        group.append(block)
    yield group


def _seen(blocks: Seq[Block], shape: tuple[int, int], trunk: int) -> Tensor:
    """Return what each token attends to: the trunk, its ancestors and itself."""
    n, longest = shape
    seen = np.broadcast_to(np.eye(longest, dtype=bool), (n, longest, longest)).copy()
    before_it = np.tri(longest, dtype=bool)
    for number, block in enumerate(blocks):
        for parent, begin, end in block.runs():
            seen[number, begin:end, begin:end] = before_it[: end - begin, : end - begin]
            if parent >= 0:
                seen[number, begin:end] |= seen[number, parent]
    before = torch.ones(n, longest, trunk, dtype=torch.bool)
    return torch.cat([before, torch.from_numpy(seen)], dim=-1)[:, None]
