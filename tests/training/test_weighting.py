"""Weights of target tokens against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.method import Weighting
from cfutils.models import loading
from cfutils.training import weighting

LN2 = math.log(2)


def test_flow():
    """Means 1, 2, 4; tau is their median 2: exp(-1/2), exp(-1), exp(-2) for each of an item's tokens; twice tau."""
    nll = [torch.tensor([0.0, 2.0]), torch.tensor([2.0]), torch.tensor([3.0, 4.0, 5.0])]
    found = weighting.flow(nll, 1.0)
    assert [len(one) for one in found] == [2, 1, 3]
    for one, power in zip(found, (0.5, 1.0, 2.0), strict=True):
        torch.testing.assert_close(one, torch.full((len(one),), math.exp(-power)))
    assert weighting.flow(nll, 2.0)[2][0].item() == pytest.approx(math.exp(-1))
    assert all(one.isfinite().all() for one in weighting.flow([torch.zeros(2)], 1.0))


def test_stm_counts_perplexity():
    """exp(NLL) = 2, 2.5 and 4 at a limit of 2.5: the last token carries no loss."""
    nll = [torch.tensor([LN2, 2 * LN2]), torch.tensor([math.log(2.4999)])]
    assert [one.tolist() for one in weighting.stm(nll, 2.5)] == [[1, 0], [1]]
    assert [one.tolist() for one in weighting.stm(nll, 10.0)] == [[1, 1], [1]]
    with pytest.raises(UserError, match="stm leaves no token"):
        weighting.stm(nll, 1.5)


def test_talr():
    """p^(1/tau): p = 1/4 at tau = 2 is 1/2; strength 1/2 makes tau 1; p = e^-20 falls to the floor of 0.01."""
    nll = torch.tensor([2 * LN2, 20.0])
    torch.testing.assert_close(weighting.talr(None, nll, 1.0, 2.0), torch.tensor([0.5, 0.01]))
    torch.testing.assert_close(weighting.talr(None, nll, 0.5, 2.0), torch.tensor([0.25, 0.01]))


def test_typical_loss_is_a_median_of_means():
    assert weighting.typical_loss([torch.tensor([1.0, 3.0]), torch.tensor([9.0]), torch.tensor([3.0])]) == 3.0


def test_eaft():
    """Entropy of the 20 likeliest alone, renormalised: uniform over 20 of 30 is ln 20; (1/2, 1/4, 1/4) is 3/2 ln 2."""
    logits = torch.full((1, 30), -50.0)
    logits[0, :20] = 2.0
    wide = torch.full((1, 30), 0.0)  # 30 alike: the 10 beyond the first 20 do not count
    for rows in (logits, wide):
        assert weighting.eaft(rows, None, 1.0, math.nan).item() == pytest.approx(math.log(20) / 3)
    three = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert weighting.eaft(three, None, 1.0, math.nan).item() == pytest.approx(0.5 * LN2)
    assert weighting.eaft(three, None, 2.0, math.nan).item() == pytest.approx(0.25 * LN2**2)


def test_dft():
    """p = 1/4: weight 1/4, and 1/16 at exponent 2."""
    nll = torch.tensor([2 * LN2])
    assert weighting.dft(None, nll, 1.0, math.nan).item() == pytest.approx(1 / 4)
    assert weighting.dft(None, nll, 2.0, math.nan).item() == pytest.approx(1 / 16)


def test_every_weighting_is_fixed_or_current():
    assert {*weighting.FIXED, *weighting.CURRENT} == set(Weighting.__args__)
    assert not set(weighting.FIXED) & set(weighting.CURRENT)


def test_token_nlls_are_those_of_an_unpadded_pass(tiny_base):
    model = loading.load(tiny_base, dtype="float32")
    sequences = [Sequence((5, 6, 7, 8), 2), Sequence((9, 10), 1), Sequence((5, 6, 7), 1)]
    found = weighting.token_nlls(model, sequences, limit=5)
    for sequence, nll in zip(sequences, found, strict=True):
        ids = torch.tensor(sequence.ids)
        log_p = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[sequence.first - 1 :, 0]
        torch.testing.assert_close(nll, -log_p.detach(), atol=1e-5, rtol=1e-5)
