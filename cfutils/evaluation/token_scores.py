"""NLL, KL from the base and entropy at every supervised token of some sequences.

Forward passes are packed rows (`packing`), and logits are computed from last hidden states some rows at a time,
so that memory does not grow with vocabulary x length. All tuned models are compared with one base, whose hidden
states are kept (`base_states`): on sequences seen before it costs its head alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
import torch

from cfutils import progress
from cfutils.data.sequences import Sequence
from cfutils.models import lm_head, packing
from cfutils.models.base_states import BaseStates
from cfutils.models.lm_head import Head
from cfutils.training import losses


class Scored(NamedTuple):
    """One sequence's values at supervised tokens, in nats."""

    nll: np.ndarray
    kl: np.ndarray
    """KL(base || model) over the whole vocabulary; zero without a base."""
    nll_base: np.ndarray
    entropy: np.ndarray


def score(
    model: torch.nn.Module, base: BaseStates | None, batch: Seq[Sequence], *, limit: int
) -> list[Scored]:
    """Score sequences under a model, and under the base if one is given.

    limit: tokens in one forward pass.
    """
    found: dict[int, Scored] = {}
    with progress.task("scoring", total=sum(len(one.ids) for one in batch), unit="tokens") as advance:
        for places, values in _passes(model, base, batch, limit):
            edges = np.cumsum([batch[i].supervised for i in places])[:-1]
            parts = (np.split(column, edges) for column in values)
            found |= zip(places, map(Scored, *parts), strict=True)
            advance(sum(len(batch[i].ids) for i in places))
    return [found[i] for i in range(len(batch))]


@torch.inference_mode()
def _passes(
    model: torch.nn.Module, base: BaseStates | None, batch: Seq[Sequence], limit: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (indices of some sequences, values of all their supervised tokens), one pass at a time."""
    head = Head(model)
    for places in packing.by_length([len(s.ids) for s in batch], limit=limit):
        rows = [batch[i] for i in places]
        found = packing.documents(rows, model.device)
        hidden = packing.last_hidden(model, found.packed)[found.rows]
        before = None if base is None else base.hidden(rows)
        columns = []
        for begin in range(0, max(1, len(hidden)), lm_head.LOGIT_ROWS):
            piece = slice(begin, begin + lm_head.LOGIT_ROWS)
            log_p, targets = head(hidden[piece]).log_softmax(-1), found.targets[piece, None]
            nll = nll_base = -log_p.gather(1, targets)[:, 0]
            kl = torch.zeros_like(nll)
            if before is not None:
                log_base = base.head(before[piece]).log_softmax(-1)
                nll_base = -log_base.gather(1, targets)[:, 0]
                kl = losses.kl(log_base, log_p)
            columns.append(torch.stack([nll, kl, nll_base, losses.entropy(log_p)]).double().cpu())
        yield places, torch.cat(columns, dim=1).numpy()
