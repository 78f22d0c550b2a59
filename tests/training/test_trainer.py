"""One loop: deterministic, resumable, and with the weights that the docstring states."""

from __future__ import annotations

import math
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cfutils import recipes
from cfutils.data import mixing
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.models import loading, precision, tokenizers
from cfutils.models.base_states import BaseStates
from cfutils.profiles import Execution, Profile
from cfutils.training import losses, penalties, trainer, weighting
from cfutils.training.trainer import Tuning


def random_sequences(n, *, seed, length=(5, 12), first=1):
    """Sequences of random tokens."""
    rng = np.random.default_rng(seed)
    return [
        Sequence(tuple(map(int, rng.integers(1, 300, rng.integers(*length) + first))), first)
        for _ in range(n)
    ]


TARGET = random_sequences(8, seed=1, first=3)
POOL = random_sequences(20, seed=2)
RATIO, RANK = 0.3, 4


PROFILE = Profile(
    name="x", about="x", base="x", lr=1e-3, batch_size=2, autocast=False, ratio=RATIO,
    strengths={"lora": RANK, "lora_mlp": RANK, "stm": 300.0},
)  # fmt: skip


def tuning_of(recipe="ft", **changes):
    """Settings of a recipe at a tiny size; `changes` replace some of them."""
    plan = recipes.plan(PROFILE, recipe, seed=0)
    return Tuning(**{**recipes.tuning(PROFILE, plan), **changes})


EXECUTION = Execution(
    engine="transformers", chunk=4, pass_tokens=1024, gradient_checkpointing=False,
    checkpoint_minutes=5.0, trust_remote_code=False,
)  # fmt: skip
HOW = {field.name for field in fields(Execution)}


@pytest.fixture
def tuned(tiny_base, tmp_path):
    """Tune by a recipe; returns notes, log and weights."""
    runs = iter(range(100))

    def run(recipe="ft", *, work=None, **changes):
        work = work or tmp_path / f"run{next(runs)}"
        work.mkdir(exist_ok=True)
        how = {name: changes.pop(name) for name in HOW & changes.keys()}
        notes = trainer.tune(
            work, tiny_base, TARGET, POOL, tuning=tuning_of(recipe, **changes),
            execution=replace(EXECUTION, **how), label=f"{recipe} seed=0",
        )  # fmt: skip
        return notes, pd.read_parquet(work / "log.parquet"), load_file(work / "model.safetensors")

    return run


@pytest.fixture
def base_weights(tiny_base):
    return load_file(tiny_base / "model.safetensors")


def distance(one, two):
    """sqrt of the summed squares of all differences."""
    assert set(one) == set(two)
    return math.sqrt(sum((one[k] - two[k]).square().sum().item() for k in one))


def loop_of(tiny_base, tuning, target, pool, **more):
    """A loop that does not step: gradients add up over its steps, at the base's weights."""
    mixed = mixing.mix(target, pool, ratio=tuning.ratio or 0.0, seed=0)
    model = loading.load(tiny_base, dtype="float32")
    states = None
    if tuning.replay_loss == "kl" or tuning.target_kl is not None:
        states = BaseStates(model, Path(tempfile.mkdtemp()) / "states.safetensors", limit=64)
        states.freeze((*pool, *target))
    loop = trainer.Loop(model, states, mixed, tuning=tuning, execution=EXECUTION, **more)
    loop.optimizer.step = lambda: None
    loop.optimizer.zero_grad = lambda **_: None
    return loop


# ---- determinism


@pytest.mark.parametrize("recipe", ["cfs", "lora"])
def test_the_same_seed_gives_the_same_weights(tuned, recipe):
    (_, log, one), (_, log2, two) = tuned(recipe), tuned(recipe)
    assert all(torch.equal(one[k], two[k]) for k in one)
    pd.testing.assert_frame_equal(log.drop(columns="seconds"), log2.drop(columns="seconds"))
    assert distance(tuned(recipe, seed=1)[2], one) > 0


