"""Losses against values worked by hand, and what is true of them for every input."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from cfutils.models.lm_head import Head
from cfutils.training import losses

LN2, LN3 = math.log(2), math.log(3)
P0, P = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5)


def logits_of(*distributions):
    """Logits whose softmax is each distribution, shifted so that they are not normalised."""
    return torch.tensor(distributions).log() + 3.0


def test_nll():
    """p = 1/2, 1/4, 1/3 of the tokens that came: ln 2, 2 ln 2, ln 3."""
    rows = logits_of([1 / 8, 1 / 2, 1 / 4, 1 / 8], [1 / 4] * 4, [1 / 6, 1 / 6, 1 / 3, 1 / 3])
    nll = losses.token_nll(rows, torch.tensor([1, 0, 3]))
    torch.testing.assert_close(nll, torch.tensor([LN2, 2 * LN2, LN3]))


def test_forward_kl_and_its_direction():
    """KL(p0 || p), not KL(p || p0), with distributions for which the two differ.

    p0 = (1/2, 1/4, 1/4), p = (1/4, 1/4, 1/2):
        KL(p0 || p) = 1/2 ln 2 + 0 + 1/4 ln(1/2) = 1/4 ln 2, and by symmetry so is KL(p || p0).
    q = (1/8, 3/8, 1/2):
        KL(p0 || q) = 1/2 ln 4 + 1/4 ln(2/3) + 1/4 ln(1/2) = ln 2 - 1/4 ln 3   [ = 0.418493 ]
        KL(q || p0) = 1/8 ln(1/4) + 3/8 ln(3/2) + 1/2 ln 2 = 3/8 ln 3 - 1/8 ln 2 [ = 0.325334 ]
    ln(2/3)/4 + ln(1/2)/4 = ln 2/4 - ln 3/4 - ln 2/4 = -ln 3/4, with 1/2 ln 4 = ln 2;
    -2/8 ln 2 + 3/8 ln 3 - 3/8 ln 2 + 4/8 ln 2 = 3/8 ln 3 - 1/8 ln 2.
    """
    base = logits_of(P0, P0)
    kl = losses.token_kl(base, logits_of(P, (1 / 8, 3 / 8, 1 / 2)))
    torch.testing.assert_close(kl, torch.tensor([LN2 / 4, LN2 - LN3 / 4]))
    reverse = losses.token_kl(logits_of((1 / 8, 3 / 8, 1 / 2)), logits_of(P0))
    torch.testing.assert_close(reverse, torch.tensor([3 / 8 * LN3 - LN2 / 8]))


def test_kl_is_blind_to_a_shift_of_the_logits_and_never_negative():
    torch.manual_seed(0)
    a, b = torch.randn(64, 7) * 4, torch.randn(64, 7) * 4
    kl = losses.token_kl(a, b)
    torch.testing.assert_close(losses.token_kl(a + 5, b - 3), kl)
    assert (kl >= 0).all()


def test_gradient_of_kl_is_zero_at_the_base_and_that_of_nll_is_not():
    """d KL / d logit_v = p(v) - p0(v): zero where p = p0, on every sample; d NLL = p - onehot."""
    rows = logits_of(P0).requires_grad_()
    losses.token_kl(logits_of(P0), rows).sum().backward()
    torch.testing.assert_close(rows.grad, torch.zeros(1, 3))
    rows = logits_of(P).requires_grad_()
    losses.token_kl(logits_of(P0), rows).sum().backward()
    torch.testing.assert_close(rows.grad, torch.tensor([P]) - torch.tensor([P0]))
    rows = logits_of(P0).requires_grad_()
    losses.token_nll(rows, torch.tensor([1])).sum().backward()
    torch.testing.assert_close(rows.grad, torch.tensor([[0.5, -0.75, 0.25]]))


def test_entropy():
    """Uniform: ln V. (1/2, 1/4, 1/4): 1/2 ln 2 + 2 * 1/4 * 2 ln 2 = 3/2 ln 2. One sure token: 0."""
    rows = torch.tensor([[1 / 4] * 4, [1 / 2, 1 / 4, 1 / 8, 1 / 8]]).log()
    # 1/2 ln 2 + 1/4 2 ln 2 + 2/8 3 ln 2 = 7/4 ln 2
    torch.testing.assert_close(losses.entropy(rows), torch.tensor([2 * LN2, 1.75 * LN2]))
    sure = losses.entropy(torch.tensor([[500.0, 0.0, 0.0]]).log_softmax(-1))
    torch.testing.assert_close(sure, torch.zeros(1))


# ---- in chunks


class Spy(Head):
    """A head that remembers how many rows it saw at a time."""

    def product(self, hidden, weight):
        self.seen = [*getattr(self, "seen", []), len(hidden)]
        return super().product(hidden, weight)


def parts(frozen, bias, **config):
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 11, bias=bias).requires_grad_(not frozen)
    text = SimpleNamespace(**config)
    model = SimpleNamespace(
        get_output_embeddings=lambda: linear, config=SimpleNamespace(get_text_config=lambda: text)
    )
    hidden = torch.randn(7, 6, requires_grad=True)
    targets, base = torch.randint(11, (7,)), torch.randn(7, 11)
    weights = torch.tensor([1.0, 1, 1, 0.5, 0.5, 2, 0])
    return Spy(model), hidden, targets, base, weights


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["nll", "kl"])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_give_the_value_and_gradients_of_the_whole(kind, bias, frozen, size):
    """Also behind a factor (a process's share), and where the weight is used elsewhere too (tied)."""
    after = {"logit_scale": 0.5, "final_logit_softcapping": 2.0} if kind == "kl" else {}
    head, hidden, targets, base, weights = parts(frozen, bias, **after)
    matrix = head.linear.weight

    def term(logits, rows):
        if kind == "nll":
            return losses.token_nll(logits, targets[rows])
        return losses.token_kl(base[rows], logits)

    each = term(head(hidden), slice(None))
    whole = 3 * (each * weights).sum() + matrix.square().sum()
    wanted = torch.autograd.grad(whole, [hidden, *([] if frozen else head.parameters())])
    head.seen = []
    loss, found = losses.in_chunks(head, hidden, weights, term, size=size)
    assert max(head.seen) <= size and sum(head.seen) == 7
    torch.testing.assert_close(found, each)
    (3 * loss + matrix.square().sum()).backward()
    torch.testing.assert_close(loss, (each * weights).sum())
    torch.testing.assert_close(hidden.grad, wanted[0])
    if frozen:
        assert matrix.grad is None
    for parameter, gradient in zip(() if frozen else head.parameters(), wanted[1:], strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_chunks_under_autocast_add_up_gradients_in_fp32():
    """Products in bf16, 7 rows one at a time: the sum's error is that of bf16, not of adding up in it."""
    head, hidden, targets, _, weights = parts(False, False)

    def term(logits, rows):
        assert logits.dtype == torch.float32
        return losses.token_nll(logits, targets[rows])

    (losses.token_nll(head(hidden), targets) * weights).sum().backward()
    exact, head.linear.weight.grad = head.linear.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        assert head.product(hidden, head.matrix()).dtype == torch.bfloat16
        loss, _ = losses.in_chunks(head, hidden, weights, term, size=1)
    loss.backward()
    assert head.linear.weight.grad.dtype == torch.float32
    torch.testing.assert_close(head.linear.weight.grad, exact, rtol=0.02, atol=0.02)
