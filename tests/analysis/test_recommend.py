"""Which run to take, by hand: the base at 1 bit, plain fine-tuning at 1.5 and target NLL 0.5."""

from __future__ import annotations

import pytest

from cfutils.analysis import recommend
from cfutils.errors import UserError


def table(make_items, *runs, **how):
    return recommend.compare(make_items([run for runs_of_one in runs for run in runs_of_one], **how))


@pytest.fixture
def plain(over_seeds):
    return over_seeds("ft", bits=1.5, nll=0.5, kl=0.4)


def chosen(found):
    (row,) = found[found["recommended"]].to_dict("records")
    return row


def test_the_run_that_keeps_most_of_those_that_learned_as_much(make_items, over_seeds, plain):
    """l2 keeps more, and learned less by 0.3; the other ratio of cfs learned as much and keeps less."""
    found = table(
        make_items, plain, over_seeds("cfs", bits=1.2, nll=0.54, kl=0.2, ratio=0.3),
        over_seeds("cfs", bits=1.3, nll=0.5, kl=0.2, ratio=0.6), over_seeds("l2", bits=1.1, nll=0.8, kl=0.1),
    )  # fmt: skip
    row = chosen(found)
    assert (row["recipe"], row["ratio"]) == ("cfs", 0.3)
    assert row["drop"] == pytest.approx(0.2) and row["saved"] == pytest.approx(0.3)
    assert row["saved_low"] < 0.3 < row["saved_high"] and row["saved_low"] > 0
    assert row["target_gap"] == pytest.approx(0.04) and row["kl"] == pytest.approx(0.2)
    by = found.assign(name=[f"{r}{ratio}" for r, ratio in zip(found["recipe"], found["ratio"], strict=True)])
    by = by.set_index("name")
    assert by["learned"].fillna(False).to_dict() == {
        "basenan": False, "ftnan": True, "cfs0.3": True, "cfs0.6": True, "l2nan": False,
    }  # fmt: skip
    assert by.loc["l2nan", "target_gap"] == pytest.approx(0.3)
    words = " ".join(recommend.reasons(found))
    assert "Recommended: Context-free NLL (ratio 0.3): a drop of +0.200 [" in words
    assert "that is +0.300 [" in words and "0.040 worse, 98% of what it learned)" in words
    assert "One seed" not in words and "below 300" not in words


def test_a_run_that_learned_most_and_keeps_more_is_mentioned(make_items, over_seeds, plain):
    """Of the 2.5 nats that plain fine-tuning learned l2 learned 2.3, stm 2.2 (below 90 %)."""
    found = table(
        make_items, plain, over_seeds("cfs", bits=1.3, nll=0.5, kl=0.2), over_seeds("l2", bits=1.1, nll=0.7, kl=0.1),
        over_seeds("stm", bits=1.0, nll=0.8, kl=0.1),
    )  # fmt: skip
    shares = found.set_index("recipe")["share"].to_dict()
    assert shares == pytest.approx({"base": 0, "ft": 1, "cfs": 1, "l2": 0.92, "stm": 0.88})
    words = " ".join(recommend.reasons(found))
    assert "If 92% of what plain fine-tuning learned is enough, L2 to base forgets less: a drop of +0.100" in words
    assert "STM" not in words


def test_within_noise_plain_fine_tuning_is_recommended(make_items, over_seeds, plain):
    found = table(make_items, plain, over_seeds("cfs", bits=1.4999, nll=0.5, kl=0.3), jitter=0.3)
    assert chosen(found)["recipe"] == "ft"
    words = " ".join(recommend.reasons(found))
    assert "Context-free NLL, saves" in words and "within noise" in words


def test_where_nothing_was_forgotten_nothing_is_mitigated(make_items, over_seeds):
    found = table(
        make_items, over_seeds("ft", bits=0.99, nll=0.5, kl=0.4), over_seeds("cfs", bits=0.995, nll=0.5, kl=0.3)
    )
    assert chosen(found)["recipe"] == "ft"
    assert "there is nothing to mitigate" in " ".join(recommend.reasons(found))


def test_where_all_others_learned_less(make_items, over_seeds, plain):
    found = table(make_items, plain, over_seeds("cfs", bits=1.1, nll=0.9, kl=0.1))
    assert chosen(found)["recipe"] == "ft"
    assert "No other run learned as much." in recommend.reasons(found)


def test_one_seed_and_few_items_are_said(make_items):
    runs = [{"recipe": "ft", "seed": 0, "bits": 1.5, "nll": 0.5}, {"recipe": "cfs", "seed": 0, "bits": 1.2, "nll": 0.5}]
    found = table(make_items, runs, n=100)
    assert chosen(found)["recipe"] == "cfs"
    words = " ".join(recommend.reasons(found))
    assert "One seed: the intervals cover items alone" in words and "100 retained items: below 300" in words


def test_without_retained_scores_kl_decides(make_items, over_seeds):
    found = table(make_items, over_seeds("ft", nll=0.5, kl=0.4), over_seeds("cf_kl", nll=0.5, kl=0.1))
    row = chosen(found)
    assert (row["recipe"], row["metric"]) == ("cf_kl", "kl") and row["saved"] == pytest.approx(0.3)
    assert "nats per token" in recommend.reasons(found)[0]


def test_95_percent_of_what_was_learned_is_enough(make_items, over_seeds, plain):
    """0.12 nats less of 2.5 is beyond the window, and 95.2 %; 0.13 is 94.8 %."""
    for nll, learned in ((0.62, True), (0.63, False)):
        found = table(make_items, plain, over_seeds("cfs", bits=1.2, nll=nll, kl=0.2)).set_index("recipe")
        assert bool(found.loc["cfs", "learned"]) is learned
        assert found["recommended"].idxmax() == ("cfs" if learned else "ft")


def test_averages_are_runs_too(make_items, over_seeds, plain):
    found = table(
        make_items, plain, over_seeds("wise_ft", bits=1.1, nll=0.52, kl=0.1, alpha=0.7),
        over_seeds("wise_ft", bits=1.05, nll=0.9, kl=0.1, alpha=0.3),
    )  # fmt: skip
    assert recommend.name(found[found["recommended"]].iloc[0]) == "WiSE-FT (α 0.7)"


@pytest.mark.parametrize(
    "runs, says",
    [
        ([{"recipe": "cfs", "seed": 0, "bits": 1.2, "nll": 0.5}], "lack the base or plain fine-tuning"),
        ([{"recipe": "ft", "seed": 0, "bits": 1.2}], "no target score"),
        ([{"recipe": "ft", "seed": 0, "nll": 1.2}], "neither right answers nor KL"),
        ([{"recipe": "ft", "seed": 0, "nll": 1.2, "bits": 1, "lr": lr} for lr in (0.1, 0.2)], "at several settings"),
    ],
)
def test_what_cannot_be_compared_is_refused(make_items, runs, says):
    items = make_items(runs)
    if says.startswith("neither"):
        items = items[items["group"] != "retained"]
        items = items[items["metric"] != "kl"]
    with pytest.raises(UserError, match=says):
        recommend.compare(items)
