"""What is done with finished weights: averaged with the base's, or freed of intruder dimensions. No data, no steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from cfutils.models import loading, tokenizers
from cfutils.training import adapters

TOP_K, THRESHOLD = 10, 0.5
"""Leading singular directions that are looked at, and the cosine below which one is an intruder: peft's defaults."""


def average(
    work: Path,
    base_folder: Path,
    tuned_folder: Path,
    *,
    alpha: float,
    dtype: str,
    trust_remote_code: bool = False,
) -> None:
    """Write (1 - alpha) theta_0 + alpha theta_tuned, and the base's tokenizer, into `work` (WiSE-FT).

    Of a run of low rank the average is adapters too: alpha times its own.
    """
    model, tuned = _both(base_folder, tuned_folder, dtype, trust_remote_code)
    interpolate(model, tuned, alpha=alpha)
    save(model, work, base_folder, trust_remote_code=trust_remote_code)
    if (tuned_folder / adapters.FOLDER).is_dir():
        adapters.scale(tuned_folder / adapters.FOLDER, work / adapters.FOLDER, share=alpha)


@torch.no_grad()
def interpolate(model: torch.nn.Module, tuned: torch.nn.Module, *, alpha: float) -> None:
    """Set model's weights to (1 - alpha) model + alpha tuned, in place (arXiv 2109.01903, eq. 1)."""
    for p, q in zip(model.parameters(), tuned.parameters(), strict=True):
        p.lerp_(q.to(p.device), alpha)


def reduce_intruders(
    work: Path,
    base_folder: Path,
    tuned_folder: Path,
    *,
    rank: int,
    kept: float,
    dtype: str,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write a run of LoRA with its intruder dimensions scaled by `kept`, and the base's tokenizer; return notes.

    An intruder is one of the `TOP_K` leading singular directions of the tuned matrix whose cosine with every
    singular direction of the base's is below `THRESHOLD` (arXiv 2410.21228). peft does it on adapters; merged ones
    of the given rank are found again as the difference of the two matrices. kept = 0.75 is peft's default (its
    `mitigation_lambda`), 0 takes intruders out wholly, 1 changes nothing.
    """
    from peft import get_peft_model
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    model, tuned = _both(base_folder, tuned_folder, dtype, trust_remote_code)
    wanted = {name: p.detach() for name, p in tuned.named_parameters()}
    model = get_peft_model(model, adapters.lora_config(rank))
    set_adapters(model, wanted)
    lines: list[str] = []
    reduce_intruder_dimension(
        model, top_k=TOP_K, threshold_epsilon=THRESHOLD, mitigation_lambda=kept, logging_sink=lines.append
    )
    save(model.merge_and_unload(), work, base_folder, trust_remote_code=trust_remote_code)
    return {"intruders": sum(int(n) for n in re.findall(r"Intruders: (\d+)", "\n".join(lines)))}


@torch.no_grad()
def set_adapters(model: Any, wanted: dict[str, torch.Tensor]) -> None:
    """Set the adapters of a peft model to the best of their rank for its weights to become `wanted`, by name.

    The truncated singular value decomposition of the difference: exact where its rank is no larger.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            change = wanted[f"{name}.weight"].to(weight.device).float() - weight.float()
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            n = min(len(a), len(s))
            a.zero_()[:n] = s[:n, None].sqrt() * v[:n]
            b.zero_()[:, :n] = u[:, :n] * s[:n].sqrt()


def save(model: Any, work: Path, base_folder: Path, *, trust_remote_code: bool) -> None:
    """Write a model and the base's tokenizer."""
    model.save_pretrained(work)
    tokenizer = tokenizers.load_tokenizer(base_folder, trust_remote_code=trust_remote_code)
    tokenizer.save_pretrained(work)


def _both(base_folder: Path, tuned_folder: Path, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    return tuple(
        loading.load(folder, dtype=dtype, trust_remote_code=trust_remote_code)
        for folder in (base_folder, tuned_folder)
    )
