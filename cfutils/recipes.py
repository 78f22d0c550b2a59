"""The table of fine-tuning methods (recipes), and the studies that compare them.

A recipe is composed, not subclassed: target token weighting x replay source x replay loss x trained weights x
penalty x what is done after (`method.Recipe`). A new method is a new row of the table (`register`). A `Plan` is one
recipe with every number that decides one run of it; numbers that a recipe does not use stay None, so that runs
which cannot differ are one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from cfutils.errors import invalid_value
from cfutils.method import OF_THE_RUN, SAMPLED, Knob, Recipe, Trained

if TYPE_CHECKING:
    from cfutils.profiles import Profile  # which takes the recipes' names from here

RATE = Knob(name="lr", label="learning rate", factors=(0.1, 0.3, 1.0))
REPLAY = Knob(name="replay_weight", label="weight of replay, λ", factors=(0.25, 1.0, 4.0))
ALPHA = Knob(name="alpha", label="share of tuned weights, α", factors=(0.6, 1.0, 1.4))
HALF = 0.5
"""WiSE-FT's default alpha (the value of FLOW's comparison, arXiv 2502.02797)."""


def _rank(default: float) -> Knob:
    return Knob(name="lora_rank", label="rank", default=default, factors=(0.25, 1.0, 4.0))


def _weighting(label: str, default: float, factors: tuple[float, ...] = (0.5, 1.0, 2.0)) -> Knob:
    return Knob(name="weighting_strength", label=label, default=default, factors=factors)


def _rate_share(default: float, factors: tuple[float, ...]) -> Knob:
    return Knob(name="lr_share", label="learning rate / that of ft", default=default, factors=factors)


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(name="ft", label="Plain fine-tuning", knob=RATE,
               about="NLL of the target's responses, all weights."),
        Recipe(name="cfs", label="Context-free NLL", replay=("context_free",), knob=REPLAY,
               about="NLL on samples drawn from the start token alone (arXiv 2505.13811)."),
        Recipe(name="cf_kl", label="Context-free KL", replay=("context_free",), replay_loss="kl", knob=REPLAY,
               about="Full-vocabulary KL(base || tuned) on the same samples."),
        Recipe(name="contextual", label="Contextual NLL", replay=("contextual",), knob=REPLAY,
               about="NLL on the base's own continuations of target prompts."),
        Recipe(name="replay_text", label="Text replay", replay=("text",), knob=REPLAY,
               about="NLL on real prose of the kind that a base is pretrained on."),
        Recipe(name="pretraining", label="Pretraining replay", replay=("pretraining",), knob=REPLAY,
               about="NLL on true documents of the base's pretraining, where they are known."),
        Recipe(name="l2", label="L2 to base", penalty="l2",
               knob=Knob(name="l2_weight", label="weight of L2", default=1e-2, factors=(0.1, 1.0, 10.0)),
               about="Plain fine-tuning with lambda * sum (theta - theta_0)^2."),
        Recipe(name="lora", label="LoRA", train="lora", knob=_rank(64),
               about="Low-rank adapters on all linear layers (arXiv 2106.09685), merged."),
        Recipe(name="wise_ft", label="WiSE-FT", after="average", of="ft", knob=ALPHA,
               about="(1 - alpha) theta_0 + alpha theta_ft (arXiv 2109.01903), a curve over alpha."),
        Recipe(name="cf_kl_fresh", label="Context-free KL, fresh", replay=("context_free",), replay_loss="kl",
               fresh=True, knob=REPLAY,
               about="Context-free KL whose samples are never seen twice (as in arXiv 2605.26097)."),
        Recipe(name="template_prefix", label="Template-prefix NLL", replay=("template_prefix",), knob=REPLAY,
               about="NLL on the base's own user turns and answers, drawn from its chat template's header of a user "
                     "turn (Magpie, arXiv 2406.08464)."),
        Recipe(name="mixed", label="Context-free + template NLL", replay=("context_free", "template_prefix"),
               knob=REPLAY, about="NLL on context-free and template-prefix samples, half of the tokens each."),
        Recipe(name="mixed_kl", label="Context-free + template KL", replay=("context_free", "template_prefix"),
               replay_loss="kl", knob=REPLAY, about="Full-vocabulary KL(base || tuned) on those samples."),
        Recipe(name="kl_target", label="KL on target", target_kl=True,
               knob=Knob(name="target_kl", label="weight of KL on target", default=1.0, factors=(0.25, 1.0, 4.0)),
               about="KL(base || tuned) at the target's own tokens beside their NLL (kl_dwn of arXiv 2605.26097)."),
        Recipe(name="ewc", label="EWC", penalty="ewc",
               knob=Knob(name="ewc_weight", label="weight of EWC", default=100.0, factors=(0.1, 1.0, 10.0)),
               about="lambda/2 * sum F (theta - theta_0)^2, F the diagonal Fisher of context-free samples "
                     "(arXiv 1612.00796, without its data)."),
        Recipe(name="flow", label="FLOW", weighting="flow", knob=_weighting("temperature / median loss", 1.0),
               about="Weight exp(-l/tau) of a target item, l its mean NLL under the base, tau their median "
                     "(arXiv 2502.02797)."),
        Recipe(name="stm", label="STM", weighting="stm", knob=_weighting("perplexity limit", 2.5, (1.0, 4.0, 16.0)),
               about="Target tokens whose perplexity under the base is above 2.5 carry no loss (arXiv 2501.14315)."),
        Recipe(name="talr", label="TALR", weighting="talr", knob=_weighting("temperature / median loss", 1.0),
               about="Token weight p^(1/tau), p detached, tau the median loss of the step's items "
                     "(arXiv 2509.20758)."),
        Recipe(name="eaft", label="EAFT", weighting="eaft", knob=_weighting("exponent", 1.0),
               about="Token weight entropy of the 20 likeliest tokens / 3 (arXiv 2601.02151)."),
        Recipe(name="dft", label="DFT", weighting="dft", knob=_weighting("exponent", 1.0),
               about="Token weight p, detached (arXiv 2508.05629)."),
        Recipe(name="asft", label="ASFT", weighting="dft", target_kl=True,
               knob=Knob(name="target_kl", label="weight of KL on target", default=0.05, factors=(0.2, 1.0, 5.0)),
               about="DFT with 0.05 KL(base || tuned) at the target's tokens (arXiv 2509.23753)."),
        Recipe(name="lora_mlp", label="LoRA on MLPs", train="lora_mlp", knob=_rank(64),
               about="Low-rank adapters on the linear layers of MLPs alone (peft's MetaMathQA comparison), merged."),
        Recipe(name="lora_decay", label="LoRA + decay", train="lora",
               knob=Knob(name="weight_decay", label="weight decay", default=0.3, factors=(0.1, 1.0, 10.0)),
               about="LoRA whose adapters have a decoupled weight decay of 0.3."),
        Recipe(name="osf", label="OSF", train="osf",
               knob=Knob(name="osf_frozen", label="share of directions frozen", default=0.5,
                         factors=(0.5, 1.0, 1.8)),
               about="Only the low singular directions of linear layers are trained (arXiv 2504.07097, peft)."),
        Recipe(name="lora_reduced", label="LoRA, intruders reduced", after="reduce_intruders", of="lora",
               knob=Knob(name="kept", label="share of intruders kept", default=0.75, factors=(0.0, 0.5, 1.0)),
               about="LoRA whose new leading singular directions are shrunk afterwards (arXiv 2410.21228, peft)."),
        Recipe(name="self_distilled", label="Self-distilled target", rewritten=True, knob=RATE,
               about="The base rewrites the responses; the original stays where the final answer changed "
                     "(SDFT, arXiv 2402.13669)."),
        Recipe(name="recover", label="Recovery distillation", replay=("tuned",), replay_loss="kl", target=False,
               after="recover", of="ft",
               knob=_rate_share(0.3, (0.3, 1.0, 3.0)),
               about="Plain fine-tuning, then KL(base || tuned) on the tuned model's own samples without the target "
                     "(after tinker-cookbook's recovery recipe, which is on-policy)."),
        Recipe(name="cf_kl_eaft", label="Context-free KL + EAFT", replay=("context_free",), replay_loss="kl",
               weighting="eaft", knob=REPLAY, about="The sum of both: one acts on replay, the other on the target."),
        Recipe(name="cf_kl_average", label="Context-free KL + WiSE-FT", after="average", of="cf_kl", knob=ALPHA,
               about="(1 - alpha) theta_0 + alpha theta of context-free KL, a curve over alpha."),
        Recipe(name="replay_only", label="Context-free NLL alone", replay=("context_free",), target=False, knob=RATE,
               about="Control: the replay of context-free NLL in the same order and amount, without the target."),
        Recipe(name="replay_only_text", label="Text replay alone", replay=("text",), target=False, knob=RATE,
               about="Control: the same of text replay."),
        Recipe(name="low_lr", label="Plain fine-tuning, low rate", knob=_rate_share(0.25, (0.4, 1.0, 2.0)),
               about="Plain fine-tuning at a quarter of the learning rate: what any other cure has to beat."),
    )
}  # fmt: skip


def register(recipe: Recipe) -> None:
    """Add a row to the table of this process; raises `UserError` if the name is taken."""
    if recipe.name in RECIPES:
        raise invalid_value("name", recipe.name, "a name that no recipe has")
    RECIPES[recipe.name] = recipe


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
    strength: float | None = None
    """The recipe's own knob, where that is none of those above: weight of a penalty, rank, threshold, ..."""

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
            "s": self.strength,
            "lr": self.lr,
        }
        text = " ".join(f"{k}={v:g}" for k, v in marks.items() if v is not None)
        return f"{self.recipe} seed={self.seed} {text}"


