"""What a step computes: tokens, floating-point operations, bytes moved. Arithmetic on sizes alone.

FLOPs (Kaplan et al., arXiv 2001.08361, section 2.1; Megatron's count with attention, arXiv 2104.04473, appendix): a
forward pass takes 2 for each parameter of a matrix and token, and 4 x (width of queries) for each pair of a token and
one before it that it attends to, half of length^2; a backward pass twice as much, once where weights are frozen (their
own gradients are left out); recomputed activations one more forward pass through the layers. Logits are counted apart,
for they exist at rows that carry loss only. Decoding moves all weights once a step and the keys and values of every
sequence (roofline: Pope et al., arXiv 2211.05102), so it is bound by bandwidth until the batch is large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from cfutils.planning import memory, workloads
from cfutils.planning.architecture import Architecture
from cfutils.planning.setting import TUNED_SIZE, Setting
from cfutils.planning.workloads import Task

FORWARD_MOVES, TRAIN_MOVES = 3, 7
"""How often what a layer keeps for its backward pass is moved: written, read, and once more in temporary forms; in
tuning by the backward pass too."""
ROW_MOVES = {"decode": 5, "forward": 6, "forward kl": 14, "train": 8, "train kl": 16}
"""How often a row of logits is moved in fp32: conversion, softmax, loss, and their gradients."""
VLLM_FROM, TIMED, FISHER = 20_000, 256, 512
"""Answers' tokens from which on vLLM is started for them, sequences that an estimate is timed on, and those that EWC's
Fisher is measured on: `lm_eval_model.VLLM_MIN_TOKENS`, `probes.TIMED`, `penalties.FISHER_SEQUENCES`, without torch."""
ADAM_MOVES = 10
"""Reads and writes of a number of the trained weights' size in an optimiser step: clipping, and AdamW's own."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Work of one kind in one dtype."""

    what: Literal["train", "forward", "decode", "copy"]
    dtype: str
    flops: float = 0.0
    traffic: float = 0.0
    """Bytes moved beside the products."""
    link: float = 0.0
    """Bytes between devices that share a model's weights out."""
    host: float = 0.0
    """Bytes between devices and the processor's memory."""
    layers: float = 0.0
    """Layers of passes, or of decoding steps, that are launched one by one."""
    steps: float = 0.0
    """Decoding steps of vLLM."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step takes."""

    parts: tuple[Part, ...] = ()
    sampled: float = 0.0
    """Tokens drawn or answered."""
    trained: float = 0.0
    """Tokens through forward and backward passes."""
    scored: float = 0.0
    """Tokens through forward passes alone."""
    loads: float = 0.0
    """Bytes of weights read from disk."""
    writes: float = 0.0
    """Bytes of weights written."""
    starts: int = 0
    """Engines started."""

    @property
    def flops(self) -> float:
        """Of all parts."""
        return sum(part.flops for part in self.parts)


def work(step: Any, set_: Setting) -> Work:
    """Return what a step takes, without those that it is made from; nothing for steps that copy tables."""
    make = {
        "samples": _samples, "tuned": _tuned, "healed": _healed, "averaged": _copies, "reduced": _copies,
        "retained": _retained, "target": _target, "validation": _target, "probe": _probe, "estimate": _estimate,
        "entropy": _entropy,
    }  # fmt: skip
    return make[step.kind](step.params, set_, step) if step.kind in make else Work()


def forward(set_: Setting, *, tokens: float, length: float, rows: float, kl: bool = False) -> Part:
    """Return a forward pass over documents of a mean length, with logits at some rows.

    kl: whether each row of logits is compared with one of the base's, whose states are known.
    """
    shape, p = set_.shape, set_.profile
    flops = layer_flops(shape, tokens, length) + 2 * shape.head * rows * (2 if kl else 1)
    moved = FORWARD_MOVES * shape.layers * memory.kept(set_, tuning=False) * tokens
    moved += 4 * ROW_MOVES["forward kl" if kl else "forward"] * shape.vocabulary * rows
    return Part(
        what="forward", dtype=p.dtype, flops=flops, traffic=moved,
        layers=shape.layers * math.ceil(tokens / p.pass_tokens),
    )  # fmt: skip


