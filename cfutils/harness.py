"""lm-eval's own tasks on a loaded model: stock definitions, requests and metrics; generation in our loop.

What differs from lm-eval's HFLM: texts are encoded all at once, common beginnings are computed once and
logits only where a continuation is scored (`trees`), and all greedy answers go through one loop that lets
finished rows leave the batch (`decoding`), or through vLLM where they may be long. What comes out is the
same (tested).
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.models.huggingface import HFLM
from torch import nn

from cfutils import decoding, models, packing, trees
from cfutils.engines import Completion, Request, VllmEngine
from cfutils.profiles import Profile
from cfutils.trees import Text

PAYS = 20_000
"""Tokens of answers, at most, from which on vLLM's start is worth its speed."""


class Harness(HFLM):
    """lm-eval's HFLM, in whose place it stands: the same answers, sooner."""

    def __init__(
        self, *args: Any, pass_tokens: int = 2048, engine: Callable[[], VllmEngine] | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Take what HFLM takes, and how scoring is to be done.

        `pass_tokens` is the number of tokens in one forward pass; `engine` opens vLLM on the same
        weights, which then writes the answers where they may be long.
        """
        super().__init__(*args, **kwargs)
        self.pass_tokens, self.engine = pass_tokens, engine
        self._encoded: dict[str, list[int]] = {}
        packing.prepare(self.model)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return a text's tokens, known already if they were asked for ahead."""
        if add_special_tokens is None and not kwargs and string in self._encoded:
            return self._encoded[string]
        return super().tok_encode(string, add_special_tokens, **kwargs)

    @contextlib.contextmanager
    def _ahead(self, texts: Iterable[str]) -> Iterator[None]:
        """Encode texts all at once; lm-eval asks for one at a time, and for contexts once a choice."""
        begins = self.tokenizer.decode(self.prefix_token_id)  # tok_encode puts no other in front
        texts = [text for text in dict.fromkeys(texts) if not text.startswith(begins)]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        ids = self.tokenizer(texts, **special)["input_ids"] if texts else []
        self._encoded = dict(zip(texts, ids, strict=True))
        try:
            yield
        finally:
            self._encoded = {}

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log p(continuation | context) of each request, and whether it is the greedy answer."""
        pairs = [request.args for request in requests]
        texts = itertools.chain.from_iterable((c.rstrip(), c + k) for c, k in pairs)
        with self._ahead(texts):
            return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not packing.packs(self.model):
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        texts = []
        for _, context, continuation in requests:
            ids = (*context, *continuation)[-(self.max_length + 1) :]
            texts.append(Text(ids[:-1], tuple(continuation)))
        found = trees.loglikelihoods(self.model, texts, limit=self.pass_tokens)
        for (request, *_), answer in zip(requests, found, strict=True):
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, answer)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy continuation of each context, cut before its first stop text."""
        longest = sum(request.args[1]["max_gen_toks"] for request in requests)
        with self._ahead(request.args[0] for request in requests):
            if self.engine is None or longest < PAYS:
                return self._all(requests, self._loop, size=int(self.batch_size_per_gpu))
            device = self.model.device
            self.model.to("cpu")  # vLLM wants the GPU to itself
            with self.engine() as engine:
                found = self._all(
                    requests, functools.partial(self._vllm, engine), size=len(requests)
                )
            self.model.to(device)
            return found

    def _all(self, requests: list[Instance], answer: Callable, *, size: int) -> list[str]:
        alike: dict[str, list[int]] = {}  # one batch has one set of stops
        for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0])):
            alike.setdefault(repr(requests[i].args[1]), []).append(i)
        texts: dict[int, str] = {}
        for order in alike.values():
            for begin in range(0, len(order), size):
                places = order[begin : begin + size]
                part = [requests[i] for i in places]
                texts |= zip(places, self._continue(part, answer), strict=True)
        return [texts[i] for i in range(len(requests))]

    def _continue(self, requests: list[Instance], answer: Callable) -> list[str]:
        settings = requests[0].args[1]
        if settings.get("do_sample"):
            raise NotImplementedError("a task that samples its answers; only greedy ones are scored")
        longest = settings["max_gen_toks"]
        stops = settings["until"]
        stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
        rows = []
        for request in requests:
            ids = self.tok_encode(request.args[0])[-(self.max_length - longest) :]
            rows.append(Request(tuple(ids), 0))
        found = []
        for completion in answer(rows, longest, stops):
            text = self.tok_decode(completion.token_ids, skip_special_tokens=True)
            for stop in stops:
                text = text.split(stop)[0]
            found.append(text)
        return found

    def _loop(self, rows: list[Request], longest: int, stops: list[str]) -> list[Completion]:
        return decoding.continue_all(
            self.model, rows, temperature=0, max_tokens=longest, stop=(self.eot_token_id,),
            limit=self.pass_tokens,
            enough=lambda ids: any(text in self.tok_decode(ids) for text in stops),
        )  # fmt: skip

    def _vllm(
        self, engine: VllmEngine, rows: list[Request], longest: int, stops: list[str]
    ) -> list[Completion]:
        return engine.draw(
            rows, temperature=0, max_tokens=longest, stop=(self.eot_token_id,), texts=tuple(stops)
        )


def evaluate(
    model: nn.Module, folder: Path, tasks: dict[str, Any], *, indices: dict[str, list[int]],
    profile: Profile,
) -> dict[str, list[dict]]:  # fmt: skip
    """Score chosen items of lm-eval tasks by name; return lm-eval's logged samples of each."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tokenizer = models.load_tokenizer(folder, trust_remote_code=profile.trust_remote_code)
    for task in tasks.values():
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": profile.max_new_tokens}, update=True)
    engine = None
    if profile.engine == "vllm":
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 4096
        engine = functools.partial(VllmEngine, folder, profile, max_length=longest)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars stick under papermill
        lm = Harness(
            pretrained=model, tokenizer=tokenizer, batch_size=profile.chunk,
            pass_tokens=profile.pass_tokens, engine=engine,
        )  # fmt: skip
        result = lm_evaluate(  # not simple_evaluate, which lists every installed package at each call
            lm, tasks, samples=indices, bootstrap_iters=0, log_samples=True,
            apply_chat_template=profile.chat_template,
        )  # fmt: skip
    return result["samples"]
