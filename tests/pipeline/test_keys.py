"""Key completeness: every value of a profile decides keys, or is stated to decide no result."""

from __future__ import annotations

import dataclasses

import pytest

from cfutils import recipes
from cfutils.pipeline.steps import Steps, all_steps
from cfutils.pipeline.store import Store
from cfutils.profiles import Execution, Profile, load

ABOUT = {"name", "about", "notebooks", "workers", "keep_weights"}
"""Fields that neither decide a result nor how one artifact is built."""
BOTH = {"engine", "chunk"}
"""Fields of `Execution` that decide samples too: each chunk of an engine's call has its own seed."""
EXECUTION = {f.name for f in dataclasses.fields(Execution)} - BOTH
THINKING = {"think_budget", "answers_per_item", "answer_temperature", "answer_top_p"}
"""Fields of a base that thinks."""
STUDIES = (*recipes.STUDIES, "samples", "mixture", "estimates")
CHANGES = {
    "base": "asset:smollm2", "start_token": "<|end|>", "chat_template": True, "dtype": "bfloat16",
    "autocast": True, "trust_remote_code": True, "engine": "vllm", "temperature": 0.9, "target": "descend",
    "recipe_lr": {"cfs": 1e-4}, "strengths": {"l2": 0.5}, "lr_factors": [0.3],
    "selection_seeds": [8], "gradient_checkpointing": True, "replay_weight": 0.7,
    "benchmarks": "hub", "train": "lora", "retained": ["job"], "columns": {"prompt": "query"},
    "num_fewshot": {"gsm8k": 5}, "recipes": ["ft"],
    "seeds": [7], "alphas": [0.9], "lrs": [1e-4], "temperatures": [0.9], "ratios": [0.9],
    "replay_weights": [0.9], "ablation_recipes": ["pretraining"], "ablation_seeds": [7],
    "estimated": ["lora"], "workers": 3, "notebooks": ["01"], "name": "other",
    "about": "other", "revision": "abc", "n_generate": 50, "think_budget": 32, "answer_temperature": 0.9,
    "answer_top_p": 0.9, "keep_weights": "last", "offload": True,
}  # fmt: skip
"""Another value of each field that is not a plain number; of those one more is taken."""


def keys(profile: Profile) -> set[str]:
    steps = Steps(profile, Store())
    return {s.key for s in all_steps([s for study in STUDIES for s in steps.study(study)])}


@pytest.fixture(scope="module")
def everything() -> Profile:
    """The default profile with every recipe, so that every parameter is used; one seed and rate are enough."""
    return load("tiny", recipes=[*recipes.RECIPES], seeds=[0], lr_factors=[1.0])


@pytest.fixture(scope="module")
def own(everything) -> set[str]:
    """Its keys."""
    return keys(everything)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Profile)])
def test_a_field_decides_keys_or_is_stated_not_to(name, everything, own):
    old = getattr(everything, name)
    new = CHANGES[name] if name in CHANGES else (old or 1) * 0.5 if isinstance(old, float) else old + 1
    if name == "revision":  # of a base on the hub alone
        everything = dataclasses.replace(
            everything, base="owner/model", recipes=("ft",), ablation_recipes=("ft",)
        )
    if name in ("base", "train"):
        everything = dataclasses.replace(everything, recipes=("ft",), ablation_recipes=("cfs",), estimated=("ft",))
    if name in ("devices", "offload"):  # which refuse some recipes
        everything = dataclasses.replace(everything, recipes=("ft",), ablation_recipes=("ft",))
    if name in THINKING:
        everything = dataclasses.replace(everything, chat_template=True, think_budget=64)
    changed = dataclasses.replace(everything, **{name: new})
    of_some = {"revision", "base", "train", "devices", "offload", *THINKING}
    decides = keys(changed) != (keys(everything) if name in of_some else own)
    assert decides == (name not in ABOUT | EXECUTION)


def test_the_bytes_of_a_retained_file_decide_and_not_where_it_is(everything, tmp_path):
    def key(path, text):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return Steps(dataclasses.replace(everything, retained=(str(path), "sum")), Store()).scores(None, "retained").key

    line = '{"prompt": "a", "answer": "b"}\n'
    one = key(tmp_path / "mine.jsonl", line)
    assert key(tmp_path / "elsewhere" / "mine.jsonl", line) == one
    others = [key(tmp_path / "mine.jsonl", line.replace("b", "c")), key(tmp_path / "other.jsonl", line)]
    assert len({one, *others}) == 3


def test_steps_that_decide_no_result_differently_have_one_key(everything):
    """A number written as an int, a path of the same items, another label."""
    steps = Steps(everything, Store())
    one, other = (steps.samples("context_free", temperature=t) for t in (1, 1.0))
    assert one.key == other.key
    moved = dataclasses.replace(one, local={"target_name": "/elsewhere"}, label="x", weight_bytes=1)
    assert moved.key == one.key
