"""The last hidden states of a frozen base on given sequences: from them its logits cost one matrix product.

A hidden state is as wide as the model, a row of logits as wide as the vocabulary, so states are what is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfutils import atomic, progress
from cfutils.data.sequences import Sequence
from cfutils.models import packing
from cfutils.models.lm_head import Head
from cfutils.progress import Advance


class BaseStates:
    """Hidden states by sequence, computed when they are first used, or all at once (`freeze`)."""

    def __init__(self, model: torch.nn.Module, path: Path | None = None, *, limit: int) -> None:
        """Keep states in memory, or with `path` those of `freeze` in a safetensors file.

        limit: tokens in one forward pass.
        """
        self.model: torch.nn.Module | None = model
        self.head = Head(model)
        self._path, self._limit = path, limit
        self._states: dict[Sequence, Tensor] = {}
        self._rows: dict[Sequence, slice] = {}
        """Where each sequence's states are in the file."""

    def freeze(self, sequences: Seq[Sequence], dtype: torch.dtype | None = None) -> None:
        """Compute the states of all sequences now; the model is then let go and may be trained.

        A file that exists holds the states of the same sequences in the same order, and the base's last matrix, from
        a run that was interrupted or from the process that started this one. It is used as it is, and the model
        may have other weights than the base by then.
        dtype: of states and last matrix in the file; None: the model's.
        """
        unique = list(dict.fromkeys(sequences))
        tokens = sum(len(one.ids) for one in unique)
        with progress.task("states of the base", total=tokens, unit="tokens") as advance:
            if self._path is None:
                self._states |= self._computed(unique, advance)
            else:
                total = 0
                for sequence in unique:
                    self._rows[sequence] = slice(total, total + sequence.supervised)
                    total += sequence.supervised
                if not self._path.exists():
                    self._write(torch.empty(total, self.head.width, dtype=dtype or self.model.dtype), advance)
        self.model, self.head = None, copy.deepcopy(self.head).requires_grad_(False)
        if self._path is not None:
            with safe_open(self._path, "pt") as file:
                for name, p in self.head.named_parameters():
                    p.data = file.get_tensor(name).to(p.device)

    @torch.no_grad()
    def hidden(self, sequences: Seq[Sequence]) -> Tensor:
        """Return the states that predict supervised tokens, (n, width), sequence by sequence."""
        if self._path is None:
            if missing := [s for s in dict.fromkeys(sequences) if s not in self._states]:
                self._states |= self._computed(missing)
            parts = [self._states[s] for s in sequences]
        else:
            with safe_open(self._path, "pt") as file:
                states = file.get_slice("states")
                parts = [states[self._rows[s]] for s in sequences]
        return torch.cat(parts).to(self.head.linear.weight.device)

    def _write(self, states: Tensor, advance: Advance) -> None:
        """Fill `states`, (supervised tokens of all sequences, width), and write them."""
        for sequence, part in self._computed(list(self._rows), advance):
            states[self._rows[sequence]] = part
        head = {name: p.detach().to(states.dtype) for name, p in self.head.named_parameters()}
        with atomic.replacing(self._path) as part:
            save_file({"states": states, **head}, part)

    def _computed(
        self, sequences: Seq[Sequence], advance: Advance = progress.ignore
    ) -> Iterator[tuple[Sequence, Tensor]]:
        """Yield sequences and their states, (supervised tokens, width), in the processor's memory."""
        for places in packing.by_length([len(s.ids) for s in sequences], limit=self._limit):
            some = [sequences[i] for i in places]
            with torch.inference_mode():
                found = packing.documents(some, self.model.device)
                rows = packing.last_hidden(self.model, found.packed)[found.rows].cpu()
            yield from zip(some, rows.split(found.counts), strict=True)
            advance(sum(len(one.ids) for one in some))
