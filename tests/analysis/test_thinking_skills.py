"""Skills solved by thinking: the base alone decides, and what is computed on them agrees with the rest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import forgetting, thinking, verdicts
from cfutils.data import chat, corpus
from cfutils.errors import UserError

N = 40
RIGHT = {"add": (0.9, 0.1), "swap": (0.7, 0.5), "middle": (0.6, 0.45), "job": (0.95, 0.95)}
"""The base's share of right answers on each skill, with its thought and with the thought cut off."""


def cell(run, group, task, metric, values):
    return pd.DataFrame(
        {**{name: run.get(name, np.nan) for name in forgetting.RUN}, "group": group, "task": task, "metric": metric,
         "item": [str(i) for i in range(len(values))], "value": values, "weight": 1.0}
    )  # fmt: skip


def make_items(recipes=("ft", "cfs", "template_prefix"), seeds=(0, 1, 2), *, thinks=True):
    """Items of a base with the shares of `RIGHT`, and of runs that lost some of them."""
    runs = [{"run": "b", "recipe": "base", "seed": -1}]
    runs += [{"run": f"{r}{s}", "recipe": r, "seed": s, "lr": 1e-3} for s in seeds for r in recipes]
    lost = {"base": 0.0, "ft": 0.5, "cfs": 0.2, "template_prefix": 0.1}
    frames = []
    for number, run in enumerate(runs):
        noise = np.random.default_rng(number).permutation(np.tile([-0.02, 0.02], N // 2))
        noise = noise * (number > 0)
        keep = 1 - lost[run["recipe"]]
        for task, (acc, cut) in RIGHT.items():
            values = {"acc": acc * keep + noise, "acc_cut": np.full(N, cut), "thinks": np.full(N, keep),
                      "thought_tokens": 20 * keep + noise}  # fmt: skip
            names = values if thinks else ["acc"]
            frames += [cell(run, "retained", task, name, values[name]) for name in names]
        frames.append(cell(run, "target", "rotate", "acc", np.full(N, float(number > 0))))
        frames.append(cell(run, "target", "rotate", "nll", np.full(N, 0.1 if number else 3.0)))
        frames.append(cell(run, "probe", "context_free", "kl", np.full(N, 1 - keep)))
    return pd.concat(frames, ignore_index=True)


def test_the_threshold_counts_and_the_base_alone_decides():
    items = make_items()
    assert thinking.solved_by_thinking(items) == ("add", "swap")  # 0.7 - 0.5 is 0.2, but for the last digit
    assert thinking.solved_by_thinking(items, by=0.3) == ("add",)
    assert thinking.solved_by_thinking(items, by=0.1) == ("add", "swap", "middle")
    worse = items.copy()
    worse.loc[worse["recipe"] != "base", "value"] = 0.0
    assert thinking.solved_by_thinking(worse) == ("add", "swap")


def test_a_base_that_does_not_think_has_none(make_items):
    items = make_items([{"recipe": "ft", "seed": 0, "bits": 1.1, "right": 0.5}])
    assert thinking.solved_by_thinking(items) == ()
    with pytest.raises(UserError, match="does not think"):
        thinking.skills(items)
    with pytest.raises(UserError, match="no retained task is left"):
        thinking.only(items, ())


def test_the_base_by_task_with_intervals_of_both_and_of_the_gain():
    rng = np.random.default_rng(0)
    items = make_items(())
    own = items["metric"].isin(["acc", "acc_cut"]) & (items["group"] == "retained")
    items.loc[own, "value"] = rng.binomial(4, items.loc[own, "value"]) / 4
    found = thinking.skills(items)
    assert found["gain"].is_monotonic_decreasing and set(found["task"]) == set(RIGHT)
    assert found["gain"].tolist() == pytest.approx((found["acc"] - found["acc_cut"]).tolist())
    for name in ("acc", "acc_cut", "gain"):
        ends = found[[f"{name}_low", name, f"{name}_high"]].to_numpy()
        assert (np.diff(ends) >= 0).all(), name
    assert (found[["acc_low", "acc_cut_low"]] >= 0).all(axis=None)
    assert (found["n"] == N).all()
    assert found.loc[found["solved"], "task"].tolist() == sorted(
        thinking.solved_by_thinking(items), key=found["task"].tolist().index
    )
    levels = forgetting.levels(items).query("metric == 'acc' and group == 'retained'").set_index("task")
    assert found.set_index("task")["acc_low"].to_dict() == pytest.approx(levels["low"].drop("mean").to_dict())


def test_means_over_what_is_left_are_means_over_these_skills():
    kept = thinking.only(make_items(), ("add", "swap"))
    assert set(kept["group"]) == {"retained", "target", "probe"}
    drops = forgetting.pooled(kept, n_boot=50)
    mean = drops.query("task == 'mean' and metric == 'acc'").set_index("recipe")
    assert mean.loc["ft", "base"] == pytest.approx(0.8)
    assert mean.loc["ft", "drop"] == pytest.approx(0.4)


def test_how_much_a_model_thinks_is_a_level_and_no_drop():
    """Neither more nor less of it is worse."""
    items = make_items()
    levels = forgetting.levels(items)
    assert {"thinks", "thought_tokens"} <= set(levels["metric"])
    for drops in (forgetting.paired_drop(items, n_boot=0), forgetting.pooled(items, n_boot=0)):
        assert set(drops["metric"]) == {"acc", "acc_cut", "nll", "kl"}
    tokens = levels.query("task == 'mean' and metric == 'thought_tokens'").set_index("recipe")["value"]
    assert tokens[["base", "ft"]].tolist() == pytest.approx([20, 10])


def test_differences_are_those_of_the_verdicts():
    items = make_items()
    pairs = [("cfs", "ft"), ("template_prefix", "cfs"), ("l2", "ft")]
    found = thinking.differences(items, ("add", "swap"), pairs=pairs)
    assert found["effect"].tolist() == pytest.approx([0.3 * 0.8, 0.1 * 0.8, np.nan], nan_ok=True)
    assert found["reading"].tolist()[2] == "l2 was not run"
    assert found["reading"][0].startswith("more retained: between +0.2")
    c2 = verdicts.table(items, thinking=("add", "swap")).query("claim == 'C2'").iloc[0]
    same = ["effect", "low", "high", "seeds", "items", "target_gap"]
    assert found.iloc[0][same].tolist() == pytest.approx(c2[same].tolist())
    assert c2["verdict"] == "supported"


def test_one_seed_gives_no_verdict():
    found = thinking.differences(make_items(seeds=(0,)), ("add",), pairs=[("cfs", "ft")])
    assert found["reading"][0].startswith("one seed, no verdict: between ")


def test_declared_shapes_by_hand_and_in_the_documents():
    """Half of the documents have steps, a tenth of these no thought; of prose all, of five skills half is plain."""
    found = thinking.declared_shapes("shipped:tiny-think").set_index(["source", "shape"])["share"]
    free = found["context_free"]
    assert free.to_dict() == pytest.approx({"thinking": 0.45, "unthinking": 0.27, "unfinished": 0.0, "plain": 0.28})
    prefix = found["template_prefix"]
    assert prefix.to_dict() == pytest.approx(
        {"thinking": 0.45 / 0.72, "unthinking": 0.27 / 0.72, "unfinished": 0.0, "plain": 0.0}
    )
    read = [chat.parts(one.text) for one in corpus.documents(2000, seed=0, world="tiny-think")]
    counted = {
        "plain": sum(part is None for part in read),
        "thinking": sum(part is not None and bool(part[1]) for part in read),
    }
    for shape, count in counted.items():
        assert abs(count / 2000 - free[shape]) < 4 * (0.25 / 2000) ** 0.5, shape


@pytest.mark.parametrize("base", ["shipped:tiny", "asset:smollm2", "owner/name"])
def test_other_bases_have_no_declared_shapes(base):
    assert thinking.declared_shapes(base).empty


def test_transcripts_show_thought_answer_and_whether_it_is_right():
    rows = [
        ("add", "0", False, True, True, "1+2=3", " 3"),
        ("add", "0", False, False, True, "7", " 7"),  # the second answer to an item
        ("add", "1", False, False, True, "", " 9"),
        ("add", "2", False, False, True, "", " 8"),  # the third item
        ("add", "0", True, False, True, "", " <b>"),
        ("swap", "4", False, False, False, "a b a b", None),
        ("job", "0", False, True, True, "", " smith"),
    ]
    columns = ["task", "item", "cut", "right", "ended", "thought", "answer"]
    found = thinking.transcripts({"Base": pd.DataFrame(rows, columns=columns)}, tasks=("swap", "add"))
    assert found["Base"].to_dict() == {
        ("swap", "4"): "<think>a b a b …  ✗", ("add", "0"): "<think>1+2=3</think> 3  ✓",
        ("add", "1"): "<think></think> 9  ✗",
    }  # fmt: skip
    assert found.index.get_level_values("skill").tolist() == ["swap", "add", "add"]


# ---- several answers to each item


def make_answers(right, **columns):
    """Answers of one task, right being a list of answers for each item; all wrong with the thought cut off."""
    rows = [
        {"task": "aime25", "item": str(item), "sample": j, "cut": cut, "right": bool(value) and not cut,
         "thinks": True, "ended": True, "thought_tokens": 100 * (item + 1), "extracted": "7"}
        for cut in (False, True) for item, answers in enumerate(right) for j, value in enumerate(answers)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def test_precision_over_items_and_answers_by_hand():
    """Means 1, 1/2, 0 of two answers each: variance 1/4, of which answers have (0 + 1/2 + 0)/3 halved, 1/12."""
    found = thinking.precision(make_answers([[1, 1], [1, 0], [0, 0]])).set_index("metric")
    right = found.loc["right"]
    assert (right["task"], right["n"], right["k"], right["mean"]) == ("aime25", 3, 2, 0.5)
    assert right["stderr"] == pytest.approx((1 / 12) ** 0.5)
    assert right["within"] == pytest.approx(1 / 6) and right["between"] == pytest.approx(1 / 6)
    assert right["answers_share"] == pytest.approx(1 / 3)
    assert (right["low"], right["high"]) == (0.0, 1.0)  # 4.303 standard errors reach beyond both ends
    tokens = found.loc["thought_tokens"]  # 100, 200, 300, and no difference between the answers to one
    assert (tokens["mean"], tokens["within"], tokens["between"]) == (200, 0, 10_000)
    half = 4.302653 * 100 / 3**0.5
    assert (tokens["low"], tokens["high"]) == pytest.approx((200 - half, 200 + half))
    assert list(found.index) == ["right", "answered", "ended", "thinks", "thought_tokens"]


def test_precision_counts_answers_that_were_read():
    one = make_answers([[1, 0], [0, 0]]).assign(extracted=["7", None, "8", "9"] * 2)
    assert thinking.precision(one).set_index("metric").loc["answered", "mean"] == 0.75
    skill = thinking.precision(one.assign(extracted=None))
    assert "answered" not in set(skill["metric"])


def test_precision_has_no_variance_of_single_answers_and_items():
    one = thinking.precision(make_answers([[1], [0], [0], [1]])).set_index("metric").loc["right"]
    assert (one["mean"], one["k"]) == (0.5, 1) and one["stderr"] == pytest.approx((1 / 3 / 4) ** 0.5)
    assert np.isnan(one["within"])
    alone = thinking.precision(make_answers([[1, 0]])).set_index("metric").loc["right"]
    assert alone["mean"] == 0.5 and np.isnan(alone["stderr"]) and np.isnan(alone["low"])


def test_items_with_more_answers_than_others_are_refused():
    with pytest.raises(UserError, match="aime25: items have 1, 2 answers"):
        thinking.precision(make_answers([[1, 1], [0]]))


def test_precision_covers_its_mean():
    """95 % intervals of 30 items with 4 answers each hold the truth in 95 % of 400 draws."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        ability = rng.beta(2, 2, size=30)
        right = rng.random((30, 4)) < ability[:, None]
        found = thinking.precision(make_answers(right.tolist())).set_index("metric").loc["right"]
        held += found["low"] <= 0.5 <= found["high"]
    assert 0.92 < held / 400 < 0.98
