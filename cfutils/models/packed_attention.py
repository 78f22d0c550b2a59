"""Attention on packed rows, as an implementation of transformers' attention and mask interfaces.

An architecture says through transformers' mask functions which earlier tokens each kind of layer attends to
(all, a sliding window, a chunk), as a rule on the places of two tokens. On a packed row the rule is applied
inside every block, to places in the document; without one, attention and masks are those of `sdpa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cfutils.models.packed_rows import Group, Row

NAME = "packed"
_ROW: ContextVar[Row | None] = ContextVar("row", default=None)


@contextmanager
def on(row: Row) -> Iterator[None]:
    """Let a model's forward pass inside the block, called on the row's tokens, attend within blocks alone."""
    token = _ROW.set(row)
    try:
        yield
    finally:
        _ROW.reset(token)


@dataclass(frozen=True)
class _Sight:
    """What layers of one kind attend to on a row; layers get it in place of a mask."""

    row: Row
    masks: list[Tensor | None]
    """Of each group, (blocks or 1, 1, longest, trunk + longest); None: all before it in its block."""


def _mask(
    *, mask_function: Callable, local_size: int | None = None, use_vmap: bool = False,
    allow_is_causal_skip: bool = True, **kwargs: Any,
) -> Tensor | _Sight | None:  # fmt: skip
    """Make the masks of transformers' models: a row's by group, others as `sdpa` has them.

    mask_function: the rule, of indices of sequence, head, query and key that broadcast.
    local_size: tokens that the rule lets a query see at most, None for all; nothing differs below it.
    """
    if (row := _ROW.get()) is None:
        return sdpa_mask(
            mask_function=mask_function, local_size=local_size, use_vmap=use_vmap,
            allow_is_causal_skip=allow_is_causal_skip, **kwargs,
        )  # fmt: skip
    if use_vmap or not allow_is_causal_skip:
        raise TypeError("its masks depend on more than the places of two tokens")
    return _Sight(row, [_seen(group, row, mask_function, local_size) for group in row.groups])


def _seen(group: Group, row: Row, rule: Callable, local_size: int | None) -> Tensor | None:
    """Return what each token of a group attends to by the rule and by the shape of its blocks."""
    trunk, (blocks, longest), device = row.trunk.length, group.shape, row.positions.device
    if group.mask is None:
        return sdpa_mask(
            1, longest, longest, mask_function=rule, local_size=local_size, device=device
        )
    if local_size is None or trunk + longest <= local_size:
        return group.mask
    query = group.spread(row.positions[0])
    key = torch.cat([torch.arange(trunk, device=device).expand(blocks, trunk), query], dim=1)
    first = torch.zeros((), dtype=torch.long, device=device)
    return group.mask & rule(first, first, query[:, None, :, None], key[:, None, None, :])


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | _Sight | None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of transformers' models on a packed row; without one, their ordinary attention."""
    if not isinstance(attention_mask, _Sight):
        if _ROW.get() is not None:
            raise TypeError("it makes its attention masks in a way of its own")
        if query.shape[2] == 1 and kwargs.get("position_bias") is None:
            return _attend_to_one(query, key, value, attention_mask, **kwargs), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    row, parts = attention_mask.row, []
    if row.record is not None:
        row.record.layers[module.layer_idx] = (key, value)
    for group, mask in zip(row.groups, attention_mask.masks, strict=True):
        q, k, v = (group.spread(t[0].transpose(0, 1)).transpose(1, 2) for t in (query, key, value))
        if row.trunk.length:
            first = (t.expand(len(k), -1, -1, -1) for t in row.trunk.layers[module.layer_idx])
            k, v = (torch.cat(pair, dim=2) for pair in zip(first, (k, v), strict=True))
        out, _ = sdpa_attention_forward(module, q, k, v, mask, **kwargs)
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
AttentionMaskInterface.register(NAME, _mask)
