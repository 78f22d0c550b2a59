"""Tables and verdicts: cells of hand-made data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfutils.gallery import tables


@pytest.fixture
def folder(tmp_path):
    """Write a figure's data; return the folder."""

    def write(name: str, data: pd.DataFrame):
        data.to_csv(tmp_path / f"{name}.csv", index=False)
        return tmp_path

    return write


def texts(table: tables.Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_a_ranking_says_what_is_noise_and_what_is_not_comparable(folder):
    rows = [
        ("l2", 0.25, 0.2, 0.3, -0.5, -0.6, -0.4, 0.0004, "same"),
        ("cfs", 0.75, 0.7, 0.8, np.nan, np.nan, np.nan, np.nan, "same"),
        ("lora", 1, 0.5, 1.5, 0.25, -0.5, 1, 0.4, "same"),
        ("stm", 2, 1, 3, 1, 0, 2, 0.01, "learns more"),
    ]
    differences = ["difference", "difference_low", "difference_high"]
    columns = ["recipe", "drop", "low", "high", *differences, "p_adjusted", "reach"]
    (table,) = tables.gathered(folder("ranking", pd.DataFrame(rows, columns=columns).assign(metric="bpb_gold")))
    assert texts(table) == [
        ["L2 to base", "+0.250 [+0.200, +0.300]", "−0.500 [−0.600, −0.400]", "< 0.001", ""],
        ["Context-free NLL", "+0.750 [+0.700, +0.800]", "", "", ""],
        ["LoRA", "+1.000 [+0.500, +1.500]", "+0.250 [−0.500, +1.000]", "0.400", "within noise"],
        ["STM", "+2.000 [+1.000, +3.000]", "+1.000 [+0.000, +2.000]", "0.010", "learns more: not comparable"],
    ]
    assert table.rows[0][1].value == 0.25, "what the column is sorted by"


def test_a_recipes_table_leaves_the_bases_drop_empty(folder):
    settings = dict.fromkeys(["temperature", "ratio", "replay_weight", "lr", "alpha", "strength"], np.nan)
    rows = [{"recipe": "base", **settings, "target_nll": 2, "acc": 0.75, "acc_drop": 0, "acc_low": 0, "acc_high": 0,
             "acc_verdict": "base", "kl": 0},
            {"recipe": "ft", **settings, "target_nll": 0.5, "acc": 0.5, "acc_drop": 0.25, "acc_low": np.nan,
             "acc_high": np.nan, "acc_verdict": "one seed", "kl": 1.5}]  # fmt: skip
    (table,) = tables.gathered(folder("recipe_bars", pd.DataFrame(rows)))
    assert table.header[:4] == ("recipe", "target NLL", "retained accuracy", "drop [95 %]")
    assert table.header[4:] == ("verdict", "KL on fresh samples")
    assert texts(table) == [
        ["Base", "2.000", "0.750", "", "", "0.000"],
        ["Plain fine-tuning", "0.500", "0.500", "+0.250", "one seed", "1.500"],
    ]


def test_data_of_an_earlier_version_make_no_table_and_no_verdict(folder):
    there = folder("ranking", pd.DataFrame({"x": [1]}))
    folder("claims", pd.DataFrame({"claim": ["C1"], "statement": ["another statement"], "primary": [True]}))
    assert tables.gathered(there) == [] and tables.judged(there) == ([], None)


def test_a_verdict_by_hand(folder):
    """One test of C1: its interval from 0.5 to 1.5 on an axis from -1.5 to 1.5."""
    row = {"claim": "C1", "statement": "context-free replay mitigates forgetting", "rival": "ft", "metric": "bpb_gold",
           "effect": 1.0, "low": 0.5, "high": 1.5, "p": 0.01, "p_adjusted": 0.01, "delta": 0.02, "seeds": 3,
           "items": 40, "detectable": 0.4, "primary": True, "verdict": "supported",
           "reason": "ft retains less, by 1.000 bits per byte"}  # fmt: skip
    (found,), tests = tables.judged(folder("claims", pd.DataFrame([row])))
    assert (found.claim, found.word, found.basis) == ("C1", "supported", "3 seeds, 40 items")
    assert found.effect == "+1.000 [+0.500, +1.500] bits per byte, against Plain fine-tuning"
    assert found.reason == "Plain fine-tuning retains less, by 1.000 bits per byte"
    assert found.bar == tables.Bar(low=66.67, high=100, effect=83.33)
    assert texts(tests) == [["C1", "Plain fine-tuning", "answer bits per byte", "+1.000 [+0.500, +1.500]", "0.010",
                             "supported", found.reason]]  # fmt: skip
