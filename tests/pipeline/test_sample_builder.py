"""Samples that go on behind the token that ends a user's turn, drawn by an engine with a script."""

from __future__ import annotations

import functools

import pandas as pd
import pytest

from cfutils.models import tokenizers
from cfutils.models.generation import sampling
from cfutils.models.generation.types import Completion
from cfutils.pipeline.builders.samples import _two_turns

END = 0
TURNS = {(9,): [[5, END], [5, 6, 7, 8], [END], [7, END]]}
"""What is written behind the header 9, sample by sample."""
ANSWERS = {(9, 5, END): [6, END], (9, END): [6, 7, 8, 8], (9, 7, END): [5, 8, END]}


class Scripted:
    """An engine that writes what it is told to."""

    def __init__(self):
        self.calls = []

    def draw(self, requests, *, temperature, max_tokens, stop, stop_texts=(), advance=None):
        self.calls.append([(r.prompt, r.seed) for r in requests])
        found = []
        for request in requests:
            ids = ANSWERS.get(request.prompt) or TURNS[request.prompt][request.seed % 10]
            reason = "stop" if ids[-1] in stop else "length"
            found.append(Completion(ids, [-float(i) for i in ids], reason))
        return found


@pytest.fixture
def drawn(tiny_base, tmp_path):
    engine = Scripted()
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    draw = functools.partial(
        sampling.draw, engine=lambda: engine, tokenizer=tokenizer, temperature=1.0, max_tokens=4, stop=(END,), chunk=4
    )
    n = _two_turns(tmp_path, draw, [(9,)] * 4, 10, 4, tokenizer)
    return n, pd.read_parquet(tmp_path / "samples.parquet"), engine, tmp_path


def test_samples_go_on_behind_the_users_turn_and_are_cut_at_the_cap(drawn):
    """Cap 4: [5 | 6 end] ends, [5 6 7 8] never ended its turn, [end | 6 7 8 8] and [7 end | 5 8 end] are cut."""
    n, frame, _, folder = drawn
    assert [list(ids) for ids in frame["token_ids"]] == [
        [5, END, 6, END], [5, 6, 7, 8], [END, 6, 7, 8], [7, END, 5, 8]
    ]  # fmt: skip
    assert [list(p) for p in frame["logprobs"]] == [[-i for i in ids] for ids in frame["token_ids"]]
    assert frame["finish_reason"].tolist() == ["stop", "length", "length", "length"]
    assert [list(ids) for ids in frame["prompt_ids"]] == [[9]] * 4 and n == 16
    assert [path.name for path in folder.iterdir()] == ["samples.parquet"]


def test_the_second_turn_has_seeds_of_its_own(drawn):
    first, second = drawn[2].calls
    assert [seed for _, seed in first] == [10, 11, 12, 13]
    assert [prompt for prompt, _ in second] == [(9, 5, END), (9, END), (9, 7, END)]
    assert not {seed for _, seed in first} & {seed for _, seed in second}
