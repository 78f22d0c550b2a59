"""Types of a profile's values, with their limits: what pydantic checks each value against."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from cfutils.recipes import RECIPES

T = TypeVar("T")


def _text(value: str) -> str:
    value.encode()  # refuses half a surrogate pair
    if "\0" in value:
        raise ValueError("a null byte")
    return value


def _name(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("not printable, or spaces at an end")
    return value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _different(values: tuple) -> tuple:
    if len(set(values)) < len(values):
        raise ValueError("a value occurs twice")
    return values


Text = Annotated[
    str, Field(min_length=1, max_length=1000, description="no null bytes"), AfterValidator(_text)
]
Name = Annotated[
    str,
    Field(min_length=1, max_length=1000, description="printable, without spaces at the ends"),
    AfterValidator(_name),
]
FileName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        pattern=r"^\w[\w .+=,@-]*$",
        description="a letter, a digit or _ first, then also spaces and . + = , @ -",
    ),
]
"""Name of a profile, and of the folders of its figures and results."""


def _recipe(name: str) -> str:
    if name not in RECIPES:
        raise ValueError("not a recipe")
    return name


RecipeName = Annotated[str, Field(json_schema_extra={"format": "recipe"}), AfterValidator(_recipe)]
"""A row of the table of recipes, as it is when a profile is made: rows can be added (`recipes.register`)."""
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Several = Annotated[
    tuple[T, ...],
    Field(min_length=1, max_length=100, fail_fast=True),
    BeforeValidator(_tuple),
    AfterValidator(_different),
]
"""Different values, one at least: an empty list would make an empty figure."""
NotebookNumber = Annotated[str, Field(pattern=r"^\d\d$", description="two digits in quotes, such as \"03\"")]
Items = Annotated[int, Field(ge=1, le=10_000_000)]
Samples = Annotated[int, Field(ge=1, le=1_000_000)]
"""One set of samples has a million seeds (`generation.sampling.SEED_BLOCK`)."""
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Temperature = Annotated[
    float, Field(gt=0, le=2, description="1.0 samples the base's own distribution")
]
Ratio = Annotated[
    float, Field(ge=0, lt=1, description="0.5 takes as many replay tokens as target tokens")
]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Weight = Annotated[float, Field(ge=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1_000_000)]
Factor = Annotated[float, Field(gt=0, le=1000)]