def layer_flops(shape: Architecture, tokens: float, length: float) -> float:
    """Return the FLOPs of a forward pass through all layers: tokens in documents of a mean length."""
    return shape.layers * tokens * (2 * shape.linear + 4 * shape.queries * length / 2)


def decode(
    set_: Setting, *, n: float, prompt: float, mean: float, longest: float, engine: str, at_once: bool = False
) -> list[Part]:
    """Return the drawing of n sequences of a mean length behind prompts, at most `chunk` side by side.

    A token attends to half of the mean length where all sequences are equally long, and to all of it where their
    lengths have an exponential law; in between its share is 1 - mean / (2 longest).
    at_once: whether all are handed over together (answers), so that vLLM begins the next when one ends; samples are
    drawn chunk by chunk, each as long as its longest.
    """
    shape, p = set_.shape, set_.profile
    context = prompt + mean * (1 - mean / (2 * longest))
    side = max(1.0, min(p.chunk, n, memory.concurrency(set_, prompt + mean)))
    if at_once and engine == "vllm":
        steps = n * mean / side + longest / 2
    else:
        steps = math.ceil(n / p.chunk) * max(longest, min(p.chunk, n) * mean / side)
    weights = set_.size * (shape.layers * shape.linear + shape.head)
    keys = 2 * shape.layers * shape.keys * set_.size
    made = Part(
        what="decode", dtype=p.dtype,
        flops=layer_flops(shape, n * mean, 2 * context) + 2 * shape.head * n * mean,
        traffic=steps * weights + n * mean * (context * keys + 4 * ROW_MOVES["decode"] * shape.vocabulary),
        steps=steps if engine == "vllm" else 0, layers=0 if engine == "vllm" else steps * shape.layers,
    )  # fmt: skip
    return [forward(set_, tokens=n * prompt, length=prompt, rows=n), made]


