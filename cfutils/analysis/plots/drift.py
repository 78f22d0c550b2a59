"""How far tuned models are from the base, token by token: a page of coloured text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from cfutils.analysis.forgetting import by_recipe
from cfutils.analysis.plots.style import (
    MONO,
    MONO_ADVANCE,
    SIDE,
    label,
    sheet,
    some,
    visible,
)
from cfutils.errors import invalid_value

_DRIFT = {
    "kl": "KL(base || tuned) at the token (nats)",
    "change": "change in log-probability of the token (nats)",
}


def _drift(
    tokens: pd.DataFrame, value: str, sequence: Any, length: int | None
) -> tuple[pd.DataFrame, ScalarMappable]:
    """Rows of one passage with their value, and one colour scale for all recipes."""
    if value not in _DRIFT:
        raise invalid_value("value", value, "one of " + ", ".join(_DRIFT))
    tokens = some(tokens, "tokens")
    sequence = tokens["sequence"].iloc[0] if sequence is None else sequence
    data = some(tokens[tokens["sequence"] == sequence], f"sequence {sequence!r}")
    shown = data["kl"] if value == "kl" else data["nll_base"] - data["nll"]
    data = by_recipe(data.assign(value=shown).sort_values("position", kind="stable"))
    data = data[["recipe", "sequence", "position", "token", "value"]]
    if length is not None:
        data = data.groupby("recipe", sort=False).head(length).reset_index(drop=True)
    # scaled to the largest value alone, all others would be pale
    limit = float(np.nanquantile(np.abs(data["value"]), 0.99)) or 1.0
    low, name = (0.0, "Reds") if value == "kl" else (-limit, "RdBu")
    return data, ScalarMappable(Normalize(low, limit, clip=True), name)


def _ink(shade: tuple) -> str:
    """Black on light, white on dark (luminance after Rec. 709)."""
    return "black" if 0.2126 * shade[0] + 0.7152 * shade[1] + 0.0722 * shade[2] > 0.45 else "white"


def token_drift(
    tokens: pd.DataFrame, *, value: str = "kl", sequence: Any = None, length: int | None = 120
) -> tuple[Figure, pd.DataFrame]:
    """One passage for each recipe, each token on a background coloured by how far the model moved there.

    tokens: recipe, sequence, position, token (text), nll, nll_base, kl (nats). value: "kl", or
    "change" (nll_base - nll: below 0, the token is less likely under the tuned model). Shows the first
    `length` tokens of one sequence, the first sequence unless given.
    Returns the drawn frame: recipe, sequence, position, token, value.
    """
    data, scale = _drift(tokens, value, sequence, length)
    width, size = 88, 9.0
    pieces, heads, line = [], [], 0
    for recipe, own in data.groupby("recipe", sort=False):
        heads.append((line, label(recipe)))
        laid, used = _lay(own["token"], width)
        fills = scale.to_rgba(own["value"].to_numpy(float))
        pieces += [(line + 1 + row, column, text, fills[i]) for i, row, column, text in laid]
        line += used + 2
    step_x, step_y, top, foot = MONO_ADVANCE * size / 72, size * 1.6 / 72, 0.5, 0.6
    wide, tall = width * step_x + 2 * SIDE, top + line * step_y + foot
    fig, ax = sheet("Distance of the tuned models from the base, token by token", (wide, tall))
    for row, name in heads:
        y = top + (row + 0.5) * step_y
        ax.text(SIDE, y, name, size=size + 0.5, weight="bold", va="center")
    for row, column, text, fill in pieces:
        x, y = SIDE + column * step_x, top + row * step_y
        box = (len(text) * step_x, step_y * 0.94)
        ax.add_patch(plt.Rectangle((x, y), *box, facecolor=fill, linewidth=0))
        ax.text(x, y + step_y * 0.47, text, size=size, family=MONO, va="center_baseline",
                color=_ink(fill), parse_math=False)  # fmt: skip
    bar = fig.add_axes((0.25, 0.5 / tall, 0.5, 0.12 / tall))
    over = "max" if value == "kl" else "both"
    fig.colorbar(scale, cax=bar, orientation="horizontal", label=_DRIFT[value], extend=over)
    return fig, data


def _lay(tokens: Iterable[str], width: int) -> tuple[list[tuple[int, int, int, str]], int]:
    """Break tokens into lines: (token's number, line, column, text) of each piece, and lines used.

    A token is broken at a line end within it, or where it is wider than a line.
    """
    found, line, column = [], 0, 0
    for i, token in enumerate(tokens):
        for part in visible(token).splitlines(keepends=True):
            text = part.rstrip("\n")
            if column and column + len(text) > width:
                line, column = line + 1, 0
            for start in range(0, len(text), width):
                if start:
                    line, column = line + 1, 0
                found.append((i, line, column, text[start : start + width]))
                column += len(found[-1][-1])
            if part.endswith("\n"):
                line, column = line + 1, 0
    return found, line + bool(column)
