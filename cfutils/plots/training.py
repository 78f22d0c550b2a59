"""Figures of tuning: loss against step, and the learning rate that the target score chose."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from cfutils.forgetting import by_recipe
from cfutils.plots.style import (
    colour,
    dots,
    figure,
    label,
    legend,
    log_axis,
    pick,
    some,
    tick_values,
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
    optionally run. Replay by NLL and by KL have a panel each: their sizes do not compare. Returns the
    drawn frame: recipe, (run,) seed, step, term, raw, smooth (centred running mean over a tenth of
    the steps).
    """
    keys = [c for c in ("recipe", "run", "seed") if c in log]
    terms = ["target_loss", "replay_loss"]
    # the log's lr is that of the step, no setting: left out, lest rows be sorted by it
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


def learning_rate(scores: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Target NLL against learning rate, the lowest marked: chosen by target score alone.

    scores: the tidy scores of a sweep, with the base's if its level is to be shown. Error bars are
    +- one stderr over items, the same items for all.
    Returns the drawn frame: recipe, lr, value, stderr, n_seeds, chosen.
    """
    part = some(pick(scores, "target", "nll"), "target NLL")
    base = part.loc[part["recipe"] == "base", "value"]
    tuned = some(part[part["recipe"] != "base"], "target NLL of a tuned model")
    data = by_recipe(
        tuned.groupby(["recipe", "lr"], as_index=False).agg(
            value=("value", lambda c: c.mean(skipna=False)),  # a seed that diverged must show
            stderr=("stderr", "mean"),
            n_seeds=("seed", "nunique"),
        )
    )
    data["chosen"] = data["value"] == data.groupby("recipe")["value"].transform("min")
    many = int(data["n_seeds"].max())
    fig, ax = figure(
        "Learning rate, chosen by held-out target score alone\n"
        f"{'one seed' if many == 1 else f'mean over {many} seeds'}; ± one standard error over items",
        (7.5, 4.4),
    )
    log_axis(ax, data["lr"])
    for recipe, own in data.groupby("recipe", sort=False):
        x, y, name = own["lr"], own["value"], label(recipe)
        dots(ax, recipe, x, y, yerr=own["stderr"], line="-", label=name)
        for best in own[own["chosen"]].head(1).itertuples():
            ring = {"markersize": 15, "markerfacecolor": "none", "linestyle": "none"}
            ax.plot(best.lr, best.value, "o", **ring, markeredgecolor=colour(recipe),
                    label=f"chosen for {name}: {best.lr:g}")  # fmt: skip
    if len(base):
        ax.axhline(base.iloc[0], color="black", linestyle=":", label=label("base"))
    tick_values(ax, data["lr"])
    ax.set_xlabel("peak learning rate (log axis)")
    ax.set_ylabel(f"target {with_unit('nll')}\n← better")
    legend(fig, [ax], columns=3)
    return fig, data
