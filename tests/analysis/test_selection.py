"""Choices by hand: learning rates by validation NLL alone, alpha by retained scores within a window of the target."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import selection
from cfutils.errors import UserError

NAN = float("nan")


def rows(recipe, values, *, lr=1e-3, seed=100, group="validation", task="t", metric="nll", weight=1.0, **point):
    """One run's items."""
    settings = {"replay_weight": NAN, "alpha": NAN, "strength": NAN, **point}
    return pd.DataFrame({
        "recipe": recipe, "seed": seed, "lr": lr, **settings, "run": f"{recipe}{lr}{seed}{point}", "group": group,
        "task": task, "metric": metric, "item": [f"i{i}" for i in range(len(values))], "value": values,
        "weight": weight,
    })  # fmt: skip


def test_a_learning_rate_by_hand():
    """Means 2, 1 and 1.1 at the rates 1, 2, 4: the second is best, differences from it vary too much for none.

    Against rate 4 the differences are 0.1 on each item: stderr 0, no tie. Against rate 1 they are 1.
    """
    items = pd.concat([
        rows("ft", [1.0, 2.0, 3.0], lr=1.0), rows("ft", [0.0, 1.0, 2.0], lr=2.0),
        rows("ft", [0.1, 1.1, 2.1], lr=4.0),
        rows("ft", [0.0, 0.0, 0.0], lr=1.0, group="retained"), rows("base", [0.0, 0.0, 0.0], lr=9.0),
    ])  # fmt: skip
    (found,) = selection.choose_lr(items).to_dict("records")
    assert (found["recipe"], found["lr"], found["best_lr"]) == ("ft", 2.0, 2.0)
    assert found["nll"] == found["best_nll"] == 1.0
    assert (found["points"], found["tied"]) == (3, 1)


def test_a_tie_goes_to_the_smaller_rate():
    """Differences +1, -0.4, 0: mean 0.2; deviations 0.8, -0.6, -0.2, squares 1.04, stderr sqrt(1.04/6) = 0.416."""
    items = pd.concat([rows("ft", [1.0, 0.6, 1.0], lr=1.0), rows("ft", [0.0, 1.0, 1.0], lr=2.0)])
    (found,) = selection.choose_lr(items).to_dict("records")
    assert (found["lr"], found["best_lr"], found["tied"]) == (1.0, 2.0, 2)
    assert found["nll"] == pytest.approx(2.6 / 3) and found["best_nll"] == pytest.approx(2 / 3)


def test_every_recipe_is_chosen_over_its_own_knob():
    """Weights count: mean of (0, 3) with weights 3, 1 is 0.75; seeds are averaged: (0 + 4)/2 = 2."""
    items = pd.concat([
        rows("cfs", [0.0, 3.0], weight=[3.0, 1.0], replay_weight=0.25),
        rows("cfs", [1.0, 1.0], weight=[3.0, 1.0], replay_weight=4.0),
        rows("l2", [0.0, 0.0], strength=0.1, seed=1), rows("l2", [4.0, 4.0], strength=0.1, seed=2),
        rows("l2", [3.0, 3.0], strength=1.0, seed=1), rows("l2", [3.0, 3.0], strength=1.0, seed=2),
    ])  # fmt: skip
    found = selection.choose_lr(items).set_index("recipe")
    assert list(found.index) == ["cfs", "l2"]
    assert found.loc["cfs", ["replay_weight", "nll", "points"]].tolist() == [0.25, 0.75, 2]
    assert found.loc["l2", ["strength", "nll"]].tolist() == [0.1, 2.0]


def test_a_choice_needs_validation_scores():
    with pytest.raises(UserError, match="validation"):
        selection.choose_lr(rows("ft", [1.0], group="target"))
    (found,) = selection.choose_lr(rows("ft", [1.0])).to_dict("records")  # a single item: nothing ties
    assert found["tied"] == 1


# ---- alpha


def averages(target, retained, *, seeds=(0,)):
    """Target NLL and retained bits per byte of three items each, by alpha; alpha 1 is ft."""
    frames = []
    for alpha, t, r in zip((0.3, 0.7, 1.0), target, retained, strict=True):
        recipe, point = ("ft", {}) if alpha == 1 else ("wise_ft", {"alpha": alpha})
        for seed in seeds:
            frames += [
                rows(recipe, np.add(t, [0, 1, 2]), seed=seed, group="target", **point),
                rows(recipe, np.add(r, [0, 3, 6]), seed=seed, group="retained", metric="bpb_gold", **point),
            ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("window, alpha", [(0.0, 1.0), (0.3, 0.7), (2.0, 0.3)])
def test_alpha_by_hand(window, alpha):
    """Gaps 1.5, 0.25, 0 to ft; the smaller alpha retains more. Items differ by shifts alone: no resample disagrees."""
    found = selection.choose_alpha(averages([2.5, 1.25, 1.0], [1.0, 2.0, 4.0]), window=window, n_boot=50)
    assert found["gap"].tolist() == pytest.approx([1.5, 0.25, 0.0])
    assert found["retained"].tolist() == [4.0, 5.0, 7.0]
    assert found.loc[found["chosen"], "alpha"].item() == alpha
    assert found.loc[found["alpha"] == alpha, "share"].item() == 1.0
    assert (found["low"] == alpha).all() and (found["high"] == alpha).all()


def test_an_alpha_that_hurts_is_not_chosen_for_being_small():
    """The best retained score within the window, not the smallest alpha."""
    found = selection.choose_alpha(averages([1.0, 1.0, 1.0], [5.0, 2.0, 3.0]), window=0.1, n_boot=0)
    assert found.loc[found["chosen"], "alpha"].item() == 0.7
    assert found[["low", "high"]].isna().all().all()


def test_the_interval_of_alpha_holds_items_and_seeds():
    """Of two seeds, one is over the window: a resample of it alone (one of four) chooses ft."""
    items = averages([1.0, 1.2, 1.0], [9.0, 2.0, 4.0], seeds=(0, 1))
    own = (items["alpha"] == 0.7) & (items["group"] == "target") & (items["seed"] == 1)
    items.loc[own, "value"] += 0.4  # gaps 0.2 and 0.6, mean 0.4
    found = selection.choose_alpha(items, window=0.5, n_boot=2000).set_index("alpha")
    assert found.loc[0.7, "chosen"] and found.loc[1.0, "share"] == pytest.approx(0.25, abs=0.04)
    assert (found.loc[1.0, "low"], found.loc[1.0, "high"]) == (0.7, 1.0)


@pytest.mark.parametrize("change, match", [
    (lambda i: i[i["recipe"] == "ft"], "no run of wise_ft and of ft"),
    (lambda i: i.assign(lr=i["lr"].where(i["recipe"] == "ft", 2.0)), "one learning rate"),
    (lambda i: i[i["group"] == "target"], "no retained bpb_gold"), (lambda i: i[1:], "the same items"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(change, match):
    with pytest.raises(UserError, match=match):
        selection.choose_alpha(change(averages([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])), window=0.1)
