"""Penalties and the Fisher information against values worked by hand."""

from __future__ import annotations

import pytest
import torch

from cfutils.data.sequences import Sequence
from cfutils.models import loading
from cfutils.training import penalties

THETA = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [0.0]])]
ZERO = [torch.tensor([0.0, 0.0]), torch.tensor([[1.0], [1.0]])]


def test_l2_is_a_sum_not_a_mean():
    """(1-0)^2 + (2-0)^2 + (3-1)^2 + (0-1)^2 = 1 + 4 + 4 + 1 = 10, whatever the shapes."""
    assert penalties.l2(THETA, ZERO).item() == 10
    with pytest.raises(ValueError):
        penalties.l2(THETA, ZERO[:1])


def test_ewc():
    """1/2 (3 * 1 + 0 * 4 + 2 * 4 + 1 * 1) = 6; with F = 2 everywhere it is L2."""
    fisher = [torch.tensor([3.0, 0.0]), torch.tensor([[2.0], [1.0]])]
    assert penalties.ewc(THETA, ZERO, fisher).item() == 6
    assert penalties.ewc(THETA, ZERO, [torch.full_like(t, 2.0) for t in THETA]).item() == 10


def test_the_fisher_is_the_mean_square_of_gradients_of_whole_sequences(tiny_base):
    """Two sequences of 3 and 2 tokens: (g_1^2 + g_2^2) / 5, g the gradient of the sum over a sequence's tokens."""
    model = loading.load(tiny_base, dtype="float32")
    sequences = [Sequence((0, 5, 6, 7), 1), Sequence((0, 8, 9), 1)]
    found = penalties.fisher_of(model, sequences)
    wanted = [torch.zeros_like(p) for p in model.parameters()]
    for sequence in sequences:
        ids = torch.tensor(sequence.ids)
        loss = -model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).sum()
        for total, gradient in zip(wanted, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total += gradient.square() / 5
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_the_fisher_expands_the_kl(tiny_base):
    """Over all strings of one token, weighted by the base: 1/2 d^T F d is the KL of that token to second order.

    A step along one parameter alone, for which the diagonal is exact.
    """
    model = loading.load(tiny_base, dtype="float32")
    weight = model.model.layers[0].mlp.down_proj.weight
    log_p = model(torch.tensor([[7]])).logits[0, 0].log_softmax(-1).detach().double()
    place = (3, 5)
    fisher = sum(
        p * penalties.fisher_of(model, [Sequence((7, token), 1)])[
            [name for name, _ in model.named_parameters()].index("model.layers.0.mlp.down_proj.weight")
        ][place].double()
        for token, p in enumerate(log_p.exp())
    )  # fmt: skip
    step, kls = 0.1, []
    for change in (step, -2 * step):  # to either side: odd orders cancel
        with torch.no_grad():
            weight[place] += change
        moved = model(torch.tensor([[7]])).logits[0, 0].log_softmax(-1).detach().double()
        kls.append((log_p.exp() * (log_p - moved)).sum().item())
    assert 0.5 * fisher.item() * step**2 == pytest.approx(sum(kls) / 2, rel=0.1)


def test_no_more_sequences_than_the_cap(tiny_base, monkeypatch):
    model = loading.load(tiny_base, dtype="float32")
    sequences = [Sequence((0, 5, 6), 1), Sequence((0, 8, 9), 1)]
    monkeypatch.setattr(penalties, "FISHER_SEQUENCES", 1)
    capped, one = (penalties.fisher_of(model, some) for some in (sequences, sequences[:1]))
    assert all(torch.equal(a, b) for a, b in zip(capped, one, strict=True))
