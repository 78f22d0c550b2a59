"""Generation token by token with a transformers model, and a key-value cache allocated once.

Prompts are computed in packed rows, common prefixes once (`prefix_trees`). For decoding, transformers' own
cache would be copied whole at every token; here each token is written into memory allocated for it, and
finished rows are dropped once they are an eighth of the batch. There is no top-k and no top-p: a token is
chosen by one uniform number, through the inverse of the cumulative distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from cfutils.models import loading, packing, prefix_trees, tokenizers
from cfutils.models.generation.types import Completion, Request
from cfutils.models.lm_head import Head
from cfutils.models.prefix_trees import Text

DROP_SHARE = 1 / 8
"""Rows are dropped once this share of the batch is finished: dropping copies the rows that remain."""
PIECE = 256
"""Probabilities are cumulated one by one inside pieces of this size; above it the pieces' sums are."""
CHECK_EVERY = 16
"""Tokens between two checks for stop texts: each check detokenises every row."""


class _Layer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, capacity, d), of which the first `length` are filled."""

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()
        self.rows, self.capacity, self.length = rows, capacity, 0

    def fill(self, length: int, where: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> None:
        """Write keys and values, (n, heads, d) each, at rows and columns (n,), all below `length`."""
        if not self.is_initialized:
            self.lazy_initialization(*new)
            self.length = length
            self.buffers = [
                t.new_empty(self.rows, t.shape[1], self.capacity, t.shape[2]) for t in new
            ]
            for buffer in self.buffers:
                buffer[:, :, :length] = 0  # padding is masked, but must be finite
        for buffer, part in zip(self.buffers, new, strict=True):
            buffer[where[0], :, where[1]] = part
        self._expose()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin, self.length = self.length, self.length + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin : self.length] = new
        self._expose()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        n = len(indices)
        for i, buffer in enumerate(self.buffers):
            buffer[:n, :, : self.length] = buffer[indices, :, : self.length]
            self.buffers[i] = buffer[:n]

    def _expose(self) -> None:
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)


class _PackedDecoder:
    """Decoding with a model that `packing` supports: prompts in packed rows, then one token at a time."""

    def __init__(
        self, model: Any, prompts: list[tuple[int, ...]], *, capacity: int, limit: int
    ) -> None:
        self.body, self.head = model.base_model, Head(model)
        width = max(map(len, prompts))
        n_layers = model.config.get_text_config().num_hidden_layers
        layers = [_Layer(len(prompts), capacity) for _ in range(n_layers)]
        self.cache = Cache(layers=layers)
        self.states = torch.empty(
            len(prompts), self.head.width, dtype=model.dtype, device=model.device
        )
        texts = [Text(ids, ids[-1:]) for ids in prompts]
        for reading in prefix_trees.read(model, texts, limit=limit, keep=True):
            trunk = range(reading.trunk.length)
            rows, columns, places = [], [], []
            indices, ends = zip(*((index, path[-1]) for index, path in reading.paths), strict=True)
            self.states[list(indices)] = reading.hidden[list(ends)]
            for index, path in reading.paths:
                whole = [*trunk, *(len(trunk) + place for place in path)]
                rows += [index] * len(whole)
                columns += range(width - len(whole), width)
                places += whole
            rows, columns, places = torch.tensor([rows, columns, places], device=model.device)
            for number, layer in enumerate(layers):
                parts = (reading.trunk.layers, reading.kept.layers) if trunk else (reading.kept.layers,)
                keys, values = (torch.cat(t, 2)[0] for t in zip(*(p[number] for p in parts), strict=True))
                new = (keys.transpose(0, 1)[places], values.transpose(0, 1)[places])
                layer.fill(width, (rows, columns), new)

    def next_logits(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Return logits after one more token, ids (rows, 1); the first call returns the prompts' own."""
        states, self.states = self.states, None
        if states is None:
            out = self.body(
                input_ids=ids, attention_mask=mask, position_ids=positions,
                past_key_values=self.cache, use_cache=True,
            )  # fmt: skip
            states = out.last_hidden_state[:, -1]
        return self.head(states)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.cache.batch_select_indices(rows)


