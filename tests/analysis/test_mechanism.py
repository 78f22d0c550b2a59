"""Bias of the estimate, and what KL predicts, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cfutils.analysis import verdicts
from cfutils.analysis.claims import CLAIMS
from cfutils.analysis.mechanism import spearman

C7 = [claim for claim in CLAIMS if claim.id == "C7"]
C9 = [claim for claim in CLAIMS if claim.id == "C9"]


def sequences(source, purpose, temperature, log_ratio, kl, width=0.1):
    """Sequences of one token: half above and half below the means."""
    signs = np.tile([-1, 1], 50) * width
    return pd.DataFrame(
        {"recipe": "ft", "source": source, "purpose": purpose, "temperature": temperature, "tokens": 1,
         "log_ratio": log_ratio + signs, "kl": kl + signs}
    )  # fmt: skip


@pytest.fixture
def estimates():
    """KL 1; context-free samples estimate it to 0.02, those at T = 0.5 are off by 0.3, text by 0.11."""
    return pd.concat(
        [
            sequences("context_free", "estimate", 0.5, 1.3, 1.0),
            sequences("context_free", "estimate", 1.0, 1.02, 1.0),
            sequences("context_free", "reference", 1.0, 1.0, 1.0),
            sequences("text", "", np.nan, 1.11, 1.0),
        ]
    )


def test_the_estimate_is_unbiased_if_it_is_equivalent_to_the_kl(estimates, make_items, over_seeds):
    items = make_items(over_seeds("ft", bits=2.0, nll=1.0))
    out = verdicts.table(items, estimates=estimates, claims=C7).set_index("metric")
    assert out["verdict"].to_dict() == {
        "bias, context_free at T = 1": "supported", "bias, context_free at T = 0.5": "contradicted",
        "bias, text": "inconclusive",
    }  # fmt: skip
    row = out.loc["bias, context_free at T = 1"]
    # 100 sequences of standard deviation 0.1 on both sides: stderr 0.1 sqrt(2/99); the bound is a tenth of 1
    stderr = 0.1 * np.sqrt(2 / 99)
    assert (row["effect"], row["delta"], row["items"]) == pytest.approx((0.02, 0.1, 100))
    assert row["p_equivalent"] == pytest.approx(stats.norm.sf(0.08 / stderr))
    assert row["low"] == pytest.approx(0.02 - 1.959964 * stderr)
    assert out["primary"].tolist() == [True, False, False]
    whole = verdicts.summary(out.reset_index()[verdicts.COLUMNS], claims=C7)
    assert whole["verdict"].tolist() == ["supported"] and whole["others"].tolist() == [""]


def test_rank_correlation_of_points_that_occur_several_times():
    x, y = np.array([1.0, 2, 2, 5, 3]), np.array([2.0, 1, 4, 4, 9])
    counts = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 1], [0, 5, 0, 0, 0]])
    expected = [stats.spearmanr(np.repeat(x, c), np.repeat(y, c)).statistic for c in counts[:2]]
    assert spearman(x, y, counts) == pytest.approx([*expected, np.nan], nan_ok=True)
    # ranks 1 2 3 and 1 3 2: 1 - 6 * 2/(3 * 8)
    assert spearman(np.array([1.0, 5, 9]), np.array([1.0, 7, 2]), np.ones((1, 3))) == pytest.approx(
        0.5
    )
    assert np.isnan(spearman(np.array([1, np.nan]), np.array([1.0, 2]), np.ones((1, 2))))


@pytest.mark.parametrize(("turned", "verdict"), [(1, "supported"), (-1, "contradicted")])
def test_kl_predicts_the_drop_if_their_ranks_agree(make_items, over_seeds, turned, verdict):
    names = ("ft", "cfs", "cf_kl", "l2", "lora", "dft", "stm", "flow")
    runs = []
    for place, name in enumerate(names):
        runs += over_seeds(
            name, bits=2 + place / 10, kl=1 + turned * place / 10, inputs=1.0, nll=1.0
        )
    items = make_items(runs, jitter=0.0)
    out = verdicts.table(items, claims=C9).set_index("metric")
    row = out.loc["kl on context_free"]
    assert (row["effect"], row["verdict"], row["rival"]) == (
        pytest.approx(turned),
        verdict,
        "8 recipes",
    )
    assert (row["items"], row["seeds"], row["delta"]) == (8, 3, 0.5)
    # KL on target inputs is the same for all: no ranks
    assert out.loc["kl on target_inputs", "verdict"] == "inconclusive"
    few = items[items["recipe"].isin(["base", *names[:4]])]
    assert verdicts.table(few, claims=C9)["reason"].tolist() == ["4 recipes, fewer than 5"] * 2
    assert verdicts.table(items[items["seed"] < 1], claims=C9)["reason"].unique().tolist() == [
        "one seed"
    ]
