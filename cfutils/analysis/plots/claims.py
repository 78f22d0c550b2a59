"""Figures of verdicts (frames of `verdicts`), and of all methods on their frontiers (frame of `forgetting.pooled`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfutils.analysis.forgetting import KEYS, LOWER_IS_BETTER
from cfutils.analysis.plots.direct_labels import Mark, label_points
from cfutils.analysis.plots.families import FAMILIES, family
from cfutils.analysis.plots.style import (
    dots,
    error_bars,
    figure,
    ink,
    label,
    named,
    pick,
    plain_ticks,
    points,
    some,
    wide_range,
    with_unit,
)
from cfutils.analysis.ranking import comparable, remark, treatment

WORDS = {
    "supported": "#00734E", "contradicted": "#B03A00", "equivalent": "#00558A", "inconclusive": "#555555",
    "not comparable": "#8A8A8A", "not testable": "#8A8A8A",
}  # fmt: skip
"""Colour of each verdict."""
CLAIMED = "Claims: what context-free replay retains more than each rival (C8: its KL form than its NLL form)"
"""Title over all claims."""


def claim_intervals(
    table: pd.DataFrame, *, title: str = CLAIMED, metrics: Sequence[str] | None = None
) -> tuple[Figure, pd.DataFrame]:
    """Every comparison of a claim with its interval, the difference that matters, and its verdict; a panel a metric.

    table: frame of `verdicts.table`; claims about differences of retained scores (C1 to C6, C8) are drawn. Above 0
    the treatment retains more. metrics: None takes bits per byte and KL, and shares of right answers where they have
    decided a claim (C2). Returns the rows that were drawn.
    """
    if metrics is None:
        deciding = table[table["primary"] & np.isfinite(table["effect"])]["metric"]
        metrics = ("bpb_gold", "kl", "acc") if "acc" in set(deciding) else ("bpb_gold", "kl")
    data = some(table[table["metric"].isin(metrics)], " or ".join(metrics))
    names = data[["claim", "rival"]].drop_duplicates().reset_index(drop=True)
    place = {tuple(row): n for n, row in enumerate(names.to_numpy())}
    seeds, items = int(data["seeds"].max()), int(data["items"].max())
    size = (3.2 + 4.6 * len(metrics), 1.5 + 0.33 * len(names))
    fig, axes = figure(f"{title}\n95 % intervals over {seeds} seed{'s' * (seeds != 1)} and up to {items:,} items", size,
                       ncols=len(metrics), sharey=True, squeeze=False)  # fmt: skip
    for ax, metric in zip(axes[0], metrics, strict=True):
        own = data[data["metric"] == metric]
        for row in own.to_dict("records"):
            y = place[row["claim"], row["rival"]]
            shade = WORDS[row["verdict"]]
            if np.isfinite(row["effect"]):
                bars = error_bars(row["effect"], row["low"], row["high"])[:, None]
                points(ax, [row["effect"]], [y], xerr=bars, color=shade, marker="o")
            ax.annotate(row["verdict"], (1.02, y), xycoords=("axes fraction", "data"), va="center",
                        fontsize=9, color=shade)  # fmt: skip
        delta = own["delta"].iloc[0]
        ax.axvspan(-delta, delta, color="#D9D9D9", zorder=0)
        ax.axvline(0, color="black", linewidth=1)
        ax.set_xlabel(f"← retains less    {with_unit(metric)}    retains more →")
        ax.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(names)), [f"{c}  {named(r)}" for c, r in names.to_numpy()])
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    return fig, data


def ranking(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Drop of every recipe at one target score, the smallest on top, with the paired difference in words.

    table: frame of `ranking.at_one_target`. Hollow points are recipes whose frontier does not reach that target score:
    they are drawn where they end. Returns the drawn frame.
    """
    data = some(table.dropna(subset=["drop"]), "recipes with a drop")
    metric, seeds, items = data["metric"].iloc[0], int(data["seeds"].max()), int(data["items"].max())
    compared = treatment(data)
    title = f"How much every method forgets at the target score of {label(compared)}\n95 % intervals over {seeds}"
    title += f" seed{'s' * (seeds != 1)} and {items:,} retained items; right: paired difference"
    fig, ax = figure(title, (9.5, 1.6 + 0.27 * len(data)))
    for place, row in enumerate(data.to_dict("records")):
        bars = error_bars(row["drop"], row["low"], row["high"])[:, None]
        same = row["reach"] == "same"
        shade = ink(row["recipe"])
        points(ax, [row["drop"]], [place], xerr=bars, color=shade, marker="o",
               markerfacecolor=shade if same else "white", markeredgecolor=shade)  # fmt: skip
        ax.annotate(_against(row, compared), (1.02, place), xycoords=("axes fraction", "data"), va="center",
                    fontsize=8.5, color="black" if same else "#777777")  # fmt: skip
    ax.axvline(0, color="black", linestyle=":", linewidth=1)
    ax.set_yticks(range(len(data)), [label(name) for name in data["recipe"]])
    ax.set_ylim(len(data) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"← forgets less    drop in {with_unit(metric)}    forgets more →")
    return fig, data