@pytest.mark.parametrize("recipe", ["cf_kl", "lora"])
def test_a_killed_run_resumes_to_the_same_weights(tuned, tmp_path, monkeypatch, recipe):
    """Killed in the third of eight steps; steps 0 and 1 are not done again."""
    settings = {"epochs": 2, "checkpoint_minutes": 1e-9}
    _, log, whole = tuned(recipe, **settings)
    step, done = trainer.Loop._step, []

    def fragile(self, number):
        if number == 2 and not done.count("killed"):
            done.append("killed")
            raise KeyboardInterrupt
        done.append(number)
        return step(self, number)

    monkeypatch.setattr(trainer.Loop, "_step", fragile)
    work = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        tuned(recipe, work=work, **settings)
    assert (work / "checkpoint.safetensors").exists()
    (work / "checkpoint.safetensors.part").write_bytes(
        b"half a checkpoint"
    )  # the kill came while one was written
    _, again, weights = tuned(recipe, work=work, epochs=2)  # no further checkpoint
    assert done == [0, 1, "killed", 2, 3, 4, 5, 6, 7]
    assert all(torch.equal(whole[k], weights[k]) for k in whole)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), log.drop(columns="seconds"))
    assert again["seconds"].is_monotonic_increasing
    left = [*work.glob("checkpoint*"), *work.glob("states*")]
    assert not left, "neither a checkpoint nor the base's states in the artifact"


@pytest.mark.parametrize("recipe", ["cfs", "cf_kl"])
def test_the_size_of_a_pass_does_not_change_the_result(tuned, recipe):
    """Up to rounding; at a small learning rate, for Adam's first step takes the sign of a gradient."""
    one, two = (tuned(recipe, pass_tokens=n, batch_size=4, lr=1e-4)[2] for n in (4096, 1))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)


# ---- what is minimised


@pytest.mark.parametrize("batch_size", [8, 3])
def test_with_natural_lambda_every_token_of_the_mix_counts_alike(tiny_base, batch_size):
    """lambda = T_S / T_F: the epoch's gradient is that of steps / T_F times the sum over all tokens.

    (1/n_F) sum_F + lambda (1/n_S) sum_S with n_F = T_F / steps and n_S = T_S / steps is
    steps / T_F (sum_F + sum_S), however the sequences fall into steps (3 of sizes 3, 3, 2 here).
    """
    mixed = mixing.mix(TARGET, POOL, ratio=RATIO, seed=0)
    natural = mixed.ratio / (1 - mixed.ratio)  # of the ratio that was reached
    tuning = tuning_of("cfs", batch_size=batch_size, clip=1e9, replay_weight=natural)
    loop = loop_of(tiny_base, tuning, TARGET, POOL)
    for step in range(len(loop.steps)):
        loop._step(step)
    model = loading.load(tiny_base, dtype="float32")
    total = sum(
        -model(torch.tensor([s.ids])).logits[0, :-1].log_softmax(-1)
        .gather(1, torch.tensor(s.ids)[1:, None])[s.first - 1 :].sum()
        for s in (*mixed.target, *mixed.replay)
    )  # fmt: skip
    (len(loop.steps) / mixed.target_tokens * total).backward()
    for p, q in zip(loop.trained, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)


def test_replay_of_very_few_tokens_per_step_keeps_its_weight(tiny_base):
    """Two replay tokens over four steps: n_S = 1/2, so each token's weight is lambda / n_S = 2 lambda."""
    loop = loop_of(tiny_base, tuning_of("cfs", ratio=0.05, clip=1e9), TARGET, [Sequence((0, 5, 6), 1)])
    assert len(loop.steps) == 4 and loop.mixed.replay_tokens == 2
    assert loop.n_replay == pytest.approx(0.5)


def test_the_gradient_of_kl_at_the_base_is_zero(tiny_base):
    """Replay alone: zero for the KL, on every sample; not for the NLL."""
    for recipe in ("cf_kl", "cfs"):
        loop = loop_of(tiny_base, tuning_of(recipe, clip=1e9), TARGET, POOL)
        _, value, _ = loop._backward([], POOL[:4])
        steepest = max(p.grad.abs().max().item() for p in loop.trained)
        if recipe == "cf_kl":
            assert abs(value) < 1e-4 and steepest < 1e-4
        else:
            assert value > 1 and steepest > 1e-2


