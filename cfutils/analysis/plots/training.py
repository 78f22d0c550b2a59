"""Figures of tuning: loss against step, and the learning rate that validation items chose."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from cfutils.analysis.forgetting import by_recipe
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
from cfutils.recipes import RECIPES

PANELS = {
    "target_loss": "Target, NLL",
    "replay_nll": "Replay, NLL",
    "replay_kl": "Replay, KL(base ‖ tuned)",
}


def training_curves(log: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Both loss terms against step: raw values faint, running means strong.

    log: recipe, seed, step, target_loss, replay_loss (nats per token; NaN without replay) and
    optionally run. Replay losses by NLL and by KL have a panel each: their values are not comparable.
    Returns the drawn frame: recipe, (run,) seed, step, term, raw, smooth (centred running mean over a tenth of
    the steps).
    """
    keys = [c for c in ("recipe", "run", "seed") if c in log]
    terms = ["target_loss", "replay_loss"]
    # the log's lr is that of the step, not a setting: left out, or rows would be sorted by it
    log = by_recipe(some(log, "training steps")[[*keys, "step", *terms]].sort_values("step"))
    data = log.melt([*keys, "step"], terms, "term", "raw").dropna(subset="raw")
    replays = data["term"] == "replay_loss"
    losses = data.loc[replays, "recipe"].map(lambda name: RECIPES[name].replay_loss)
    data.loc[replays, "term"] = "replay_" + losses
    window = max(1, log["step"].nunique() // 10)
    data["smooth"] = data.groupby([*keys, "term"], sort=False)["raw"].transform(
        lambda c: c.rolling(window, center=True, min_periods=1).mean()
    )
    title = f"Loss in training: each step (faint), mean over {window} steps (strong)"
    panels = {term: name for term, name in PANELS.items() if (data["term"] == term).any()}
    fig, axes = figure(title, (8.8, 3.7), ncols=len(panels), squeeze=False)
    for ax, (term, name) in zip(axes.flat, panels.items(), strict=True):
        part = data[data["term"] == term]
        for (recipe, *_), own in part.groupby(keys, sort=False):
            ax.plot(own["step"], own["raw"], color=colour(recipe), alpha=0.2, linewidth=0.8)
            ax.plot(own["step"], own["smooth"], color=colour(recipe), label=label(recipe))
        ax.set(xlabel="optimiser step", ylabel="loss (nats per token)")
        ax.set_title(name, loc="left")
    legend(fig, axes.flat)
    return fig, data.reset_index(drop=True)


def learning_rate(levels: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """NLL of the target's validation items against learning rate, the lowest marked.

    levels: frame of `forgetting.levels` of a sweep, with the base if its line is to be drawn. Intervals
    are those of each score; all runs answer the same items.
    Returns the drawn frame: recipe, lr (NaN for the base), value, low, high, n_seeds, level, chosen.
    """
    part = some(pick(levels, "validation", "nll"), "validation NLL")
    columns = ["recipe", "lr", "value", "low", "high", "n_seeds", "level"]
    data = by_recipe(part[columns])
    tuned = some(data[data["recipe"] != "base"], "validation NLL of a tuned model")
    data["chosen"] = (data["recipe"] != "base") & (
        data["value"] == data.groupby("recipe")["value"].transform("min")
    )
    log = wide_range(data["value"])
    fig, ax = figure(
        "Learning rate, chosen by validation items of the target alone\n"
        f"mean with {coverage(data)}, of each score",
        (7.5, 4.4),
    )
    log_axis(ax, tuned["lr"])
    if log:
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)
    for recipe, own in data[data["recipe"] != "base"].groupby("recipe", sort=False):
        x, y, name = own["lr"], own["value"], label(recipe)
        dots(ax, recipe, x, y, yerr=error_bars(y, own["low"], own["high"]), line="-", label=name)
        for best in own[own["chosen"]].head(1).itertuples():
            ring = {"markersize": 15, "markerfacecolor": "none", "linestyle": "none"}
            ax.plot(best.lr, best.value, "o", **ring, markeredgecolor=colour(recipe),
                    label=f"chosen for {name}: {best.lr:g}")  # fmt: skip
    for base in data[data["recipe"] == "base"].itertuples():
        ax.axhline(base.value, color="black", linestyle=":", label=label("base"))
        ax.axhspan(base.low, base.high, color="black", alpha=0.1, linewidth=0)
    tick_values(ax, data["lr"])
    ax.set_xlabel("peak learning rate (log axis)")
    ax.set_ylabel(f"validation {with_unit('nll')}{', log axis' if log else ''}\n← better")
    legend(fig, [ax], columns=3)
    return fig, data
