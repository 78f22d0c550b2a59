"""Token drift and samples of the hand-made store."""

from __future__ import annotations

from cfutils.gallery import runs, samples, tokens


def test_drift_by_hand(lab, notebook):
    found = tokens.drift(lab, runs.shown(lab, [notebook])[0])
    assert [one["nll"] for one in found.data["passages"]] == [[1, 2], [3, 4]]
    ft = found.data["runs"][0]
    assert ft["id"] == "ft" and ft["nll"] == [[1.5, 2], [2, 4]] and ft["kl"] == [[0.5, 0], [0.25, 0.125]]
    assert found.notes == ()


def test_with_many_tokens_the_first_passages_are_shown(lab, notebook, monkeypatch):
    """Two runs and two passages of two tokens: 8 pairs, of which 6 may be shown."""
    monkeypatch.setattr(tokens, "CELLS", 6)
    found = tokens.drift(lab, runs.shown(lab, [notebook])[0])
    assert len(found.data["passages"]) == len(found.data["runs"][0]["kl"]) == 1
    assert found.notes == ("The first 1 of 2 passages are shown.",)


def test_samples_are_the_first_as_drawn(lab):
    (pool,) = samples.pools(lab).data
    assert (pool.title, pool.n) == ("From the start token alone, T = 1", 1)
    (one,) = pool.samples
    assert (one.index, one.tokens, one.ended, one.logprob) == (0, 2, True, -1.5)
