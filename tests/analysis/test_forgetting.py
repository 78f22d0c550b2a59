"""Golden values, each worked by hand in the comment beside it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import curves, flips, forgetting
from cfutils.errors import UserError

NAN = float("nan")


def rows(run, recipe, seed, group, task, metric, values, weights=None, **settings):
    """Items of one run, task and metric."""
    blank = dict.fromkeys(forgetting.SETTINGS, NAN) | settings
    return pd.DataFrame(
        [
            {"run": run, "recipe": recipe, "seed": seed, **blank, "group": group, "task": task,
             "metric": metric, "item": str(i), "value": float(v), "weight": float(w)}
            for i, (v, w) in enumerate(zip(values, weights or [1] * len(values), strict=True))
        ]
    )  # fmt: skip


def one(frame, **where):
    """The only row with these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


@pytest.fixture
def acc():
    """Four items: base right on three, tuned right on one: differences 1, 0, 1, 0."""
    return pd.concat(
        [
            rows("b", "base", -1, "retained", "arc", "acc", [1, 1, 1, 0]),
            rows("t", "ft", 0, "retained", "arc", "acc", [0, 1, 0, 0]),
        ]
    )


def test_paired_drop_of_accuracy(acc):
    row = one(forgetting.paired_drop(acc), task="arc")
    assert (row["base"], row["tuned"], row["drop"], row["n"]) == (0.75, 0.25, 0.5, 4)
    # differences 1, 0, 1, 0: s^2 = 4 * 0.25 / 3 = 1/3, stderr = sqrt(1/3 / 4)
    assert row["stderr"] == pytest.approx(math.sqrt(1 / 12))
    assert 0 <= row["low"] < 0.5 < row["high"] <= 1


def test_paired_drop_of_a_weighted_ratio_mean():
    items = pd.concat(
        [
            rows("b", "base", -1, "target", "gsm8k", "nll", [2, 1], [1, 3]),
            rows("t", "ft", 0, "target", "gsm8k", "nll", [1, 2], [1, 3]),
        ]
    )
    row = one(forgetting.paired_drop(items))
    # base (2 + 3)/4 = 1.25, tuned (1 + 6)/4 = 1.75; lower is better, so drop = +0.5
    assert (row["base"], row["tuned"], row["drop"]) == (1.25, 1.75, 0.5)
    # d = -1, 1; w(d - m) = -1.5, 1.5; sum of squares 4.5 * n/(n-1) = 9, over 16: stderr 3/4
    assert row["stderr"] == pytest.approx(0.75)


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "margin", "exact_match"])
def test_sign_where_higher_is_better(metric):
    items = pd.concat(
        [
            rows("b", "base", -1, "retained", "arc", metric, [1, 1]),
            rows("t", "ft", 0, "retained", "arc", metric, [0, 1]),
        ]
    )
    assert one(forgetting.paired_drop(items), task="arc")["drop"] == 0.5


@pytest.mark.parametrize("metric", ["nll", "bpb", "bpb_gold", "kl"])
def test_sign_where_lower_is_better(metric):
    items = pd.concat(
        [
            rows("b", "base", -1, "probe", "prose", metric, [0, 1]),
            rows("t", "ft", 0, "probe", "prose", metric, [1, 1]),
        ]
    )
    assert one(forgetting.paired_drop(items))["drop"] == 0.5


def test_the_macro_mean_weighs_tasks_alike():
    items = pd.concat(
        [
            rows("b", "base", -1, "retained", "arc", "acc", [1, 1, 1, 0]),
            rows("t", "ft", 0, "retained", "arc", "acc", [0, 1, 0, 0]),
            rows("b", "base", -1, "retained", "piqa", "acc", [1, 1]),
            rows("t", "ft", 0, "retained", "piqa", "acc", [1, 1]),
        ]
    )
    row = one(forgetting.paired_drop(items), task="mean")
    # (0.5 + 0)/2, not 2/6; stderr sqrt(1/12 + 0)/2; levels (3/4 + 1)/2 and (1/4 + 1)/2
    assert (row["drop"], row["base"], row["tuned"], row["n"]) == (0.25, 0.875, 0.625, 6)
    assert row["stderr"] == pytest.approx(math.sqrt(1 / 12) / 2)
    assert 0 <= row["low"] < 0.25 < row["high"] <= 0.5


