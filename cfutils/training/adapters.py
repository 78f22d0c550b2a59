"""What is trained where not all weights are: peft's adapters, merged after the run and, of low rank, kept beside it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cfutils.errors import UserError
from cfutils.training.settings import Tuning

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel

MLP = ("mlp", "feed_forward", "ffn", "experts", "block_sparse_moe")
"""Names of the modules that hold a block's MLP, by architecture."""
FOLDER = "adapter"
"""Where a run of low rank has its adapters, below its merged weights."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Their files, as peft names them."""


def wrap(model: nn.Module, tuning: Tuning) -> nn.Module:
    """Return the model with the adapters that a run trains, or as it is where all weights are trained.

    lora: rank r, alpha = r, on all linear layers but the last (adapters on q and v alone are the weak baseline of
    sail-sg/sdft#15). lora_mlp: on those of the MLPs alone. osf: the smaller singular directions of every linear
    layer are trained, the largest share stays and gradients are kept orthogonal to it (arXiv 2504.07097).

    Raises `UserError` for an architecture that peft cannot put adapters on all linear layers of (Mamba).
    """
    if tuning.train == "all":
        return model
    from peft import OSFConfig

    if tuning.train == "osf":
        config = OSFConfig(
            effective_rank=tuning.osf_frozen, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    else:
        modules = mlp_layers(model) if tuning.train == "lora_mlp" else "all-linear"
        config = lora_config(tuning.lora_rank, modules)
    with torch.random.fork_rng():
        torch.manual_seed(tuning.seed)
        return _adapted(model, config)


def check(model: nn.Module) -> None:
    """Raise the `UserError` that `wrap` would raise for LoRA; the model stays as it is."""
    with torch.device("meta"):
        _adapted(type(model)(copy.deepcopy(model.config)), lora_config(1))


def _adapted(model: nn.Module, config: PeftConfig) -> PeftModel:
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"{type(model).__name__} takes no adapters on all its linear layers ({str(error).split('. ')[0]}): train "
            "all weights, without --lora and without recipes that train adapters"
        ) from error


def merge(model: PeftModel, folder: Path) -> nn.Module:
    """Return a model with its adapters merged; those of low rank are first written to `folder`, in peft's format."""
    if any(config.peft_type == "LORA" for config in model.peft_config.values()):
        model.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the hub for the base's vocabulary
        (folder / "README.md").unlink()  # a form to be filled in
    return model.merge_and_unload()


def scale(source: Path, folder: Path, *, share: float) -> None:
    """Write adapters whose change of the weights is a share of that of other adapters."""
    folder.mkdir(exist_ok=True)
    shutil.copy(source / CONFIG, folder)
    tensors = load_file(source / WEIGHTS)
    save_file({k: share * v if "lora_B" in k else v for k, v in tensors.items()}, folder / WEIGHTS)


def lora_config(rank: int, modules: list[str] | str = "all-linear") -> LoraConfig:
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
