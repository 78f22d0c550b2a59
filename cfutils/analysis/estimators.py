"""How well samples estimate KL(base || tuned): bias, variance and cost of two estimators.

For a text x drawn from the base, log_ratio is r = log p_0(x) - log p(x) of the whole sequence (all that
sampled NLL uses), and kl is k = sum_t KL(p_0(. | x_<t) || p(. | x_<t)), over the whole vocabulary at each
prefix. E[r] = E[k] = KL(p_0 || p) by the chain rule, and k is the mean of r's terms given their prefixes
(Rao-Blackwell): the same mean with less variance.

Frames are those of `Lab.estimates`, one row per recipe and sequence: recipe, source (context_free,
contextual, text, pretraining), purpose ("reference" for the context-free samples that are set aside),
temperature, tokens, log_ratio and kl (nats per sequence), seconds_log_ratio and seconds_kl.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cfutils.analysis import bootstrap

ESTIMATORS = {"log_ratio": "log_ratio", "full_kl": "kl"}
"""Name of each estimator, and the column of its value on one sequence."""


def halves(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split one recipe's context-free sequences at T = 1: those to estimate with, and the reference."""
    at_one = frame[(frame["temperature"] == 1) & (frame["source"] == "context_free")]
    aside = at_one["purpose"] == "reference"
    return at_one[~aside], at_one[aside]


def convergence(
    frame: pd.DataFrame,
    sizes: Sequence[int],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimates of the KL from n samples, for each n of `sizes` and each estimator, in nats per sequence.

    The n-sample estimates are `draws` resamples of n context-free sequences at T = 1; `reference` is the
    mean of full_kl over those set aside for it. Columns: estimator, n, mean, sd, low, high (percentiles of
    the n-sample estimate), bias (mean of all sequences minus reference: the mean of a mean does not depend
    on n), bias_low, bias_high, reference, reference_stderr.
    """
    ours, rest = halves(frame)
    reference = rest["kl"].mean()
    reference_se = rest["kl"].sem()
    z = bootstrap.normal_quantile(level)
    rows = []
    for name, column in ESTIMATORS.items():
        values = ours[column].to_numpy(float)
        bias = values.mean() - reference
        spread = z * np.hypot(values.std(ddof=1) / np.sqrt(len(values)), reference_se)
        rng = np.random.default_rng([seed, len(values)])
        for n in sizes:
            means = np.array([rng.choice(values, n).mean() for _ in range(draws)])
            low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
            rows.append(
                {"estimator": name, "n": n, "mean": means.mean(), "sd": means.std(ddof=1), "low": low,
                 "high": high, "bias": bias, "bias_low": bias - spread, "bias_high": bias + spread,
                 "reference": reference, "reference_stderr": reference_se}
            )  # fmt: skip
    return pd.DataFrame(rows)


def bias(frame: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Estimate of each (recipe, source, temperature, estimator) and its bias, in nats per token.

    The mean per token is a ratio of sums over sequences; its interval is that of a ratio over independent
    sequences. The reference is full_kl on the context-free samples at T = 1 that are set aside for it.
    Columns: recipe, source, temperature, estimator, n, estimate, low, high, bias, bias_low, bias_high
    (these two include the reference's own error), reference, reference_low, reference_high, unit.
    """
    z, rows = bootstrap.normal_quantile(level), []
    for recipe, own in frame.groupby("recipe", sort=False):
        _, rest = halves(own)
        reference, reference_se = _per_token(rest, "kl")
        drawn = own[own["purpose"] != "reference"]
        for _, part in drawn.groupby(["source", "temperature"], sort=False, dropna=False):
            for name, column in ESTIMATORS.items():
                value, stderr = _per_token(part, column)
                off, half = value - reference, z * np.hypot(stderr, reference_se)
                rows.append(
                    {"recipe": recipe, "source": part["source"].iloc[0],
                     "temperature": part["temperature"].iloc[0], "estimator": name, "n": len(part),
                     "estimate": value, "low": value - z * stderr, "high": value + z * stderr,
                     "bias": off, "bias_low": off - half, "bias_high": off + half,
                     "reference": reference, "reference_low": reference - z * reference_se,
                     "reference_high": reference + z * reference_se, "unit": "nats per token"}
                )  # fmt: skip
    return pd.DataFrame(rows)


def _per_token(part: pd.DataFrame, column: str) -> tuple[float, float]:
    """Mean of a column per token, and its standard error over sequences."""
    tokens = part["tokens"].to_numpy(float)
    values = part[column].to_numpy(float) / tokens
    mean, stderr = bootstrap.weighted_mean(values[:, None], tokens)
    return float(mean[0]), float(stderr[0])


def cost(frame: pd.DataFrame) -> pd.DataFrame:
    """Variance and cost of each estimator: one row per recipe and estimator.

    variance: of one sequence's value, in nats squared; seconds: of the forward passes of both models over
    1,000 sequences (drawing them is not included); efficiency: 1 / (variance x seconds), relative to
    that of log_ratio.
    """
    rows = []
    for recipe, own in frame.groupby("recipe", sort=False):
        ours, _ = halves(own)
        for name, column in ESTIMATORS.items():
            rows.append(
                {"recipe": recipe, "estimator": name, "variance": ours[column].var(ddof=1),
                 "seconds": ours[f"seconds_{column}"].iloc[0]}
            )  # fmt: skip
    out = pd.DataFrame(rows)
    price = out["variance"] * out["seconds"]
    first = price.groupby(out["recipe"]).transform("first")
    return out.assign(efficiency=first / price)
