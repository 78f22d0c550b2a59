"""Weights of the target's tokens: the loss of token t is w_t times its NLL, with w_t no function of the weights.

The weighted sum is still divided by the number of all tokens, as in the released code of FLOW and EAFT. Two kinds:
`FIXED` weights come from the base's NLL and stay; `CURRENT` ones come from the model as it is at each step. Each has
one number, its strength: a multiple of a temperature, a limit, or an exponent.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.models import packing
from cfutils.models.lm_head import LOGIT_ROWS, Head
from cfutils.training import losses
from cfutils.training.student import Student

TOP = 20
"""Likeliest tokens whose entropy EAFT takes; 3.0 is ln 20, rounded as in its code."""
FLOOR = 0.01
"""Smallest weight of TALR; the paper has a floor whose value we do not know, this one is ours."""
TINY = 1e-6


def flow(nll: Seq[Tensor], strength: float) -> list[Tensor]:
    """exp(-l_i / tau) for all tokens of item i, l_i its mean NLL under the base, tau = strength * median l_i.

    FLOW (arXiv 2502.02797; strength 1). nll: one (tokens,) for each item.
    """
    means = torch.stack([one.mean() for one in nll])
    tau = (strength * means.quantile(0.5)).clamp(min=TINY)
    return [weight.expand(len(one)) for weight, one in zip((-means / tau).exp(), nll, strict=True)]


def stm(nll: Seq[Tensor], strength: float) -> list[Tensor]:
    """1 for tokens whose perplexity exp(NLL) under the base is at most the strength, else 0.

    Selective token masking (arXiv 2501.14315; strength 2.5). Raises `UserError` if no token is left.
    """
    weights = [(one.exp() <= strength).float() for one in nll]
    if not any(one.any() for one in weights):
        raise UserError(
            f"stm leaves no token of the target: under the base the perplexity of each is above {strength:g}. "
            "Raise strengths['stm'], or leave stm out of recipes."
        )
    return weights


def talr(logits: Tensor, nll: Tensor, strength: float, typical: float) -> Tensor:
    """p(y_t)^(1/tau) with tau = strength * the median of the mean NLLs of the step's items, at least `FLOOR`.

    TALR (arXiv 2509.20758; strength 1).
    """
    return (-nll / max(strength * typical, TINY)).exp().clamp(min=FLOOR)


def eaft(logits: Tensor, nll: Tensor, strength: float, typical: float) -> Tensor:
    """(H / 3)^strength, H the entropy of the renormalised `TOP` likeliest tokens, in nats.

    EAFT (arXiv 2601.02151; strength 1). logits: (n, vocabulary).
    """
    top = logits.topk(min(TOP, logits.shape[-1]), dim=-1).values
    return (losses.entropy(top.log_softmax(-1)) / 3.0).pow(strength)


def dft(logits: Tensor, nll: Tensor, strength: float, typical: float) -> Tensor:
    """p(y_t)^strength. DFT (arXiv 2508.05629; strength 1)."""
    return (-strength * nll).exp()


FIXED: dict[str, Callable[[Seq[Tensor], float], list[Tensor]]] = {"flow": flow, "stm": stm}
"""From the base's NLL of every item's tokens and the strength to weights of the same shapes."""
CURRENT: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {"talr": talr, "eaft": eaft, "dft": dft}
"""From rows of logits, their tokens' NLL, the strength and the step's typical loss to weights (n,)."""


@torch.no_grad()
def token_nlls(model: torch.nn.Module, sequences: Seq[Sequence], *, limit: int) -> list[Tensor]:
    """Return the NLL of each sequence's supervised tokens, in nats; limit: tokens in one forward pass.

    Of a sharded model each process computes all of them.
    """
    student, found = Student.of(model), {}
    head = Head(student.model)
    for places in packing.by_length([len(s.ids) for s in sequences], limit=limit):
        packed = packing.documents([sequences[i] for i in places], student.device)

        def nll(hidden: Tensor, targets: Tensor = packed.targets) -> Tensor:
            parts = zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
            return torch.cat([losses.token_nll(head(rows), wanted) for rows, wanted in parts])

        found |= dict(zip(places, student(packed, nll).split(packed.counts), strict=True))
    return [found[i] for i in range(len(sequences))]


def typical_loss(nll: Seq[Tensor]) -> float:
    """Return the median over items of their mean NLL."""
    return torch.stack([one.mean() for one in nll]).quantile(0.5).item()