def get(name: str) -> Recipe:
    """Return a recipe by name; raises `UserError` with the list of names."""
    if name not in RECIPES:
        raise invalid_value("recipe", name, "one of " + ", ".join(RECIPES))
    return RECIPES[name]


def own_strength(profile: Profile, recipe: str) -> float | None:
    """Return the value of a recipe's own knob, the profile's or the row's default; None where it has none.

    Raises `UserError` for a rank below 1.
    """
    knob = get(recipe).knob
    if knob.name in OF_THE_RUN:
        return None
    value = profile.strengths.get(recipe, knob.default)
    if knob.name == "lora_rank" and value < 1:
        raise invalid_value(f"strengths[{recipe!r}]", value, "a rank of 1 or more")
    return value


def trained(profile: Profile, row: Recipe) -> Trained:
    """Return what a recipe trains: what its row says, or adapters where the profile has them in place of all weights.

    Raises `UserError` for a row whose weights a profile's adapters cannot stand for.
    """
    if profile.train == "all":
        return row.train
    if row.train != "all" or row.penalty:
        raise invalid_value("train", profile.train, f"'all' for recipe {row.name}", "Or leave the recipe out.")
    return profile.train


def rate(profile: Profile, recipe: str) -> float:
    """Return a recipe's peak learning rate: its own, that of the run it begins with, of LoRA, or of all."""
    row = get(recipe)
    adapted = trained(profile, get(row.of) if row.of else row) in ("lora", "lora_mlp")
    owners = (recipe, row.of, "lora" if adapted else None)
    return next((profile.recipe_lr[name] for name in owners if name in profile.recipe_lr), profile.lr)


