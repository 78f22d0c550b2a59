"""Sequences, and the mix of target and replay that a run is tuned on.

The ratio is defined here and nowhere else: the share of replay among the tokens that carry loss in one
pass over the mix. A shortfall of the pool is reported, never filled by repeating.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfutils.errors import bad
from cfutils.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase



@dataclass(frozen=True)
class Sequence:
    """Token ids, of which those from index `first` on carry loss (first >= 1: nothing predicts token 0)."""

    ids: tuple[int, ...]
    first: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= len(self.ids):
            raise bad("first", self.first, f"an index from 1 to {len(self.ids)}")

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.ids) - self.first


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat_template: bool
) -> list[int]:
    """Encode a target prompt as the tokenizer does (its own BOS, if it adds one), or in its template."""
    if not chat_template:
        return tokenizer(prompt)["input_ids"]
    turn = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]


def from_example(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, chat_template: bool
) -> Sequence:
    """Return prompt, response and (if there is one) end token; the latter two carry loss."""
    head = prompt_ids(tokenizer, example.prompt, chat_template=chat_template)
    tail = tokenizer(example.response, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return Sequence((*head, *tail, *end), first=len(head))


def from_samples(samples: pd.DataFrame) -> list[Sequence]:
    """Return samples as sequences: what was drawn carries loss, what it continues does not."""
    return [
        Sequence((*map(int, row.prompt_ids), *map(int, row.token_ids)), first=len(row.prompt_ids))
        for row in samples.itertuples()
    ]


def from_text(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    start: int,
    max_tokens: int,
    end: int | None = None,
) -> list[Sequence]:
    """Return documents behind the start token, cut at max_tokens as samples are; all carries loss.

    With `end` the texts are whole documents, which this token closes.
    """
    tail = () if end is None else (end,)
    ids = ((*tokenizer(text, add_special_tokens=False)["input_ids"], *tail) for text in texts)
    return [Sequence((start, *found[:max_tokens]), 1) for found in ids]


@dataclass(frozen=True)
class Mix:
    """What one pass of tuning goes through."""

    target: tuple[Sequence, ...]
    replay: tuple[Sequence, ...]
    asked: float
    """Ratio asked for."""
    shortfall: int
    """Supervised replay tokens that the pool lacked."""

    @property
    def target_tokens(self) -> int:
        """Supervised target tokens."""
        return sum(s.supervised for s in self.target)

    @property
    def replay_tokens(self) -> int:
        """Supervised replay tokens."""
        return sum(s.supervised for s in self.replay)

    @property
    def ratio(self) -> float:
        """Ratio reached: replay tokens over all supervised tokens."""
        return self.replay_tokens / (self.replay_tokens + self.target_tokens)


def mix(target: Seq[Sequence], pool: Seq[Sequence], *, ratio: float, seed: int) -> Mix:
    """Choose replay from the pool so that it makes up `ratio` of the mix's supervised tokens.

    The budget is ratio / (1 - ratio) times the target's tokens. Whole sequences are taken in an order
    that the seed decides; the last is taken if that comes nearer to the budget.
    """
    if not 0 <= ratio < 1:
        raise bad("ratio", ratio, "a share of the final mix in [0, 1)")
    budget = ratio / (1 - ratio) * sum(s.supervised for s in target)
    chosen, total = [], 0
    for index in np.random.default_rng([seed, 1]).permutation(len(pool)):
        n = pool[index].supervised
        if total + n / 2 > budget:
            break
        chosen.append(pool[index])
        total += n
    ran_out = len(chosen) == len(pool)
    shortfall = max(0, round(budget) - total) if ran_out else 0
    return Mix(tuple(target), tuple(chosen), ratio, shortfall)


def schedule(mixed: Mix, *, batch_size: int, epochs: int, seed: int) -> list[tuple[list, list]]:
    """Return the (target, replay) sequences of every step.

    Each epoch shuffles both and spreads replay evenly over the steps: interleaved, never appended.
    """
    steps = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, 2, epoch])
        targets = [mixed.target[i] for i in rng.permutation(len(mixed.target))]
        replays = [mixed.replay[i] for i in rng.permutation(len(mixed.replay))]
        n_steps = -(-len(targets) // batch_size)
        edges = [round(i * len(replays) / n_steps) for i in range(n_steps + 1)]
        for i in range(n_steps):
            batch = targets[i * batch_size : (i + 1) * batch_size]
            steps.append((batch, replays[edges[i] : edges[i + 1]]))
    return steps
