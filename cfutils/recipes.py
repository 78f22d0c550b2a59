"""The table of fine-tuning methods, and the studies that compare them.

A recipe is composed, not subclassed: replay source x replay loss x what is trained x penalty x what is
done afterwards. A new method is a new row. A `Plan` is one recipe with every number that decides one
run of it; numbers that a recipe does not use stay None, so that runs which cannot differ are one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

from cfutils.errors import bad
from cfutils.profiles import Profile


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a fine-tuning method is."""

    name: str
    label: str
    """Its name in figures and tables."""
    about: str
    """One sentence: what is done, and the source."""
    replay: Literal["context_free", "contextual", "text", "pretraining"] | None = None
    """Where the sequences come from that are mixed into the target's."""
    replay_loss: Literal["nll", "kl"] = "nll"
    """Next-token NLL of the sequence, or full-vocabulary KL(base || tuned) on it."""
    train: Literal["all", "lora"] = "all"
    """All weights, or low-rank adapters on all linear layers, merged afterwards."""
    l2: bool = False
    """Whether sum (theta - theta_0)^2 is penalised."""
    average: bool = False
    """Whether weights are averaged with the base's afterwards (a run of `ft`, at each alpha)."""


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(name="ft", label="Plain fine-tuning",
               about="NLL of the target's responses, all weights."),
        Recipe(name="cfs", label="Context-free NLL", replay="context_free",
               about="NLL on samples drawn from the start token alone (arXiv 2505.13811)."),
        Recipe(name="cf_kl", label="Context-free KL", replay="context_free", replay_loss="kl",
               about="Full-vocabulary KL(base || tuned) on the same samples."),
        Recipe(name="contextual", label="Contextual NLL", replay="contextual",
               about="NLL on the base's own continuations of target prompts."),
        Recipe(name="replay_text", label="Text replay", replay="text",
               about="NLL on real prose of the kind that a base is pretrained on."),
        Recipe(name="pretraining", label="Pretraining replay", replay="pretraining",
               about="NLL on true documents of the base's pretraining, where they are known."),
        Recipe(name="l2", label="L2 to base", l2=True,
               about="Plain fine-tuning with lambda * sum (theta - theta_0)^2."),
        Recipe(name="lora", label="LoRA", train="lora",
               about="Low-rank adapters on all linear layers (arXiv 2106.09685), merged."),
        Recipe(name="wise_ft", label="WiSE-FT", average=True,
               about="(1 - alpha) theta_0 + alpha theta_ft (arXiv 2109.01903), a curve over alpha."),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run: a recipe and the numbers that decide it."""

    recipe: str
    seed: int
    lr: float
    temperature: float | None
    ratio: float | None
    replay_weight: float | None
    alpha: float | None = None

    def settings(self) -> dict[str, Any]:
        """The columns by which a run is known in tidy frames."""
        return asdict(self)

    @property
    def label(self) -> str:
        """The run as a person reads it in progress lines."""
        marks = {
            "T": self.temperature,
            "ratio": self.ratio,
            "λ": self.replay_weight,
            "α": self.alpha,
            "lr": self.lr,
        }
        text = " ".join(f"{k}={v:g}" for k, v in marks.items() if v is not None)
        return f"{self.recipe} seed={self.seed} {text}"


def get(name: str) -> Recipe:
    """Return a recipe by name; raises `UserError` with the list."""
    if name not in RECIPES:
        raise bad("recipe", name, "one of " + ", ".join(RECIPES))
    return RECIPES[name]


def plan(profile: Profile, recipe: str, *, seed: int, **changes: Any) -> Plan:
    """Resolve one recipe to the numbers of one run: the profile's, with `changes` on top.

    lambda defaults to ratio / (1 - ratio), the weight at which every token of the mix counts alike.
    """
    row, p = get(recipe), profile.change(**changes)
    sampled = row.replay in ("context_free", "contextual")
    own = p.recipe_lr
    lr = changes.get("lr") or own.get(recipe, own.get("ft", p.lr) if row.average else p.lr)
    if row.replay and p.ratio == 0:  # no replay is plain fine-tuning, and is the same run
        return plan(profile, "ft", seed=seed, lr=lr)
    return Plan(
        recipe=recipe,
        seed=seed,
        lr=lr,
        temperature=p.temperature if sampled else None,
        ratio=p.ratio if row.replay else None,
        replay_weight=(
            round(p.ratio / (1 - p.ratio), 9) if p.replay_weight is None else p.replay_weight
        )
        if row.replay
        else None,
    )


def plans(profile: Profile, recipe: str, *, seed: int, **changes: Any) -> list[Plan]:
    """Return the runs that one recipe stands for: one, or one for each alpha of WiSE-FT."""
    one = plan(profile, recipe, seed=seed, **changes)
    if not get(recipe).average:
        return [one]
    return [Plan(**{**asdict(one), "alpha": alpha}) for alpha in profile.alphas]


def _grid(profile: Profile, names: tuple[str, ...], **axes: tuple) -> list[Plan]:
    found = [
        one
        for seed, name, values in product(profile.seeds, names, product(*axes.values()))
        for one in plans(profile, name, seed=seed, **dict(zip(axes, values, strict=True)))
    ]
    return list(dict.fromkeys(found))


STUDIES: dict[str, Callable[[Profile], list[Plan]]] = {
    "base": lambda p: [],  # the base is scored in every study
    "learning_rate": lambda p: _grid(p, ("ft",), lr=p.lrs),
    "methods": lambda p: _grid(p, p.recipes),
    "temperature": lambda p: (
        _grid(p, ("ft",)) + _grid(p, p.ablation_recipes, temperature=p.temperatures)
    ),
    "ratio": lambda p: _grid(p, ("ft",)) + _grid(p, p.ablation_recipes, ratio=p.ratios),
    "weight": lambda p: (
        _grid(p, ("ft",)) + _grid(p, p.ablation_recipes, replay_weight=p.replay_weights)
    ),
}
"""Sets of runs that are compared, by name; what `cfutils run --dry-run` and the notebooks go by."""

GROUPS: dict[str, tuple[str, ...]] = {"learning_rate": ("target",)}
"""Score groups of studies that need fewer than all: the learning rate is chosen by target alone."""


def study(profile: Profile, name: str) -> list[Plan]:
    """Return a study's runs, without doubles; raises `UserError` for an unknown study or recipe."""
    if name not in STUDIES:
        raise bad("study", name, "one of " + ", ".join(STUDIES))
    for recipe in (
        *profile.recipes, *profile.ablation_recipes, *profile.recipe_lr, *profile.estimated
    ):  # fmt: skip
        get(recipe)
    return list(dict.fromkeys(STUDIES[name](profile)))