def plan(
    profile: Profile, recipe: str, *, seed: int, alpha: float | None = None,
    strength: float | None = None, **changes: Any,
) -> Plan:  # fmt: skip
    """Return one run of a recipe, with the profile's numbers or those that `changes` put in their place.

    lambda defaults to ratio / (1 - ratio), the weight at which every token of the mix counts alike. At ratio 0 a
    recipe that differs from `ft` in its replay alone is `ft`. Raises `UserError` for an unknown recipe, for a change
    that the profile does not allow, and for ratio 0 of any other recipe with replay.
    """
    row, p = get(recipe), profile.change(**changes)
    lr = changes.get("lr") or rate(p, recipe)
    mixes = get(row.of) if row.of and not row.replay else row
    if mixes.replay and p.ratio == 0:  # no replay is plain fine-tuning, and is the same run
        if any(getattr(row, part) != getattr(RECIPES["ft"], part) for part in _BESIDE_REPLAY):
            raise invalid_value("ratio", 0.0, f"above 0 for recipe {recipe}")
        return plan(profile, "ft", seed=seed, lr=lr)
    return Plan(
        recipe=recipe,
        seed=seed,
        lr=lr,
        temperature=p.temperature if set(mixes.replay) & set(SAMPLED) else None,
        ratio=p.ratio if mixes.replay else None,
        replay_weight=_replay_weight(p) if mixes.replay else None,
        alpha=alpha,
        strength=own_strength(p, recipe) if strength is None else strength,
    )