def test_pairing_matters():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    base = rows("b", "base", -1, "retained", "arc", "margin", hard)
    tuned = rows("t", "ft", 0, "retained", "arc", "margin", hard - 0.1)
    shuffled = tuned.assign(item=rng.permutation(tuned["item"]))
    paired = one(forgetting.paired_drop(pd.concat([base, tuned])), task="arc")
    broken = one(forgetting.paired_drop(pd.concat([base, shuffled])), task="arc")
    assert paired["drop"] == pytest.approx(0.1) == broken["drop"]
    assert paired["stderr"] < 1e-12  # every item fell by the same 0.1
    assert broken["stderr"] > 0.05  # sqrt(2/200) = 0.1 without pairing
    assert broken["low"] < 0 < broken["high"]
    # order of rows is nothing; the item's name pairs
    mixed = pd.concat([base, tuned]).sample(frac=1, random_state=1)
    assert one(forgetting.paired_drop(mixed), task="arc")["stderr"] < 1e-12


def test_the_bootstrap_is_the_same_again_and_agrees_with_the_formula():
    rng = np.random.default_rng(0)
    items = pd.concat(
        [
            rows("b", "base", -1, "probe", "prose", "nll", rng.normal(size=300), [5] * 300),
            rows("t", "ft", 0, "probe", "prose", "nll", rng.normal(size=300), [5] * 300),
        ]
    )
    row = one(forgetting.paired_drop(items))
    pd.testing.assert_series_equal(row, one(forgetting.paired_drop(items)))
    assert (row["high"] - row["low"]) / (2 * 1.96) == pytest.approx(row["stderr"], rel=0.1)
    assert one(forgetting.paired_drop(items, seed=1))["low"] != row["low"]
    assert np.isnan(one(forgetting.paired_drop(items, n_boot=0))["low"])


def test_kl_of_the_base_is_zero_if_it_was_not_written_down():
    items = rows("t", "ft", 0, "probe", "prose", "kl", [0.1, 0.3])
    assert one(forgetting.paired_drop(items))["drop"] == pytest.approx(0.2)


def test_items_that_do_not_match_are_refused(acc):
    with pytest.raises(UserError, match="different items"):
        forgetting.paired_drop(acc.iloc[:-1])
    with pytest.raises(UserError, match="twice"):
        forgetting.paired_drop(pd.concat([acc, acc]))
    with pytest.raises(UserError, match="no items of the base"):
        forgetting.paired_drop(acc[acc["run"] == "t"])
    with pytest.raises(UserError, match="2 bases"):
        forgetting.paired_drop(pd.concat([acc, acc[acc["run"] == "b"].assign(run="b2")]))
    with pytest.raises(UserError, match="weight differs"):
        forgetting.paired_drop(acc.assign(weight=[1, 1, 1, 1, 1, 1, 1, 2]))
    with pytest.raises(UserError, match="lacks the columns weight"):
        forgetting.paired_drop(acc.drop(columns="weight"))
    with pytest.raises(UserError, match="level = 95"):
        forgetting.paired_drop(acc, level=95)


def scored(run, recipe, seed, value, stderr, metric="acc"):
    """One row of scores."""
    return {"profile": "p", "run": run, "recipe": recipe, "seed": seed,
            **dict.fromkeys(forgetting.SETTINGS, NAN), "group": "retained", "task": "arc",
            "metric": metric, "value": value, "stderr": stderr, "n": 4}  # fmt: skip


