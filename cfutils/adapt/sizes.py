"""How large a study fits into a time: arithmetic on counts, lengths and a measured speed, nothing loaded.

What is run is declared, not searched: plain fine-tuning at three learning rates, chosen by validation items; then plain
fine-tuning, L2 to base, context-free NLL and context-free KL at two shares of replay each, and WiSE-FT's curve of the
first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cfutils.errors import UserError

RATIOS = (0.3, 0.6)
"""Shares of replay that are tried, in tokens that carry loss."""
ALPHAS = (0.3, 0.5, 0.7)
"""WiSE-FT's shares of the tuned weights."""
RATES = (0.1, 0.3, 1.0)
"""Learning rates that are tried, as shares of `top_rate` (the grid of plain fine-tuning's knob)."""
BATCH = 8
"""Items in an optimiser step, where there are enough."""
MIN_TRAIN, MIN_HELDOUT = 12, 4
"""Fewest items that anything can be said of."""
STEPS, EPOCHS = 100, (3, 10)
"""Optimiser steps that epochs are added for, from the fewest epochs to the most; then batches are made smaller."""
PROBE = 32
"""Sequences of each probe."""
MAX_TOKENS = 128
"""Longest sample."""
BACKWARD, GENERATED = 3.0, 2.0
"""Cost of a token in tuning and in sampling, in forward passes of one token."""
LORA = 4.0
"""Largest learning rate of low-rank adapters, in that of all weights."""
SCORED, TUNED = 3 + 2 * len(RATIOS) + len(ALPHAS), 2 + 2 * len(RATIOS)
"""Models that are scored (the base, plain fine-tuning, L2, ratios of two recipes, averages) and that are tuned; with
low-rank adapters there is no L2, one fewer."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a base and its data."""

    parameters: int
    speed: float
    """Tokens that a forward pass computes in a second, on this machine."""
    n_train: int
    """Items on the train side of the split, too long ones left out."""
    n_heldout: int
    tokens: float
    """Mean tokens of an item, and of those that carry loss."""
    supervised: float
    tasks: int
    """Retained tasks."""
    task_tokens: float
    """Typical tokens of one of their items, with its choices, prefixes shared."""
    sample_tokens: float
    """Mean tokens of a context-free sample."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a profile's numbers are set to."""

    n_train: int
    n_validation: int
    n_heldout: int
    epochs: int
    batch_size: int
    n_samples: int
    limit: int
    """Items of each retained task."""

    def seconds(self, facts: Facts) -> dict[str, float]:
        """Estimate how long each part takes."""
        target = self.n_train * facts.tokens * self.epochs
        replay = 2 * sum(r / (1 - r) for r in RATIOS) * self.n_train * facts.supervised * self.epochs
        kept, probes = self.limit * facts.tasks * facts.task_tokens, 4 * PROBE * MAX_TOKENS / 2
        scored = kept + self.n_heldout * facts.tokens + probes
        token = 1 / facts.speed
        return {
            "samples": self.n_samples * facts.sample_tokens * GENERATED * token,
            "tuning": ((len(RATES) + TUNED) * target + replay) * BACKWARD * token,
            "scoring": SCORED * scored * token + len(RATES) * self.n_validation * facts.tokens * token,
        }


def fit(facts: Facts, *, budget: float) -> Sizes:
    """Return the largest sizes that fit into a budget (seconds), from all data and 200 items a task down.

    First fewer items are scored, then fewer epochs run, then fewer items are tuned on. Raises `UserError` for too few
    items, with how many there are, and for a budget that is too small, with the least that is needed.
    """
    n_validation = max(2, min(64, facts.n_train // 5))
    n_train = facts.n_train - n_validation
    if n_train < MIN_TRAIN or facts.n_heldout < MIN_HELDOUT:
        raise UserError(
            f"the data leave {max(0, n_train)} items to tune on, {n_validation} to choose a learning rate by and "
            f"{facts.n_heldout} held out; at least {MIN_TRAIN}, 2 and {MIN_HELDOUT} are needed: about 24 in all, of "
            "which a hash of the prompt holds out a quarter. Give more items, or raise max_length if many are too long."
        )
    low, high = EPOCHS
    epochs = max(low, min(high, -(-STEPS * BATCH // n_train)))
    found = _sizes(facts, n_train, n_validation, epochs=epochs, limit=200)
    while sum(found.seconds(facts).values()) > budget:
        if found.limit > 50:
            found = replace(found, limit=found.limit - 25, n_heldout=max(MIN_HELDOUT, found.n_heldout * 7 // 8))
        elif found.epochs > 1:
            found = _sizes(facts, found.n_train, n_validation, epochs=found.epochs - 1, limit=50)
        elif found.n_train > 64:
            found = _sizes(facts, max(64, found.n_train * 3 // 4), n_validation, epochs=1, limit=50)
        else:
            least = sum(found.seconds(facts).values())
            raise UserError(
                f"budget = {budget / 60:.0f}m is too small for {found.n_train} items on this machine: about "
                f"{least / 60 + 1:.0f}m are needed. Raise --budget, or use a machine with a GPU."
            )
    return found


def _sizes(facts: Facts, n_train: int, n_validation: int, *, epochs: int, limit: int) -> Sizes:
    batch = next((b for b in (BATCH, 4, 2) if n_train * epochs / b >= STEPS / 2), 1)
    tokens = max(r / (1 - r) for r in RATIOS) * n_train * facts.supervised
    return Sizes(
        n_train=n_train, n_validation=n_validation, n_heldout=min(200, facts.n_heldout), epochs=epochs,
        batch_size=batch, n_samples=max(16, min(4096, round(tokens / facts.sample_tokens * 1.2))), limit=limit,
    )  # fmt: skip


def top_rate(parameters: int, *, lora: bool = False) -> float:
    """Return the largest learning rate that is tried for a model of a size, of all weights or of low-rank adapters.

    4e-3 at 1.5 million parameters and 4e-4 at 135 million, as found on the bases here, on a line in logarithms; of a
    model of 8 billion it is 5e-5. Of adapters `LORA` times as much, whose three rates hold what is best at each size:
    4e-3 on the tiny base, 2e-3 on SmolLM2, 1e-4 to 2e-4 on models of billions.
    """
    return float(f"{(LORA if lora else 1.0) * 4e-3 * (1.5e6 / parameters) ** 0.51:.2g}")
