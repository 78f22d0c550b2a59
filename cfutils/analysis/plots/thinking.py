"""Figures of a base that thinks: which skills need the thought, the shape of its samples, what tuning changes."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cfutils.analysis.forgetting import by_recipe
from cfutils.analysis.plots.style import (
    SERIES,
    UNITS,
    coverage,
    dots,
    error_bars,
    figure,
    label,
    legend,
    pick,
    points,
    row_labels,
    some,
)
from cfutils.data.chat import SHAPES
from cfutils.errors import invalid_value

PANELS = {
    "thinks": "Answers with a thought",
    "thought_tokens": "Length of the thought",
    "acc": "Right, with the thought",
    "acc_cut": "Right, thought cut off",
}
"""Metrics of `thinking_recipes`, from left to right."""
SOURCES = {
    "context_free": "From the start token alone",
    "template_prefix": "From the template's user header",
}
"""Sources of samples of `thinking_shapes`, from left to right."""
NAMES = {
    "thinking": "chat turns,\nwith a thought",
    "unthinking": "chat turns,\nno thought",
    "unfinished": "chat turns,\nnot complete",
    "plain": "plain text",
}
"""What a shape is called."""


def thinking_skills(skills: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Right answers of the base on each retained task, with its thought and with the thought cut off.

    skills: frame of `thinking.skills`. The gain, with its interval, is written on the right; tasks that count as
    solved by thinking stand above the line. Returns the drawn frame, from top to bottom.
    """
    data = some(skills, "skills").sort_values(["solved", "gain"], ascending=False, kind="stable", ignore_index=True)
    places = np.arange(len(data)) + 0.5 * (~data["solved"].astype(bool) & data["solved"].any()).to_numpy()
    fig, ax = figure(
        "Which skills the base solves by thinking\n"
        f"{data['level'].iloc[0]:.0%} intervals over {_range(data['n'])} items; right: paired gain and its interval",
        (8.2, 2.1 + 0.36 * places[-1]),
    )  # fmt: skip
    looks = {"acc": ("with the thought", SERIES[0], "o", -0.14), "acc_cut": ("thought cut off", SERIES[1], "D", 0.14)}
    for name, (text, hue, marker, aside) in looks.items():
        bars = error_bars(data[name], data[f"{name}_low"], data[f"{name}_high"])
        points(ax, data[name], places + aside, xerr=bars, color=hue, marker=marker, label=text)
    for place, row in zip(places, data.itertuples(), strict=True):
        gain = f"{row.gain:+z.2f}  [{row.gain_low:+z.2f}, {row.gain_high:+z.2f}]".replace("-", "−")
        ax.annotate(gain, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9,
                    fontweight="bold" if row.solved else "normal")  # fmt: skip
    if data["solved"].nunique() > 1:
        first = int((~data["solved"].astype(bool)).to_numpy().argmax())
        ax.axhline((places[first - 1] + places[first]) / 2, color="black", linewidth=0.8)
    ax.set_yticks(places, [label(task) for task in data["task"]])
    ax.set_ylim(places[-1] + 0.6, -0.6)
    _shares(ax)
    ax.set_xlabel("right answers     better →")
    legend(fig, [ax])
    return fig, data


