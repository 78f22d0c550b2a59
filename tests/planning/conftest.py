"""A shape, a device and a setting with round numbers, to be worked by hand."""

from dataclasses import replace

import pytest

from cfutils import profiles
from cfutils.planning import architecture, devices, workloads
from cfutils.planning.devices import Device, Efficiency
from cfutils.planning.setting import Setting


@pytest.fixture
def shape():
    """8 wide, 2 layers, 2 heads of 4, one of keys, MLP of 16, 32 tokens of vocabulary, tied: `linear` is 576."""
    return architecture.from_config({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 32, "tie_word_embeddings": True,
    })  # fmt: skip


@pytest.fixture
def device():
    """1 GFLOP/s in bf16, a tenth in fp32, 1 GB/s, 1 GB; half of each is reached."""
    half = Efficiency(bf16=0.5, fp32=0.5, rows=0.5, traffic=0.5, layer=0.0, step=0.0, build=0.0, start=0.0)
    return Device(name="X", about="", bf16=1e9, fp32=1e8, memory=1e9, bandwidth=1e9, link=1e9, price=2.0, source="",
                  efficiency=half)  # fmt: skip


@pytest.fixture
def setting(shape, device):
    """The tiny profile's settings on that shape: target items of 10 tokens, 4 of which carry loss."""
    profile = profiles.load("tiny", pass_tokens=64, batch_size=4, autocast=True)
    found = Setting.of(profile, shape, device)
    target = workloads.Target(tokens=10.0, supervised=4.0, spread=0.0)
    return replace(found, target=target)


@pytest.fixture
def h100():
    """A data sheet's device."""
    return devices.get("h100")
