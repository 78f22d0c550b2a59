"""One of the processes of a training run, started by `launch` through torchrun: `python -m cfutils.training.worker`."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path

import torch.distributed as dist

from cfutils import atomic, display
from cfutils.errors import UserError
from cfutils.models import loading
from cfutils.training import adapters, distributed
from cfutils.training.distributed import Ranks
from cfutils.training.job import CHECKPOINT, Job
from cfutils.training.student import Student

FAILURE = "failure.{rank}.json"
"""Why a process has ended: {"user": whether a user can fix it, "text": the message, or else the traceback}."""


def main(work: Path) -> int:
    """Train until the end; return an exit code."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    rank = int(os.environ["LOCAL_RANK"])
    if rank:  # one process reports
        os.environ.pop(display.VARIABLE, None)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    try:
        _train(Job.read(work), distributed.join())
    except Exception as error:
        user = isinstance(error, UserError)
        text = str(error) if user else traceback.format_exc()
        atomic.write_text(work / FAILURE.format(rank=rank), json.dumps({"user": user, "text": text}))
        return 1
    dist.destroy_process_group()
    return 0


def _train(job: Job, ranks: Ranks) -> None:
    """Load, shard, and run the loop, whose last checkpoint is the result."""
    for turn in range(ranks.world):  # a whole model in the processor's memory, once at a time
        if turn == ranks.rank:
            model = loading.load(
                job.folder, dtype="float32", trust_remote_code=job.execution.trust_remote_code,
                on=loading.PROCESSOR,
            )  # fmt: skip
            states = job.states(model)
            student = Student(adapters.wrap(model, job.tuning))
            ranks.shard(student, offload=job.execution.offload)
        ranks.wait()
    if states is not None:
        states.head.to(ranks.device)
    job.loop(student, states, ranks).run(job.work / CHECKPOINT)


def _end_with_starter() -> None:
    """End this process with the one that has started the run: it holds the other end of the standard input."""
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
