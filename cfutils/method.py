"""What a fine-tuning method is made of: the columns of the table in `recipes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cfutils.errors import invalid_value

Source = Literal["context_free", "contextual", "template_prefix", "text", "pretraining", "tuned"]
"""Where replay comes from: samples of the base given its start token alone, target prompts or a chat template's
header of a user turn; real prose; documents of the base's pretraining; samples of the tuned model itself."""
SAMPLED = ("context_free", "contextual", "template_prefix", "tuned")
"""Sources that are drawn at a temperature."""
Weighting = Literal["flow", "stm", "talr", "eaft", "dft"]
"""Weights of target tokens (`training.weighting`)."""
Trained = Literal["all", "lora", "lora_mlp", "osf"]
"""All weights; low-rank adapters on all linear layers, or on those of the MLP; low singular directions."""
OF_THE_RUN = ("lr", "replay_weight", "alpha")
"""Knobs that a plan has a column of their own for; any other one is its `strength`."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """The one number of a method, beside the learning rate, that moves it between target and retained scores."""

    name: str
    """lr, replay_weight, alpha, or the number of the tuning run (or of what comes after it) that it sets."""
    label: str
    """Name in figures and tables."""
    default: float | None = None
    """Its value unless the profile names another; None where profile and plan have one (`OF_THE_RUN`)."""
    factors: tuple[float, ...]
    """What the default is multiplied by on the frontier: as many values for each method."""

    def __post_init__(self) -> None:
        if (self.default is None) != (self.name in OF_THE_RUN):
            raise invalid_value("default", self.default, f"None for {', '.join(OF_THE_RUN)}, else a number")
        if not self.factors or min(self.factors) < 0 or len(set(self.factors)) < len(self.factors):
            raise invalid_value("factors", self.factors, "different numbers from 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fine-tuning method: one row of the table. Raises `UserError` for parts that do not fit together."""

    name: str
    label: str
    """Name in figures and tables."""
    about: str
    """One sentence: what the method does, and its source."""
    replay: tuple[Source, ...] = ()
    """Sources of the sequences mixed with the target's, in equal numbers of tokens; () for no replay."""
    replay_loss: Literal["nll", "kl"] = "nll"
    """Next-token NLL of the sequence, or full-vocabulary KL(base || tuned) on it."""
    fresh: bool = False
    """Whether every epoch has replay of its own, so that no sample is seen twice."""
    target: bool = True
    """Whether the target is trained on; without it, replay alone is, in the same order and amount."""
    rewritten: bool = False
    """Whether the base first rewrites the target's responses in its own words."""
    weighting: Weighting | None = None
    """Weights of the target's tokens; None for equal ones."""
    target_kl: bool = False
    """Whether KL(base || tuned) at the target's tokens is penalised."""
    penalty: Literal["l2", "ewc"] | None = None
    """sum (theta - theta_0)^2, or the same weighted by the diagonal Fisher of context-free samples."""
    train: Trained = "all"
    after: Literal["average", "reduce_intruders", "recover"] | None = None
    """What is done with a finished run `of` another recipe: its weights are averaged with the base's at each
    alpha, intruder dimensions of its adapters are reduced, or it is distilled from the base on its own samples."""
    of: str | None = None
    knob: Knob

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise invalid_value("name", self.name, "letters, digits and _")
        if unknown := set(self.replay) - set(get_args(Source)):
            raise invalid_value("replay", sorted(unknown), "of " + ", ".join(get_args(Source)))
        for field, kind in (("weighting", Weighting), ("train", Trained)):
            if (value := getattr(self, field)) not in (*get_args(kind), None):
                raise invalid_value(field, value, "one of " + ", ".join(get_args(kind)))
        if (self.after is None) != (self.of is None):
            raise invalid_value("of", self.of, "the name of a recipe where there is an `after`, else None")
        if not self.replay and (self.fresh or self.replay_loss == "kl" or not self.target):
            raise invalid_value("replay", self.replay, "a source, for a recipe that trains on replay")