def _against(row: dict, compared: str) -> str:
    if row["recipe"] == compared:
        return "compared with the others"
    words = remark(row)
    if not comparable(row):
        return words
    return f"{row['difference']:+.3f}" + (f", {words}" if words else "")


def frontiers(
    drops: pd.DataFrame, *, metric: str = "bpb_gold", target: str = "nll"
) -> tuple[Figure, pd.DataFrame]:
    """Every method's frontier: retained mean against target score over its knob, a panel for each kind of method.

    drops: frame of `forgetting.pooled` of the study "frontier". Plain fine-tuning over its learning rates is drawn in
    every panel, and the base as a dotted line. Right and up are better. Intervals are those of each score.
    Returns the drawn frame: recipe, family, settings, x and y with their ends.
    """
    ends = ["tuned", "tuned_low", "tuned_high"]
    new = some(pick(drops, "target", target), f"target {label(target)}")
    old = some(pick(drops, "retained", metric, "mean"), f"retained {metric}")
    data = new[[*KEYS, "n_seeds", *ends]].merge(old[[*KEYS, *ends]], on=KEYS, suffixes=("_x", "_y"))
    data = some(data.dropna(subset=["tuned_x", "tuned_y"]), "runs with both scores")
    data = data.rename(columns=lambda c: c.replace("tuned", "score"))
    data["family"] = data["recipe"].map(family)
    kinds = [name for name in FAMILIES if name in set(data["family"])]
    rows = -(-len(kinds) // 3) or 1
    title = f"Every method over its own knob\n95 % intervals of each score, {data['n_seeds'].max():.0f} seeds"
    fig, axes = figure(title, (13.0, 1.2 + 3.7 * rows), nrows=rows, ncols=min(3, len(kinds)) or 1,
                       sharex=True, sharey=True, squeeze=False)  # fmt: skip
    log = target in LOWER_IS_BETTER and wide_range(data["score_x"])
    if log:
        axes[0][0].set_xscale("log")
    if target in LOWER_IS_BETTER:
        axes[0][0].invert_xaxis()
    if metric in LOWER_IS_BETTER:
        axes[0][0].invert_yaxis()
    for ax, kind in zip(axes.flat, kinds, strict=False):
        members = data[(data["family"] == kind) | (data["recipe"] == "ft")]
        marks = [_trail(ax, name, own) for name, own in members.groupby("recipe", sort=False)]
        ax.axhline(old["base"].iloc[0], color="black", linestyle=":", linewidth=1)
        ax.set_title(kind, loc="left")
        if log:
            plain_ticks(ax.xaxis)
        ax.margins(x=0.12, y=0.08)
        label_points(ax, marks)
    for ax in axes.flat[len(kinds) :]:
        ax.axis("off")
    fig.supxlabel(f"target {with_unit(target)}, better →")
    fig.supylabel(f"retained {with_unit(metric)}, better ↑")
    return fig, data


def _trail(ax: Axes, recipe: str, own: pd.DataFrame) -> Mark:
    """Draw a method's points in the order of target score; its name goes to the middle one."""
    own = own.sort_values("score_x")
    bars = {f"{s}err": error_bars(own[f"score_{s}"], own[f"score_low_{s}"], own[f"score_high_{s}"]) for s in "xy"}
    faint = recipe == "ft"
    dots(ax, recipe, own["score_x"], own["score_y"], line="-", alpha=0.45 if faint else 1.0, **bars)
    middle = own.iloc[len(own) // 2]
    return Mark(x=middle["score_x"], y=middle["score_y"], text=label(recipe),
                colour="#777777" if faint else ink(recipe))  # fmt: skip


