"""Plans: two runs that differ only in a number that their recipe does not use are one run."""

from __future__ import annotations

import dataclasses

import pytest

from cfutils import recipes
from cfutils.errors import UserError
from cfutils.method import Knob
from cfutils.profiles import Profile
from cfutils.recipes import RECIPES, Plan


def make(**values):
    return Profile(**{"name": "x", "about": "x", "base": "org/model", **values})


FIRST = ["ft", "cfs", "cf_kl", "contextual", "replay_text", "pretraining", "l2", "lora", "wise_ft"]
REPLAY = {name for name, row in RECIPES.items() if row.replay} | {"cf_kl_average"}
SAMPLED = REPLAY - {"replay_text", "pretraining", "replay_only_text"}


def test_the_first_recipes_keep_their_place_and_name():
    """Colours go by place; names are in keys' labels and in shipped results."""
    assert list(RECIPES)[: len(FIRST)] == FIRST
    assert len({r.label for r in RECIPES.values()}) == len(RECIPES)
    for name, row in RECIPES.items():
        assert row.name == name and row.about.endswith(".")
        assert row.of is None or row.of in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_holds_what_its_recipe_uses_and_nothing_else(name):
    """temperature: replay that is sampled. ratio and lambda: replay of any kind. strength: a knob of its own."""
    p = recipes.plan(make(temperature=0.7, ratio=0.2), name, seed=3)
    assert p.temperature == (0.7 if name in SAMPLED else None)
    assert p.ratio == (0.2 if name in REPLAY else None)
    assert p.replay_weight == (pytest.approx(0.25) if name in REPLAY else None)
    assert (p.recipe, p.seed, p.lr, p.alpha) == (name, 3, 2e-4, None)
    assert p.strength == RECIPES[name].knob.default


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_does_not_use_a_setting_is_the_same_at_any_of_its_values(name):
    one, two = (recipes.plan(make(temperature=t), name, seed=0) for t in (0.5, 1.0))
    assert (one == two) == (name not in SAMPLED)
    one, two = (recipes.plan(make(ratio=r), name, seed=0) for r in (0.2, 0.5))
    assert (one == two) == (name not in REPLAY)


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


@pytest.mark.parametrize("name", ["replay_only", "cf_kl_eaft", "cf_kl_average", "recover"])
def test_no_replay_leaves_other_recipes_without_a_meaning(name):
    with pytest.raises(UserError, match=f"ratio = 0.0 is not allowed: above 0 for recipe {name}"):
        recipes.plan(make(), name, seed=0, ratio=0.0)


def test_a_recipe_may_have_a_learning_rate_of_its_own():
    p = make(recipe_lr={"lora": 2e-3})
    for name in ("lora_mlp", "lora_decay", "lora_reduced"):  # that of LoRA unless they have their own
        assert recipes.plan(p, name, seed=0).lr == 2e-3
    assert recipes.plan(make(recipe_lr={"lora": 2e-3, "lora_mlp": 1e-3}), "lora_mlp", seed=0).lr == 1e-3
    assert recipes.plan(make(recipe_lr={"cf_kl": 1e-3}), "cf_kl_average", seed=0).lr == 1e-3
    assert recipes.plan(p, "lora", seed=0).lr == 2e-3
    assert recipes.plan(p, "ft", seed=0).lr == 2e-4
    assert recipes.plan(p, "lora", seed=0, lr=1e-5).lr == 1e-5


def test_a_profile_may_train_adapters_in_place_of_all_weights():
    """Every other setting of a run stays, and plain fine-tuning is the run of the recipe lora."""
    whole, low = make(strengths={"lora": 8}), make(strengths={"lora": 8}, train="lora")
    for name in ("ft", "cfs", "cf_kl", "flow"):
        one, two = (recipes.tuning(p, recipes.plan(p, name, seed=0)) for p in (whole, low))
        assert two == one | {"train": "lora", "lora_rank": 8}
    one, two = (recipes.tuning(p, recipes.plan(p, name, seed=0)) for p, name in ((low, "ft"), (whole, "lora")))
    assert one == two
    assert recipes.plan(make(train="lora", recipe_lr={"lora": 2e-3}), "wise_ft", seed=0).lr == 2e-3


