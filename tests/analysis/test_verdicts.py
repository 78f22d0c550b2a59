"""Verdicts on items whose outcome is plain, and how often they are wrong where the truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_crossed import MIXES, simulate

from cfutils.analysis import crossed, verdicts
from cfutils.analysis.claims import ALPHA, BITS, CLAIMS, RIGHT, THOUGHT, Claim
from cfutils.analysis.significance import holm
from cfutils.errors import UserError

NAN = float("nan")


def claim(*rivals, **changes):
    parts = {"id": "C5", "statement": "s", "refuted_by": "r", "measures": (BITS,), "rivals": rivals}
    return Claim(**parts | changes)


def judge(items, *claims, **more):
    """Verdict by rival."""
    return verdicts.table(items, claims=claims, **more).set_index("rival")


@pytest.fixture
def plain(make_items, over_seeds):
    """Make items of cfs (bits 1.5, target 1), ft (bits 2, target 1) and other runs."""
    start = [*over_seeds("cfs", bits=1.5, nll=1.0), *over_seeds("ft", bits=2.0, nll=1.0)]
    return lambda *runs, **options: make_items([*start, *runs], **options)


def test_each_verdict(plain, over_seeds):
    items = plain(
        *over_seeds("l2", bits=1.4, nll=1.0), *over_seeds("lora", bits=1.505, nll=1.0),
        *over_seeds("wise_ft", bits=1.515, nll=1.0), *over_seeds("flow", bits=1.4, nll=1.2),
    )  # fmt: skip
    out = judge(items, claim("ft", "l2", "lora", "wise_ft", "flow", "stm"))
    assert out["verdict"].to_dict() == {
        "ft": "supported", "l2": "contradicted", "lora": "equivalent", "wise_ft": "equivalent",
        "flow": "not comparable", "stm": "not testable",
    }  # fmt: skip
    assert set(out["verdict"]) <= set(verdicts.VERDICTS)
    assert out["effect"].tolist()[:4] == pytest.approx([0.5, -0.1, 0.005, 0.015])
    assert out.loc["flow", "target_gap"] == pytest.approx(0.2)
    assert out.loc["flow", "reason"] == "flow learns less: 0.200 in nll of the target"
    assert out.loc["stm", "reason"] == "stm was not run"
    assert (out.loc["ft", "seeds"], out.loc["ft", "items"], out.loc["ft", "matched"]) == (
        3,
        400,
        "as run",
    )
    assert out.loc["ft", "low"] < 0.5 < out.loc["ft", "high"]
    assert out.loc["ft", "reason"] == "ft retains less, by 0.500 bits per byte"
    # adjusted over the five that were run
    assert out["p_adjusted"].dropna().tolist() == pytest.approx(holm(out["p"][:5]).tolist())


@pytest.mark.parametrize(
    ("bits", "nll", "verdict", "retains", "learns"),
    [(1.9, 1.2, "supported", "retains less, by 0.400 bits per byte, and ", "less"),
     (1.4, 0.8, "contradicted", "retains more, by 0.100 bits per byte, and ", "more"),
     (1.4, 1.2, "not comparable", "", "less"), (1.9, 0.8, "not comparable", "", "more"),
     (1.5005, 1.2, "inconclusive", "", "less")],
)  # fmt: skip
def test_at_unequal_targets_better_at_both_is_better(plain, over_seeds, bits, nll, verdict, retains, learns):
    row = judge(plain(*over_seeds("flow", bits=bits, nll=nll)), claim("flow")).loc["flow"]
    assert row[["matched", "verdict"]].tolist() == ["", verdict]
    assert row["reason"].startswith(f"flow {retains}learns {learns}: 0.200 in nll of the target")


def test_a_small_difference_is_equivalent_though_it_is_there(plain, over_seeds):
    row = judge(plain(*over_seeds("l2", bits=1.51, nll=1.0)), claim("l2")).loc["l2"]
    assert row["low"] > 0 and row["verdict"] == "equivalent"


def test_noise_is_inconclusive_and_says_what_it_would_take(plain, over_seeds):
    items = plain(*over_seeds("l2", bits=1.52, nll=1.0), jitter=2.0)
    row = judge(items, claim("l2")).loc["l2"]
    assert row["verdict"] == "inconclusive"
    assert row["detectable"] > abs(row["effect"]) and row["seeds_needed"] > 3


def test_one_seed_gives_no_verdict(plain):
    items = plain()
    row = judge(items[items["seed"] < 1], claim("ft")).loc["ft"]
    assert (row["verdict"], row["reason"], row["seeds"]) == ("not testable", "one seed", 1)
    assert (
        row["low"] < row["effect"] < row["high"] and np.isnan([row["p"], row["detectable"]]).all()
    )


def test_two_seeds_and_few_items_are_warned_about(plain):
    items = plain(n=100)
    row = judge(items[items["seed"] < 2], claim("ft")).loc["ft"]
    assert (
        row["warning"]
        == "100 independent items, fewer than 300; two seeds: intervals may be too narrow"
    )
    assert judge(plain(), claim("ft")).loc["ft", "warning"] == ""
    clustered = plain().assign(cluster=lambda f: f["item"].astype(int) // 2)
    assert (
        judge(clustered, claim("ft")).loc["ft", "warning"]
        == "200 independent items, fewer than 300"
    )


def test_where_plain_fine_tuning_forgets_nothing_nothing_is_tested(make_items, over_seeds):
    runs = [*over_seeds("cfs", bits=0.5, nll=1.0), *over_seeds("ft", bits=1.01, nll=1.0)]
    row = judge(make_items(runs), claim("ft")).loc["ft"]
    # it did forget, but less than matters
    assert row["verdict"] == "not testable"
    assert row["reason"].startswith("plain fine-tuning did not forget: drop 0.010 [")
    runs[3:] = over_seeds("l2", bits=1.2, nll=1.0)
    assert (
        "plain fine-tuning was not run" in judge(make_items(runs), claim("l2")).loc["l2", "reason"]
    )
    items = make_items(runs)
    assert "no base" in judge(items[items["recipe"] != "base"], claim("l2")).loc["l2", "reason"]


def test_a_run_that_diverged_is_inconclusive(plain, over_seeds):
    items = plain(*over_seeds("l2", bits=1.4, nll=1.0), *over_seeds("lora", bits=1.8, nll=1.0))
    items.loc[(items["recipe"] == "l2") & (items["seed"] == 1), "value"] = NAN
    out = judge(items, claim("ft", "l2", "lora"))
    assert out.loc["l2", ["verdict", "reason"]].tolist() == [
        "inconclusive",
        "a run has no finite score: it diverged",
    ]
    # and is no member of the family: the two others are adjusted as two
    assert out["verdict"][["ft", "lora"]].tolist() == ["supported", "supported"]
    assert out["p_adjusted"].dropna().tolist() == pytest.approx(
        holm(out["p"][["ft", "lora"]]).tolist()
    )


def test_a_rival_is_taken_at_the_matched_target_of_its_frontier(plain, over_seeds):
    items = plain(
        *over_seeds("l2", bits=1.2, nll=1.4, strength=1.0), *over_seeds("l2", bits=1.6, nll=0.8, strength=0.1),
        *over_seeds("lora", bits=1.2, nll=1.4, strength=4.0), *over_seeds("lora", bits=1.3, nll=1.2, strength=8.0),
    )  # fmt: skip
    out = judge(items, claim("l2", "lora"))
    # a third of the way from 0.8 to 1.4: bits 1.6 - 0.4/3
    assert out.loc["l2", "effect"] == pytest.approx(1.6 - 0.4 / 3 - 1.5)
    assert out.loc["l2", ["matched", "verdict"]].tolist() == ["interpolated", "contradicted"]
    assert out.loc["l2", "target_gap"] == pytest.approx(0)
    # the nearest point is still too far
    assert out.loc["lora", ["matched", "verdict"]].tolist() == ["", "not comparable"]
    assert out.loc["lora", "target_gap"] == pytest.approx(0.2)


def test_the_treatment_is_at_the_middle_of_its_sweep(make_items, over_seeds):
    weights = {0.5: 1.3, 2.0: 1.2, 8.0: 1.1}
    runs = [
        run
        for w, b in weights.items()
        for run in over_seeds("cfs", bits=b, nll=1.0, replay_weight=w)
    ]
    items = make_items([*runs, *over_seeds("ft", bits=2.0, nll=1.0)])
    assert judge(items, claim("ft")).loc["ft", "effect"] == pytest.approx(0.8)
    items.loc[(items["recipe"] == "cfs") & (items["replay_weight"] == 8), "lr"] = 1.0
    with pytest.raises(UserError, match="cfs varies in replay_weight, lr: give one study"):
        judge(items, claim("ft"))


def test_targets_match_in_answers_and_where_these_cannot_tell_in_nll(plain, over_seeds, make_items):
    def runs(exact, nll):
        return [
            *over_seeds("cfs", bits=2.5, nll=1.0, exact=0.9), *over_seeds("ft", bits=2.0, nll=nll, exact=exact),
        ]  # fmt: skip

    assert judge(make_items(runs(0.885, 3.0)), claim("ft")).loc["ft", "matched"] == "as run"
    row = judge(make_items(runs(0.8, 1.0)), claim("ft")).loc["ft"]
    assert row["verdict"] == "not comparable" and "exact_match" in row["reason"]
    for nll, matched in ((1.04, "as run"), (1.06, "")):
        items = make_items(runs(0.87, nll))
        noisy = items["metric"] == "exact_match"
        items.loc[noisy, "value"] += np.random.default_rng(0).normal(0, 2, noisy.sum())
        row = judge(items, claim("ft")).loc["ft"]
        # the gap is that of what decides; in answers the rival learned less
        assert row["target_metric"] == "nll" and row["target_gap"] == pytest.approx(nll - 1.0)
        assert row["matched"] == matched
    assert row["reason"] == "ft learns less: 0.060 in nll of the target"


@pytest.mark.parametrize(("before", "metric"), [(0.0, "exact_match"), (0.31, "nll")])
def test_answers_that_plain_fine_tuning_does_not_raise_match_nothing(make_items, over_seeds, before, metric):
    """Both at chance, 0.3: what each has learned is told by NLL."""
    runs = [*over_seeds("cfs", bits=1.5, nll=4.0, exact=0.3), *over_seeds("ft", bits=2.0, nll=1.0, exact=0.3)]
    items = make_items(runs)
    items.loc[(items["recipe"] == "base") & (items["metric"] == "exact_match"), "value"] = before
    row = judge(items, claim("ft")).loc["ft"]
    assert row["target_metric"] == metric
    assert row["verdict"] == ("supported" if metric == "exact_match" else "not comparable")


def test_right_answers_have_mcnemars_test_beside_them(make_items, over_seeds):
    runs = [*over_seeds("cfs", right=1.0, nll=1.0), *over_seeds("ft", right=1.0, nll=1.0)]
    items = make_items(runs, jitter=0.0)
    items.loc[(items["recipe"] == "base") & (items["metric"] == "acc"), "value"] = 1.0
    wrong = (
        (items["metric"] == "acc") & (items["recipe"] == "ft") & (items["item"].astype(int) < 40)
    )
    items.loc[wrong, "value"] = 0.0
    row = judge(items, claim("ft", measures=(RIGHT,))).loc["ft"]
    # forty items to none, in every seed
    assert (row["effect"], row["mcnemar_p"]) == pytest.approx((0.1, 2 * 0.5**40))
    assert row["verdict"] == "supported"
    assert np.isnan(judge(items, claim("ft", measures=(BITS,))).loc["ft", "mcnemar_p"])


def test_reasoning_is_tested_where_the_base_thinks(make_items, over_seeds):
    runs = [*over_seeds("cfs", right=-0.1, nll=1.0), *over_seeds("ft", right=-0.4, nll=1.0)]
    items = make_items(runs)
    of_thought = claim("ft", id="C2", measures=(THOUGHT,))
    row = judge(items, of_thought).loc["ft"]
    assert row[["verdict", "reason"]].tolist() == [
        "not testable",
        "the base has no skills of thinking",
    ]
    other = items[items["metric"] == "acc"].assign(task="direct", value=0.0)
    row = judge(pd.concat([items, other]), of_thought, thinking=["arc"]).loc["ft"]
    assert (row["effect"], row["verdict"]) == (pytest.approx(0.3), "supported")


def test_settings_are_compared_with_their_reference(make_items, over_seeds):
    runs = [*over_seeds("ft", bits=2.0, nll=1.0)]
    for temperature, bits in ((0.5, 1.6), (1.0, 1.5), (1.5, 1.505)):
        runs += over_seeds(
            "cfs", bits=bits, nll=1.0, temperature=temperature, ratio=0.6, replay_weight=1.5
        )
    for ratio in (0.2, 0.8):
        weight = round(ratio / (1 - ratio), 9)
        runs += over_seeds(
            "cfs", bits=1.5 - ratio, nll=1.0, temperature=1.0, ratio=ratio, replay_weight=weight
        )
    items = make_items(runs)
    both = [one for one in CLAIMS if one.id == "C6"]
    out = verdicts.table(items, temperature=items, ratio=items, claims=both)
    bits = out[out["metric"] == "bpb_gold"].set_index("rival")
    assert bits["verdict"].to_dict() == {
        "cfs at temperature 0.5": "supported", "cfs at temperature 1.5": "equivalent",
        "cfs at ratio 0.6": "supported", "cfs at ratio 0.8": "supported",
    }  # fmt: skip
    # against 1.5 at T = 1; against 1.3 at the smallest share
    assert bits["effect"].tolist() == pytest.approx([0.1, 0.005, 0.2, -0.6])
    whole = verdicts.summary(out, claims=both)
    assert whole["verdict"].tolist() == ["supported", "supported"]
    along = verdicts.along(items[items["ratio"].isna() | (items["ratio"] == 0.6)], "temperature", recipes=["cfs", "ft"])
    assert along[along["metric"] == "bpb_gold"]["verdict"].tolist() == ["supported", "equivalent", "not testable"]
    with pytest.raises(UserError, match="temperature, ratio"):
        verdicts.along(items, "lr", recipes=["cfs"])
    assert verdicts.table(items, claims=both).empty  # results that are not given
    only = items[~(items["temperature"] == 1)]
    assert (
        "not run at temperature 1"
        in verdicts.table(only, temperature=only, claims=both)["reason"][0]
    )


def test_a_claim_about_several_rivals_holds_for_all_or_not(plain, over_seeds):
    def whole(**rivals):
        runs = [
            run for name, bits in rivals.items() for run in over_seeds(name, bits=bits, nll=1.0)
        ]
        one = claim("l2", "lora", "wise_ft")
        out = verdicts.summary(verdicts.table(plain(*runs), claims=[one]), claims=[one])
        return out.iloc[0]

    row = whole(l2=1.7, lora=1.8)
    # what was not run does not count, and is named; the hardest to beat decides
    assert row[["verdict", "rival"]].tolist() == ["supported", "l2"]
    assert row["reason"] == "l2: supported; lora: supported; wise_ft: not testable"
    assert whole(l2=1.7, lora=1.2)[["verdict", "rival"]].tolist() == ["contradicted", "lora"]
    assert whole(l2=1.7, lora=1.5)["verdict"] == "inconclusive"
    assert whole(l2=1.5, lora=1.5)["verdict"] == "equivalent"
    assert whole()["verdict"] == "not testable"


def test_better_than_all_needs_no_correction():
    """Intersection-union: each of three tests at alpha, where Holm would need the smallest at alpha / 3."""
    part = pd.DataFrame(
        {
            "verdict": ["inconclusive"] * 3,
            "p": [0.02, 0.03, 0.04],
            "effect": [0.1, 0.2, 0.3],
            "rival": list("abc"),
        }
    )
    assert (holm(part["p"]) > ALPHA).all()
    verdict, row = verdicts._whole(part, "all")
    assert (verdict, row["rival"]) == ("supported", "c")
    assert verdicts._whole(part.assign(effect=[0.1, 0.2, -0.3]), "all")[0] == "inconclusive"
    assert verdicts._whole(part, "any")[0] == "inconclusive"


def test_what_holm_takes_away_is_said():
    row = {"effect": 0.1, "delta": 0.02, "unit": "u", "p": 0.03, "p_adjusted": 0.06, "p_equivalent": 0.9,
           "test": "better", "rival": "l2", "low": 0.01, "high": 0.2, "matched": "as run"}  # fmt: skip
    assert verdicts.decide(row) == (
        "inconclusive", "a difference that does not stand correction for several rivals",
    )  # fmt: skip
    assert verdicts.decide(row | {"p_adjusted": NAN}) == ("inconclusive", "there is no interval")


def test_all_claims_at_once_have_one_row_each_in_the_summary(plain):
    out = verdicts.table(plain())
    assert out.columns.tolist() == verdicts.COLUMNS
    whole = verdicts.summary(out)
    assert whole["claim"].tolist() == ["C1", "C2", "C3", "C4", "C5", "C8", "C9"]
    assert whole.set_index("claim").loc["C1", "verdict"] == "supported"
    assert whole["refuted_by"].notna().all()


def test_frames_of_before_recipes_had_a_strength_and_of_two_studies(plain):
    items = plain()
    old = judge(items.drop(columns="strength"), claim("ft"))
    pd.testing.assert_frame_equal(old, judge(pd.concat([items, items]), claim("ft")))


# ---- simulation with known truth

SD = 0.02
"""Standard deviation of the estimated effect, as large as what matters (`BITS.delta`)."""


def words(effect, mix, sd=SD):
    """Shares of verdicts over replications where the true effect is known."""
    change, cluster = simulate(MIXES[mix], seed=1)
    found = crossed.estimate(effect + sd * change, np.ones(change.shape[-1]), cluster=cluster)
    p, within = found.p(), found.p_equivalent(BITS.delta)
    rows = zip(found.effect, p, within, strict=True)
    start = {"delta": BITS.delta, "unit": BITS.unit, "test": "better", "rival": "r", "matched": "as run"}
    names = [
        verdicts.decide(start | {"effect": e, "p": p, "p_adjusted": p, "p_equivalent": q})[0] for e, p, q in rows
    ]  # fmt: skip
    return pd.Series(names).value_counts(normalize=True).reindex(verdicts.VERDICTS, fill_value=0.0)


@pytest.mark.parametrize("mix", ["items", "mostly seeds", "seeds and cells", "clustered"])
def test_false_verdicts_are_rare(mix):
    """3 seeds, 200 items in clusters of 5; each share at its nominal level, with the noise of 4,000 replications."""
    null = words(0.0, mix)
    assert null["supported"] < 0.035 and null["contradicted"] < 0.035  # half of alpha each
    # a difference just as large as matters is not equivalent
    assert words(BITS.delta, mix, sd=SD / 4)["equivalent"] < 0.06
    assert words(-BITS.delta, mix, sd=SD / 4)["equivalent"] < 0.06


def test_true_verdicts_are_found():
    assert words(0.1, "clustered")["supported"] > 0.9
    assert words(-0.1, "clustered")["contradicted"] > 0.9
    assert words(0.0, "clustered", sd=SD / 5)["equivalent"] > 0.9
    assert words(0.0, "clustered", sd=3 * SD)["inconclusive"] > 0.9


def test_a_method_under_three_names_is_hardly_ever_supported():
    """A planted null with Holm: rivals that are the treatment itself, trained again; they share its noise."""
    own, cluster = simulate(MIXES["clustered"], seed=2, replications=2000)
    found = []
    for number in range(3):
        rival, _ = simulate(MIXES["clustered"], seed=3 + number, replications=2000)
        found.append(crossed.estimate(rival - own, np.ones(200), cluster=cluster))
    p = np.array([holm(row) for row in np.transpose([one.p() for one in found])])
    better = np.transpose([one.effect for one in found]) > 0
    assert np.mean(((p < ALPHA) & better).any(1)) < 0.05


def test_a_method_under_two_names_is_equivalent(plain):
    items = plain()
    twin = items[items["recipe"] == "cfs"].assign(recipe="l2", run=lambda f: f["run"] + "b")
    row = judge(pd.concat([items, twin]), claim("l2")).loc["l2"]
    assert (row["effect"], row["p"], row["verdict"]) == (0, 1, "equivalent")
