"""Figures of estimating KL(base || tuned): how fast two estimators converge, and on which texts they are biased.

Estimators: the log ratio of the probabilities of whole texts, and the full KL between next-token
distributions, summed over the positions of a text. On the base's own samples from the start token at
T = 1 neither is biased; the figures show what happens on other texts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cfutils.analysis.plots.style import (
    SERIES,
    error_bars,
    figure,
    label,
    legend,
    log_axis,
    points,
    some,
    tick_values,
)
from cfutils.errors import UserError, invalid_value

ESTIMATORS = {
    "log_ratio": {"label": "log ratio of texts", "color": SERIES[1], "marker": "o"},
    "full_kl": {"label": "full KL at every token", "color": SERIES[0], "marker": "D"},
}
SOURCES = {
    "context_free": "context-free",
    "contextual": "contextual",
    "pretraining": "pretraining text",
    "text": "ordinary text",
}
MODELS = 3
"""How many models fit side by side in one figure."""
_KEYS = ["model", "source", "temperature", "estimator"]
_REFERENCES = ["reference", "reference_low", "reference_high"]
_REFERENCE: dict[str, Any] = {
    "label": "reference", "color": "black", "linestyle": ":", "linewidth": 1.3,
}  # fmt: skip


def kl_convergence(curve: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Estimate of KL(base || tuned) against the number of samples, and how its spread falls.

    curve: estimator (log_ratio, full_kl), n (samples); mean and sd of the n-sample estimate over
    repetitions, low, high (where 95% of these estimates lie), bias (mean - reference), bias_low,
    bias_high (its 95% interval, the reference's error included), reference: all in nats per sequence.
    Returns the drawn frame: these columns, and guide (an sd that falls as 1/sqrt(n), fitted to the
    estimator's).
    """
    columns = ["estimator", "n", "mean", "sd", "low", "high", "bias", "bias_low", "bias_high"]
    data = _ordered(curve, [*columns, "reference"], ["estimator", "n"])
    level = np.log(data["sd"] * np.sqrt(data["n"])).groupby(data["estimator"]).transform("mean")
    data["guide"] = np.exp(level) / np.sqrt(data["n"])
    fig, (left, right) = figure(
        "KL(base || tuned), estimated from n samples\n"
        "bars around each mean: 95% interval of mean − reference, over texts",
        (9, 4.5), ncols=2,
    )  # fmt: skip
    for ax in (left, right):
        log_axis(ax, data["n"])
    right.set_yscale("log")
    for estimator, own in data.groupby("estimator", sort=False):
        look, n = ESTIMATORS[estimator], own["n"]
        band = {"color": look["color"], "alpha": 0.2, "linewidth": 0.8}
        left.fill_between(n, own["low"], own["high"], **band)
        bars = error_bars(own["bias"], own["bias_low"], own["bias_high"])
        aside = 1.07 ** _side(estimator)  # so that neither interval hides the other
        points(left, n * aside, own["mean"], yerr=bars, linestyle="-", markersize=4, **look)
        points(right, n, own["sd"], markersize=6, **look)
        right.plot(n, own["guide"], color="#444444", linestyle="--", linewidth=1, zorder=1,
                   label="falls as 1/√n")  # fmt: skip
    left.axhline(data["reference"].iloc[0], **_REFERENCE)
    left.set_title("Mean; band: 95% of estimates", loc="left")
    left.set_ylabel("estimate (nats per sequence)")
    right.set_title("Spread of one estimate (log axes)", loc="left")
    right.set_ylabel("standard deviation (nats per sequence)")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    # the lines fall, so the upper right corner is free
    right.text(0.99, 0.98, _variance_ratio(data), transform=right.transAxes, ha="right", va="top",
               fontsize=9)  # fmt: skip
    sizes = data["n"].drop_duplicates().sort_values()
    for ax in (left, right):
        tick_values(ax, sizes[:: 1 + len(sizes) // 8])
        ax.set_xlabel("samples n (log axis)")
    legend(fig, (left, right))
    return fig, data


def _variance_ratio(data: pd.DataFrame) -> str:
    """State the ratio of the two estimators' variances at equal n."""
    sd = data.pivot(index="n", columns="estimator", values="sd").reindex(columns=list(ESTIMATORS))
    ratio = (sd["log_ratio"] / sd["full_kl"]).dropna() ** 2
    if ratio.empty:
        return ""
    return (
        f"at equal n, the log ratio's variance is\n{np.exp(np.log(ratio).mean()):.3g} × the full KL's "
        f"({ratio.min():.3g} to {ratio.max():.3g})"
    )


def kl_bias(bias: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Estimates of KL(base || tuned) by the texts they are made from, against the reference.

    bias: frame of `estimators.bias` with model (its name in the figure): source (context_free, contextual,
    pretraining, text), temperature (NaN for pretraining and text), estimator (log_ratio, full_kl),
    estimate, low, high (its 95% interval), reference, reference_low, reference_high (one per model), n
    (texts), unit (such as "nats per token").
    Returns the drawn frame: row (label, from top to bottom) and these columns.
    """
    data = _estimates(bias, ["estimate", "low", "high", *_REFERENCES, "n", "unit"])
    keys = zip(data["source"], data["temperature"], strict=True)
    data.insert(0, "row", [_row(*key) for key in keys])
    rows = list(_in_order(data, ["source", "temperature"])["row"].unique())
    fig, panels = _panels(
        "Estimates of KL(base || tuned), by the texts that they are made from",
        data, 1.9 + 0.36 * len(rows), sharey=True,
    )  # fmt: skip
    for ax, part in panels:
        for estimator, own in part.groupby("estimator", sort=False):
            places = own["row"].map(rows.index) + _side(estimator) * 0.16
            bars = error_bars(own["estimate"], own["low"], own["high"])
            points(ax, own["estimate"], places, xerr=bars, markersize=6, **ESTIMATORS[estimator])
        ax.axvline(part["reference"].iloc[0], **_REFERENCE)
        ax.axvspan(*part[["reference_low", "reference_high"]].iloc[0], color="black", alpha=0.1,
                   linewidth=0)  # fmt: skip
        ax.set_xlabel(f"estimate ({part['unit'].iloc[0]})")
        ax.grid(axis="y", visible=False)
    first = panels[0][0]
    first.set_yticks(range(len(rows)), rows)
    first.set_ylim(len(rows) - 0.5, -0.5)
    legend(fig, [ax for ax, _ in panels])
    return fig, data


def kl_against_temperature(bias: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Bias of estimates from context-free samples, against the samples' temperature.

    bias: frame of `kl_bias`, with bias (estimate - reference) and bias_low, bias_high (its 95% interval,
    the reference's error included); its context-free rows are drawn. Returns the drawn frame: model,
    temperature, estimator, bias, bias_low, bias_high, reference, n, unit.
    """
    columns = ["bias", "bias_low", "bias_high", "reference", "n", "unit"]
    data = _estimates(bias[bias["source"] == "context_free"], columns).drop(columns="source")
    fig, panels = _panels(
        "Bias of KL(base || tuned) estimated from context-free samples, by their temperature",
        data, 4.0,
    )  # fmt: skip
    aside = 0.008 * float(np.ptp(data["temperature"]))  # so that neither interval hides the other
    for ax, part in panels:
        for estimator, own in part.groupby("estimator", sort=False):
            bars = error_bars(own["bias"], own["bias_low"], own["bias_high"])
            points(ax, own["temperature"] + _side(estimator) * aside, own["bias"], yerr=bars,
                   linestyle="-", markersize=6, **ESTIMATORS[estimator])  # fmt: skip
        ax.axhline(0, **{**_REFERENCE, "label": "no bias"})
        tick_values(ax, part["temperature"])
        ax.set_xlabel(label("temperature"))
    panels[0][0].set_ylabel(f"estimate − reference\n({data['unit'].iloc[0]})")
    legend(fig, [ax for ax, _ in panels])
    return fig, data


def _in_order(data: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Sort by the keys: models as they come, sources and estimators in the order of this module."""
    models = data["model"].unique() if "model" in data else []
    rank = {name: i for i, name in enumerate([*models, *SOURCES, *ESTIMATORS])}
    named = ("model", "source", "estimator")
    return data.sort_values(
        keys, key=lambda c: c.map(rank) if c.name in named else c, ignore_index=True
    )


def _ordered(frame: pd.DataFrame, columns: list[str], keys: list[str]) -> pd.DataFrame:
    """Return those columns of the frame, sorted; raises `UserError` for an unknown estimator."""
    data = some(frame, "estimates of KL(base || tuned)")[columns]
    for name in data["estimator"].unique():
        if name not in ESTIMATORS:
            raise invalid_value("estimator", name, "one of " + ", ".join(ESTIMATORS))
    return _in_order(data, keys)


def _estimates(bias: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Rows of `kl_bias`'s frame, sorted; raises `UserError` for more than one figure can hold."""
    data = _ordered(bias, [*_KEYS, *columns], _KEYS)
    if (many := data["model"].nunique()) > MODELS:
        raise UserError(f"a figure holds {MODELS} models, the frame has {many}; give a part of it")
    if data["unit"].nunique() > 1:
        raise UserError(f"the frame mixes units: {', '.join(data['unit'].unique())}; give one")
    return data


def _row(source: str, temperature: float) -> str:
    name = SOURCES.get(source, source)
    return name if pd.isna(temperature) else f"{name}, T = {temperature:g}"


def _side(estimator: str) -> int:
    """Side of its position on which an estimator is drawn: -1 or 1."""
    return -1 if estimator == "log_ratio" else 1


def _panels(
    title: str, data: pd.DataFrame, height: float, **grid: Any
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Return the figure, and one axis with its rows for each model."""
    parts = list(data.groupby("model", sort=False))
    low, high = int(data["n"].min()), int(data["n"].max())
    texts = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    scales = "; each panel has its own scale" if len(parts) > 1 else ""
    fig, axes = figure(
        f"{title}\n95% intervals over texts ({texts} each){scales}",
        ((6.4, 8.4, 10.5)[len(parts) - 1], height), ncols=len(parts), squeeze=False, **grid,
    )  # fmt: skip
    for ax, (model, _) in zip(axes.flat, parts, strict=True):
        ax.set_title(model, loc="left", parse_math=False)
    return fig, [(ax, part) for ax, (_, part) in zip(axes.flat, parts, strict=True)]
