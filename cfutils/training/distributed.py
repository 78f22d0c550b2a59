"""The processes that train one model together, by FSDP 2: each holds a share of weights, gradients and moments.

The blocks of a model are gathered one after another, in fp32, as a pass needs them; what is left (embeddings, last
norm, last matrix) is gathered for the whole pass. Gradients are summed over processes, not averaged: a loss is a sum
over sequences, each of which one process has, so that the result is that of one process up to rounding. Every process
must take part in every pass, so all of them have equally many (`divide`, `Loop`).
"""

from __future__ import annotations

import datetime
import heapq
import os
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from cfutils.models import loading
from cfutils.training.student import Student

PATIENCE = datetime.timedelta(days=1)
"""How long a process waits for another one; one that has died ends all of them at once (`launch`)."""


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is, and what they do together; by default it is the only one."""

    device: torch.device
    """Where it computes."""
    rank: int = 0
    mesh: DeviceMesh | None = None
    """The processes; None where nothing is sharded."""

    @property
    def world(self) -> int:
        """How many there are."""
        return 1 if self.mesh is None else self.mesh.size()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over processes of a tensor in the processor's memory."""
        if self.mesh is not None:
            dist.all_reduce(values)
        return values

    def agreed(self, value: bool) -> bool:
        """Return the first process's answer."""
        return bool(self.sum(torch.tensor(float(value and not self.rank))).item())

    def wait(self) -> None:
        """Wait for the others."""
        if self.mesh is not None:
            dist.barrier()

    def shard(self, student: Student, *, offload: bool) -> None:
        """Divide the weights of a model in the processor's memory among the processes, each block by itself.

        No process waits for another one here. offload: keep shares in the processor's memory, gradients and the
        optimiser's step too.
        """
        policy = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if offload else OffloadPolicy()
        for module in (*blocks(student.model), student):
            fully_shard(module, mesh=self.mesh, offload_policy=policy)
        for module in student.modules():
            if isinstance(module, FSDPModule):  # a plain sum: no division, on any backend
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        student.device = self.device
        student.set_reduce_scatter_unused_params(True)  # experts that a process's tokens did not reach


def alone() -> Ranks:
    """Return the only process of an ordinary run, on the best device."""
    return Ranks(loading.device())


def join() -> Ranks:
    """Join the processes that torchrun has started; gloo on processors, NCCL on NVIDIA's GPUs."""
    rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    # sums of scalars, and offloaded gradients, are in the processor's memory: gloo beside NCCL
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return Ranks(device, rank, init_device_mesh(device.type, (world,)))


def blocks(model: Any) -> list[torch.nn.Module]:
    """Return the blocks of a model of transformers, as it names them itself; none where it names none."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model  # below adapters
    return [one for one in core.modules() if type(one).__name__ in (core._no_split_modules or ())]


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor, which is all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def divide(lengths: Seq[int], parts: int) -> list[list[int]]:
    """Return indices in parts of about equal sums of lengths: the longest first, each to the smallest part.

    No part is larger than 4/3 of the largest in the best division (Graham 1969). A part may be empty.
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    sums = [(0, number) for number in range(parts)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        total, number = heapq.heappop(sums)
        found[number].append(index)
        heapq.heappush(sums, (total + lengths[index], number))
    return [sorted(part) for part in found]
