"""Figures from tidy frames: every function takes frames and returns (figure, the frame it drew).

    fig, data = plots.frontier(drops); plots.save(fig, "frontier", data, folder)

A figure and the CSV beside it can never disagree, since the function draws from the frame that it
returns. `style` holds what figures share; `samples`, `training`, `retained` and `drift` draw.
Trade-off: statistics are not computed here but in `forgetting`, whose frames these functions want.
"""

from cfutils.plots.drift import html_drift, token_drift
from cfutils.plots.retained import ablation, drop_heatmap, frontier, kl_against_drop, recipe_bars
from cfutils.plots.samples import samples_diagnostics, samples_text
from cfutils.plots.style import (  # the function hides the module of its name
    COLOURS,
    LABELS,
    MARKERS,
    UNITS,
    colour,
    label,
    row_labels,
    save,
    style,
)
from cfutils.plots.training import learning_rate, training_curves

__all__ = [
    "COLOURS",
    "LABELS",
    "MARKERS",
    "UNITS",
    "ablation",
    "colour",
    "drop_heatmap",
    "frontier",
    "html_drift",
    "kl_against_drop",
    "label",
    "learning_rate",
    "recipe_bars",
    "row_labels",
    "samples_diagnostics",
    "samples_text",
    "save",
    "style",
    "token_drift",
    "training_curves",
]
