"""Random profiles, profile files, parameters and notebooks: accepted or refused by a UserError, never another.

Each test's id has the number of its examples; the same ones are drawn in every run.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfutils import paths, profiles
from cfutils.errors import UserError
from cfutils.profiles import Profile
from cfutils.runner import notebook

PROFILES = [path.read_text(encoding="utf-8") for path in sorted(paths.profiles().glob("*.yaml"))]
FIELDS = [f.name for f in dataclasses.fields(Profile)]
SUITE = notebook.notebooks()
PARAMETERS = sorted({(n.number, name) for n in SUITE for name in n.parameters} - {("00", "profile")})
HEAD = "about: x\nbase: org/model\n"

TOKENS = [
    *FIELDS, *"{}[],:?-&*!|>%@`#'\"\\\n \t~=<.", ": ", "- ", "\n- ", "\n  ", "---\n", "...\n", "&a", "*a", "<<: ",
    "!!int ", "!!set ", "!!python/name:os.abort ", "%YAML 1.1\n", "%TAG ! x\n", "null", "true", "0", "-1", "1e-5",
    "1e999", ".nan", "9" * 200, "0x1F", "2001-01-01", "1:30", '"\\U00110000"', '"\\ud800"', "\0", "\ufeff", "é", "\x85",
]  # fmt: skip

LETTERS = "".join(map(chr, range(32, 127))) + "\0\t\n\r\x07\x85é\u2028\ufeff\uffff\ud800\udcff\U0001f600"

numbers = st.one_of(
    st.integers(-3, 300), st.integers(), st.floats(), st.floats(-1, 3),
    st.sampled_from([10**20, 10**400, -(10**400), 1e308, 5e-324]),
)  # fmt: skip
texts = st.one_of(
    st.text(LETTERS, max_size=8),
    st.sampled_from(["ft", "cfs", "none", "shipped:tiny", "~x/y", "../..", "\0", "\ud800", "vllm", "x" * 2000]),
)
plain = st.one_of(st.none(), st.booleans(), numbers, texts)
several = st.lists(plain, max_size=3)
tables = st.dictionaries(texts, plain, max_size=2)
values = st.one_of(plain, several, tables, st.lists(several, max_size=2), st.lists(tables, max_size=2))
randoms = st.integers(0, 2**31).map(random.Random)


def yaml_like(rng: random.Random) -> str:
    """Return up to 30 random pieces of YAML."""
    return "".join(rng.choices(TOKENS, k=rng.randint(0, 30)))


def mutated(rng: random.Random) -> str:
    """Return a profile that ships with up to six edits: pieces cut out, repeated, moved or put in."""
    text = rng.choice(PROFILES)
    for _ in range(rng.randint(1, 6)):
        begin = rng.randrange(len(text) + 1)
        end = min(len(text), begin + rng.choice([0, 1, 3, 20, 60]))
        piece = rng.choice(["", rng.choice(TOKENS), text[begin:end] * 2, rng.choice(text.splitlines() or [""])])
        text = text[:begin] + piece + text[end:]
    return text


def examples(count: int) -> Callable:
    """Draw `count` examples, the same in every run, each within five seconds."""
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=timedelta(seconds=5),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def returns_or_refuses(call: Callable, *args: Any, **kwargs: Any) -> Any:
    """Return what a call returns, or None for a UserError of one line; any other exception fails the test."""
    try:
        return call(*args, **kwargs)
    except UserError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 3000
        str(error).encode()  # can be printed
        return None


def run(count: int, strategy: st.SearchStrategy, call: Callable) -> None:
    """Call on `count` drawn examples."""
    seen = []

    @examples(count)
    @given(strategy)
    def check(example: Any) -> None:
        seen.append(example)
        call(example)

    check()
    assert len(seen) >= count


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


FILES = {
    "bytes": (200, st.binary(max_size=60)),
    "text": (200, st.text(LETTERS, max_size=30).map(encoded)),
    "yaml": (500, randoms.map(yaml_like).map(encoded)),
    "more": (500, randoms.map(lambda rng: encoded(HEAD + yaml_like(rng)))),
    "json": (200, values.map(json.dumps).map(encoded)),
    "mutated": (200, randoms.map(mutated).map(encoded)),
}


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: f"{kind}-{FILES[kind][0]}")
def test_profile_files(kind, tmp_path):
    path = tmp_path / "mine.yaml"

    def call(content: bytes) -> None:
        path.write_bytes(content)
        found = returns_or_refuses(profiles.load, str(path))
        assert found is None or isinstance(found, Profile)

    run(*FILES[kind], call)


@pytest.mark.parametrize("count", [1000])
def test_values_of_every_field(count):
    """As a change; what is accepted has the field's type, and is accepted again as it is."""
    good = profiles.load("tiny")

    def call(example: tuple[str, Any]) -> None:
        name, value = example
        changed = returns_or_refuses(good.change, **{name: value})
        if changed is not None:
            assert Profile(**dataclasses.asdict(changed)) == changed
            json.dumps(dataclasses.asdict(changed), allow_nan=False).encode()

    run(count, st.tuples(st.sampled_from(FIELDS), values), call)


