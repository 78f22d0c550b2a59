"""What is minimised and what is measured: NLL, forward KL, entropy, all in fp32.

Rows are logits at the positions that predict a token which carries loss, and no others. In training only some of
them exist at a time (`in_chunks`), so that memory does not grow with vocabulary x length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfutils.models.lm_head import LOGIT_ROWS, Head

Term = Callable[[Tensor, slice], Tensor]
"""From rows of logits, and the slice of all rows that they are, to a loss for each."""


def token_nll(rows: Tensor, targets: Tensor) -> Tensor:
    """-log p(x_t | x_<t) in nats. rows: logits (n, vocabulary); targets: (n,). Returns (n,)."""
    return F.cross_entropy(rows, targets, reduction="none")


def token_kl(base_rows: Tensor, rows: Tensor) -> Tensor:
    """Forward KL(base || tuned) at each position over the full vocabulary, in nats.

    sum_v p_0(v) (log p_0(v) - log p(v)); both arguments are logits (n, vocabulary). Returns (n,).
    Its gradient at tuned = base is zero on every sample, unlike that of the sampled NLL.
    """
    return kl(base_rows.log_softmax(-1), rows.log_softmax(-1))


def kl(log_base: Tensor, log_tuned: Tensor) -> Tensor:
    """KL of each row of log-probabilities, (n, vocabulary), in nats. Returns (n,)."""
    return F.kl_div(log_tuned, log_base, reduction="none", log_target=True).sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """-sum_v p(v) log p(v) of each row of log-probabilities, (n, vocabulary), in nats. Returns (n,)."""
    return -(log_p.exp() * log_p).sum(-1)


def in_chunks(
    head: Head, hidden: Tensor, weights: Tensor, term: Term, *, size: int = LOGIT_ROWS
) -> tuple[Tensor, Tensor]:
    """Return sum_i weights_i loss_i and the losses (n,), where logits = head(hidden) in chunks.

    hidden: (n, width); weights: (n,). The gradients of a chunk are computed with its loss and its logits are
    freed before those of the next exist, as in fused linear cross-entropy kernels (Liger, arXiv 2410.10989).
    """
    trained = [p for p in head.parameters() if p.requires_grad]
    return _InChunks.apply(head, hidden, weights, term, size, *trained)


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Head, hidden: Tensor, weights: Tensor, term: Term, size: int, *trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses = weights.new_zeros(len(hidden))
        by_hidden = torch.empty_like(hidden)  # the gradient by hidden
        totals = [torch.zeros_like(p) for p in trained]
        matrix = head.matrix()
        for begin in range(0, len(hidden), size):
            rows = slice(begin, begin + size)
            product = head.product(hidden[rows], matrix).requires_grad_()
            with torch.enable_grad():
                values = term(head.finish(product), rows)
                (slope,) = torch.autograd.grad((values * weights[rows]).sum(), product)
            losses[rows] = values.detach()
            by_hidden[rows] = slope @ matrix.to(slope.dtype)
            for parameter, total in zip(trained, totals, strict=True):
                if parameter.ndim == 1:  # a bias
                    total += slope.sum(0)
                elif total.dtype == slope.dtype:
                    total.addmm_(slope.T, hidden[rows].to(slope.dtype))
                else:  # autocast: added up in the weights' own format
                    total += slope.T @ hidden[rows].to(slope.dtype)
        ctx.save_for_backward(by_hidden, *totals)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple:
        by_hidden, *totals = ctx.saved_tensors
        return None, slope * by_hidden, None, None, None, *(t.mul_(slope) for t in totals)
