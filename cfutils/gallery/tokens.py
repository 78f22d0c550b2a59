"""Token drift: how far tuned models are from the base at every token of fresh context-free samples."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cfutils.gallery.runs import Part, Run, holds, numbers
from cfutils.lab import Lab

CELLS = 80_000
"""Pairs of a run and a token that are shown: a page of about 1 MB."""


def drift(lab: Lab, runs: Sequence[Run]) -> Part:
    """Return the tokens of every passage with the base's NLL, and each run's NLL and KL there (nats).

    Passages: tokens, nll. Runs: label, and for every passage nll and kl. With many runs the first passages are shown.
    """
    base = lab.store.find(lab.steps.scores(None, "probe"))
    if base is None or not holds(base, "tokens"):
        return Part.absent("scores of tokens")
    found = {}
    for run in runs:
        artifact = lab.store.find(lab.steps.scores(run.plan, "probe"))
        if artifact and holds(artifact, "tokens"):
            found[run] = artifact.table("tokens")
    table = base.table("tokens")
    sizes = table.groupby("sequence", sort=False).size()
    kept = sizes.index[(sizes.cumsum() * max(1, len(found)) <= CELLS) | (sizes.index == sizes.index[0])]
    notes = []
    if len(found) < len(runs):
        notes.append(f"Scores of tokens are here for {len(found)} of the {len(runs)} runs shown above.")
    if len(kept) < len(sizes):
        notes.append(f"The first {len(kept)} of {len(sizes)} passages are shown.")
    return Part(
        {
            "passages": [
                {"tokens": own["token"].tolist(), "nll": numbers(own["nll"])} for own in _passages(table, kept)
            ],
            "runs": [
                {"id": run.id, "label": run.label,
                 **{name: [numbers(own[name]) for own in passages] for name in ("nll", "kl")}}
                for run, passages in ((run, _passages(tokens, kept)) for run, tokens in found.items())
            ],
        },
        tuple(notes),
    )  # fmt: skip


def _passages(tokens: pd.DataFrame, kept: pd.Index) -> list[pd.DataFrame]:
    parts = dict(list(tokens.sort_values("position", kind="stable").groupby("sequence", sort=False)))
    return [parts[name] for name in kept]
