"""What is minimised and what is measured: NLL, forward KL, L2, all in fp32 on chosen positions.

Positions: `mask[b, t]` says that token t of sequence b carries loss; its logits stand at t - 1. Rows are
selected before the softmax, so memory grows with supervised tokens, not with padded length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cfutils.replay import Sequence


def micro_batches(
    batch: list[Sequence], size: int, *, by_length: bool = True
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (ids, attention mask, loss mask), each (rows, length), padded on the right.

    Sequences of like length stand together, so that little is padded; the sum does not depend on it.
    """
    rows_in_order = sorted(batch, key=lambda s: len(s.ids)) if by_length else batch
    for begin in range(0, len(batch), size):
        rows = rows_in_order[begin : begin + size]
        shape = (len(rows), max(len(s.ids) for s in rows))
        ids = torch.zeros(shape, dtype=torch.long)
        seen = torch.zeros(shape, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, sequence in enumerate(rows):
            n = len(sequence.ids)
            ids[row, :n] = torch.tensor(sequence.ids)
            seen[row, :n] = 1
            mask[row, sequence.first : n] = True
        yield ids, seen, mask


def supervised(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Select what predicts the supervised tokens.

    logits: (batch, length, vocabulary); ids: (batch, length); mask: (batch, length) bool, mask[:, 0] is
    ignored (nothing predicts the first token). Returns rows (n, vocabulary) in fp32 and targets (n,).
    """
    chosen = mask[:, 1:]
    return logits[:, :-1][chosen].float(), ids[:, 1:][chosen]


def token_nll(rows: Tensor, targets: Tensor) -> Tensor:
    """-log p(x_t | x_<t) in nats. rows: (n, vocabulary); targets: (n,). Returns (n,)."""
    return F.cross_entropy(rows, targets, reduction="none")


def token_kl(base_rows: Tensor, rows: Tensor) -> Tensor:
    """Forward KL(base || tuned) at each position over the full vocabulary, in nats.

    sum_v p_0(v) (log p_0(v) - log p(v)); both arguments are logits (n, vocabulary). Returns (n,).
    Its gradient at tuned = base is zero on every sample, unlike that of the sampled NLL.
    """
    log_base, log_tuned = base_rows.log_softmax(-1), rows.log_softmax(-1)
    return F.kl_div(log_tuned, log_base, reduction="none", log_target=True).sum(-1)


def token_entropy(rows: Tensor) -> Tensor:
    """-sum_v p(v) log p(v) at each position, in nats. rows: logits (n, vocabulary). Returns (n,)."""
    log_p = rows.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def l2(parameters: Iterable[Tensor], reference: Iterable[Tensor]) -> Tensor:
    """sum_i (theta_i - theta_0i)^2 over all parameters, not divided by their number.

    (FLOW's released code divides by the number of parameters; its lambda is larger by that factor.)
    """
    return torch.stack(
        [(p - r).float().square().sum() for p, r in zip(parameters, reference, strict=True)]
    ).sum()
