"""Requests, completions, and the protocol that every generation engine implements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from cfutils import progress
from cfutils.progress import Advance


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    `prompt` holds at least one token id. `seed` is at least 0 and below 2**32; each engine documents how
    it uses it.
    """

    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    `token_ids` includes the end token; `logprobs` are log p of each token at temperature 1 and top-p 1, in nats;
    `finish_reason` is "stop" (an end token or a stop text) or "length" (cut at max_tokens).
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class Engine(Protocol):
    """Samples completions from one model; a context manager, which frees the model on exit."""

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
        """Sample one completion per request, in the order of the requests.

        Temperature 0 is greedy decoding; there is no top-k. With `top_p` below 1 a token is drawn from the
        smallest set of the most probable ones, at that temperature, that has at least this probability
        (nucleus sampling, arXiv 1904.09751); replay samples never have it. A completion ends with the first
        token of `stop`, with the token that completes one of `stop_texts` (both are kept), or after
        `max_tokens` tokens. `advance` is told how many completions more are done, fractions of them too.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
