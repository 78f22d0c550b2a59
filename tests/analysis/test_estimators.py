"""Estimators of KL(base || tuned) against a distribution that can be summed by hand."""

from __future__ import annotations

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from cfutils.analysis import bootstrap, estimators
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.evaluation import probes
from cfutils.models.base_states import BaseStates

BASE = [[0.5, 0.5], [0.25, 0.75]]  # p(next | last), two tokens; texts begin behind token 0
TUNED = [[0.25, 0.75], [0.5, 0.5]]
KL_0 = 0.5 * math.log(4 / 3)  # 0.5 ln 2 + 0.5 ln (2/3)
KL_1 = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
KL = KL_0 + 0.5 * KL_0 + 0.5 * KL_1  # of texts of two tokens, by the chain rule
Z = 1.959964


class Markov:
    """A model whose next token depends on the last one alone: its states encode it, its head the rest."""

    device = torch.device("cpu")
    text = SimpleNamespace()
    config = SimpleNamespace(_attn_implementation="its own", get_text_config=lambda: Markov.text)

    def __init__(self, transitions):
        self.head = torch.nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor(transitions).log().T

    def get_output_embeddings(self):
        return self.head

    def base_model(self, *, input_ids, **_):
        return SimpleNamespace(last_hidden_state=torch.eye(2)[input_ids])


@pytest.fixture
def exact(tmp_path):
    """All four texts of two tokens: their probability under the base, log-ratio and KL."""
    texts = list(product((0, 1), repeat=2))
    sequences = [Sequence((0, *text), 1) for text in texts]
    states = BaseStates(Markov(BASE), limit=6)
    probes.estimate(tmp_path, states, Markov(TUNED), sequences, limit=6)
    frame = pd.read_parquet(tmp_path / "estimate.parquet")
    return frame.assign(p=[BASE[0][a] * BASE[a][b] for a, b in texts])


def test_both_estimators_have_the_exact_kl_as_their_mean(exact):
    assert pytest.approx(0.2811675, abs=1e-6) == KL
    p = exact["p"]
    assert p.sum() == 1 and (exact["tokens"] == 2).all()
    assert (p * exact["log_ratio"]).sum() == pytest.approx(KL, rel=1e-5)
    assert (p * exact["kl"]).sum() == pytest.approx(KL, rel=1e-5)
    # text (0, 1): ln (0.5 / 0.25) + ln (0.5 / 0.75); both positions stand behind a 0
    assert exact.loc[1, "log_ratio"] == pytest.approx(math.log(4 / 3), rel=1e-5)
    assert exact.loc[1, "kl"] == pytest.approx(2 * KL_0, rel=1e-5)


def test_the_full_kl_varies_less(exact):
    """It is the mean of the log-ratio's terms given each prefix."""

    def variance(column):
        return (exact["p"] * (exact[column] - KL) ** 2).sum()

    # kl is 2 KL_0 or KL_0 + KL_1, each half of the time
    assert variance("kl") == pytest.approx((KL_0 - KL_1) ** 2 / 4, rel=1e-3)
    assert variance("log_ratio") > 100 * variance("kl")


def test_under_another_distribution_the_log_ratio_has_the_bias_of_the_formula(exact):
    """E_q r = KL(q || p) - KL(q || p_0); with q = p it is -KL(p || p_0), below zero."""
    q = [TUNED[0][a] * TUNED[a][b] for a, b in product((0, 1), repeat=2)]
    reverse_0 = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    reverse_1 = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    expected = -(reverse_0 + 0.25 * reverse_0 + 0.75 * reverse_1)
    assert (exact["log_ratio"] * q).sum() == pytest.approx(expected, rel=1e-5)
    assert expected < 0


# ---- frames


