"""The model that is trained, as one module from documents to whatever is computed of their last hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from cfutils.models import packing
from cfutils.models.packing import Documents

T = TypeVar("T")


class Student(torch.nn.Module):
    """A model whose forward pass ends in a function of last hidden states.

    The last matrix is used inside the pass (`then` calls the head): where the weights are sharded they are whole
    there and nowhere else.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.device = model.device
        """Where it computes; weights that are offloaded are elsewhere."""

    @classmethod
    def of(cls, model: torch.nn.Module) -> Student:
        """Return a student of a model; a student is returned as it is."""
        return model if isinstance(model, Student) else cls(model)

    def forward(self, found: Documents, then: Callable[[Tensor], T]) -> T:
        """Return what `then` makes of the states that predict supervised tokens, (n, width)."""
        return then(packing.last_hidden(self.model, found.packed)[found.rows])
