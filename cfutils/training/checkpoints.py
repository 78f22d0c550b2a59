"""The state of a training loop on disk: weights, AdamW's moments, step and log, in safetensors.

One process writes one file. Of several each writes the share that it holds, all at once, so nothing is gathered: of
8 billion parameters trained in fp32 (96 GB) on 8 devices, 12 GB each, which pass through the processor's memory. The
first process's file, written last, is the one that is named and counts: its header says how many others belong to it,
so that a kill at any moment leaves a whole state. Shares are rows of each tensor, so any number of processes reads
what any other number has written.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cfutils import atomic
from cfutils.training.distributed import Ranks, local

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save(
    path: Path, trained: list[torch.nn.Parameter], optimizer: Optimizer | None, ranks: Ranks, *, step: int,
    log: list[dict],
) -> None:  # fmt: skip
    """Write the state after `step` steps, without moments where there is no optimiser.

    A process killed while writing leaves the state before.
    """
    tensors = {}
    for i, p in enumerate(trained):
        state = {} if optimizer is None else {k: torch.as_tensor(optimizer.state[p][k]) for k in MOMENTS}
        parts = {"p": p.detach(), **state}
        tensors |= {f"{name}{i}": local(tensor).detach() for name, tensor in parts.items()}
    if ranks.rank:
        save_file(tensors, _share(path, step, ranks.rank, ranks.world))
    ranks.wait()
    if not ranks.rank:
        meta = {"step": str(step), "log": json.dumps(log), "world": str(ranks.world)}
        with atomic.replacing(path) as part:
            save_file(tensors, part, metadata=meta)
        for left in set(_shares(path)) - {_share(path, step, r, ranks.world) for r in range(1, ranks.world)}:
            left.unlink()
    ranks.wait()


def restore(
    path: Path, trained: list[torch.nn.Parameter], optimizer: Optimizer | None, ranks: Ranks
) -> tuple[int, list[dict]]:
    """Read a state into weights and optimiser; return its step and log (0 and none without a file).

    Without an optimiser, or moments in the file, the weights alone are read.
    """
    if not path.exists():
        return 0, []
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt"))]
        meta = files[0].metadata()
        step, world = int(meta["step"]), int(meta.get("world", 1))
        files += [stack.enter_context(safe_open(_share(path, step, r, world), "pt")) for r in range(1, world)]
        moments = optimizer is not None and "step0" in files[0].keys()  # noqa: SIM118 - no mapping
        for i, p in enumerate(trained):
            _read(files, f"p{i}", p.data, ranks)
            if moments:
                state: dict[str, Any] = {"step": files[0].get_tensor(f"step{i}").to(local(p).device)}
                for name in MOMENTS[1:]:
                    state[name] = torch.zeros_like(p.data)
                    _read(files, f"{name}{i}", state[name], ranks)
                optimizer.state[p] = state
    return step, json.loads(meta["log"])


def _share(path: Path, step: int, rank: int, world: int) -> Path:
    """Return the file of another process than the first."""
    return path.with_name(f"{path.stem}.{step}.{rank}of{world}{path.suffix}")


def _shares(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.stem}.*of*{path.suffix}"))


def _read(files: list[Any], name: str, into: Tensor, ranks: Ranks) -> None:
    """Fill a tensor, or this process's rows of it, from files of which each has its own rows."""
    own, rows = local(into), len(into) if into.ndim else 0
    if not isinstance(into, DTensor) and len(files) == 1:
        own.copy_(files[0].get_tensor(name))
        return
    begin, end = _rows(rows, ranks.rank, ranks.world)
    for number, file in enumerate(files):
        first, last = _rows(rows, number, len(files))
        low, high = max(begin, first), min(end, last)
        if low < high:
            own[low - begin : high - begin].copy_(file.get_slice(name)[low - first : high - first])


def _rows(rows: int, rank: int, world: int) -> tuple[int, int]:
    """Return the rows that a process holds: equally many each, the last ones fewer (as FSDP 2 divides them)."""
    each = -(-rows // world)
    return min(rows, rank * each), min(rows, (rank + 1) * each)
