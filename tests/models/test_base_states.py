"""States are those of the base, wherever they are kept, and stay so when its model is trained."""

from __future__ import annotations

import pytest
import torch

from cfutils.data.sequences import Sequence
from cfutils.models import loading, packing
from cfutils.models.base_states import BaseStates

SEQUENCES = [Sequence((0, 5, 6, 7, 8), 1), Sequence((9, 10, 11), 2), Sequence((3, 4, 5, 6), 1)]


@pytest.fixture
def base(tiny_base):
    return loading.load(tiny_base, dtype="float32")


def plain(model, sequences):
    """States that predict supervised tokens, by one pass per sequence without padding."""
    with torch.no_grad():
        return torch.cat([
            model.model(torch.tensor([s.ids])).last_hidden_state[0, s.first - 1 : -1] for s in sequences
        ])  # fmt: skip


@pytest.mark.parametrize("limit", [1, 8, 64])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_states_equal_a_plain_pass(base, tmp_path, where, limit):
    path = tmp_path / "states.safetensors" if where == "file" else None
    states = BaseStates(base, path, limit=limit)
    if path:
        states.freeze(SEQUENCES)
    order = [SEQUENCES[2], SEQUENCES[0], SEQUENCES[2]]
    torch.testing.assert_close(states.hidden(order), plain(base, order), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_frozen_states_and_logits_outlive_a_change_of_the_weights(base, tmp_path, where):
    path = tmp_path / "states.safetensors" if where == "file" else None
    expected = plain(base, SEQUENCES)
    with torch.no_grad():
        logits = base.lm_head(expected)
    states = BaseStates(base, path, limit=64)
    states.freeze([*SEQUENCES, SEQUENCES[0]])
    with torch.no_grad():
        for p in base.parameters():
            p.add_(1)
    found = states.hidden(SEQUENCES)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states.head(found), logits, atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in states.head.parameters())
    assert all(p.requires_grad for p in base.parameters())


def test_a_file_of_an_interrupted_run_is_used(base, tmp_path, monkeypatch):
    path = tmp_path / "states.safetensors"
    one = BaseStates(base, path, limit=64)
    one.freeze(SEQUENCES)
    monkeypatch.setattr(packing, "last_hidden", lambda *_: pytest.fail("computed again"))
    two = BaseStates(base, path, limit=64)
    two.freeze(SEQUENCES)
    assert torch.equal(one.hidden(SEQUENCES), two.hidden(SEQUENCES))
    assert [p.name for p in tmp_path.iterdir()] == ["states.safetensors"]
