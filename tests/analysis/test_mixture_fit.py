"""Shares of kinds and their test of fit, on counts worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import bootstrap, mixture_fit
from cfutils.errors import UserError

RIGHT = "sort: owl ash ->" + " ash owl"
SLIP = "sort: owl ash ->" + " owl ash"
PROSE = "The river runs to the sea."
OUTSIDE = "rotate: cat dog oak ->" + " dog oak cat"


def samples(*groups):
    """Make a frame of samples of (source, temperature, texts)."""
    return pd.DataFrame(
        [{"source": s, "temperature": t, "text": text} for s, t, texts in groups for text in texts]
    )


@pytest.fixture
def three(monkeypatch):
    """Declare three kinds."""
    known = pd.Series({"prose": 0.5, "sort": 0.25, "sum": 0.25}, name="share")
    monkeypatch.setattr(mixture_fit, "declared", lambda world="tiny": known)


def test_declared_shares_have_prose_as_one_and_first():
    """0.06 of wikipedia and 0.06 of stories."""
    found = mixture_fit.declared()
    assert found.index[0] == "prose" and found["prose"] == pytest.approx(0.12)
    assert found["sum"] == 0.14 and len(found) == 11
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        # z = 1.959964: z / (n + z^2) * sqrt(2.5 + z^2 / 4) = 0.263406 around one half
        (5, 10, 0.236593, 0.763407),
        (0, 10, 0, 0.277533),  # z^2 / (n + z^2)
        (10, 10, 0.722467, 1),
    ],
)
def test_wilsons_interval_by_hand(count, n, low, high):
    assert bootstrap.wilson(count, n) == pytest.approx((low, high), abs=1e-6)


def test_a_wider_level_is_a_wider_interval_and_95_is_refused():
    low, high = bootstrap.wilson(5, 10, level=0.5)
    assert 0.39 < low < 0.41 and high == pytest.approx(1 - low)  # z = 0.674490: 0.104321
    with pytest.raises(UserError, match="level = 95"):
        bootstrap.wilson(5, 10, level=95)


def test_kinds_are_counted(three):
    """Ten samples: 5 of sort (3 right), 4 of prose, 1 of a kind outside the mixture."""
    texts = [RIGHT] * 3 + [SLIP] * 2 + [PROSE] * 4 + [OUTSIDE]
    table = mixture_fit.table(samples(("context_free", 1.0, texts)))
    declared, drawn = (table[table["source"] == s] for s in ("mixture", "context_free"))
    assert declared.set_index("kind")["share"].to_dict() == {"prose": 0.5, "sort": 0.25, "sum": 0.25}
    assert declared[["temperature", "count", "n", "low", "high", "right"]].isna().all(axis=None)
    rows = drawn.set_index("kind")
    assert rows["count"].to_dict() == {"prose": 4, "sort": 5, "sum": 0, "rotate": 1}
    assert (rows["n"] == 10).all() and (rows["share"] == rows["count"] / 10).all()
    assert rows.loc["sort", ["low", "high"]].tolist() == pytest.approx([0.236593, 0.763407], abs=1e-6)
    assert rows["right"].to_dict() == pytest.approx(
        {"prose": math.nan, "sort": 0.6, "sum": math.nan, "rotate": 1.0}, nan_ok=True
    )


def test_pools_are_counted_apart(three):
    table = mixture_fit.table(
        samples(("context_free", 0.5, [PROSE] * 4), ("context_free", 1.0, [PROSE, RIGHT]),
                ("contextual", 1.0, [OUTSIDE])), level=0.5
    )  # fmt: skip
    drawn = table[table["source"] != "mixture"]
    n = drawn.groupby(["source", "temperature"], sort=False)["n"].agg(["first", "size"])
    assert n["first"].tolist() == [4, 2, 1]
    assert n["size"].tolist() == [3, 3, 4]  # rotate has a row where it occurs
    prose = drawn[drawn["kind"] == "prose"]
    assert prose["share"].tolist() == [1, 0.5, 0]
    assert prose["low"].iloc[1] == pytest.approx(bootstrap.wilson(1, 2, level=0.5)[0])


def test_samples_without_a_text_are_refused():
    with pytest.raises(UserError, match="lack the columns temperature, text"):
        mixture_fit.table(pd.DataFrame({"source": ["context_free"]}))


def counts(**kinds):
    return pd.DataFrame(
        [{"source": "context_free", "temperature": 1.0, "kind": k, "count": c} for k, c in kinds.items()]
    )  # fmt: skip


def test_fit_by_hand(three):
    """Seen 50, 30, 20 of 100, expected 50, 25, 25: chi-square 0 + 1 + 1, p = exp(-2 / 2) for dof 2.

    tv = (0 + 0.05 + 0.05) / 2. By chance: half the sum of sqrt(2 pi (1 - pi) / (3.14159 n)),
    (0.0398942 + 2 * 0.0345494) / 2. The 10 of a kind outside the mixture are prose.
    """
    row = mixture_fit.fit(counts(prose=40, sort=30, sum=20, rotate=10)).iloc[0]
    assert (row["source"], row["temperature"], row["n"], row["dof"]) == ("context_free", 1, 100, 2)
    assert row["chi2"] == pytest.approx(2)
    assert row["p"] == pytest.approx(math.exp(-1))
    assert row["tv"] == pytest.approx(0.05)
    assert row["tv_chance"] == pytest.approx(0.0544965, abs=1e-6)


def test_fit_takes_a_table_and_leaves_the_mixture_out(three):
    """The second pool has no `sum` at all; a kind without a row was not seen."""
    table = mixture_fit.table(
        samples(("context_free", 1.0, [PROSE] * 2 + [RIGHT, "sum: 1 2 3 -> 0"]),
                ("contextual", 1.0, [OUTSIDE] * 4))
    )  # fmt: skip
    found = mixture_fit.fit(table).set_index("source")
    assert list(found.index) == ["context_free", "contextual"]
    assert found["chi2"].tolist() == pytest.approx([0, 4])  # 4, 0, 0 for 2, 1, 1: 2 + 1 + 1
    assert found["tv"].tolist() == pytest.approx([0, 0.5])
    few = table[(table["source"] == "contextual") & (table["count"] > 0)]
    assert mixture_fit.fit(few)["chi2"].tolist() == pytest.approx([4])


def test_chance_is_what_a_perfect_sampler_has_on_average(three):
    """tv_chance against the mean tv of 2000 multinomial draws of 400; a normal limit, so within 2 %."""
    declared, n = mixture_fit.declared().to_numpy(), 400
    drawn = np.random.default_rng(0).multinomial(n, declared, size=2000) / n
    chance = mixture_fit.fit(counts(prose=200, sort=100, sum=100))["tv_chance"].iloc[0]
    assert chance == pytest.approx((0.5 * np.abs(drawn - declared).sum(1)).mean(), rel=0.02)
