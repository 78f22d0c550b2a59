"""Penalties on the distance of the weights from the base's, and the Fisher information that one of them needs."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from cfutils import progress
from cfutils.data.sequences import Sequence
from cfutils.models import packing
from cfutils.models.lm_head import Head
from cfutils.training import losses

FISHER_SEQUENCES = 512
"""Samples that the Fisher is measured on, at most (those who use it for language models take 100 batches of text)."""


def l2(parameters: Iterable[Tensor], reference: Iterable[Tensor]) -> Tensor:
    """sum_i (theta_i - theta_0i)^2 over all parameters, not divided by their number.

    (FLOW's released code divides by the number of parameters; its lambda is larger by that factor.)
    """
    return torch.stack(
        [(p - r).float().square().sum() for p, r in zip(parameters, reference, strict=True)]
    ).sum()


def ewc(parameters: Iterable[Tensor], reference: Iterable[Tensor], fisher: Iterable[Tensor]) -> Tensor:
    """1/2 sum_i F_i (theta_i - theta_0i)^2 (elastic weight consolidation, arXiv 1612.00796, eq. 3).

    With F of `fisher_of` it is the diagonal of the second-order expansion of KL(base || tuned) per token; weights far
    above 1 (the recipe's default is 100) make up for what the diagonal leaves out. Those of others (1e3 to 1e5) belong
    to gradients of batches, whose squares are smaller.
    """
    parts = zip(parameters, reference, fisher, strict=True)
    return 0.5 * torch.stack([(f * (p - r).float().square()).sum() for p, r, f in parts]).sum()


def fisher_of(model: torch.nn.Module, sequences: Seq[Sequence]) -> list[Tensor]:
    """Return the diagonal of the Fisher information per token, one tensor for each parameter that is trained.

    F_i = sum_s (d_i sum_t log p(x_st))^2 / sum_s T_s over sequences s of T_s tokens, drawn from the model itself: the
    gradient of a whole sequence is squared, which no gradient of a batch gives. fp32, one pass for each sequence.
    """
    head, trained = Head(model), [p for p in model.parameters() if p.requires_grad]
    found = [torch.zeros_like(p, dtype=torch.float32) for p in trained]
    tokens, some = 0, sequences[:FISHER_SEQUENCES]
    with progress.task("Fisher information", total=len(some), unit="samples") as advance:
        for sequence in some:
            packed = packing.documents([sequence], model.device)
            hidden = packing.last_hidden(model, packed.packed)[packed.rows]
            weights = torch.ones(len(hidden), device=hidden.device)
            loss, _ = losses.in_chunks(
                head, hidden, weights, lambda logits, rows, t=packed.targets: losses.token_nll(logits, t[rows])
            )
            for total, gradient in zip(found, torch.autograd.grad(loss, trained), strict=True):
                total += gradient.float().square()
            tokens += sequence.supervised
            advance()
    return [total / max(1, tokens) for total in found]
