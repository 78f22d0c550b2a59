"""What is written is read back, whole or not at all."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from cfutils.training import checkpoints
from cfutils.training.distributed import Ranks

ALONE = Ranks(torch.device("cpu"))


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
    checkpoints.save(path, *one, ALONE, step=3, log=[{"step": 2, "loss": 0.5}])
    assert checkpoints.restore(path, *two, ALONE) == (3, [{"step": 2, "loss": 0.5}])
    for weights, optimizer in (one, two):
        sum(w.square().sum() for w in weights).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert not torch.equal(one[0][0], stepped(0)[0][0])


def test_without_a_whole_file_it_starts_from_nothing(tmp_path):
    (tmp_path / "checkpoint.safetensors.part").write_bytes(b"half")
    assert checkpoints.restore(tmp_path / "checkpoint.safetensors", *stepped(0), ALONE) == (0, [])


def shares(weights, rank, world):
    """A share of the rows of each tensor, as FSDP 2 divides them: 3 rows are 2 and 1, 4 rows 2 and 2."""
    return [w.detach().chunk(world)[rank] for w in weights]


def test_shares_of_two_processes_are_read_by_one(tmp_path):
    """What two processes have written, file by file, is whole again; a share of another step does not count."""
    path, (weights, optimizer) = tmp_path / "checkpoint.safetensors", stepped(0)
    meta = {"step": "3", "log": "[]", "world": "2"}
    for rank, name in enumerate(("checkpoint.safetensors", "checkpoint.3.1of2.safetensors")):
        tensors = {f"p{i}": part.clone() for i, part in enumerate(shares(weights, rank, 2))}
        for k in ("exp_avg", "exp_avg_sq"):
            parts = shares([optimizer.state[w][k] for w in weights], rank, 2)
            tensors |= {f"{k}{i}": part.clone() for i, part in enumerate(parts)}
        tensors |= {f"step{i}": optimizer.state[w]["step"].clone() for i, w in enumerate(weights)}
        save_file(tensors, tmp_path / name, metadata=meta)
    (tmp_path / "checkpoint.7.1of2.safetensors").write_bytes(b"half")
    two = stepped(1)
    assert checkpoints.restore(path, *two, ALONE) == (3, [])
    for one, other in zip(weights, two[0], strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(optimizer.state[one][k], two[1].state[other][k]) for k in checkpoints.MOMENTS)
    checkpoints.save(path, *two, ALONE, step=4, log=[])
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"], "older shares are removed"