def test_over_seeds():
    frame = pd.DataFrame([scored("x", "ft", s, v, 0.1) for s, v in enumerate([1.0, 2.0, 3.0])])
    frame = pd.concat([frame, pd.DataFrame([scored("y", "cfs", 0, 5.0, 0.1)])])
    out = forgetting.over_seeds(frame, "value")
    row = one(out, recipe="ft")
    # sd 1, t(0.975, 2) = 4.302653: half = 4.302653/sqrt(3) = 2.484138
    assert (row["mean"], row["sd"], row["n_seeds"], row["one_seed"]) == (2, 1, 3, False)
    assert (row["low"], row["high"]) == pytest.approx((-0.484138, 4.484138), abs=1e-6)
    row = one(out, recipe="cfs")
    assert row["one_seed"]
    assert np.isnan(row["low"])
    diverged = frame.assign(value=[1.0, NAN, 3.0, 5.0])
    assert np.isnan(one(forgetting.over_seeds(diverged, "value"), recipe="ft")["mean"])


def test_pooled_adds_the_variance_over_seeds(acc):
    items = pd.concat([acc, rows("u", "ft", 1, "retained", "arc", "acc", [1, 1, 0, 0])])
    row = one(forgetting.pooled(items), task="arc")
    # drops 0.5 and 0.25: mean 0.375, sd 0.176777, b = sd^2/2 = 1/64
    assert (row["drop"], row["n_seeds"]) == (0.375, 2)
    assert row["sd_seeds"] == pytest.approx(0.1767767)
    # mean over seeds by item 0.5, 1, 0, 0: d = 0.5, 0, 1, 0; s^2 = 0.6875/3, a = 0.6875/12
    a, b = 0.6875 / 12, 1 / 64
    assert row["stderr"] == pytest.approx(math.sqrt(a + b))
    freedom = (a + b) ** 2 / b**2  # 21.79; t(0.975, 21.79) = 2.0750
    assert freedom == pytest.approx(21.78, abs=0.01)
    assert row["high"] == pytest.approx(0.375 + 2.0750 * math.sqrt(a + b), abs=1e-3)
    assert row["low"] == pytest.approx(0.375 - 2.0750 * math.sqrt(a + b), abs=1e-3)


def test_pooled_of_one_seed_is_the_bootstrap_of_that_run(acc):
    names = ["drop", "stderr", "low", "high"]
    row = one(forgetting.pooled(acc), task="mean")
    assert row["n_seeds"] == 1
    pd.testing.assert_series_equal(
        row[names], one(forgetting.paired_drop(acc), task="mean")[names], check_names=False
    )


def test_a_run_in_two_studies_counts_once(acc):
    pd.testing.assert_frame_equal(forgetting.pooled(pd.concat([acc, acc[acc["run"] == "t"]])), forgetting.pooled(acc))


def test_a_seed_that_diverged_is_not_left_out(acc):
    bad = rows("u", "ft", 1, "retained", "arc", "acc", [NAN] * 4)
    row = one(forgetting.pooled(pd.concat([acc, bad])), task="arc")
    assert np.isnan(row["drop"])
    assert forgetting.verdict(row["low"], row["high"], 2) == "no interval"
    assert np.isnan(row[["tuned", "tuned_low", "tuned_high"]].astype(float)).all()
    assert row["base_high"] < 1


def test_levels_have_the_interval_of_the_score_itself(acc):
    out = forgetting.levels(acc)
    row = one(out, recipe="ft", task="arc")
    # 0 1 0 0: p = 1/4, stderr^2 = 0.25/4, n* = (3/16)/(1/16) = 3. Wilson: z^2/3 = 1.280486,
    # centre (0.25 + 0.640243)/2.280486 = 0.390374, reach sqrt(0.1875 * 1.280486 + 0.409911)/2.280486
    assert (row["value"], row["n"], row["n_seeds"]) == (0.25, 4, 1)
    assert row["stderr"] == pytest.approx(0.25)
    assert (row["low"], row["high"]) == pytest.approx((0.036841, 0.743907), abs=1e-6)
    base = one(out, recipe="base", task="arc")
    assert (base["value"], base["n_seeds"]) == (0.75, 0)
    assert (base["low"], base["high"]) == pytest.approx((1 - 0.743907, 1 - 0.036841), abs=1e-6)
    # the one task is the mean
    both = out[out["recipe"] == "ft"][["value", "stderr", "low", "high"]]
    assert both.iloc[0].tolist() == both.iloc[1].tolist()