@pytest.mark.parametrize("train", ["all", "lora"])
def test_stored_states_equal_a_base_that_runs_at_every_step(tuned, tiny_base, monkeypatch, train):
    """Four steps at a rate that moves the model: the same losses as with the base at every step."""
    settings = {"lr": 1e-2, "train": train, "lora_rank": RANK if train == "lora" else None}
    _, stored, one = tuned("cf_kl", **settings)
    base = loading.load(tiny_base, dtype="float32")

    def live(self, sequences):
        rows = [base.model(torch.tensor([s.ids])).last_hidden_state[0, s.first - 1 : -1] for s in sequences]
        return torch.cat(rows).detach()

    monkeypatch.setattr(BaseStates, "hidden", live)
    _, computed, two = tuned("cf_kl", **settings)
    np.testing.assert_allclose(stored["replay_loss"], computed["replay_loss"], atol=1e-5, rtol=1e-4)
    assert stored["replay_loss"].iloc[-1] > 1e-3
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=0)


def test_both_terms_of_a_step_by_hand(tiny_base):
    """At weights that have left the base: sums of NLL and of KL over unpadded passes, in fp64."""
    loop = loop_of(tiny_base, tuning_of("cf_kl"), TARGET, POOL)
    base = loading.load(tiny_base, dtype="float32")
    with torch.no_grad():
        for p in loop.trained:
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        tuned_log_p, log_p = (
            [m(torch.tensor([s.ids])).logits[0].double().log_softmax(-1) for s in (*TARGET[:2], *POOL[:3])]
            for m in (loop.student.model, base)
        )
    nll = -sum(
        row[t - 1, s.ids[t]].item()
        for s, row in zip(TARGET[:2], tuned_log_p, strict=False) for t in range(s.first, len(s.ids))
    )  # fmt: skip
    kl = sum(
        (q[s.first - 1 : -1].exp() * (q - p)[s.first - 1 : -1]).sum().item()
        for s, p, q in zip(POOL[:3], tuned_log_p[2:], log_p[2:], strict=True)
    )
    assert loop._backward(TARGET[:2], POOL[:3])[:2] == pytest.approx((nll, kl), rel=1e-4)


@pytest.mark.parametrize("recipe", ["cfs", "lora"])
def test_activations_computed_again_give_the_same_result(tuned, recipe):
    one, two = (tuned(recipe, gradient_checkpointing=on)[2] for on in (False, True))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)


def test_a_kl_run_starts_at_zero_and_an_nll_run_does_not(tuned):
    kl, nll = tuned("cf_kl")[1], tuned("cfs")[1]
    assert abs(kl["replay_loss"][0]) < 1e-5 < kl["replay_loss"].iloc[-1]
    assert nll["replay_loss"][0] > 1
    assert kl["target_loss"][0] == pytest.approx(nll["target_loss"][0], rel=1e-5)


def test_replay_and_penalty_are_logged_apart(tuned):
    log = tuned("ft")[1]
    assert list(log) == [
        "step", "epoch", "lr", "target_loss", "replay_loss", "penalty", "grad_norm",
        "target_tokens", "replay_tokens", "seconds",
    ]  # fmt: skip
    assert log["replay_loss"].isna().all() and log["penalty"].isna().all()
    assert (log["replay_tokens"] == 0).all()
    assert log["target_tokens"].sum() == sum(s.supervised for s in TARGET)
    l2 = tuned("l2")[1]
    assert l2["penalty"][0] == 0 < l2["penalty"].iloc[-1]
    both = tuned("cfs", epochs=2)[1]
    assert both["epoch"].tolist() == [0] * 4 + [1] * 4
    notes = tuned("cfs")[0]
    assert both["replay_tokens"].sum() == 2 * notes["replay_tokens"]


def test_notes_state_the_mix(tuned, capsys):
    notes = tuned("cfs")[0]
    t_f = sum(s.supervised for s in TARGET)
    assert notes["target_tokens"] == t_f and notes["steps"] == 4 and notes["shortfall"] == 0
    reached = notes["replay_tokens"] / (notes["replay_tokens"] + t_f)
    assert notes["ratio_reached"] == round(reached, 4)
    assert abs(reached - 0.3) < 0.05
    t_s = sum(s.supervised for s in POOL)
    notes = tuned("cfs", ratio=0.9)[0]
    assert notes["replay_tokens"] == t_s and notes["shortfall"] == 9 * t_f - t_s
    assert f"lacks {9 * t_f - t_s} tokens" in capsys.readouterr().out


