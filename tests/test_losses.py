"""Losses against values worked by hand, and what is true of them for every input."""

from __future__ import annotations

import math

import pytest
import torch

from cfutils import losses
from cfutils.replay import Sequence

LN2, LN3 = math.log(2), math.log(3)
P0, P = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5)


def logits_of(*laws):
    """Logits whose softmax is each law, shifted so that they are not normalised."""
    return torch.tensor(laws).log() + 3.0


def batch():
    """Logits (2, 3, 4), ids and mask: row 1 is one token shorter, its last column is padding.

    Row 0: ids 3 1 0, all but token 0 carry loss. Row 1: ids 2 3 (padding), token 1 carries loss.
    What predicts: row 0, token 1 (id 1): law (1/8, 1/2, 1/4, 1/8) -> p = 1/2, NLL = ln 2.
                   row 0, token 2 (id 0): law (1/4, 1/4, 1/4, 1/4) -> p = 1/4, NLL = 2 ln 2.
                   row 1, token 1 (id 3): law (1/6, 1/6, 1/3, 1/3) -> p = 1/3, NLL = ln 3.
    """
    noise = [0.7, 0.1, 0.1, 0.1]
    logits = torch.stack(
        [
            logits_of([1 / 8, 1 / 2, 1 / 4, 1 / 8], [1 / 4] * 4, noise),
            logits_of([1 / 6, 1 / 6, 1 / 3, 1 / 3], noise, noise),
        ]
    )
    ids = torch.tensor([[3, 1, 0], [2, 3, 0]])
    mask = torch.tensor([[True, True, True], [False, True, False]])
    return logits, ids, mask


def test_nll_of_supervised_tokens():
    nll = losses.token_nll(*losses.supervised(*batch()))
    torch.testing.assert_close(nll, torch.tensor([LN2, 2 * LN2, LN3]))


def test_the_first_token_carries_no_loss():
    """Nothing predicts token 0, so that mask[:, 0] changes nothing."""
    logits, ids, mask = batch()
    other = mask.clone()
    other[:, 0] = ~mask[:, 0]
    for a, b in zip(
        losses.supervised(logits, ids, mask), losses.supervised(logits, ids, other), strict=True
    ):
        assert torch.equal(a, b)


def test_padding_and_unmasked_positions_do_not_matter():
    logits, ids, mask = batch()
    changed = logits.clone()
    changed[:, 2] = 99.0  # predicts nothing
    changed[1, 1] = -99.0  # predicts padding
    ids[1, 2] = 3
    nll = losses.token_nll(*losses.supervised(changed, ids, mask))
    torch.testing.assert_close(nll, torch.tensor([LN2, 2 * LN2, LN3]))


def test_losses_are_computed_in_fp32():
    logits, ids, mask = batch()
    rows, _ = losses.supervised(logits.bfloat16(), ids, mask)
    assert rows.dtype == torch.float32


def test_forward_kl_and_its_direction():
    """KL(p0 || p), not KL(p || p0), with laws for which the two differ.

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
    torch.testing.assert_close(losses.token_entropy(torch.zeros(1, 5)), torch.tensor([math.log(5)]))
    torch.testing.assert_close(losses.token_entropy(logits_of(P0)), torch.tensor([1.5 * LN2]))
    sure = losses.token_entropy(torch.tensor([[500.0, 0.0, 0.0]]))
    torch.testing.assert_close(sure, torch.zeros(1))


def test_l2_is_a_sum_not_a_mean():
    """(1-0)^2 + (2-0)^2 + (3-1)^2 + (0-1)^2 = 1 + 4 + 4 + 1 = 10, whatever the shapes."""
    theta = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [0.0]])]
    zero = [torch.tensor([0.0, 0.0]), torch.tensor([[1.0], [1.0]])]
    assert losses.l2(theta, zero).item() == 10
    with pytest.raises(ValueError):
        losses.l2(theta, zero[:1])


def test_micro_batches_pad_on_the_right_and_mask_what_carries_loss():
    sequences = [Sequence((7, 8, 9), 2), Sequence((5, 6), 1), Sequence((1, 2, 3, 4), 1)]
    (ids, seen, mask), (ids2, _, mask2) = losses.micro_batches(sequences, 2)
    # sorted by length: (5 6), (7 8 9) | (1 2 3 4)
    assert ids.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert seen.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert mask.tolist() == [[False, True, False], [False, False, True]]
    assert ids2.tolist() == [[1, 2, 3, 4]] and mask2.tolist() == [[False, True, True, True]]
    in_order = next(losses.micro_batches(sequences, 3, by_length=False))[0]
    assert in_order[:, 0].tolist() == [7, 5, 1]