def train(
    set_: Setting, *, tokens: float, length: float, rows: float, steps: int, kl_rows: float = 0.0,
    rank: int | None = None,
) -> Part:  # fmt: skip
    """Return forward and backward passes, and optimiser steps, of all devices that a run takes.

    Sharded weights are gathered for the forward pass and again for the backward pass, and gradients are reduced once
    (ZeRO, arXiv 1910.02054, section 7.2).
    Where weights are offloaded they come from the processor's memory instead, and the optimiser's step is made there,
    at about four times the rate of the way to it.
    rows: those that carry loss; kl_rows: those among them that are compared with the base's logits; rank: of the
    adapters that are trained in place of all weights.
    """
    shape, p = set_.shape, set_.profile
    passes = p.devices * steps * max(1, math.ceil(tokens / steps / p.devices / max(1, p.pass_tokens // 2)))
    times = (2 if rank else 3) + bool(p.gradient_checkpointing)
    n_trained = shape.adapters(rank) if rank else shape.parameters
    flops = times * layer_flops(shape, tokens, length) + (6 * n_trained * tokens if rank else 0)
    flops += (4 if rank else 6) * shape.head * rows + 2 * shape.head * kl_rows
    cast = 6.0 * shape.layers * shape.linear * passes if set_.autocast else 0.0
    moved = TRAIN_MOVES * shape.layers * memory.kept(set_, tuning=True, rank=rank) * tokens
    moved += 4 * shape.vocabulary * (ROW_MOVES["train"] * rows + (ROW_MOVES["train kl"] - ROW_MOVES["train"]) * kl_rows)
    adam = ADAM_MOVES * steps * n_trained * TUNED_SIZE
    moved += 3 * passes * n_trained * TUNED_SIZE + cast + (0 if p.offload else adam)
    gathered = TUNED_SIZE * (2 * shape.parameters + n_trained) * passes
    return Part(
        what="train", dtype="bfloat16" if set_.autocast else "float32", flops=flops, traffic=moved,
        layers=times * shape.layers * passes,
        link=gathered if p.devices > 1 else 0.0, host=gathered / p.devices + adam / 4 if p.offload else 0.0,
    )  # fmt: skip


def _weights(set_: Setting) -> float:
    return float(set_.size * set_.shape.parameters)


def _samples(params: Any, set_: Setting, step: Any) -> Work:
    one, longest = set_.target, params["max_tokens"]
    context_free = params["source"] not in ("contextual", "rewritten")
    prompt = 1.0 if context_free else one.tokens - one.supervised
    mean = workloads.sample(set_.profile.base, longest)
    parts = decode(set_, n=params["n"], prompt=prompt, mean=mean, longest=longest, engine=params["engine"])
    return Work(
        parts=tuple(parts), sampled=params["n"] * mean, loads=_weights(set_), starts=int(params["engine"] == "vllm")
    )


def _tuned(params: Any, set_: Setting, step: Any) -> Work:
    tuning, target, one = params["tuning"], params["target"], set_.target
    epochs, n = tuning["epochs"], target["n_train"]
    own = n * one.supervised  # an epoch's tokens that carry loss
    ratio = tuning["ratio"] or 0.0
    replay = min(ratio / (1 - ratio) * own, _pool(params, set_, step))
    trains = tuning.get("target", True)
    tokens = (n * one.tokens * trains + replay) * epochs
    rows = (own * trains + replay) * epochs
    divergent = tuning["replay_loss"] == "kl" and replay > 0
    kl_rows = (replay * divergent + own * ("target_kl" in tuning)) * epochs
    length = tokens / epochs / max(1.0, n * trains + replay / set_.sample)
    steps = epochs * math.ceil(n / tuning["batch_size"])
    parts = [train(
        set_, tokens=tokens, length=length, rows=rows, steps=steps, kl_rows=kl_rows,
        rank=tuning["lora_rank"],
    )]  # fmt: skip
    once = replay * divergent + n * one.tokens * ("target_kl" in tuning or tuning.get("weighting") in ("flow", "stm"))
    once += FISHER * set_.sample * 3 * ("ewc_weight" in tuning)  # forward and backward
    if tuning.get("weighting") == "talr":
        once += n * one.tokens * epochs
    if once:
        parts.append(forward(set_, tokens=once, length=length, rows=0))
    if tuning["l2_weight"] is not None or "ewc_weight" in tuning:
        parts.append(Part(what="copy", dtype="float32", traffic=8.0 * steps * TUNED_SIZE * set_.shape.parameters))
    return Work(
        parts=tuple(parts), trained=tokens, scored=once, loads=_weights(set_), writes=_weights(set_)
    )


def _pool(params: Any, set_: Setting, step: Any) -> float:
    """Tokens of the pool that replay is chosen from; 0 where there is none."""
    if params["replay"] and "n" in params["replay"]:
        return params["replay"]["n"] * set_.profile.max_tokens
    pools = [need.params for need in step.needs.values() if need.kind == "samples"]
    return sum(one["n"] * workloads.sample(set_.profile.base, one["max_tokens"]) for one in pools) if pools else 0.0


def _healed(params: Any, set_: Setting, step: Any) -> Work:
    healing, length = params["healing"], float(params["max_tokens"])
    tokens, steps = healing["documents"] * length, healing["documents"] // healing["batch"]
    looks = (steps // healing["interval"] + 1) * healing["heldout"] * length
    parts = (
        train(set_, tokens=tokens, length=length, rows=tokens, steps=steps),
        forward(set_, tokens=looks, length=length, rows=looks),
    )
    return Work(parts=parts, trained=tokens, scored=looks, loads=_weights(set_), writes=_weights(set_))


def _copies(params: Any, set_: Setting, step: Any) -> Work:
    moved = Part(what="copy", dtype="float32", traffic=5 * _weights(set_))
    return Work(parts=(moved,), loads=2 * _weights(set_), writes=_weights(set_))


def _retained(params: Any, set_: Setting, step: Any) -> Work:
    limit, shots = params["tasks"]["limit"], params["tasks"]["num_fewshot"]
    asked = [
        (replace(one, tokens=one.tokens * (1 + shots.get(name, 0))), min(one.items, limit or one.items))
        for name, one in set_.tasks.items()
    ]
    return _scored(asked, set_)


def _target(params: Any, set_: Setting, step: Any) -> Work:
    one, p = set_.target, set_.profile
    n = params.get("n_heldout") or params["n_validation"]
    responses = Task(items=n, tokens=one.tokens, scored=one.supervised)
    asked = [(responses, float(n))]
    for task in one.tasks:
        answered = task.generates or p.think_budget is not None
        asked.append((replace(task, generates=answered), float(params["n_generate"] if answered else n)))
    return _scored(asked, set_)


def _scored(asked: list[tuple[Task, float]], set_: Setting) -> Work:
    """Return the scoring of some items of each task: log-likelihoods, then all answers together."""
    p = set_.profile
    asked = [(one, n) for one, n in asked if n]
    read = sum(n * one.tokens for one, n in asked)
    parts = [forward(set_, tokens=n * one.tokens, length=one.tokens, rows=n * one.scored) for one, n in asked]
    answered = [(one, n) for one, n in asked if one.generates]
    if not answered:
        return Work(parts=tuple(parts), scored=read, loads=_weights(set_))
    n = sum(n for _, n in answered)
    prompt = sum(n * (one.tokens - one.scored) for one, n in answered) / n
    if p.think_budget is None:
        drawn, rounds = n * p.max_new_tokens, [(n, float(p.max_new_tokens), p.max_new_tokens)]
    else:
        answer, thought = workloads.ANSWER * p.max_new_tokens, workloads.THOUGHT * p.think_budget
        n *= p.answers_per_item
        drawn = n * (thought + 2 * answer)
        rounds = [(n, thought + answer, p.think_budget + p.max_new_tokens), (n, answer, p.max_new_tokens)]
    starts = int(p.engine == "vllm" and sum(n * longest for n, _, longest in rounds) >= VLLM_FROM)
    for n, mean, longest in rounds:
        engine = "vllm" if starts else "transformers"
        parts += decode(set_, n=n, prompt=prompt, mean=mean, longest=longest, engine=engine, at_once=True)
    return Work(
        parts=tuple(parts), sampled=drawn, scored=read, loads=(1 + starts) * _weights(set_), starts=starts
    )


def _probe(params: Any, set_: Setting, step: Any) -> Work:
    n, target = params["n_probe"], set_.target.tokens
    documents = set_.sample + 2 * params["max_tokens"]  # drawn, prose, stories; target items have lengths of their own
    tokens = n * (documents + target)
    other = step.needs["model"].key != step.needs["base"].key
    parts = [forward(set_, tokens=tokens, length=tokens / n / 4, rows=tokens, kl=other)]
    if other:
        parts.append(forward(set_, tokens=tokens, length=tokens / n / 4, rows=0))
    return Work(parts=tuple(parts), scored=tokens * len(parts), loads=_weights(set_) * len(parts))


def _estimate(params: Any, set_: Setting, step: Any) -> Work:
    longest = set_.profile.max_tokens
    length = float(longest) if params["source"] in ("text", "pretraining") else set_.sample
    tokens = params["n"] * length
    parts = [
        forward(set_, tokens=tokens, length=length, rows=tokens, kl=True),
        forward(set_, tokens=tokens, length=length, rows=0),
    ]
    timed = min(TIMED, params["n"]) * length  # both ways of estimating, once more
    parts += [forward(set_, tokens=timed, length=length, rows=timed) for _ in range(2)]
    parts += [forward(set_, tokens=timed, length=length, rows=rows, kl=True) for rows in (timed, 0.0)]
    return Work(parts=tuple(parts), scored=2 * tokens + 4 * timed, loads=2 * _weights(set_))


def _entropy(params: Any, set_: Setting, step: Any) -> Work:
    tokens = step.needs["samples"].params["n"] * set_.sample
    return Work(
        parts=(forward(set_, tokens=tokens, length=set_.sample, rows=tokens),), scored=tokens, loads=_weights(set_)
    )
