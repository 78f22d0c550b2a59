"""Every recipe from its row to its scores on a random base, grids, and a row added from outside the package."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from cfutils import recipes
from cfutils.analysis import selection
from cfutils.data import benchmarks, prose
from cfutils.errors import UserError
from cfutils.lab import Lab
from cfutils.models import tokenizers
from cfutils.pipeline.steps import Steps
from cfutils.pipeline.store import Store
from cfutils.recipes import RECIPES
from cfutils.studies import decided, planned

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A chat template that ends every turn with the token that ends a document, as SmolLM2's does."""


@pytest.fixture(scope="module")
def chat_base(tiny_base, tmp_path_factory):
    """The random base with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny_chat"
    shutil.copytree(tiny_base, folder)
    tokenizer = tokenizers.load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def profile(tiny_profile, chat_base):
    names = tuple(name for name in RECIPES if name != "pretraining")  # which is for the shipped base alone
    return tiny_profile.change(base=str(chat_base), recipes=names, epochs=2, max_new_tokens=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_choices):
    """Prose and a retained task held in memory, and a store for the whole module."""
    texts = tuple(f"A story of the {i} foxes and the sea." for i in range(60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "documents", lambda kind: texts)
        patch.setattr(benchmarks, "lm_eval_tasks", lambda name, **_: {name: tiny_choices()})
        patch.setattr(benchmarks, "check", lambda *_, **__: None)
        patch.setenv("CFUTILS_RUNS", str(tmp_path_factory.mktemp("world") / "runs"))
        yield


@pytest.fixture(scope="module")
def study(world, profile):
    return Lab(profile).study("methods")


def test_every_recipe_is_scored_and_is_another_model(study, profile):
    scores = study.scores
    assert list(dict.fromkeys(scores["recipe"])) == ["base", *profile.recipes]
    assert np.isfinite(scores["value"]).all()
    nll = scores.query("group == 'target' and metric == 'nll'").set_index("recipe")["value"]
    # stm's limit of 300 leaves all tokens here, and all rewritten responses of a random base fall back: both are ft
    same = {"ft", "self_distilled"}
    assert nll[sorted(same)].nunique() == 1
    assert nll.drop("self_distilled").round(7).nunique() >= len(nll) - 3
    kl = scores.query("task == 'context_free' and metric == 'kl'").set_index("recipe")["value"]
    assert (kl.drop("base") > 0).all()
    runs = scores.drop_duplicates("run").set_index("recipe")
    assert runs["strength"].dropna().to_dict() == {
        name: {"lora": 4, "lora_mlp": 4, "stm": 300}.get(name, RECIPES[name].knob.default)
        for name in profile.recipes if RECIPES[name].knob.default is not None
    }  # fmt: skip


def test_runs_that_train_have_a_log(study, profile):
    trained = [name for name in profile.recipes if RECIPES[name].after in (None, "recover")]
    assert list(dict.fromkeys(study.log()["recipe"])) == trained
    mixes = study.mixes().set_index("recipe")
    assert mixes.loc["cfs", "replay_tokens"] == mixes.loc["replay_only", "replay_tokens"]
    assert mixes.loc["replay_only", "target_tokens"] == 0


def test_replay_has_equal_numbers_of_tokens_by_recipe(study):
    """Of different sources up to a sequence: the budget is that of the target."""
    mixes = study.mixes().set_index("recipe")
    replaying = mixes[(mixes["replay_tokens"] > 0) & (mixes["shortfall"] == 0)]
    assert len(replaying) >= 8
    assert replaying["replay_tokens"].max() - replaying["replay_tokens"].min() <= 16  # the longest sample


def test_rewritten_responses_are_counted(study):
    lab = study.lab
    plan = next(p for p in study.plans if p.recipe == "self_distilled")
    assert lab.ensure(lab.steps.log(plan)).notes["rewritten"] == 0


def test_template_prefix_samples_begin_behind_the_header_of_a_users_turn(study, profile):
    lab = Lab(profile)
    frame = lab.samples("template_prefix")
    tokenizer = tokenizers.load_tokenizer(lab.ensure(lab.steps.base).model_folder)
    header = tokenizer("<user>", add_special_tokens=False)["input_ids"]
    assert [list(ids) for ids in frame["prompt_ids"]] == [header] * 10
    lengths = frame["token_ids"].map(len)
    assert (lengths <= 16).all() and (frame["logprobs"].map(len) == lengths).all()


def test_a_base_without_a_template_has_no_header(world, tiny_profile):
    with pytest.raises(UserError, match=r"no chat template.*leave recipes with template_prefix samples out"):
        Lab(tiny_profile, recipes=["ft", "template_prefix"]).study("methods")


def test_recovery_is_taught_on_samples_of_the_tuned_model(study):
    steps = study.lab.steps
    plan = next(p for p in study.plans if p.recipe == "recover")
    step = steps.run(plan)
    ft = steps.run(recipes.before(steps.profile, plan))
    assert step.needs["tuned"].key == ft.key == steps.run(recipes.plan(steps.profile, "ft", seed=0)).key
    samples = step.needs["samples"]
    assert samples.needs["model"].key == ft.key and samples.params["purpose"] == "recovery"
    drawn, others = (
        {tuple(ids) for ids in study.lab.ensure(s).table("samples")["token_ids"]}
        for s in (samples, steps.samples("context_free"))
    )
    assert drawn != others


def test_fresh_samples_are_as_many_as_epochs_need(study, profile):
    steps = study.lab.steps
    plans = {p.recipe: p for p in study.plans}
    n = {name: steps.run(plans[name]).needs["samples"].params["n"] for name in ("cf_kl", "cf_kl_fresh")}
    assert n == {"cf_kl": profile.n_samples, "cf_kl_fresh": 2 * profile.n_samples}
    one = Steps(profile.change(epochs=1), Store())  # in one epoch both are the same run
    keys = [one.run(recipes.plan(one.profile, name, seed=0)).key for name in ("cf_kl", "cf_kl_fresh")]
    assert keys[0] == keys[1]


# ---- grids


@pytest.fixture(scope="module")
def small(profile):
    return profile.change(recipes=["ft", "cfs", "wise_ft"], lr_factors=[0.5, 4.0], seeds=[0, 1], epochs=1)


def test_before_the_selection_the_frontier_is_planned_at_the_profiles_rates(world, small):
    assert not decided(small, Store(), "frontier")
    steps, plans = planned(small, Store(), "frontier")
    assert {p.lr for p in plans if p.recipe == "cfs"} == {small.lr}
    kinds = Counter(step.kind for step in steps)
    # the base and (2 rates x 3 values) of 3 recipes: ft's rates are 6, of which wise_ft averages 2
    assert kinds["validation"] == 1 + 3 * 6 and kinds["target"] == 1 + 2 * 3 * 3
    assert {s.params["n_validation"] for s in steps if s.kind == "validation"} == {3}


def test_the_frontier_is_at_the_rates_that_validation_chose(world, small):
    lab = Lab(small)
    found = lab.study("selection")
    assert set(found.scores["group"]) == {"validation"}
    validation = set(found.items["item"])
    assert len(validation) == 3 and not validation & set(lab.heldout()["id"])
    choice = lab.choice().set_index("recipe")
    pd.testing.assert_frame_equal(choice, selection.choose_lr(found.items).set_index("recipe"))
    assert choice.loc["cfs", "lr"] == 4e-3 and set(choice["points"]) == {6}  # of two rates the one that learns
    frontier = lab.study("frontier")
    for name, own in frontier.scores.query("recipe != 'base'").groupby("recipe"):
        rates = set(own["lr"])
        expected = choice.loc[name, "lr"]
        assert rates == ({0.1 * expected, 0.3 * expected, expected} if name == "ft" else {expected})
    assert set(frontier.scores["group"]) == {"target", "retained", "probe"}
    assert decided(small, Store(), "frontier")
    steps, plans = planned(small, Store(), "frontier")  # as a dry run sees it afterwards
    assert plans == frontier.plans and all(Store().find(step) for step in steps)


def test_validation_items_are_neither_trained_on_nor_scored(world, small):
    """They follow the train items in the order of the split, so that more train items would take them."""
    from cfutils.pipeline.builders.inputs import Inputs
    from cfutils.pipeline.session import Session

    lab = Lab(small)
    step = lab.steps.scores(None, "validation")
    base = lab.ensure(lab.steps.base).model_folder
    inputs = Inputs(base, Session(small.execution), {**step.params, **step.local})
    train = inputs.split()[0]
    both = inputs.split(n_validation=small.n_validation)[0]
    assert both[: small.n_train] == train and len(both) == small.n_train + small.n_validation
    scored = set(lab.study("selection").items["item"])
    assert scored == {e.id for e in both[small.n_train :]} and not scored & {e.id for e in train}


# ---- from outside


def test_a_method_of_ones_own_is_a_row(world, tiny_profile):
    """Added by a program that uses the package: planned, tuned, scored, chosen for and drawn like any other."""
    from cfutils.analysis.plots.style import colour, label

    recipes.register(
        dataclasses.replace(
            RECIPES["cf_kl"], name="mine", label="My method", about="KL, STM and EWC's cousin.", weighting="stm",
            train="lora",
        )
    )  # fmt: skip
    try:
        lab = Lab(tiny_profile, recipes=["ft", "mine"], recipe_lr={"lora": 5e-3})
        study = lab.study("methods")
        assert list(dict.fromkeys(study.scores["recipe"])) == ["base", "ft", "mine"]
        assert set(study.log().query("recipe == 'mine'")["peak_lr"]) == {5e-3}
        assert label("mine") == "My method" and colour("mine") == "#444444"
        assert len(recipes.study(lab.profile, "frontier")) == 6
    finally:
        del recipes.RECIPES["mine"]
    with pytest.raises(UserError, match=r"recipes\[1\] = 'mine' is not allowed"):
        Lab(tiny_profile, recipes=["ft", "mine"])
