"""What a model, and its base beside it, make of every token of some sequences.

Forward passes are packed rows (`packing`); logits are made of last hidden states a few rows at a time,
so memory does not grow with vocabulary x length. The base's hidden states are kept, as all tuned models
meet one base: its second pass costs its head alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfutils import losses, packing
from cfutils.head import Head
from cfutils.replay import Sequence

ROWS = 128
"""Rows of logits that are made at a time."""


class Scored(NamedTuple):
    """One sequence's values at supervised tokens, in nats."""

    nll: np.ndarray
    kl: np.ndarray
    """KL(base || model) over the whole vocabulary; zero without a base."""
    nll_base: np.ndarray
    entropy: np.ndarray


class Remembered:
    """A frozen model whose last hidden states are kept, by sequence, in memory (width, not vocabulary)."""

    def __init__(self, model: torch.nn.Module, states: dict[Sequence, Tensor]) -> None:
        self.model, self.states = model, states
        self.head = Head(model)

    @torch.inference_mode()
    def hidden(self, sequences: Seq[Sequence]) -> Tensor:
        """Return the states that predict supervised tokens, (n, width), sequence by sequence."""
        missing = [s for s in dict.fromkeys(sequences) if s not in self.states]
        if missing:
            found = packing.documents(missing, self.model.device)
            rows = packing.last_hidden(self.model, found.packed)[found.rows].cpu()
            self.states |= zip(missing, rows.split(found.counts), strict=True)
        return torch.cat([self.states[s] for s in sequences]).to(self.model.device)


def score(
    model: torch.nn.Module, base: Remembered | None, batch: Seq[Sequence], *, limit: int
) -> list[Scored]:
    """Score sequences; `limit` is the number of tokens in one forward pass."""
    found: dict[int, Scored] = {}
    for places, values in _passes(model, base, batch, limit):
        edges = np.cumsum([batch[i].supervised for i in places])[:-1]
        parts = (np.split(column, edges) for column in values)
        found |= zip(places, map(Scored, *parts), strict=True)
    return [found[i] for i in range(len(batch))]


@torch.inference_mode()
def _passes(
    model: torch.nn.Module, base: Remembered | None, batch: Seq[Sequence], limit: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (indices of some sequences, values of all their supervised tokens), one pass at a time."""
    head = Head(model)
    for places in packing.by_length([len(s.ids) for s in batch], limit=limit):
        rows = [batch[i] for i in places]
        found = packing.documents(rows, model.device)
        hidden = packing.last_hidden(model, found.packed)[found.rows]
        before = None if base is None else base.hidden(rows)
        columns = []
        for begin in range(0, max(1, len(hidden)), ROWS):
            piece = slice(begin, begin + ROWS)
            log_p, targets = head(hidden[piece]).log_softmax(-1), found.targets[piece, None]
            nll = nll_base = -log_p.gather(1, targets)[:, 0]
            kl = torch.zeros_like(nll)
            if before is not None:
                log_base = base.head(before[piece]).log_softmax(-1)
                nll_base = -log_base.gather(1, targets)[:, 0]
                kl = losses.kl(log_base, log_p)
            columns.append(torch.stack([nll, kl, nll_base, losses.entropy(log_p)]).double().cpu())
        yield places, torch.cat(columns, dim=1).numpy()
