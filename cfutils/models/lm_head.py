"""From last hidden states to logits: the one matrix as wide as the vocabulary, a small model's largest.

A processor's product with so wide a result runs at about half of the speed of the others; taken some
columns at a time it does not (and gives the same numbers up to rounding).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfutils.errors import UserError

COLUMNS = 1536
"""Tokens of the vocabulary that a product on a processor takes at a time."""
LOGIT_ROWS = 128
"""Rows of logits that exist at a time: enough for a matrix product at full speed, and memory that does not grow
with vocabulary x length."""


class Head(torch.nn.Module):
    """From last hidden states to logits in fp32, as the architecture does it."""

    def __init__(self, model: Any) -> None:
        """Take the last matrix of a model, and what its configuration says of what comes after it."""
        super().__init__()
        core = model.get_base_model() if hasattr(model, "get_base_model") else model  # below adapters
        self.linear = core.get_output_embeddings()
        if not isinstance(self.linear, torch.nn.Linear):
            raise UserError(
                f"the output layer of {type(core).__name__} is a {type(self.linear).__name__}; only a "
                "plain linear layer is known here (no adapter on it, no quantisation)"
            )
        config = core.config.get_text_config()
        # what architectures do after their last matrix (Cohere, Granite, Gemma)
        self.scale = getattr(config, "logit_scale", None) or 1 / (
            getattr(config, "logits_scaling", None) or 1
        )
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.width = self.linear.in_features

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (n, width). Returns logits (n, vocabulary)."""
        return self.finish(self.product(hidden, self.linear.weight))

    def matrix(self) -> Tensor:
        """Return the matrix in the dtype that products are made in: converted once for many of them."""
        weight = self.linear.weight
        device = weight.device.type
        return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight

    def product(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Multiply by the matrix alone, in its dtype or that of autocast."""
        bias = self.linear.bias
        hidden = hidden.to(weight.dtype)  # Mamba's last states are in fp32 whatever its weights are in
        exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if torch.is_grad_enabled() or hidden.device.type != "cpu" or not exact:
            return F.linear(hidden, weight, bias)
        out = hidden.new_empty(len(hidden), len(weight))
        for part, rows in zip(out.split(COLUMNS, dim=1), weight.split(COLUMNS), strict=True):
            torch.mm(hidden, rows.T, out=part)
        return out if bias is None else out.add_(bias)

    def finish(self, product: Tensor) -> Tensor:
        """Do what comes after the matrix, in fp32."""
        logits = product.float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
