"""The training loop: target NLL plus lambda times a replay term, plus a penalty.

One explicit loop, both terms logged apart, deterministic for a seed, checkpointed, ready for accelerate.
Each optimiser step i minimises

    L_i = (1/n_F) sum_target NLL  +  lambda (1/n_S) sum_replay R  +  l2_weight sum (theta - theta_0)^2

with R the NLL or KL(base || tuned) of each replay token, and n_F, n_S the *mean* numbers of supervised
target and replay tokens per step. The constants make the epoch's sum exact however replay falls into steps:
with lambda = ratio / (1 - ratio) every token of the mix counts alike, as in plain mixing.

Target and replay go through the model in rows without padding, as many tokens at a time as the execution
settings allow, and only some rows of logits exist at a time. For the KL the base runs once: its last hidden
states on the replay set are kept in a file (`base_states`), and one matrix product turns them into logits.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from cfutils.data import mixing
from cfutils.data.mixing import Mix
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.events import say
from cfutils.models import loading, packing, precision, tokenizers
from cfutils.models.base_states import BaseStates
from cfutils.models.lm_head import Head
from cfutils.models.packing import Documents
from cfutils.profiles import Execution
from cfutils.training import checkpoints, losses, schedule

BETAS = (0.9, 0.95)
"""Decay rates of AdamW's moments."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Everything that decides the outcome of a tuning run, beside base, target and pool."""

    seed: int
    """Decides the choice and the order of the mix, and the adapters' first weights."""
    lr: float
    """Peak learning rate."""
    epochs: int
    """Passes over the target sequences."""
    batch_size: int
    """Target sequences in one optimiser step."""
    warmup: float
    """Share of the steps in which the learning rate rises."""
    weight_decay: float
    """Decoupled weight decay of AdamW."""
    clip: float
    """Largest norm of the gradient."""
    dtype: str
    """Type of the weights: "float32" or "bfloat16"."""
    autocast: bool | None
    """Compute in bf16 over the weights' type; None does so where the machine has bf16."""
    ratio: float | None
    """Share of replay among the supervised tokens of the mix, in [0, 1); None for no replay."""
    replay_weight: float | None
    """lambda, weight of the replay term; None for no replay."""
    replay_loss: Literal["nll", "kl"]
    """R, what a replay token contributes."""
    train: Literal["all", "lora"]
    """All weights, or low-rank adapters on all linear layers, merged afterwards."""
    l2_weight: float | None
    """Weight of sum (theta - theta_0)^2; None for no penalty."""
    lora_rank: int | None
    """Rank of the adapters; None where all weights are trained."""


def tune(
    work: Path,
    base_folder: Path,
    target: list[Sequence],
    pool: list[Sequence],
    *,
    tuning: Tuning,
    execution: Execution,
    label: str,
) -> dict[str, Any]:
    """Tune the base; write weights, tokenizer and log.parquet into `work`; return notes.

    pool: sequences that replay is chosen from.
    label: name of the run in messages.
    Resumes from the checkpoint that it finds in `work`. The notes state supervised target and replay tokens, the
    ratio that was reached, tokens that the pool lacked, optimiser steps, and the precision of the computation.
    Raises `UserError` if the loss is not finite.
    """
    mixed = mixing.mix(target, pool, ratio=tuning.ratio or 0.0, seed=tuning.seed)
    if mixed.shortfall:
        say(
            f"  shortfall: the pool lacks {mixed.shortfall} tokens; ratio {mixed.ratio:.3f} instead "
            f"of {tuning.ratio:g}. Raise n_samples or max_tokens."
        )
    has_bf16, reason = precision.bf16()
    autocast = has_bf16 if tuning.autocast is None else tuning.autocast
    computed = tuning.dtype
    if autocast and tuning.dtype == "float32":
        computed = "float32, bf16 autocast"
    say(f"  {computed}; {reason}")
    trust = execution.trust_remote_code
    model = loading.load(base_folder, dtype=tuning.dtype, trust_remote_code=trust)
    base_states = None
    if tuning.replay_loss == "kl":
        path = work / "states.safetensors"
        base_states = BaseStates(model, path, limit=execution.pass_tokens)
        base_states.freeze(mixed.replay)
    if tuning.train == "lora":
        model = _with_adapters(model, rank=tuning.lora_rank, seed=tuning.seed)
    loop = Loop(
        model, base_states, mixed, tuning=tuning, execution=execution, autocast=autocast, label=label
    )
    log = loop.run(work / "checkpoint.safetensors")
    log.to_parquet(work / "log.parquet", index=False)
    if tuning.train == "lora":
        model = model.merge_and_unload()
    _save(model, work, base_folder, trust_remote_code=trust)
    for left in (*work.glob("checkpoint.*"), *work.glob("states.*")):  # half a file, after a kill
        left.unlink()
    return {
        "target_tokens": mixed.target_tokens,
        "replay_tokens": mixed.replay_tokens,
        "ratio_reached": round(mixed.ratio, 4),
        "shortfall": mixed.shortfall,
        "steps": len(log),
        "precision": computed,
    }


