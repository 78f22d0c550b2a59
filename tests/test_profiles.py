"""Every bad value is refused with its name, before anything runs."""

from __future__ import annotations

import pytest
import yaml

from cfutils import paths, profiles
from cfutils.errors import UserError
from cfutils.profiles import Profile

NAN, INF = float("nan"), float("inf")


def make(**values):
    return Profile(**{"name": "x", "about": "x", "base": "org/model", **values})


@pytest.mark.parametrize(
    "values, says",
    [
        ({"temprature": 0.7}, r"'temprature' .*Did you mean temperature\?"),
        ({"n_sample": 3}, r"Did you mean n_samples\?"),
        ({"zzzz": 1}, r"'zzzz' is not .*Allowed: .*about, alphas"),
        ({"temperature": 0}, r"temperature = 0\.0 .*above 0 and at most 2"),
        ({"temperature": -1.0}, r"temperature = -1\.0"),
        ({"temperature": 3.0}, r"temperature = 3\.0"),
        ({"temperature": NAN}, "temperature = nan"),
        ({"temperature": "hot"}, "temperature = 'hot' .*wants float, got str"),
        ({"temperature": True}, "temperature = True .*wants float, got bool"),
        ({"temperatures": [0.7, 0.0]}, r"temperatures = 0\.0"),
        ({"ratio": 1.0}, r"ratio = 1\.0 .*\[0, 1\)"),
        ({"ratio": 1.5}, r"ratio = 1\.5"),
        ({"ratio": -0.1}, r"ratio = -0\.1"),
        ({"ratio": NAN}, "ratio = nan"),
        ({"ratios": [0.5, 1.0]}, r"ratios = 1\.0"),
        ({"replay_weight": -1.0}, r"replay_weight = -1\.0 .*null for plain mixing"),
        ({"replay_weights": [1.0, -1.0]}, r"replay_weights = -1\.0"),
        ({"lr": 0.0}, r"lr = 0\.0 .*above 0"),
        ({"lr": "2e-4"}, "lr = '2e-4' .*wants float, got str"),
        ({"lr": NAN}, "lr = nan"),
        ({"lrs": [-1e-3]}, "lrs"),
        ({"n_samples": 0}, "n_samples = 0 .*above 0"),
        ({"n_samples": 2.0}, r"n_samples = 2\.0 .*wants int, got float"),
        ({"n_samples": True}, "n_samples = True .*wants int, got bool"),
        ({"limit": 0}, "limit = 0"),
        ({"chat_template": 1}, "chat_template = 1 .*wants bool"),
        ({"dtype": "float16"}, "dtype = 'float16' .*'float32', 'bfloat16'"),
        ({"engine": "hf"}, "engine = 'hf' .*'vllm', 'transformers'"),
        ({"benchmarks": "web"}, "benchmarks = 'web'"),
        ({"seeds": [0, 0]}, r"seeds = \[0, 0\] .*different"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0.5]}, "seeds"),
        ({"seeds": 3}, "seeds = 3 .*wants a list of int"),
        ({"recipes": "ft"}, "recipes = 'ft' .*wants a list of str"),
        ({"alphas": [1.5]}, r"alphas = \[1\.5\]"),
        ({"recipe_lr": [1.0]}, "recipe_lr .*wants a table of float"),
        ({"recipe_lr": {"lora": "fast"}}, "recipe_lr = 'fast'"),
        ({"warmup": -0.1}, "warmup"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"l2_weight": -1.0}, "l2_weight"),
        ({"n_generate": -1}, "n_generate"),
        ({"n_generate": 9, "n_heldout": 8}, "n_generate = 9 .*n_heldout = 8"),
        ({"n_estimate": 0}, "n_estimate = 0 .*above 0"),
        ({"n_estimate": 7}, "n_estimate = 7 .*8 or more"),
        ({"estimated": "ft"}, "estimated = 'ft' .*wants a list of str"),
        ({"start_token": 0}, "start_token = 0 .*wants str"),
    ],
)
def test_a_bad_value_is_refused_by_name(values, says, tmp_path):
    """In the YAML file and as a change alike."""
    with pytest.raises(UserError, match=says):
        make().change(**values)
    plain = {"about": "x", "base": "org/model"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plain | values), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        profiles.load(str(path))


@pytest.mark.parametrize(
    "values",
    [
        {"warmup": NAN},
        {"warmup": 1.5},
        {"weight_decay": NAN},
        {"l2_weight": NAN},
        {"replay_weight": NAN},
        {"replay_weights": [NAN]},
        {"lr": INF},
        {"recipe_lr": {"lora": -1.0}},
        {"recipe_lr": {"lora": NAN}},
        {"seeds": [-1]},
    ],
)
def test_a_number_that_cannot_be_meant_is_refused(values):
    """Not finite, a share above 1, a negative rate, a seed that marks the base."""
    with pytest.raises(UserError, match=next(iter(values))):
        make(**values)


def test_an_int_may_stand_for_a_float_and_a_list_for_a_tuple():
    p = make(temperature=1, ratios=[0, 0.5], recipe_lr={"lora": 1}, seeds=[0, 1])
    assert (p.temperature, p.ratios, p.seeds) == (1.0, (0.0, 0.5), (0, 1))
    assert all(isinstance(v, float) for v in (p.temperature, *p.ratios, p.recipe_lr["lora"]))


def test_none_leaves_a_value_as_it_is():
    p = make(temperature=0.7, limit=5)
    assert p.change(temperature=None, limit=None) == p
    assert p.change(temperature=0.9) == make(temperature=0.9, limit=5)


@pytest.mark.parametrize("name", ["nothing", "/nowhere/mine.yaml", "smollm2.yml"])
def test_an_unknown_profile_is_refused_with_the_list(name):
    with pytest.raises(UserError, match=r"profile = .*smollm2, tiny.*path of a YAML file"):
        profiles.load(name)


@pytest.mark.parametrize(
    "content, says",
    [
        ("a: [", "mine.yaml is not valid YAML"),
        ("- 1\n", "mine.yaml must be a table"),
        ("", "mine.yaml must be a table"),
        ("about: x\n", "mine.yaml lacks base"),
        ("{}", "mine.yaml lacks about, base"),
    ],
)
def test_a_malformed_file_is_refused_by_name(content, says, tmp_path):
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        profiles.load(str(tmp_path / "mine.yaml"))


def test_a_file_of_your_own_is_named_by_its_stem_and_takes_changes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("about: x\nbase: org/model\nseeds: [3, 4]\n", encoding="utf-8")
    p = profiles.load(str(path), temperature=0.5)
    assert (p.name, p.seeds, p.temperature) == ("mine", (3, 4), 0.5)


@pytest.mark.parametrize("path", sorted(paths.profiles().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_that_ships_loads(path):
    assert profiles.load(path.stem).name == path.stem
    assert path.stem in profiles.names()


def test_the_default_profile_ships_and_so_does_its_base():
    """So that a fresh clone runs with nothing but the data package."""
    assert profiles.DEFAULT == "tiny" and profiles.DEFAULT in profiles.names()
    p = profiles.load(profiles.DEFAULT)
    assert (p.base, p.engine, p.start_token) == ("shipped:tiny", "transformers", None)
    assert set(p.estimated) <= set(p.recipes)