_BESIDE_REPLAY = ("target", "rewritten", "weighting", "target_kl", "penalty", "train", "after")


def _replay_weight(p: Profile) -> float:
    return round(p.ratio / (1 - p.ratio), 9) if p.replay_weight is None else p.replay_weight


def plans(profile: Profile, recipe: str, *, seed: int, **changes: Any) -> list[Plan]:
    """Return the runs of one recipe: one, or one for each alpha of an average with the base."""
    if get(recipe).after != "average":
        return [plan(profile, recipe, seed=seed, **changes)]
    return [plan(profile, recipe, seed=seed, alpha=alpha, **changes) for alpha in profile.alphas]


def before(profile: Profile, one: Plan) -> Plan:
    """Return the run that a recipe with an `after` begins with."""
    name = get(one.recipe).of
    first = replace(one, recipe=name, alpha=None, strength=own_strength(profile, name))
    return first if get(name).replay else replace(first, temperature=None, ratio=None, replay_weight=None)


TUNING = ("dtype", "autocast", "epochs", "batch_size", "warmup", "weight_decay", "clip")
"""Profile values that decide every tuning run."""


def tuning(profile: Profile, one: Plan) -> dict[str, Any]:
    """Return the settings of a run's training (`training.settings.Tuning`), which its key is made of.

    Settings that came with later recipes are there only where they are used: earlier keys stay.
    """
    row = get(one.recipe)
    train = trained(profile, row)

    def number(name: str, owner: str) -> Any:
        return one.strength if row.knob.name == name else own_strength(profile, owner)

    found = {
        "seed": one.seed, "lr": one.lr, "ratio": one.ratio, "replay_weight": one.replay_weight,
        **{name: getattr(profile, name) for name in TUNING},
        "replay_loss": row.replay_loss, "train": train,
        "l2_weight": number("l2_weight", "l2") if row.penalty == "l2" else None,
        "lora_rank": round(number("lora_rank", "lora")) if train in ("lora", "lora_mlp") else None,
    }  # fmt: skip
    if row.knob.name == "weight_decay":
        found["weight_decay"] = one.strength
    if row.knob.name == "lr_share":
        found["lr"] = times(one.lr, one.strength)
    if row.fresh and profile.epochs > 1:  # in one epoch no sample is seen twice anyway
        found["fresh"] = True
    if not row.target:
        found["target"] = False
    if row.weighting:
        found["weighting"] = row.weighting
        found["weighting_strength"] = number("weighting_strength", row.weighting)
    if row.target_kl:
        found["target_kl"] = number("target_kl", "kl_target")
    if row.penalty == "ewc":
        found["ewc_weight"] = number("ewc_weight", "ewc")
    if row.train == "osf":
        found["osf_frozen"] = number("osf_frozen", "osf")
    return found


