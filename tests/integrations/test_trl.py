"""Replay in TRL's SFTTrainer: the loss of our own loop, whatever TRL does with the target."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from cfutils import recipes
from cfutils.data import mixing
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.integrations import exports
from cfutils.models import loading, tokenizers
from cfutils.models.base_states import BaseStates
from cfutils.profiles import Profile
from cfutils.training import trainer as loops

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl)")
from cfutils.integrations.trl import ReplaySFTTrainer  # noqa: E402

WEIGHT, RATE = 0.7, 0.1
PROFILE = Profile(name="x", about="x", base="x", ratio=0.5, autocast=False)


def random_sequences(n, *, seed, length=(6, 14), first=1):
    rng = np.random.default_rng(seed)
    return [Sequence(tuple(map(int, rng.integers(1, 300, rng.integers(*length)))), first) for _ in range(n)]


TARGET = random_sequences(4, seed=1, first=3)
POOL = random_sequences(6, seed=2)


def rows(sequences):
    return Dataset.from_list([
        {"input_ids": list(s.ids), "completion_mask": [0] * s.first + [1] * s.supervised} for s in sequences
    ])  # fmt: skip


def samples(sequences):
    return Dataset.from_list([
        {"prompt_ids": list(s.ids[: s.first]), "token_ids": list(s.ids[s.first :])} for s in sequences
    ])  # fmt: skip


def moved(model):
    """Put a model's weights somewhere else than the base's."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.02 * noise
    return model


@pytest.fixture
def make(tiny_base, tmp_path):
    """Make a trainer on the tiny base; `settings` are SFTConfig's."""

    def made(replay=POOL, *, model=None, loss="kl", settings=None, data=None, **own):
        tokenizer = tokenizers.load_tokenizer(tiny_base)
        tokenizer.pad_token = tokenizer.eos_token
        args = trl.SFTConfig(**{
            "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1,
            "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False, "max_length": None,
            "completion_only_loss": None if data else True, "disable_tqdm": True, "gradient_checkpointing": False,
            **(settings or {}),
        })  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32) if model is None else model
        return ReplaySFTTrainer(
            model, args, train_dataset=data or rows(TARGET), processing_class=tokenizer, replay=samples(replay),
            replay_weight=WEIGHT, replay_loss=loss, **own,
        )  # fmt: skip

    return made


def ours(tiny_base, loss, *, replay=POOL):
    """Our loop's loss of one step over all sequences, at the moved weights, and the gradients."""
    tuning = loops.Tuning(**{
        **recipes.tuning(PROFILE, recipes.plan(PROFILE, "cf_kl" if loss == "kl" else "cfs", seed=0)),
        "replay_weight": WEIGHT,
    })  # fmt: skip
    base = BaseStates(loading.load(tiny_base, dtype="float32"), limit=1024)
    base.freeze(replay)
    model = moved(loading.load(tiny_base, dtype="float32"))
    mixed = mixing.Mix(tuple(TARGET), tuple(replay), 0.5, 0)
    loop = loops.Loop(model, base, mixed, tuning=tuning, execution=PROFILE.execution)
    loop.n_target, loop.n_replay = mixed.target_tokens, mixed.replay_tokens
    total, _ = loop._loss([(s, False) for s in TARGET] + [(s, True) for s in replay])
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("loss", ["kl", "nll"])
def test_the_loss_and_its_gradient_are_those_of_our_loop(make, tiny_base, loss):
    """All target items and all samples in one batch, at weights that are not the base's."""
    made = make(loss=loss, replay_batch_size=len(POOL))
    moved(made.model).train()
    batch = made.data_collator([made.train_dataset[i] for i in range(len(TARGET))])
    found = made.compute_loss(made.model, made._prepare_inputs(batch))
    found.backward()
    expected, gradients = ours(tiny_base, loss)
    assert found.item() == pytest.approx(expected, abs=1e-5)
    for name, parameter in made.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_accumulated_batches_make_the_step_of_one(make, tiny_base):
    """Two batches of two: weights after plain gradient descent. Replay of one length, so that means of means agree."""
    replay = random_sequences(4, seed=3, length=(9, 10))
    settings = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1, "optim": "sgd",
        "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 1e9, "weight_decay": 0.0,
    }  # fmt: skip
    made = make(replay, settings=settings)
    moved(made.model)
    start = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    made.train()
    _, gradients = ours(tiny_base, "kl", replay=replay)
    for name, parameter in made.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name] - RATE * gradients[name], atol=1e-6, rtol=1e-4)


