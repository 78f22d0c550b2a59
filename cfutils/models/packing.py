"""Documents through a model: as packed rows where its architecture can compute them, else as padded batches.

On a row only attention knows which tokens belong together (`packed_attention`), so a model whose layers carry a
state from token to token, or that has an attention of its own, gets an ordinary batch padded on the right.
The results are last hidden states, from which logits are computed where they are needed (`Head`).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.models import packed_attention
from cfutils.models.lm_head import Head
from cfutils.models.packed_rows import Block, Row, Trunk, chain, row

CLOSE = {torch.float32: 1e-3}
"""Largest difference that counts as rounding, as a share of the largest logit; 0.05 in 16-bit formats."""
FAILURES = (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError)
"""What a forward pass raises that an architecture was not made for."""


def supports_packing(model: torch.nn.Module) -> bool:
    """Whether `prepare` found that the model can compute packed rows."""
    return _core(model).config._attn_implementation == packed_attention.NAME


def _core(model: torch.nn.Module) -> Any:
    """The model of transformers below adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body(model: torch.nn.Module) -> Any:
    """The part of a model that ends in the last hidden states."""
    core = _core(model)
    return core.model if core.base_model is core else core.base_model  # Llama4 names its body wrongly


@torch.inference_mode()
def prepare(model: Any) -> str | None:
    """Let a model compute packed rows; return the reason if it cannot.

    What decides is whether documents in a row, or else in a padded batch, get the logits that the model computes
    for each alone. Raises `UserError` if they get neither.
    """
    ids = [i % model.config.get_text_config().vocab_size for i in (5, 7, 11, 13, 17)]
    probes = [ids[:4], [*ids[:3], ids[4]], ids[:2]]
    try:
        head = Head(model)
        logits = torch.cat([_last_logits(model, probe) for probe in probes])
        why = differing(head(_in_a_batch(model, probes)), logits, model.dtype)
    except UserError:
        raise
    except FAILURES as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        raise UserError(
            f"{type(model).__name__} cannot be scored ({why}): a document's logits must be its last matrix times "
            "its last hidden states, whatever follows it in a batch. Choose another decoder as the base, or extend "
            "lm_head.Head if it changes logits after the matrix."
        )
    if why := _ruled_out(model):
        return why
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(packed_attention.NAME)
        why = differing(head(_in_a_tree(model, probes)), logits, model.dtype)
    except FAILURES as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        model.set_attn_implementation(before)
    return why


def has_own_layers(model: torch.nn.Module) -> bool:
    """Whether an architecture's cache has kinds of layers for itself: those may join tokens by place in the row."""
    try:
        layers = DynamicCache(config=_core(model).config).layers
    except FAILURES:
        return True
    return any(type(layer).__module__ != DynamicCache.__module__ for layer in layers)


def _ruled_out(model: torch.nn.Module) -> str | None:
    """Return what in an architecture rules packed rows out, however close the numbers are."""
    core = _core(model)
    if has_own_layers(model):
        return "its layers attend in a way of their own"
    layers = DynamicCache(config=core.config).layers
    states = any(isinstance(one, LinearAttentionCacheLayerMixin) for one in layers)
    if states or getattr(core, "_is_stateful", False):
        return "its layers carry a state from token to token"
    if (attention := core.config._attn_implementation) not in ("sdpa", packed_attention.NAME):
        return f"its attention is {attention}, not sdpa"
    return None


def _last_logits(model: torch.nn.Module, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids], device=model.device)).logits[:, -1].float()


def differing(found: Tensor, logits: Tensor, dtype: torch.dtype) -> str | None:
    """Say by how much found logits differ from what they should be; None where it is rounding in that dtype."""
    gap = (found - logits).abs().max()
    close = gap <= CLOSE.get(dtype, 0.05) * logits.abs().max()
    return None if close else f"logits differ by {gap:.2g}"


def _in_a_batch(model: torch.nn.Module, probes: list[list[int]]) -> Tensor:
    """Return the last state of each document, side by side with what begins like it and goes on."""
    packed = row([chain([*probe, probe[0]]) for probe in probes], model.device)
    ends = torch.tensor([len(probe) + 1 for probe in probes]).cumsum(0) - 2
    return last_hidden(model, packed)[ends]


def _in_a_tree(model: torch.nn.Module, probes: list[list[int]]) -> Tensor:
    """Return the last state of each document: behind a trunk, two in a tree, and the third beside it."""
    first, second, third = probes
    trunk = Trunk(1)
    last_hidden(model, row([chain(first[:1])], model.device, record=trunk))
    tree = Block()
    stem = tree.grow([], first[1:3])
    ends = [tree.grow(stem, probe[3:])[-1] for probe in (first, second)]
    blocks = [tree, chain(third[1:])]
    return last_hidden(model, row(blocks, model.device, trunk=trunk))[[*ends, len(tree.ids)]]


def last_hidden(model: torch.nn.Module, packed: Row) -> Tensor:
    """Return the states that the head turns into logits, (tokens, width), in the row's order."""
    seen = torch.ones_like(packed.ids)
    if supports_packing(model):
        with packed_attention.on(packed):
            out = body(model)(
                input_ids=packed.ids, position_ids=packed.positions, attention_mask=seen, use_cache=False
            )
        return out.last_hidden_state[0]
    parts = []
    for group in packed.groups:
        batch, mask = (group.spread(t[0]) for t in (packed.ids, seen))
        out = body(model)(input_ids=batch, attention_mask=mask, use_cache=False)
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