def times(value: float, factor: float) -> float:
    """Return a product with six significant digits, so that equal points of two grids are one run."""
    return float(f"{value * factor:.6g}")


def grid(profile: Profile, recipe: str, *, seed: int, lr_factor: float = 1.0) -> Iterator[Plan]:
    """Yield a recipe's runs at every value of its knob, at its learning rate times a factor."""
    knob, lr = get(recipe).knob, times(rate(profile, recipe), lr_factor)
    default = {"lr": lr, "replay_weight": _replay_weight(profile), "alpha": HALF}
    middle = default.get(knob.name, own_strength(profile, recipe))
    for factor in knob.factors:
        value = times(middle, factor)
        if knob.name == "lora_rank":
            value = max(1.0, round(value))
        name = knob.name if knob.name in OF_THE_RUN else "strength"
        yield plan(profile, recipe, seed=seed, **{"lr": lr, name: value})


def with_rates(profile: Profile, rates: Mapping[str, float]) -> Profile:
    """Return the profile with learning rates chosen for some recipes."""
    return profile.change(recipe_lr={**profile.recipe_lr, **rates})


def _each(
    profile: Profile, names: tuple[str, ...], seeds: tuple[int, ...] | None = None, **axes: tuple
) -> list[Plan]:
    return [
        one
        for seed, name, values in product(seeds or profile.seeds, names, product(*axes.values()))
        for one in plans(profile, name, seed=seed, **dict(zip(axes, values, strict=True)))
    ]


def _ablation(profile: Profile, **axis: tuple) -> list[Plan]:
    """Plain fine-tuning beside the ablated recipes at every value of one setting."""
    seeds = profile.ablation_seeds
    return [
        *_each(profile, ("ft",), seeds), *_each(profile, profile.ablation_recipes, seeds, **axis)
    ]  # fmt: skip


def _grids(profile: Profile, seeds: tuple[int, ...], factors: tuple[float, ...] = (1.0,)) -> list[Plan]:
    return [
        one
        for seed, name, factor in product(seeds, profile.recipes, factors)
        for one in grid(profile, name, seed=seed, lr_factor=factor)
    ]


STUDIES: dict[str, Callable[[Profile], list[Plan]]] = {
    "base": lambda p: [],  # the base is scored in every study
    "learning_rate": lambda p: _each(p, ("ft",), p.selection_seeds, lr=p.lrs),
    "methods": lambda p: _each(p, p.recipes),
    "temperature": lambda p: _ablation(p, temperature=p.temperatures),
    "ratio": lambda p: _ablation(p, ratio=p.ratios),
    "weight": lambda p: _ablation(p, replay_weight=p.replay_weights),
    "selection": lambda p: _grids(p, p.selection_seeds, p.lr_factors),
    "frontier": lambda p: _grids(p, p.seeds),  # at the learning rates that the selection chose (`Lab.choice`)
}
"""Sets of runs that are compared, by name; notebooks name theirs in their metadata."""

GROUPS: dict[str, tuple[str, ...]] = dict.fromkeys(("learning_rate", "selection"), ("validation",))
"""Groups of scores of studies that do not need all: learning rates are chosen by validation items alone."""
GRIDS = ("selection", "frontier")
"""Studies of so many runs that only their scores are kept at hand, not the training logs."""


def study(profile: Profile, name: str) -> list[Plan]:
    """Return a study's runs, each once; raises `UserError` for an unknown study."""
    if name not in STUDIES:
        raise invalid_value("study", name, "one of " + ", ".join(STUDIES))
    return list(dict.fromkeys(STUDIES[name](profile)))
