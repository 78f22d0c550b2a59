"""Every bad value is refused in one line with its name, before anything runs."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import time

import pytest

from cfutils import paths, profiles, recipes
from cfutils.errors import LONGEST, UserError, invalid_value, shown
from cfutils.profiles import Profile

NAN, INF = float("nan"), float("inf")
HEAD = "about: x\nbase: org/model\n"
SEVERAL = (
    "notebooks", "retained", "recipes", "seeds", "alphas", "lrs", "temperatures", "ratios", "replay_weights",
    "ablation_recipes", "ablation_seeds", "estimated", "lr_factors", "selection_seeds",
)  # fmt: skip


def make(**values):
    return Profile(**{"name": "x", "about": "x", "base": "org/model", **values})


def line(call, *args, **kwargs) -> str:
    """Return the one line of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 2000
    return text


@pytest.mark.parametrize(
    "values, allowed",
    [
        ({"temperature": 0}, "a number above 0 and at most 2 (1.0 samples"),
        ({"temperature": -1.0}, "a number above 0 and at most 2"),
        ({"temperature": 3.0}, "a number above 0 and at most 2"),
        ({"temperature": "hot"}, "a number above 0 and at most 2"),
        ({"temperature": True}, "a number above 0 and at most 2"),
        ({"ratio": 1.0}, "a number in [0, 1) (0.5 takes as many"),
        ({"ratio": 1.5}, "a number in [0, 1)"),
        ({"ratio": -0.1}, "a number in [0, 1)"),
        ({"replay_weight": -1.0}, "a number from 0 to 1,000,000 or null"),
        ({"lr": 0.0}, "a number above 0 and at most 10"),
        ({"lr": "fast"}, "a number above 0 and at most 10"),
        ({"clip": 0}, "a number above 0"),
        ({"n_samples": 0}, "a whole number from 1 to 1,000,000"),
        ({"n_samples": 2.0}, "a whole number from 1 to 1,000,000"),
        ({"n_samples": True}, "a whole number from 1 to 1,000,000"),
        ({"limit": 0}, "a whole number from 1 to 10,000,000 or null"),
        ({"chat_template": 1}, "true or false"),
        ({"autocast": 0}, "true or false or null"),
        ({"dtype": "float16"}, "one of 'float32', 'bfloat16'"),
        ({"dtype": ["float32"]}, "one of 'float32', 'bfloat16'"),
        ({"engine": "hf"}, "one of 'vllm', 'transformers'"),
        ({"benchmarks": "web"}, "one of 'package', 'hub'"),
        ({"seeds": 3}, "a list of 1 to 100 different values, each a whole number from 0 to 2,147,483,647"),
        ({"recipes": "ft"}, "a list of 1 to 100 different values, each one of 'ft', 'cfs'"),
        ({"estimated": "ft"}, "a list of 1 to 100 different values, each one of 'ft', 'cfs'"),
        ({"recipe_lr": [1.0]}, "a table, each a number above 0 and at most 10"),
        ({"num_fewshot": 5}, "a table, each a whole number from 0 to 100"),
        ({"warmup": -0.1}, "a number from 0 to 1"),
        ({"warmup": 1.5}, "a number from 0 to 1"),
        ({"weight_decay": -1.0}, "a number from 0 to 100"),
        ({"n_generate": -1}, "a whole number from 0 to 10,000,000"),
        ({"n_generate": 9, "n_heldout": 8}, "at most n_heldout = 8"),
        ({"n_estimate": 0}, "a whole number from 8 to 1,000,000"),
        ({"n_estimate": 7}, "a whole number from 8 to 1,000,000"),
        ({"start_token": 0}, "a text of 1 to 1,000 characters (no null bytes) or null"),
        ({"start_token": ""}, "a text of 1 to 1,000 characters (no null bytes) or null"),
        ({"base": ""}, "a text of 1 to 1,000 characters (printable, without spaces at the ends)"),
        ({"base": " a/b"}, "a text of 1 to 1,000 characters (printable, without spaces at the ends)"),
        ({"base": "a\nb"}, "a text of 1 to 1,000 characters (printable, without spaces at the ends)"),
        ({"target": ""}, "a text of 1 to 1,000 characters"),
        ({"revision": ""}, "a text of 1 to 1,000 characters"),
        ({"about": ""}, "a text of 1 to 1,000 characters"),
        # numbers beyond all use
        ({"workers": 257}, "a whole number from 1 to 256"),
        ({"chunk": 10**7}, "a whole number from 1 to 1,000,000"),
        ({"epochs": 1001}, "a whole number from 1 to 1,000"),
        ({"batch_size": 10**6}, "a whole number from 1 to 100,000"),
        ({"max_tokens": 10**7}, "a whole number from 1 to 1,000,000"),
        ({"max_new_tokens": 10**7}, "a whole number from 1 to 1,000,000"),
        ({"max_length": 10**7}, "a whole number from 1 to 1,000,000"),
        ({"pass_tokens": 10**7}, "a whole number from 1 to 1,000,000"),
        ({"n_train": 10**8}, "a whole number from 1 to 10,000,000"),
        ({"n_heldout": 10**8}, "a whole number from 1 to 10,000,000"),
        ({"n_probe": 10**8}, "a whole number from 1 to 10,000,000"),
        ({"n_samples": 10**6 + 1}, "a whole number from 1 to 1,000,000"),
        ({"n_contextual": 10**6 + 1}, "a whole number from 1 to 1,000,000"),
        ({"n_estimate": 10**6 + 1}, "a whole number from 8 to 1,000,000"),
        ({"lr": 11}, "a number above 0 and at most 10"),
        ({"checkpoint_minutes": 1e6}, "a number above 0 and at most 10,080"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name(values, allowed, tmp_path):
    """In the YAML file and as a change alike; the line has name, value and what is allowed."""
    name, value = next(iter(values.items()))
    wanted = f"{name} = {value!r} is not allowed: {allowed}"
    assert line(make().change, **values).startswith(wanted)
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"about": "x", "base": "org/model"} | values), encoding="utf-8")
    assert line(profiles.load, str(path)).startswith(f"mine.yaml: {wanted}")


