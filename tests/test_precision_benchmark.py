"""Statistics of benchmarks/precision.py, and why bf16 weights lose updates."""

from __future__ import annotations

import importlib.util
import sys

import pandas as pd
import pytest
import torch

from cfutils import paths


@pytest.fixture(scope="module")
def precision():
    folder = paths.root() / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        spec = importlib.util.spec_from_file_location("precision", folder / "precision.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_bf16_loses_an_update_that_fp32_keeps():
    """Below 1 the next bf16 number is 1 - 2^-8 = 0.99609: a step of 1e-3 < 2^-9 rounds back to 1, ten of them too."""
    for dtype, end in ((torch.bfloat16, 1.0), (torch.float32, 0.99)):
        w = torch.tensor([1.0], dtype=dtype, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=1e-3)
        for _ in range(10):
            w.grad = torch.ones_like(w)
            optimizer.step()
        assert w.item() == pytest.approx(end, abs=1e-6)


def test_share_lost_by_hand(precision):
    """fp32 moves three of four weights; of these two stay where they were: 2/3."""
    reference = [torch.tensor([1.0, -2.0]), torch.tensor([0.0, 3.0])]
    moved = [torch.tensor([0.0, -1.0]), torch.tensor([5.0, 0.0])]
    assert precision.share_lost(moved, reference) == pytest.approx(2 / 3)
    assert precision.share_lost(reference, reference) == 0


def test_relative_distance_by_hand(precision):
    """(3, 4) and (3, 1): 3 apart of 5 = 0.6; a run that has not moved is at 1."""
    reference = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert precision.relative_distance([torch.tensor([3.0]), torch.tensor([1.0])], reference) == pytest.approx(0.6)
    assert precision.relative_distance([torch.zeros(1), torch.zeros(1)], reference) == 1
    assert precision.relative_distance(reference, reference) == 0


def test_interval_by_hand(precision):
    """0 and 2: mean 1, sd sqrt(2), half width t(0.975, 1 df) * sqrt(2) / sqrt(2) = 12.706."""
    mean, half = precision.interval(pd.DataFrame({"x": [0.0, 2.0]}))
    assert (mean["x"], half["x"]) == (1.0, pytest.approx(12.706, abs=1e-3))
