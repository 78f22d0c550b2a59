"""The tiny base loaded, another model beside it, and log-probabilities by one plain pass."""

from __future__ import annotations

import pytest
import torch

from cfutils.models import loading, tokenizers


@pytest.fixture(scope="module")
def base(tiny_base):
    return loading.load(tiny_base, dtype="float32")


@pytest.fixture(scope="module")
def other(tiny_base):
    """The base with every weight shifted at random."""
    model = loading.load(tiny_base, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return tokenizers.load_tokenizer(tiny_base)


@torch.inference_mode()
def log_probs(model, ids):
    """log p(. | prefix) at each position, (length, vocabulary), by one pass without padding."""
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
