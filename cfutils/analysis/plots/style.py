"""What all figures share: style, colours, markers, labels, units, saving, and drawing helpers.

One colour and marker for each recipe, one map of labels. Files are identical byte for byte when
redrawn from the same data, so that a changed figure means changed numbers. The figures themselves are
made by the modules beside this one.
"""

from __future__ import annotations

import functools
import io
import unicodedata
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cfutils import atomic, events
from cfutils.analysis.forgetting import SETTINGS, by_recipe, verdicts
from cfutils.errors import UserError
from cfutils.recipes import RECIPES

# Okabe and Ito (2008) without their yellow, which is lost on white; grey, wine and olive added
_HUES = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#7A7A7A", "#882255",
         "#999933")  # fmt: skip
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # for what is not a recipe
_SHAPES = "oDs^vPXhp"
COLOURS = {"base": "#000000", **dict(zip(list(RECIPES), cycle(_HUES)))}
# another shape each time that the colours begin again: no two recipes share both
MARKERS = {"base": "*", **{name: _SHAPES[(i + i // 9) % 9] for i, name in enumerate(RECIPES)}}
LABELS = {
    "base": "Base",
    **{name: recipe.label for name, recipe in RECIPES.items()},
    "nll": "NLL", "bpb": "bits per byte", "acc": "accuracy", "acc_norm": "normalised accuracy",
    "margin": "margin", "bpb_gold": "answer bits per byte", "kl": "KL(base || tuned)",
    "exact_match": "exact match", "exact_match_flexible": "exact match, flexible",
    "acc_cut": "accuracy, thought cut off", "thinks": "answers with a thought",
    "ended": "thoughts that end", "answered": "answers found", "thought_tokens": "length of the thought",
    "target": "target", "retained": "retained", "mean": "mean",
    "gsm8k": "GSM8K", "medmcqa": "MedMCQA", "hellaswag": "HellaSwag", "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge", "piqa": "PIQA", "social_iqa": "SocialIQA",
    "winogrande": "WinoGrande",
    "squad": "SQuAD", "coqa": "CoQA", "triviaqa": "TriviaQA", "nq_open": "NQ-Open", "jeopardy": "Jeopardy",
    "gsm8k_solution": "GSM8K solutions", "lambada_openai": "LAMBADA",
    "openbookqa": "OpenBookQA", "boolq": "BoolQ", "sciq": "SciQ", "mmlu": "MMLU",
    "minerva_math500": "MATH-500", "aime24": "AIME 2024", "aime25": "AIME 2025",
    "gpqa_diamond_cot_zeroshot": "GPQA Diamond", "medqa_4options": "MedQA", "pubmedqa": "PubMedQA",
    "context_free": "context-free samples",
    "prose": "prose", "stories": "stories", "target_inputs": "target inputs",
    "temperature": "generation temperature", "ratio": "share of replay tokens in the mix",
    "replay_weight": "weight of the replay loss, λ", "lr": "learning rate", "alpha": "α",
    "strength": "strength",
}  # fmt: skip
UNITS = {"nll": "nats per token", "kl": "nats per token", "margin": "nats", "thought_tokens": "tokens"}
_SHORT = {"temperature": "T", "ratio": "ratio", "replay_weight": "λ", "lr": "lr", "alpha": "α",
          "strength": "s"}  # fmt: skip
MONO = "DejaVu Sans Mono"
SIDE = 0.2  # margin of a page of text, inches
MONO_ADVANCE = 0.602  # width of one character in units of the font size
_RC = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10,
    "figure.titlesize": 11.5, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "figure.constrained_layout.use": True, "figure.dpi": 110, "savefig.dpi": 160,
    "savefig.bbox": "standard", "pdf.fonttype": 42, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.7,
    "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.6, "text.usetex": False,
}  # fmt: skip


def style() -> None:
    """Set the one style of all figures; every plot function calls it."""
    sns.set_theme(style="ticks", rc=_RC)


def label(name: str) -> str:
    """Return the display name of a recipe, task, metric or setting; the name itself if unknown."""
    if name in RECIPES:  # also one that was registered later
        return RECIPES[name].label
    return LABELS.get(name, name)


def named(text: str) -> str:
    """Write the recipe or metric that a text begins with by its display name; what follows it stays."""
    first, *rest = str(text).split(" ", 1)
    return " ".join([label(first), *rest])


def colour(recipe: str) -> str:
    """Return a recipe's colour; grey for one that is not in the table that ships."""
    return COLOURS.get(recipe, "#444444")


def ink(recipe: str) -> str:
    """Return a recipe's colour darkened, for text: the light ones are hard to read on white."""
    return to_hex(np.array(to_rgb(colour(recipe))) * 0.72)


def shades(values: pd.Series) -> dict[float, np.ndarray]:
    """Return one colour for each value of a setting, the lowest darkest; NaN has none."""
    found = sorted(values.dropna().unique())
    colours = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, len(found)))
    return dict(zip(found, colours, strict=True))


def with_unit(metric: str) -> str:
    return f"{label(metric)} ({UNITS[metric]})" if metric in UNITS else label(metric)


def save(fig: Figure, name: str, data: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Write NAME.png, NAME.pdf and NAME.csv (the data drawn), each whole or not at all.

    Returns the paths by kind. The same figure gives the same bytes on one version of matplotlib.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"csv": data.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")}
    # neither version nor date: a changed file means changed numbers
    blank = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(_RC):
        for kind, metadata in blank.items():
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, metadata=metadata)
            contents[kind] = buffer.getvalue()
    paths = {kind: folder / f"{name}.{kind}" for kind in ("png", "pdf", "csv")}
    for kind, path in paths.items():
        with atomic.replacing(path) as part:
            part.write_bytes(contents[kind])
    events.emit("figure", path=str(paths["png"]))
    return paths


def figure(title: str, size: tuple[float, float], **grid: Any) -> tuple[Figure, Any]:
    style()
    fig, axes = plt.subplots(figsize=size, **grid)
    fig.suptitle(title, x=0.01, ha="left")
    return fig, axes


def some(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """Return the frame with a fresh index; raises `UserError` naming what is missing."""
    if frame.empty:
        raise UserError(f"nothing to draw: the frame holds no {what}")
    return frame.reset_index(drop=True)


def pick(drops: pd.DataFrame, group: str, metric: str, task: str | None = None) -> pd.DataFrame:
    found = drops[(drops["group"] == group) & (drops["metric"] == metric)]
    return found if task is None else found[found["task"] == task]


def coverage(frame: pd.DataFrame) -> str:
    """Describe the intervals for a title: level, and whether they cover items alone or seeds too."""
    seeds = frame.loc[frame["n_seeds"] > 0, "n_seeds"]  # the base has none
    low, high = int(seeds.min()), int(seeds.max())
    start = f"{frame['level'].dropna().iloc[0]:.0%} intervals over items"
    if high == 1:
        return f"{start} (one seed)"
    return f"{start} and {high if low == high else f'{low} to {high}'} seeds"


def row_labels(frame: pd.DataFrame) -> list[str]:
    """Label each row by its recipe and by the settings that differ within that recipe."""
    varied = {
        name: [c for c in SETTINGS if c in part and part[c].nunique() > 1]
        for name, part in frame.groupby("recipe")
    }
    found = []
    for row in frame.to_dict("records"):
        marks = [f"{_SHORT[c]}={row[c]:g}" for c in varied[row["recipe"]] if not pd.isna(row[c])]
        found.append(" ".join([label(row["recipe"]), *marks]))
    return found


def error_bars(centre: Any, low: Any, high: Any) -> np.ndarray:
    """Lengths (2, n) of error bars, at least 0: a bootstrap interval may just miss its centre."""
    return np.nan_to_num(np.clip([centre - low, high - centre], 0, None))


def with_verdict(drops: pd.DataFrame) -> pd.DataFrame:
    """Sort for display; add label and verdict."""
    drops = by_recipe(drops)
    return drops.assign(label=row_labels(drops), verdict=verdicts(drops))


def wide_range(values: pd.Series) -> bool:
    """Whether values that are all positive span more than a factor of ten: shown on a log axis."""
    values = values.dropna()
    return len(values) > 0 and values.min() > 0 and bool(values.max() > 10 * values.min())


def plain_ticks(axis: Axis) -> None:
    """Write the ticks of a log axis as plain numbers: 0.01, 0.1, 1."""
    axis.set_major_locator(LogLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_axis(ax: Axes, values: pd.Series) -> None:
    """Make x logarithmic; where there is a zero too, linear below the smallest positive value.

    Call it before drawing: limits set on a linear axis would stay.
    """
    positive = values[values > 0]
    if len(positive) and (values <= 0).any():
        ax.set_xscale("symlog", linthresh=positive.min())
    elif len(positive):
        ax.set_xscale("log")


def tick_values(ax: Axes, values: pd.Series) -> None:
    """Put ticks at the values that were run alone (a log axis would add its own between them)."""
    places = sorted(values.dropna().unique())
    ax.set_xticks(places, [f"{v:g}" for v in places])
    ax.set_xticks([], minor=True)


def dots(ax: Axes, recipe: str, x: Any, y: Any, *, line: str = "none", **more: Any) -> None:
    """Draw points of a recipe with their intervals."""
    points(ax, x, y, color=colour(recipe), marker=MARKERS.get(recipe, "o"), linestyle=line, **more)


def points(ax: Axes, x: Any, y: Any, **look: Any) -> None:
    """Draw points with their intervals in the style of all figures; `look` overrides it."""
    usual = {"linestyle": "none", "markersize": 7, "markeredgecolor": "white",
             "markeredgewidth": 0.7, "elinewidth": 1.3, "capsize": 2.5}  # fmt: skip
    ax.errorbar(x, y, **{**usual, **look})


def legend(fig: Figure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    """Put one legend below all panels; a name that several panels share is listed once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if found:
        columns = min(columns, len(found))
        fig.legend(found.values(), found, loc="outside lower center", ncols=columns)


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points that the monospaced font can draw."""
    font = font_manager.get_font(font_manager.findfont(MONO))
    return frozenset(font.get_charmap())


def visible(text: str) -> str:
    """Make text displayable: line ends and tabs as symbols, controls as escapes, odd glyphs as boxes.

    Controls include those of writing direction, which would reverse the text that follows.
    """
    found = []
    for sign in str(text).replace("\r\n", "\n"):
        if sign == "\n":
            found.append("⏎\n")
        elif sign == "\t":
            found.append("→   ")
        elif unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            found.append(f"\\x{ord(sign):02x}")
        elif ord(sign) not in _glyphs() or unicodedata.combining(sign):
            found.append("□")
        else:
            found.append(sign)
    return "".join(found)


def sheet(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return a page for text: one axis without marks, in inches from the top left."""
    fig, ax = figure("", size)
    fig.set_layout_engine("none")
    fig.suptitle(title, x=SIDE / size[0], y=1 - 0.12 / size[1], ha="left", va="top")
    ax.set_position((0, 0, 1, 1))
    ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
    ax.axis("off")
    return fig, ax
