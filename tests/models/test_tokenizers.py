"""The start token has one rule; documents end by EOS or by the start of the next one."""

from __future__ import annotations

import pytest

from cfutils.errors import UserError
from cfutils.models import tokenizers


@pytest.fixture
def tokenizer(tiny_base):
    return tokenizers.load_tokenizer(tiny_base)


def test_the_start_token_is_the_explicit_one_then_bos_then_eos(tokenizer):
    eos, a, b = (tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "a", "b"))
    assert tokenizer.bos_token is None
    assert tokenizers.start_token(tokenizer, None) == eos
    tokenizer.bos_token = "b"
    assert tokenizers.start_token(tokenizer, None) == b
    assert tokenizers.start_token(tokenizer, "a") == a
    tokenizer.eos_token = None
    assert tokenizers.start_token(tokenizer, None) == b


def test_no_start_token_at_all_is_refused_with_the_way_out(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="set start_token in the profile"):
        tokenizers.start_token(tokenizer, None)


@pytest.mark.parametrize("text", ["<|nothing|>", "no one token", ""])
def test_a_start_token_outside_the_vocabulary_is_refused(tokenizer, text):
    with pytest.raises(
        UserError, match=r"start_token = .*special tokens are \['<\|endoftext\|>'\]"
    ):
        tokenizers.start_token(tokenizer, text)


def test_a_start_token_that_falls_to_unk_is_refused(tokenizer):
    tokenizer.unk_token = "!"
    unk = tokenizer.convert_tokens_to_ids("!")
    with pytest.raises(UserError, match="start_token"):
        tokenizers.start_token(tokenizer, "<|nothing|>")
    assert tokenizers.start_token(tokenizer, "!") == unk


def test_end_tokens_are_eos_and_the_start_of_the_next_document(tokenizer):
    eos = tokenizer.eos_token_id
    assert tokenizers.end_tokens(tokenizer, eos) == (eos,)
    assert tokenizers.end_tokens(tokenizer, 7) == tuple(sorted((eos, 7)))
    tokenizer.eos_token = None
    assert tokenizers.end_tokens(tokenizer, 7) == (7,)
