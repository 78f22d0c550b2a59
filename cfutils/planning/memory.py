"""How much memory of a device a step holds at most, part by part.

Weights, gradients and AdamW's two moments each take as much as the trained weights (ZeRO, arXiv 1910.02054, section
3.1); all are in fp32, and there is no second copy in half precision. What a layer keeps for its backward pass is
counted tensor by tensor as transformers' decoders compute it here (after Korthikanti et al., arXiv 2205.05198, section
4.1, for RMS norms, rotary positions, a gated MLP and no dropout); a test counts the same with autograd's own hooks.
Logits exist 128 rows at a time (`training.losses.in_chunks`).
"""

from __future__ import annotations

import math
from typing import Any

from cfutils import recipes
from cfutils.planning import workloads
from cfutils.planning.architecture import Architecture
from cfutils.planning.devices import CPU
from cfutils.planning.setting import TUNED_SIZE, Setting
from cfutils.planning.workloads import Task
from cfutils.profiles import Profile

LOGIT_ROWS = 128
"""`models.lm_head.LOGIT_ROWS`, without torch."""
LOGITS = {"forward": 4, "train": 6, "kl": 4}
"""Copies of the rows of logits, in fp32, that exist at once: product, fp32, log-softmax, gradient, its cast; of a KL
the base's and the product of both more."""
CPU_CACHE = 2 * 2**30
"""Bytes of keys and values that vLLM has on a processor (`vllm_engine.CPU_CACHE_BYTES`)."""
VLLM_SHARE = 0.9
"""Share of a GPU's memory that vLLM takes unless it is told otherwise."""

Parts = dict[str, float]
"""Bytes by what they hold."""


def activations(shape: Architecture, *, weight: int, compute: int, rank: int | None = None) -> float:
    """Return the bytes that a layer keeps of one token for its backward pass.

    weight: bytes of a weight, hence of the residual stream; compute: bytes of what products are made in. Where they
    differ (autocast) each product has a copy of its input.
    rank: of adapters on all matrices, which are in fp32; frozen weights need no inputs, the adapters do.
    """
    h, q, k, i, family = shape.hidden, shape.queries, shape.keys, shape.intermediate, shape.family
    norms = 2 * (4 * h + (4 if family.norms else 8))  # inputs in fp32 and one or two statistics
    if family.norms and rank is None:
        norms += 2 * weight * h  # what their weights multiply
    if family.qk_norms:
        norms += (4 + (weight if rank is None else 0)) * (q + k) + 8
    attention = 2 * compute * (q + k) + 4 * shape.heads  # queries, keys, values, output, log-sum-exp
    mlp = 3 * compute * i  # gate before and after its activation, up
    if weight != compute or (rank and compute != 4):  # of q, k, v; output; gate, up; down: each a copy of its own
        size = compute if weight != compute or rank is None else 4
        inputs = size * (5 * h + i) + (size * q if rank else 0)
    else:
        inputs = compute * (2 * h + i)
    return norms + attention + mlp + inputs + (_adapter_size(compute, weight) * 7 * rank if rank else 0)


def _adapter_size(compute: int, weight: int) -> int:
    """Return the bytes of what adapters compute: under autocast those of its products, else fp32."""
    return compute if compute != weight else 4


def kept(set_: Setting, *, tuning: bool, rank: int | None = None) -> float:
    """Return `activations` in the dtype that tuning, or scoring, computes in."""
    weight = TUNED_SIZE if tuning else set_.size
    compute = 2 if tuning and set_.autocast else weight
    return activations(set_.shape, weight=weight, compute=compute, rank=rank)


def concurrency(set_: Setting, length: float) -> float:
    """Return how many sequences of a length have room for their keys and values beside the weights."""
    shape, device = set_.shape, set_.device
    room = min(VLLM_SHARE * device.memory, device.memory - device.reserve) - weights(set_)
    if device.name == CPU and set_.profile.engine == "vllm":
        room = CPU_CACHE
    return room / (cache(shape, set_.size) * length + 4.0 * LOGITS["forward"] * shape.vocabulary)


