"""Figures from tidy frames: every function takes frames and returns (figure, the frame it drew).

    fig, data = plots.frontier(drops); plots.save(fig, "frontier", data, folder)

A figure and the CSV beside it can never disagree, since the function draws from the frame that it
returns. `style` and `direct_labels` hold what figures share; `base`, `samples`, `training`, `retained`,
`ablation`, `drift`, `estimates` and `thinking` draw. Every figure with intervals states in its title what they are.
Trade-off: statistics are not computed here but in `forgetting`, whose frames these functions take.
"""

from cfutils.analysis.plots.ablation import ablation  # the function hides the module of its name
from cfutils.analysis.plots.base import kind_shares, pretraining_curve, skill_bars
from cfutils.analysis.plots.claims import claim_intervals, frontiers, ranking
from cfutils.analysis.plots.drift import token_drift
from cfutils.analysis.plots.estimates import kl_against_temperature, kl_bias, kl_convergence
from cfutils.analysis.plots.retained import (
    drop_heatmap,
    frontier,
    kl_against_drop,
    recipe_bars,
)
from cfutils.analysis.plots.runs import run_choice
from cfutils.analysis.plots.samples import samples_diagnostics, samples_text
from cfutils.analysis.plots.style import (  # the function hides the module of its name
    COLOURS,
    LABELS,
    MARKERS,
    UNITS,
    colour,
    label,
    named,
    row_labels,
    save,
    style,
)
from cfutils.analysis.plots.thinking import thinking_recipes, thinking_shapes, thinking_skills
from cfutils.analysis.plots.training import learning_rate, training_curves

__all__ = [
    "COLOURS",
    "LABELS",
    "MARKERS",
    "UNITS",
    "ablation",
    "claim_intervals",
    "colour",
    "drop_heatmap",
    "frontier",
    "frontiers",
    "kind_shares",
    "kl_against_drop",
    "kl_against_temperature",
    "kl_bias",
    "kl_convergence",
    "label",
    "learning_rate",
    "named",
    "pretraining_curve",
    "ranking",
    "recipe_bars",
    "row_labels",
    "run_choice",
    "samples_diagnostics",
    "samples_text",
    "save",
    "skill_bars",
    "style",
    "thinking_recipes",
    "thinking_shapes",
    "thinking_skills",
    "token_drift",
    "training_curves",
]
