"""Choices by hand: learning rates by validation NLL alone."""

from __future__ import annotations

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