def test_levels_of_several_seeds_hold_their_spread(acc):
    items = pd.concat([acc, rows("u", "ft", 1, "retained", "arc", "acc", [1, 1, 0, 0])])
    row = one(forgetting.levels(items), recipe="ft", task="arc")
    # mean over seeds by item 0.5, 1, 0, 0: 0.375; a + b = 0.6875/12 + 1/64, t(0.975, 21.78) = 2.0750
    assert (row["value"], row["n_seeds"]) == (0.375, 2)
    assert row["stderr"] == pytest.approx(math.sqrt(0.6875 / 12 + 1 / 64))
    # n* = 0.234375/0.0729167 = 3.2143; t^2/n* = 1.33953; (0.375 + 0.66976)/2.33953 -+ 0.37325
    assert (row["low"], row["high"]) == pytest.approx((0.0733, 0.8198), abs=1e-3)


def test_levels_of_an_nll_stay_above_zero():
    items = pd.concat(
        [
            rows("b", "base", -1, "target", "gsm8k", "nll", [2, 1], [1, 3]),
            rows("t", "ft", 0, "target", "gsm8k", "nll", [0.0, 0.1], [1, 3]),
            rows("u", "cfs", 0, "target", "gsm8k", "nll", [1, 2], [1, 3]),
        ]
    )
    out = forgetting.levels(items)
    # (1 + 6)/4 = 1.75; w(v - m) = -0.75, 0.75: stderr = sqrt(2 * 1.125)/4 = 0.375;
    # factor exp(1.959964 * 0.375/1.75) = 1.521945
    row = one(out, recipe="cfs")
    assert (row["value"], row["stderr"]) == pytest.approx((1.75, 0.375))
    assert (row["low"], row["high"]) == pytest.approx((1.75 / 1.521945, 1.75 * 1.521945), abs=1e-5)
    assert 0 < one(out, recipe="ft")["low"] < 0.075
    drops = forgetting.pooled(items, n_boot=10)
    row = one(drops, recipe="cfs")
    assert (row["tuned_low"], row["tuned_high"]) == pytest.approx((1.149845, 2.663404), abs=1e-5)
    assert (row["base_low"], row["base_high"]) == tuple(one(out, recipe="base")[["low", "high"]])


def test_the_mean_level_weighs_tasks_alike():
    items = pd.concat(
        [
            rows("b", "base", -1, "retained", "arc", "margin", [1, 3]),
            rows("b", "base", -1, "retained", "piqa", "margin", [2, 2, 2, 2]),
            rows("t", "ft", 0, "retained", "arc", "margin", [0, 2]),
            rows("t", "ft", 0, "retained", "piqa", "margin", [5, 5, 5, 5]),
        ]
    )
    row = one(forgetting.levels(items), recipe="ft", task="mean")
    # (1 + 5)/2; stderr sqrt(1 + 0)/2; 3 +- 1.959964/2
    assert (row["value"], row["stderr"], row["n"]) == (3, 0.5, 6)
    assert (row["low"], row["high"]) == pytest.approx((3 - 0.979982, 3 + 0.979982))
    with pytest.raises(UserError, match="runs differ in the tasks scored"):
        forgetting.levels(items.iloc[:-4])


