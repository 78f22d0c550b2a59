"""The tiny base loaded, and log-probabilities by one plain pass."""

from __future__ import annotations

import pytest
import torch

from cfutils.models import loading, tokenizers


@pytest.fixture(scope="module")
def base(tiny_base):
    return loading.load(tiny_base, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return tokenizers.load_tokenizer(tiny_base)


@torch.inference_mode()
def log_probs(model, ids):
    """log p(. | prefix) at each position, (length, vocabulary), by one pass without padding."""
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
