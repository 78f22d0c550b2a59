"""The training loop: target NLL plus lambda times a replay term, plus a penalty.

One explicit loop, both terms logged apart, deterministic for a seed, checkpointed, on one device or several.
Each optimiser step i minimises

    L_i = (1/n_F) sum_target (w NLL + c KL(base || tuned))  +  lambda (1/n_S) sum_replay R  +  penalty

with R the NLL or KL(base || tuned) of each replay token, w the token's weight (1, or `weighting`), the penalty
l2_weight sum (theta - theta_0)^2 or ewc_weight/2 sum F (theta - theta_0)^2, and n_F, n_S the *mean* numbers of
supervised target and replay tokens per step. The constants make the epoch's sum exact however replay falls into
steps: with lambda = ratio / (1 - ratio) every token of the mix counts alike, as in plain mixing.

Target and replay go through the model in rows without padding, as many tokens at a time as the execution
settings allow, and only some rows of logits exist at a time. For the KL the base runs once: its last hidden
states on the sequences are kept in a file (`base_states`), and one matrix product turns them into logits.

Several processes (`distributed`) divide the sequences of each step among them by tokens. Each of them makes as many
passes as the one that needs most; a pass without sequences runs one token that carries no loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cfutils import progress
from cfutils.data import mixing
from cfutils.data.mixing import Mix
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.events import say
from cfutils.models import packing
from cfutils.models.base_states import BaseStates
from cfutils.models.lm_head import Head
from cfutils.profiles import Execution
from cfutils.training import checkpoints, distributed, losses, penalties, schedule, weighting
from cfutils.training.distributed import Ranks, local
from cfutils.training.settings import Tuning
from cfutils.training.student import Student

BETAS = (0.9, 0.95)
"""Decay rates of AdamW's moments."""
IDLE = Sequence((0,), first=1)
"""What a process runs whose sequences of a step are all done: one token without loss."""


