"""Parameters by formula are those of the models that transformers makes of the same configuration."""

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from cfutils import paths
from cfutils.errors import UserError
from cfutils.planning import architecture

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
         "intermediate_size": 80, "vocab_size": 100, "max_position_embeddings": 64}  # fmt: skip


def counted(config: dict) -> int:
    """Parameters of the model itself, made without memory."""
    import torch

    kind, values = config["model_type"], {k: v for k, v in config.items() if k != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", architecture.FAMILIES)
def test_parameters_are_those_of_the_model(kind, tied):
    config = {**SMALL, "model_type": kind, "tie_word_embeddings": tied}
    if kind == "qwen3":
        config["head_dim"] = 16  # not hidden_size / num_attention_heads
    assert architecture.from_config(config).parameters == counted(config)


@pytest.mark.parametrize("kind", ["llama", "olmo", "qwen3"])
def test_biases_of_attention_are_counted(kind):
    config = {**SMALL, "model_type": kind, "attention_bias": True, "tie_word_embeddings": True, "head_dim": 8}
    assert architecture.from_config(config).parameters == counted(config)


def test_parameters_worked_by_hand():
    """8 wide, 2 heads of 4, 1 of keys: q 64, k and v 32 each, o 64, MLP 3 x 8 x 16; norms 2 x 8; embedding 32 x 8."""
    shape = architecture.from_config({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 32, "tie_word_embeddings": True,
    })  # fmt: skip
    assert shape.linear == 64 + 32 + 32 + 64 + 384
    assert shape.parameters == 256 + 2 * (576 + 16) + 8
    # rank 2: q 2 x 16, k and v 2 x 12, o 2 x 16, gate, up and down 2 x 24 each, in 2 layers
    assert shape.adapters(2) == 2 * (32 + 24 + 24 + 32 + 48 + 48 + 48)


def test_adapters_are_those_of_peft():
    import torch
    from peft import get_peft_model

    from cfutils.training import adapters

    config = {**SMALL, "model_type": "llama", "tie_word_embeddings": True}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        model = get_peft_model(model, adapters.lora_config(4))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert architecture.from_config(config).adapters(4) == trained


@pytest.mark.parametrize(
    ("base", "parameters"),
    [
        ("shipped:tiny", 1_540_096),  # as data/tiny/pretraining.yaml has counted
        ("asset:smollm2", 134_515_008),
        ("allenai/OLMo-1B-hf", 1_176_764_416),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248),
        ("allenai/OLMo-2-0425-1B", 1_484_916_736),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
    ],
)
def test_known_bases_have_their_published_sizes_without_a_network(base, parameters, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert architecture.read(base).parameters == parameters


def test_sizes_of_the_table_are_those_of_the_models():
    table = yaml.safe_load((paths.data() / "architectures.yaml").read_text(encoding="utf-8"))
    for name, config in table.items():
        assert architecture.from_config(config).parameters == counted(config), name


def test_a_folder_is_read_from_its_config(tiny_base):
    shape = architecture.read(str(tiny_base))
    assert (shape.layers, shape.hidden, shape.source) == (2, 32, "config.json of tiny_base")


def test_an_unknown_kind_is_counted_as_llama_and_says_so():
    shape = architecture.from_config({**SMALL, "model_type": "novel"})
    assert "novel counted as llama's (assumed)" in shape.source


@pytest.mark.parametrize("config", [{"model_type": "novel", **SMALL, "num_experts": 4}, {"model_type": "mamba"}])
def test_what_the_formulas_do_not_hold_for_is_refused(config):
    with pytest.raises(UserError, match=r"cannot be planned.*model_type"):
        architecture.from_config(config)