def average(
    work: Path,
    base_folder: Path,
    tuned_folder: Path,
    *,
    alpha: float,
    dtype: str,
    trust_remote_code: bool = False,
) -> None:
    """Write (1 - alpha) theta_0 + alpha theta_tuned, and the base's tokenizer, into `work` (WiSE-FT)."""
    model, tuned = (
        loading.load(folder, dtype=dtype, trust_remote_code=trust_remote_code)
        for folder in (base_folder, tuned_folder)
    )
    interpolate(model, tuned, alpha=alpha)
    _save(model, work, base_folder, trust_remote_code=trust_remote_code)


@torch.no_grad()
def interpolate(model: torch.nn.Module, tuned: torch.nn.Module, *, alpha: float) -> None:
    """Set model's weights to (1 - alpha) model + alpha tuned, in place (arXiv 2109.01903, eq. 1)."""
    for p, q in zip(model.parameters(), tuned.parameters(), strict=True):
        p.lerp_(q.to(p.device), alpha)


def _with_adapters(model: torch.nn.Module, *, rank: int, seed: int) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    # all linear layers: adapters on q and v alone are the weak baseline of sail-sg/sdft#15
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _save(model: Any, work: Path, base_folder: Path, *, trust_remote_code: bool) -> None:
    model.save_pretrained(work)
    tokenizer = tokenizers.load_tokenizer(base_folder, trust_remote_code=trust_remote_code)
    tokenizer.save_pretrained(work)