@pytest.mark.parametrize("name", ["l2", "ewc", "lora", "lora_decay", "osf", "lora_reduced"])
def test_adapters_stand_for_no_other_choice_of_weights(name):
    with pytest.raises(UserError, match="train = 'lora' is not allowed: 'all' for recipe"):
        p = make(train="lora")
        recipes.tuning(p, recipes.plan(p, name, seed=0))


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
    assert count["learning_rate"] == 2  # of the one selection seed, at 2 rates
    assert count["methods"] == 2 * 2  # ft and cfs
    fewer = p.change(ablation_seeds=[1])
    assert {plan.seed for plan in recipes.study(fewer, "ratio")} == {1}
    assert len(recipes.study(fewer, "methods")) == count["methods"]
    assert count["frontier"] == 2 * 2 * 3  # both recipes at 3 values of their knobs
    assert count["selection"] == 2 * 3 * 3  # at 3 learning rates each, one seed
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
        "recipe", "seed", "lr", "temperature", "ratio", "replay_weight", "alpha", "strength"
    ]  # fmt: skip


# ---- knobs, grids and what comes after


def test_a_strength_of_the_profile_takes_the_place_of_the_rows_default():
    p = make(strengths={"l2": 0.5, "lora": 8})
    assert recipes.plan(p, "l2", seed=0).strength == 0.5
    assert recipes.tuning(p, recipes.plan(p, "l2", seed=0))["l2_weight"] == 0.5
    for name, rank in (("lora", 8), ("lora_decay", 8), ("lora_mlp", 64)):
        assert recipes.tuning(p, recipes.plan(p, name, seed=0))["lora_rank"] == rank, name
    assert recipes.tuning(p, recipes.plan(p, "lora_decay", seed=0))["weight_decay"] == 0.3
    assert recipes.tuning(p, recipes.plan(p, "lora", seed=0))["weight_decay"] == 0.0
    with pytest.raises(UserError, match=r"strengths\['lora'\] = 0.0 is not allowed: a rank of 1"):
        recipes.plan(make(strengths={"lora": 0}), "lora", seed=0)


