"""Forgetting in the log of transformers' Trainer."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from cfutils.data import benchmarks
from cfutils.errors import UserError
from cfutils.integrations.transformers import ForgettingCallback
from cfutils.models import tokenizers
from cfutils.models.generation import sampling
from cfutils.models.generation.transformers_engine import TransformersEngine
from cfutils.models.generation.types import Request

ROWS = Dataset.from_list([{"input_ids": [0, 5 + i, 9, 7, 30], "labels": [0, 5 + i, 9, 7, 30]} for i in range(8)])


@pytest.fixture
def trainer(tiny_base, tmp_path):
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    tokenizer.pad_token = tokenizer.eos_token
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=4, eval_strategy="steps", eval_steps=2,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False, learning_rate=1e-2,
        disable_tqdm=True, metric_for_best_model="context_free_kl", greater_is_better=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    return Trainer(
        model, args, train_dataset=ROWS, eval_dataset=ROWS, processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip


@pytest.fixture
def task(tiny_choices, monkeypatch):
    monkeypatch.setattr(benchmarks, "lm_eval_tasks", lambda name, **_: {name: tiny_choices()})
    monkeypatch.setattr(benchmarks, "check", lambda *_, **__: None)
    return ("tiny_choices",)


def test_a_run_logs_what_it_forgets_at_each_evaluation(trainer, task):
    attention = trainer.model.config._attn_implementation
    callback = ForgettingCallback(trainer, n_samples=6, max_tokens=12, tasks=task, limit=4)
    before = callback.measure()
    assert before["eval_context_free_kl"] == pytest.approx(0, abs=1e-6)
    assert before["eval_tiny_choices_acc_drop"] == before["eval_tiny_choices_bpb_gold_drop"] == 0
    trainer.add_callback(callback)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "eval_context_free_kl" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["eval_context_free_kl"] > 0 and row["eval_context_free_kl_stderr"] > 0
        drop = row["eval_tiny_choices_bpb_gold"] - before["eval_tiny_choices_bpb_gold"]  # lower is better
        assert row["eval_tiny_choices_bpb_gold_drop"] == pytest.approx(drop, abs=1e-6) and drop != 0
        drop = before["eval_tiny_choices_acc"] - row["eval_tiny_choices_acc"]
        assert row["eval_tiny_choices_acc_drop"] == pytest.approx(drop)
    assert trainer.state.best_metric == min(row["eval_context_free_kl"] for row in rows)
    assert trainer.model.config._attn_implementation == attention
    assert trainer.evaluate()["eval_context_free_kl"] == pytest.approx(rows[-1]["eval_context_free_kl"])


def test_the_kl_is_that_of_plain_forward_passes(trainer, tiny_base):
    callback = ForgettingCallback(trainer, n_samples=5, max_tokens=12)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter *= 0.9
        total = tokens = 0
        for one in callback._samples:
            ids = torch.tensor([one.ids[:-1]])
            log_base, log_tuned = (m(ids).logits[0].log_softmax(-1) for m in (base, trainer.model))
            total += (log_base.exp() * (log_base - log_tuned)).sum().item()
            tokens += one.supervised
    assert callback.measure()["eval_context_free_kl"] == pytest.approx(total / tokens, rel=1e-4)


def test_samples_are_those_of_the_probe_and_none_that_replay_may_contain(trainer, tiny_base):
    found = ForgettingCallback(trainer, n_samples=3, max_tokens=8)._samples
    with TransformersEngine(tiny_base, dtype="float32", chunk=4, pass_tokens=64) as engine:
        requests = [Request((0,), sampling.SETS["probe"] * sampling.SEED_BLOCK + i) for i in range(3)]
        expected = engine.draw(requests, temperature=1.0, max_tokens=8, stop=(0,))
    assert [one.ids for one in found] == [(0, *one.token_ids) for one in expected]
    assert all(one.first == 1 for one in found)


@pytest.mark.parametrize(
    ("change", "own", "said"),
    [
        ({"is_fsdp_enabled": True}, {}, "FSDP or DeepSpeed"),
        ({"processing_class": None}, {}, "no tokenizer"),
        ({}, {"n_samples": 1}, "n_samples = 1"),
        ({}, {"pass_tokens": 0}, "pass_tokens = 0"),
        ({}, {"tasks": ("no_such",), "source": "package"}, "retained = 'no_such'"),
    ],
)
def test_what_cannot_be_measured_is_refused(lm_eval_index, trainer, change, own, said):
    for name, value in change.items():
        setattr(trainer, name, value)
    with pytest.raises(UserError, match=said):
        ForgettingCallback(trainer, **own)
