"""Packed rows: blocks of tokens that do not attend to each other, in one row without padding, and a model's pass.

A block is a document, or a tree of documents with common beginnings. Each of its tokens is in the row
(1, tokens) once, so that no linear layer computes padding; only attention, the smaller part, gets the blocks
side by side as a batch. A trunk is a common beginning of many blocks, whose keys and values are computed
once. The results are last hidden states, from which logits are computed where they are needed (`Head`).
A model with an attention of its own, which cannot do this, gets its documents as an ordinary padded batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.models.lm_head import Head

NAME = "packed"
WASTE, FREE = 1.5, 64**2
"""Padded attention scores of a group are at most WASTE times those of its blocks alone, plus FREE."""
CLOSE = {torch.float32: 1e-3}
"""Largest difference that counts as rounding, as a share of the largest logit; 0.05 in 16-bit formats."""


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


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    packed: Row | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of transformers' models on a packed row; without one, their ordinary attention."""
    if packed is None:
        if query.shape[2] == 1 and not kwargs.get("position_bias"):
            return _attend_to_one(query, key, value, attention_mask, **kwargs), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    window = kwargs.get("sliding_window")
    if window and packed.trunk.length + max(group.shape[1] for group in packed.groups) > window:
        raise UserError(
            f"a sequence has more tokens than this model's sliding window of {window}: lower "
            "max_tokens and max_length"
        )
    if packed.record is not None:
        packed.record.layers[module.layer_idx] = (key, value)
    parts = []
    for group in packed.groups:
        q, k, v = (group.spread(t[0].transpose(0, 1)).transpose(1, 2) for t in (query, key, value))
        if packed.trunk.length:
            first = (t.expand(len(k), -1, -1, -1) for t in packed.trunk.layers[module.layer_idx])
            k, v = (torch.cat(pair, dim=2) for pair in zip(first, (k, v), strict=True))
        out, _ = sdpa_attention_forward(module, q, k, v, group.mask, **kwargs)
        parts.append(group.gather(out))
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _attend_to_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float | None = None,
    **_: Any,
) -> Tensor:  # fmt: skip
    """Attention of one new token: heads that share keys become queries of one head, so no key is copied."""
    rows, heads, _, d = query.shape
    folded = query.reshape(rows, key.shape[1], heads // key.shape[1], d)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, 1, heads, -1)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def supports_packing(model: torch.nn.Module) -> bool:
    """Whether `prepare` found that the model can compute packed rows."""
    return _core(model).config._attn_implementation == NAME


def _core(model: torch.nn.Module) -> Any:
    """The model of transformers below adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.inference_mode()
def prepare(model: Any) -> str | None:
    """Let a model compute packed rows; return the reason if it cannot.

    This is tested numerically: a tree of two documents, beside a third, against each document alone.
    Raises `UserError` if the model's logits are not what `Head` computes from last hidden states.
    """
    ids = [i % model.config.get_text_config().vocab_size for i in (5, 7, 11, 13, 17)]
    alone = [[*ids[:3], last] for last in ids[3:]]
    logits = torch.cat([_last_logits(model, document) for document in alone])
    close = CLOSE.get(model.dtype, 0.05) * logits.abs().max()
    hidden = last_hidden(model, row([chain(document) for document in alone], model.device))
    if (gap := (Head(model)(hidden[[3, 7]]) - logits).abs().max()) > close:
        raise UserError(
            f"{type(model).__name__} changes logits after its last matrix in a way that is not known "
            f"here (they differ by {gap:.2g}): extend lm_head.Head"
        )
    before = model.config._attn_implementation
    tree = Block()
    stem = tree.grow([], ids[:3])
    ends = [tree.grow(stem, [last])[-1] for last in ids[3:]]
    try:
        model.set_attn_implementation(NAME)
        hidden = last_hidden(model, row([tree, chain(ids[:2])], model.device))[ends]
        if (gap := (Head(model)(hidden) - logits).abs().max()) <= close:
            return None
        why = f"logits differ by {gap:.2g}"
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
    model.set_attn_implementation(before)
    return why


def _last_logits(model: torch.nn.Module, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids], device=model.device)).logits[:, -1].float()


def chain(ids: Iterable[int]) -> Block:
    """A block that is one document."""
    block = Block()
    block.grow([], ids)
    return block


def last_hidden(model: torch.nn.Module, packed: Row) -> Tensor:
    """Return the states that the head turns into logits, (tokens, width), in the row's order."""
    body = _core(model).base_model
    if supports_packing(model):
        # a mask of four dimensions is passed on untouched; this one is never read
        unused = torch.empty(1, 1, 0, 0, device=packed.ids.device)
        out = body(
            input_ids=packed.ids, position_ids=packed.positions, attention_mask=unused,
            use_cache=False, packed=packed,
        )  # fmt: skip
        return out.last_hidden_state[0]
    parts = []
    for group in packed.groups:
        batch, seen = (group.spread(t) for t in (packed.ids[0], torch.ones_like(packed.ids[0])))
        out = body(input_ids=batch, attention_mask=seen, use_cache=False)
        parts.append(group.gather(out.last_hidden_state))
    return torch.cat(parts)


@dataclass(frozen=True)
class Documents:
    """Sequences in one row, and what in it carries loss."""

    packed: Row
    rows: Tensor
    """(n,): places in the row whose states predict a token that carries loss, sequence by sequence."""
    targets: Tensor
    """(n,): those tokens."""
    counts: list[int]
    """How many of them each sequence has."""


def documents(sequences: Seq[Sequence], device: torch.device) -> Documents:
    """Lay sequences out in a row; the last token of each predicts nothing and is left out."""
    blocks, rows, targets, begin = [], [], [], 0
    for sequence in sequences:
        block = chain(sequence.ids[: max(1, len(sequence.ids) - 1)])
        blocks.append(block)
        rows += range(begin + sequence.first - 1, begin + len(sequence.ids) - 1)
        targets += sequence.ids[sequence.first :]
        begin += len(block.ids)
    tensors = (torch.tensor(x, dtype=torch.long, device=device) for x in (rows, targets))
    return Documents(row(blocks, device), *tensors, [s.supervised for s in sequences])


def by_length(lengths: Seq[int], *, limit: int) -> Iterator[list[int]]:
    """Yield groups of indices, shortest first, whose lengths sum to at most `limit` (or one alone)."""
    group: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and total + lengths[index] > limit:
            yield group
            group, total = [], 0
        group.append(index)
        total += lengths[index]
    if group:
        yield group
