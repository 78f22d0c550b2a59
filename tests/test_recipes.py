"""Plans: two runs that differ only in a number that their recipe does not use are one run."""

from __future__ import annotations

import pytest

from cfutils import recipes
from cfutils.errors import UserError
from cfutils.profiles import Profile
from cfutils.recipes import RECIPES, Plan


def make(**values):
    return Profile(**{"name": "x", "about": "x", "base": "org/model", **values})


def test_recipes_and_labels_stand_in_the_agreed_order():
    assert {r.name: r.label for r in RECIPES.values()} == {
        "ft": "Plain fine-tuning",
        "cfs": "Context-free NLL",
        "cf_kl": "Context-free KL",
        "contextual": "Contextual NLL",
        "replay_text": "Text replay",
        "pretraining": "Pretraining replay",
        "l2": "L2 to base",
        "lora": "LoRA",
        "wise_ft": "WiSE-FT",
    }
    names = ["ft", "cfs", "cf_kl", "contextual", "replay_text", "pretraining", "l2", "lora", "wise_ft"]
    assert list(RECIPES) == names


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_holds_what_its_recipe_uses_and_nothing_else(name):
    """temperature: replay that is sampled. ratio and lambda: replay of any kind."""
    p = recipes.plan(make(temperature=0.7, ratio=0.2), name, seed=3)
    replays = name in ("cfs", "cf_kl", "contextual", "replay_text", "pretraining")
    assert p.temperature == (0.7 if name in ("cfs", "cf_kl", "contextual") else None)
    assert p.ratio == (0.2 if replays else None)
    assert p.replay_weight == (pytest.approx(0.25) if replays else None)
    assert (p.recipe, p.seed, p.lr, p.alpha) == (name, 3, 2e-4, None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_does_not_use_a_setting_is_the_same_at_any_of_its_values(name):
    one, two = (recipes.plan(make(temperature=t), name, seed=0) for t in (0.5, 1.0))
    assert (one == two) == (name not in ("cfs", "cf_kl", "contextual"))
    one, two = (recipes.plan(make(ratio=r), name, seed=0) for r in (0.2, 0.5))
    assert (one == two) == (name in ("ft", "l2", "lora", "wise_ft"))


def test_natural_lambda():
    """r / (1 - r): 0.5 -> 1, 0.25 -> 1/3, 0.75 -> 3; a value of one's own stays."""
    for ratio, weight in ((0.5, 1), (0.25, 1 / 3), (0.75, 3)):
        found = recipes.plan(make(ratio=ratio), "cfs", seed=0).replay_weight
        assert found == pytest.approx(weight)
    assert recipes.plan(make(replay_weight=0.3), "cfs", seed=0).replay_weight == 0.3
    assert recipes.plan(make(), "cfs", seed=0, replay_weight=0.0).replay_weight == 0.0


def test_no_replay_is_plain_fine_tuning():
    p = make()
    for name in ("cfs", "cf_kl", "contextual", "replay_text", "pretraining"):
        assert recipes.plan(p, name, seed=1, ratio=0.0) == recipes.plan(p, "ft", seed=1)


def test_a_recipe_may_have_a_learning_rate_of_its_own():
    p = make(recipe_lr={"lora": 2e-3})
    assert recipes.plan(p, "lora", seed=0).lr == 2e-3
    assert recipes.plan(p, "ft", seed=0).lr == 2e-4
    assert recipes.plan(p, "lora", seed=0, lr=1e-5).lr == 1e-5


def test_wise_ft_is_a_run_for_each_alpha():
    p = make(alphas=[0.25, 0.75])
    found = recipes.plans(p, "wise_ft", seed=0)
    assert [(one.recipe, one.alpha) for one in found] == [("wise_ft", 0.25), ("wise_ft", 0.75)]
    assert recipes.plans(p, "ft", seed=0) == [recipes.plan(p, "ft", seed=0)]


def test_studies_have_no_doubles():
    """temperature: ft once for each seed; of the ablated recipes only those that sample vary."""
    p = make(
        seeds=[0, 1], ablation_seeds=[0, 1], ablation_recipes=["cfs", "replay_text"], temperatures=[0.7, 1.0],
        ratios=[0.0, 0.5], replay_weights=[0.3, 1.0], lrs=[1e-4, 2e-4],
    )  # fmt: skip
    count = {name: len(recipes.study(p, name)) for name in recipes.STUDIES}
    # an ft run for each of 2 seeds, and for each seed:
    assert count["temperature"] == 2 + 2 * (2 + 1)  # cfs at 2 temperatures, replay_text once
    assert count["ratio"] == 2 + 2 * 2  # at ratio 0 both are ft; at 0.5 one each
    assert count["weight"] == 2 + 2 * (2 + 2)
    assert count["learning_rate"] == 2 * 2
    assert count["methods"] == 2 * 2  # ft and cfs
    fewer = p.change(ablation_seeds=[1])
    assert {plan.seed for plan in recipes.study(fewer, "ratio")} == {1}
    assert len(recipes.study(fewer, "methods")) == count["methods"]
    assert count["base"] == 0  # the base alone, which is scored in every study
    for name in recipes.STUDIES:
        found = recipes.study(p, name)
        assert len(set(found)) == len(found)


def test_the_methods_study_keeps_the_profiles_order():
    p = make(recipes=["ft", "cfs", "lora", "wise_ft"], alphas=[0.5])
    assert [one.recipe for one in recipes.study(p, "methods")] == list(p.recipes)


@pytest.mark.parametrize("call", [
    lambda: recipes.get("cf"),
    lambda: recipes.plan(make(), "base", seed=0),
    lambda: recipes.study(make(), "seeds"),
])  # fmt: skip
def test_an_unknown_recipe_or_study_is_refused_with_the_list(call):
    with pytest.raises(UserError, match=r"(recipe|study) = .* (ft, cfs|learning_rate, methods)"):
        call()


def test_a_profile_with_an_unknown_recipe_cannot_be_made():
    """Not even by a change, so that no study ever has one."""
    for values in ({"recipes": ["ft", "cfx"]}, {"ablation_recipes": ["cfx"]}, {"estimated": ["cfx"]},
                   {"recipe_lr": {"cfx": 1.0}}):  # fmt: skip
        for call in (make, make().change):
            with pytest.raises(UserError, match=r"= 'cfx' is not allowed: one of 'ft', 'cfs', 'cf_kl'"):
                call(**values)


def test_changes_are_checked_as_a_profiles_values_are():
    with pytest.raises(UserError, match="ratio"):
        recipes.plan(make(), "cfs", seed=0, ratio=1.0)
    with pytest.raises(UserError, match="Did you mean ratio"):
        recipes.plan(make(), "cfs", seed=0, ratoi=0.5)


def test_the_label_names_what_is_set():
    one = Plan(recipe="cfs", seed=2, lr=1e-4, temperature=0.7, ratio=0.5, replay_weight=1.0)
    assert one.label == "cfs seed=2 T=0.7 ratio=0.5 λ=1 lr=0.0001"
    assert list(one.settings()) == [
        "recipe", "seed", "lr", "temperature", "ratio", "replay_weight", "alpha"
    ]  # fmt: skip
