"""The declared claims: complete, about recipes that exist, and refused where their parts do not fit."""

from __future__ import annotations

import dataclasses

import pytest

from cfutils.analysis.claims import CLAIMS, IDS, KL, POSITION, WINDOWS, Claim, Measure
from cfutils.errors import UserError
from cfutils.recipes import RECIPES, STUDIES


def test_every_claim_is_declared_and_names_recipes_and_studies():
    assert [claim.id for claim in CLAIMS] == sorted(claim.id for claim in CLAIMS)
    assert {claim.id for claim in CLAIMS} == set(IDS)
    assert {name for claim in CLAIMS for name in (claim.treatment, *claim.rivals)} <= set(RECIPES)
    assert {claim.study for claim in CLAIMS} - {"estimates"} <= set(STUDIES)
    assert len({claim.statement for claim in CLAIMS}) == len(CLAIMS)


def test_a_claim_says_what_would_refute_it_and_what_matters():
    for claim in CLAIMS:
        assert claim.refuted_by and claim.measures[0].primary
        assert all(measure.delta > 0 and measure.unit for measure in claim.measures)
    assert all(window > 0 for window in WINDOWS.values()) and POSITION in WINDOWS


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": "C10"}, "id = 'C10'"),
        ({"rivals": ()}, "rivals"),
        ({"rivals": ("cfs",)}, "other than the treatment"),
        ({"test": "differs"}, "rivals"),
        ({"test": "differs", "rivals": ()}, "study"),
        ({"study": "ratio"}, "study"),
        ({"bound": 0.1}, "bound"),
        ({"measures": ()}, "measures"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(CLAIMS[0], **change)
    with pytest.raises(UserError, match="delta = 0"):
        Measure("acc", delta=0, unit="share")
    with pytest.raises(UserError, match="bound"):
        Claim(id="C9", statement="s", refuted_by="r", test="predicts", measures=(KL,))