def test_settings_of_later_recipes_stand_only_where_they_are_used():
    """So that the keys of runs that were made before them stay."""
    first = {
        "seed", "lr", "ratio", "replay_weight", *recipes.TUNING, "replay_loss", "train", "l2_weight", "lora_rank"
    }  # fmt: skip
    p = make(epochs=2)
    more = {
        name: set(recipes.tuning(p, recipes.plan(p, name, seed=0))) - first
        for name, row in RECIPES.items() if row.after in (None, "recover")
    }  # fmt: skip
    weighted = {"weighting", "weighting_strength"}
    assert {name: found for name, found in more.items() if found} == {
        "cf_kl_fresh": {"fresh"}, "kl_target": {"target_kl"}, "ewc": {"ewc_weight"}, "osf": {"osf_frozen"},
        **dict.fromkeys(("flow", "stm", "talr", "eaft", "dft", "cf_kl_eaft"), weighted),
        "asft": {*weighted, "target_kl"},
        "recover": {"target"}, "replay_only": {"target"}, "replay_only_text": {"target"},
    }  # fmt: skip
    one = make(epochs=1)
    assert recipes.tuning(one, recipes.plan(one, "cf_kl_fresh", seed=0)) == recipes.tuning(
        one, recipes.plan(one, "cf_kl", seed=0)
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_grid_of_the_same_size(name):
    """3 learning rates x 3 values of its knob, which for ft and controls is the rate: 9 different rates."""
    p = make(recipes=[name])
    chosen, swept = recipes.study(p, "selection"), recipes.study(p, "frontier")
    assert (len(chosen), len(swept)) == (9, 3)
    assert {one.seed for one in chosen} == {100} and {one.seed for one in swept} == {0}
    knob = RECIPES[name].knob.name
    if knob == "lr":
        assert len({one.lr for one in chosen}) == 9
    else:
        assert {one.lr for one in chosen} == {1e-4, 2e-4, 4e-4} and {one.lr for one in swept} == {2e-4}
        column = knob if knob in ("replay_weight", "alpha") else "strength"
        assert len({getattr(one, column) for one in swept}) == 3


def test_a_frontier_by_hand():
    """lambda = 0.2/0.8 = 1/4 times 1/4, 1, 4; alpha = 1/2 times 0.6, 1, 1.4; rates 0.1, 0.3, 1 times 2e-4."""
    p = make(ratio=0.2, recipes=["ft", "cfs", "wise_ft", "l2", "lora"], strengths={"lora": 2})
    found = {}
    for one in recipes.study(p, "frontier"):
        found.setdefault(one.recipe, []).append(one)
    assert [one.lr for one in found["ft"]] == pytest.approx([2e-5, 6e-5, 2e-4])
    assert [one.replay_weight for one in found["cfs"]] == [0.0625, 0.25, 1.0]
    assert [one.alpha for one in found["wise_ft"]] == [0.3, 0.5, 0.7]
    assert [one.strength for one in found["l2"]] == [1e-3, 1e-2, 1e-1]
    assert [one.strength for one in found["lora"]] == [1, 2, 8]  # no rank below 1


def test_chosen_rates_move_the_frontier_and_nothing_else():
    p = make(recipes=["ft", "wise_ft", "cfs"])
    moved = recipes.with_rates(p, {"ft": 1e-3, "wise_ft": 4e-4})
    rates = {one.recipe: one.lr for one in recipes.study(moved, "frontier")}  # the last of each: factor 1
    assert rates == {"ft": 1e-3, "wise_ft": 4e-4, "cfs": 2e-4}
    assert [one.replay_weight for one in recipes.study(moved, "frontier") if one.recipe == "cfs"] == [
        0.25, 1.0, 4.0
    ]  # fmt: skip


def test_what_an_average_and_a_recovery_begin_with():
    """Of the same seed and rate; an average of cf_kl has cf_kl's samples, ratio and weight."""
    p = make(strengths={"lora": 8})
    for name, first in (("wise_ft", "ft"), ("recover", "ft"), ("cf_kl_average", "cf_kl"), ("lora_reduced", "lora")):
        one = recipes.plan(p, name, seed=4, lr=3e-4)
        assert recipes.before(p, one) == recipes.plan(p, first, seed=4, lr=3e-4), name
    recovery = recipes.tuning(p, recipes.plan(p, "recover", seed=0, lr=1e-3))
    assert recovery["lr"] == pytest.approx(3e-4) and recovery["replay_loss"] == "kl" and not recovery["target"]


def test_a_low_rate_is_plain_fine_tuning_at_a_share_of_the_rate():
    low, plain = (recipes.plan(make(), name, seed=0, lr=lr) for name, lr in (("low_lr", 1e-3), ("ft", 2.5e-4)))
    assert recipes.tuning(make(), low) == recipes.tuning(make(), plain)


def test_a_row_can_be_added_and_used_like_any_other(monkeypatch):
    monkeypatch.setattr(recipes, "RECIPES", dict(RECIPES))
    monkeypatch.setattr("cfutils.fields.RECIPES", recipes.RECIPES)
    row = dataclasses.replace(RECIPES["cf_kl"], name="mine", label="Mine", weighting="flow")
    recipes.register(row)
    with pytest.raises(UserError, match="name = 'mine' is not allowed: a name that no recipe has"):
        recipes.register(row)
    p = make(recipes=["ft", "mine"], recipe_lr={"mine": 1e-3}, strengths={"flow": 2.0})
    found = recipes.tuning(p, recipes.study(p, "methods")[1])
    assert (found["lr"], found["weighting"], found["weighting_strength"]) == (1e-3, "flow", 2.0)


@pytest.mark.parametrize("values, wanted", [
    ({"name": "a b"}, "name = 'a b'"), ({"replay": ("web",)}, r"replay = \['web'\]"),
    ({"weighting": "x"}, "weighting = 'x'"), ({"train": "x"}, "train = 'x'"), ({"after": "average"}, "of = None"),
    ({"replay_loss": "kl"}, r"replay = \(\)"), ({"target": False}, r"replay = \(\)"),
])  # fmt: skip
def test_a_row_whose_parts_do_not_fit_is_refused(values, wanted):
    with pytest.raises(UserError, match=wanted):
        dataclasses.replace(RECIPES["ft"], **values)


def test_a_knob_has_a_default_or_is_the_runs_own():
    with pytest.raises(UserError, match="default = None"):
        Knob(name="l2_weight", label="x", factors=(1.0,))
    with pytest.raises(UserError, match="default = 1"):
        Knob(name="lr", label="x", default=1.0, factors=(1.0,))
    with pytest.raises(UserError, match="factors = "):
        Knob(name="lr", label="x", factors=(1.0, 1.0))
