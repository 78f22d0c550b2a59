"""Verdicts on the claims, from items whose outcome is plain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import claims, forgetting
from cfutils.errors import UserError

NAN = float("nan")
N = 20


def items(seeds, **recipes):
    """Items of the base and of recipes, each given as (retained bpb_gold, target nll) of every item."""
    frames = []
    runs = [("base", -1, (1.0, 3.0))]
    runs += [(name, seed, values) for name, values in recipes.items() for seed in range(seeds)]
    jitter = 0.01 * np.tile([-1, 1], N // 2)  # so that intervals have a width
    for name, seed, (kept, learnt) in runs:
        for group, task, metric, value in (
            ("retained", "arc", "bpb_gold", kept), ("target", "gsm8k", "nll", learnt),
        ):  # fmt: skip
            shift = jitter if name in ("base", "cfs") else 0
            frames.append(
                pd.DataFrame(
                    {"run": f"{name}{seed}", "recipe": name, "seed": seed,
                     **dict.fromkeys(forgetting.SETTINGS, NAN), "group": group, "task": task,
                     "metric": metric, "item": [str(i) for i in range(N)], "value": value + shift,
                     "weight": 1.0}
                )
            )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def table(frame):
    return claims.table(frame, forgetting.pooled(frame, n_boot=200), metrics=["bpb_gold"])


def test_claims_by_hand():
    frame = items(
        2, cfs=(1.5, 1.0), ft=(2.0, 1.0), contextual=(1.5, 1.0), pretraining=(1.4, 1.0),
        replay_text=(2.0, 0.5), l2=(1.2, 2.0), lora=(1.5, 0.5), unheard=(9.0, 9.0),
    )  # fmt: skip
    out = table(frame)
    assert out["claim"].tolist() == ["premise", "C1", "C3", "C4", "C4", "C5", "C5"]
    rows = out.set_index(["claim", "recipe"])
    premise = rows.loc[("premise", "ft")]
    assert (premise["against"], premise["verdict"], premise["learns"]) == ("base", "worse", "")
    assert premise["retained_drop"] == pytest.approx(1.0)
    assert np.isnan(premise["target_drop"])
    c1 = rows.loc[("C1", "ft")]
    # bits per byte: ft 2.0 against cfs 1.5; equal target NLL
    assert (c1["retained_drop"], c1["target_drop"]) == pytest.approx((0.5, 0))
    assert (c1["retains"], c1["learns"], c1["verdict"]) == ("worse", "within noise", "supported")
    assert c1["statement"] == claims.CLAIMS["C1"]
    assert rows["verdict"].to_dict() == {
        ("premise", "ft"): "worse",
        ("C1", "ft"): "supported",
        ("C3", "contextual"): "within noise",
        ("C4", "replay_text"): "a trade-off",
        ("C4", "pretraining"): "contradicted",
        ("C5", "l2"): "a trade-off",
        ("C5", "lora"): "costs target score, no gain seen",
    }
    assert out["n_seeds"].unique().tolist() == [2]


def test_one_seed_gives_no_verdict():
    out = table(items(1, cfs=(1.5, 1.0), ft=(2.0, 1.0)))
    assert out["verdict"].tolist() == ["one seed", "one seed"]
    assert out["retains"].tolist() == ["one seed", "one seed"]
    assert out["retained_drop"].tolist() == pytest.approx([1.0, 0.5])


def test_a_run_that_diverged_gives_no_verdict():
    frame = items(2, cfs=(1.5, 1.0), ft=(2.0, 1.0))
    frame.loc[(frame["run"] == "ft1") & (frame["group"] == "target"), "value"] = NAN
    assert table(frame)["verdict"].tolist() == ["worse", "no interval"]


def test_both_readings_have_a_row():
    frame = items(2, cfs=(1.5, 1.0), ft=(2.0, 1.0))
    right = frame[frame["group"] == "retained"].assign(metric="acc", value=1.0)
    frame = pd.concat([frame, right])
    out = claims.table(frame, forgetting.pooled(frame, n_boot=50))
    assert out["metric"].tolist() == ["acc", "bpb_gold"] * 2
    assert out["verdict"].tolist()[2:] == ["within noise", "supported"]


def test_there_must_be_context_free_replay():
    frame = items(2, ft=(2.0, 1.0))
    with pytest.raises(UserError, match="no run of cfs"):
        table(frame)


def test_every_pair_of_readings_has_a_verdict():
    readings = ("worse", "better", "within noise")
    assert set(claims.VERDICTS) == {(a, b) for a in readings for b in readings}
