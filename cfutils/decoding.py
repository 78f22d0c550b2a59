"""Continuing token by token with a model of transformers: keys and values in room set aside once.

transformers' own cache copies all it holds at every token; here a token is written where there is room
for it, and rows that are done leave once they are an eighth of the batch. No top-k, no top-p: one uniform
number a token decides it, by the inverse of the cumulated probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from cfutils import packing
from cfutils.engines import Completion, Request

LEAVE = 8
"""Rows leave once one in so many is done: each leaving copies what stays."""
PIECE = 256
"""Probabilities that are cumulated one by one; above it their sums are."""


class _Layer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, longest, d), of which the first `length` are there."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.longest, self.length = longest, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.room = [
            t.new_empty(*t.shape[:2], self.longest, t.shape[3]) for t in (key_states, value_states)
        ]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self.length = self.length, self.length + key_states.shape[-2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, begin : self.length] = new
        self.keys, self.values = (room[:, :, : self.length] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        n = len(indices)
        for place, room in enumerate(self.room):
            room[:n, :, : self.length] = room[indices, :, : self.length]
            self.room[place] = room[:n]


def continue_all(
    model: torch.nn.Module,
    requests: list[Request],
    *,
    temperature: float,
    max_tokens: int,
    stop: tuple[int, ...],
    enough: Callable[[list[int]], bool] | None = None,
) -> list[Completion]:
    """Continue each request, in order; at temperature 0 the likeliest token is taken.

    `enough` is asked now and then whether a row may stop before `stop` or `max_tokens` (what it has then
    may be longer than needed).
    """
    width = max(len(r.prompt) for r in requests)
    ids = torch.zeros(len(requests), width, dtype=torch.long)
    seen = torch.zeros_like(ids)
    for row, request in enumerate(requests):  # padded on the left: the last column is the newest
        ids[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
        seen[row, width - len(request.prompt) :] = 1
    ids, seen = ids.to(model.device), seen.to(model.device)
    uniforms = torch.stack([_uniforms(r.seed, max_tokens) for r in requests]).to(_exact(model.device))
    tokens: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    done: dict[int, str] = {}
    alive = list(range(len(requests)))
    layers = model.config.get_text_config().num_hidden_layers
    cache = None
    if packing.packs(model):  # others keep states of their own kind
        cache = Cache(layers=[_Layer(width + max_tokens) for _ in range(layers)])
    padded = not bool(seen.all())
    with torch.inference_mode():
        for step in range(max_tokens):
            position = (seen.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            out = model(
                input_ids=ids, attention_mask=seen if padded else None, position_ids=position,
                past_key_values=cache, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache = out.past_key_values
            chosen, values = choose(
                out.logits[:, -1].float(), uniforms[alive, step], temperature=temperature
            )
            for index, token, value in zip(alive, chosen.tolist(), values.tolist(), strict=True):
                if index in done:
                    continue
                tokens[index].append(token)
                logprobs[index].append(value)
                if token in stop:
                    done[index] = "stop"
                elif enough and step % 16 == 15 and enough(tokens[index]):
                    done[index] = "length"
            going = [row for row, index in enumerate(alive) if index not in done]
            if not going:
                break
            if len(going) <= len(alive) * (1 - 1 / LEAVE):
                keep = torch.tensor(going, device=model.device)
                cache.batch_select_indices(keep)
                seen, chosen = seen[keep], chosen[keep]
                alive = [alive[row] for row in going]
            ids = chosen[:, None]
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    reasons = [done.get(i, "length") for i in range(len(requests))]
    return [Completion(*found) for found in zip(tokens, logprobs, reasons, strict=True)]


def choose(logits: Tensor, uniforms: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw one token a row from softmax(logits / temperature); return it and its log p at temperature 1.

    logits: (rows, vocabulary) in fp32; uniforms: (rows,) in [0, 1), fp64. The token is the first whose
    cumulated probability exceeds the uniform number; the cumulation is in fp64, in pieces.
    """
    if temperature == 0:
        chosen, normal = logits.argmax(-1), logits.logsumexp(-1)
    else:
        top = logits.amax(-1, keepdim=True)
        weights = ((logits - top) / temperature).exp_().to(uniforms.device)
        pieces = F.pad(weights, (0, -weights.shape[1] % PIECE)).unflatten(1, (-1, PIECE))
        sums = pieces.sum(-1, dtype=torch.float64).cumsum(-1)
        normal = sums[:, -1].log().float().to(top.device) + top[:, 0]
        if temperature != 1:
            normal = logits.logsumexp(-1)
        goal = uniforms[:, None] * sums[:, -1:]
        piece = torch.searchsorted(sums, goal, right=True).clamp(max=sums.shape[1] - 1)
        before = torch.where(piece > 0, sums.gather(1, (piece - 1).clamp(min=0)), 0)
        inner = pieces[torch.arange(len(pieces), device=piece.device), piece[:, 0]].double().cumsum(-1)
        place = torch.searchsorted(inner, goal - before, right=True)
        # sums of a piece and of its members may differ in the last digit
        last = torch.searchsorted(inner, inner[:, -1:].contiguous())
        chosen = (piece * PIECE + torch.minimum(place, last))[:, 0].to(logits.device)
    return chosen, logits.gather(1, chosen[:, None])[:, 0] - normal


def _exact(device: torch.device) -> torch.device:
    """Where fp64 is: Apple's GPU has none."""
    return torch.device("cpu") if device.type == "mps" else device


def _uniforms(seed: int, n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
