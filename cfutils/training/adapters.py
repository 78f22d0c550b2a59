"""What is trained where not all weights are: peft's adapters, merged after the run."""

from __future__ import annotations

import torch
from torch import nn

from cfutils.errors import UserError
from cfutils.training.settings import Tuning

MLP = ("mlp", "feed_forward", "ffn", "experts", "block_sparse_moe")
"""Names of the modules that hold a block's MLP, by architecture."""


def wrap(model: nn.Module, tuning: Tuning) -> nn.Module:
    """Return the model with the adapters that a run trains, or as it is where all weights are trained.

    lora: rank r, alpha = r, on all linear layers but the last (adapters on q and v alone are the weak baseline of
    sail-sg/sdft#15). lora_mlp: on those of the MLPs alone. osf: the smaller singular directions of every linear
    layer are trained, the largest share stays and gradients are kept orthogonal to it (arXiv 2504.07097).
    """
    if tuning.train == "all":
        return model
    from peft import OSFConfig, get_peft_model

    if tuning.train == "osf":
        config = OSFConfig(
            effective_rank=tuning.osf_frozen, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    else:
        modules = mlp_layers(model) if tuning.train == "lora_mlp" else "all-linear"
        config = lora_config(tuning.lora_rank, modules)
    with torch.random.fork_rng():
        torch.manual_seed(tuning.seed)
        return get_peft_model(model, config)


def lora_config(rank: int, modules: list[str] | str = "all-linear"):
    """Return peft's configuration of adapters of a rank; their scale is 1."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, task_type="CAUSAL_LM")


def mlp_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers inside MLPs; raises `UserError` if there are none."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and set(name.split(".")[:-1]) & set(MLP)
    ]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no linear layer in a module named {', '.join(MLP)}: leave lora_mlp "
            "out of recipes"
        )
    return found
