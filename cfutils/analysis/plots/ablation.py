"""Figures of an ablation: three scores against one setting, a curve per recipe, references as lines."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfutils.analysis.forgetting import LOWER_IS_BETTER, SETTINGS, by_recipe
from cfutils.analysis.plots.style import (
    colour,
    coverage,
    dots,
    error_bars,
    figure,
    label,
    legend,
    log_axis,
    pick,
    plain_ticks,
    some,
    tick_values,
    wide_range,
    with_unit,
)
from cfutils.errors import UserError, invalid_value

_LINES = {"base": ":", "ft": "--"}
"""References: the line of each."""


def ablation(
    drops: pd.DataFrame,
    x: str,
    *,
    xlabel: str | None = None,
    metric: str = "bpb_gold",
    target: str = "nll",
    probe: str = "context_free",
    log: bool = False,
) -> tuple[Figure, pd.DataFrame]:
    """Retained drop, target score and KL on a probe against one setting, a curve per recipe.

    drops: frame of `forgetting.pooled`, rows of one study; x: temperature, ratio or replay_weight; log:
    whether x is on a log axis. Lines with bands are the base and plain fine-tuning, which have no such
    setting. The drop has the interval of the paired difference, the other two that of the score itself.
    Returns the drawn frame: panel, recipe, x (NaN for base and plain fine-tuning), value, low, high,
    n_seeds, level.
    """
    if x not in SETTINGS:
        raise invalid_value("x", x, "one of " + ", ".join(SETTINGS))
    kept = pick(drops, "retained", metric, "mean")
    panels = {
        "retained": kept.assign(value=kept["drop"], base=0.0, base_low=0.0, base_high=0.0),
        "target": _scores(pick(drops, "target", target)),
        "probe": _scores(pick(drops, "probe", "kl", probe)),
    }
    data = pd.concat([_rows(part, x).assign(panel=name) for name, part in panels.items()])
    columns = ["panel", "recipe", x, "value", "low", "high", "n_seeds", "level"]
    data = by_recipe(some(data[columns], f"runs with a {x}"))
    xlabel = xlabel or label(x)
    fig, axes = figure(
        f"Effect of the {xlabel}\n"
        f"{coverage(data)}: of the paired difference (left), of the score itself (middle, right)",
        (10.5, 4.3), ncols=3,
    )  # fmt: skip
    titles = {
        "retained": "Retained: above 0 is worse",
        "target": f"Target: {'lower' if target in LOWER_IS_BETTER else 'higher'} is better",
        "probe": f"KL on {label(probe)}",
    }
    names = {
        "retained": f"drop in {with_unit(metric)}",
        "target": f"target {with_unit(target)}",
        "probe": with_unit("kl"),
    }
    for ax, (panel, name) in zip(axes, names.items(), strict=True):
        part = data[data["panel"] == panel]
        if log:
            log_axis(ax, part[x])
        if panel == "target" and wide_range(part["value"]):
            ax.set_yscale("log")
            plain_ticks(ax.yaxis)
            name += ", log axis"
        _curves(ax, part[part[x].notna()], x, log=log)
        _references(ax, part[part[x].isna()])
        tick_values(ax, part[x])
        ax.set(xlabel=xlabel, ylabel=name)
        ax.set_title(titles[panel], loc="left")
    legend(fig, axes)
    return fig, data


def _scores(drops: pd.DataFrame) -> pd.DataFrame:
    """Rows with the tuned score as value, and its own interval."""
    return drops.assign(value=drops["tuned"], low=drops["tuned_low"], high=drops["tuned_high"])


def _rows(part: pd.DataFrame, x: str) -> pd.DataFrame:
    """Rows of one panel: runs with the setting, plain fine-tuning at their learning rate, the base."""
    swept = part[part[x].notna()]
    plain = part[(part["recipe"] == "ft") & part["lr"].isin(swept["lr"])]
    found = pd.concat([swept, plain[plain[x].isna()]])
    if found.duplicated(["recipe", x]).any():
        raise UserError(f"drops hold two runs of a recipe at one {x}; give rows of one study")
    ends = {"base": "value", "base_low": "low", "base_high": "high"}
    base = found.head(1)[[*ends, "level"]].rename(columns=ends).assign(recipe="base", n_seeds=0)
    return pd.concat([found, base])


def _curves(ax: Axes, part: pd.DataFrame, x: str, *, log: bool) -> None:
    """Draw one curve per recipe; points of several recipes stand side by side."""
    recipes = list(dict.fromkeys(part["recipe"]))
    span = float(np.ptp(part[x])) or 1.0
    for place, recipe in enumerate(recipes):
        own = part[part["recipe"] == recipe]
        aside = place - (len(recipes) - 1) / 2
        at = own[x] * 1.04**aside if log else own[x] + 0.016 * span * aside
        bars = error_bars(own["value"], own["low"], own["high"])
        dots(ax, recipe, at, own["value"], yerr=bars, line="-", markersize=6, label=label(recipe))


def _references(ax: Axes, part: pd.DataFrame) -> None:
    """Draw lines with bands for the recipes that have no such setting."""
    for row in part.itertuples():
        hue = colour(row.recipe)
        ax.axhline(row.value, color=hue, linestyle=_LINES.get(row.recipe, "-."), linewidth=1.3,
                   label=label(row.recipe))  # fmt: skip
        if row.high > row.low:
            ax.axhspan(row.low, row.high, color=hue, alpha=0.12, linewidth=0)
