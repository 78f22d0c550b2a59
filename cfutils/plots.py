"""Figures from tidy frames: every function takes frames and returns (figure, the frame it drew).

    fig, data = plots.frontier(drops); plots.save(fig, "frontier", data, folder)

A figure and the CSV beside it can never disagree, since the function draws from the frame that it
returns. One style, one colour and marker for each recipe, one map of labels. Files are identical
byte for byte when redrawn from the same data, so that a changed figure means changed numbers.
Trade-off: statistics are not computed here but in `forgetting`, whose frames these functions want.
"""

from __future__ import annotations

import functools
import html
import io
import math
import os
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
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
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cfutils import store
from cfutils.errors import UserError, bad
from cfutils.forgetting import (
    LOWER_IS_BETTER,
    RUN,
    SETTINGS,
    by_recipe,
    relation,
    score_interval,
    trail,
    verdict,
)
from cfutils.recipes import RECIPES

# Okabe and Ito (2008) without their yellow, which is lost on white; grey, wine and olive added
_HUES = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#7A7A7A", "#882255",
         "#999933")  # fmt: skip
_SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # for what is not a recipe
COLOURS = {"base": "#000000", **dict(zip(list(RECIPES), cycle(_HUES)))}
MARKERS = {"base": "*", **dict(zip(list(RECIPES), cycle("oDs^vPXhp")))}
LABELS = {
    "base": "Base",
    **{name: recipe.label for name, recipe in RECIPES.items()},
    "nll": "NLL", "bpb": "bits per byte", "acc": "accuracy", "acc_norm": "normalised accuracy",
    "margin": "margin", "bpb_gold": "answer bits per byte", "kl": "KL(base || tuned)",
    "exact_match": "exact match", "exact_match_flexible": "exact match, flexible",
    "target": "target", "retained": "retained", "mean": "mean",
    "gsm8k": "GSM8K", "medmcqa": "MedMCQA", "hellaswag": "HellaSwag", "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge", "piqa": "PIQA", "winogrande": "WinoGrande",
    "lambada_openai": "LAMBADA", "openbookqa": "OpenBookQA", "boolq": "BoolQ", "sciq": "SciQ",
    "context_free": "context-free samples",
    "prose": "prose", "stories": "stories", "target_inputs": "target inputs",
    "temperature": "generation temperature", "ratio": "share of replay tokens in the mix",
    "replay_weight": "weight of the replay loss, λ", "lr": "learning rate", "alpha": "α",
}  # fmt: skip
UNITS = {"nll": "nats per token", "kl": "nats per token", "margin": "nats"}
_SHORT = {"temperature": "T", "ratio": "ratio", "replay_weight": "λ", "lr": "lr", "alpha": "α"}
_MONO = "DejaVu Sans Mono"
_SIDE = 0.2  # margin of a page of text, inches
_MONO_ADVANCE = 0.602  # width of one character in units of the font size
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
    """Return how a recipe, task, metric or setting is written in figures; itself if unknown."""
    return LABELS.get(name, name)


def colour(recipe: str) -> str:
    """Return a recipe's colour; grey for one that is not in the table of recipes."""
    return COLOURS.get(recipe, "#444444")


def _with_unit(metric: str) -> str:
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
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(contents[kind])
        os.replace(part, path)
    store.emit("figure", path=str(paths["png"]))
    return paths


# --- small pieces that figures share ------------------------------------------------------------


def _figure(title: str, size: tuple[float, float], **grid: Any) -> tuple[Figure, Any]:
    style()
    fig, axes = plt.subplots(figsize=size, **grid)
    fig.suptitle(title, x=0.01, ha="left")
    return fig, axes