def cache(shape: Architecture, size: int) -> float:
    """Return the bytes of the keys and values of one token: 2 x layers x width of the keys x bytes."""
    return 2.0 * shape.layers * shape.keys * size


def peak(step: Any, set_: Setting) -> Parts:
    """Return what a step holds at its peak on each device; nothing for steps that hold no model."""
    p = set_.profile
    match step.kind:
        case "tuned":
            return tuning(step.params, set_)
        case "healed":
            tokens = step.params["healing"]["batch"] * step.params["max_tokens"]
            return _training(set_, tokens=tokens, rank=None, kl=False, penalty=0)
        case "samples":
            prompt = 1.0 if step.params["source"] == "context_free" else set_.target.tokens - set_.target.supervised
            return decoding(set_, n=step.params["n"], length=prompt + step.params["max_tokens"])
        case "averaged" | "reduced":
            return {"weights of two models": 2.0 * weights(set_)}
        case "retained":
            asked = [(one, min(one.items, p.limit or one.items)) for one in set_.tasks.values()]
            return answering(set_, asked, tokens=sum(one.tokens * n for one, n in asked))
        case "target" | "validation":
            n = step.params.get("n_heldout") or step.params["n_validation"]
            asked = [(task, step.params["n_generate"]) for task in set_.target.tasks]
            return answering(set_, asked, tokens=n * set_.target.tokens)
        case "entropy":
            return scoring(set_, tokens=step.needs["samples"].params["n"] * set_.sample)
        case "probe":
            tokens = step.params["n_probe"] * (3 * p.max_tokens + set_.target.tokens)
            other = step.needs["model"].key != step.needs["base"].key
            return scoring(set_, tokens=tokens, models=1 + other, kl=True)
        case "estimate":
            return scoring(set_, tokens=step.params["n"] * set_.sample, models=2, kl=True)
    return {}


def weights(set_: Setting) -> float:
    """Return the bytes of a model's weights."""
    return float(set_.size * set_.shape.parameters)


def tuning(params: Any, set_: Setting) -> Parts:
    """Return what a tuning run holds."""
    how, one = params["tuning"], set_.target
    n, ratio = how["batch_size"] / set_.profile.devices, how["ratio"] or 0.0
    replay, document = ratio / (1 - ratio) * n * one.supervised, set_.sample
    # the largest of the steps: two standard deviations above their mean
    wide = one.spread * one.tokens * math.sqrt(n), workloads.spread(set_.profile) * math.sqrt(replay / document)
    step_tokens = n * one.tokens + replay + 2 * math.hypot(*wide)
    penalty = sum(((how["l2_weight"] is not None) * 1, ("ewc_weight" in how) * 2))
    kl = how["replay_loss"] == "kl" or "target_kl" in how
    return _training(set_, tokens=step_tokens, rank=how["lora_rank"], kl=kl, penalty=penalty)


def _training(set_: Setting, *, tokens: float, rank: int | None, kl: bool, penalty: int) -> Parts:
    """Return the parts of a pass of a tuning run.

    tokens: of an optimiser step on each device; penalty: copies of the weights that a penalty keeps.
    """
    shape, p, size = set_.shape, set_.profile, TUNED_SIZE
    n_trained = shape.adapters(rank) if rank else shape.parameters
    head = float(size * shape.head)
    pass_tokens = min(tokens, max(p.pass_tokens / 2, set_.target.tokens))
    layer = kept(set_, tuning=True, rank=rank)
    if p.gradient_checkpointing:
        states = (size * shape.hidden * shape.layers + layer) * pass_tokens
    else:
        states = layer * shape.layers * pass_tokens
    share = 0.0 if p.offload else 1 / p.devices
    found = {
        "weights": share * size * (shape.parameters + (n_trained if rank else 0)),
        "gradients": share * size * n_trained,
        "moments of AdamW": share * 2 * size * n_trained,
        "reference of the penalty": share * penalty * size * n_trained,
        "activations": states,
        "bf16 copies of the weights": 2.0 * shape.layers * shape.linear if set_.autocast else 0.0,
        "logits": 4.0 * LOGIT_ROWS * shape.vocabulary * (LOGITS["train"] + LOGITS["kl"] * kl),
        # its gradient is added up apart, and that of a tied embedding once more
        "last matrix": (0 if rank else head * (2 if shape.tied else 1)) + (2.0 * shape.head if set_.autocast else 0),
        "last matrix of the base": float(kl * set_.size * shape.head),
    }
    if p.offload or p.devices > 1:  # two blocks at a time; embedding, last matrix and their gradients
        outside = (1 if shape.tied else 2) * head * (1 if rank else 2)
        found["gathered weights"] = 2.0 * size * shape.linear + outside
    return {name: value for name, value in found.items() if value}


