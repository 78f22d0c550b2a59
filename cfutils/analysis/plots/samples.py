"""Figures of samples: their length, probability and entropy, and their text.

They come before any tuning: what the base writes is what replay will preserve.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from itertools import cycle, islice

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cfutils.analysis.plots.style import (
    MONO,
    MONO_ADVANCE,
    SERIES,
    SIDE,
    figure,
    legend,
    shades,
    sheet,
    some,
    visible,
)


def samples_diagnostics(
    samples: pd.DataFrame, diagnostics: pd.DataFrame
) -> tuple[Figure, pd.DataFrame]:
    """Length with the share that ended, token log-probability, and entropy by position (95% band).

    samples: token_ids, logprobs (nats, of the base at T = 1), finish_reason, temperature, and
    optionally source. diagnostics: source, temperature, position, entropy (nats): one row per
    token, or one row per position with stderr.
    Returns the drawn frame: panel (ended, length, log-probability, entropy), series, x (left edge or
    position), right, y, low, high.
    """
    samples, diagnostics = some(samples, "samples"), some(diagnostics, "entropies")
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
            # values below the first edge are counted in the first bin, not dropped
            inside = np.clip(values[series == name], edges[0], edges[-1])
            counts, _ = np.histogram(inside, edges)
            for a, b, y in zip(edges, edges[1:], counts / max(counts.sum(), 1), strict=False):
                rows.append({"panel": panel, "series": name, "x": a, "right": b, "y": y})
        for at in diagnostics[diagnostics["series"] == name].itertuples():
            low, high = at.entropy - 1.96 * at.stderr, at.entropy + 1.96 * at.stderr
            row = {"panel": "entropy", "series": name, "x": at.position, "y": at.entropy}
            rows.append({**row, "low": low, "high": high})
    data = pd.DataFrame(rows).reindex(columns=["panel", "series", "x", "right", "y", "low", "high"])
    fig, axes = figure(
        "Samples of the base: length, probability of their tokens, entropy by position",
        (9, 3.6),
        ncols=3,
    )
    dashes = cycle(["-", "--", "-.", ":"])
    for name, hue, dash in zip(names, _hues(samples, len(names)), dashes, strict=False):
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
    legend(fig, axes, columns=2)
    return fig, data


def _hues(samples: pd.DataFrame, n: int) -> Iterable:
    """One colour a series: by temperature where it is all they differ in, else one after the other."""
    by_temperature = shades(samples["temperature"])
    if len(by_temperature) == n > 1:
        return [by_temperature[t] for t in samples["temperature"].drop_duplicates()]
    return islice(cycle(SERIES), n)


def _series(frame: pd.DataFrame) -> list[str]:
    sources = frame["source"] if "source" in frame else ["context_free"] * len(frame)
    pairs = zip(sources, frame["temperature"], strict=True)
    return [f"{source.replace('_', '-')}, T = {t:g}" for source, t in pairs]


def samples_text(
    samples: pd.DataFrame, n: int = 6, *, lines: int = 9
) -> tuple[Figure, pd.DataFrame]:
    """Show the first n samples as text, `lines` lines of each at most.

    Line ends show as ⏎, controls as \\x07, glyphs that the font lacks as □.
    Returns the drawn frame: index, temperature, tokens, finish_reason, text.
    """
    data = some(samples.head(n), "samples")
    data = data.assign(tokens=data["token_ids"].map(len))
    data = data[["index", "temperature", "tokens", "finish_reason", "text"]]
    reasons = {"stop": "ended by an end token", "length": "cut at the length limit"}
    width, size = 92, 9.0
    blocks = []
    for row in data.to_dict("records"):
        text: list[str] = []
        for line in visible(row["text"]).split("\n"):
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
    title = f"The first {len(data)} samples, as drawn"
    fig, ax = sheet(title, (width * MONO_ADVANCE * size / 72 + 2 * SIDE, height))
    for head, text in blocks:
        ax.text(SIDE, y, head, size=size, weight="bold", va="top", parse_math=False)
        for i, line in enumerate(text, 1):
            where = (SIDE, y + i * pitch * 1.05)
            ax.text(*where, line, size=size, va="top", family=MONO, parse_math=False)
        y += pitch * (len(text) + 2.1)
    return fig, data