def rows(source, temperature, tokens, log_ratio, kl, *, purpose="", seconds=(1.0, 2.0)):
    return pd.DataFrame(
        {"recipe": "ft", "source": source, "purpose": purpose, "temperature": temperature,
         "index": range(len(tokens)),
         "tokens": tokens, "log_ratio": np.asarray(log_ratio, float), "kl": np.asarray(kl, float),
         "seconds_log_ratio": seconds[0], "seconds_kl": seconds[1]}
    )  # fmt: skip


def two(tokens, log_ratio, kl):
    """Sequences of which the first half estimates and the second is the reference."""
    n = len(tokens) // 2
    parts = [(v[:n], v[n:]) for v in (tokens, log_ratio, kl)]
    return pd.concat(
        [rows("context_free", 1.0, *(p[i] for p in parts), purpose=purpose)
         for i, purpose in enumerate(("estimate", "reference"))]
    )  # fmt: skip


FOUR = two([2, 4, 1, 3], [0, 12, 7, 7], [1, 5, 0.5, 1.5])


def test_halves_are_context_free_at_1():
    others = [rows("contextual", 1.0, [1], [9], [9]), rows("context_free", 0.5, [1], [9], [9])]
    ours, rest = estimators.halves(pd.concat([*others, FOUR]))
    assert (ours["kl"].tolist(), rest["kl"].tolist()) == ([1, 5], [0.5, 1.5])


def many(n=400, seed=0):
    """Sequences of two halves, log-ratios four times as variable."""
    rng = np.random.default_rng(seed)
    kl = rng.gamma(2, 1, n)
    return two([5] * n, kl + rng.normal(0, 4, n), kl)


def test_the_spread_falls_with_the_root_of_n():
    """sd of a mean of n resampled values: sd / sqrt(n); of 3000 means it is known to 1.3 %."""
    frame = many()
    found = estimators.convergence(frame, [8, 32, 128], draws=3000)
    assert found[["estimator", "n"]].to_numpy().tolist() == [
        [name, n] for name in ("log_ratio", "full_kl") for n in (8, 32, 128)
    ]
    for row in found.itertuples():
        values = frame[estimators.ESTIMATORS[row.estimator]][:200]
        expected = values.std(ddof=0) / math.sqrt(row.n)
        assert row.sd == pytest.approx(expected, rel=0.05)
        assert abs(row.mean - values.mean()) < 4 * expected / math.sqrt(3000)
        assert row.high - row.low == pytest.approx(2 * Z * expected, rel=0.1)
        assert row.low < row.mean < row.high
    pd.testing.assert_frame_equal(found, estimators.convergence(frame, [8, 32, 128], draws=3000))


def test_the_reference_is_the_other_half_of_the_full_kl():
    """Halves (1, 5) and (0.5, 1.5): 3 - 1; sd of a mean sqrt(8 / 2) = 2, sqrt(0.5 / 2) = 0.5."""
    found = estimators.convergence(FOUR, [2], draws=50).set_index("estimator")
    row = found.loc["full_kl"]
    assert (row["reference"], row["reference_stderr"], row["bias"]) == (1, pytest.approx(0.5), 2)
    half = Z * math.hypot(2, 0.5)
    assert (row["bias_low"], row["bias_high"]) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    row = found.loc["log_ratio"]  # (0, 12): 6 - 1, beside the full KL's reference
    assert (row["bias"], row["reference"]) == (5, 1)
    half = Z * math.hypot(6, 0.5)
    assert row["bias_high"] == pytest.approx(5 + half, abs=1e-5)


def test_equal_halves_show_no_bias():
    ours = many(200).query("purpose == 'estimate'")
    twice = pd.concat([ours, ours.assign(purpose="reference")]).assign(
        log_ratio=lambda f: f["kl"] + 3 * (-1) ** f["index"]
    )
    found = estimators.convergence(twice, [8], draws=10)
    assert found["bias"].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert found["bias_low"].tolist() == pytest.approx((-found["bias_high"]).tolist())


def test_the_quantile_is_that_of_the_normal_distribution():
    assert bootstrap.normal_quantile(0.95) == pytest.approx(Z, abs=1e-6)
    assert bootstrap.normal_quantile(0.6826895) == pytest.approx(1, abs=1e-6)
    with pytest.raises(UserError, match="level = 95"):
        estimators.convergence(FOUR, [2], level=95)