def test_learning_rate_by_hand(tuned):
    """8 steps, warm-up over half of them: 1/4, 1/2, 3/4, 1, then (1 + cos(pi i / 4)) / 2, i = 0..3."""
    log = tuned("ft", epochs=2, warmup=0.5, lr=1e-3)[1]
    half = math.sqrt(0.5)
    shape = [0.25, 0.5, 0.75, 1, 1, (1 + half) / 2, 0.5, (1 - half) / 2]
    np.testing.assert_allclose(log["lr"], 1e-3 * np.array(shape), rtol=1e-12)
    log = tuned("ft", warmup=0.0, lr=1e-3)[1]
    assert log["lr"][0] == 1e-3


def test_tuning_learns_the_target(tuned):
    log = tuned("ft", epochs=6, lr=5e-3)[1]
    assert log["target_loss"].iloc[-4:].mean() < log["target_loss"].iloc[:4].mean() - 0.5


@pytest.mark.parametrize("recipe", ["ft", "cf_kl"])
def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tuned, recipe):
    with pytest.raises(UserError, match=r"not finite at step \d of \w+ seed=0 .*Lower lr"):
        tuned(recipe, lr=1e30)


# ---- what is trained


def test_lora_trains_adapters_alone_and_merges_them(tuned, base_weights, monkeypatch):
    """All linear layers and no other weight change; no adapter is left in the artifact."""
    loops = []
    init = trainer.Loop.__init__
    monkeypatch.setattr(
        trainer.Loop, "__init__", lambda self, *a, **k: (init(self, *a, **k), loops.append(self))[0]
    )
    weights = tuned("lora")[2]
    shapes = [p.shape for p in loops[0].trained]
    assert len(shapes) == 2 * 2 * 7  # A and B of 7 linear layers in each of 2 blocks
    assert all(RANK in shape for shape in shapes)
    assert set(weights) == set(base_weights)
    changed = {k for k in weights if not torch.equal(weights[k], base_weights[k])}
    assert changed == {k for k in weights if "_proj" in k}


def test_plain_fine_tuning_trains_all_weights(tuned, base_weights):
    weights = tuned("ft")[2]
    assert all(not torch.equal(weights[k], base_weights[k]) for k in weights)


def test_the_tuned_folder_is_a_whole_model(tuned, tmp_path):
    work = tmp_path / "whole"
    weights = tuned("cfs", work=work)[2]
    model = loading.load(work, dtype="float32")
    assert torch.equal(model.model.embed_tokens.weight, weights["model.embed_tokens.weight"])
    assert tokenizers.load_tokenizer(work).eos_token == "<|endoftext|>"


def test_l2_stays_closer_to_the_base(tuned, base_weights):
    ft, light, heavy = (
        distance(tuned(r, epochs=3, l2_weight=w)[2], base_weights)
        for r, w in (("ft", None), ("l2", 1.0), ("l2", 100.0))
    )
    assert heavy < light < ft


def test_autocast_and_full_precision_in_one_process(tuned):
    """A notebook may try both: the second must not be refused for the first."""
    one, two = tuned("ft", autocast=True), tuned("ft")
    assert 0 < distance(one[2], two[2]) < 1
    assert one[0]["precision"] == "float32, bf16 autocast" and two[0]["precision"] == "float32"


@pytest.mark.parametrize("has", [False, True])
def test_the_machine_decides_the_precision_where_the_profile_does_not(tuned, monkeypatch, has, capsys):
    monkeypatch.setattr(precision, "bf16", lambda: (has, "a reason"))
    notes = tuned("ft", autocast=None)[0]
    assert notes["precision"] == ("float32, bf16 autocast" if has else "float32")
    assert f"  {notes['precision']}; a reason\n" in capsys.readouterr().out


def test_weights_of_16_bits_are_stated(tuned):
    notes, _, weights = tuned("ft", dtype="bfloat16", autocast=True)
    assert notes["precision"] == "float32, bf16 autocast, written in bfloat16"
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_l2_of_the_loop_is_the_stated_sum(tiny_base):
    """A step of 0.01 on every parameter: penalty = number of parameters * 1e-4."""
    loop = loop_of(tiny_base, tuning_of("l2"), TARGET, [])
    with torch.no_grad():
        for p in loop.trained:
            p.add_(0.01)
    n = sum(p.numel() for p in loop.trained)
    assert penalties.l2(loop.trained, loop.reference).item() == pytest.approx(n * 1e-4, rel=1e-3)
    assert loop._step(0)["penalty"] == pytest.approx(n * 1e-4, rel=1e-3)