def thinking_shapes(shapes: pd.DataFrame, declared: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of each shape among samples of the base, by temperature, against its pretraining documents.

    shapes: frame of `Lab.shapes`: source, temperature, shape, count, n, share, low, high (95 %, over samples).
    declared: source, shape, share (`thinking.declared_shapes`); without rows where the mixture is unknown.
    Returns the rows of `shapes` that were drawn, with declared (NaN where unknown), as the figure has them.
    """
    data = some(shapes, "shapes of samples")
    for column, allowed in (("source", SOURCES), ("shape", SHAPES)):
        if strangers := set(data[column]) - set(allowed):
            raise invalid_value(column, min(strangers), "one of " + ", ".join(allowed))
    known = declared.rename(columns={"share": "declared"})[["source", "shape", "declared"]]
    data = data.merge(known, on=["source", "shape"], how="left").astype({"declared": float})
    rank = {name: i for i, name in enumerate([*SOURCES, *SHAPES])}
    data = data.sort_values(["source", "temperature", "shape"], ignore_index=True,
                            key=lambda c: c if c.name == "temperature" else c.map(rank))  # fmt: skip
    sources = [name for name in SOURCES if name in set(data["source"])]
    temperatures = sorted(data["temperature"].unique())
    shades = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, len(temperatures)))
    shifts = np.linspace(-0.32, 0.32, len(temperatures)) if len(temperatures) > 1 else [0.0]
    fig, axes = figure(
        f"What the base's samples are shaped as\n95% intervals over {_range(data['n'])} samples at each temperature",
        (1.7 + 4.0 * len(sources), 4.6), ncols=len(sources), sharey=True, squeeze=False,
    )  # fmt: skip
    for ax, source in zip(axes[0], sources, strict=True):
        own = data[data["source"] == source]
        marks = own.drop_duplicates("shape").dropna(subset="declared")
        places = np.array([SHAPES.index(shape) for shape in marks["shape"]], float)
        ax.axhspan(0.5, 1.5, color="#F4F4F4", linewidth=0, zorder=0)
        ax.axhspan(2.5, 3.5, color="#F4F4F4", linewidth=0, zorder=0)
        ax.vlines(marks["declared"], places - 0.44, places + 0.44, color="black", linewidth=2,
                  label="among pretraining documents")  # fmt: skip
        for t, shade, shift in zip(temperatures, shades, shifts, strict=True):
            part = own[own["temperature"] == t]
            look = {"markersize": 5.5, "marker": "o", "color": shade}
            if t == 1:  # the base's own distribution
                look |= {"markersize": 8, "markeredgecolor": "black", "markeredgewidth": 1.1}
            bars = error_bars(part["share"], part["low"], part["high"])
            points(ax, part["share"], part["shape"].map(SHAPES.index) + shift, xerr=bars, label=f"T = {t:g}", **look)
        ax.set_title(SOURCES[source], loc="left")
        ax.set_xlabel("share of samples")
        _shares(ax)
    axes[0][0].set_yticks(range(len(SHAPES)), [NAMES[shape] for shape in SHAPES])
    axes[0][0].set_ylim(len(SHAPES) - 0.5, -0.5)
    legend(fig, axes[0], columns=6)
    return fig, data


def thinking_recipes(levels: pd.DataFrame, *, target: str) -> tuple[Figure, pd.DataFrame]:
    """How often and how long tuned models think, and what they answer with and without it; a row per recipe.

    levels: frame of `forgetting.levels` over the skills that count (`thinking.only`), base included; drawn is their
    mean. An answer without a thought counts as one of 0 tokens. target: what was tuned on, for the title. The base is
    a line with a band, its own interval. Returns the drawn frame: the rows of `levels`, with label.
    """
    mean = pd.concat([pick(levels, "retained", metric, "mean") for metric in PANELS])
    data = by_recipe(some(mean, "means of " + ", ".join(PANELS)))
    data = data.assign(label=row_labels(data))
    skills = levels.loc[(levels["group"] == "retained") & (levels["task"] != "mean"), "task"].unique()
    tuned = data[data["recipe"] != "base"]
    names = list(dict.fromkeys(some(tuned, "tuned models")["label"]))
    fig, axes = figure(
        f"Tuned on {label(target)}: how the model thinks and answers, mean over {_listed(skills)}\n"
        f"{coverage(data)}, of each score",
        (12.4, 2.3 + 0.34 * len(names)), ncols=len(PANELS), sharey=True,
    )  # fmt: skip
    for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
        own = data[data["metric"] == metric]
        for row in own[own["recipe"] == "base"].itertuples():
            ax.axvline(row.value, color="black", linestyle=":", linewidth=1.3, label="Base, with its interval")
            ax.axvspan(row.low, row.high, color="black", alpha=0.1, linewidth=0)
        for row in own[own["recipe"] != "base"].itertuples():
            bars = error_bars(row.value, row.low, row.high)[:, None]
            dots(ax, row.recipe, [row.value], [names.index(row.label)], xerr=bars)
        ax.set_title(title, loc="left")
        if metric == "thought_tokens":
            longest = max(own["high"].max(), own["value"].max(), 1.0)
            ax.set_xlim(-0.04 * longest, 1.06 * longest)
            ax.set_xlabel(UNITS[metric])
            ax.grid(axis="y", visible=False)
        else:
            _shares(ax)
            ax.set_xlabel("share of answers" + ("" if metric == "thinks" else "     better →"))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    legend(fig, axes)
    return fig, data


def _shares(ax: Axes) -> None:
    """Let an x axis show shares, from 0 to 1."""
    ax.set_xlim(-0.04, 1.04)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="y", visible=False)


def _range(n: pd.Series) -> str:
    low, high = int(n.min()), int(n.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _listed(names: np.ndarray) -> str:
    return ", ".join(map(label, names)) if len(names) <= 6 else f"{len(names)} skills"
