"""From work to seconds, on a device: products at a share of its peak, then what lies between them, then fixed costs.

The three are added up and not overlapped: operations run one after the other, and each is bound by either products or
memory (the roofline of Williams et al. 2009, operation by operation). In decoding the larger of both counts. Weights
that several devices share are gathered ahead, beside the work; those in the processor's memory are waited for.
"""

from __future__ import annotations

from cfutils.planning.devices import CPU, Device
from cfutils.planning.work import Part, Work

READ, WRITE = 2e9, 0.2e9
"""Bytes of weights that are read from disk in a second, and written, their digest computed, and read back."""
PCIE = 25e9
"""Bytes per second between a device and the processor's memory, in one direction (PCIe 4.0, 16 lanes)."""
LINK_SHARE = 0.7
"""Share of a link's rate that is reached."""


def seconds(work: Work, device: Device, *, over: int = 1) -> float:
    """Return how long a step takes whose passes are shared out over some devices."""
    if not work.parts:
        return 0.0
    fixed = device.efficiency.build + work.loads / READ + work.writes / WRITE + work.starts * device.efficiency.start
    return fixed + sum(part_seconds(part, device) for part in work.parts) / over


def part_seconds(part: Part, device: Device) -> float:
    """Return how long work of one kind takes."""
    how = device.efficiency
    share = how.rows if part.what == "decode" else how.bf16 if part.dtype == "bfloat16" else how.fp32
    products, between = part.flops / (device.peak(part.dtype) * share), part.traffic / (device.bandwidth * how.traffic)
    both = max(products, between) if part.what == "decode" else products + between
    own = max(both + part.layers * how.layer, part.link / (device.link * LINK_SHARE))
    return own + part.host / (PCIE * LINK_SHARE) + part.steps * how.step


def side_by_side(device: Device, *, count: int, each: int, workers: int) -> int:
    """Return how many steps of a kind run at the same time.

    count: devices; each: devices that a step takes; workers: processes that share a processor's cores, where that is
    the device.
    """
    return workers if device.name == CPU else max(1, count // each)