def test_kl_of_the_base_has_the_interval_zero():
    drops = forgetting.pooled(rows("t", "ft", 0, "probe", "prose", "kl", [0.1, 0.3]), n_boot=10)
    assert drops.loc[0, ["base", "base_low", "base_high"]].tolist() == [0, 0, 0]
    assert 0 < drops.loc[0, "tuned_low"] < 0.2


@pytest.mark.parametrize(
    ("low", "high", "seeds", "expected"),
    [
        (0.1, 0.2, 2, "worse"), (-0.2, -0.1, 3, "better"), (-0.1, 0.2, 2, "within noise"),
        (0.1, 0.2, 1, "one seed"), (-0.1, 0.2, 1, "one seed"), (NAN, 0.2, 1, "no interval"),
    ],
)  # fmt: skip
def test_verdict(low, high, seeds, expected):
    assert forgetting.verdict(low, high, seeds) == expected


def test_frames_of_before_recipes_had_a_strength(acc):
    old = acc.drop(columns="strength")
    for make in (forgetting.pooled, forgetting.levels, flips.table):
        pd.testing.assert_frame_equal(make(old), make(acc))


def test_flips(acc):
    # base 1 1 1 0, tuned 0 1 0 0: two of four forgotten, none gained; a_pre 3/4, a_post 1/4
    row = one(flips.table(acc.assign(choices=4)))
    assert (row["forgotten"], row["gained"], row["n"]) == (0.5, 0, 4)
    # chance (1 - 3/4)(1 - 1/4)/3 = 1/16; ceiling (4 * 3/4 - 1)/3 = 2/3
    assert row["chance"] == pytest.approx(1 / 16)
    assert row["forgotten_adjusted"] == pytest.approx(0.5 - 1 / 16)
    assert row["gained_adjusted"] == pytest.approx(-1 / 16)
    assert row["forgotten_max"] == pytest.approx(2 / 3)
    row = one(flips.table(acc))
    assert row["forgotten"] == 0.5
    assert np.isnan(row["chance"])
    with pytest.raises(UserError, match="no metric acc"):
        flips.table(acc.assign(metric="margin"))


@pytest.fixture
def curve():
    """Base at target NLL 2, WiSE-FT half way at 1.5 with drop 0.1, plain fine-tuning 1 with 0.5."""
    return pd.concat(
        [
            rows("b", "base", -1, "target", "gsm8k", "nll", [2, 2]),
            rows("b", "base", -1, "retained", "arc", "bpb_gold", [1, 1]),
            rows("w", "wise_ft", 0, "target", "gsm8k", "nll", [1.5, 1.5], lr=1.0, alpha=0.5),
            rows("w", "wise_ft", 0, "retained", "arc", "bpb_gold", [1.1, 1.1], lr=1.0, alpha=0.5),
            rows("f", "ft", 0, "target", "gsm8k", "nll", [1, 1], lr=1.0),
            rows("f", "ft", 0, "retained", "arc", "bpb_gold", [1.5, 1.5], lr=1.0),
        ]
    )


def test_matched_target_interpolates_and_never_extrapolates(curve):
    drops = forgetting.pooled(curve)
    out = curves.matched_target(drops, [2.0, 1.75, 1.25, 1.0, 0.9, 2.1])
    # half way between 0 and 0.1; half way between 0.1 and 0.5
    assert out["drop"].tolist() == pytest.approx([0, 0.05, 0.3, 0.5, NAN, NAN], nan_ok=True)
    assert curves.trail(drops, "wise_ft", "alpha")["alpha"].tolist() == [0, 0.5, 1]
    assert np.isnan(one(curves.matched_target(drops, 1.5, recipe="cfs", along="lr"))["drop"])


def test_a_trail_takes_another_target_metric(curve):
    bpb = curve[curve["group"] == "target"].assign(metric="bpb", value=lambda f: f["value"] / 2)
    drops = forgetting.pooled(pd.concat([curve, bpb]), n_boot=10)
    points = curves.trail(drops, "wise_ft", "alpha", target_metric="bpb")
    assert points["target"].tolist() == [1, 0.75, 0.5]


