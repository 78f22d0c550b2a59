"""Steps of a profile whose base thinks: how it answers is in the keys of its scores, and of no other profile's."""

from __future__ import annotations

import pytest

from cfutils import profiles
from cfutils.data import skills
from cfutils.errors import UserError
from cfutils.pipeline.steps import Steps
from cfutils.pipeline.store import Store
from cfutils.profiles import load


@pytest.fixture
def thinks():
    return load("tiny-think", recipes=["ft", "pretraining"], seeds=[0])


def test_a_budget_wants_a_chat_template_and_makes_answers(thinks):
    assert load("tiny").answers is None
    assert thinks.answers == {"n": 2, "think_budget": 64, "answer_tokens": 12, "temperature": None}
    with pytest.raises(UserError, match=r"think_budget = 8 .*null without chat_template"):
        load("tiny", think_budget=8)


def test_scores_of_a_base_that_thinks_hold_how_it_answers(thinks):
    steps, plain = Steps(thinks, Store()), Steps(load("tiny"), Store())
    assert steps.scores(None, "retained").params["tasks"]["answers"] == thinks.answers
    assert "answers" not in plain.scores(None, "retained").params["tasks"]
    for group in ("target", "validation"):
        assert steps.scores(None, group).params["answers"] == thinks.answers
        assert "answers" not in plain.scores(None, group).params
    other = Steps(thinks.change(answers_per_item=8), Store())
    assert other.scores(None, "target").key != steps.scores(None, "target").key
    assert other.scores(None, "probe").key == steps.scores(None, "probe").key


def test_documents_are_those_of_its_own_world(thinks):
    steps = Steps(thinks, Store())
    (plan,) = [plan for plan in steps.plans("methods") if plan.recipe == "pretraining"]
    replay = steps.run(plan).params["replay"]
    assert replay["world"] == skills.world_digest("tiny-think") and replay["world_name"] == "tiny-think"
    made = steps.pretrain().params
    assert made["base"] == "tiny-think" and made["world"] == skills.world_digest("tiny-think")
    assert "base" not in Steps(profiles.load("tiny"), Store()).pretrain().params