class Student(torch.nn.Module):
    """A model that maps documents to the states that predict supervised tokens."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, found: Documents) -> Tensor:
        """Return (n, width)."""
        return packing.last_hidden(self.model, found.packed)[found.rows]


class Loop:
    """Optimiser, schedule and steps of one run; its state is (weights, moments, step, log)."""

    def __init__(
        self,
        model: torch.nn.Module,
        base_states: BaseStates | None,
        mixed: Mix,
        *,
        tuning: Tuning,
        execution: Execution,
        autocast: bool = False,
        label: str = "",
    ) -> None:
        """Set up the run; `base_states`, frozen, are needed where replay_loss is "kl"."""
        self.tuning, self.execution, self.label = tuning, execution, label
        self.mixed, self.base_states = mixed, base_states
        AcceleratorState._reset_state()  # a run before this one may have had another precision
        self.accelerator = Accelerator(mixed_precision="bf16" if autocast else "no")
        self.steps = mixing.schedule(
            mixed, batch_size=tuning.batch_size, epochs=tuning.epochs, seed=tuning.seed
        )
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.reference: list[Tensor] = []
        if tuning.l2_weight is not None:
            self.reference = [p.detach().clone() for p in self.trained]
        if execution.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(
            self.trained, lr=tuning.lr, betas=BETAS, weight_decay=tuning.weight_decay, fused=True
        )
        student = Student(model).train()
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.head = Head(model)
        per_step = len(self.steps) / tuning.epochs
        self.n_target = mixed.target_tokens / per_step
        self.n_replay = mixed.replay_tokens / per_step or 1.0

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        total = len(self.steps)
        warm = max(1, round(self.tuning.warmup * total))
        return schedule.learning_rate(step, peak=self.tuning.lr, warm=warm, total=total)

    def run(self, checkpoint: Path) -> pd.DataFrame:
        """Go from the checkpoint, if there is one, to the end; return the log."""
        done, log = checkpoints.restore(checkpoint, self.trained, self.optimizer)
        if done:
            say(f"  resume at step {done}")
        start = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
        saved = reported = time.monotonic()
        for step in range(done, len(self.steps)):
            log.append({"step": step, **self._step(step), "seconds": time.monotonic() - start})
            now = time.monotonic()
            if now - reported > 20 or step + 1 == len(self.steps):
                reported = now
                row = log[-1]
                also = "" if math.isnan(row["replay_loss"]) else f" replay {row['replay_loss']:.3f}"
                say(f"  step {step + 1}/{len(self.steps)} target {row['target_loss']:.3f}{also}")
            if now - saved > 60 * self.execution.checkpoint_minutes and step + 1 < len(self.steps):
                checkpoints.save(checkpoint, self.trained, self.optimizer, step=step + 1, log=log)
                say(f"  checkpoint at step {step + 1}")
                saved = time.monotonic()
        return pd.DataFrame(log)

    def _step(self, step: int) -> dict[str, float]:
        targets, replays = self.steps[step]
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        target_sum, replay_sum = self._backward(targets, replays)
        penalty = math.nan
        if self.tuning.l2_weight is not None:
            loss = losses.l2(self.trained, self.reference)
            self.accelerator.backward(self.tuning.l2_weight * loss)
            penalty = loss.item()
        norm = self.accelerator.clip_grad_norm_(self.trained, self.tuning.clip)
        n_target = sum(s.supervised for s in targets)
        n_replay = sum(s.supervised for s in replays)
        row = {
            "epoch": step * self.tuning.epochs // len(self.steps),
            "lr": lr,
            "target_loss": target_sum / n_target,
            "replay_loss": replay_sum / n_replay if n_replay else math.nan,
            "penalty": penalty,
            "grad_norm": float(norm),
            "target_tokens": n_target,
            "replay_tokens": n_replay,
        }
        if not math.isfinite(row["target_loss"]) or not math.isfinite(row["grad_norm"]):
            raise UserError(
                f"loss is not finite at step {step} of {self.label} (target loss "
                f"{row['target_loss']}, gradient norm {row['grad_norm']}). Lower lr, or the weight of "
                "the replay or penalty term."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return row

    def _backward(self, targets: list[Sequence], replays: list[Sequence]) -> tuple[float, float]:
        """Add the gradient of both terms over a step's sequences; return their sums over tokens."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = [(s, False) for s in targets[rank::world]] + [(s, True) for s in replays[rank::world]]
        lengths = [len(s.ids) for s, _ in mine]
        groups = list(packing.by_length(lengths, limit=max(1, self.execution.pass_tokens // 2)))
        sums = torch.zeros(2)
        for number, places in enumerate(groups):
            last = number + 1 == len(groups)
            with nullcontext() if last else self.accelerator.no_sync(self.student):
                batch = sorted((mine[i] for i in places), key=lambda one: (one[1], len(one[0].ids)))
                loss, parts = self._loss(batch)  # target first
                self.accelerator.backward(loss * world)  # processes average their gradients
            sums += parts
        return tuple(self.accelerator.reduce(sums, "sum").tolist())

    def _loss(self, batch: list[tuple[Sequence, bool]]) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of one pass, and the sums of its target and its replay term."""
        replays = [s for s, replayed in batch if replayed]
        found = packing.documents([s for s, _ in batch], self.accelerator.device)
        first = len(found.rows) - sum(s.supervised for s in replays)
        weights = torch.full((len(found.rows),), 1 / self.n_target, device=found.rows.device)
        if replays:
            weights[first:] = self.tuning.replay_weight / self.n_replay
        base = self.base_states.hidden(replays) if self.base_states and replays else None

        def term(logits: Tensor, rows: slice) -> Tensor:
            nll = losses.token_nll(logits, found.targets[rows])
            n = max(0, min(len(logits), first - rows.start))  # rows of the target
            if base is None or n == len(logits):
                return nll
            with torch.no_grad():
                base_logits = self.base_states.head(base[rows.start + n - first :][: len(logits) - n])
            return torch.cat([nll[:n], losses.token_kl(base_logits, logits[n:])])

        hidden = self.student(found)
        with self.accelerator.autocast():
            loss, values = losses.in_chunks(self.head, hidden, weights, term)
        return loss, torch.stack([values[:first].sum(), values[first:].sum()]).cpu()
