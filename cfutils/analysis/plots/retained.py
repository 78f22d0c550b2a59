"""Figures of forgetting over recipes: what was learnt against what was lost, from frames of `forgetting`.

A difference from the base is drawn with the interval of the paired difference, a score with the interval
of the score itself. Trade-off: statistics are not computed here, so that table and figure cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from cfutils.analysis.bootstrap import SHARES, normal_quantile, score_interval
from cfutils.analysis.curves import trail
from cfutils.analysis.forgetting import KEYS, LOWER_IS_BETTER, RUN, by_recipe, relation
from cfutils.analysis.plots.direct_labels import Mark, label_points
from cfutils.analysis.plots.families import family, look
from cfutils.analysis.plots.style import (
    LABELS,
    colour,
    coverage,
    dots,
    error_bars,
    figure,
    ink,
    label,
    legend,
    log_axis,
    pick,
    plain_ticks,
    points,
    row_labels,
    some,
    wide_range,
    with_unit,
    with_verdict,
)

MANY = 12
"""Recipes that can be told apart in one panel."""


def frontier(
    drops: pd.DataFrame, *, metric: str = "bpb_gold", target: str = "nll"
) -> tuple[Figure, pd.DataFrame]:
    """Target score against the retained mean, right and top better; WiSE-FT as a curve over alpha.

    drops: frame of `forgetting.pooled`. target: metric of the target; NLL is on a log axis where it spans
    more than a factor of ten. Intervals are those of each score itself; recipes share items, so they are
    compared by paired differences (`verdicts`), not by whether intervals overlap.
    Returns the drawn frame: recipe, `SETTINGS`, n_seeds, level, x, x_low, x_high, y, y_low, y_high, label.
    """
    ends = ["base", "base_low", "base_high", "tuned", "tuned_low", "tuned_high"]
    new = some(pick(drops, "target", target), f"target {label(target)}")
    old = some(pick(drops, "retained", metric, "mean"), f"retained {metric}")
    data = new[[*KEYS, "n_seeds", "level", *ends]].merge(
        old[[*KEYS, *ends]], on=KEYS, suffixes=("_x", "_y")
    )
    data = some(data, "runs with both scores")
    base = {"recipe": "base", "n_seeds": 0, "level": data["level"].iloc[0]}
    for s in "xy":
        for name, end in ((s, ""), (f"{s}_low", "_low"), (f"{s}_high", "_high")):
            base[name] = data[f"base{end}_{s}"].iloc[0]
            data[name] = data[f"tuned{end}_{s}"]
    columns = [*KEYS, "n_seeds", "level", "x", "x_low", "x_high", "y", "y_low", "y_high"]
    data = pd.concat([pd.DataFrame([base]), data], ignore_index=True)[columns]
    data = data.assign(label=row_labels(data))

    fig, ax = figure(f"New task against old abilities\n{coverage(data)}, of each score", (8.6, 5.8))
    log = target in LOWER_IS_BETTER and wide_range(data["x"])
    if log:
        ax.set_xscale("log")
    ax.axhline(base["y"], color="black", linestyle=":", linewidth=1)
    curves = list(_averages(drops, metric, target))
    for curve in curves:
        ax.plot(*curve.T, color=colour("wise_ft"), linewidth=1.2, alpha=0.8)
    for row in data.to_dict("records"):
        bars = {
            f"{s}err": error_bars(row[s], row[f"{s}_low"], row[f"{s}_high"])[:, None] for s in "xy"
        }
        more = {"markersize": 14, "zorder": 4} if row["recipe"] == "base" else {}
        dots(ax, row["recipe"], [row["x"]], [row["y"]], **bars, **more)
    if log:
        plain_ticks(ax.xaxis)
    _better(ax, "x", target, f"target {with_unit(target)}{', log axis' if log else ''}")
    _better(ax, "y", metric, f"retained {with_unit(metric)}")
    ax.margins(x=0.1, y=0.06)  # room for labels
    segments = [line for row in data.to_dict("records") for line in _bars(row)]
    segments.append(((ax.get_xlim()[0], base["y"]), (ax.get_xlim()[1], base["y"])))
    segments += [pair for curve in curves for pair in pairwise(curve)]
    marks = [
        Mark(x=row.x, y=row.y, text=row.label, colour=ink(row.recipe)) for row in data.itertuples()
    ]
    label_points(ax, marks, segments=segments)
    return fig, data


def _averages(drops: pd.DataFrame, metric: str, target: str) -> Iterator[np.ndarray]:
    """Curves (n, 2) of weight averaging from the base to plain fine-tuning, one per learning rate."""
    rates = drops.loc[drops["recipe"] == "wise_ft", "lr"].unique()
    for lr in sorted(rates):
        own = drops[drops["lr"] == lr]
        points = trail(own, "wise_ft", "alpha", metric=metric, target_metric=target)
        yield points[["target", "tuned"]].to_numpy(float)


def _bars(row: dict) -> list[tuple]:
    """Both error bars of a point as line segments, those that have ends."""
    x, y = row["x"], row["y"]
    lines = [((row["x_low"], y), (row["x_high"], y)), ((x, row["y_low"]), (x, row["y_high"]))]
    return [line for line in lines if np.isfinite(line).all()]


def _better(ax: Axes, axis: str, metric: str, name: str) -> None:
    """Label an axis and turn it so that better is to the right or up; shares in per cent."""
    if metric in LOWER_IS_BETTER:
        getattr(ax, f"invert_{axis}axis")()
    if metric in SHARES:
        getattr(ax, f"{axis}axis").set_major_formatter(PercentFormatter(1, decimals=0))
    getattr(ax, f"set_{axis}label")(f"{name}     better →")


def drop_heatmap(drops: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """Drop of every recipe on each retained task and on their mean; "≈ 0" where the interval holds zero.

    drops: frame of `forgetting.pooled`. One seed gives no verdict, hence no "≈ 0" either.
    Returns the rows that were drawn, with label and verdict.
    """
    data = with_verdict(some(pick(drops, "retained", metric), f"retained {metric}"))
    tasks = [t for t in dict.fromkeys(data["task"]) if t != "mean"] + ["mean"]
    names = list(dict.fromkeys(data["label"]))
    marks = data["verdict"].map(lambda v: "\n≈ 0" if v == "within noise" else "")
    data["text"] = data["drop"].map("{:+.3f}".format).str.replace("-", "−") + marks
    grid, text = (
        data.pivot(index="label", columns="task", values=c).reindex(index=names, columns=tasks)
        for c in ("drop", "text")
    )
    limit = float(np.nanmax(np.abs(grid.to_numpy()), initial=0)) or 1.0
    covers = f"≈ 0: the paired difference's interval holds zero; {coverage(data)}"
    if (data["verdict"] == "one seed").all():
        covers = "one seed: differences are not judged against noise"
    direction = "tuned − base" if metric in LOWER_IS_BETTER else "base − tuned"
    title = f"Forgetting by task: drop in {with_unit(metric)} ({direction})\n{covers}"
    size = (max(7.0, 2.6 + 1.05 * len(tasks)), 1.9 + 0.46 * len(names))
    fig, ax = figure(title, size)
    bar = {"label": "drop (above 0 is worse)"}
    sns.heatmap(grid, ax=ax, annot=text, fmt="", annot_kws={"size": 9}, cmap="RdBu_r", cbar_kws=bar,
                vmin=-limit, vmax=limit, linewidths=1.5)  # fmt: skip
    ax.axvline(len(tasks) - 1, color="black", linewidth=1.2)
    ax.set(xlabel="", ylabel="")
    ax.set_xticks(np.arange(len(tasks)) + 0.5, [label(t) for t in tasks], rotation=20, ha="right")
    ax.tick_params(length=0)
    return fig, data.drop(columns="text")


def kl_against_drop(runs: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """KL(base || tuned) on each probe against the retained drop, one point per run.

    More than `MANY` recipes are drawn by kind of method (`families`), without intervals.
    runs: frame of `forgetting.paired_drop`. R2 is that of the line in KL itself, tau is Kendall's.
    Returns the drawn frame: run, recipe, seed, `SETTINGS`, probe, kl, kl_low, kl_high, drop, low, high,
    level.
    """
    kl = pick(runs, "probe", "kl").rename(columns={"task": "probe", "tuned": "kl"})
    kl = some(kl, "KL on a probe")
    z = np.full(len(kl), normal_quantile(kl["level"].iloc[0]))
    ends = score_interval(*(kl[c].to_numpy() for c in ("kl", "stderr")), z, kl["n"].to_numpy(),
                          kl["metric"].to_numpy())  # fmt: skip
    kl = kl.assign(kl_low=ends[0], kl_high=ends[1])[[*RUN, "probe", "kl", "kl_low", "kl_high"]]
    kept = pick(runs, "retained", metric, "mean")[["run", "drop", "low", "high", "level"]]
    data = by_recipe(some(kl.merge(kept, on="run"), f"runs with both KL and retained {metric}"))
    # those that have a label come in its order
    probes = sorted(set(data["probe"]), key=lambda p: ([*LABELS, p].index(p), p))
    columns = min(2, len(probes))
    lines = math.ceil(len(probes) / columns)
    covers, many = f"{data['level'].iloc[0]:.0%} intervals over items; ", data["recipe"].nunique() > MANY
    fig, axes = figure(
        "Distance from the base against forgetting, one point per run\n"
        f"{'' if many else covers}R²: straight line in KL (not its log); τ: Kendall's",
        (4.2 * columns + 0.4, 3.0 * lines + 1.2),
        nrows=lines, ncols=columns, sharey=True, squeeze=False,
    )  # fmt: skip
    for ax, probe in zip(axes.flat, probes, strict=False):
        part = data[data["probe"] == probe]
        log_axis(ax, part["kl"])
        _scatter(ax, part, many=many)
        ax.axhline(0, color="black", linewidth=0.8, linestyle=":")
        found = relation(part["kl"], part["drop"])
        numbers = f"R² = {found['r2']:.2f}, τ = {found['tau']:.2f}, n = {found['n']}"
        ax.set_title(f"{label(probe)}:  {numbers}", loc="left")
        if ax.get_xscale() == "log":
            narrow = part["kl"].max() < 30 * part["kl"].min()
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        log = "" if ax.get_xscale() == "linear" else ", log axis"
        ax.set_xlabel(f"{with_unit('kl')}{log}")
    for ax in axes[:, 0]:
        ax.set_ylabel(f"drop in {with_unit(metric)}")
    for ax in axes.flat[len(probes) :]:
        ax.axis("off")
    legend(fig, axes.flat)
    return fig, data


def _scatter(ax: Axes, part: pd.DataFrame, *, many: bool) -> None:
    """Draw the runs by recipe with their intervals, or by kind of method where there are many recipes."""
    if many:
        for kind, own in part.groupby(part["recipe"].map(family), sort=False):
            points(ax, own["kl"], own["drop"], label=kind, markersize=5.5, alpha=0.85, **look(kind))
        return
    for recipe, own in part.groupby("recipe", sort=False):
        x, y = own["kl"], own["drop"]
        bars = {"xerr": error_bars(x, own["kl_low"], own["kl_high"]), "yerr": error_bars(y, own["low"], own["high"])}
        dots(ax, recipe, x, y, label=label(recipe), **bars)


def recipe_bars(drops: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """Mean retained drop of every recipe with the interval of the paired difference, and its verdict.

    drops: frame of `forgetting.pooled`. Returns the rows that were drawn, with label and verdict.
    """
    data = with_verdict(some(pick(drops, "retained", metric, "mean"), f"retained mean of {metric}"))
    title = (
        f"Forgetting, mean over retained tasks\n{coverage(data)}, of the difference from the base"
    )
    fig, ax = figure(title, (7.5, 1.6 + 0.36 * len(data)))
    for place, recipe in enumerate(data["recipe"]):
        row = data.iloc[[place]]
        bars = error_bars(row["drop"], row["low"], row["high"])
        dots(ax, recipe, row["drop"], [place], xerr=bars)
        ax.annotate(row["verdict"].iloc[0], (1.02, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize=9)  # fmt: skip
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(data)), data["label"])
    ax.set_ylim(len(data) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"← better     drop in {with_unit(metric)}     worse →")
    return fig, data
