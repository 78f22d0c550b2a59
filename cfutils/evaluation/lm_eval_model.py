"""lm-eval's own tasks on a loaded model: unchanged task definitions, requests and metrics, computed faster.

Differences from lm-eval's HFLM: texts are tokenised in one batch, common prefixes are computed once and
logits only where a continuation is scored (`prefix_trees`), and answers come from the suite's generation engines:
transformers, or vLLM on a GPU and where they may be long. The results are the same (tested); answers that a task
samples are so in distribution.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.models.huggingface import HFLM
from torch import nn

from cfutils import progress
from cfutils.data import task_index
from cfutils.models import packing, prefix_trees, tokenizers
from cfutils.models.generation.sampling import SEED_BLOCK, open_engine
from cfutils.models.generation.transformers_engine import TransformersEngine
from cfutils.models.generation.types import Engine, Request
from cfutils.models.prefix_trees import Text
from cfutils.profiles import Execution
from cfutils.progress import Advance

VLLM_MIN_TOKENS = 20_000
"""Without a GPU start vLLM only if the answers may have this many tokens in total: its start takes half a minute."""
FIRST_SEED = 102 * SEED_BLOCK
"""Seed of the first answer that a task samples: no sample of the base, and no answer of one that thinks, has it."""


class Harness(HFLM):
    """A replacement for lm-eval's HFLM with the same results."""

    def __init__(
        self,
        *args: Any,
        pass_tokens: int = 2048,
        open_vllm: Callable[[int], Engine] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take HFLM's arguments, and how the work is to be done.

        pass_tokens: tokens in one forward pass.
        open_vllm: returns an engine for the same weights and for sequences of at most so many tokens; it
            answers in place of transformers where the answers may be long.
        """
        super().__init__(*args, **kwargs)
        self.pass_tokens, self.open_vllm = pass_tokens, open_vllm
        self._encoded: dict[str, list[int]] = {}
        packing.prepare(self.model)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the token ids of a text, looked up if `_encoded_ahead` has encoded it."""
        if add_special_tokens is None and not kwargs and string in self._encoded:
            return self._encoded[string]
        return super().tok_encode(string, add_special_tokens, **kwargs)

    @contextlib.contextmanager
    def _encoded_ahead(self, texts: Iterable[str]) -> Iterator[None]:
        """Encode texts in one batch; lm-eval encodes one at a time, and a context once per choice."""
        prefix = self.tokenizer.decode(self.prefix_token_id)  # tok_encode adds no second one
        texts = [text for text in dict.fromkeys(texts) if not text.startswith(prefix)]
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
        """Return log p(continuation | context) of each request, in nats, and whether it is greedy."""
        pairs = [request.args for request in requests]
        texts = itertools.chain.from_iterable((c.rstrip(), c + k) for c, k in pairs)
        with self._encoded_ahead(texts):
            return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not packing.supports_packing(self.model):
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        texts = []
        for _, context, continuation in requests:
            ids = (*context, *continuation)[-(self.max_length + 1) :]
            texts.append(Text(ids[:-1], tuple(continuation)))
        found = prefix_trees.loglikelihoods(self.model, texts, limit=self.pass_tokens)
        for (request, *_), answer in zip(requests, found, strict=True):
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, answer)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each context, cut before its first stop text: greedy, or sampled as the task states.

        Request number i is sampled with seed `FIRST_SEED` + i, so that repeats of an item differ.
        """
        settings = [request.args[1] for request in requests]
        with self._encoded_ahead(request.args[0] for request in requests):
            prompts = [
                tuple(self.tok_encode(request.args[0])[-(self.max_length - one["max_gen_toks"]) :])
                for request, one in zip(requests, settings, strict=True)
            ]
        alike: dict[str, list[int]] = {}  # one call of an engine has one set of stop texts
        for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0])):
            alike.setdefault(repr(settings[i]), []).append(i)
        lengths = [len(p) + one["max_gen_toks"] for p, one in zip(prompts, settings, strict=True)]
        n_answer_tokens = sum(one["max_gen_toks"] for one in settings)
        answers: dict[int, str] = {}
        with (
            self._engine(n_answer_tokens, max(lengths, default=0)) as engine,
            progress.task("answering", total=len(requests), unit="items") as advance,
        ):
            for indices in alike.values():
                some = [Request(prompts[i], FIRST_SEED + i) for i in indices]
                found = self._answers(engine, some, settings[indices[0]], advance)
                answers |= zip(indices, found, strict=True)
        return [answers[i] for i in range(len(requests))]

    def _engine(
        self, n_answer_tokens: int, max_length: int
    ) -> contextlib.AbstractContextManager[Engine]:
        return open_answering(
            self.model, self.tokenizer, n_tokens=n_answer_tokens, max_length=max_length,
            chunk=int(self.batch_size_per_gpu), pass_tokens=self.pass_tokens, open_vllm=self.open_vllm,
        )  # fmt: skip

    def _answers(
        self, engine: Engine, requests: list[Request], settings: dict[str, Any], advance: Advance
    ) -> list[str]:
        until = settings["until"]
        stop_texts = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        temperature, top_p = task_index.sampling(settings)
        completions = engine.draw(
            requests, temperature=temperature, top_p=top_p, max_tokens=settings["max_gen_toks"],
            stop=(self.eot_token_id,), stop_texts=stop_texts, advance=advance,
        )  # fmt: skip
        found = []
        for completion in completions:
            text = self.tok_decode(completion.token_ids, skip_special_tokens=True)
            for stop_text in stop_texts:
                text = text.split(stop_text)[0]
            found.append(text)
        return found


@contextlib.contextmanager
def open_answering(
    model: nn.Module,
    tokenizer: Any,
    *,
    n_tokens: int,
    max_length: int,
    chunk: int,
    pass_tokens: int,
    open_vllm: Callable[[int], Engine] | None,
) -> Iterator[Engine]:
    """Open vLLM on a GPU, and where it pays off, else an engine on the model as it is.

    n_tokens: tokens that all answers may have in total.
    max_length: most tokens of a prompt and its answer together.
    open_vllm: as for `Harness`.
    vLLM takes nine tenths of a GPU, and refuses to start where less is free: the model leaves it for the time, and so
    does what tuning and scoring left in torch's own cache.
    """
    device = model.device
    if open_vllm is None or (device.type != "cuda" and n_tokens < VLLM_MIN_TOKENS):
        yield TransformersEngine.from_model(model, tokenizer, chunk=chunk, pass_tokens=pass_tokens)
        return
    model.to("cpu")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        with open_vllm(max_length) as engine:
            yield engine
    finally:
        model.to(device)


def vllm_opener(
    model: nn.Module, folder: Path, execution: Execution
) -> Callable[[int], Engine] | None:
    """Return what opens vLLM on the weights of a folder for a length, or None where the engine is another."""
    return (
        functools.partial(_open_vllm, model, folder, execution)
        if execution.engine == "vllm"
        else None
    )


def evaluate(
    model: nn.Module,
    folder: Path,
    tasks: dict[str, Any],
    *,
    indices: dict[str, list[int]],
    chat_template: bool,
    max_new_tokens: int,
    execution: Execution,
) -> dict[str, list[dict]]:
    """Score items of lm-eval tasks; return lm-eval's logged samples by task.

    model, folder: a loaded model, and the Hugging Face folder with its weights and tokenizer.
    tasks, indices: lm-eval task objects by name, and the indices of the items to score.
    chat_template: put items into the tokenizer's chat template.
    max_new_tokens: cap on a generated answer.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    trust = execution.trust_remote_code
    tokenizer = tokenizers.load_tokenizer(folder, trust_remote_code=trust)
    for task in tasks.values():
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": max_new_tokens}, update=True)
    open_vllm = vllm_opener(model, folder, execution)
    lm = Harness(
        pretrained=model, tokenizer=tokenizer, batch_size=execution.chunk, pass_tokens=execution.pass_tokens,
        open_vllm=open_vllm,
    )  # fmt: skip
    with progress.task("lm-eval"):
        result = lm_evaluate(  # not simple_evaluate, which lists every installed package at each call
            lm, tasks, samples=indices, bootstrap_iters=0, log_samples=True,
            apply_chat_template=chat_template,
        )  # fmt: skip
    return result["samples"]


def _open_vllm(model: nn.Module, folder: Path, execution: Execution, max_length: int) -> Engine:
    return open_engine(
        "vllm", folder, dtype=str(model.dtype).removeprefix("torch."), max_length=max_length,
        chunk=execution.chunk, pass_tokens=execution.pass_tokens,
        trust_remote_code=execution.trust_remote_code,
    )  # fmt: skip
