"""Figure of the runs that one is chosen from (frame of `recommend.compare`)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from cfutils.analysis import recommend
from cfutils.analysis.plots.style import error_bars, figure, points, some, with_unit

CHOSEN, OTHER = "#00734E", "#444444"


def run_choice(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Drop of every run, those that learned less hollow, the recommended one in bold. Returns the drawn rows."""
    data = some(table[table["recipe"] != "base"].reset_index(drop=True), "tuned runs")
    seeds, items = data["seeds"].max(), data["items"].max()
    over = f"{seeds:.0f} seeds and {items:,} items" if seeds > 1 else f"{items:,} items, one seed"
    fig, ax = figure(f"What every run forgets\n95 % intervals over {over}", (9.5, 1.6 + 0.3 * len(data)))
    for place, row in data.iterrows():
        shade = CHOSEN if row["recommended"] else OTHER
        bars = error_bars(row["drop"], row["low"], row["high"])[:, None]
        points(ax, [row["drop"]], [place], xerr=bars, color=shade, marker="o", markeredgecolor=shade,
               markerfacecolor=shade if row["learned"] else "white")  # fmt: skip
    names = [recommend.name(row) + ("" if row["learned"] else ", learned less") for _, row in data.iterrows()]
    ax.set_yticks(range(len(data)), names)
    for tick, chosen in zip(ax.get_yticklabels(), data["recommended"], strict=True):
        tick.set_fontweight("bold" if chosen else "normal")
    ax.axvline(0, color="black", linestyle=":", linewidth=1)
    ax.set_ylim(len(data) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"← forgets less    drop in {with_unit(data['metric'].iloc[0])}    forgets more →")
    return fig, data