def _some(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """Return the frame with a fresh index, or say what is missing."""
    if frame.empty:
        raise UserError(f"nothing to draw: the frame holds no {what}")
    return frame.reset_index(drop=True)


def _pick(drops: pd.DataFrame, group: str, metric: str, task: str | None = None) -> pd.DataFrame:
    found = drops[(drops["group"] == group) & (drops["metric"] == metric)]
    return found if task is None else found[found["task"] == task]


def _seeds(frame: pd.DataFrame) -> str:
    """Say what intervals cover, and of how many seeds."""
    low, high = int(frame["n_seeds"].min()), int(frame["n_seeds"].max())
    start = f"{frame['level'].iloc[0]:.0%} intervals over items"
    if high == 1:
        return f"{start}; one seed"
    return f"{start} and {high if low == high else f'{low} to {high}'} seeds"


def row_labels(frame: pd.DataFrame) -> list[str]:
    """Label each row by its recipe and by those settings that differ within the recipe."""
    varied = {
        name: [c for c in SETTINGS if c in part and part[c].nunique() > 1]
        for name, part in frame.groupby("recipe")
    }
    found = []
    for row in frame.to_dict("records"):
        marks = [f"{_SHORT[c]}={row[c]:g}" for c in varied[row["recipe"]] if not pd.isna(row[c])]
        found.append(" ".join([label(row["recipe"]), *marks]))
    return found


def _error(centre: Any, low: Any, high: Any) -> np.ndarray:
    """Lengths (2, n) of error bars; a bootstrap interval may just miss its centre: hence the clip."""
    return np.nan_to_num(np.clip([centre - low, high - centre], 0, None))


def _judged(drops: pd.DataFrame) -> pd.DataFrame:
    """Sort for display; add label and verdict."""
    drops = by_recipe(drops)
    judged = [verdict(*row) for row in drops[["low", "high"]].to_numpy(float)]
    return drops.assign(label=row_labels(drops), verdict=judged)


def _log_axis(ax: Axes, values: pd.Series) -> None:
    """Make x logarithmic; where there is a zero too, linear below the smallest positive value.

    To be called before drawing: limits set on a linear axis would stay.
    """
    positive = values[values > 0]
    if len(positive) and (values <= 0).any():
        ax.set_xscale("symlog", linthresh=positive.min())
    elif len(positive):
        ax.set_xscale("log")


def _ticks(ax: Axes, values: pd.Series) -> None:
    """Tick just the values that were run (a log axis would put its own between them)."""
    places = sorted(values.dropna().unique())
    ax.set_xticks(places, [f"{v:g}" for v in places])
    ax.set_xticks([], minor=True)


def _dots(ax: Axes, recipe: str, x: Any, y: Any, *, line: str = "none", **more: Any) -> None:
    """Draw points of a recipe with their intervals."""
    ax.errorbar(
        x, y, color=colour(recipe), marker=MARKERS.get(recipe, "o"), linestyle=line, markersize=7,
        markeredgecolor="white", markeredgewidth=0.7, elinewidth=1.3, capsize=2.5, **more,
    )  # fmt: skip


def _legend(fig: Figure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    """Put one legend below all panels; a name that several panels share comes once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if found:
        columns = min(columns, len(found))
        fig.legend(found.values(), found, loc="outside lower center", ncols=columns)


# --- samples ------------------------------------------------------------------------------------


def samples_diagnostics(
    samples: pd.DataFrame, diagnostics: pd.DataFrame
) -> tuple[Figure, pd.DataFrame]:
    """Length with the share that ended, token log-probability, entropy by position.

    samples: token_ids, logprobs (nats, of the base at T = 1), finish_reason, temperature, and
    optionally source. diagnostics: source, temperature, position, entropy (nats): a row a token, or
    a row a position with stderr.
    Returns the drawn frame: panel (ended, length, log-probability, entropy), series, x (left edge or
    position), right, y, low, high.
    """
    samples, diagnostics = _some(samples, "samples"), _some(diagnostics, "entropies")
    samples = samples.assign(series=_series(samples))
    diagnostics = diagnostics.assign(series=_series(diagnostics))
    if "stderr" not in diagnostics:
        grouped = diagnostics.groupby(["series", "position"], sort=False)["entropy"]
        diagnostics = grouped.agg(entropy="mean", stderr="sem").reset_index()
    names = list(dict.fromkeys([*samples["series"], *diagnostics["series"]]))
    length = samples["token_ids"].map(len).to_numpy()
    logs = np.concatenate([np.asarray(row, float) for row in samples["logprobs"]])
    spread = {
        "length": (length, samples["series"].to_numpy()),
        "log-probability": (logs, np.repeat(samples["series"], samples["logprobs"].map(len))),
    }
    floor = math.floor(np.clip(logs.min(initial=-1), -20, -1))
    bins = {
        "length": np.linspace(0, length.max() + 1, 21),
        "log-probability": np.linspace(floor, 0, 31),
    }
    rows = []
    for name in names:
        own = samples[samples["series"] == name]
        if len(own):
            share = float((own["finish_reason"] == "stop").mean())
            rows.append({"panel": "ended", "series": name, "y": share})
        for panel, edges in bins.items():
            values, series = spread[panel]
            # what lies below the first edge is counted in the first bin, not lost
            inside = np.clip(values[series == name], edges[0], edges[-1])
            counts, _ = np.histogram(inside, edges)
            for a, b, y in zip(edges, edges[1:], counts / max(counts.sum(), 1), strict=False):
                rows.append({"panel": panel, "series": name, "x": a, "right": b, "y": y})
        for at in diagnostics[diagnostics["series"] == name].itertuples():
            low, high = at.entropy - 1.96 * at.stderr, at.entropy + 1.96 * at.stderr
            row = {"panel": "entropy", "series": name, "x": at.position, "y": at.entropy}
            rows.append({**row, "low": low, "high": high})
    data = pd.DataFrame(rows).reindex(columns=["panel", "series", "x", "right", "y", "low", "high"])
    fig, axes = _figure(
        "Samples of the base: length, probability of their tokens, entropy by position",
        (9, 3.6),
        ncols=3,
    )
    for name, hue, dash in zip(names, cycle(_SERIES), cycle(["-", "--", "-.", ":"]), strict=False):
        own = data[data["series"] == name]
        for ax, panel in zip(axes, bins, strict=False):
            part = own[own["panel"] == panel]
            edges = [*part["x"], part["right"].iloc[-1]]
            ax.stairs(part["y"], edges, color=hue, linestyle=dash, linewidth=1.6)
            if len(names) == 1:
                ax.stairs(part["y"], edges, color=hue, fill=True, alpha=0.3)
        ended = own.loc[own["panel"] == "ended", "y"]
        share = f" ({ended.iloc[0]:.0%} ended)" if len(ended) else ""
        part = own[own["panel"] == "entropy"].sort_values("x")
        axes[2].plot(part["x"], part["y"], color=hue, linestyle=dash, label=f"{name}{share}")
        axes[2].fill_between(part["x"], part["low"], part["high"], color=hue, alpha=0.2, lw=0)
    for ax, title in zip(axes, ("Length", "Token probability", "Entropy, 95% band"), strict=True):
        ax.set_title(title, loc="left")
    axes[0].set(xlabel="tokens", ylabel="share of samples")
    axes[1].set(xlabel="log p under the base (nats)", ylabel="share of tokens")
    axes[2].set(xlabel="position (tokens)", ylabel="entropy (nats)")
    _legend(fig, axes, columns=2)
    return fig, data


def _series(frame: pd.DataFrame) -> list[str]:
    sources = frame["source"] if "source" in frame else ["context_free"] * len(frame)
    pairs = zip(sources, frame["temperature"], strict=True)
    return [f"{source.replace('_', '-')}, T = {t:g}" for source, t in pairs]


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points that the monospaced font can draw."""
    font = font_manager.get_font(font_manager.findfont(_MONO))
    return frozenset(font.get_charmap())


def _visible(text: str, *, boxes: bool = True) -> str:
    """Make text fit to show: line ends and tabs as signs, controls as escapes, odd glyphs as boxes.

    Controls include those of writing direction, which would turn round what follows.
    """
    found = []
    for sign in str(text).replace("\r\n", "\n"):
        if sign == "\n":
            found.append("⏎\n")
        elif sign == "\t":
            found.append("→   ")
        elif unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            found.append(f"\\x{ord(sign):02x}")
        elif boxes and (ord(sign) not in _glyphs() or unicodedata.combining(sign)):
            found.append("□")
        else:
            found.append(sign)
    return "".join(found)


def samples_text(
    samples: pd.DataFrame, n: int = 6, *, lines: int = 9
) -> tuple[Figure, pd.DataFrame]:
    """Show the first n samples as text, `lines` lines of each at most.

    Line ends show as ⏎, controls as \\x07, glyphs that the font lacks as □.
    Returns the drawn frame: index, temperature, tokens, finish_reason, text.
    """
    data = _some(samples.head(n), "samples")
    data = data.assign(tokens=data["token_ids"].map(len))
    data = data[["index", "temperature", "tokens", "finish_reason", "text"]]
    reasons = {"stop": "ended by itself", "length": "cut at the cap"}
    width, size = 92, 9.0
    blocks = []
    for row in data.to_dict("records"):
        text: list[str] = []
        for line in _visible(row["text"]).split("\n"):
            text += textwrap.wrap(line, width, replace_whitespace=False) or [""]
        if len(text) > lines:
            text = [*text[: lines - 1], "[…]"]
        reason = reasons.get(row["finish_reason"], row["finish_reason"])
        head = (
            f"Sample {row['index']}, T = {row['temperature']:g}: {row['tokens']} tokens, {reason}"
        )
        blocks.append((head, text))
    pitch, y = size * 1.38 / 72, 0.5
    height = y + pitch * sum(len(text) + 2.1 for _, text in blocks)
    title = f"The first {len(data)} samples, as they were drawn"
    fig, ax = _sheet(title, (width * _MONO_ADVANCE * size / 72 + 2 * _SIDE, height))
    for head, text in blocks:
        ax.text(_SIDE, y, head, size=size, weight="bold", va="top", parse_math=False)
        for i, line in enumerate(text, 1):
            where = (_SIDE, y + i * pitch * 1.05)
            ax.text(*where, line, size=size, va="top", family=_MONO, parse_math=False)
        y += pitch * (len(text) + 2.1)
    return fig, data


def _sheet(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return a page for text: one axis without marks, in inches from the top left."""
    fig, ax = _figure("", size)
    fig.set_layout_engine("none")
    fig.suptitle(title, x=_SIDE / size[0], y=1 - 0.12 / size[1], ha="left", va="top")
    ax.set_position((0, 0, 1, 1))
    ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
    ax.axis("off")
    return fig, ax


# --- training -----------------------------------------------------------------------------------


def training_curves(log: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Both loss terms against step: raw values faint, running means strong.

    log: recipe, seed, step, target_loss, replay_loss (nats per token; NaN without replay) and
    optionally run. Returns the drawn frame: recipe, (run,) seed, step, term, raw, smooth (centred
    running mean over a tenth of the steps).
    """
    keys = [c for c in ("recipe", "run", "seed") if c in log]
    terms = {"target_loss": "Target", "replay_loss": "Replay"}
    # the log's lr is that of the step, no setting: left out, lest rows be sorted by it
    log = by_recipe(_some(log, "training steps")[[*keys, "step", *terms]].sort_values("step"))
    data = log.melt([*keys, "step"], [*terms], "term", "raw").dropna(subset="raw")
    window = max(1, log["step"].nunique() // 10)
    data["smooth"] = data.groupby([*keys, "term"], sort=False)["raw"].transform(
        lambda c: c.rolling(window, center=True, min_periods=1).mean()
    )
    title = f"Loss in training: each step (faint), mean over {window} steps (strong)"
    fig, axes = _figure(title, (8.4, 3.9), ncols=2)
    for ax, (term, name) in zip(axes, terms.items(), strict=True):
        part = data[data["term"] == term]
        for (recipe, *_), own in part.groupby(keys, sort=False):
            ax.plot(own["step"], own["raw"], color=colour(recipe), alpha=0.2, linewidth=0.8)
            ax.plot(own["step"], own["smooth"], color=colour(recipe), label=label(recipe))
        ax.set(xlabel="optimiser step", ylabel="loss (nats per token)")
        ax.set_title(name if len(part) else f"{name}: none in these runs", loc="left")
    _legend(fig, axes)
    return fig, data.reset_index(drop=True)


def learning_rate(scores: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Target NLL against learning rate, the lowest marked: chosen by target score alone.

    scores: the tidy scores of a sweep, with the base's if its level is to be shown. Error bars are
    +- one stderr over items, the same items for all.
    Returns the drawn frame: recipe, lr, value, stderr, n_seeds, chosen.
    """
    part = _some(_pick(scores, "target", "nll"), "target NLL")
    base = part.loc[part["recipe"] == "base", "value"]
    tuned = _some(part[part["recipe"] != "base"], "target NLL of a tuned model")
    data = by_recipe(
        tuned.groupby(["recipe", "lr"], as_index=False).agg(
            value=("value", lambda c: c.mean(skipna=False)),  # a seed that diverged must show
            stderr=("stderr", "mean"),
            n_seeds=("seed", "nunique"),
        )
    )
    data["chosen"] = data["value"] == data.groupby("recipe")["value"].transform("min")
    many = int(data["n_seeds"].max())
    fig, ax = _figure(
        "Learning rate, chosen by held-out target score alone\n"
        f"{'one seed' if many == 1 else f'mean over {many} seeds'}; ± one standard error over items",
        (7.5, 4.4),
    )
    _log_axis(ax, data["lr"])
    for recipe, own in data.groupby("recipe", sort=False):
        x, y, name = own["lr"], own["value"], label(recipe)
        _dots(ax, recipe, x, y, yerr=own["stderr"], line="-", label=name)
        for best in own[own["chosen"]].head(1).itertuples():
            ring = {"markersize": 15, "markerfacecolor": "none", "linestyle": "none"}
            ax.plot(best.lr, best.value, "o", **ring, markeredgecolor=colour(recipe),
                    label=f"chosen for {name}: {best.lr:g}")  # fmt: skip
    if len(base):
        ax.axhline(base.iloc[0], color="black", linestyle=":", label=label("base"))
    _ticks(ax, data["lr"])
    ax.set_xlabel("peak learning rate (log axis)")
    ax.set_ylabel(f"target {_with_unit('nll')}\n← better")
    _legend(fig, [ax], columns=3)
    return fig, data


# --- forgetting ---------------------------------------------------------------------------------


def frontier(drops: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """Target NLL against the retained mean, right and top better; WiSE-FT as a line over alpha.

    drops: frame of `forgetting.pooled`. Intervals are those of the paired difference from the base.
    Returns the drawn frame: recipe, `SETTINGS`, n_seeds, level, base_x, base_y, x, x_low, x_high, y, y_low,
    y_high, label.
    """
    keys, ends = ["recipe", *SETTINGS], ["base", "tuned", "tuned_low", "tuned_high"]
    new = score_interval(_some(_pick(drops, "target", "nll"), "target NLL"))
    old = score_interval(_some(_pick(drops, "retained", metric, "mean"), f"retained {metric}"))
    data = new[[*keys, "n_seeds", "level", *ends]].merge(
        old[[*keys, *ends]], on=keys, suffixes=("_x", "_y")
    )
    names = {f"tuned_{s}": s for s in "xy"}
    names |= {f"tuned_{e}_{s}": f"{s}_{e}" for s in "xy" for e in ("low", "high")}
    data = _some(data, "runs with both scores").rename(columns=names)
    title = f"New task against old abilities\n{_seeds(data)}, of the difference from the base"
    x, y = data.loc[0, ["base_x", "base_y"]]
    start = {"recipe": "base", "x": x, "y": y, "base_x": x, "base_y": y}
    data = pd.concat([pd.DataFrame([start]), data], ignore_index=True).reindex(columns=data.columns)
    data = data.assign(label=row_labels(data))
    fig, ax = _figure(title, (8, 5.4))
    ax.axhline(y, color="black", linestyle=":", linewidth=1)
    for lr in sorted(data.loc[data["recipe"] == "wise_ft", "lr"].unique()):
        line = trail(drops[drops["lr"] == lr], "wise_ft", "alpha", metric=metric)
        ax.plot(line["target"], line["tuned"], color=colour("wise_ft"), linewidth=1.2, alpha=0.8)
    ax.plot(x, y, color=colour("base"), marker=MARKERS["base"], markersize=14, zorder=4,
            linestyle="none", label=label("base"))  # fmt: skip
    for (recipe, name), own in data[1:].groupby(["recipe", "label"], sort=False):
        # one entry in the legend for a whole WiSE-FT curve, whose points carry their alpha
        name = label(recipe) if recipe == "wise_ft" else name
        bars = {f"{s}err": _error(own[s], own[f"{s}_low"], own[f"{s}_high"]) for s in "xy"}
        _dots(ax, recipe, own["x"], own["y"], label=name, **bars)
        for at in own[own["alpha"].notna()].itertuples():
            ax.annotate(f"α={at.alpha:g}", (at.x, at.y), (-6, -13), ha="right", fontsize=8,
                        textcoords="offset points", color=colour(recipe))  # fmt: skip
    ax.invert_xaxis()
    if metric in LOWER_IS_BETTER:
        ax.invert_yaxis()
    ax.set_xlabel(f"target {_with_unit('nll')}     better →")
    ax.set_ylabel(f"retained {_with_unit(metric)}     better →")
    _legend(fig, [ax])
    return fig, data


def drop_heatmap(drops: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """Drop of every recipe on each retained task and on their mean; "≈ 0" where noise explains it.

    drops: frame of `forgetting.pooled`. Returns its rows that were drawn, with label and verdict.
    """
    data = _judged(_some(_pick(drops, "retained", metric), f"retained {metric}"))
    tasks = [t for t in dict.fromkeys(data["task"]) if t != "mean"] + ["mean"]
    names = list(dict.fromkeys(data["label"]))
    marks = data["verdict"].map(lambda v: "\n≈ 0" if v == "within noise" else "")
    data["text"] = data["drop"].map("{:+.3f}".format) + marks
    grid, text = (
        data.pivot(index="label", columns="task", values=c).reindex(index=names, columns=tasks)
        for c in ("drop", "text")
    )
    limit = float(np.nanmax(np.abs(grid.to_numpy()), initial=0)) or 1.0
    title = (
        f"Forgetting in {_with_unit(metric)}, by task\n≈ 0: the interval holds zero; {_seeds(data)}"
    )
    size = (max(7.0, 2.6 + 1.05 * len(tasks)), 1.9 + 0.46 * len(names))
    fig, ax = _figure(title, size)
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
    kl = _pick(runs, "probe", "kl").rename(columns=names)[[*RUN, *names.values()]]
    kept = _pick(runs, "retained", metric, "mean")[["run", "drop", "low", "high", "level"]]
    data = by_recipe(_some(kl.merge(kept, on="run"), f"runs with both KL and retained {metric}"))
    # those that have a label come in its order
    probes = sorted(set(data["probe"]), key=lambda p: ([*LABELS, p].index(p), p))
    columns = min(2, len(probes))
    lines = math.ceil(len(probes) / columns)
    fig, axes = _figure(
        "Distance from the base against forgetting, one point a run\n"
        f"intervals: {data['level'].iloc[0]:.0%} over items (drop), ± one standard error (KL); "
        "R² of the line in KL",
        (4.2 * columns + 0.4, 3.0 * lines + 1.2),
        nrows=lines, ncols=columns, sharey=True, squeeze=False,
    )  # fmt: skip
    for ax, probe in zip(axes.flat, probes, strict=False):
        part = data[data["probe"] == probe]
        _log_axis(ax, part["kl"])
        for recipe, own in part.groupby("recipe", sort=False):
            x, y, se = own["kl"], own["drop"], own["kl_stderr"]
            # a log axis has no place for an end at or below zero
            across = _error(x, np.maximum(x - se, 0.1 * x), x + se)
            _dots(ax, recipe, x, y, xerr=across, yerr=_error(y, own["low"], own["high"]),
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
        ax.set_xlabel(_with_unit("kl"))
    for ax in axes[:, 0]:
        ax.set_ylabel(f"drop in {_with_unit(metric)}")
    for ax in axes.flat[len(probes) :]:
        ax.axis("off")
    _legend(fig, axes.flat)
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
    kept = _pick(drops, "retained", metric, "mean")
    panels = {
        "retained": kept.assign(value=kept["drop"]),
        "target": _tuned(_pick(drops, "target", "nll")),
        "probe": _tuned(_pick(drops, "probe", "kl", probe)),
    }
    rows = []
    for panel, part in panels.items():
        swept = part[part[x].notna()]
        plain = part[(part["recipe"] == "ft") & part["lr"].isin(swept["lr"])]
        found = pd.concat([swept, plain[plain[x].isna()]]).assign(panel=panel)
        if found.duplicated(["recipe", x]).any():
            raise UserError(f"drops hold two runs of a recipe at one {x}; give rows of one study")
        rows.append(found[["panel", "recipe", x, "value", "low", "high", "n_seeds", "level"]])
    data = by_recipe(_some(pd.concat(rows), f"runs with a {x}"))
    xlabel = xlabel or label(x)
    fig, axes = _figure(f"Effect of the {xlabel}\n{_seeds(data)}", (9, 3.9), ncols=3)
    names = (f"drop in {_with_unit(metric)}", f"target {_with_unit('nll')}", _with_unit("kl"))
    titles = ("Retained: above 0 is worse", "Target: lower is better", f"KL on {label(probe)}")
    for ax, panel, name, title in zip(axes, panels, names, titles, strict=True):
        part = data[data["panel"] == panel]
        if log:
            _log_axis(ax, part[x])
        for recipe, own in part[part[x].notna()].groupby("recipe", sort=False):
            bars = _error(own["value"], own["low"], own["high"])
            _dots(ax, recipe, own[x], own["value"], yerr=bars, line="-", label=label(recipe))
        for row in part[part[x].isna()].itertuples():
            hue = colour(row.recipe)
            ax.axhline(row.value, color=hue, linestyle="--", label=label(row.recipe))
            ax.axhspan(row.low, row.high, color=hue, alpha=0.12, linewidth=0)
        _ticks(ax, part[x])
        ax.set(xlabel=xlabel, ylabel=name)
        ax.set_title(title, loc="left")
    _legend(fig, axes)
    return fig, data


def _tuned(drops: pd.DataFrame) -> pd.DataFrame:
    """Rows with the tuned score as value, and the interval around it."""
    found = score_interval(drops)
    return found.assign(value=found["tuned"], low=found["tuned_low"], high=found["tuned_high"])


def recipe_bars(drops: pd.DataFrame, *, metric: str = "bpb_gold") -> tuple[Figure, pd.DataFrame]:
    """Mean retained drop of every recipe with its interval, and what the interval says.

    drops: frame of `forgetting.pooled`. Returns its rows that were drawn, with label and verdict.
    """
    data = _judged(_some(_pick(drops, "retained", metric, "mean"), f"retained mean of {metric}"))
    title = f"Forgetting, mean over retained tasks\n{_seeds(data)}"
    fig, ax = _figure(title, (7.5, 1.6 + 0.36 * len(data)))
    for place, recipe in enumerate(data["recipe"]):
        row = data.iloc[[place]]
        _dots(ax, recipe, row["drop"], [place], xerr=_error(row["drop"], row["low"], row["high"]))
        ax.annotate(row["verdict"].iloc[0], (1.02, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize=9)  # fmt: skip
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(data)), data["label"])
    ax.set_ylim(len(data) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"← better     drop in {_with_unit(metric)}     worse →")
    return fig, data


# --- drift, token by token ----------------------------------------------------------------------

_DRIFT = {
    "kl": "KL(base || tuned) at the token (nats)",
    "change": "change in log-probability of the token (nats)",
}


def _drift(
    tokens: pd.DataFrame, value: str, sequence: Any, length: int | None
) -> tuple[pd.DataFrame, ScalarMappable]:
    """Rows of one passage with their value, and one scale of colour for all recipes."""
    if value not in _DRIFT:
        raise bad("value", value, "one of " + ", ".join(_DRIFT))
    tokens = _some(tokens, "tokens")
    sequence = tokens["sequence"].iloc[0] if sequence is None else sequence
    data = _some(tokens[tokens["sequence"] == sequence], f"sequence {sequence!r}")
    shown = data["kl"] if value == "kl" else data["nll_base"] - data["nll"]
    data = by_recipe(data.assign(value=shown).sort_values("position", kind="stable"))
    data = data[["recipe", "sequence", "position", "token", "value"]]
    if length is not None:
        data = data.groupby("recipe", sort=False).head(length).reset_index(drop=True)
    # up to the largest itself, the rest would be pale
    limit = float(np.nanquantile(np.abs(data["value"]), 0.99)) or 1.0
    low, name = (0.0, "Reds") if value == "kl" else (-limit, "RdBu")
    return data, ScalarMappable(Normalize(low, limit, clip=True), name)


def _ink(shade: tuple) -> str:
    """Black on light, white on dark (luminance after Rec. 709)."""
    return "black" if 0.2126 * shade[0] + 0.7152 * shade[1] + 0.0722 * shade[2] > 0.45 else "white"


def token_drift(
    tokens: pd.DataFrame, *, value: str = "kl", sequence: Any = None, length: int | None = 120
) -> tuple[Figure, pd.DataFrame]:
    """A passage a recipe, each token on a ground whose colour says how far the model moved there.

    tokens: recipe, sequence, position, token (text), nll, nll_base, kl (nats). value "kl", or
    "change" (nll_base - nll: below 0, the tuned model finds the token less likely). The first
    `length` tokens of one sequence, the first one unless named.
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
    step_x, step_y, top, foot = _MONO_ADVANCE * size / 72, size * 1.6 / 72, 0.5, 0.6
    wide, tall = width * step_x + 2 * _SIDE, top + line * step_y + foot
    fig, ax = _sheet("Where the tuned models left the base, token by token", (wide, tall))
    for row, name in heads:
        y = top + (row + 0.5) * step_y
        ax.text(_SIDE, y, name, size=size + 0.5, weight="bold", va="center")
    for row, column, text, fill in pieces:
        x, y = _SIDE + column * step_x, top + row * step_y
        box = (len(text) * step_x, step_y * 0.94)
        ax.add_patch(plt.Rectangle((x, y), *box, facecolor=fill, linewidth=0))
        ax.text(x, y + step_y * 0.47, text, size=size, family=_MONO, va="center_baseline",
                color=_ink(fill), parse_math=False)  # fmt: skip
    bar = fig.add_axes((0.25, 0.5 / tall, 0.5, 0.12 / tall))
    over = "max" if value == "kl" else "both"
    fig.colorbar(scale, cax=bar, orientation="horizontal", label=_DRIFT[value], extend=over)
    return fig, data


def _lay(tokens: Iterable[str], width: int) -> tuple[list[tuple[int, int, int, str]], int]:
    """Set tokens in lines: (token's number, line, column, text) of each piece, and lines used.

    A token is broken where it ends a line itself, or is wider than a line.
    """
    found, line, column = [], 0, 0
    for i, token in enumerate(tokens):
        for part in _visible(token).splitlines(keepends=True):
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


def html_drift(
    tokens: pd.DataFrame, *, value: str = "kl", sequence: Any = None, length: int | None = None
) -> str:
    """The same as HTML for JupyterLab: a span a token, its number on hovering; all text escaped."""
    data, scale = _drift(tokens, value, sequence, length)
    blocks = [f"<p>{html.escape(_DRIFT[value])}; point at a token to see its number</p>"]
    for recipe, own in data.groupby("recipe", sort=False):
        spans = []
        for token, number in zip(own["token"], own["value"], strict=True):
            fill = scale.to_rgba(number)
            look = f"background:{to_hex(fill)};color:{_ink(fill)}"
            text = html.escape(_visible(token, boxes=False))
            spans.append(f'<span style="{look}" title="{number:+.3f}">{text}</span>')
        passage = f'<pre style="white-space:pre-wrap">{"".join(spans)}</pre>'
        blocks.append(f"<h4>{html.escape(label(recipe))}</h4>{passage}")
    return "\n".join(blocks)
