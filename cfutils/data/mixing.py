"""The mix of target and replay that a run is tuned on.

The ratio is defined here and nowhere else: the share of replay among the tokens that carry loss in one
epoch. A shortfall of the pool is reported and never filled by repeating sequences.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from cfutils.data.sequences import Sequence
from cfutils.errors import invalid_value


@dataclass(frozen=True)
class Mix:
    """The sequences of one epoch."""

    target: tuple[Sequence, ...]
    replay: tuple[Sequence, ...]
    requested: float
    """Ratio requested."""
    shortfall: int
    """Supervised replay tokens that the pool lacked."""
    fresh_epochs: int = 1
    """Epochs that share `replay` out between them, each sequence to one; 1: every epoch sees all of it."""

    @property
    def target_tokens(self) -> int:
        """Supervised target tokens."""
        return sum(s.supervised for s in self.target)

    @property
    def replay_tokens(self) -> int:
        """Supervised replay tokens of one epoch (their mean, where each has its own)."""
        return round(sum(s.supervised for s in self.replay) / self.fresh_epochs)

    @property
    def ratio(self) -> float:
        """Ratio reached: replay tokens over all supervised tokens."""
        return self.replay_tokens / (self.replay_tokens + self.target_tokens)


def even(pools: Seq[Seq[Sequence]]) -> list[Sequence]:
    """Return one pool with as many supervised tokens of each as the smallest has, up to a sequence.

    Replay chosen from it at random has about equal numbers of tokens of each.
    """
    least = min(sum(s.supervised for s in pool) for pool in pools)
    found = []
    for pool in pools:
        total = 0
        for sequence in pool:
            if total >= least:
                break
            found.append(sequence)
            total += sequence.supervised
    return found


def mix(
    target: Seq[Sequence], pool: Seq[Sequence], *, ratio: float, seed: int, fresh_epochs: int = 1
) -> Mix:
    """Choose replay from the pool so that it makes up `ratio` of the mix's supervised tokens.

    The budget is ratio / (1 - ratio) times the target's tokens, and `fresh_epochs` times as much where each epoch has
    replay of its own. Whole sequences are taken in an order
    that the seed decides; the last one is taken if the sum is then nearer to the budget, and one at least where
    the ratio is above 0.
    Raises `UserError` for a ratio outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise invalid_value("ratio", ratio, "a share of the final mix in [0, 1)")
    budget = ratio / (1 - ratio) * sum(s.supervised for s in target) * fresh_epochs
    chosen, total = [], 0
    for index in np.random.default_rng([seed, 1]).permutation(len(pool)):
        n = pool[index].supervised
        if total + n / 2 > budget and (chosen or not budget):
            break
        chosen.append(pool[index])
        total += n
    ran_out = len(chosen) == len(pool)
    shortfall = max(0, round(budget) - total) if ran_out else 0
    return Mix(tuple(target), tuple(chosen), ratio, shortfall, fresh_epochs)


def _part(mixed: Mix, epoch: int) -> tuple[Sequence, ...]:
    """Return the replay of one epoch."""
    first, last = (
        round(i * len(mixed.replay) / mixed.fresh_epochs) for i in (epoch, epoch + 1)
    )
    return mixed.replay if mixed.fresh_epochs == 1 else mixed.replay[first:last]


def schedule(mixed: Mix, *, batch_size: int, epochs: int, seed: int) -> list[tuple[list, list]]:
    """Return the (target, replay) sequences of every step.

    Each epoch shuffles both and spreads replay evenly over the steps: interleaved, never appended.
    """
    steps = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, 2, epoch])
        targets = [mixed.target[i] for i in rng.permutation(len(mixed.target))]
        part = _part(mixed, epoch)
        replays = [part[i] for i in rng.permutation(len(part))]
        n_steps = -(-len(targets) // batch_size)
        edges = [round(i * len(replays) / n_steps) for i in range(n_steps + 1)]
        for i in range(n_steps):
            batch = targets[i * batch_size : (i + 1) * batch_size]
            steps.append((batch, replays[edges[i] : edges[i + 1]]))
    return steps