def decoding(set_: Setting, *, n: float, length: float) -> Parts:
    """Return what an engine holds: weights, keys and values of the sequences that it decodes side by side, logits.

    length: most tokens of a sequence with its prompt. On a GPU vLLM takes 90 % of the memory whatever it needs; this is
    what it needs.
    """
    shape = set_.shape
    side = max(1.0, min(set_.profile.chunk, n, concurrency(set_, length)))
    keys = side * length * cache(shape, set_.size)
    if set_.device.name == CPU and set_.profile.engine == "vllm":
        keys = float(CPU_CACHE)
    logits = 4.0 * LOGITS["forward"] * shape.vocabulary * side
    return {"weights": weights(set_), "keys and values": keys, "logits": logits}


def answering(set_: Setting, asked: list[tuple[Task, int]], *, tokens: float) -> Parts:
    """Return what scoring holds at its peak: in forward passes, or while answers are generated, all tasks' together.

    asked: tasks, and of how many items answers are generated where the task or the base asks for it.
    """
    p = set_.profile
    found = [scoring(set_, tokens=tokens)]
    answered = [(one, n) for one, n in asked if n and (one.generates or p.think_budget)]
    if answered:
        longest = max(one.tokens - one.scored for one, _ in answered) + p.max_new_tokens + (p.think_budget or 0)
        n = sum(n for _, n in answered) * (p.answers_per_item if p.think_budget else 1)
        found.append(decoding(set_, n=n, length=longest))
    return max(found, key=total)


def scoring(set_: Setting, *, tokens: float, models: int = 1, kl: bool = False) -> Parts:
    """Return what forward passes without gradients over some tokens hold.

    models: with weights in memory; kl: whether their logits are compared with those of the base's states, which are in
    the processor's memory. Of a layer nothing is kept; the widest moment is that of the MLP, with the residual stream
    and its norm.
    """
    shape, p = set_.shape, set_.profile
    widest = set_.size * (4 * shape.hidden + 3 * shape.intermediate) + 4 * shape.hidden
    found = {
        "weights": models * weights(set_), "activations": widest * min(tokens, p.pass_tokens),
        "logits": 4.0 * LOGIT_ROWS * shape.vocabulary * (LOGITS["forward"] + LOGITS["kl"] * kl),
    }  # fmt: skip
    if kl and set_.device.name == CPU:
        found["states of the base"] = tokens * shape.hidden * set_.size
    return found


def lora_rank(profile: Profile) -> int:
    """Return the rank of the adapters that a profile trains in place of all weights."""
    return round(recipes.own_strength(profile, "lora"))


def host(set_: Setting) -> float:
    """Return the bytes of the processor's memory that offloaded weights, gradients and moments take."""
    if not set_.profile.offload:
        return 0.0
    low, n = set_.profile.train == "lora", float(set_.shape.parameters)
    return TUNED_SIZE * (n + (4 * set_.shape.adapters(lora_rank(set_.profile)) if low else 3 * n))


def total(parts: Parts) -> float:
    """Return the bytes of all parts."""
    return math.fsum(parts.values())
