"""Recipes at one target score, by hand."""

from __future__ import annotations

import pytest

from cfutils.analysis import plots, ranking
from cfutils.errors import UserError


@pytest.fixture
def items(make_items, over_seeds):
    """The base at 1 bit; cfs at target NLL 0.75 with 1.3, ft on both sides of it, l2 beyond reach."""
    return make_items(
        [
            *over_seeds("cfs", bits=1.3, nll=0.75),
            *over_seeds("ft", bits=1.2, nll=1.0, lr=0.1),
            *over_seeds("ft", bits=2.0, nll=0.5, lr=0.2),
            *over_seeds("l2", bits=1.1, nll=3.0),
        ]
    )


def test_drops_and_differences_at_the_treatments_target_score(items):
    out = ranking.at_one_target(items).set_index("recipe")
    assert out.index.tolist() == ["l2", "cfs", "ft"]  # the smallest drop first
    # ft half way between its points: 1.6 bits
    assert out["drop"].to_dict() == pytest.approx({"l2": 0.1, "cfs": 0.3, "ft": 0.6})
    assert out.loc["ft", "difference"] == pytest.approx(0.3)
    assert out.loc["l2", "difference"] == pytest.approx(-0.2)
    assert out["reach"].to_dict() == {"l2": "learns less", "cfs": "same", "ft": "same"}
    row = out.loc["ft"]
    assert row["low"] < 0.6 < row["high"] and row["difference_low"] < 0.3 < row["difference_high"]
    assert out["p"].isna().to_dict() == {"l2": False, "cfs": True, "ft": False}


def test_what_lacks_the_treatment_is_refused(items):
    with pytest.raises(UserError, match="lack the base, cf_kl"):
        ranking.at_one_target(items, treatment="cf_kl")


@pytest.mark.parametrize(
    ("reach", "difference", "p", "words"),
    [("same", 1, 0.04, ""), ("same", 1, 0.06, "within noise"), ("same", 1, float("nan"), "one seed"),
     ("learns less", -1, 0.01, "learns less: not comparable"), ("learns more", 1, 0.01, "learns more: not comparable"),
     # worse, or better, at both
     ("learns less", 1, 0.01, "learns less"), ("learns more", -1, 0.01, "learns more"),
     ("learns less", 1, 0.06, "learns less, within noise"),
     ("learns less", 1, float("nan"), "learns less, one seed")],
)  # fmt: skip
def test_what_keeps_a_difference_from_standing(reach, difference, p, words):
    assert ranking.remark({"reach": reach, "difference": difference, "p_adjusted": p}) == words


def test_a_figure_of_one_seed_says_so(make_items, over_seeds):
    items = make_items([*over_seeds("ft", bits=2.0, nll=0.5), *over_seeds("cfs", bits=1.3, nll=0.5)])
    one = items[items["seed"].eq(0) | items["recipe"].eq("base")]
    table = ranking.at_one_target(one, treatment="ft")
    assert ranking.treatment(table) == "ft"
    fig, data = plots.ranking(table)
    words = {text.get_text() for text in fig.axes[0].texts}
    assert words == {"compared with the others", "-0.700, one seed"}
    assert "over 1 seed and" in fig.get_suptitle() + fig.axes[0].get_title(loc="left")
    assert data["recipe"].tolist() == ["cfs", "ft"]
