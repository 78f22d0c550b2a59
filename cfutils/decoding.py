"""Continuing token by token with a model of transformers: keys and values in room set aside once.

Prompts are read in packed rows, what several begin with once (`trees`). Then transformers' own cache would
copy all it holds at every token; here a token is written where there is room for it, and rows that are
done leave once they are an eighth of the batch. No top-k, no top-p: one uniform number a token decides it,
by the inverse of the cumulated probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from cfutils import packing, trees
from cfutils.engines import Completion, Request
from cfutils.head import Head
from cfutils.trees import Text

LEAVE = 8
"""Rows leave once one in so many is done: each leaving copies what stays."""
PIECE = 256
"""Probabilities that are cumulated one by one; above it their sums are."""


class _Layer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, longest, d), of which the first `length` are there."""

    def __init__(self, rows: int, longest: int) -> None:
        super().__init__()
        self.rows, self.longest, self.length = rows, longest, 0

    def fill(self, length: int, where: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> None:
        """Put keys and values, (n, heads, d) each, in rows and columns (n,), all of them below `length`."""
        if not self.is_initialized:
            self.lazy_initialization(*new)
            self.length = length
            self.room = [
                t.new_empty(self.rows, t.shape[1], self.longest, t.shape[2]) for t in new
            ]
            for room in self.room:
                room[:, :, :length] = 0  # what stands before short prompts has no weight, but a value
        for room, part in zip(self.room, new, strict=True):
            room[where[0], :, where[1]] = part
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin, self.length = self.length, self.length + key_states.shape[-2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, begin : self.length] = new
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        n = len(indices)
        for place, room in enumerate(self.room):
            room[:n, :, : self.length] = room[indices, :, : self.length]
            self.room[place] = room[:n]

    def _show(self) -> None:
        self.keys, self.values = (room[:, :, : self.length] for room in self.room)


class _Packed:
    """A model that `packing` knows: prompts in packed rows, then a token at a time where there is room."""

    def __init__(self, model: Any, prompts: list[tuple[int, ...]], *, longest: int, limit: int) -> None:
        self.body, self.head = model.base_model, Head(model)
        width = max(map(len, prompts))
        n_layers = model.config.get_text_config().num_hidden_layers
        layers = [_Layer(len(prompts), longest) for _ in range(n_layers)]
        self.cache = Cache(layers=layers)
        self.states = torch.empty(
            len(prompts), self.head.width, dtype=model.dtype, device=model.device
        )
        texts = [Text(ids, ids[-1:]) for ids in prompts]
        for reading in trees.read(model, texts, limit=limit, keep=True):
            before = range(reading.trunk.length)
            rows, columns, places = [], [], []
            texts_here, ends = zip(*((index, path[-1]) for index, path in reading.paths), strict=True)
            self.states[list(texts_here)] = reading.hidden[list(ends)]
            for index, path in reading.paths:
                whole = [*before, *(len(before) + place for place in path)]
                rows += [index] * len(whole)
                columns += range(width - len(whole), width)
                places += whole
            rows, columns, places = torch.tensor([rows, columns, places], device=model.device)
            for number, layer in enumerate(layers):
                parts = (reading.trunk.layers, reading.kept.layers) if before else (reading.kept.layers,)
                keys, values = (torch.cat(t, 2)[0] for t in zip(*(p[number] for p in parts), strict=True))
                new = (keys.transpose(0, 1)[places], values.transpose(0, 1)[places])
                layer.fill(width, (rows, columns), new)

    def next(self, ids: Tensor, seen: Tensor | None, positions: Tensor) -> Tensor:
        """Return logits behind one more token, (rows, 1); at first those behind the prompts."""
        states, self.states = self.states, None
        if states is None:
            out = self.body(
                input_ids=ids, attention_mask=seen, position_ids=positions,
                past_key_values=self.cache, use_cache=True,
            )  # fmt: skip
            states = out.last_hidden_state[:, -1]
        return self.head(states)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.cache.batch_select_indices(rows)


class _Plain:
    """Any model: prompts as a padded batch, and the cache that it makes itself."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, None

    def next(self, ids: Tensor, seen: Tensor | None, positions: Tensor) -> Tensor:
        """Return logits behind the last of some tokens, (rows, tokens)."""
        out = self.model(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.cache = out.past_key_values
        return out.logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.cache.batch_select_indices(rows)


def continue_all(
    model: torch.nn.Module,
    requests: list[Request],
    *,
    temperature: float,
    max_tokens: int,
    stop: tuple[int, ...],
    limit: int,
    enough: Callable[[list[int]], bool] | None = None,
) -> list[Completion]:
    """Continue each request, in order; at temperature 0 the likeliest token is taken.

    `limit` is the number of tokens in one pass over the prompts. `enough` is asked now and then whether a
    row may stop before `stop` or `max_tokens` (what it has then may be longer than needed).
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
    padded = not bool(seen.all())
    with torch.inference_mode():
        writer = _Plain(model)
        if _packs(model, width):
            prompts = [tuple(r.prompt) for r in requests]
            writer = _Packed(model, prompts, longest=width + max_tokens, limit=limit)
        for step in range(max_tokens):
            positions = (seen.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = writer.next(ids, seen if padded else None, positions)
            chosen, values = choose(logits, uniforms[alive, step], temperature=temperature)
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
                writer.keep(keep)
                seen, chosen = seen[keep], chosen[keep]
                alive = [alive[row] for row in going]
            ids = chosen[:, None]
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    reasons = [done.get(i, "length") for i in range(len(requests))]
    return [Completion(*found) for found in zip(tokens, logprobs, reasons, strict=True)]


def _packs(model: Any, width: int) -> bool:
    """Whether prompts can be read in packed rows, which have no sliding window."""
    if not packing.packs(model):
        return False
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return not window or width <= window


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
        if rest := -weights.shape[1] % PIECE:
            weights = F.pad(weights, (0, rest))
        pieces = weights.unflatten(1, (-1, PIECE))
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
