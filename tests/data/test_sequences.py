"""Which tokens of a sequence carry loss: of target items, samples, and real text."""

from __future__ import annotations

import pandas as pd
import pytest

from cfutils.data import sequences
from cfutils.data.example import Example
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.models import tokenizers


@pytest.mark.parametrize("first", [0, -1, 4])
def test_a_sequence_needs_a_token_before_the_first_with_loss(first):
    with pytest.raises(UserError, match="first"):
        Sequence((1, 2, 3), first)


def test_supervised_tokens_of_a_sequence():
    assert Sequence((1, 2, 3), 1).supervised == 2
    assert Sequence((1, 2, 3), 3).supervised == 0


def test_response_and_end_token_carry_loss(tiny_base):
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    example = Example("Question: 1 + 1?\nAnswer:", " 2 apples.", {})
    sequence = sequences.from_example(tokenizer, example, chat_template=False)
    assert tokenizer.decode(sequence.ids[: sequence.first]) == example.prompt
    assert tokenizer.decode(sequence.ids[sequence.first : -1]) == example.response
    assert sequence.ids[-1] == tokenizer.eos_token_id


def test_a_chat_template_wraps_the_prompt_alone(tiny_base):
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<reply>{% endif %}"
    )
    sequence = sequences.from_example(tokenizer, Example("Hi", " Ho", {}), chat_template=True)
    assert tokenizer.decode(sequence.ids[: sequence.first]) == "<user>Hi<reply>"
    assert tokenizer.decode(sequence.ids[sequence.first : -1]) == " Ho"


def test_samples_carry_loss_where_they_were_drawn():
    """The start token or prompt does not; the end token does if the sample has one."""
    frame = pd.DataFrame({"prompt_ids": [[0], [4, 5]], "token_ids": [[7, 8, 0], [6]]})
    assert sequences.from_samples(frame) == [Sequence((0, 7, 8, 0), 1), Sequence((4, 5, 6), 2)]


def test_text_stands_behind_the_start_token_and_is_cut(tiny_base):
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    text = "The quick brown fox jumps"
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    short, long = (sequences.from_text(tokenizer, [text], start=0, max_tokens=n)[0] for n in (3, 1000))
    assert short == Sequence((0, *whole[:3]), 1)
    assert long == Sequence((0, *whole), 1)


def test_whole_documents_are_closed_by_an_end_token_that_carries_loss(tiny_base):
    """Five tokens and the end: kept where it fits into max_tokens, cut away with the rest elsewhere."""
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    text = "The quick brown fox jumps"
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    n = len(whole)

    def made(max_tokens):
        (found,) = sequences.from_text(tokenizer, [text], start=7, max_tokens=max_tokens, end=9)
        return found

    assert made(n + 1) == made(1000) == Sequence((7, *whole, 9), 1)
    assert made(n) == Sequence((7, *whole), 1)
    assert made(n - 1) == Sequence((7, *whole[:-1]), 1)
    assert made(n + 1).supervised == n + 1
