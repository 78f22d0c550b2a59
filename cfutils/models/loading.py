"""Loading a causal language model onto the best device."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cfutils import progress
from cfutils.events import emit, say
from cfutils.models import packing

PROCESSOR = torch.device("cpu")


def load(
    folder: Path, *, dtype: str, trust_remote_code: bool = False, on: torch.device | None = None
) -> PreTrainedModel:
    """Load a model folder in a dtype (float32, bfloat16) onto a device, by default the best one, in eval mode.

    It computes packed rows where its architecture can (`packing`).
    """
    emit("model", path=str(folder))
    with progress.task("loading the model"):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
        model = model.to(on or device()).eval()
    if why := packing.prepare(model):
        say(f"  {type(model).__name__} computes padded batches, no packed rows ({why[:80]})")
    return model


def device() -> torch.device:
    """Return the device to compute on: CUDA, then Apple's GPU, then the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return PROCESSOR


def free() -> None:
    """Give back the memory of a GPU that models which are let go have had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
