"""The training loop: target NLL plus lambda times a replay term, plus a penalty.

One explicit loop, both terms logged apart, deterministic for a seed, checkpointed, ready for accelerate.
Each optimiser step i minimises

    L_i = (1/n_F) sum_target NLL  +  lambda (1/n_S) sum_replay R  +  l2_weight sum (theta - theta_0)^2

with R the NLL or KL(base || tuned) of each replay token, and n_F, n_S the *mean* numbers of supervised
target and replay tokens a step. The constants make the epoch's sum exact however replay falls into steps:
with lambda = ratio / (1 - ratio) every token of the mix counts alike, as in plain mixing.

Target and replay go through the model in rows without padding, as many tokens at a time as the profile
says; logits exist a few rows at a time. For the KL the base is asked once: its last hidden states on the
replay set are kept in a file, and one matrix product makes logits of them.
"""

from __future__ import annotations

import copy
import math
import time
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

from cfutils import checkpoints, losses, models, packing, precision, recipes, replay
from cfutils.errors import UserError
from cfutils.head import Head
from cfutils.packing import Documents
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
    say(f"  {'bf16 autocast' if profile.autocast else profile.dtype}; {precision.bf16()[1]}")
    model = models.load(base_folder, profile)
    teacher = None
    if recipe.replay_loss == "kl":
        states = work / "states.safetensors"
        teacher = Teacher(model, mixed.replay, states, limit=profile.pass_tokens)
    if recipe.train == "lora":
        model = _with_adapters(model, rank=profile.lora_rank, seed=plan.seed)
    loop = Loop(model, teacher, mixed, profile=profile, plan=plan, recipe=recipe)
    log = loop.run(work / "checkpoint.safetensors")
    log.to_csv(work / "log.csv", index=False)
    if recipe.train == "lora":
        model = model.merge_and_unload()
    _save(model, work, base_folder, profile)
    for rest in (*work.glob("checkpoint.*"), *work.glob("states.*")):  # half a file, after a kill
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


class Teacher:
    """The base's logits on the replay set: its last hidden states in a file, and its head."""

    def __init__(
        self, base: torch.nn.Module, sequences: tuple[Sequence, ...], path: Path, *, limit: int
    ) -> None:
        """Ask the base, which is the model before its first step, and write what it says to `path`."""
        self.head = copy.deepcopy(Head(base)).requires_grad_(False)
        self._path = path
        self._begin: dict[Sequence, int] = {}
        total = 0
        for sequence in dict.fromkeys(sequences):
            self._begin[sequence] = total
            total += sequence.supervised
        if path.exists():
            return
        unique = list(self._begin)
        states = torch.empty(total, self.head.width, dtype=base.dtype)
        with torch.inference_mode():
            for places in packing.by_length([len(s.ids) for s in unique], limit=limit):
                rows = [unique[i] for i in places]
                found = packing.documents(rows, base.device)
                hidden = packing.last_hidden(base, found.packed)[found.rows]
                for sequence, part in zip(rows, hidden.split(found.counts), strict=True):
                    begin = self._begin[sequence]
                    states[begin : begin + len(part)] = part
        save_file({"states": states}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def hidden(self, sequences: list[Sequence]) -> Tensor:
        """Return the states that predict supervised tokens, (n, width), sequence by sequence."""
        with safe_open(self._path, "pt") as file:
            states = file.get_slice("states")
            parts = [states[self._begin[s] : self._begin[s] + s.supervised] for s in sequences]
        return torch.cat(parts)


class Student(torch.nn.Module):
    """A model as the loop sees it: from documents to the states that predict supervised tokens."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, found: Documents) -> Tensor:
        """Return (n, width)."""
        return packing.last_hidden(self.model, found.packed)[found.rows]


class Loop:
    """Optimiser, schedule and steps of one run; state is (weights, moments, step, log)."""

    def __init__(
        self,
        model: torch.nn.Module,
        teacher: Teacher | None,
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
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.reference = [p.detach().clone() for p in self.trained] if recipe.l2 else []
        if profile.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(
            self.trained, lr=plan.lr, betas=BETAS, weight_decay=profile.weight_decay, fused=True
        )
        student = Student(model).train()
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.head, self.teacher = Head(model), teacher
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
        done, log = checkpoints.restore(checkpoint, self.trained, self.optimizer)
        if done:
            say(f"  resume at step {done}")
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
        if self.recipe.l2:
            loss = losses.l2(self.trained, self.reference)
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

    def _backward(self, targets: list[Sequence], replays: list[Sequence]) -> tuple[float, float]:
        """Add the gradient of both terms over a step's sequences; return their sums over tokens."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = [(s, False) for s in targets[rank::world]] + [(s, True) for s in replays[rank::world]]
        lengths = [len(s.ids) for s, _ in mine]
        groups = list(packing.by_length(lengths, limit=max(1, self.profile.pass_tokens // 2)))
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
            weights[first:] = self.plan.replay_weight / self.n_replay
        base = self.teacher.hidden(replays).to(found.rows.device) if self.teacher and replays else None

        def term(logits: Tensor, rows: slice) -> Tensor:
            nll = losses.token_nll(logits, found.targets[rows])
            n = max(0, min(len(logits), first - rows.start))  # rows of the target
            if base is None or n == len(logits):
                return nll
            with torch.no_grad():
                base_logits = self.teacher.head(base[rows.start + n - first :][: len(logits) - n])
            return torch.cat([nll[:n], losses.token_kl(base_logits, logits[n:])])

        hidden = self.student(found)
        with self.accelerator.autocast():
            loss, values = losses.in_chunks(self.head, hidden, weights, term)
        return loss, torch.stack([values[:first].sum(), values[first:].sum()]).cpu()
