"""What is trained where not all weights are."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

from cfutils.errors import UserError
from cfutils.models import loading
from cfutils.training import adapters, afterwards
from cfutils.training.settings import Tuning

NAME = "model.layers.0.self_attn.k_proj.weight"

SETTINGS = {
    "seed": 0, "lr": 1e-3, "epochs": 1, "batch_size": 2, "warmup": 0.1, "weight_decay": 0.0, "clip": 1.0,
    "dtype": "float32", "autocast": False, "ratio": None, "replay_weight": None, "replay_loss": "nll",
    "train": "all", "l2_weight": None, "lora_rank": None,
}  # fmt: skip


def wrapped(tiny_base, **changes):
    model = loading.load(tiny_base, dtype="float32")
    return adapters.wrap(model, Tuning(**{**SETTINGS, **changes}))


@pytest.fixture
def random_lora(tiny_base):
    """The tiny base with adapters of rank 4 that change it."""
    model = wrapped(tiny_base, train="lora", lora_rank=4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    return model


def test_layers_of_mlps_are_found_by_their_module(tiny_base):
    """gate, up and down of each of 2 blocks."""
    found = adapters.mlp_layers(loading.load(tiny_base, dtype="float32"))
    assert len(found) == 6 and all(".mlp." in name for name in found)
    with pytest.raises(UserError, match="leave lora_mlp out of recipes"):
        adapters.mlp_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_adapters_of_mlps_change_mlps_alone(tiny_base):
    model = wrapped(tiny_base, train="lora_mlp", lora_rank=4)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 12 and all(".mlp." in name for name in trained)


def test_osf_trains_the_low_directions_and_leaves_the_high_ones(tiny_base):
    """k_proj is 16 x 32: of 16 singular directions a quarter, 4, is frozen, 12 are trained.

    After a step along random gradients the top 4 left and right directions are still mapped as before.
    """
    base = load_file(tiny_base / "model.safetensors")[NAME]
    model = wrapped(tiny_base, train="osf", osf_frozen=0.25)
    start = dict(model.named_parameters())
    names = [n for n, p in start.items() if p.requires_grad and "layers.0.self_attn.k_proj" in n]
    assert sorted((n.rsplit(".", 1)[1], tuple(start[n].shape)) for n in names) == [
        ("S_low", (12,)), ("U_low", (16, 12)), ("V_low", (12, 32))
    ]  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    model(torch.tensor([[5, 6, 7, 8]])).logits.square().mean().backward()
    torch.optim.SGD(trained, lr=1e-2).step()
    after = model.merge_and_unload().state_dict()[NAME]
    assert (after - base).abs().max() > 1e-4
    u, s, v = torch.linalg.svd(base, full_matrices=False)
    torch.testing.assert_close(u[:, :4].T @ after, s[:4, None] * v[:4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after @ v[:4].T, u[:, :4] * s[:4], atol=1e-4, rtol=1e-4)


def test_adapters_are_written_before_they_are_merged(tiny_base, random_lora, tmp_path):
    """peft loads them onto the base; its merged weights, and those returned, are the same."""
    merged = adapters.merge(random_lora, tmp_path / "adapter").state_dict()
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [adapters.CONFIG, adapters.WEIGHTS]
    loaded = PeftModel.from_pretrained(loading.load(tiny_base, dtype="float32"), tmp_path / "adapter")
    assert loaded.peft_config["default"].base_model_name_or_path == str(tiny_base)
    assert len(load_file(tmp_path / "adapter" / adapters.WEIGHTS)) == 2 * 7 * 2  # A and B of 7 layers of 2 blocks
    again = loaded.merge_and_unload().state_dict()
    assert all(torch.equal(merged[name], again[name]) for name in merged)


def test_a_share_of_adapters_is_the_average_with_the_base(tiny_base, random_lora, tmp_path):
    tuned = adapters.merge(random_lora, tmp_path / "tuned" / adapters.FOLDER)
    tuned.save_pretrained(tmp_path / "tuned")
    (tmp_path / "mean").mkdir()
    afterwards.average(tmp_path / "mean", tiny_base, tmp_path / "tuned", alpha=0.3, dtype="float32")
    base = loading.load(tiny_base, dtype="float32")
    found = PeftModel.from_pretrained(base, tmp_path / "mean" / adapters.FOLDER).merge_and_unload().state_dict()
    wanted = load_file(tmp_path / "mean" / "model.safetensors")
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(wanted[NAME], load_file(tiny_base / "model.safetensors")[NAME], atol=1e-2)


def test_a_model_without_room_for_adapters_is_refused_before_anything_is_trained(tiny_base):
    """peft refuses out_proj of Mamba, whose kernel reads the matrix itself."""
    config = MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"MambaForCausalLM takes no adapters on all its linear layers .*'out_proj'"):
        adapters.check(MambaForCausalLM(config))
    model = loading.load(tiny_base, dtype="float32")
    adapters.check(model)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("changes, match", [
    ({"train": "osf"}, "osf_frozen = None"), ({"train": "osf", "osf_frozen": 1.0}, "osf_frozen = 1.0"),
    ({"osf_frozen": 0.5}, "osf_frozen = 0.5"), ({"train": "lora"}, "lora_rank = None"),
    ({"lora_rank": 4}, "lora_rank = 4"), ({"weighting": "flow"}, "weighting_strength = None"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        Tuning(**{**SETTINGS, **changes})