# ---- every recipe

TRAINED = [name for name, row in recipes.RECIPES.items() if row.after is None or row.after == "recover"]
"""Recipes that train; the others change finished weights."""


@pytest.mark.parametrize("recipe", TRAINED)
def test_every_recipe_runs_and_moves_the_weights(tuned, base_weights, recipe):
    notes, log, weights = tuned(recipe)
    row = recipes.get(recipe)
    assert notes["steps"] == len(log) == 4
    assert 0 < distance(weights, base_weights) < 10
    assert all(w.isfinite().all() for w in weights.values())
    assert log["target_loss"].notna().all() == row.target and log["replay_loss"].notna().any() == bool(row.replay)
    assert log["penalty"].notna().all() == (row.penalty is not None or row.target_kl)
    assert (notes["target_tokens"] > 0) == row.target and (notes["replay_tokens"] > 0) == bool(row.replay)


@pytest.mark.parametrize("recipe", ["flow", "talr", "asft", "ewc", "osf", "cf_kl_fresh"])
def test_later_recipes_resume_and_repeat_too(tuned, tmp_path, monkeypatch, recipe):
    settings = {"epochs": 2, "checkpoint_minutes": 1e-9}
    whole = tuned(recipe, **settings)[2]
    step = trainer.Loop._step

    def fragile(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    work = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Loop, "_step", fragile)
        tuned(recipe, work=work, **settings)
    again = tuned(recipe, work=work, **settings)[2]
    assert all(torch.equal(whole[k], again[k]) for k in whole)


@pytest.mark.parametrize("recipe", ["flow", "stm", "talr", "eaft", "dft", "kl_target", "asft", "cf_kl_eaft"])
def test_weights_of_tokens_do_not_depend_on_the_size_of_a_pass(tuned, recipe):
    one, two = (tuned(recipe, pass_tokens=n, batch_size=4, lr=1e-4)[2] for n in (4096, 1))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=6e-5, rtol=0)


def gradient_by_hand(model, loss_of):
    """Gradients of the sum over the target's items of what loss_of returns for logits and tokens."""
    total = 0.0
    for s in TARGET[:3]:
        logits = model(torch.tensor([s.ids])).logits[0, s.first - 1 : -1]
        total = total + loss_of(logits, torch.tensor(s.ids[s.first :])).sum()
    return torch.autograd.grad(total, list(model.parameters()))


@pytest.mark.parametrize("recipe", ["eaft", "dft", "talr", "kl_target", "asft"])
def test_the_weighted_term_of_a_step_by_hand(tiny_base, recipe):
    """(1/n_F) sum (w NLL + c KL(base || tuned)) at weights that have left the base; w is held constant."""
    tuning = tuning_of(recipe, clip=1e9)
    loop = loop_of(tiny_base, tuning, TARGET, POOL)
    base = loading.load(tiny_base, dtype="float32")
    with torch.no_grad():
        for p in loop.trained:
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    model = loop.student.model
    loop.typical = 2.5
    nll, _, kl = loop._backward(TARGET[:3], [])
    base_logits = iter([base(torch.tensor([s.ids])).logits[0, s.first - 1 : -1].detach() for s in TARGET[:3]])
    sums = [0.0, 0.0]

    def loss_of(logits, tokens):
        each = losses.token_nll(logits, tokens)
        apart = losses.token_kl(next(base_logits), logits)
        sums[0] += each.sum().item()
        sums[1] += apart.sum().item()
        p = (-each.detach()).exp()
        weight = 1.0
        if recipe == "talr":
            weight = (p ** (1 / 2.5)).clamp(min=0.01)
        elif recipe in ("dft", "asft"):
            weight = p
        elif recipe == "eaft":
            top = logits.detach().softmax(-1).sort(descending=True).values[:, :20]
            top = top / top.sum(-1, keepdim=True)
            weight = -(top * top.log()).sum(-1) / 3
        return (weight * each + (tuning.target_kl or 0.0) * apart) / loop.n_target

    wanted = gradient_by_hand(model, loss_of)
    for p, gradient in zip(loop.trained, wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-5, rtol=1e-3)
    assert nll == pytest.approx(sums[0], rel=1e-4)
    assert kl == pytest.approx(sums[1] if tuning.target_kl else 0.0, rel=1e-3)


