"""Verdicts on the claims about context-free replay, computed from item-level results.

Each rival of context-free replay is compared with it item by item and seed by seed (`forgetting.against`).
A claim is supported where the rival retains less and does not learn more; retaining more while learning
less is a trade. One seed gives no verdict. Several comparisons are made at 95% each, without correction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cfutils.analysis import forgetting
from cfutils.analysis.forgetting import KEYS

CLAIMS = {
    "C1": "context-free replay mitigates forgetting",
    "C3": "contextual samples are less effective",
    "C4": "pretraining data are less effective",
    "C5": "context-free replay is better than L2, LoRA and WiSE-FT",
}
"""Claims of arXiv 2505.13811 that can be tested here."""
RIVALS = {"ft": "C1", "contextual": "C3", "pretraining": "C4", "replay_text": "C4",
          "l2": "C5", "lora": "C5", "wise_ft": "C5"}  # fmt: skip
"""The claim that a comparison with each recipe tests."""
PREMISE = "premise"
"""Name of the row that C1 depends on: plain fine-tuning forgets."""
VERDICTS = {
    ("worse", "worse"): "supported",
    ("worse", "within noise"): "supported",
    ("better", "better"): "contradicted",
    ("better", "within noise"): "contradicted",
    ("worse", "better"): "a trade-off",
    ("better", "worse"): "a trade-off",
    ("within noise", "better"): "costs target score, no gain seen",
    ("within noise", "worse"): "learns more, no loss seen",
    ("within noise", "within noise"): "within noise",
}
"""Verdict by what the rival retains and what it learns, each read by `forgetting.verdict`."""


def judge(retains: str, learns: str) -> str:
    """Verdict on a claim from two readings of `forgetting.verdict`; whatever prevents one comes first."""
    for reason in ("one seed", "no interval"):
        if reason in (retains, learns):
            return reason
    return VERDICTS[retains, learns]


def table(
    items: pd.DataFrame,
    drops: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("acc", "bpb_gold"),
    recipe: str = "cfs",
) -> pd.DataFrame:
    """One row per claim, rival and retained metric, sorted by claim; the premise first.

    items: item-level results of the base, `recipe` (one run per seed) and its rivals; drops: their
    `forgetting.pooled`. Drops are those of the rival against `recipe`, above 0 where the rival is worse:
    target_* in NLL (nats per token), retained_* in the metric, mean over tasks. In the row "premise" plain
    fine-tuning is compared with the base, its verdict is that of its retained drop, and target_* are NaN.

    Returns columns: claim, statement, recipe (the rival), `SETTINGS`, against, metric, n_seeds,
    target_drop, target_low, target_high, learns, retained_drop, retained_low, retained_high, retains,
    verdict. Raises as `forgetting.against`.
    """
    ends = ["drop", "low", "high"]
    kept = (drops["group"] == "retained") & (drops["task"] == "mean")
    plain = drops[kept & (drops["recipe"] == "ft") & drops["metric"].isin(metrics)]
    plain = plain[[*KEYS, "metric", "n_seeds", *ends]].assign(
        claim=PREMISE, statement="plain fine-tuning forgets", against="base", learns="",
        retains=forgetting.verdicts(plain), verdict=forgetting.verdicts(plain),
    )  # fmt: skip

    rivals = forgetting.against(items, recipe)
    rivals["says"] = forgetting.verdicts(rivals)
    learnt = rivals[(rivals["group"] == "target") & (rivals["metric"] == "nll")]
    retained = rivals[(rivals["group"] == "retained") & (rivals["task"] == "mean")]
    retained = retained[retained["metric"].isin(metrics)]
    names = {name: f"target_{name}" for name in ends} | {"says": "learns"}
    both = retained[[*KEYS, "metric", "n_seeds", *ends, "says"]].rename(columns={"says": "retains"})
    both = both.merge(learnt[[*KEYS, *names]].rename(columns=names), on=KEYS)
    both = both.assign(
        claim=both["recipe"].map(RIVALS), against=recipe,
        verdict=[judge(*pair) for pair in zip(both["retains"], both["learns"], strict=True)],
    ).dropna(subset="claim")  # fmt: skip
    both["statement"] = both["claim"].map(CLAIMS)

    out = pd.concat([plain, forgetting.by_recipe(both)], ignore_index=True)
    rank = {name: place for place, name in enumerate([PREMISE, *CLAIMS, *metrics])}
    out = out.sort_values(
        ["claim", "metric"], key=lambda c: c.map(rank), kind="stable", ignore_index=True
    )
    out = out.rename(columns={name: f"retained_{name}" for name in ends})
    columns = ["claim", "statement", *KEYS, "against", "metric", "n_seeds"]
    columns += [f"target_{name}" for name in ends] + ["learns"]
    columns += [f"retained_{name}" for name in ends] + ["retains", "verdict"]
    return out.reindex(columns=columns).astype({f"target_{name}": np.float64 for name in ends})