Batch = list[tuple[Sequence, bool]]
"""Sequences of one pass, and whether each is replay; target first."""


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
        fixed: dict[Sequence, Tensor] | None = None,
        fisher: list[Tensor] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Set up the run.

        model: a model, or the student of one that has been sharded among `ranks`, its processes.
        `base_states`, frozen, are needed where there is a KL; `fixed` weights of each target sequence's tokens for a
        weighting of `weighting.FIXED`; `fisher`, one tensor for each parameter that is trained, for EWC.
        """
        self.tuning, self.execution, self.label = tuning, execution, label
        self.mixed, self.base_states, self.fixed, self.fisher = mixed, base_states, fixed, fisher
        self.ranks, self.autocast = ranks or distributed.alone(), autocast
        self.steps = mixing.schedule(
            mixed, batch_size=tuning.batch_size, epochs=tuning.epochs, seed=tuning.seed
        )
        self.student = Student.of(model).train()
        self.trained = [p for p in self.student.parameters() if p.requires_grad]
        self.reference: list[Tensor] = []
        if tuning.l2_weight is not None or tuning.ewc_weight is not None:
            self.reference = [local(p).detach().clone() for p in self.trained]
        if execution.gradient_checkpointing:
            self.student.model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=tuning.lr, betas=BETAS, weight_decay=tuning.weight_decay, fused=True
        )
        self.head = Head(self.student.model)
        per_step = len(self.steps) / tuning.epochs
        self.n_target = mixed.target_tokens / per_step
        self.n_replay = mixed.replay_tokens / per_step or 1.0
        self.typical = math.nan
        """The median of the mean NLLs of the step's target items, where a weighting needs it."""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        total = len(self.steps)
        warm = max(1, round(self.tuning.warmup * total))
        return schedule.learning_rate(step, peak=self.tuning.lr, warm=warm, total=total)

    def run(self, checkpoint: Path, *, stop: Callable[[int], bool] | None = None) -> pd.DataFrame:
        """Go from the checkpoint, if there is one, to the end, or to where `stop` of a number of steps says so.

        Returns the log, one row per step.
        """
        done, log = checkpoints.restore(checkpoint, self.trained, self.optimizer, self.ranks)
        if done:
            say(f"  resume at step {done}")
        start = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
        saved = time.monotonic()
        with progress.task("tuning", total=len(self.steps), done=done) as advance:
            for step in range(done, len(self.steps)):
                log.append({"step": step, **self._step(step), "seconds": time.monotonic() - start})
                both = {name: log[-1][f"{name}_loss"] for name in ("target", "replay")}
                advance(note=" ".join(f"{k} {v:.3f}" for k, v in both.items() if not math.isnan(v)))
                late = self.ranks.agreed(time.monotonic() - saved > 60 * self.execution.checkpoint_minutes)
                if late and step + 1 < len(self.steps):
                    checkpoints.save(checkpoint, self.trained, self.optimizer, self.ranks, step=step + 1, log=log)
                    say(f"  checkpoint at step {step + 1}")
                    saved = time.monotonic()
                if stop is not None and stop(step + 1):
                    break
        if self.ranks.mesh is not None and done < len(self.steps):  # the result, for the process that started these
            checkpoints.save(checkpoint, self.trained, None, self.ranks, step=len(self.steps), log=log)
        return pd.DataFrame(log)

    def _step(self, step: int) -> dict[str, float]:
        targets, replays = self.steps[step]
        targets = targets if self.tuning.target else []
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.tuning.weighting == "talr":
            self.typical = self._typical_loss(targets)
        target_sum, replay_sum, kl_sum = self._backward(targets, replays)
        n_target = sum(s.supervised for s in targets)
        n_replay = sum(s.supervised for s in replays)
        penalty = kl_sum / n_target if self.tuning.target_kl is not None else self._penalty()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.tuning.clip)
        row = {
            "epoch": step * self.tuning.epochs // len(self.steps),
            "lr": lr,
            "target_loss": target_sum / n_target if n_target else math.nan,
            "replay_loss": replay_sum / n_replay if n_replay else math.nan,
            "penalty": penalty,
            "grad_norm": float(norm.full_tensor() if isinstance(norm, DTensor) else norm),
            "target_tokens": n_target,
            "replay_tokens": n_replay,
        }
        if not math.isfinite(target_sum + replay_sum) or not math.isfinite(row["grad_norm"]):
            raise UserError(
                f"loss is not finite at step {step} of {self.label} (target loss {row['target_loss']}, replay "
                f"loss {row['replay_loss']}, gradient norm {row['grad_norm']}). Lower lr, or the weight of "
                "the replay or penalty term."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return row

    def _penalty(self) -> float:
        """Add the gradient of the penalty on the weights; return it before its weight (NaN without one)."""
        own = [local(p) for p in self.trained]
        if self.tuning.l2_weight is not None:
            weight, loss = self.tuning.l2_weight, penalties.l2(own, self.reference)
        elif self.tuning.ewc_weight is not None:
            weight, loss = self.tuning.ewc_weight, penalties.ewc(own, self.reference, self.fisher)
        else:
            return math.nan
        (weight * loss).backward()
        return self.ranks.sum(loss.detach().cpu()).item()

    def _computing(self) -> torch.autocast:
        """Return the context of a forward pass: bf16 where that is how the run computes.

        Weights that are gathered for a pass are not kept in bf16 until its end.
        """
        kind = self.student.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.autocast, cache_enabled=self.ranks.mesh is None)

    @torch.no_grad()
    def _typical_loss(self, targets: list[Sequence]) -> float:
        """Return the median of the items' mean NLLs: one more forward pass, for their weights need it first."""
        with self._computing():
            nll = weighting.token_nlls(self.student, targets, limit=self.execution.pass_tokens)
        return weighting.typical_loss(nll)

    def _backward(self, targets: list[Sequence], replays: list[Sequence]) -> tuple[float, float, float]:
        """Add the gradient of both terms over a step's sequences.

        Returns sums over tokens: target NLL, replay term, KL at the target's tokens.
        """
        sums = torch.zeros(3)
        for batch in self._passes(targets, replays):
            loss, parts = self._loss(batch)
            loss.backward()
            sums += parts
        return tuple(self.ranks.sum(sums).tolist())

    def _passes(self, targets: list[Sequence], replays: list[Sequence]) -> list[Batch]:
        """Return this process's share of a step, pass by pass, in as many passes as any process needs."""
        step = [(s, False) for s in targets] + [(s, True) for s in replays]
        limit = max(1, self.execution.pass_tokens // 2)
        shares = []
        for part in distributed.divide([len(s.ids) for s, _ in step], self.ranks.world):
            groups = packing.by_length([len(step[i][0].ids) for i in part], limit=limit)
            batches = [sorted((step[part[i]] for i in group), key=lambda one: (one[1], len(one[0].ids)))
                       for group in groups]  # fmt: skip
            if self.ranks.mesh is not None and not packing.supports_packing(self.student.model):
                batches = [some for batch in batches for some in _padded_alike(batch)]
            shares.append(batches)
        own, most = shares[self.ranks.rank], max(map(len, shares))
        return [*own, *([] for _ in range(most - len(own)))]

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of one pass, and the sums of target NLL, replay term and KL on the target."""
        targets = [s for s, replayed in batch if not replayed]
        replays = [s for s, replayed in batch if replayed]
        found = packing.documents([s for s, _ in batch] or [IDLE], self.student.device)
        first = len(found.rows) - sum(s.supervised for s in replays)
        scale = torch.full((len(found.rows),), 1 / self.n_target, device=found.rows.device)
        if replays:
            scale[first:] = self.tuning.replay_weight / self.n_replay
        states = [
            self.base_states.hidden(some) if wanted and some else None
            for some, wanted in (
                (targets, self.tuning.target_kl is not None), (replays, self.tuning.replay_loss == "kl")
            )
        ]  # fmt: skip
        fixed = torch.cat([self.fixed[s] for s in targets]) if self.fixed and targets else None
        nlls, kls = scale.new_zeros(len(scale)), scale.new_zeros(len(scale))

        def kl(logits: Tensor, base: Tensor, begin: int) -> Tensor:
            with torch.no_grad():
                base_logits = self.base_states.head(base[begin:][: len(logits)])
            return losses.token_kl(base_logits, logits)

        def term(logits: Tensor, rows: slice) -> Tensor:
            nll = losses.token_nll(logits, found.targets[rows])
            nlls[rows] = nll.detach()
            n = max(0, min(len(logits), first - rows.start))  # rows of the target
            own, replayed = nll[:n], nll[n:]
            if n and self.tuning.weighting:
                own = own * self._weights(logits[:n].detach(), own.detach(), fixed, rows.start)
            if n and states[0] is not None:
                apart = kl(logits[:n], states[0], rows.start)
                kls[rows.start : rows.start + n] = apart.detach()
                own = own + self.tuning.target_kl * apart
            if n < len(logits) and states[1] is not None:
                replayed = kl(logits[n:], states[1], rows.start + n - first)
            return torch.cat([own, replayed])

        def loss_of(hidden: Tensor) -> tuple[Tensor, Tensor]:
            hidden = hidden.float() if self.autocast else hidden
            return losses.in_chunks(self.head, hidden, scale, term)

        with self._computing():
            loss, values = self.student(found, loss_of)
        return loss, torch.stack([nlls[:first].sum(), values[first:].sum(), kls.sum()]).cpu()

    def _weights(self, logits: Tensor, nll: Tensor, fixed: Tensor | None, begin: int) -> Tensor:
        """Return the weights of some rows of the target, from row `begin` of the pass on."""
        if fixed is not None:
            return fixed[begin : begin + len(nll)].to(nll.device)
        current = weighting.CURRENT[self.tuning.weighting]
        return current(logits, nll, self.tuning.weighting_strength, self.typical)


def _padded_alike(batch: Batch) -> list[Batch]:
    """Divide a pass of a model that takes padded batches into passes of one batch each."""
    found = packing.documents([s for s, _ in batch], torch.device("cpu"))
    sizes = iter(batch)
    return [[next(sizes) for _ in range(group.shape[0])] for group in found.packed.groups]
