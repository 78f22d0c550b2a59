"""Everything that decides the outcome of a tuning run, beside base, target and pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cfutils.errors import invalid_value
from cfutils.method import Trained, Weighting


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The numbers of one run; `recipes.tuning` makes them of a plan. Raises `UserError` for parts that do not fit."""

    seed: int
    """Decides the choice and the order of the mix, and the adapters' first weights."""
    lr: float
    """Peak learning rate."""
    epochs: int
    """Passes over the target sequences."""
    batch_size: int
    """Target sequences in one optimiser step."""
    warmup: float
    """Share of the steps in which the learning rate rises."""
    weight_decay: float
    """Decoupled weight decay of AdamW."""
    clip: float
    """Largest norm of the gradient."""
    dtype: str
    """Type of the weights: "float32" or "bfloat16"."""
    autocast: bool | None
    """Compute in bf16 over the weights' type; None does so where the machine has bf16."""
    ratio: float | None
    """Share of replay among the supervised tokens of the mix, in [0, 1); None for no replay."""
    replay_weight: float | None
    """lambda, weight of the replay term; None for no replay."""
    replay_loss: Literal["nll", "kl"]
    """R, what a replay token contributes."""
    train: Trained
    """All weights, or adapters (`adapters`), merged afterwards."""
    l2_weight: float | None
    """Weight of sum (theta - theta_0)^2; None for no penalty."""
    lora_rank: int | None
    """Rank of the adapters; None where there are none."""
    fresh: bool = False
    """Whether each epoch has replay of its own."""
    target: bool = True
    """Whether the target carries loss; if not, it decides the amount and the order of replay alone."""
    weighting: Weighting | None = None
    """Weights of the target's tokens (`weighting`)."""
    weighting_strength: float | None = None
    """Their one number."""
    target_kl: float | None = None
    """Weight of KL(base || tuned) at the target's tokens; None for none."""
    ewc_weight: float | None = None
    """Weight of 1/2 sum F (theta - theta_0)^2; None for none."""
    osf_frozen: float | None = None
    """Share of the singular directions that stay as they are, in (0, 1); None where not `osf` is trained."""

    def __post_init__(self) -> None:
        if (self.weighting is None) != (self.weighting_strength is None):
            raise invalid_value("weighting_strength", self.weighting_strength, "given with weighting alone")
        if (self.train == "osf") != (self.osf_frozen is not None) or not 0 < (self.osf_frozen or 0.5) < 1:
            raise invalid_value("osf_frozen", self.osf_frozen, "a share in (0, 1), for train = 'osf' alone")
        if self.train.startswith("lora") != (self.lora_rank is not None):
            raise invalid_value("lora_rank", self.lora_rank, "given where adapters of low rank are trained alone")


def check_devices(train: Trained, *, devices: int, offload: bool) -> None:
    """Raise `UserError` for what is not trained by several processes, or with weights that are offloaded."""
    if train == "osf" and (devices > 1 or offload):
        name, value, only = ("devices", devices, "1") if devices > 1 else ("offload", offload, "false")
        raise invalid_value(
            name, value, f"{only} for recipes that train 'osf', whose gradients are projected as whole matrices",
            "Leave osf out of recipes, or change the value.",
        )  # fmt: skip
