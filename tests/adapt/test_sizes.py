"""How large a study fits into a time, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cfutils.adapt import sizes
from cfutils.adapt.sizes import Facts
from cfutils.errors import UserError

FACTS = Facts(parameters=1_000_000, speed=1000.0, n_train=400, n_heldout=120, tokens=20.0, supervised=10.0, tasks=4,
              task_tokens=90.0, sample_tokens=64.0)  # fmt: skip


def test_all_that_fits_is_taken():
    found = sizes.fit(FACTS, budget=1e6)
    assert (found.n_validation, found.n_train, found.n_heldout) == (64, 336, 120)
    assert (found.epochs, found.limit, found.batch_size) == (3, 200, 8)
    # at ratio 0.6 replay has 1.5 times the 3,360 tokens that carry loss: 79 samples of 64, and a fifth more
    assert found.n_samples == round(1.5 * 3360 / 64 * 1.2) == 94


def test_the_time_of_each_part():
    """3 rates and 6 runs over 336 * 20 * 3 tokens; replay of two recipes at 3/7 and 3/2 of the loss's tokens."""
    found = sizes.fit(FACTS, budget=1e6)
    parts = found.seconds(FACTS)
    target, replay = 336 * 20 * 3, 2 * (3 / 7 + 1.5) * 336 * 10 * 3
    assert parts["tuning"] == pytest.approx((9 * target + replay) * 3 / 1000)
    assert parts["samples"] == pytest.approx(94 * 64 * 2 / 1000)
    assert parts["scoring"] == pytest.approx((10 * (200 * 4 * 90 + 120 * 20 + 4 * 32 * 64) + 3 * 64 * 20) / 1000)


def test_scored_items_go_first_then_epochs_then_train_items():
    whole = sum(sizes.fit(FACTS, budget=1e6).seconds(FACTS).values())
    fewer = sizes.fit(FACTS, budget=0.9 * whole)
    assert fewer.limit < 200 and (fewer.epochs, fewer.n_train) == (3, 336)
    least = sizes.fit(FACTS, budget=0.37 * whole)
    assert least.limit == 50 and least.epochs < 3
    large = replace(FACTS, n_train=40_000)
    found = sizes.fit(large, budget=900)
    assert (found.limit, found.epochs) == (50, 1) and found.n_train < 3000
    for facts, budget in ((FACTS, 0.9 * whole), (FACTS, 0.37 * whole), (large, 900)):
        assert sum(sizes.fit(facts, budget=budget).seconds(facts).values()) <= budget


def test_a_budget_that_is_too_small_says_what_is_needed():
    with pytest.raises(UserError, match=r"budget = 0m is too small for 64 items .* about \d+m are needed"):
        sizes.fit(FACTS, budget=10)


@pytest.mark.parametrize("n_train, n_heldout", [(13, 10), (100, 3), (0, 0)])
def test_too_few_items_are_refused(n_train, n_heldout):
    with pytest.raises(UserError, match=rf"{n_heldout} held out; at least 12, 2 and 4 are needed"):
        sizes.fit(replace(FACTS, n_train=n_train, n_heldout=n_heldout), budget=1e6)


def test_a_dozen_and_a_half_of_items_have_small_batches_and_more_epochs():
    found = sizes.fit(replace(FACTS, n_train=18, n_heldout=6), budget=1e6)
    assert found.epochs == 10  # 150 items: at 2 in a batch 75 steps, at 4 below 50
    assert (found.n_validation, found.n_train, found.n_heldout, found.batch_size) == (3, 15, 6, 2)


@pytest.mark.parametrize("parameters, rate", [(1.5e6, 4e-3), (135e6, 4e-4), (8e9, 5e-5)])
def test_the_largest_rate_falls_with_size(parameters, rate):
    assert sizes.top_rate(parameters) == pytest.approx(rate, rel=0.02)
    assert sizes.top_rate(parameters, lora=True) == pytest.approx(4 * rate, rel=0.02)
