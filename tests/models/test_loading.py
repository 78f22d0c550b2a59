"""A model is loaded in the dtype asked for, in eval mode, on the processor of a machine without a GPU."""

from __future__ import annotations

import pytest
import torch

from cfutils.models import loading, packing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_loaded_for_evaluation(tiny_base, events, dtype):
    model = loading.load(tiny_base, dtype=dtype)
    assert not model.training and model.dtype == getattr(torch, dtype)
    assert model.device == loading.device()
    assert packing.supports_packing(model)
    assert events() == [{"event": "model", "path": str(tiny_base)}]


def test_the_device_is_the_best_there_is(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert loading.device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.device() == torch.device("cuda")
