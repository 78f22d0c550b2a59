"""NLL, KL and entropy at each token against direct computation; the base runs once."""

from __future__ import annotations

import numpy as np
import pytest

from cfutils.data.sequences import Sequence
from cfutils.evaluation import token_scores
from cfutils.models import lm_head, packing
from cfutils.models.base_states import BaseStates
from tests.evaluation.conftest import log_probs

SEQUENCES = [Sequence((0, 5, 6, 7, 8), 1), Sequence((9, 10, 11), 2), Sequence((3, 4, 5, 6), 1)]


def test_kl_of_a_model_to_itself_is_zero(base):
    for one in token_scores.score(base, BaseStates(base, limit=64), SEQUENCES, limit=8):
        np.testing.assert_allclose(one.kl, 0, atol=1e-6)
        assert (one.nll > 0).all()
        np.testing.assert_allclose(one.nll, one.nll_base, rtol=1e-6)
    for one in token_scores.score(base, None, SEQUENCES, limit=8):
        assert (one.kl == 0).all() and (one.nll == one.nll_base).all()


@pytest.mark.parametrize("limit", [1, 8, 64])
@pytest.mark.parametrize("rows", [1, 3, 128])
def test_values_equal_a_direct_computation(base, other, monkeypatch, limit, rows):
    """Both models unpadded, in fp64, at the supervised tokens; whatever is computed at a time."""
    monkeypatch.setattr(lm_head, "LOGIT_ROWS", rows)
    found = token_scores.score(other, BaseStates(base, limit=64), SEQUENCES, limit=limit)
    for sequence, one in zip(SEQUENCES, found, strict=True):
        log_p0, log_p = log_probs(base, sequence.ids), log_probs(other, sequence.ids)
        where = range(sequence.first, len(sequence.ids))
        np.testing.assert_allclose(one.nll, [-log_p[t - 1, sequence.ids[t]] for t in where], rtol=1e-4)
        expected = [-log_p0[t - 1, sequence.ids[t]] for t in where]
        np.testing.assert_allclose(one.nll_base, expected, rtol=1e-4)
        direct = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
        np.testing.assert_allclose(one.kl, [direct[t - 1] for t in where], rtol=1e-3, atol=1e-6)
        entropy = -(log_p.exp() * log_p).sum(-1)
        np.testing.assert_allclose(one.entropy, [entropy[t - 1] for t in where], rtol=1e-4)
        assert all(len(column) == sequence.supervised for column in one)


def test_the_base_runs_once(base, other, monkeypatch):
    passes = []
    plain = packing.last_hidden
    monkeypatch.setattr(packing, "last_hidden", lambda m, row: passes.append(m) or plain(m, row))
    states = BaseStates(base, limit=64)
    first = token_scores.score(other, states, SEQUENCES, limit=64)
    again = token_scores.score(other, states, [*SEQUENCES[::-1], SEQUENCES[0]], limit=64)
    assert [m is base for m in passes] == [False, True, False]
    for one, two in zip(first, again[:3][::-1], strict=True):
        np.testing.assert_allclose(one.kl, two.kl, rtol=1e-4, atol=1e-7)


def test_a_sequence_of_its_start_token_alone_has_no_values(base):
    found = token_scores.score(base, None, [Sequence((4,), 1), SEQUENCES[0]], limit=64)
    assert [len(one.nll) for one in found] == [0, 4]
