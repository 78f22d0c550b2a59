"""Figures of the tiny base itself: its pretraining, its skills, and the kinds of text it writes.

Its pretraining mixture is known, so its samples can be compared with what it was trained on.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cfutils.analysis.plots.style import (
    SERIES,
    error_bars,
    figure,
    label,
    legend,
    points,
    shades,
    some,
)
from cfutils.errors import invalid_value

ENOUGH = 0.8
"""Share of right answers from which a skill counts as mastered; a line in `skill_bars`."""
PANELS = {
    "context_free": ("From the start token alone", 5.2),
    "contextual": ("From a target prompt (own scale)", 3.4),
}
"""Title and width (inches) of the panel of each source of samples in `kind_shares`."""


def pretraining_curve(log: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Pretraining loss against tokens seen: each step faint, the running median strong.

    log: step, tokens (in that step), loss (nats per token), seconds (since the start). Returns the
    drawn frame: step, tokens (up to and with that step), loss, smooth (centred running median over
    a hundredth of the steps).
    """
    log = some(log, "training steps").sort_values("step", kind="stable", ignore_index=True)
    window = max(1, len(log) // 100)
    data = log[["step"]].assign(
        tokens=log["tokens"].cumsum(),
        loss=log["loss"],
        smooth=log["loss"].rolling(window, center=True, min_periods=1).median(),
    )
    fig, ax = figure(
        "Pretraining of the tiny base\n"
        f"each of {len(data):,} steps (faint), running median over {window} (strong)",
        (7.5, 4.2),
    )
    x, hue = data["tokens"] / 1e6, SERIES[0]
    ax.plot(x, data["loss"], ".", color=hue, alpha=0.25, markersize=3, markeredgewidth=0)
    ax.plot(x, data["smooth"], color=hue)
    last = (x.iloc[-1], data["smooth"].iloc[-1])
    ax.plot(*last, "o", color=hue, markeredgecolor="white")
    # the curve falls, so there is room at the upper right
    ax.annotate(
        f"{last[1]:.2f} nats per token after\n"
        f"{last[0]:,.1f} million tokens, {log['seconds'].iloc[-1] / 60:,.0f} minutes",
        last, (0.98, 0.45), textcoords="axes fraction", ha="right", fontsize=9,
        arrowprops={"arrowstyle": "-", "color": "#444444", "linewidth": 0.8, "shrinkB": 5},
    )  # fmt: skip
    ax.set(xlabel="tokens seen (millions)", ylabel="loss (nats per token)")
    ax.set_xlim(left=0)
    return fig, data


def skill_bars(scores: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of right answers of the base on each skill, best first, targets below.

    scores: task, value (share right), low, high (its 95% interval), n (items), steps (whether the
    answer's steps are written out), and optionally role (retained or target; retained if
    missing). Returns the drawn frame, from top to bottom: role, task, value, low, high, n, steps.
    """
    data = some(scores, "scores of skills")
    if "role" not in data:
        data = data.assign(role="retained")
    for role in data["role"].unique():
        if role not in ("retained", "target"):
            raise invalid_value("role", role, "retained or target")
    data = data[["role", "task", "value", "low", "high", "n", "steps"]].sort_values(
        ["role", "value", "task"], ascending=[True, False, True], ignore_index=True
    )
    places = np.arange(len(data)) + 0.6 * (data["role"] == "target").to_numpy()
    fig, ax = figure(
        "What the base can do: share of right answers on each skill, 95% intervals over items",
        (7.5, 1.7 + 0.32 * places[-1]),
    )
    ax.axvline(ENOUGH, color="black", linestyle=":", linewidth=1, label=f"{ENOUGH:.0%} right")
    looks = {("retained", False): "o", ("retained", True): "D", ("target", False): "s",
             ("target", True): "^"}  # fmt: skip
    for (role, steps), marker in looks.items():
        mine = ((data["role"] == role) & (data["steps"].astype(bool) == steps)).to_numpy()
        own = data[mine]
        if own.empty:
            continue
        points(ax, own["value"], places[mine], xerr=error_bars(own["value"], own["low"], own["high"]),
               color=SERIES[role == "target"], marker=marker,
               label=f"{role}, {'steps written out' if steps else 'answer at once'}")  # fmt: skip
    if data["role"].nunique() > 1:
        first = int((data["role"] == "target").to_numpy().argmax())
        ax.axhline((places[first - 1] + places[first]) / 2, color="black", linewidth=0.8)
    for place, n in zip(places, data["n"], strict=True):
        ax.annotate(f"n = {n:,.0f}", (1.02, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize=9)  # fmt: skip
    ax.set_yticks(places, [label(task) for task in data["task"]])
    ax.set_ylim(places[-1] + 0.6, -0.6)
    ax.set_xlim(-0.02, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("right answers     better →")
    legend(fig, [ax], columns=3)
    return fig, data


def kind_shares(shares: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Kinds of text that the base writes, against the shares of its pretraining mixture.

    shares: source (mixture, context_free, contextual), temperature (NaN for the mixture), kind,
    count, n (texts in all), share, low, high (its 95% interval; NaN for the mixture). Samples from
    the start token alone are on the left, continuations of a prompt on the right.
    Returns the rows that were drawn, sorted by source, temperature and kind as the figure is.
    """
    data = some(shares, "shares of kinds")
    for source in data["source"].unique():
        if source not in ("mixture", *PANELS):
            raise invalid_value("source", source, "one of mixture, " + ", ".join(PANELS))
    declared = some(data.loc[data["source"] == "mixture", "kind"], "shares of the mixture")
    kinds = sorted(declared, key=lambda kind: kind != "prose")  # the others keep their order
    kinds += [kind for kind in dict.fromkeys(data["kind"]) if kind not in kinds]
    rank = {name: i for i, name in enumerate(["mixture", *PANELS, *kinds])}
    columns = ["source", "temperature", "kind", "count", "n", "share", "low", "high"]
    data = data[columns].sort_values(
        columns[:3], key=lambda c: c if c.name == "temperature" else c.map(rank), ignore_index=True
    )
    panels = [source for source in PANELS if (data["source"] == source).any()]
    some(data[data["source"] != "mixture"], "shares of samples")
    hues = shades(data["temperature"])
    lines = int(data.groupby("source")["temperature"].nunique().max())
    wide = [PANELS[source][1] for source in panels]
    fig, axes = figure(
        "Kinds of text that the base writes, against its pretraining mixture\n"
        "points: share of samples with its 95% interval over samples",
        (1.6 + sum(wide), 2.2 + len(kinds) * (0.2 + 0.075 * max(lines, 2))),
        ncols=len(panels), sharey=True, squeeze=False, width_ratios=wide,
    )  # fmt: skip
    for ax, source in zip(axes.flat, panels, strict=True):
        _declared(ax, data[data["source"] == "mixture"], kinds)
        _shares(ax, data[data["source"] == source], kinds, hues)
        ax.set_title(PANELS[source][0], loc="left")
        ax.set_xlabel("share of texts")
        ax.set_xlim(left=-0.02 * ax.get_xlim()[1])  # so that a point at zero is not cut
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.grid(axis="y", visible=False)
    notes = ["" if kind in set(declared) else "\n(not in the mixture)" for kind in kinds]
    names = [label(kind) + note for kind, note in zip(kinds, notes, strict=True)]
    axes[0, 0].set_yticks(range(len(kinds)), names)
    axes[0, 0].set_ylim(len(kinds) - 0.5, -0.5)
    legend(fig, axes.flat, columns=3)
    return fig, data


def _declared(ax: Axes, mixture: pd.DataFrame, kinds: list[str]) -> None:
    """Draw a tick at each declared share, across the row of its kind; every other row is shaded."""
    for place in range(1, len(kinds), 2):
        ax.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    places = mixture["kind"].map(kinds.index)
    ax.vlines(mixture["share"], places - 0.42, places + 0.42, color="black", linewidth=2,
              label="declared in the mixture")  # fmt: skip


def _shares(ax: Axes, shares: pd.DataFrame, kinds: list[str], hues: dict) -> None:
    """Draw one source's shares, one series per temperature, the lowest on top."""
    many = shares["temperature"].nunique()
    shifts = np.linspace(-0.33, 0.33, many) if many > 1 else [0.0]
    marks = {"context_free": "o", "contextual": "D"}
    by_line = shares.groupby(["source", "temperature"])
    for shift, ((source, t), own) in zip(shifts, by_line, strict=True):
        look = {"markersize": 5, "marker": marks[source], "color": hues[t]}
        if t == 1:  # the base's own distribution
            look |= {"markersize": 7.5, "markeredgecolor": "black", "markeredgewidth": 1.1}
        name = f"{source.replace('_', '-')}, T = {t:g}, n = {own['n'].max():,.0f}"
        bars = error_bars(own["share"], own["low"], own["high"])
        places = own["kind"].map(kinds.index) + shift
        points(ax, own["share"], places, xerr=bars, label=name, **look)
