"""The table of fine-tuning methods (recipes), and the studies that compare them.

A recipe is composed, not subclassed: replay source x replay loss x trained weights x penalty x averaging.
A new method is a new row of the table. A `Plan` is one recipe with every number that decides one run of
it; numbers that a recipe does not use stay None, so that runs which cannot differ are one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from cfutils.errors import invalid_value

if TYPE_CHECKING:
    from cfutils.profiles import Profile  # which takes the recipes' names from here


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fine-tuning method: one row of the table."""

    name: str
    label: str
    """Name in figures and tables."""
    about: str
    """One sentence: what the method does, and its source."""
    replay: Literal["context_free", "contextual", "text", "pretraining"] | None = None
    """Source of the sequences that are mixed with the target's; None for no replay."""
    replay_loss: Literal["nll", "kl"] = "nll"
    """Next-token NLL of the sequence, or full-vocabulary KL(base || tuned) on it."""
    train: Literal["all", "lora"] = "all"
    """All weights, or low-rank adapters on all linear layers, merged afterwards."""
    l2: bool = False
    """Whether sum (theta - theta_0)^2 is penalised."""
    average: bool = False
    """Whether the weights of a run of `ft` are averaged with the base's afterwards, at each alpha."""


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
    """One run: a recipe and the numbers that decide it; None for a number that it does not use."""

    recipe: str
    seed: int
    lr: float
    """Peak learning rate."""
    temperature: float | None
    """Generation temperature of the replay samples."""
    ratio: float | None
    """Share of replay in the final mix, counted in tokens that carry loss; in (0, 1)."""
    replay_weight: float | None
    """lambda, weight of the replay term."""
    alpha: float | None = None
    """Share of the tuned weights in the average with the base's, in [0, 1]."""

    def settings(self) -> dict[str, Any]:
        """Return the columns that identify a run in tidy frames."""
        return asdict(self)

    @property
    def label(self) -> str:
        """The run in progress lines, "cfs seed=0 T=1 ratio=0.5" for example."""
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
    """Return a recipe by name; raises `UserError` with the list of names."""
    if name not in RECIPES:
        raise invalid_value("recipe", name, "one of " + ", ".join(RECIPES))
    return RECIPES[name]


def plan(profile: Profile, recipe: str, *, seed: int, **changes: Any) -> Plan:
    """Return one run of a recipe, with the profile's numbers or those that `changes` put in their place.

    lambda defaults to ratio / (1 - ratio), the weight at which every token of the mix counts alike.
    Raises `UserError` for an unknown recipe and for a change that the profile does not allow.
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
    """Return the runs of one recipe: one, or one for each alpha of WiSE-FT."""
    one = plan(profile, recipe, seed=seed, **changes)
    if not get(recipe).average:
        return [one]
    return [Plan(**{**asdict(one), "alpha": alpha}) for alpha in profile.alphas]


def _grid(
    profile: Profile, names: tuple[str, ...], seeds: tuple[int, ...] | None = None, **axes: tuple
) -> list[Plan]:
    found = [
        one
        for seed, name, values in product(seeds or profile.seeds, names, product(*axes.values()))
        for one in plans(profile, name, seed=seed, **dict(zip(axes, values, strict=True)))
    ]
    return list(dict.fromkeys(found))


def _ablation(profile: Profile, **axis: tuple) -> list[Plan]:
    """Plain fine-tuning beside the ablated recipes at every value of one setting."""
    seeds = profile.ablation_seeds
    return [
        *_grid(profile, ("ft",), seeds), *_grid(profile, profile.ablation_recipes, seeds, **axis)
    ]  # fmt: skip


STUDIES: dict[str, Callable[[Profile], list[Plan]]] = {
    "base": lambda p: [],  # the base is scored in every study
    "learning_rate": lambda p: _grid(p, ("ft",), lr=p.lrs),
    "methods": lambda p: _grid(p, p.recipes),
    "temperature": lambda p: _ablation(p, temperature=p.temperatures),
    "ratio": lambda p: _ablation(p, ratio=p.ratios),
    "weight": lambda p: _ablation(p, replay_weight=p.replay_weights),
}
"""Sets of runs that are compared, by name; notebooks name theirs in their metadata."""

GROUPS: dict[str, tuple[str, ...]] = {"learning_rate": ("target",)}
"""Groups of scores of studies that do not need all: the learning rate is chosen by target score alone."""


def study(profile: Profile, name: str) -> list[Plan]:
    """Return a study's runs, each once; raises `UserError` for an unknown study."""
    if name not in STUDIES:
        raise invalid_value("study", name, "one of " + ", ".join(STUDIES))
    return list(dict.fromkeys(STUDIES[name](profile)))
