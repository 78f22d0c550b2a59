"""What a training process is given, in one safetensors file: sequences as numbers, settings as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfutils import atomic
from cfutils.data.mixing import Mix
from cfutils.data.sequences import Sequence
from cfutils.models.base_states import BaseStates
from cfutils.profiles import Execution
from cfutils.training import penalties
from cfutils.training.distributed import Ranks
from cfutils.training.loop import Loop
from cfutils.training.settings import Tuning
from cfutils.training.student import Student

JOB, STATES, CHECKPOINT = "job.safetensors", "states.safetensors", "checkpoint.safetensors"
"""Files of a run that is not finished: what it is, states of the base, how far it is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All of a run but the weights that it begins with."""

    work: Path
    """Where its files are."""
    folder: Path
    """The model that it begins with."""
    mixed: Mix
    pool: Seq[Sequence]
    """Sequences that EWC's Fisher is measured on; none for other runs."""
    tuning: Tuning
    execution: Execution
    autocast: bool
    """Whether it computes in bf16."""
    label: str
    fixed: dict[Sequence, Tensor]
    """Weights of each target sequence's tokens; none where they are not fixed."""

    @property
    def frozen(self) -> list[Sequence]:
        """Sequences on which states of the base are needed."""
        replay = self.mixed.replay if self.tuning.replay_loss == "kl" else ()
        return [*replay, *(self.mixed.target if self.tuning.target_kl is not None else ())]

    def states(self, model: torch.nn.Module) -> BaseStates | None:
        """Return the base's states, which a file has or `model`, the base, computes; None where none are needed.

        Weights in 16 bits are those of a base whose states need no more: they are computed as training computes.
        """
        if not self.frozen:
            return None
        kept = getattr(torch, self.tuning.dtype)
        found = BaseStates(model, self.work / STATES, limit=self.execution.pass_tokens)
        with torch.autocast(model.device.type, kept, enabled=self.autocast and kept != torch.float32):
            found.freeze(self.frozen, kept)
        return found

    def loop(self, model: torch.nn.Module, states: BaseStates | None, ranks: Ranks) -> Loop:
        """Return the loop of a model with its adapters, or of one that is sharded among `ranks`."""
        student, fisher = Student.of(model), None
        if self.tuning.ewc_weight is not None:
            fisher = penalties.fisher_of(student, self.pool, world=ranks.world)
        return Loop(
            student, states, self.mixed, tuning=self.tuning, execution=self.execution, autocast=self.autocast,
            label=self.label, fixed=self.fixed, fisher=fisher, ranks=ranks,
        )  # fmt: skip

    def write(self) -> None:
        """Write the file."""
        tensors = {}
        for name, some in (("target", self.mixed.target), ("replay", self.mixed.replay), ("pool", self.pool)):
            tensors[f"{name}.ids"] = torch.tensor([i for s in some for i in s.ids], dtype=torch.int32)
            sizes = [[len(s.ids), s.first] for s in some]
            tensors[f"{name}.sizes"] = torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2)
        if self.fixed:
            tensors["fixed"] = torch.cat([self.fixed[s].cpu() for s in self.mixed.target])
        rest = {
            "folder": str(self.folder), "requested": self.mixed.requested, "shortfall": self.mixed.shortfall,
            "fresh_epochs": self.mixed.fresh_epochs, "tuning": asdict(self.tuning),
            "execution": asdict(self.execution), "autocast": self.autocast, "label": self.label,
        }  # fmt: skip
        with atomic.replacing(self.work / JOB) as part:
            save_file(tensors, part, metadata={"job": json.dumps(rest)})

    @classmethod
    def read(cls, work: Path) -> Job:
        """Read the file in a run's folder."""
        with safe_open(work / JOB, "pt") as file:
            rest: dict[str, Any] = json.loads(file.metadata()["job"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        target, replay, pool = (_sequences(tensors, name) for name in ("target", "replay", "pool"))
        fixed = {}
        if "fixed" in tensors:
            parts = tensors["fixed"].split([s.supervised for s in target])
            fixed = dict(zip(target, parts, strict=True))
        mixed = Mix(target, replay, *(rest.pop(name) for name in ("requested", "shortfall", "fresh_epochs")))
        tuning, execution = Tuning(**rest.pop("tuning")), Execution(**rest.pop("execution"))
        return cls(
            work=work, folder=Path(rest.pop("folder")), mixed=mixed, pool=pool, tuning=tuning, execution=execution,
            fixed=fixed, **rest,
        )  # fmt: skip


def _sequences(tensors: dict[str, Tensor], name: str) -> tuple[Sequence, ...]:
    ids, found, begin = tensors[f"{name}.ids"].tolist(), [], 0
    for length, first in tensors[f"{name}.sizes"].tolist():
        found.append(Sequence(tuple(ids[begin : begin + length]), first))
        begin += length
    return tuple(found)
