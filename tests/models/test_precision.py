"""Who computes in bf16, and the reason that is shown."""

from __future__ import annotations

import pytest

from cfutils.models import precision


@pytest.mark.parametrize(
    "capability, flags, has, reason",
    [
        (None, {"avx2"}, False, "neither amx_bf16 nor avx512_bf16"),
        (None, {"avx2", "avx512_bf16"}, True, "the processor has avx512_bf16"),
        (None, {"amx_bf16", "avx512_bf16"}, True, "the processor has amx_bf16, avx512_bf16"),
        (9, set(), True, "compute capability is 9"),
        (7, {"avx512_bf16"}, False, "compute capability is 7"),  # the GPU computes, not the processor
    ],
)
def test_the_reason(monkeypatch, capability, flags, has, reason):
    monkeypatch.setattr(precision, "_cuda_capability", lambda: capability)
    monkeypatch.setattr(precision, "_flags", lambda: flags)
    precision.bf16.cache_clear()
    found, why = precision.bf16()
    precision.bf16.cache_clear()
    assert found is has and reason in why
