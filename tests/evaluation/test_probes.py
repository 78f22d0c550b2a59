"""Probes, estimates and entropy against direct computation, by item and by token."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from cfutils.data.sequences import Sequence
from cfutils.evaluation import ITEM, probes
from cfutils.models.base_states import BaseStates
from tests.evaluation.conftest import log_probs

SEQUENCES = [Sequence((0, 5, 6, 7, 8), 1), Sequence((9, 10, 11), 2), Sequence((3, 4, 5, 6), 1)]


def test_probes_are_stored_by_item_and_the_bases_own_by_token(base, other, tokenizer, tmp_path):
    """Token rows show the text: those of real prose are not written."""
    chosen = {"prose": SEQUENCES[2:], "context_free": SEQUENCES[:2]}
    probes.probe(tmp_path, other, BaseStates(base, limit=64), tokenizer, chosen, limit=64)
    items = pd.read_parquet(tmp_path / "items.parquet")
    tokens = pd.read_parquet(tmp_path / "tokens.parquet")
    assert list(items) == ITEM and set(items["group"]) == {"probe"}
    assert list(tokens) == ["task", "sequence", "position", "token", "nll", "kl"]
    assert items["metric"].tolist() == ["nll", "kl", "bpb"] * 3
    order = [SEQUENCES[2], *SEQUENCES[:2]]
    texts = [tokenizer.decode(s.ids[s.first :], skip_special_tokens=True) for s in order]
    n_bytes = [len(text.encode()) for text in texts]
    assert items["weight"].tolist() == [3, 3, n_bytes[0], 4, 4, n_bytes[1], 1, 1, n_bytes[2]]
    nll, bits = (items.loc[items["metric"] == m, "value"].to_numpy() for m in ("nll", "bpb"))
    np.testing.assert_allclose(bits, nll * [3, 4, 1] / (np.array(n_bytes) * math.log(2)))
    assert set(tokens["task"]) == {"context_free"} and tokens["sequence"].tolist() == [0] * 4 + [1]
    assert tokens["token"].tolist()[:2] == [tokenizer.decode([5]), tokenizer.decode([6])]
    means = tokens.groupby("sequence")[["nll", "kl"]].mean()
    for metric in ("nll", "kl"):
        chosen = items[(items["task"] == "context_free") & (items["metric"] == metric)]
        np.testing.assert_allclose(chosen["value"], means[metric])
    assert (items.loc[items["metric"] == "kl", "value"] > 1e-3).all()


def test_a_probe_that_is_an_end_token_alone_has_no_bits_per_byte(base, tokenizer, tmp_path):
    probes.probe(tmp_path, base, None, tokenizer, {"prose": [Sequence((0, 0), 1)]}, limit=64)
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert items["metric"].tolist() == ["nll", "kl"]
    tokens = pd.read_parquet(tmp_path / "tokens.parquet")
    assert list(tokens) == probes.TOKEN and len(tokens) == 0


def test_estimates_by_hand(base, other, tmp_path, monkeypatch):
    """log_ratio: sum of log p_0 - log p; kl: sum over the same prefixes; both in nats a sequence."""
    monkeypatch.setattr(probes, "TIMED", 2)
    notes = probes.estimate(tmp_path, BaseStates(base, limit=8), other, SEQUENCES, limit=8)
    frame = pd.read_parquet(tmp_path / "estimate.parquet")
    assert frame["tokens"].tolist() == [4, 1, 3]
    for sequence, row in zip(SEQUENCES, frame.itertuples(), strict=True):
        log_p0, log_p = log_probs(base, sequence.ids), log_probs(other, sequence.ids)
        where = range(sequence.first, len(sequence.ids))
        ratio = sum((log_p0 - log_p)[t - 1, sequence.ids[t]].item() for t in where)
        kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
        assert row.log_ratio == pytest.approx(ratio, rel=1e-3, abs=1e-5)
        assert row.kl == pytest.approx(sum(kl[t - 1].item() for t in where), rel=1e-3)
    assert notes["timed"] == 2 and set(notes["seconds"]) == {"log_ratio", "kl"}
    assert min(notes["seconds"].values()) > 0
    json.dumps(notes)


def test_entropy_along_samples(base, tmp_path):
    """-sum p log p at each position, and the distance of the stated log-probabilities."""
    samples = pd.DataFrame(
        {
            "index": [0, 1],
            "prompt_ids": [[0], [4, 5]],
            "token_ids": [[7, 8, 0], [6]],
            "logprobs": [[-1.0, -2.0, -3.0], [-4.0]],
        }
    )
    notes = probes.entropy(tmp_path, base, samples, limit=64)
    frame = pd.read_parquet(tmp_path / "entropy.parquet")
    assert frame["sample"].tolist() == [0, 0, 0, 1]
    assert frame["position"].tolist() == [0, 1, 2, 0]
    logp = log_probs(base, [0, 7, 8, 0])
    np.testing.assert_allclose(frame["entropy"][:3], -(logp.exp() * logp).sum(-1)[:3], rtol=1e-4)
    expected = [logp[0, 7], logp[1, 8], logp[2, 0], log_probs(base, [4, 5, 6])[1, 6]]
    np.testing.assert_allclose(frame["logprob"], expected, rtol=1e-4)
    gaps = np.abs(np.array([-1.0, -2, -3, -4]) - np.array([float(v) for v in expected]))
    assert notes["engine_gap"] == pytest.approx((gaps[:3].mean() + gaps[3]) / 2, rel=1e-3)
    json.dumps(notes)
