"""The verdicts on the claims, and the tables of a run, as texts for people; numbers keep their values for sorting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cfutils.analysis import plots, ranking, recommend, verdicts
from cfutils.gallery import figures
from cfutils.gallery.captions import UNKNOWN


class Cell(NamedTuple):
    """One cell: its text, and what it is sorted by."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Table:
    """One table of the page."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Bar:
    """An interval drawn beside its numbers, in per cent of the width of its axis, which is symmetric about 0."""

    low: float
    high: float
    effect: float


@dataclass(frozen=True)
class Verdict:
    """What the data say to one claim."""

    claim: str
    statement: str
    word: str
    effect: str
    """Effect with its interval and unit, and what it was measured against."""
    basis: str
    """Seeds and items."""
    reason: str
    others: str
    refuted_by: str
    bar: Bar | None


def judged(folder: Path) -> tuple[list[Verdict], Table | None]:
    """Return a verdict on each claim, and every test behind them; nothing where the folder has no figure of them.

    Those of notebook 07 (`claims`), whose rivals have grids of their own, go before those of notebook 03 (`verdicts`).
    """
    data = figures.table(folder, "claims")
    if data is None:
        data = figures.table(folder, "verdicts")
    if data is None:
        return [], None
    try:
        found = verdicts.summary(data.fillna({"reason": ""})).to_dict("records")
    except UNKNOWN:
        return [], None
    widest: dict[str, float] = {}
    for row in found:
        if pd.notna(row["effect"]):
            ends = (abs(row["low"]), abs(row["high"]), widest.get(verdicts.unit(row), 0.0))
            widest[verdicts.unit(row)] = max(ends)
    rows = [_test(row) for row in data.to_dict("records")]
    header = ("claim", "against", "measure", "effect [95 %]", "p, adjusted", "verdict", "reason")
    note = (
        "With measures that do not decide. Effects are in the metric's unit; above 0 the method tested retains more."
    )
    return [_verdict(row, widest) for row in found], Table("Every test", note, header, rows)


def _verdict(row: Mapping, widest: Mapping[str, float]) -> Verdict:
    tested = pd.notna(row["effect"])
    effect = f"{_interval(row, 'effect', 'low', 'high').text} {verdicts.unit(row)}, " if tested else ""
    bar = None
    if tested:
        most = widest[verdicts.unit(row)] or 1.0
        bar = Bar(*(round(50 + 50 * row[name] / most, 2) for name in ("low", "high", "effect")))
    seeds, items = int(row["seeds"]), int(row["items"])
    return Verdict(
        row["claim"], row["statement"], row["verdict"],
        f"{effect}against {plots.named(row['rival'])}",
        f"{seeds} seed{'s' * (seeds > 1)}, {items:,} items" if seeds else "",
        _words(row["reason"]), _words(row["others"]), row["refuted_by"], bar,
    )  # fmt: skip


def _words(text: Any) -> str:
    """Write metrics and recipes of a sentence of `verdicts` by their labels, as far as they begin a part of it."""
    parts = []
    for part in str(text).split("; "):
        name, *rest = part.split(" ", 1)
        bare = name.rstrip(":")
        parts.append(" ".join([plots.label(bare) + name[len(bare) :], *rest]))
    return "; ".join(parts)


def _test(row: Mapping) -> list[Cell]:
    return [
        Cell(row["claim"]), Cell(plots.named(row["rival"])), Cell(plots.named(row["metric"])),
        _interval(row, "effect", "low", "high"), _p(row["p_adjusted"]), Cell(row["verdict"]),
        Cell(_words(row["reason"])),
    ]  # fmt: skip


def _p(value: float) -> Cell:
    if pd.isna(value):
        return Cell("")
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}", value)


def _number(value: float) -> Cell:
    return Cell("") if pd.isna(value) else Cell(f"{value:z.3f}".replace("-", "−"), value)


def _interval(row: Mapping, value: str, low: str, high: str) -> Cell:
    if pd.isna(row[value]):
        return Cell("")
    ends = f" [{_signed(row[low])}, {_signed(row[high])}]" if pd.notna(row[low]) else ""
    return Cell(f"{_signed(row[value])}{ends}", row[value])


def _signed(value: float) -> str:
    return f"{value:+z.3f}".replace("-", "−")


def gathered(folder: Path) -> list[Table]:
    """Return the tables that a folder's figures were drawn from, as far as they are there."""
    found = []
    for name, make in MAKERS.items():
        data = figures.table(folder, name)
        with suppress(*UNKNOWN):
            found += [make(data)] if data is not None else []
    return found


