"""What is written is read back, whole or not at all."""

from __future__ import annotations

import torch

from cfutils.training import checkpoints


def stepped(seed):
    torch.manual_seed(seed)
    weights = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    optimizer = torch.optim.AdamW(weights, lr=0.1, fused=True)
    for _ in range(3):
        sum(w.square().sum() for w in weights).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights, optimizer


def test_a_restored_loop_goes_on_as_the_first_would(tmp_path):
    """Weights, moments, step and log are back: the next step is the same."""
    path = tmp_path / "checkpoint.safetensors"
    one, two = stepped(0), stepped(1)
    checkpoints.save(path, *one, step=3, log=[{"step": 2, "loss": 0.5}])
    assert checkpoints.restore(path, *two) == (3, [{"step": 2, "loss": 0.5}])
    for weights, optimizer in (one, two):
        sum(w.square().sum() for w in weights).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert not torch.equal(one[0][0], stepped(0)[0][0])


def test_without_a_whole_file_it_starts_from_nothing(tmp_path):
    (tmp_path / "checkpoint.safetensors.part").write_bytes(b"half")
    assert checkpoints.restore(tmp_path / "checkpoint.safetensors", *stepped(0)) == (0, [])
