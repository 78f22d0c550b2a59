"""Tuning: our loop beside TRL's SFTTrainer and transformers' Trainer, same batches, same curve of loss.

All tune all weights in fp32 with fused AdamW of the same settings, the loss on responses alone, divided by
the batch's supervised tokens. `sft` is SFTTrainer with its defaults (it recomputes activations in the backward
pass), to be compared with `ours_checkpointing`; `sft_plain` keeps activations, as `ours` does.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import common

STEPS, BATCH = 5, 8
ARMS = ("ours", "ours_checkpointing", "sft", "sft_plain", "trainer")


def turn(*, arm: str, base: str, number: int) -> dict:
    """Tune for some steps; the first, in which memory is set up, is not timed."""
    lab, folder = common.opened(
        base, batch_size=BATCH, n_train=STEPS * BATCH, epochs=1,
        gradient_checkpointing=arm == "ours_checkpointing",
    )  # fmt: skip
    from cfutils.data import mixing
    from cfutils.models import loading
    from cfutils.training import trainer

    target, tuning = common.target(lab.profile, folder), common.tuning(lab.profile, "ft")
    model = loading.load(folder, dtype=tuning.dtype)
    loop = trainer.Loop(
        model, None, mixing.mix(target, [], ratio=0.0, seed=0), tuning=tuning,
        execution=lab.profile.execution,
    )  # fmt: skip
    batches = [targets for targets, _ in loop.steps]
    tokens = [sum(s.supervised for s in batch) for batch in batches]
    if arm.startswith("ours"):
        losses, seconds = [], []
        for step, n in enumerate(tokens):
            loop.n_target = n
            clock = time.perf_counter()
            losses.append(loop._step(step)["target_loss"])
            seconds.append(time.perf_counter() - clock)
    else:
        rate = loop.learning_rate
        del loop
        losses, seconds = _peer(arm, folder, tuning, batches, rate)
    speeds = [n / s for n, s in zip(tokens, seconds, strict=True)][1:]
    return {
        "tokens_per_s": statistics.median(speeds),
        "peak_mb": common.peak_mb(),
        "losses": [round(x, 6) for x in losses],
    }


def _peer(arm, folder, tuning, batches, rate) -> tuple[list[float], list[float]]:
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from cfutils.models import tokenizers
    from cfutils.training.trainer import BETAS

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = tokenizers.load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = [s for batch in batches for s in batch]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=tuning.lr, betas=BETAS, weight_decay=tuning.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step) / tuning.lr)
    seconds = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.begin = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.begin)

    class InOrder:
        def _get_train_sampler(self, *args, **kwargs):
            return torch.utils.data.SequentialSampler(rows)

    settings = dict(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, num_train_epochs=1,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
        max_grad_norm=tuning.clip, disable_tqdm=True,
    )  # fmt: skip
    known = {"model": model, "optimizers": (optimizer, schedule), "callbacks": [Clock()]}
    if arm == "trainer":
        from transformers import DataCollatorForSeq2Seq

        data = datasets.Dataset.from_list([
            {"input_ids": list(s.ids), "labels": [-100] * s.first + list(s.ids[s.first :])} for s in rows
        ])  # fmt: skip
        kind = type("Ordered", (InOrder, Trainer), {})
        trainer = kind(
            args=TrainingArguments(**settings, gradient_checkpointing=False), train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(tokenizer), **known,
        )  # fmt: skip
    else:
        from trl import SFTConfig, SFTTrainer

        if arm == "sft_plain":
            settings["gradient_checkpointing"] = False
        data = datasets.Dataset.from_list([
            {"input_ids": list(s.ids),
             "completion_mask": [0] * s.first + [1] * (len(s.ids) - s.first)} for s in rows
        ])  # fmt: skip
        kind = type("Ordered", (InOrder, SFTTrainer), {})
        args = SFTConfig(**settings, completion_only_loss=True, max_length=None)
        trainer = kind(args=args, train_dataset=data, processing_class=tokenizer, **known)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, seconds


if __name__ == "__main__":
    settings = [{"arm": arm, "base": base} for base in ("smollm2", "tiny") for arm in ARMS]
    common.main(__file__, turn, settings)
