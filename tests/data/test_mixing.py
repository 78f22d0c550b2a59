"""The mix: what the ratio means, what a shortfall does, how replay is spread over the steps."""

from __future__ import annotations

from collections import Counter

import pytest

from cfutils.data import mixing
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError


def alike(n, supervised, *, start=0, first=1):
    """Return `n` different sequences of one length, of which `supervised` tokens carry loss."""
    return [Sequence((*[9] * first, *[start + i] * supervised), first) for i in range(n)]


TARGET = alike(10, 6)  # 60 supervised tokens


@pytest.mark.parametrize(
    "ratio, length, n",
    [
        # budget = r / (1 - r) * 60; a sequence is taken while total + length / 2 <= budget
        (0.25, 8, 3),  # budget 20: 0+4, 8+4, 16+4 <= 20 are taken: 24; 24+4 > 20 is not
        (0.25, 9, 2),  # budget 20: 0+4.5, 9+4.5 are taken: 18 (off by 2); 27 would be off by 7
        (0.25, 7, 3),  # budget 20: 21 is nearer (1) than 14 (6)
        (0.25, 41, 1),  # budget 20: nothing (off by 20) would be nearer than 41, but a mix has replay
        (0.5, 6, 10),  # budget 60: as much replay as target
        (0.75, 6, 30),  # budget 180: three times as much
        (0.0, 8, 0),
    ],
)
def test_ratio_by_hand(ratio, length, n):
    mixed = mixing.mix(TARGET, alike(40, length), ratio=ratio, seed=0)
    assert len(mixed.replay) == n
    assert (mixed.target_tokens, mixed.replay_tokens) == (60, n * length)
    assert mixed.ratio == n * length / (60 + n * length)
    assert mixed.shortfall == 0 and mixed.requested == ratio


def test_only_tokens_that_carry_loss_count():
    """Prompts of 50 tokens in target and pool change nothing."""
    target, pool = alike(10, 6, first=50), alike(9, 5, first=50)
    mixed = mixing.mix(target, pool, ratio=0.25, seed=0)
    assert (mixed.target_tokens, mixed.replay_tokens) == (60, 20)


def test_a_shortfall_is_counted_and_never_filled_by_repeating():
    """Budget 60, pool 4 x 8 = 32: all four once, 28 lacking, ratio 32 / 92."""
    pool = alike(4, 8)
    mixed = mixing.mix(TARGET, pool, ratio=0.5, seed=0)
    assert Counter(mixed.replay) == Counter(pool)
    assert mixed.shortfall == 28
    assert mixed.ratio == 32 / 92


def test_an_empty_pool_is_a_shortfall():
    mixed = mixing.mix(TARGET, [], ratio=0.5, seed=0)
    assert mixed.replay == () and mixed.shortfall == 60


def test_a_pool_that_suffices_exactly_has_no_shortfall():
    assert mixing.mix(TARGET, alike(10, 6), ratio=0.5, seed=0).shortfall == 0


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(UserError, match=r"ratio .*\[0, 1\)"):
        mixing.mix(TARGET, [], ratio=ratio, seed=0)


def test_the_seed_decides_which_sequences_and_larger_ratios_contain_smaller_ones():
    pool = alike(40, 6)
    one, two = (mixing.mix(TARGET, pool, ratio=0.25, seed=s).replay for s in (0, 1))
    assert set(one) != set(two)
    assert one == mixing.mix(TARGET, pool, ratio=0.25, seed=0).replay
    assert one == mixing.mix(TARGET, pool, ratio=0.5, seed=0).replay[: len(one)]


def test_each_epoch_covers_everything_exactly_once_in_another_order():
    mixed = mixing.mix(alike(10, 6), alike(7, 6, start=50), ratio=0.4, seed=3)
    steps = mixing.schedule(mixed, batch_size=4, epochs=2, seed=3)
    assert len(steps) == 2 * 3  # ceil(10 / 4) an epoch
    assert [len(targets) for targets, _ in steps] == [4, 4, 2] * 2
    orders = []
    for epoch in (steps[:3], steps[3:]):
        targets = [s for batch, _ in epoch for s in batch]
        replays = [s for _, batch in epoch for s in batch]
        assert Counter(targets) == Counter(mixed.target)
        assert Counter(replays) == Counter(mixed.replay)
        orders.append(targets)
    assert orders[0] != orders[1]
    assert steps == mixing.schedule(mixed, batch_size=4, epochs=2, seed=3)
    assert steps != mixing.schedule(mixed, batch_size=4, epochs=2, seed=4)


@pytest.mark.parametrize("n, counts", [(8, [2, 2, 2, 2]), (6, [2, 1, 1, 2]), (2, [0, 1, 1, 0])])
def test_replay_is_interleaved_evenly(n, counts):
    """4 steps, edges round(i n / 4), halves to even: 6 -> 0 2 3 4 6, 2 -> 0 0 1 2 2."""
    mixed = mixing.Mix(tuple(alike(8, 6)), tuple(alike(n, 6, start=50)), 0.5, 0)
    steps = mixing.schedule(mixed, batch_size=2, epochs=1, seed=0)
    found = [len(batch) for _, batch in steps]
    assert found == counts
    assert max(found) - min(found) <= 1


# ---- replay of its own for each epoch, and pools of several sources


def test_fresh_replay_is_seen_once():
    """The budget is that of all epochs: 12 sequences of 6 tokens for 3 epochs of 24 target tokens at ratio 1/2."""
    mixed = mixing.mix(alike(4, 6), alike(40, 6, start=50), ratio=0.5, seed=3, fresh_epochs=3)
    assert len(mixed.replay) == 12 and mixed.replay_tokens == 24 and mixed.ratio == 0.5
    steps = mixing.schedule(mixed, batch_size=2, epochs=3, seed=3)
    seen = [s for _, replays in steps for s in replays]
    assert len(seen) == 12 and set(seen) == set(mixed.replay)
    assert [len(replays) for _, replays in steps] == [2] * 6
    short = mixing.mix(alike(4, 6), alike(10, 6, start=50), ratio=0.5, seed=3, fresh_epochs=3)
    assert short.shortfall == 72 - 60


def test_fresh_replay_of_one_epoch_is_that_of_any_recipe():
    one, other = (
        mixing.mix(TARGET, alike(40, 6, start=50), ratio=0.4, seed=3, **more) for more in ({}, {"fresh_epochs": 1})
    )
    assert one == other


def test_pools_of_two_sources_have_equal_numbers_of_tokens():
    """The smaller has 4 x 10 = 40 tokens: 7 sequences of 6 tokens of the other pass that with 42."""
    long, short = alike(4, 10), alike(30, 6, start=50)
    found = mixing.even([short, long])
    assert found == [*short[:7], *long]
    assert mixing.even([long]) == long
