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
from cfutils.training.distributed import local
from cfutils.training.student import Student

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


def fisher_of(model: torch.nn.Module, sequences: Seq[Sequence], *, world: int = 1) -> list[Tensor]:
    """Return the diagonal of the Fisher information per token, one tensor for each parameter that is trained.

    F_i = sum_s (d_i sum_t log p(x_st))^2 / sum_s T_s over sequences s of T_s tokens, drawn from the model itself: the
    gradient of a whole sequence is squared, which no gradient of a batch gives. fp32, one pass for each sequence.
    Of a model that is sharded among `world` processes each process has its share; all of them make every pass.
    """
    student = Student.of(model)
    head, trained = Head(student.model), [p for p in student.parameters() if p.requires_grad]
    found = [torch.zeros_like(local(p), dtype=torch.float32) for p in trained]
    tokens, some = 0, sequences[:FISHER_SEQUENCES]
    with progress.task("Fisher information", total=len(some), unit="samples") as advance:
        for sequence in some:
            packed = packing.documents([sequence], student.device)

            def loss(hidden: Tensor, targets: Tensor = packed.targets) -> Tensor:
                weights = torch.full((len(hidden),), 1 / world, device=hidden.device)  # gradients are summed
                return losses.in_chunks(
                    head, hidden, weights, lambda logits, rows: losses.token_nll(logits, targets[rows])
                )[0]

            student(packed, loss).backward()
            for total, p in zip(found, trained, strict=True):
                total += local(p.grad).float().square()
                p.grad = None
            tokens += sequence.supervised
            advance()
    return [total / max(1, tokens) for total in found]
