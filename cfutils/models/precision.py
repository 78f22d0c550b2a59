"""Whether this machine computes in bf16: decided once, with the reason, before anything heavy is loaded."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

BF16 = {"amx_bf16", "avx512_bf16"}
"""Processor flags of instructions for bf16; without them it is slower than fp32."""
AMPERE = 8
"""Compute capability of the first NVIDIA GPUs with bf16."""


@functools.cache
def bf16() -> tuple[bool, str]:
    """Return whether tuning runs in bf16 autocast here, and why."""
    if (capability := _cuda_capability()) is not None:
        has = capability >= AMPERE
        return has, f"the GPU's compute capability is {capability}: bf16 {'from' if has else 'needs'} 8 on"
    found = sorted(BF16 & _flags())
    if found:
        return True, f"the processor has {', '.join(found)}"
    return False, "no GPU of NVIDIA's, and the processor has neither amx_bf16 nor avx512_bf16"


def autocast(asked: bool | None) -> bool:
    """Return whether tuning runs in bf16 autocast: as asked, or where this machine has bf16."""
    return bf16()[0] if asked is None else asked


def _flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return set()
    return set(text.partition("flags")[2].partition("\n")[0].split())


def _cuda_capability() -> int | None:
    """Ask the driver (torch would take seconds to import); None without a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    major_version = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    return None if cuda.cuDeviceGetAttribute(ctypes.byref(major), major_version, device) else major.value