def test_matched_target_refuses_a_trail_with_two_runs_at_one_point(curve):
    twice = pd.concat([curve, curve[curve["run"] == "w"].assign(run="x", ratio=0.5)])
    with pytest.raises(UserError, match="two runs at one alpha"):
        curves.matched_target(forgetting.pooled(twice), 1.5)


def test_table(curve):
    probe = rows("f", "ft", 0, "probe", "context_free", "kl", [0.1, 0.3], lr=1.0)
    out = forgetting.table(forgetting.pooled(pd.concat([curve, probe])))
    assert out["recipe"].tolist() == ["base", "ft", "wise_ft"]
    base, ft = one(out, recipe="base"), one(out, recipe="ft")
    assert (base["target_nll"], base["bpb_gold"], base["bpb_gold_verdict"]) == (2, 1, "base")
    assert (base["kl"], base["kl_stderr"]) == (0, 0)
    assert (ft["target_nll"], ft["bpb_gold"], ft["bpb_gold_drop"]) == (1, 1.5, 0.5)
    assert ft["bpb_gold_verdict"] == "one seed"
    # 0.1 and 0.3: mean 0.2, stderr = sqrt(0.02 / 2)
    assert (ft["kl"], ft["kl_stderr"]) == pytest.approx((0.2, 0.1))
    assert np.isnan(one(out, recipe="wise_ft")["kl"])
    # both items of both seeds lose 0.5
    again = curve[curve["recipe"] != "base"].assign(seed=1, run=lambda f: f["run"] + "1")
    out = forgetting.table(forgetting.pooled(pd.concat([curve, again]), n_boot=10))
    assert one(out, recipe="ft")["bpb_gold_verdict"] == "worse"


def test_relation():
    # y = x^2 on 1, 2, 3: r = 8/sqrt(2 * 32.667) = 0.98974, tau 1
    out = forgetting.relation([1, 2, 3, NAN], [1, 4, 9, 1])
    assert out["r"] == pytest.approx(0.989743, abs=1e-6)
    assert out["r2"] == pytest.approx(0.979592, abs=1e-6)
    assert (out["tau"], out["n"]) == (1, 3)
    # ranks 1, 3, 2: two pairs agree, one does not: tau = 1/3
    assert forgetting.relation([1, 2, 3], [1, 3, 2])["tau"] == pytest.approx(1 / 3)
    assert np.isnan(forgetting.relation([1, 1, 1], [1, 2, 3])["r"])
    assert np.isnan(forgetting.relation([1, 2], [1, 2])["r"])


def test_aggregate_is_the_ratio_of_sums_with_its_standard_error():
    items = pd.concat(
        [
            rows("t", "ft", 0, "target", "gsm8k", "nll", [1, 3], [1, 3]),
            rows("t", "ft", 0, "retained", "arc", "acc", [1]),
        ]
    )
    out = forgetting.aggregate(items)
    # (1 * 1 + 3 * 3)/(1 + 3) = 2.5; w(v - 2.5) = -1.5, 1.5; 2/1 * (2.25 + 2.25) = 9: sqrt(9)/4
    row = one(out, task="gsm8k")
    assert (row["value"], row["n"]) == (2.5, 2)
    assert row["stderr"] == pytest.approx(0.75)
    row = one(out, task="arc")
    assert row["value"] == 1
    assert np.isnan(row["stderr"])  # one item does not tell


def test_recipes_come_in_display_order(acc):
    items = pd.concat([acc, *(acc[acc["run"] == "t"].assign(run=r, recipe=r)
                              for r in ("wise_ft", "lora", "cfs", "unknown"))])  # fmt: skip
    out = forgetting.pooled(items)
    assert list(dict.fromkeys(out["recipe"])) == ["ft", "cfs", "lora", "wise_ft", "unknown"]
