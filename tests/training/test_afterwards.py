"""What is done with finished weights: averages and intruder dimensions, by hand."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from cfutils.models import loading, tokenizers
from cfutils.training import adapters, afterwards

NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "alpha, expected", [(0.0, [1.0, -2.0]), (0.25, [1.5, -1.0]), (0.5, [2, 0]), (1.0, [3.0, 2.0])]
)
def test_interpolation_by_hand(alpha, expected):
    """(1 - alpha) (1, -2) + alpha (3, 2) = (1 + 2 alpha, -2 + 4 alpha)."""
    base, other = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    base.weight.data, other.weight.data = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 2.0]])
    afterwards.interpolate(base, other, alpha=alpha)
    assert base.weight.tolist() == [expected]
    assert other.weight.tolist() == [[3.0, 2.0]]


@pytest.fixture
def changed(tiny_base, tmp_path):
    """A folder whose first q_proj is the base's plus a given matrix."""

    def make(change):
        model = loading.load(tiny_base, dtype="float32")
        with torch.no_grad():
            model.get_parameter(NAME).add_(change)
        folder = tmp_path / "tuned"
        model.save_pretrained(folder)
        return folder

    return make


def test_averaged_weights_lie_between(tiny_base, changed, tmp_path):
    tuned = changed(torch.ones(32, 32))
    (tmp_path / "mean").mkdir()
    afterwards.average(tmp_path / "mean", tiny_base, tuned, alpha=0.25, dtype="float32")
    base, found = (load_file(f / "model.safetensors") for f in (tiny_base, tmp_path / "mean"))
    torch.testing.assert_close(found[NAME], base[NAME] + 0.25)
    assert all(torch.equal(found[k], base[k]) for k in base if k != NAME)
    assert tokenizers.load_tokenizer(tmp_path / "mean").eos_token == "<|endoftext|>"


def test_merged_adapters_are_found_again(tiny_base):
    """A change of rank 2 by adapters of rank 4, exactly; the others' is zero."""
    torch.manual_seed(0)
    model = loading.load(tiny_base, dtype="float32")
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    wanted[NAME] += 0.1 * torch.randn(32, 2) @ torch.randn(2, 32)
    model = get_peft_model(model, adapters.lora_config(4))
    afterwards.set_adapters(model, wanted)
    merged = dict(model.merge_and_unload().named_parameters())
    for name, weight in wanted.items():
        torch.testing.assert_close(merged[name], weight, atol=1e-5, rtol=1e-4)


def test_an_intruder_by_hand(tiny_base, changed, tmp_path):
    """A change along an equal mixture of the base's left directions, 50 times as large as the base itself.

    Its cosine with each of them is 1/sqrt(32) = 0.18 < 1/2: one intruder. kept = 1/4 leaves a quarter of its size,
    kept = 0 nothing of it.
    """
    base = load_file(tiny_base / "model.safetensors")
    u, s, v = torch.linalg.svd(base[NAME])
    left, right = u @ torch.full((32,), 32**-0.5), v[0]
    tuned = changed(50 * s[0] * torch.outer(left, right))
    found = {}
    for kept in (1.0, 0.25, 0.0):
        out = tmp_path / f"kept{kept}"
        out.mkdir()
        notes = afterwards.reduce_intruders(out, tiny_base, tuned, rank=4, kept=kept, dtype="float32")
        assert notes["intruders"] == 1
        found[kept] = load_file(out / "model.safetensors")
        assert all(torch.allclose(found[kept][k], base[k], atol=1e-4) for k in base if k != NAME)
    whole = load_file(tuned / "model.safetensors")[NAME]
    torch.testing.assert_close(found[1.0][NAME], whole, atol=1e-3, rtol=1e-3)
    norms = {kept: torch.linalg.matrix_norm(one[NAME], 2) for kept, one in found.items()}
    assert norms[0.25] == pytest.approx(0.25 * norms[1.0].item(), rel=0.02)
    assert norms[0.0] < 1.5 * s[0]


def test_nothing_is_reduced_where_there_is_no_intruder(tiny_base, changed, tmp_path):
    """A change along the base's own first directions: cosines stay 1."""
    base = load_file(tiny_base / "model.safetensors")
    u, s, v = torch.linalg.svd(base[NAME])
    tuned = changed(0.1 * s[0] * torch.outer(u[:, 0], v[0]))
    (tmp_path / "out").mkdir()
    notes = afterwards.reduce_intruders(tmp_path / "out", tiny_base, tuned, rank=4, kept=0.0, dtype="float32")
    assert notes["intruders"] == 0
    found, whole = (load_file(f / "model.safetensors") for f in (tmp_path / "out", tuned))
    torch.testing.assert_close(found[NAME], whole[NAME], atol=1e-5, rtol=1e-4)