def test_a_run_logs_both_terms_and_the_kl_begins_at_zero(make):
    made = make(replay_batch_size=3, settings={"learning_rate": 1e-3})
    made.train()
    first, second = (row for row in made.state.log_history if "loss" in row)
    assert first["replay_loss"] == pytest.approx(0, abs=1e-6) and second["replay_loss"] > 1e-6
    assert (first["replay_passes"], second["replay_passes"]) == (0.5, 1.0)


def test_evaluation_has_no_replay_term(make):
    made = make(loss="nll")
    made.model.eval()
    batch = made.data_collator([made.train_dataset[0]])
    with torch.no_grad():
        found = made.compute_loss(made.model, made._prepare_inputs(batch)).item()
    with torch.no_grad():
        ids = torch.tensor([TARGET[0].ids])
        logp = made.model(ids).logits[0, :-1].log_softmax(-1)
    expected = -logp.gather(1, ids[0, 1:, None])[TARGET[0].first - 1 :].mean().item()
    assert found == pytest.approx(expected, abs=1e-5)


def test_every_sample_comes_once_in_a_pass_and_a_resumed_run_goes_on(make):
    made = make(replay_batch_size=2)
    seen = []
    for step in range(6):
        made.state.global_step = step
        seen.append(made._next())
    for begin in (0, 3):
        assert {s.ids for batch in seen[begin : begin + 3] for s in batch} == {s.ids for s in POOL}
    assert seen[:3] != seen[3:]
    other = make(replay_batch_size=2)
    other.state.global_step = 4
    assert other._next() == seen[4]


def test_adapters_are_measured_from_the_same_weights_without_them(make):
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    made = make(peft_config=config)
    assert made.base is None
    made.model.train()
    assert made.replay_term(made.model, POOL).item() > 1e-4
    with made.model.disable_adapter():
        assert made.replay_term(made.model, POOL).item() == pytest.approx(0, abs=1e-6)


def test_a_model_by_its_name_and_a_base_of_ones_own(make, tiny_base):
    made = make(model=str(tiny_base))
    made.model.train()
    assert made.replay_term(made.model, POOL).item() == pytest.approx(0, abs=1e-6)
    base = moved(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32))
    assert make(base=base).replay_term(made.model, POOL).item() > 1e-4


def test_trl_reads_the_files_of_samples_as_the_tokens_drawn(make, tiny_base):
    """Samples that ended and whose text is read back: prompt and completion are whole, text lacks the start token."""
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    texts = ["The quick brown fox", " jumps over 3 bags", "A story\u2028of a town \"\\\n"]
    ids = [[*tokenizer(text)["input_ids"], 0] for text in texts]
    frame = pd.DataFrame({"prompt_ids": [[0]] * 3, "token_ids": ids, "text": texts})
    found = exports.rows(frame, tokenizer, start=0)
    assert found["same"].all()
    for columns, head in ((["prompt", "completion"], [0]), (["text"], [])):
        read = make(data=Dataset.from_pandas(found[columns])).train_dataset["input_ids"]
        assert list(map(list, read)) == [[*head, *one] for one in ids]


def test_a_model_that_returns_no_logits_is_refused(make):
    made = make(loss="nll")
    made.model.train()

    class Headless(torch.nn.Module):
        def forward(self, **_):
            return type("Output", (), {"logits": None})

    with pytest.raises(UserError, match="use_liger_kernel=False"):
        made.replay_term(Headless(), POOL)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"loss": "js"}, "replay_loss = 'js' is not allowed: 'kl' or 'nll'"),
        ({"replay": [Sequence((0, 999), 1)]}, "replay holds token 999, the model"),
    ],
)
def test_bad_values_are_refused(make, own, said):
    with pytest.raises(UserError, match=said):
        make(**own)


def test_samples_without_their_tokens_are_refused(make):
    with pytest.raises(UserError, match="replay lacks the columns prompt_ids, token_ids"):
        ReplaySFTTrainer("any", replay=Dataset.from_list([{"text": "a"}]))
    with pytest.raises(UserError, match="replay_weight = nan"):
        ReplaySFTTrainer("any", replay=samples(POOL), replay_weight=math.nan)
