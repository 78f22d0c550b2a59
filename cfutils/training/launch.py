"""Starting the processes of a training run with torchrun, and ending them; what they have to say comes back as lines.

They are processes of their own, so a notebook's kernel, papermill's and a pool's worker start them alike. All of them
hold one end of a pipe, their standard input, and end when it closes: with this process, however that ends.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import torch

from cfutils import display
from cfutils.errors import UserError, invalid_value
from cfutils.events import say
from cfutils.profiles import Execution
from cfutils.training import settings, worker
from cfutils.training.job import JOB, Job

ERRORS = "stderr.txt"
"""What the processes, and torchrun, write to standard error."""
SECONDS = 10
"""How long processes that are to end have for it."""


def wanted(execution: Execution) -> bool:
    """Whether a run is trained by processes of its own."""
    return execution.devices > 1 or execution.offload


def check(job: Job) -> None:
    """Raise `UserError` for a run that cannot be trained so, here or anywhere."""
    devices = job.execution.devices
    settings.check_devices(job.tuning.train, devices=devices, offload=job.execution.offload)
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise invalid_value(
            "devices", devices, f"at most {torch.cuda.device_count()} GPUs are seen here", "Lower devices."
        )


def train(job: Job) -> None:
    """Train until the end; the result is the checkpoint that the processes leave.

    Raises their `UserError`, one of its own where one was killed, and `RuntimeError` with the traceback of the first
    for anything else.
    """
    job.write()
    _remove_failures(job.work)
    devices = job.execution.devices
    env = {key: value for key, value in os.environ.items() if key != "CFUTILS_EVENTS"}
    env |= {**display.environment(), display.PARENT: str(os.getpid())}
    if not torch.cuda.is_available():
        env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // devices))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
        f"--nproc-per-node={devices}", "--monitor-interval=0.5", "-m", worker.__name__, str(job.work),
    ]  # fmt: skip
    with open(job.work / ERRORS, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            encoding="utf-8", start_new_session=True,
        )  # fmt: skip
    lines = threading.Thread(target=_repeat, args=(process,), daemon=True)
    lines.start()
    try:
        code = process.wait()
    finally:
        _end(process)
        lines.join(SECONDS)
    if code:
        _fail(job.work)
    for name in (JOB, ERRORS):
        (job.work / name).unlink()


def _repeat(process: subprocess.Popen) -> None:
    """Print the first process's lines; library code that writes to a terminal's standard output has none here."""
    for line in process.stdout:
        say(line.rstrip("\n"))


def _end(process: subprocess.Popen) -> None:
    """End the processes, if any is left: they end when their standard input closes, and torchrun with them."""
    process.stdin.close()
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _remove_failures(work: Path) -> None:
    for path in work.glob(worker.FAILURE.format(rank="*")):
        path.unlink()


def _fail(work: Path) -> NoReturn:
    """Raise what the first process that failed has left; the others fail because it is gone."""
    paths = sorted(work.glob(worker.FAILURE.format(rank="*")), key=lambda path: path.stat().st_mtime_ns)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    _remove_failures(work)
    for one in found:
        if one["user"]:
            raise UserError(one["text"])
    # a process that a signal ended comes first (15 is torchrun's own): the others lost the connection to it
    killed = re.search(r"exitcode\s*: (-(?!15\b)\d+)", (work / ERRORS).read_text(encoding="utf-8"))
    if found and not killed:
        raise RuntimeError(f"a training process has failed:\n{found[0]['text']}")
    code = f" (exit code {killed[1]})" if killed else ""
    raise UserError(
        f"a training process was killed{code}, for want of memory perhaps. What was trained until the last checkpoint "
        "stays: give the same command again, with a smaller pass_tokens, gradient_checkpointing, offload or more "
        "devices if it happens twice."
    )
