"""The mix: what the ratio means, what a shortfall does, how replay falls into steps."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest

from cfutils import models, replay
from cfutils.errors import UserError
from cfutils.replay import Sequence
from cfutils.tasks import Example


def sequences(n, supervised, *, start=0, first=1):
    """`n` sequences, no two alike, of which `supervised` tokens carry loss."""
    return [Sequence((*[9] * first, *[start + i] * supervised), first) for i in range(n)]


TARGET = sequences(10, 6)  # 60 supervised tokens


@pytest.mark.parametrize(
    "ratio, length, n",
    [
        # budget = r / (1 - r) * 60; a sequence is taken while total + length / 2 <= budget
        (0.25, 8, 3),  # budget 20: 0+4, 8+4, 16+4 <= 20 are taken: 24; 24+4 > 20 is not
        (0.25, 9, 2),  # budget 20: 0+4.5, 9+4.5 are taken: 18 (off by 2); 27 would be off by 7
        (0.25, 7, 3),  # budget 20: 21 is nearer (1) than 14 (6)
        (0.25, 41, 0),  # budget 20: nothing (off by 20) is nearer than 41 (off by 21)
        (0.5, 6, 10),  # budget 60: as much replay as target
        (0.75, 6, 30),  # budget 180: three times as much
        (0.0, 8, 0),
    ],
)
def test_ratio_by_hand(ratio, length, n):
    mixed = replay.mix(TARGET, sequences(40, length), ratio=ratio, seed=0)
    assert len(mixed.replay) == n
    assert (mixed.target_tokens, mixed.replay_tokens) == (60, n * length)
    assert mixed.ratio == n * length / (60 + n * length)
    assert mixed.shortfall == 0 and mixed.asked == ratio


def test_only_tokens_that_carry_loss_count():
    """Prompts of 50 tokens in target and pool change nothing."""
    target, pool = sequences(10, 6, first=50), sequences(9, 5, first=50)
    mixed = replay.mix(target, pool, ratio=0.25, seed=0)
    assert (mixed.target_tokens, mixed.replay_tokens) == (60, 20)


def test_a_shortfall_is_counted_and_never_filled_by_repeating():
    """Budget 60, pool 4 x 8 = 32: all four once, 28 lacking, ratio 32 / 92."""
    pool = sequences(4, 8)
    mixed = replay.mix(TARGET, pool, ratio=0.5, seed=0)
    assert Counter(mixed.replay) == Counter(pool)
    assert mixed.shortfall == 28
    assert mixed.ratio == 32 / 92


def test_an_empty_pool_is_a_shortfall():
    mixed = replay.mix(TARGET, [], ratio=0.5, seed=0)
    assert mixed.replay == () and mixed.shortfall == 60


def test_a_pool_that_suffices_exactly_has_no_shortfall():
    assert replay.mix(TARGET, sequences(10, 6), ratio=0.5, seed=0).shortfall == 0


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(UserError, match=r"ratio .*\[0, 1\)"):
        replay.mix(TARGET, [], ratio=ratio, seed=0)


def test_the_seed_decides_which_sequences_and_larger_ratios_contain_smaller_ones():
    pool = sequences(40, 6)
    one, two = (replay.mix(TARGET, pool, ratio=0.25, seed=s).replay for s in (0, 1))
    assert set(one) != set(two)
    assert one == replay.mix(TARGET, pool, ratio=0.25, seed=0).replay
    assert one == replay.mix(TARGET, pool, ratio=0.5, seed=0).replay[: len(one)]


def test_each_epoch_covers_everything_exactly_once_in_another_order():
    mixed = replay.mix(sequences(10, 6), sequences(7, 6, start=50), ratio=0.4, seed=3)
    steps = replay.schedule(mixed, batch_size=4, epochs=2, seed=3)
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
    assert steps == replay.schedule(mixed, batch_size=4, epochs=2, seed=3)
    assert steps != replay.schedule(mixed, batch_size=4, epochs=2, seed=4)


@pytest.mark.parametrize("n, counts", [(8, [2, 2, 2, 2]), (6, [2, 1, 1, 2]), (2, [0, 1, 1, 0])])
def test_replay_is_interleaved_evenly(n, counts):
    """4 steps, edges round(i n / 4), halves to even: 6 -> 0 2 3 4 6, 2 -> 0 0 1 2 2."""
    mixed = replay.Mix(tuple(sequences(8, 6)), tuple(sequences(n, 6, start=50)), 0.5, 0)
    steps = replay.schedule(mixed, batch_size=2, epochs=1, seed=0)
    found = [len(batch) for _, batch in steps]
    assert found == counts
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize("first", [0, -1, 4])
def test_a_sequence_needs_a_token_before_the_first_with_loss(first):
    with pytest.raises(UserError, match="first"):
        Sequence((1, 2, 3), first)


def test_supervised_tokens_of_a_sequence():
    assert Sequence((1, 2, 3), 1).supervised == 2
    assert Sequence((1, 2, 3), 3).supervised == 0


def test_response_and_end_token_carry_loss(tiny_base):
    tokenizer = models.load_tokenizer(tiny_base)
    example = Example("Question: 1 + 1?\nAnswer:", " 2 apples.", {})
    sequence = replay.from_example(tokenizer, example, chat_template=False)
    assert tokenizer.decode(sequence.ids[: sequence.first]) == example.prompt
    assert tokenizer.decode(sequence.ids[sequence.first : -1]) == example.response
    assert sequence.ids[-1] == tokenizer.eos_token_id


def test_a_chat_template_wraps_the_prompt_alone(tiny_base):
    tokenizer = models.load_tokenizer(tiny_base)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<reply>{% endif %}"
    )
    sequence = replay.from_example(tokenizer, Example("Hi", " Ho", {}), chat_template=True)
    assert tokenizer.decode(sequence.ids[: sequence.first]) == "<user>Hi<reply>"
    assert tokenizer.decode(sequence.ids[sequence.first : -1]) == " Ho"


def test_samples_carry_loss_where_they_were_drawn():
    """The start token or prompt does not; the end token does if the sample has one."""
    frame = pd.DataFrame({"prompt_ids": [[0], [4, 5]], "token_ids": [[7, 8, 0], [6]]})
    assert replay.from_samples(frame) == [Sequence((0, 7, 8, 0), 1), Sequence((4, 5, 6), 2)]


def test_text_stands_behind_the_start_token_and_is_cut(tiny_base):
    tokenizer = models.load_tokenizer(tiny_base)
    text = "The quick brown fox jumps"
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    short, long = (replay.from_text(tokenizer, [text], start=0, max_tokens=n)[0] for n in (3, 1000))
    assert short == Sequence((0, *whole[:3]), 1)
    assert long == Sequence((0, *whole), 1)


def test_whole_documents_are_closed_by_an_end_token_that_carries_loss(tiny_base):
    """Five tokens and the end: kept where it fits into max_tokens, cut away with the rest elsewhere."""
    tokenizer = models.load_tokenizer(tiny_base)
    text = "The quick brown fox jumps"
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    n = len(whole)

    def made(max_tokens):
        (found,) = replay.from_text(tokenizer, [text], start=7, max_tokens=max_tokens, end=9)
        return found

    assert made(n + 1) == made(1000) == Sequence((7, *whole, 9), 1)
    assert made(n) == Sequence((7, *whole), 1)
    assert made(n - 1) == Sequence((7, *whole[:-1]), 1)
    assert made(n + 1).supervised == n + 1