@pytest.mark.parametrize(
    "values, wanted",
    [
        ({"temperatures": [0.7, 0.0]}, "temperatures[1] = 0.0 is not allowed: a number above 0"),
        ({"ratios": [0.5, 1.0]}, "ratios[1] = 1.0 is not allowed: a number in [0, 1)"),
        ({"replay_weights": [1.0, -1.0]}, "replay_weights[1] = -1.0 is not allowed: a number from 0"),
        ({"lrs": [-1e-3]}, "lrs[0] = -0.001 is not allowed: a number above 0"),
        ({"alphas": [1.5]}, "alphas[0] = 1.5 is not allowed: a number from 0 to 1"),
        ({"seeds": [0.5]}, "seeds[0] = 0.5 is not allowed: a whole number from 0 to 2,147,483,647"),
        ({"seeds": [-1]}, "seeds[0] = -1 is not allowed: a whole number from 0 to 2,147,483,647"),
        ({"seeds": [2**31]}, "seeds[0] = 2147483648 is not allowed: a whole number from 0 to 2,147"),
        ({"seeds": [0, "x"]}, "seeds[1] = 'x' is not allowed: a whole number"),
        ({"seeds": [[0]]}, "seeds[0] = [0] is not allowed: a whole number"),
        ({"recipes": ["ft", "cfx"]}, "recipes[1] = 'cfx' is not allowed: one of 'ft', 'cfs', 'cf_kl'"),
        ({"ablation_recipes": ["x"]}, "ablation_recipes[0] = 'x' is not allowed: one of 'ft', 'cfs'"),
        ({"estimated": ["x"]}, "estimated[0] = 'x' is not allowed: one of 'ft', 'cfs'"),
        ({"recipe_lr": {"x": 1}}, "key of recipe_lr = 'x' is not allowed: one of 'ft', 'cfs'"),
        ({"recipe_lr": {"lora": "fast"}}, "recipe_lr['lora'] = 'fast' is not allowed: a number above 0"),
        ({"recipe_lr": {"lora": -1.0}}, "recipe_lr['lora'] = -1.0 is not allowed: a number above 0"),
        ({"strengths": {"l2": -1.0}}, "strengths['l2'] = -1.0 is not allowed: a number from 0 to 1,000,000"),
        ({"strengths": {"x": 1.0}}, "key of strengths = 'x' is not allowed: one of 'ft', 'cfs'"),
        ({"selection_seeds": [1, 0]}, "selection_seeds = (1, 0) is not allowed: none of seeds, which has 0"),
        ({"lr_factors": [0.0]}, "lr_factors[0] = 0.0 is not allowed: a number above 0 and at most 1,000"),
        ({"num_fewshot": {"": 1}}, "key of num_fewshot = '' is not allowed: a text of 1 to"),
        ({"num_fewshot": {"gsm8k": 101}}, "num_fewshot['gsm8k'] = 101 is not allowed: a whole number"),
        ({"retained": [""]}, "retained[0] = '' is not allowed: a text of 1 to 1,000 characters"),
    ],
)
def test_a_bad_item_is_refused_by_its_place(values, wanted):
    assert line(make, **values).startswith(wanted)


