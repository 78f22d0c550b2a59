"""The state of a training loop on disk: weights, AdamW's moments, step and log, in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cfutils import atomic

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save(
    path: Path, trained: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, *, step: int,
    log: list[dict],
) -> None:  # fmt: skip
    """Write the state after `step` steps; a process killed while writing leaves the previous file."""
    tensors = {}
    for i, p in enumerate(trained):
        tensors[f"p{i}"] = p.detach()
        tensors |= {f"{k}{i}": torch.as_tensor(optimizer.state[p][k]).detach() for k in MOMENTS}
    with atomic.replacing(path) as part:
        save_file(tensors, part, metadata={"step": str(step), "log": json.dumps(log)})


def restore(
    path: Path, trained: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict]]:
    """Read a state into weights and optimiser; return its step and log (0 and none without a file)."""
    if not path.exists():
        return 0, []
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        for i, p in enumerate(trained):
            p.data.copy_(file.get_tensor(f"p{i}"))
            optimizer.state[p] = {k: file.get_tensor(f"{k}{i}").to(p.device) for k in MOMENTS}
    return int(meta["step"]), json.loads(meta["log"])
