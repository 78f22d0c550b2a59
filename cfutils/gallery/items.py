"""Retained items before and after tuning: right answers that were lost and gained, and bits per byte of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cfutils import recipes
from cfutils.analysis import flips, plots
from cfutils.gallery import questions
from cfutils.gallery.runs import Part, Run, numbers
from cfutils.lab import Lab
from cfutils.pipeline.store import Artifact
from cfutils.studies import BASE, beside

ITEMS = 1200
"""Items that are shown; of more tasks fewer each."""
PAIRS = 150_000
"""Pairs of a run and an item that are shown: a page of about 2 MB."""
ANSWERS = 1_000_000
"""Characters of generated answers that are shown."""
METRICS = {"acc": "right", "bpb_gold": "bits"}
KEY = ["task", "item"]


def changed(lab: Lab, runs: Sequence[Run]) -> Part:
    """Return the items of the runs whose scores are here or shipped, beside the base's.

    Items: task, id, question, right answer, and the base's `right` (share of its answers, 0 or 1 where it has one) and
    `bits` (per byte of the right answer). Runs: label, `n`, `lost` and `gained` (right to wrong and back, of all items
    with right and wrong answers), and for every item `right`, `bits` and, where a base that thinks answered on this
    machine, `said`: thought and answer.
    """
    base = lab.store.find(lab.steps.scores(None, "retained"))
    there = [(run, found) for run in runs if (found := lab.store.find(lab.steps.scores(run.plan, "retained")))]
    if base is None or not there:
        return Part.absent("scores of items")
    notes = [f"Not built yet: {len(runs) - len(there)} of {len(runs)} runs."] * (len(there) < len(runs))
    frames = [beside({**BASE, "run": ""}, base.table("items"))]
    frames += [beside({**run.plan.settings(), "run": run.id}, found.table("items")) for run, found in there]
    wide = {name: _wide(frames, metric) for metric, name in METRICS.items()}
    if wide["right"].empty and wide["bits"].empty:
        return Part(notes=("No retained task has right and wrong answers or bits per byte of right answers.",))
    everything = wide["right"].index.union(wide["bits"].index, sort=False)
    wide = {name: frame.reindex(index=everything, columns=["", *(run.id for run, _ in there)])
            for name, frame in wide.items()}  # fmt: skip
    kept, left = _choose(wide["right"], wide["bits"])
    notes += left
    if len(there) * len(kept) > PAIRS:
        few = max(1, PAIRS // len(kept))
        notes.append(
            f"Left out: {len(there) - few} of {len(there)} runs, first those of recipes shown at another setting."
        )
        there = _spread(there)[:few]
    asked, missing = questions.texts(lab.profile, kept, scored_here=base.path is not None)
    counts = _counts(frames)
    said = _answers(base, [found for _, found in there], list(kept))
    shown = {name: frame.loc[kept] for name, frame in wide.items()}
    return Part(
        {
            "items": [
                [task, plots.label(task), item, *asked.get((task, item), ("", "")), *base_values]
                for (task, item), *base_values in zip(
                    kept, *(numbers(shown[name][""]) for name in METRICS.values()), strict=True
                )
            ],
            "said": said[0] if said else None,
            "start": _start(lab, [run for run, _ in there]).id,
            "runs": [
                {"id": run.id, "label": run.label, "recipe": plots.label(run.plan.recipe), **counts.get(run.id, {}),
                 **{name: numbers(shown[name][run.id]) for name in METRICS.values()},
                 "said": said[number] if number < len(said) else None}
                for number, (run, _) in enumerate(there, 1)
            ],
        },
        (*notes, *missing),
    )  # fmt: skip


def _start(lab: Lab, runs: list[Run]) -> Run:
    """Return the run that is shown first: plain fine-tuning at the profile's learning rate."""
    rate = recipes.rate(lab.profile, "ft")
    return min(runs, key=lambda run: (run.plan.recipe != "ft", run.plan.lr != rate))


def _wide(frames: list[pd.DataFrame], metric: str) -> pd.DataFrame:
    """Return values by item (rows, in the order of the frames) and run (columns)."""
    found = {}
    for frame in frames:
        own = frame[frame["metric"].eq(metric) & frame["group"].eq("retained")]
        found[frame["run"].iloc[0]] = own.set_index(KEY)["value"]
    return pd.DataFrame({name: values for name, values in found.items() if len(values)})


def _choose(right: pd.DataFrame, bits: pd.DataFrame) -> tuple[pd.MultiIndex, list[str]]:
    """Return the items that are shown, of a long task those that turn most often, and a sentence on the others."""
    tasks = right.index.get_level_values("task")
    most = ITEMS // tasks.nunique() or 1
    turned = (right.iloc[:, 1:] > 0.5).ne(right.iloc[:, 0] > 0.5, axis=0).sum(axis=1).to_numpy()
    spread = bits.iloc[:, 1:].sub(bits.iloc[:, 0], axis=0).abs().mean(axis=1).fillna(0).to_numpy()
    rank = pd.Series(np.lexsort((-spread, -turned)).argsort(), index=right.index)
    keep = rank.groupby(tasks, sort=False).rank(method="first") <= most
    kept = right.index[keep]
    if len(kept) == len(right):
        return kept, []
    return kept, [
        f"{len(kept):,} of {len(right):,} items are shown: of each task up to {most}, those that turned in most runs, "
        "then those whose bits changed most."
    ]


def _spread(there: list[tuple[Run, Artifact]]) -> list[tuple[Run, Artifact]]:
    """Return runs so that every recipe comes once before any comes again."""
    names = pd.Series([run.plan.recipe for run, _ in there])
    return [there[i] for i in names.groupby(names).cumcount().sort_values(kind="stable").index]


def _counts(frames: list[pd.DataFrame]) -> dict[str, dict[str, int]]:
    """Return how many items turned, by run (`flips.table`, summed over tasks)."""
    items = pd.concat([frame[frame["group"].eq("retained") & frame["metric"].eq("acc")] for frame in frames])
    if items.empty:
        return {}
    found = flips.table(items)
    found = found.assign(lost=found["forgotten"] * found["n"], gained=found["gained"] * found["n"])
    sums = found.groupby("run", sort=False)[["n", "lost", "gained"]].sum().round().astype(int)
    return sums.to_dict("index")


def _answers(base: Artifact, tuned: list[Artifact], kept: list[tuple[str, str]]) -> list[list[Any]]:
    """Return the first answer to each item, [thought, answer], of the base and of runs until `ANSWERS` is reached."""
    found: list[list[Any]] = []
    length = 0
    for artifact in (base, *tuned):
        path = artifact.path and artifact.path / "answers.parquet"
        if not path or not path.is_file() or length > ANSWERS:
            break
        answers = pd.read_parquet(path)
        first = answers[~answers["cut"].astype(bool)].drop_duplicates(KEY).set_index(KEY)[["thought", "answer"]]
        texts = {key: [questions.cut(v) if isinstance(v, str) else None for v in row]
                 for key, row in zip(first.index, first.to_numpy(), strict=True)}  # fmt: skip
        found.append([texts.get(key) for key in kept])
        length += sum(len(v) for pair in found[-1] if pair for v in pair if v)
    return found
