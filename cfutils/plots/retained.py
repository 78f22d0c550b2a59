"""Figures of forgetting: what was learnt against what was lost, from frames of `forgetting`.

Trade-off: statistics are not computed here, so that table and figure cannot disagree.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cfutils.errors import UserError, bad
from cfutils.forgetting import (
    LOWER_IS_BETTER,
    RUN,
    SETTINGS,
    by_recipe,
    relation,
    score_interval,
    trail,
)
from cfutils.plots.style import (
    LABELS,
    MARKERS,
    colour,
    coverage,
    dots,
    error_bars,
    figure,
    label,
    legend,
    log_axis,
    pick,
    row_labels,
    some,
    tick_values,
    with_unit,
    with_verdict,
)


def frontier(drops: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """Target NLL against the retained mean, right and top better; WiSE-FT as a line over alpha.

    drops: frame of `forgetting.pooled`. Intervals are those of the paired difference from the base.
    Returns the drawn frame: recipe, `SETTINGS`, n_seeds, level, base_x, base_y, x, x_low, x_high, y, y_low,
    y_high, label.
    """
    keys, ends = ["recipe", *SETTINGS], ["base", "tuned", "tuned_low", "tuned_high"]
    new = score_interval(some(pick(drops, "target", "nll"), "target NLL"))
    old = score_interval(some(pick(drops, "retained", metric, "mean"), f"retained {metric}"))
    data = new[[*keys, "n_seeds", "level", *ends]].merge(
        old[[*keys, *ends]], on=keys, suffixes=("_x", "_y")
    )
    names = {f"tuned_{s}": s for s in "xy"}
    names |= {f"tuned_{e}_{s}": f"{s}_{e}" for s in "xy" for e in ("low", "high")}
    data = some(data, "runs with both scores").rename(columns=names)
    title = f"New task against old abilities\n{coverage(data)}, of the difference from the base"
    x, y = data.loc[0, ["base_x", "base_y"]]
    start = {"recipe": "base", "x": x, "y": y, "base_x": x, "base_y": y}
    data = pd.concat([pd.DataFrame([start]), data], ignore_index=True).reindex(columns=data.columns)
    data = data.assign(label=row_labels(data))
    fig, ax = figure(title, (8, 5.4))
    ax.axhline(y, color="black", linestyle=":", linewidth=1)
    for lr in sorted(data.loc[data["recipe"] == "wise_ft", "lr"].unique()):
        line = trail(drops[drops["lr"] == lr], "wise_ft", "alpha", metric=metric)
        ax.plot(line["target"], line["tuned"], color=colour("wise_ft"), linewidth=1.2, alpha=0.8)
    ax.plot(x, y, color=colour("base"), marker=MARKERS["base"], markersize=14, zorder=4,
            linestyle="none", label=label("base"))  # fmt: skip
    for (recipe, name), own in data[1:].groupby(["recipe", "label"], sort=False):
        # one entry in the legend for a whole WiSE-FT curve, whose points carry their alpha
        name = label(recipe) if recipe == "wise_ft" else name
        bars = {f"{s}err": error_bars(own[s], own[f"{s}_low"], own[f"{s}_high"]) for s in "xy"}
        dots(ax, recipe, own["x"], own["y"], label=name, **bars)
        for at in own[own["alpha"].notna()].itertuples():
            ax.annotate(f"α={at.alpha:g}", (at.x, at.y), (-6, -13), ha="right", fontsize=8,
                        textcoords="offset points", color=colour(recipe))  # fmt: skip
    ax.invert_xaxis()
    if metric in LOWER_IS_BETTER:
        ax.invert_yaxis()
    ax.set_xlabel(f"target {with_unit('nll')}     better →")
    ax.set_ylabel(f"retained {with_unit(metric)}     better →")
    legend(fig, [ax])
    return fig, data


def drop_heatmap(drops: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """Drop of every recipe on each retained task and on their mean; "≈ 0" where noise explains it.

    drops: frame of `forgetting.pooled`. Returns its rows that were drawn, with label and verdict.
    """
    data = with_verdict(some(pick(drops, "retained", metric), f"retained {metric}"))
    tasks = [t for t in dict.fromkeys(data["task"]) if t != "mean"] + ["mean"]
    names = list(dict.fromkeys(data["label"]))
    marks = data["verdict"].map(lambda v: "\n≈ 0" if v == "within noise" else "")
    data["text"] = data["drop"].map("{:+.3f}".format) + marks
    grid, text = (
        data.pivot(index="label", columns="task", values=c).reindex(index=names, columns=tasks)
        for c in ("drop", "text")
    )
    limit = float(np.nanmax(np.abs(grid.to_numpy()), initial=0)) or 1.0
    covers = f"≈ 0: the interval holds zero; {coverage(data)}"
    title = f"Forgetting in {with_unit(metric)}, by task\n{covers}"
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
    """KL(base || tuned) on each probe against the retained drop, one point a run.

    runs: frame of `forgetting.paired_drop`. R2 is that of the line in KL itself, tau is Kendall's.
    Returns the drawn frame: run, recipe, seed, `SETTINGS`, probe, kl, kl_stderr, drop, low, high,
    level.
    """
    names = {"task": "probe", "tuned": "kl", "stderr": "kl_stderr"}
    kl = pick(runs, "probe", "kl").rename(columns=names)[[*RUN, *names.values()]]
    kept = pick(runs, "retained", metric, "mean")[["run", "drop", "low", "high", "level"]]
    data = by_recipe(some(kl.merge(kept, on="run"), f"runs with both KL and retained {metric}"))
    # those that have a label come in its order
    probes = sorted(set(data["probe"]), key=lambda p: ([*LABELS, p].index(p), p))
    columns = min(2, len(probes))
    lines = math.ceil(len(probes) / columns)
    fig, axes = figure(
        "Distance from the base against forgetting, one point a run\n"
        f"intervals: {data['level'].iloc[0]:.0%} over items (drop), ± one standard error (KL); "
        "R² of the line in KL",
        (4.2 * columns + 0.4, 3.0 * lines + 1.2),
        nrows=lines, ncols=columns, sharey=True, squeeze=False,
    )  # fmt: skip
    for ax, probe in zip(axes.flat, probes, strict=False):
        part = data[data["probe"] == probe]
        log_axis(ax, part["kl"])
        for recipe, own in part.groupby("recipe", sort=False):
            x, y, se = own["kl"], own["drop"], own["kl_stderr"]
            # a log axis has no place for an end at or below zero
            across = error_bars(x, np.maximum(x - se, 0.1 * x), x + se)
            dots(ax, recipe, x, y, xerr=across, yerr=error_bars(y, own["low"], own["high"]),
                  label=label(recipe))  # fmt: skip
        ax.axhline(0, color="black", linewidth=0.8, linestyle=":")
        found = relation(part["kl"], part["drop"])
        numbers = f"R² = {found['r2']:.2f}, τ = {found['tau']:.2f}, n = {found['n']}"
        ax.set_title(f"{label(probe)}:  {numbers}", loc="left")
        if ax.get_xscale() == "log":
            narrow = part["kl"].max() < 30 * part["kl"].min()
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(with_unit("kl"))
    for ax in axes[:, 0]:
        ax.set_ylabel(f"drop in {with_unit(metric)}")
    for ax in axes.flat[len(probes) :]:
        ax.axis("off")
    legend(fig, axes.flat)
    return fig, data


def ablation(
    drops: pd.DataFrame,
    x: str,
    *,
    xlabel: str | None = None,
    metric: str = "bpb_gold",
    probe: str = "context_free",
    log: bool = False,
) -> tuple[Figure, pd.DataFrame]:
    """Retained drop, target NLL and KL on a probe against one setting, a line a recipe.

    drops: frame of `forgetting.pooled`, rows of one study; x: temperature, ratio or replay_weight.
    The dashed line with its band is plain fine-tuning, which has no such setting.
    Returns the drawn frame: panel, recipe, x (NaN for plain fine-tuning), value, low, high, n_seeds,
    level.
    """
    if x not in SETTINGS:
        raise bad("x", x, "one of " + ", ".join(SETTINGS))
    kept = pick(drops, "retained", metric, "mean")
    panels = {
        "retained": kept.assign(value=kept["drop"]),
        "target": _tuned(pick(drops, "target", "nll")),
        "probe": _tuned(pick(drops, "probe", "kl", probe)),
    }
    rows = []
    for panel, part in panels.items():
        swept = part[part[x].notna()]
        plain = part[(part["recipe"] == "ft") & part["lr"].isin(swept["lr"])]
        found = pd.concat([swept, plain[plain[x].isna()]]).assign(panel=panel)
        if found.duplicated(["recipe", x]).any():
            raise UserError(f"drops hold two runs of a recipe at one {x}; give rows of one study")
        rows.append(found[["panel", "recipe", x, "value", "low", "high", "n_seeds", "level"]])
    data = by_recipe(some(pd.concat(rows), f"runs with a {x}"))
    xlabel = xlabel or label(x)
    fig, axes = figure(f"Effect of the {xlabel}\n{coverage(data)}", (9, 3.9), ncols=3)
    names = (f"drop in {with_unit(metric)}", f"target {with_unit('nll')}", with_unit("kl"))
    titles = ("Retained: above 0 is worse", "Target: lower is better", f"KL on {label(probe)}")
    for ax, panel, name, title in zip(axes, panels, names, titles, strict=True):
        part = data[data["panel"] == panel]
        if log:
            log_axis(ax, part[x])
        for recipe, own in part[part[x].notna()].groupby("recipe", sort=False):
            bars = error_bars(own["value"], own["low"], own["high"])
            dots(ax, recipe, own[x], own["value"], yerr=bars, line="-", label=label(recipe))
        for row in part[part[x].isna()].itertuples():
            hue = colour(row.recipe)
            ax.axhline(row.value, color=hue, linestyle="--", label=label(row.recipe))
            ax.axhspan(row.low, row.high, color=hue, alpha=0.12, linewidth=0)
        tick_values(ax, part[x])
        ax.set(xlabel=xlabel, ylabel=name)
        ax.set_title(title, loc="left")
    legend(fig, axes)
    return fig, data


def _tuned(drops: pd.DataFrame) -> pd.DataFrame:
    """Rows with the tuned score as value, and the interval around it."""
    found = score_interval(drops)
    return found.assign(value=found["tuned"], low=found["tuned_low"], high=found["tuned_high"])


def recipe_bars(drops: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """Mean retained drop of every recipe with its interval, and what the interval says.

    drops: frame of `forgetting.pooled`. Returns its rows that were drawn, with label and verdict.
    """
    data = with_verdict(some(pick(drops, "retained", metric, "mean"), f"retained mean of {metric}"))
    title = f"Forgetting, mean over retained tasks\n{coverage(data)}"
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
