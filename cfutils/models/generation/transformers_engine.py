"""Generation token by token with a transformers model, many rows at a time (`decoders`).

Finished rows are dropped once they are an eighth of the batch. There is no top-k: a token is chosen by one uniform
number, through the inverse of the cumulative distribution, that of the nucleus alone with top-p below 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfutils import progress
from cfutils.models import loading, tokenizers
from cfutils.models.generation import decoders
from cfutils.models.generation.decoders import Way
from cfutils.models.generation.types import Completion, Request
from cfutils.progress import Advance

DROP_SHARE = 1 / 8
"""Rows are dropped once this share of the batch is finished: dropping copies the rows that remain."""
PIECE = 256
"""Probabilities are cumulated one by one inside pieces of this size; above it the pieces' sums are."""
CHECK_EVERY = 16
"""Tokens between two checks for stop texts: each check detokenises every row."""


def continue_all(
    model: torch.nn.Module,
    requests: list[Request],
    *,
    temperature: float,
    max_tokens: int,
    stop: tuple[int, ...],
    limit: int,
    top_p: float = 1.0,
    enough: Callable[[list[int]], bool] | None = None,
    advance: Advance = progress.ignore,
) -> list[Completion]:
    """Continue each request, in order; at temperature 0 the most probable token is taken.

    `limit` is the number of tokens in one forward pass over the prompts. `enough(token_ids)` is
    called after every `CHECK_EVERY` tokens of a row and ends the row if it returns True; the completion
    then holds all of its tokens, which may be more than were needed. `advance` is called after every token, with
    the share of the completions that it is.
    """
    prompts = [tuple(r.prompt) for r in requests]
    lengths = sorted(set(map(len, prompts)))
    if len(lengths) > 1 and decoders.way(model) is Way.ALIKE:
        found: dict[int, Completion] = {}
        for length in lengths:
            places = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            some = continue_all(
                model, [requests[i] for i in places], temperature=temperature, max_tokens=max_tokens,
                stop=stop, limit=limit, top_p=top_p, enough=enough, advance=advance,
            )  # fmt: skip
            found |= zip(places, some, strict=True)
        return [found[i] for i in range(len(requests))]
    ids, mask = decoders.padded(prompts, model.device)
    uniforms = torch.stack([_uniforms(r.seed, max_tokens) for r in requests]).to(_exact(model.device))
    tokens: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    done: dict[int, str] = {}
    alive = list(range(len(requests)))
    with torch.inference_mode():
        decoder = decoders.opened(model, prompts, max_tokens=max_tokens, limit=limit)
        for step in range(max_tokens):
            logits = decoder.next_logits(ids, mask)
            advance(len(requests) / max_tokens)
            chosen, values = choose(logits, uniforms[alive, step], temperature=temperature, top_p=top_p)
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
                advance(len(requests) * (1 - (step + 1) / max_tokens))
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


def choose(
    logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sample one token per row from the nucleus of softmax(logits / temperature); at temperature 0 take the likeliest.

    logits: (rows, vocabulary), fp32; uniforms: (rows,) in [0, 1), fp64. Returns token ids (rows,) and their
    log p at temperature 1 (rows,), in nats. The token is the first whose cumulative probability exceeds
    the uniform number; sums are in fp64, piece by piece.
    """
    if temperature == 0:
        chosen, normal = logits.argmax(-1), logits.logsumexp(-1)
    else:
        top = logits.amax(-1, keepdim=True)
        weights = ((logits - top) / temperature).exp_().to(uniforms.device)
        if top_p < 1:
            weights *= nucleus(weights, top_p)
        if rest := -weights.shape[1] % PIECE:
            weights = F.pad(weights, (0, rest))
        pieces = weights.unflatten(1, (-1, PIECE))
        sums = pieces.sum(-1, dtype=torch.float64).cumsum(-1)
        normal = sums[:, -1].log().float().to(top.device) + top[:, 0]
        if temperature != 1 or top_p < 1:
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


def nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Return which tokens belong to each row's nucleus, (rows, vocabulary): those whose likelier tokens have less
    than top_p of the sum of the weights, hence at least one. Of equal weights the first counts as the likelier.
    """
    ordered, places = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    inside = before < top_p * ordered.sum(-1, keepdim=True, dtype=torch.float64)
    return torch.zeros_like(inside).scatter(-1, places, inside)


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
        top_p: float = 1.0,
        stop_texts: tuple[str, ...] = (),
        advance: Advance = progress.ignore,
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
                limit=self._pass_tokens, top_p=top_p, enough=has_stop_text if stop_texts else None, advance=advance,
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