@pytest.mark.parametrize("name", SEVERAL)
def test_no_list_is_empty_repeats_a_value_or_is_endless(name):
    """An empty list would make an empty figure, a repeated value two equal rows."""
    wanted = "is not allowed: a list of 1 to 100 different values, each "
    assert line(make, **{name: []}).startswith(f"{name} = [] {wanted}")
    first = getattr(make(), name)[0]
    assert line(make, **{name: [first, first]}).startswith(f"{name} = {[first, first]!r} {wanted}")
    assert name in line(make, **{name: [first] * 101})
    assert line(make, **{name: {first}}).startswith(f"{name} = ")  # a set has no order


def test_every_list_of_a_profile_is_one_of_those():
    found = {f.name for f in dataclasses.fields(Profile) if isinstance(getattr(make(), f.name), tuple)}
    assert found == set(SEVERAL)


@pytest.mark.parametrize("name", [
    "temperature", "ratio", "lr", "warmup", "weight_decay", "clip", "replay_weight", "checkpoint_minutes",
])  # fmt: skip
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_number_is_finite(name, value):
    assert line(make, **{name: value}).startswith(f"{name} = {value} is not allowed")


@pytest.mark.parametrize("values", [
    {"temperatures": [NAN]}, {"ratios": [NAN]}, {"lrs": [INF]}, {"replay_weights": [NAN]},
    {"alphas": [NAN]}, {"recipe_lr": {"lora": NAN}},
])  # fmt: skip
def test_an_item_is_finite(values):
    assert line(make, **values).startswith(next(iter(values)))


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Profile)])
def test_every_number_and_text_has_an_upper_limit(name):
    """No field takes a number of 100 digits, a text of 100,000 characters or a list of 10,000."""
    for value in (10**100, "x" * 100_000, [0] * 10_000, [10**100], ["x" * 100_000]):
        assert line(make, **{name: value}).startswith(name)


def test_several_bad_values_are_one_line():
    found = line(make, lr=0, epochs=0, seeds=["a", "b"])
    assert found == "lr = 0 is not allowed: a number above 0 and at most 10. Also wrong: epochs, seeds."