def _recipes(data: pd.DataFrame) -> Table:
    """The table of `forgetting.table`."""
    kept = [m for m in ("acc", "bpb_gold") if f"{m}_drop" in data]
    target = [c for c in ("target_exact_match", "target_acc", "target_nll") if c in data]
    header = ["recipe", *(_target(c) for c in target)]
    for metric in kept:
        header += [f"retained {plots.label(metric)}", "drop [95 %]", "verdict"]
    rows = []
    for name, row in zip(plots.row_labels(data), data.to_dict("records"), strict=True):
        cells = [Cell(name), *(_number(row[c]) for c in target)]
        for m in kept:
            own = row["recipe"] != "base"
            cells.append(_number(row[m]))
            drop = _interval(row, f"{m}_drop", f"{m}_low", f"{m}_high")
            cells += [drop, Cell(row[f"{m}_verdict"])] if own else [Cell(""), Cell("")]
        rows.append([*cells, _number(row["kl"]) if "kl" in data else Cell("")])
    note = (
        "A drop above 0 is worse than the base; its interval is that of the paired difference. KL in nats per token."
    )
    return Table("What each recipe learned and retained", note, (*header, "KL on fresh samples"), rows)


def _target(column: str) -> str:
    return f"target {plots.label(column.removeprefix('target_'))}"


def _ranking(data: pd.DataFrame) -> Table:
    unit, treatment = plots.label(data["metric"].iloc[0]), ranking.treatment(data)
    rows = []
    for row in data.to_dict("records"):
        treated = row["recipe"] == treatment
        words = "" if treated else ranking.remark(row)
        rows.append(
            [Cell(plots.label(row["recipe"])), _interval(row, "drop", "low", "high"),
             Cell("") if treated else _interval(row, "difference", "difference_low", "difference_high"),
             _p(row["p_adjusted"]), Cell(words)]
        )  # fmt: skip
    beside = plots.label(treatment)
    header = ("method", f"drop in {unit} [95 %]", f"minus that of {beside} [95 %]", "p, adjusted", "remark")
    note = f"Each where its frontier has the target score of {beside}, or where it ends if it does not reach it."
    return Table("Every method at one target score", note, header, rows)


def _own(data: pd.DataFrame) -> Table:
    rows = [
        [Cell(text, value if text else None) for text, value in
         zip(recommend.cells(row), (None, row["target"], row["drop"], row["saved"], row["kl"]), strict=True)]
        + [Cell("recommended" if row["recommended"] else "")]
        for _, row in data.iterrows()
    ]  # fmt: skip
    return Table("What every run learned and forgot", f"Target: {plots.label(data['target_metric'].iloc[0])}.",
                 (*recommend.HEADER, ""), rows)  # fmt: skip


def _thinking(data: pd.DataFrame) -> Table:
    own = data[data["task"] == "mean"]
    metrics = list(dict.fromkeys(own["metric"]))
    values = own.set_index(["label", "metric"])[["value", "low", "high"]]
    rows = [[Cell(name), *(_score(values.loc[(name, m)]) for m in metrics)] for name in dict.fromkeys(own["label"])]
    note = "Mean over the skills solved by thinking, with the 95 % interval of each score."
    return Table("How each recipe thinks and answers", note, ("recipe", *map(plots.label, metrics)), rows)


def _score(row: Mapping) -> Cell:
    return Cell(f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", row["value"])


MAKERS: dict[str, Callable[[pd.DataFrame], Table]] = {
    "recipe_bars": _recipes, "ranking": _ranking, "against_ft": _ranking, "own_runs": _own,
    "thinking_recipes": _thinking,
}  # fmt: skip
"""Tables, by the figure whose data they show."""
