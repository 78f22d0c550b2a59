"""The last matrix: some columns at a time on a processor, and what may stand in its place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cfutils.errors import UserError
from cfutils.models import lm_head
from cfutils.models.lm_head import Head


def made(linear, **config):
    text = SimpleNamespace(**config)
    return Head(SimpleNamespace(
        get_output_embeddings=lambda: linear, config=SimpleNamespace(get_text_config=lambda: text)
    ))  # fmt: skip


@pytest.mark.parametrize("columns", [1, 4, 11, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_make_no_difference(monkeypatch, columns, bias, dtype):
    monkeypatch.setattr(lm_head, "COLUMNS", columns)
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 11, bias=bias, dtype=dtype)
    hidden = torch.randn(5, 6, dtype=dtype)
    with torch.inference_mode():
        found = made(linear)(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, linear(hidden).float())


def test_states_finer_than_the_matrix_are_rounded_to_it():
    """Mamba in bf16 ends in fp32: 1 + 2^-10 is 1 in bf16."""
    linear = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    linear.weight.data.fill_(3)
    assert made(linear)(torch.tensor([[1 + 2**-10]])).tolist() == [[3.0]]


def test_scale_comes_before_the_cap():
    """2 x 3 = 6, halved 3, capped 2 tanh(3/2) = 1.810296."""
    linear = torch.nn.Linear(1, 1, bias=False)
    linear.weight.data.fill_(3)
    found = made(linear, logits_scaling=2.0, final_logit_softcapping=2.0)(torch.tensor([[2.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.810296]]))


def test_a_layer_that_is_not_plain_is_refused():
    with pytest.raises(UserError, match=r"output layer .* is a Bilinear"):
        made(torch.nn.Bilinear(2, 2, 2))
