"""lm-eval's own tasks on a loaded model: stock definitions, requests and metrics; generation in our loop.

What differs from lm-eval's HFLM is how answers are generated, greedily: all requests of all tasks go
through one loop that lets finished rows leave the batch. Texts and scores are the same (tested).
"""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.models.huggingface import HFLM
from torch import nn

from cfutils import engines, models
from cfutils.engines import Request
from cfutils.profiles import Profile

LENGTH = 4
"""Generation takes this many times the rows of scoring at once: a step of it is one token wide."""


class Harness(HFLM):
    """lm-eval's HFLM with our loop for greedy generation."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy continuation of each context, cut before its first stop text."""
        alike: dict[str, list[int]] = {}  # one batch has one set of stops
        for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0])):
            alike.setdefault(repr(requests[i].args[1]), []).append(i)
        size = LENGTH * int(self.batch_size_per_gpu)
        texts: dict[int, str] = {}
        for order in alike.values():
            for begin in range(0, len(order), size):
                places = order[begin : begin + size]
                texts |= zip(places, self._continue([requests[i] for i in places]), strict=True)
        return [texts[i] for i in range(len(requests))]

    def _continue(self, requests: list[Instance]) -> list[str]:
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
        done = engines.continue_all(
            self.model, rows, temperature=0, max_tokens=longest, stop=(self.eot_token_id,),
            enough=lambda ids: any(text in self.tok_decode(ids) for text in stops),
        )  # fmt: skip
        found = []
        for completion in done:
            text = self.tok_decode(completion.token_ids, skip_special_tokens=True)
            for stop in stops:
                text = text.split(stop)[0]
            found.append(text)
        return found


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
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars stick under papermill
        lm = Harness(pretrained=model, tokenizer=tokenizer, batch_size=profile.score_batch)
        result = lm_evaluate(  # not simple_evaluate, which lists every installed package at each call
            lm, tasks, samples=indices, bootstrap_iters=0, log_samples=True,
            apply_chat_template=profile.chat_template,
        )  # fmt: skip
    return result["samples"]
