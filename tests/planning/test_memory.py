"""What a layer keeps is what autograd keeps; parts of a peak, worked by hand."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cfutils.data.sequences import Sequence
from cfutils.evaluation import lm_eval_model, probes
from cfutils.models import lm_head, packing
from cfutils.models.generation import vllm_engine
from cfutils.planning import architecture, memory, work
from cfutils.training import adapters, penalties

CONFIG = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 256,
          "vocab_size": 128, "max_position_embeddings": 256}  # fmt: skip
RANK = 8


def kept_by_autograd(kind: str, *, layers: int, dtype: torch.dtype, autocast: bool, rank: int | None) -> float:
    """Bytes of activations, for each of 128 tokens, that a forward pass keeps for its backward pass."""
    config = AutoConfig.for_model(kind, num_hidden_layers=layers, **CONFIG)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    if rank:
        from peft import get_peft_model

        model = get_peft_model(model, adapters.lora_config(rank))
    packing.prepare(model)
    found = packing.documents([Sequence(tuple(range(5, 70)), 1)] * 2, torch.device("cpu"))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes, alive = {}, []

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # else its place is given to another
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t), torch.autocast("cpu", enabled=autocast):
        packing.last_hidden(model.train(), found.packed)
    return sum(sizes.values()) / found.packed.ids.shape[1]


@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize(("weight", "compute"), [(4, 4), (4, 2), (2, 2)])
@pytest.mark.parametrize("kind", ["llama", "olmo"])
def test_a_layer_keeps_what_autograd_keeps(kind, weight, compute, rank):
    """To the byte: the difference between four layers and two, less the copies of weights that autocast makes."""
    dtype, autocast = {4: torch.float32, 2: torch.bfloat16}[weight], weight != compute
    both = [kept_by_autograd(kind, layers=n, dtype=dtype, autocast=autocast, rank=rank) for n in (2, 4)]
    shape = architecture.from_config({**CONFIG, "model_type": kind, "num_hidden_layers": 1})
    copies = 2 * (shape.linear + (shape.adapters(rank) if rank else 0)) / 128 if autocast else 0
    expected = memory.activations(shape, weight=weight, compute=compute, rank=rank)
    assert (both[1] - both[0]) / 2 - copies == expected


def test_numbers_that_stand_here_too_are_those_of_the_code():
    assert memory.LOGIT_ROWS == lm_head.LOGIT_ROWS
    assert memory.CPU_CACHE == vllm_engine.CPU_CACHE_BYTES
    theirs = (lm_eval_model.VLLM_MIN_TOKENS, probes.TIMED, penalties.FISHER_SEQUENCES)
    assert theirs == (work.VLLM_FROM, work.TIMED, work.FISHER)


def step_params(**changes):
    """A run's parameters, as far as memory depends on them."""
    tuning = {"batch_size": 4, "ratio": None, "l2_weight": None, "replay_loss": "nll", "lora_rank": None}
    return {"tuning": tuning | changes}


def test_parts_of_tuning_worked_by_hand(setting):
    """1,448 weights of 4 bytes; a pass of 4 items of 10 tokens, which is more than half of pass_tokens = 64."""
    found = memory.tuning(step_params(), setting)
    assert found["weights"] == found["gradients"] == 4 * 1448
    assert found["moments of AdamW"] == 2 * 4 * 1448
    layer = memory.activations(setting.shape, weight=4, compute=2)
    assert found["activations"] == layer * 2 * 32
    assert found["bf16 copies of the weights"] == 2 * 2 * 576
    assert found["last matrix"] == 2 * 4 * 256 + 2 * 256
    assert found["logits"] == 6 * 4 * 128 * 32
    assert "reference of the penalty" not in found and "last matrix of the base" not in found


def test_penalties_and_the_kl_hold_more(setting):
    assert memory.tuning(step_params(l2_weight=0.1), setting)["reference of the penalty"] == 4 * 1448
    assert memory.tuning(step_params(ewc_weight=1.0), setting)["reference of the penalty"] == 2 * 4 * 1448
    assert memory.tuning(step_params(ratio=0.5, replay_loss="kl"), setting)["last matrix of the base"] == 4 * 256


def test_adapters_have_gradients_and_moments_alone(setting):
    found = memory.tuning(step_params(lora_rank=2), setting)
    n = setting.shape.adapters(2)
    assert found["weights"] == 4 * (1448 + n)
    assert found["gradients"] == 4 * n
    assert found["moments of AdamW"] == 2 * 4 * n


def test_recomputed_activations_are_one_layers_and_the_states_between_layers(setting):
    again = replace(setting, profile=setting.profile.change(gradient_checkpointing=True))
    layer = memory.activations(setting.shape, weight=4, compute=2)
    assert memory.tuning(step_params(), again)["activations"] == (layer + 2 * 8 * 4) * 32


def test_devices_share_weights_gradients_and_moments_and_gather_two_blocks(setting):
    shared = memory.tuning(step_params(), replace(setting, profile=setting.profile.change(devices=4)))
    alone = memory.tuning(step_params(), setting)
    for name in ("weights", "gradients", "moments of AdamW"):
        assert shared[name] == alone[name] / 4
    assert shared["gathered weights"] == 4 * (2 * 576 + 2 * 256)  # and the embedding with its gradient
    offloaded = memory.tuning(step_params(), replace(setting, profile=setting.profile.change(offload=True)))
    assert "moments of AdamW" not in offloaded


def test_an_engine_holds_weights_keys_and_values_and_no_more_than_there_is_room_for(setting):
    """16 sequences of 10 tokens: 2 layers x (keys and values) of 4 numbers of 4 bytes each, for every token."""
    found = memory.decoding(setting, n=16, length=10)
    assert found["keys and values"] == 16 * 10 * 2 * 2 * 4 * 4
    full = replace(setting, device=replace(setting.device, memory=20_000.0))
    assert memory.total(memory.decoding(full, n=100_000, length=10)) <= 20_000
