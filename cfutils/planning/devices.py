"""What a device computes, moves and holds at most: by data sheets (data/devices.yaml), or this machine, measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import yaml

from cfutils import paths
from cfutils.errors import invalid_value
from cfutils.models import precision

CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Share of the peak that is reached, and what a call costs beside its arithmetic."""

    bf16: float
    """Of dense products in bf16."""
    fp32: float
    """Of dense products in fp32."""
    rows: float
    """Of dense products of few rows: a token of each sequence that is decoded."""
    traffic: float
    """Of memory bandwidth, in everything between products (norms, softmax, the optimiser) and in decoding."""
    layer: float
    """Seconds that a layer of a pass takes beside its arithmetic: launches, interpreter."""
    step: float
    """Seconds that a decoding step of vLLM takes beside its arithmetic."""
    build: float
    """Seconds that a step takes beside all else."""
    start: float
    """Seconds that vLLM takes to start."""


GPU_EFFICIENCY = Efficiency(
    bf16=0.55, fp32=0.7, rows=0.4, traffic=0.6, layer=150e-6, step=3e-3, build=10.0, start=60.0
)  # fmt: skip
"""Assumed, not measured: no run of this suite on a GPU is behind it. Products of these shapes reach 50 to 70 % of the
data sheets' rates in PyTorch; with what lies between them tuning is predicted at a fifth to two fifths of the peak in
the sense of PaLM's model FLOPs utilisation (arXiv 2204.02311, appendix B)."""
CPU_EFFICIENCY = Efficiency(
    bf16=0.10, fp32=0.45, rows=0.20, traffic=0.4, layer=300e-6, step=20e-3, build=0.4, start=30.0
)  # fmt: skip
"""Of what this machine's calibration reaches (`measured`); chosen on SmolLM2 alone (figures/bench/planning.csv)."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device. Raises `UserError` for a rate that is not above 0."""

    name: str
    about: str
    bf16: float
    """FLOP/s of dense bf16 products; that of fp32 where there are no such instructions."""
    fp32: float
    """FLOP/s of dense fp32 products."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes per second."""
    link: float
    """Bytes per second to the other devices of the machine, in one direction; that of PCIe where there is no NVLink."""
    price: float
    """US dollars per device and hour."""
    source: str
    efficiency: Efficiency
    reserve: float = 0.0
    """Bytes that no tensor gets: the driver's context, fragmentation."""

    def __post_init__(self) -> None:
        for name in ("bf16", "fp32", "memory", "bandwidth", "link"):
            if not (value := getattr(self, name)) > 0:
                raise invalid_value(f"{name} of {self.name}", value, "above 0")
        if not self.price >= 0:
            raise invalid_value("--price", self.price, "0 or more dollars per device and hour")

    def peak(self, dtype: str) -> float:
        """Return the FLOP/s of dense products in a dtype."""
        return self.bf16 if dtype == "bfloat16" else self.fp32


def names() -> list[str]:
    """Return the names that `get` knows."""
    return [*_table(), CPU]


def get(name: str, *, price: float | None = None, workers: int = 1) -> Device:
    """Return a device by name, upper or lower case; "cpu" is this machine's, measured now (a second).

    price: dollars per device and hour in place of the example; workers: processes that share a processor's cores, of
    which the device is the share of one. Raises `UserError` for an unknown name.
    """
    if name.lower() == CPU:
        return measured(price or 0.0, threads=max(1, len(os.sched_getaffinity(0)) // workers))
    found = {key.lower(): key for key in _table()}
    if name.lower() not in found:
        raise invalid_value("--gpu", name, "one of " + ", ".join(names()), "Others can be added to data/devices.yaml.")
    key = found[name.lower()]
    row = _table()[key]
    memory = row["memory"] * 2**30
    return Device(
        name=key, about=row["about"], bf16=row["bf16"] * 1e12, fp32=row["fp32"] * 1e12, memory=memory,
        bandwidth=row["bandwidth"] * 1e9, link=row["link"] * 1e9, price=row["price"] if price is None else price,
        source=row["source"], efficiency=GPU_EFFICIENCY, reserve=1.5 * 2**30 + 0.05 * memory,
    )  # fmt: skip


def _table() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((paths.data() / "devices.yaml").read_text(encoding="utf-8"))


def measured(price: float = 0.0, *, threads: int) -> Device:
    """Measure this machine's processor: the best of some products of 1024 x 1024, and of some copies of 128 MB.

    Measured on one thread by the processor's own clock, so that other work counts little, and multiplied by the number
    of threads; bandwidth by two at most.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        has = precision.bf16()[0]
        fp32 = threads * 2 * 1024**3 / _product_seconds(torch.float32)
        bf16 = threads * 2 * 1024**3 / _product_seconds(torch.bfloat16) if has else fp32
        source, copy = torch.ones(2**25), torch.empty(2**25)
        copy.copy_(source)  # its pages exist only then
        bandwidth = min(threads, 2) * 2 * source.nbytes / _best(lambda: copy.copy_(source))
    finally:
        torch.set_num_threads(before)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        name=CPU, about=f"this processor, {threads} thread{'s' if threads > 1 else ''}", bf16=bf16, fp32=fp32,
        memory=memory, bandwidth=bandwidth, link=bandwidth, price=price, source="measured now",
        efficiency=CPU_EFFICIENCY, reserve=1.5e9,
    )  # fmt: skip


def _product_seconds(dtype: Any) -> float:
    import torch

    left = torch.ones(1024, 1024).to(dtype)
    return _best(lambda: left @ left)


def _best(call: Any, times: int = 7) -> float:
    found = []
    for _ in range(times):
        clock = time.thread_time()
        call()
        found.append(time.thread_time() - clock)
    return min(found)