def test_fixed_weights_multiply_their_own_items(tiny_base):
    """Weights 0, 1, 2 for three items: the gradient is that of the second plus twice the third."""
    fixed = {s: torch.full((s.supervised,), float(i)) for i, s in enumerate(TARGET[:3])}
    tuning = tuning_of("flow", clip=1e9)
    loop = loop_of(tiny_base, tuning, TARGET, [], fixed=fixed)
    loop._backward(TARGET[:3], [])
    scale = iter((0.0, 1.0, 2.0))
    wanted = gradient_by_hand(
        loop.student.model, lambda logits, tokens: next(scale) * losses.token_nll(logits, tokens) / loop.n_target
    )
    for p, gradient in zip(loop.trained, wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-5, rtol=1e-3)


def test_fixed_weights_are_those_of_the_base(tuned, monkeypatch):
    """Also where the run has another start: FLOW's weights are computed once, before anything is trained."""
    seen = []
    flow = weighting.flow
    monkeypatch.setitem(weighting.FIXED, "flow", lambda nll, strength: seen.append(nll) or flow(nll, strength))
    tuned("flow", epochs=2)
    ((nll,),) = ([one] for one in seen)
    assert [len(one) for one in nll] == [s.supervised for s in TARGET]


def test_typical_loss_of_a_step_is_measured_before_it(tuned, monkeypatch):
    """TALR's tau at each step, with the weights as they are then: it falls as the target is learned."""
    seen = []
    monkeypatch.setitem(
        weighting.CURRENT, "talr", lambda logits, nll, strength, typical: seen.append(typical) or torch.ones_like(nll)
    )
    log = tuned("talr", epochs=6, lr=5e-3, batch_size=8)[1]
    assert len(log) == len(dict.fromkeys(seen)) == 6 and seen[-1] < seen[0] - 0.5
    ones = tuned("ft", epochs=6, lr=5e-3, batch_size=8)[1]
    np.testing.assert_allclose(log["target_loss"], ones["target_loss"], rtol=1e-5)


def test_replay_alone_has_the_replay_of_the_recipe_with_the_target(tuned):
    """The same sequences in the same steps; in the first step the replay loss is the same number."""
    alone, whole = tuned("replay_only", epochs=2)[1], tuned("cfs", epochs=2)[1]
    assert alone["replay_tokens"].tolist() == whole["replay_tokens"].tolist()
    assert alone["replay_loss"][0] == pytest.approx(whole["replay_loss"][0], rel=1e-6)
    assert (alone["target_tokens"] == 0).all()


def test_a_run_may_begin_with_other_weights_and_keep_the_base_as_its_teacher(tuned, tiny_base, tmp_path):
    """Recovery: KL(base || tuned) is above zero at the first step, and distillation brings it down."""
    start = tmp_path / "ft"
    tuned("ft", work=start, epochs=3, lr=5e-3)
    work = tmp_path / "recovered"
    work.mkdir()
    trainer.tune(
        work, tiny_base, TARGET, POOL, tuning=tuning_of("recover", lr=2e-3, epochs=8), execution=EXECUTION,
        label="recover", start_folder=start,
    )  # fmt: skip
    log = pd.read_parquet(work / "log.parquet")
    assert log["replay_loss"][0] > 0.05
    assert log["replay_loss"].iloc[-4:].mean() < 0.5 * log["replay_loss"].iloc[:4].mean()


def test_ewc_is_the_stated_sum_and_pulls_back(tuned, tiny_base, base_weights):
    """Penalty 1/2 sum F d^2 with F = 2 everywhere is L2's sum; a heavy weight keeps the weights at the base."""
    loop = loop_of(tiny_base, tuning_of("ewc"), TARGET, [], fisher=None)
    loop.fisher = [torch.full_like(p, 2.0) for p in loop.trained]
    with torch.no_grad():
        for p in loop.trained:
            p.add_(0.01)
    n = sum(p.numel() for p in loop.trained)
    assert loop._step(0)["penalty"] == pytest.approx(n * 1e-4, rel=1e-3)
    light, heavy = (distance(tuned("ewc", epochs=3, ewc_weight=w)[2], base_weights) for w in (1.0, 1e6))
    assert heavy < light
