"""The training loop: target NLL plus lambda times a replay term, plus a penalty.

One explicit loop, both terms logged apart, deterministic for a seed, checkpointed, ready for accelerate.
Each optimiser step i minimises

    L_i = (1/n_F) sum_target NLL  +  lambda (1/n_S) sum_replay R  +  l2_weight sum (theta - theta_0)^2

with R the NLL or KL(base || tuned) of each replay token, and n_F, n_S the *mean* numbers of supervised
target and replay tokens a step. The constants make the epoch's sum exact however replay falls into steps:
with lambda = ratio / (1 - ratio) every token of the mix counts alike, as in plain mixing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfutils import losses, models, recipes, replay
from cfutils.errors import UserError
from cfutils.profiles import Profile
from cfutils.recipes import Plan, Recipe
from cfutils.replay import Mix, Sequence
from cfutils.store import say

BETAS = (0.9, 0.95)


def tune(
    work: Path,
    base_folder: Path,
    target: list[Sequence],
    pool: list[Sequence],
    *,
    profile: Profile,
    plan: Plan,
) -> dict[str, Any]:
    """Tune the base by a plan; write weights, tokenizer and log.csv into `work`; return notes.

    `pool` is what replay is chosen from. Resumes from the checkpoint that it finds in `work`.
    """
    recipe = recipes.get(plan.recipe)
    mixed = replay.mix(target, pool, ratio=plan.ratio or 0.0, seed=plan.seed)
    if mixed.shortfall:
        say(
            f"  shortfall: the pool lacks {mixed.shortfall} tokens; ratio {mixed.ratio:.3f} instead "
            f"of {plan.ratio:g}. Raise n_samples or max_tokens."
        )
    model = models.load(base_folder, profile)
    if recipe.train == "lora":
        model = _with_adapters(model, rank=profile.lora_rank, seed=plan.seed)
    base = None
    if recipe.replay_loss == "kl" or recipe.l2:
        base = models.load(base_folder, profile).requires_grad_(False)
    loop = Loop(model, base, mixed, profile=profile, plan=plan, recipe=recipe)
    log = loop.run(work / "checkpoint.safetensors")
    log.to_csv(work / "log.csv", index=False)
    tuned = loop.accelerator.unwrap_model(loop.model)
    if recipe.train == "lora":
        tuned = tuned.merge_and_unload()
    _save(tuned, work, base_folder, profile)
    for rest in work.glob("checkpoint.*"):  # a kill may have left half a checkpoint
        rest.unlink()
    return {
        "target_tokens": mixed.target_tokens,
        "replay_tokens": mixed.replay_tokens,
        "ratio_reached": round(mixed.ratio, 4),
        "shortfall": mixed.shortfall,
        "steps": len(log),
    }


def average(
    work: Path, base_folder: Path, tuned_folder: Path, *, profile: Profile, alpha: float
) -> None:
    """Write (1 - alpha) theta_0 + alpha theta_tuned into `work` (WiSE-FT)."""
    model = models.load(base_folder, profile)
    interpolate(model, models.load(tuned_folder, profile), alpha=alpha)
    _save(model, work, base_folder, profile)


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


def _save(model: Any, work: Path, base_folder: Path, profile: Profile) -> None:
    model.save_pretrained(work)
    models.load_tokenizer(base_folder, trust_remote_code=profile.trust_remote_code).save_pretrained(
        work
    )


class Loop:
    """Optimiser, schedule and steps of one run; state is (weights, moments, step, log)."""

    def __init__(
        self,
        model: torch.nn.Module,
        base: torch.nn.Module | None,
        mixed: Mix,
        *,
        profile: Profile,
        plan: Plan,
        recipe: Recipe,
    ) -> None:
        self.profile, self.plan, self.recipe, self.mixed = profile, plan, recipe, mixed
        AcceleratorState._reset_state()  # a run before this one may have had another precision
        self.accelerator = Accelerator(mixed_precision="bf16" if profile.autocast else "no")
        self.steps = replay.schedule(
            mixed, batch_size=profile.batch_size, epochs=profile.epochs, seed=plan.seed
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=plan.lr, betas=BETAS, weight_decay=profile.weight_decay, fused=True
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.base = base
        per_step = len(self.steps) / profile.epochs
        self.n_target = mixed.target_tokens / per_step
        self.n_replay = mixed.replay_tokens / per_step or 1.0

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero after the last step."""
        total = len(self.steps)
        warm = max(1, round(self.profile.warmup * total))
        if step < warm:
            return self.plan.lr * (step + 1) / warm
        return self.plan.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def run(self, checkpoint: Path) -> pd.DataFrame:
        """Go from the checkpoint, if there is one, to the end; return the log."""
        done, log = self._restore(checkpoint)
        start = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
        saved = told = time.monotonic()
        for step in range(done, len(self.steps)):
            log.append({"step": step, **self._step(step), "seconds": time.monotonic() - start})
            now = time.monotonic()
            if now - told > 20 or step + 1 == len(self.steps):
                told = now
                row = log[-1]
                also = "" if math.isnan(row["replay_loss"]) else f" replay {row['replay_loss']:.3f}"
                say(f"  step {step + 1}/{len(self.steps)} target {row['target_loss']:.3f}{also}")
            if now - saved > 60 * self.profile.checkpoint_minutes and step + 1 < len(self.steps):
                self._checkpoint(checkpoint, step + 1, log)
                saved = time.monotonic()
        return pd.DataFrame(log)

    def _step(self, step: int) -> dict[str, float]:
        targets, replays = self.steps[step]
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        target_sum = self._backward(targets, self._nll, scale=1 / self.n_target)
        replay_sum = penalty = math.nan
        if self.recipe.replay:
            term = self._kl if self.recipe.replay_loss == "kl" else self._nll
            scale = self.plan.replay_weight / self.n_replay
            replay_sum = self._backward(replays, term, scale=scale)
        if self.recipe.l2:
            loss = losses.l2(self.trained, self.base.parameters())
            self.accelerator.backward(self.profile.l2_weight * loss)
            penalty = loss.item()
        norm = self.accelerator.clip_grad_norm_(self.trained, self.profile.clip)
        n_target = sum(s.supervised for s in targets)
        n_replay = sum(s.supervised for s in replays)
        row = {
            "epoch": step * self.profile.epochs // len(self.steps),
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
                f"loss is not finite at step {step} of {self.plan.label} (target loss "
                f"{row['target_loss']}, gradient norm {row['grad_norm']}). Lower lr, or the weight of "
                "the replay or penalty term."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return row

    def _backward(self, batch: list[Sequence], term: Callable, *, scale: float) -> float:
        """Add the gradient of scale * sum of the term over the batch's tokens; return the sum."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        total = 0.0
        mine = batch[rank::world]
        pieces = list(losses.micro_batches(mine, self.profile.micro_batch))
        for i, (ids, seen, mask) in enumerate(pieces):
            ids, seen, mask = (t.to(self.accelerator.device) for t in (ids, seen, mask))
            last = i + 1 == len(pieces)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = term(ids, seen, mask)
                # processes average their gradients, hence the factor
                self.accelerator.backward(scale * world * loss)
            total += loss.item()
        if world > 1:
            total = self.accelerator.reduce(torch.tensor(total), "sum").item()
        return total

    def _nll(self, ids: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        logits = self.model(input_ids=ids, attention_mask=seen).logits
        return losses.token_nll(*losses.supervised(logits, ids, mask)).sum()

    def _kl(self, ids: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            base_logits = self.base(input_ids=ids, attention_mask=seen).logits
            base_rows, _ = losses.supervised(base_logits, ids, mask)
        logits = self.model(input_ids=ids, attention_mask=seen).logits
        rows, _ = losses.supervised(logits, ids, mask)
        return losses.token_kl(base_rows, rows).sum()

    def _checkpoint(self, path: Path, step: int, log: list[dict]) -> None:
        tensors = {}
        for i, p in enumerate(self.trained):
            tensors[f"p{i}"] = p.detach()
            for name, value in self.optimizer.state[p].items():
                tensors[f"{name}{i}"] = torch.as_tensor(value).detach()
        half = path.with_suffix(".tmp")
        save_file(tensors, half, metadata={"step": str(step), "log": json.dumps(log)})
        half.replace(path)
        say(f"  checkpoint at step {step}")

    def _restore(self, path: Path) -> tuple[int, list[dict]]:
        if not path.exists():
            return 0, []
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            for i, p in enumerate(self.trained):
                p.data.copy_(file.get_tensor(f"p{i}"))
                self.optimizer.state[p] = {
                    name: file.get_tensor(f"{name}{i}").to(p.device)
                    for name in ("step", "exp_avg", "exp_avg_sq")
                }
        say(f"  resume at step {meta['step']}")
        return int(meta["step"]), json.loads(meta["log"])