@pytest.mark.parametrize(
    "name, hint",
    [("temprature", "Did you mean temperature?"), ("n_sample", "Did you mean n_samples?"), ("zzzz", ""),
     ("self", ""), ("__dataclass_self__", ""), ("__init__", "")],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_list(name, hint, tmp_path):
    wanted = f"{name!r} is not a value of a profile. {hint}".strip()
    for found in (line(make, **{name: 1}), line(make().change, **{name: 1})):
        assert found.startswith(wanted) and "Allowed: ablation_recipes, ablation_seeds, about, alphas," in found
    path = tmp_path / "mine.yaml"
    path.write_text(f"{HEAD}{name}: 1\n")
    assert line(profiles.load, str(path)).startswith(f"mine.yaml: {wanted}")


def test_an_int_may_stand_for_a_float_and_a_list_for_a_tuple():
    p = make(temperature=1, ratios=[0, 0.5], recipe_lr={"lora": 1}, seeds=[0, 1])
    assert (p.temperature, p.ratios, p.seeds) == (1.0, (0.0, 0.5), (0, 1))
    assert all(type(v) is float for v in (p.temperature, *p.ratios, p.recipe_lr["lora"]))


def test_it_is_a_frozen_dataclass():
    p = make(recipe_lr={"lora": 1.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.lr = 1.0
    assert dataclasses.replace(p, lr=1) == make(recipe_lr={"lora": 1.0}, lr=1.0)
    assert Profile(**dataclasses.asdict(p)) == pickle.loads(pickle.dumps(p)) == copy.deepcopy(p) == p


def test_none_leaves_a_value_as_it_is():
    p = make(temperature=0.7, limit=5)
    assert p.change(temperature=None, limit=None) == p
    assert p.change(temperature=0.9) == make(temperature=0.9, limit=5)


def test_execution_holds_what_changes_no_result():
    p = make(engine="transformers", chunk=7, pass_tokens=9, checkpoint_minutes=2)
    assert p.execution == profiles.Execution(
        engine="transformers", chunk=7, pass_tokens=9, gradient_checkpointing=False,
        checkpoint_minutes=2.0, trust_remote_code=False,
    )  # fmt: skip


# --- files ---------------------------------------------------------------------------------------

BOMB = "about: &a [x, x]\nbase: &b [*a, *a]\nretained: &c [*b, *b]\nrecipes: [*c, *c]\n"


@pytest.mark.parametrize(
    "content, wanted",
    [
        ("a: [", "line 1, column 5: while parsing a flow node, expected the node content, but found"),
        ("- 1\n", "it must be a table of `key: value` lines"),
        ("", "it must be a table of `key: value` lines"),
        ("just text", "it must be a table of `key: value` lines"),
        (f"{HEAD}lr: 1\nlr: 2\n", "line 4, column 1: the key 'lr' occurs twice: keep one"),
        (f"{HEAD}recipe_lr: {{ft: 1, ft: 2}}", "line 3, column 20: the key 'ft' occurs twice"),
        (f"{HEAD}1: 2\n", "line 3, column 1: '1' is not allowed as a key: a key must be a text"),
        (f"{HEAD}null: 2\n", "line 3, column 1: 'null' is not allowed as a key: a key must be a text"),
        (f"{HEAD}true: 2\n", "line 3, column 1: 'true' is not allowed as a key: a key must be a text"),
        (f"{HEAD}[a]: 2\n", "line 3, column 1: a list or table is not allowed as a key"),
        (f"{HEAD}{{a: 1}}: 2\n", "line 3, column 1: a list or table is not allowed as a key"),
        (f"{HEAD}n_train: !!int abc\n", "line 3, column 10: the tag '!!int' is not allowed"),
        (f"{HEAD}n_train: !!timestamp x\n", "the tag '!!timestamp' is not allowed: write plain values"),
        (f"{HEAD}x: !!python/object/apply:os.abort []", "the tag '!!python/object/apply:os.abort'"),
        (f"{HEAD}x: !own 1", "line 3, column 4: the tag '!own' is not allowed: write plain values"),
        (f"{HEAD}seeds: &a [*a]\n", "line 3, column 8: anchors and aliases (&, *) are not allowed"),
        (f"{HEAD}seeds: *a\n", "line 3, column 8: anchors and aliases (&, *) are not allowed"),
        ("&a about: x\n", "line 1, column 1: anchors and aliases (&, *) are not allowed: write the value"),
        (BOMB, "line 1, column 8: anchors and aliases (&, *) are not allowed: write the value out"),
        (f"{HEAD}seeds: {'[' * 500}{']' * 500}", "line 3, column 17: nested more than 10 levels deep"),
        (f"{HEAD}seeds: {'[' * 60_000}", "line 3, column 17: nested more than 10 levels deep"),
        ("- " * 30_000, "line 1, column 21: nested more than 10 levels deep"),
        ("{a: " * 10_000, "nested more than 10 levels deep"),
        (f"{HEAD}n_train: {'9' * 5000}", "line 3, column 10: a number of more than 100 characters"),
        (f"{HEAD}lr: {'9' * 5000}.0", "line 3, column 5: a number of more than 100 characters"),
        ("#" * 70_000, "the file is larger than 65,536 bytes"),
        (f"{HEAD}---\n{HEAD}", "expected a single document in the stream, but found another document"),
        ("\0", "the character U+0000 at position 0 is not allowed: remove it"),
        (f"{HEAD}x: \x07", "the character U+0007 at position 28 is not allowed: remove it"),
        ('about: "\\UFFFFFFFF"', "not valid YAML: "),
        (f"%YAML {'9' * 5000}.1\n---\n", "not valid YAML: Exceeds the limit"),
        ("\tabout: x", "line 1, column 1: while scanning for the next token, found character '\\t'"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(content, wanted, tmp_path):
    path, clock = tmp_path / "mine.yaml", time.monotonic()
    path.write_text(content, encoding="utf-8")
    found = line(profiles.load, str(path))
    assert found.startswith("mine.yaml is not a valid profile: ") and wanted in found
    assert time.monotonic() - clock < 5


@pytest.mark.parametrize(
    "content, wanted",
    [
        ("about: é\n".encode("latin-1"), "mine.yaml is not UTF-8 text (byte 7): save it as UTF-8"),
        ("about: é\n".encode("utf-16"), "mine.yaml is not UTF-8 text (byte 0): save it as UTF-8"),
        (b"about: \xed\xa0\x80\n", "mine.yaml is not UTF-8 text (byte 7): save it as UTF-8"),
        (b"about: x\n", "mine.yaml: missing, and without a default: base"),
        (b"{}", "mine.yaml: missing, and without a default: about, base"),
        (b"name: x\n", "mine.yaml: a profile's name is that of its file: remove the key 'name'"),
        (HEAD.encode() + b"<<: {lr: 1}\n", "mine.yaml: '<<' is not a value of a profile."),
        (HEAD.encode() + b"lr: 1e999\n", "mine.yaml: lr = inf is not allowed: a number above 0"),
        (HEAD.encode() + b"lr: .nan\n", "mine.yaml: lr = '.nan' is not allowed: a number above 0"),
        (HEAD.encode() + b"n_train: 0x10\n", "mine.yaml: n_train = '0x10' is not allowed: a whole"),
        (HEAD.encode() + b"n_train: 1_000\n", "mine.yaml: n_train = '1_000' is not allowed: a whole"),
        (HEAD.encode() + b"n_train: 007\n", "mine.yaml: n_train = '007' is not allowed: a whole number"),
        (HEAD.encode() + b"chat_template: yes\n", "mine.yaml: chat_template = 'yes' is not allowed: true"),
        (HEAD.encode() + b"seeds: [2001-01-01]\n", "mine.yaml: seeds[0] = '2001-01-01' is not allowed"),
        (HEAD.encode() + b"seeds: 2001-01-01\n", "mine.yaml: seeds = '2001-01-01' is not allowed: a list"),
        (HEAD.encode() + b'start_token: "\\ud800"\n', "mine.yaml: start_token = '\\ud800' is not allowed"),
        (HEAD.encode() + b'start_token: "a\\0"\n', "mine.yaml: start_token = 'a\\x00' is not allowed"),
        (b'about: x\nbase: "a\\0/b"\n', "mine.yaml: base = 'a\\x00/b' is not allowed: a text of 1 to"),
        (b"about: x\nbase: null\n", "mine.yaml: base = None is not allowed: a text of 1 to 1,000"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(content, wanted, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(content)
    assert line(profiles.load, str(tmp_path / "mine.yaml")).startswith(wanted)


def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert line(profiles.load, str(path)) == "mine.yaml cannot be read: Permission denied"


def test_a_file_is_yaml_1_2_and_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfabout: on\nbase: org/model\nlr: 1e-3\nlimit: null\nseeds:\n- 7\n")
    p = profiles.load(path)
    assert (p.about, p.lr, p.limit, p.seeds) == ("on", 1e-3, None, (7,))


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "nothing", "", ".", "*", "TINY", "tiny\n", "tiny/", "tiny.yaml/", "../profiles/tiny", "profiles",
    "/nowhere/mine.yaml", "smollm2.yml", ".yaml", "a\0b", "\udcff", "\udcff.yaml", "x" * 5000,
    "/proc/1/mem.yaml",
])  # fmt: skip
def test_an_unknown_profile_is_refused_with_the_list(name):
    found = line(profiles.load, name)
    assert found.startswith(f"profile = {shown(name)} is not allowed: one of ")
    assert found.endswith(f"{', '.join(profiles.names())}. Or give the path of a YAML file.")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("x" * 5000 + ".yaml", "File name too long"),
        ("a\0b.yaml", "embedded null byte"),
        ("~nosuchuser/x.yaml", "Could not determine home directory"),
    ],
)
def test_a_path_that_cannot_be_is_refused_with_the_reason(name, reason):
    wanted = f"profile = {shown(name)} is not allowed: a path that can be read ({reason})."
    assert line(profiles.load, name) == wanted


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    os.symlink(tmp_path / "loop.yaml", tmp_path / "loop.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("folder.yaml", "pipe.yaml"):
        assert "path of a YAML file" in line(profiles.load, str(tmp_path / name))
    assert "Too many levels of symbolic links" in line(profiles.load, str(tmp_path / "loop.yaml"))


@pytest.mark.parametrize("name", ["..yaml", "...yaml", "a(1).yaml", " a.yaml", "a" * 101 + ".yaml"])
def test_a_name_that_is_no_good_folder_name_is_refused(name, tmp_path):
    """Figures and results go into a folder of that name: `.` and `..` would be other folders."""
    (tmp_path / name).write_text(HEAD)
    assert f"{name}: name = " in line(profiles.load, str(tmp_path / name))


def test_a_file_of_your_own_is_named_by_its_stem_and_takes_changes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{HEAD}seeds: [3, 4]\n", encoding="utf-8")
    p = profiles.load(str(path), temperature=0.5)
    assert (p.name, p.seeds, p.temperature) == ("mine", (3, 4), 0.5)


def test_a_file_that_extends_a_profile_states_what_differs(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\nseeds: [7]\nlimit: null\n", encoding="utf-8")
    tiny, mine = profiles.load("tiny"), profiles.load(path)
    assert mine == dataclasses.replace(tiny, name="mine", seeds=(7,), limit=None)
    assert profiles.stated(path) == {**profiles.stated("tiny"), "seeds": [7], "limit": None}


@pytest.mark.parametrize("parent", ["nothing", "mine.yaml", "3", "[tiny]", "null", "{a: 1}"])
def test_a_parent_that_is_no_profile_is_refused(parent, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {parent}\n", encoding="utf-8")
    found = line(profiles.load, str(path))
    assert found.startswith("mine.yaml: extends = ")
    assert found.endswith(f" is not allowed: one of {', '.join(profiles.names())}.")


def test_profiles_that_extend_each_other_are_refused(tmp_path, monkeypatch):
    for name, parent in (("one", "two"), ("two", "three"), ("three", "one"), ("four", "three")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}\n", encoding="utf-8")
    monkeypatch.setattr(paths, "profiles", lambda: tmp_path)
    assert line(profiles.load, "one") == "three.yaml: extends = 'one' is not allowed: one of four."


@pytest.mark.parametrize("path", sorted(paths.profiles().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_that_ships_loads(path):
    p = profiles.load(path.stem)
    assert p.name == path.stem and path.stem in profiles.names()
    for name in recipes.STUDIES:
        assert recipes.study(p, name) or name == "base"


def test_the_default_profile_ships_and_so_does_its_base():
    """So that a fresh clone runs with nothing but the data package."""
    assert profiles.DEFAULT == "tiny" and profiles.DEFAULT in profiles.names()
    p = profiles.load(profiles.DEFAULT)
    assert (p.base, p.engine, p.start_token) == ("shipped:tiny", "transformers", None)
    assert set(p.estimated) <= set(p.recipes)


def test_importing_profiles_imports_nothing_heavy():
    code = "import sys, cfutils.profiles; print({'torch', 'transformers', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- values in messages --------------------------------------------------------------------------


def test_a_long_value_is_cut_in_a_message():
    assert shown("a'b") == repr("a'b") and shown([1]) == "[1]"
    found = str(invalid_value("x", "y" * 10**6, "short", "Cut it."))
    assert found.startswith("x = 'yyy") and found.endswith("(1,000,002 characters) is not allowed: short. Cut it.")
    assert len(found) < LONGEST + 60
    assert shown("y" * (LONGEST - 2)) == repr("y" * (LONGEST - 2))


def test_a_value_without_repr_is_named_by_its_type():
    nested: list = []
    for _ in range(10**5):
        nested = [nested]
    assert shown(10**5000) == "<int too large to show>"
    assert shown(nested) == "<list too large to show>"