class _PaddedDecoder:
    """Decoding with any model: prompts as a padded batch, and the cache that the model makes itself."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, None

    def next_logits(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Return logits after the last of some tokens, ids (rows, tokens)."""
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.cache = out.past_key_values
        return out.logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
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
    """Continue each request, in order; at temperature 0 the most probable token is taken.

    `limit` is the number of tokens in one forward pass over the prompts. `enough(token_ids)` is
    called after every `CHECK_EVERY` tokens of a row and ends the row if it returns True; the completion
    then holds all of its tokens, which may be more than were needed.
    """
    width = max(len(r.prompt) for r in requests)
    ids = torch.zeros(len(requests), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):  # padded on the left: the last column is the newest
        ids[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
        mask[row, width - len(request.prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    uniforms = torch.stack([_uniforms(r.seed, max_tokens) for r in requests]).to(_exact(model.device))
    tokens: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    done: dict[int, str] = {}
    alive = list(range(len(requests)))
    padded = not bool(mask.all())
    with torch.inference_mode():
        decoder = _PaddedDecoder(model)
        if _packs_prompts(model, width):
            prompts = [tuple(r.prompt) for r in requests]
            decoder = _PackedDecoder(model, prompts, capacity=width + max_tokens, limit=limit)
        for step in range(max_tokens):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = decoder.next_logits(ids, mask if padded else None, positions)
            chosen, values = choose(logits, uniforms[alive, step], temperature=temperature)
            for index, token, value in zip(alive, chosen.tolist(), values.tolist(), strict=True):
                if index in done:
                    continue
                tokens[index].append(token)
                logprobs[index].append(value)
                check = enough and (step + 1) % CHECK_EVERY == 0
                if token in stop or (check and enough(tokens[index])):
                    done[index] = "stop"
            going = [row for row, index in enumerate(alive) if index not in done]
            if not going:
                break
            if len(going) <= len(alive) * (1 - DROP_SHARE):
                keep = torch.tensor(going, device=model.device)
                decoder.keep(keep)
                mask, chosen = mask[keep], chosen[keep]
                alive = [alive[row] for row in going]
            ids = chosen[:, None]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    reasons = [done.get(i, "length") for i in range(len(requests))]
    return [Completion(*found) for found in zip(tokens, logprobs, reasons, strict=True)]


def _packs_prompts(model: Any, width: int) -> bool:
    """Whether prompts can be computed in packed rows, which have no sliding window."""
    if not packing.supports_packing(model):
        return False
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return not window or width <= window


def choose(logits: Tensor, uniforms: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample one token per row from softmax(logits / temperature); at temperature 0 take the most probable.

    logits: (rows, vocabulary), fp32; uniforms: (rows,) in [0, 1), fp64. Returns token ids (rows,) and their
    log p at temperature 1 (rows,), in nats. The token is the first whose cumulative probability exceeds
    the uniform number; sums are in fp64, piece by piece.
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
        # the sum of a piece and that of its members may differ in the last digit
        last = torch.searchsorted(inner, inner[:, -1:].contiguous())
        chosen = (piece * PIECE + torch.minimum(place, last))[:, 0].to(logits.device)
    return chosen, logits.gather(1, chosen[:, None])[:, 0] - normal


def _exact(device: torch.device) -> torch.device:
    """Return a device that has fp64 (Apple's GPU has none)."""
    return torch.device("cpu") if device.type == "mps" else device


def _uniforms(seed: int, n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TransformersEngine:
    """Samples with a loop over transformers' forward pass, in this process; no start-up, any model.

    Reproducibility: each request has its own seed, and its completion does not depend on the requests
    beside it, on their order or on `chunk`, up to floating-point rounding (which can change a token where
    two are almost equally far along the cumulative distribution).
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        chunk: int,
        pass_tokens: int,
        trust_remote_code: bool = False,
    ) -> None:
        """Set up an engine for the model in a Hugging Face folder, which is loaded by the first `draw`.

        dtype: of weights and computation, "float32" or "bfloat16".
        chunk: requests decoded at the same time; the others follow.
        pass_tokens: tokens in one forward pass over prompts.
        """
        self._folder, self._dtype, self._trust_remote_code = folder, dtype, trust_remote_code
        self._chunk, self._pass_tokens = chunk, pass_tokens
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chunk: int,
        pass_tokens: int,
    ) -> Self:
        """Return an engine for a model that is loaded already, in the state that it is in."""
        dtype = str(model.dtype).removeprefix("torch.")
        engine = cls(Path(model.name_or_path), dtype=dtype, chunk=chunk, pass_tokens=pass_tokens)
        engine._model, engine._tokenizer = model, tokenizer
        return engine

    def draw(
        self,
        requests: list[Request],
        *,
        temperature: float,
        max_tokens: int,
        stop: tuple[int, ...],
        stop_texts: tuple[str, ...] = (),
    ) -> list[Completion]:
        """Sample one completion per request, in order, each with the request's own seed."""
        trust = self._trust_remote_code
        if self._model is None:
            self._model = loading.load(self._folder, dtype=self._dtype, trust_remote_code=trust)
        if stop_texts and self._tokenizer is None:
            self._tokenizer = tokenizers.load_tokenizer(self._folder, trust_remote_code=trust)

        def has_stop_text(token_ids: list[int]) -> bool:
            text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
            return any(stop_text in text for stop_text in stop_texts)

        found = []
        for some in _chunks(requests, self._chunk):
            found += continue_all(
                self._model, some, temperature=temperature, max_tokens=max_tokens, stop=stop,
                limit=self._pass_tokens, enough=has_stop_text if stop_texts else None,
            )  # fmt: skip
        return [_cut(one, has_stop_text) for one in found] if stop_texts else found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._model = self._tokenizer = None


def _chunks(requests: list[Request], size: int) -> Iterator[list[Request]]:
    for begin in range(0, len(requests), size):
        yield requests[begin : begin + size]


def _cut(completion: Completion, has_stop_text: Callable[[list[int]], bool]) -> Completion:
    """Cut a completion after the token that completes a stop text, as vLLM does."""
    ids = completion.token_ids
    if not has_stop_text(ids):
        return completion
    low, high = 0, len(ids)  # a stop text is in the first `high` tokens, and not in the first `low`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if has_stop_text(ids[:middle]) else (middle, high)
    return Completion(ids[:high], completion.logprobs[:high], "stop")
