"""Two sets of results compared, with values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import agreement
from cfutils.errors import UserError

NAN = float("nan")


def rows(values, *, seed=0, task="arc", metric="bpb_gold", group="retained", weights=None, run="r"):
    """Items of one run."""
    settings = dict.fromkeys(agreement.SETTINGS, NAN) | {"lr": 0.1}
    return pd.DataFrame(
        [
            {"profile": "p", "recipe": "ft", "seed": seed, **settings, "run": run, "group": group,
             "task": task, "metric": metric, "item": str(i), "value": float(v), "weight": float(w)}
            for i, (v, w) in enumerate(zip(values, weights or [1] * len(values), strict=True))
        ]
    )  # fmt: skip


def only(frame, task):
    found = frame[frame["task"] == task]
    assert len(found) == 1
    return found.iloc[0]


def test_the_difference_is_paired_by_item_and_averaged_over_runs():
    a = pd.concat([rows([1, 2, 3]), rows([1, 2, 3], seed=1)])
    b = pd.concat([rows([2, 2, 3], run="other"), rows([4, 2, 6], seed=1, run="names")])
    row = only(agreement.compare(a, b), "arc")
    # item differences (1 + 3)/2, 0, (0 + 3)/2 = 2, 0, 1.5: mean 7/6, s^2 = 1.083333,
    # stderr = sqrt(1.083333/3) = 0.600925, t(0.975, 2) = 4.302653
    assert row["difference"] == pytest.approx(7 / 6)
    assert (row["a"], row["b"]) == pytest.approx((2, 2 + 7 / 6))
    assert row["stderr"] == pytest.approx(0.600925, abs=1e-6)
    assert row["low"] == pytest.approx(7 / 6 - 4.302653 * 0.600925, abs=1e-5)
    assert row["high"] == pytest.approx(7 / 6 + 4.302653 * 0.600925, abs=1e-5)
    assert row[["runs", "items", "rows", "only_a", "only_b"]].tolist() == [2, 3, 6, 0, 0]
    assert (row["largest"], row["agreement"]) == (3, "agree")


def test_weights_count():
    a, b = (rows(v, weights=[1, 3]) for v in ([0, 0], [4, 0]))
    # (1 * 4 + 3 * 0)/4; w(d - m) = 3, -3: sqrt(2 * 18)/4 = 1.5
    row = only(agreement.compare(a, b), "arc")
    assert (row["difference"], row["stderr"]) == pytest.approx((1, 1.5))


def test_the_mean_weighs_tasks_alike():
    a = pd.concat([rows([0, 0], task="arc"), rows([0, 0], task="piqa")])
    b = pd.concat([rows([1, 3], task="arc"), rows([0, 2], task="piqa")])
    row = only(agreement.compare(a, b), "mean")
    # means 2 and 1; stderr^2 1 and 1; freedom (1 + 1)^2/(1/1 + 1/1) = 2, t(0.975, 2) = 4.302653
    assert row["difference"] == 1.5
    assert row["stderr"] == pytest.approx(math.sqrt(2) / 2)
    assert row["high"] - 1.5 == pytest.approx(4.302653 * 0.7071068, abs=1e-5)
    assert row[["runs", "items", "rows"]].tolist() == [1, 4, 4]
    target = rows([1, 2], group="target", metric="nll")
    assert "mean" not in set(agreement.compare(target, target)["task"])


@pytest.mark.parametrize(
    ("b", "word"),
    [
        ([1, 2, 3, NAN], "identical"),
        ([1, 2, 3 + 5e-10, NAN], "identical"),
        ([1 + 5e-5, 2, 3, NAN], "within rounding"),
        ([1 + 2e-4, 2 - 2e-4, 3, NAN], "agree"),  # NaN on both sides is no difference
    ],
)
def test_words_for_what_is_nearly_the_same(b, word):
    assert only(agreement.compare(rows([1, 2, 3, NAN]), rows(b)), "arc")["agreement"] == word


def test_words_for_what_is_not():
    a = rows([1, 2, 3, 4])
    apart = only(agreement.compare(a, rows([2, 3, 4, 5.1])), "arc")
    assert (apart["agreement"], apart["low"] > 0) == ("differ", True)
    lost = only(agreement.compare(a, rows([1, 2, 3, NAN])), "arc")
    assert lost["agreement"] == "differ"
    assert np.isnan(lost["largest"])
    alone = only(agreement.compare(rows([1]), rows([2])), "arc")
    assert (alone["difference"], alone["agreement"]) == (1, "differ")
    assert np.isnan(alone["low"])
    shifted = only(agreement.compare(a, rows([2, 3, 4, 5])), "arc")  # no spread at all
    assert (shifted["low"], shifted["high"], shifted["agreement"]) == (1, 1, "differ")


def test_rows_of_one_side_alone_are_counted():
    a = pd.concat([rows([1, 2, 3]), rows([1, 2, 3], seed=1), rows([7], task="piqa")])
    b = pd.concat([rows([1, 2, 3, 4]), rows([5, 6], task="sciq")])
    out = agreement.compare(a, b)
    row = only(out, "arc")
    assert row[["runs", "items", "rows", "only_a", "only_b"]].tolist() == [1, 3, 3, 3, 1]
    assert row["agreement"] == "identical"
    for task, counts in (("piqa", [0, 0, 0, 1, 0]), ("sciq", [0, 0, 0, 0, 2])):
        row = only(out, task)
        assert row[["runs", "items", "rows", "only_a", "only_b"]].tolist() == counts
        assert row["agreement"] == "nothing in common"
    # tasks of one side alone do not enter the mean
    assert only(out, "mean")["items"] == 3
    nothing = agreement.compare(rows([1]), rows([1], seed=1))
    assert nothing["agreement"].tolist() == ["nothing in common"]


def test_what_cannot_be_compared_is_refused():
    a = rows([1, 2])
    with pytest.raises(UserError, match="items_b lacks the columns weight"):
        agreement.compare(a, a.drop(columns="weight"))
    with pytest.raises(UserError, match="items_a holds an item of a run twice"):
        agreement.compare(pd.concat([a, a]), a)
    with pytest.raises(UserError, match="weight differs"):
        agreement.compare(a, rows([1, 2], weights=[1, 2]))
    with pytest.raises(UserError, match="level = 95"):
        agreement.compare(a, a, level=95)