@pytest.mark.parametrize("count", [300])
def test_names_of_profiles(count):
    pieces = st.sampled_from(["tiny", ".", "..", "/", "~", "\0", ".yaml", ".yml", "a" * 300, "\udcff", " ", "*", "\n"])
    names = st.one_of(texts, st.lists(pieces, max_size=5).map("".join))
    run(count, names, lambda name: returns_or_refuses(profiles.load, name))


@pytest.mark.parametrize("count", [1000])
def test_values_on_the_command_line(count):
    """For every parameter of every notebook, then checked by the profile as the runner does."""
    fields = set(FIELDS)
    chosen = {n.number: n for n in SUITE}
    good = profiles.load("tiny")

    def call(example: tuple[tuple[str, str], str]) -> None:
        (number, name), text = example
        found = returns_or_refuses(notebook.arguments, [chosen[number]], [f"{name}={text}"])
        if found is not None:
            assert found.keys() == {number}
            json.dumps(found, allow_nan=False)  # papermill injects JSON values
            returns_or_refuses(good.change, **{k: v for k, v in found[number].items() if k in fields})

    written = st.one_of(texts, randoms.map(yaml_like), several.map(json.dumps), plain.map(json.dumps))
    run(count, st.tuples(st.sampled_from(PARAMETERS), written), call)


@pytest.mark.parametrize("count", [200])
def test_parameters_on_the_command_line(count):
    """Names too, and several at once."""
    names = st.one_of(st.sampled_from([name for _, name in PARAMETERS]), texts)
    pairs = st.tuples(names, st.sampled_from(["=", "==", "", " = "]), texts).map("".join)
    run(
        count, st.lists(pairs, max_size=3),
        lambda given: returns_or_refuses(notebook.arguments, SUITE, given),
    )  # fmt: skip


@pytest.mark.parametrize("count", [200])
def test_sources_of_notebooks(count, tmp_path):
    """Random JSON, and random parameters cells in a sound notebook."""
    path = tmp_path / "01_one.ipynb"
    code = st.lists(st.sampled_from([
        "a", "b: ", "int", "list", " = ", "1", "None", "[", "]", "{", "}", "'", '"""', "\n", "# c", "\\",
        "\0", "lambda: 0", "[[]]", "{[]: 1}", "9" * 5000, "-" * 3000, "(" * 300, "é", "\ud800", "f''", ";", "\t",
    ]), max_size=12).map("".join)  # fmt: skip
    cell = st.fixed_dictionaries(
        {"metadata": st.just({"tags": ["parameters"]}), "source": st.one_of(code, code.map(lambda t: [t]), values)}
    )
    facts = st.one_of(st.just({"title": "x"}), values)
    notebooks = st.builds(lambda cell, facts: {"cells": [cell], "metadata": {"cfutils": facts}}, cell, facts)

    def call(content: Any) -> None:
        path.write_text(json.dumps(content), encoding="utf-8")
        returns_or_refuses(notebook.Notebook.read, path)

    run(count, st.one_of(values, notebooks, notebooks), call)
