"""Kinds of methods, for figures of more methods than colours and shapes can tell apart."""

from __future__ import annotations

from cfutils.analysis.plots.style import colour
from cfutils.recipes import RECIPES

FAMILIES = {
    "replay: NLL": lambda r: r.replay and r.target and r.replay_loss == "nll" and not r.after,
    "replay: KL": lambda r: r.replay and r.replay_loss == "kl" and r.target and not r.after,
    "weights that are trained": lambda r: r.train != "all" or r.after == "reduce_intruders",
    "penalties": lambda r: r.penalty or (r.target_kl and not r.weighting),
    "weights of target tokens": lambda r: (r.weighting and not r.replay) or r.rewritten,
    "after fine-tuning, and controls": lambda r: r.after in ("average", "recover") or not r.target,
}
"""Kinds of methods, by what their rows say; each method belongs to one."""
PLAIN = "plain fine-tuning"
_OWNERS = ("ft", "cfs", "cf_kl", "lora", "contextual", "replay_text", "l2")
"""Recipes whose colours the kinds take, `PLAIN` first."""
_LOOKS = {
    kind: {"color": colour(owner), "marker": marker}
    for kind, owner, marker in zip((PLAIN, *FAMILIES), _OWNERS, "oDsh^vP", strict=True)
}


def family(recipe: str) -> str:
    """Return the kind of method that a recipe belongs to; plain fine-tuning, and unknown ones, are of their own."""
    row = RECIPES.get(recipe)
    return next((name for name, belongs in FAMILIES.items() if row and belongs(row)), PLAIN if row else "other")


def look(kind: str) -> dict[str, str]:
    """Return the colour and the marker of a kind."""
    return _LOOKS.get(kind, {"color": colour(kind), "marker": "X"})