def test_bias_per_token_by_hand():
    """First half: (1 + 5) / (2 + 4) = 1; second half: (0.5 + 1.5) / (1 + 3) = 0.5, both texts alike.

    Standard error of the first: values 0.5 and 1.25 with weights 1/3 and 2/3 are off by -1/6 and 1/6
    after weighting; 2 / 1 * (1/36 + 1/36) = 1/9, hence 1/3. That of the reference is 0.
    """
    frame = pd.concat([
        FOUR,
        rows("context_free", 0.5, [1, 1], [4, 4], [0, 0]),
        rows("contextual", math.nan, [10, 10], [-10, -10], [30, 30]),
        FOUR.assign(recipe="cfs", kl=1.0),
    ])  # fmt: skip
    found = estimators.bias(frame)
    assert set(found["unit"]) == {"nats per token"}
    assert found[["recipe", "source", "estimator"]].drop_duplicates().shape[0] == 6
    own = found[found["estimator"] == "full_kl"].reset_index()
    assert own["recipe"].tolist() == ["ft"] * 3 + ["cfs"]
    assert own["source"].tolist() == ["context_free", "context_free", "contextual", "context_free"]
    assert own["temperature"].tolist()[:2] == [1, 0.5] and math.isnan(own["temperature"][2])
    assert own["n"].tolist() == [2] * 4
    assert own["reference"].tolist() == [0.5] * 3 + [0.5]  # cfs: (1 + 1) / 4
    assert own["estimate"].tolist() == pytest.approx([1, 0, 3, 1 / 3])
    assert own["bias"].tolist() == pytest.approx([0.5, -0.5, 2.5, 1 / 3 - 0.5])
    first = own.iloc[0]
    ends = [first[name] for name in ("low", "high", "bias_low", "bias_high")]
    expected = [1 - Z / 3, 1 + Z / 3, 0.5 - Z / 3, 0.5 + Z / 3]
    assert ends == pytest.approx(expected, abs=1e-5)
    # the reference 0.5 has no spread, its two texts are alike
    assert (first["reference_low"], first["reference_high"]) == pytest.approx((0.5, 0.5))
    ratio = found[found["estimator"] == "log_ratio"].reset_index()
    assert ratio["estimate"].tolist() == pytest.approx([2, 4, -1, 2])
    assert ratio["bias"].tolist() == pytest.approx([1.5, 3.5, -1.5, 1.5])


def test_the_references_own_error_counts():
    """Second half 1 and 3 of one token each: 2, with error sqrt(2 * (0.25 + 0.25)) = 1; first: 2, 0."""
    frame = two([1] * 4, [0] * 4, [2, 2, 1, 3])
    row = estimators.bias(frame).set_index("estimator").loc["full_kl"]
    assert (row["estimate"], row["low"], row["high"]) == (2, 2, 2)
    assert (row["bias"], row["bias_high"]) == (0, pytest.approx(Z, abs=1e-5))
    assert row["reference_low"] == pytest.approx(2 - Z, abs=1e-5)


def test_cost_by_hand():
    """Of the first half: variances (0, 12): 72 and (1, 5): 8; times 1 and 2 seconds: 72 / 16."""
    frame = pd.concat([FOUR, FOUR.assign(recipe="cfs", log_ratio=FOUR["kl"], seconds_kl=0.5)])
    found = estimators.cost(frame)
    assert found["recipe"].tolist() == ["ft", "ft", "cfs", "cfs"]
    assert found["estimator"].tolist() == ["log_ratio", "full_kl"] * 2
    assert found["variance"].tolist() == pytest.approx([72, 8, 8, 8])
    assert found["seconds"].tolist() == [1, 2, 1, 0.5]
    assert found["efficiency"].tolist() == pytest.approx([1, 4.5, 1, 2])
