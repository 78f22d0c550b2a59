"""Decoders: the logits of the next token of many rows, with what was computed before kept in between.

Where a model computes packed rows, so are its prompts, common prefixes once (`prefix_trees`), and each token's
keys and values are written into memory allocated once; transformers' own cache would be copied whole at every
token. Any other model keeps what it will, keys or the states of its layers, in its own cache.
"""

from __future__ import annotations

import enum
import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from cfutils.errors import UserError
from cfutils.models import packed_rows, packing, prefix_trees
from cfutils.models.lm_head import Head
from cfutils.models.prefix_trees import Text

CACHES = ("past_key_values", "cache_params")
"""What architectures call their cache: those with attention, and those whose layers carry states alone."""


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


class PackedDecoder:
    """Decoding with a model that `packing` supports: prompts in packed rows, then one token at a time."""

    def __init__(
        self, model: Any, prompts: list[tuple[int, ...]], *, capacity: int, limit: int
    ) -> None:
        self.body, self.head = packing.body(model), Head(model)
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

    def next_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits after one more token, ids (rows, 1); the first call returns the prompts' own."""
        states, self.states = self.states, None
        if states is None:
            out = self.body(
                input_ids=ids, **_masked(ids, mask), past_key_values=self.cache, use_cache=True
            )
            states = out.last_hidden_state[:, -1]
        return self.head(states)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.cache.batch_select_indices(rows)


class PaddedDecoder:
    """Decoding with any model: prompts as a padded batch, and the cache that the model makes itself."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, {}
        self.accepted = inspect.signature(model.forward).parameters

    def next_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits after the last of some tokens, ids (rows, tokens)."""
        given = {**_masked(ids, mask), "logits_to_keep": 1}
        given = {name: value for name, value in given.items() if name in self.accepted}
        inputs = self.model.prepare_inputs_for_generation(
            ids, use_cache=True, is_first_iteration=not self.cache, **given, **self.cache
        )
        out = self.model(**inputs)
        self.cache = {name: out[name] for name in CACHES if isinstance(out.get(name), Cache)}
        if not self.cache:
            raise TypeError("it keeps nothing between tokens that rows can be dropped from")
        return out.logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        for cache in self.cache.values():
            cache.reorder_cache(rows)


class Way(enum.Enum):
    """How a model decodes."""

    PACKED = "prompts in packed rows, and keys and values in memory allocated once"
    PADDED = "prompts of any lengths in a padded batch, and the model's own cache"
    ALIKE = "prompts of one length at a time, and the model's own cache"


_WAYS: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def way(model: Any) -> Way:
    """Return how a model decodes, which is tested once for each model.

    Raises `UserError` if the model's own cache, after rows are dropped, does not give the logits of whole passes.
    """
    if model not in _WAYS:
        _WAYS[model] = _tested(model)
    return _WAYS[model]


@torch.inference_mode()
def _tested(model: Any) -> Way:
    if packing.supports_packing(model) and _caches_what_it_attends_to(model):
        return Way.PACKED
    vocabulary = model.config.get_text_config().vocab_size
    short, other, longer = (
        tuple(i % vocabulary for i in ids) for ids in ((17, 5), (7, 11), (5, 7, 11, 13))
    )
    if why := _differing(model, [other, short]):
        raise UserError(
            f"{type(model).__name__} cannot sample here: {why}. Choose a base whose forward pass takes and returns "
            "transformers' Cache."
        )
    alike = packing.has_own_layers(model) or _differing(model, [longer, short])
    return Way.ALIKE if alike else Way.PADDED


def _differing(model: Any, prompts: list[tuple[int, ...]]) -> str | None:
    """Say what is wrong with two logits of the last prompt, before the second of which all others are dropped."""
    last = len(prompts) - 1
    try:
        decoder = PaddedDecoder(model)
        ids, mask = padded(prompts, model.device)
        first = decoder.next_logits(ids, mask)[last]
        decoder.keep(torch.tensor([last], device=model.device))
        second = decoder.next_logits(ids[last:, -1:], F.pad(mask[last:], (0, 1), value=1))[0]
        whole = torch.cat([ids[last:], ids[last:, -1:]], dim=1)[:, -len(prompts[last]) - 1 :]
        expected = model(input_ids=whole).logits[0, -2:].float()
    except packing.FAILURES as error:
        return f"{type(error).__name__}: {error}"
    return packing.differing(torch.stack([first, second]), expected, model.dtype)


def _caches_what_it_attends_to(model: Any) -> bool:
    """Whether a cache can be filled with the keys and values of attention; some keep what these are made from."""
    trunk, ids = packed_rows.Trunk(1), (5 % model.config.get_text_config().vocab_size,)
    packing.last_hidden(
        model, packed_rows.row([packed_rows.chain(ids)], model.device, record=trunk)
    )
    out = packing.body(model)(input_ids=torch.tensor([ids], device=model.device), use_cache=True)
    cache = out.get("past_key_values")
    return isinstance(cache, Cache) and len(cache) == len(trunk.layers) and all(
        kept.shape == seen.shape and not packing.differing(kept, seen, model.dtype)
        for number, layer in enumerate(cache.layers)
        for kept, seen in zip((layer.keys, layer.values), trunk.layers[number], strict=True)
    )


def opened(
    model: Any, prompts: list[tuple[int, ...]], *, max_tokens: int, limit: int
) -> PackedDecoder | PaddedDecoder:
    """Return a decoder for prompts, with room for `max_tokens` behind each.

    limit: tokens in one forward pass over the prompts, where they are packed.
    """
    if way(model) is not Way.PACKED:
        return PaddedDecoder(model)
    capacity = max(map(len, prompts)) + max_tokens
    return PackedDecoder(model, prompts, capacity=capacity, limit=limit)


def padded(prompts: list[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, (prompts, longest): padded on the left, so that the last column is the newest."""
    width = max(map(len, prompts))
    ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids.to(device), mask.to(device)


def _masked(ids: Tensor, mask: Tensor) -> dict[str, Tensor | None]:
    """Return the mask, None where nothing is padded, and the positions of the last tokens, ids (rows, tokens)."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return {"attention_mask": None if mask.all() else mask, "position_ids": positions}
