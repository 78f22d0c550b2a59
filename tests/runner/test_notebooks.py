"""Notebook sources, read and not run: their statements are true, and everything they call exists."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pytest

from cfutils import paths, profiles, recipes
from cfutils.errors import UserError
from cfutils.lab import Lab, Study
from cfutils.profiles import Profile
from cfutils.runner import notebook
from cfutils.runner.jobs import prepare

SUITE = notebook.notebooks()
FIELDS = {field.name for field in dataclasses.fields(Profile)}
OWN = {"07": "tiny-claims", "08": "tiny-think", "09": "own"}
"""Profiles of notebooks that the default run leaves out."""
BESIDE = {"00": {"pretrain", "targets"}, "08": {"thinking_target"}}
"""Parameters of notebooks that are no fields of a profile."""
DATA = {"mixture": "mixture_counts", "estimates": "estimates", "selection": "choice"}
"""Studies that are one call of the lab and not runs: the method of each."""
RETURNS = {(Lab, "study"): Study, (Lab, "from_parameters"): Lab}
"""Classes of what methods return, where notebooks call something on it."""

each = pytest.mark.parametrize("source", SUITE, ids=lambda one: one.name)


def read(source: notebook.Notebook) -> Any:
    return nbformat.read(source.path, as_version=4)


def code(source: notebook.Notebook) -> ast.Module:
    """Return all code cells as one module."""
    cells = [cell.source for cell in read(source).cells if cell.cell_type == "code"]
    return ast.parse("\n".join(cells))


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def names(tree: ast.Module) -> dict[str, Any]:
    """Return the object behind each name: modules and classes of cfutils, SimpleNamespace(of=class)."""
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cfutils"):
            home = importlib.import_module(node.module)
            for alias in node.names:
                found = getattr(home, alias.name, None)
                if found is None:  # a module of the package
                    found = importlib.import_module(f"{node.module}.{alias.name}")
                known[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = _made(node.value, known)
            if made and isinstance(node.targets[0], ast.Name):
                known[node.targets[0].id] = SimpleNamespace(of=made)
    return known


def _made(call: ast.Call, known: dict[str, Any]) -> type | None:
    """Return the class of the result of a call, if it is one of the suite's."""
    match call.func:
        case ast.Name(id=name) if isinstance(known.get(name), type):
            return known[name]
        case ast.Attribute(value=ast.Name(id=name), attr=method) if name in known:
            return RETURNS.get((getattr(known[name], "of", known[name]), method))
    return None


def attributes(owner: Any) -> set[str]:
    """Return the public names that a module, class or instance has."""
    of = getattr(owner, "of", None)
    found = set(dir(of or owner))
    if dataclasses.is_dataclass(of):
        found |= {field.name for field in dataclasses.fields(of)}
    elif of:
        found |= set(re.findall(r"self\.(\w+) = ", inspect.getsource(of.__init__)))
    if isinstance(owner, ModuleType):  # without what a module itself imports
        found = {
            name
            for name in found
            if getattr(getattr(owner, name), "__module__", "cfutils").startswith("cfutils")
        }
    return {name for name in found if not name.startswith("_")}


def test_the_suite_can_be_prepared():
    """Notebook 00 is about the tiny base alone: left out of a run of another, refused by name."""
    usual = SUITE[:7]
    assert [one.number for one in usual] == ["00", "01", "02", "03", "04", "05", "06"]
    assert {one.number: one.base for one in SUITE if one.base} == {"00": "shipped:tiny"}
    for profile, numbers in (("tiny", usual), ("smoke", usual[1:]), ("tiny-claims", SUITE[7:8])):
        jobs = prepare(profile, (), ())
        assert [job.notebook for job in jobs] == numbers
        assert all(job.profile.name == profile for job in jobs)
    with pytest.raises(UserError, match=r"notebook = '00_base_model' .*smoke has asset:smollm2"):
        prepare("smoke", ("00",), ())


@each
def test_the_file_is_a_clean_source(source):
    text = source.path.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    node = read(source)
    nbformat.validate(node)
    assert (node.nbformat, node.nbformat_minor) == (4, 5)
    assert node.metadata.kernelspec.name == "python3"
    assert node.metadata.language_info.name == "python"
    ids = [cell.id for cell in node.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z][a-z0-9-]+", i) for i in ids)
    for cell in node.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id


@each
def test_the_shape_of_a_lecture(source):
    cells = read(source).cells
    assert 12 <= len(cells) <= 32
    assert cells[0].source.startswith(f"# {source.number} · ")
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "## Exercises" in text and "## What this does not show" in text and "$$" in text
    assert re.fullmatch(r"\w+\.provenance\(\)", cells[-1].source)


@each
def test_code_cells_are_short(source):
    """Longer code belongs in the package; demonstrations in plain torch are the exception."""
    for cell in read(source).cells:
        if cell.cell_type == "code" and "torch" not in cell.source:
            assert len(cell.source.splitlines()) <= 16, cell.id


@each
def test_parameters_are_simple_lines_of_the_profile_and_reach_the_lab(source):
    cells = [c for c in read(source).cells if c.cell_type == "code"]
    ((place, cell),) = [
        (i, c) for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])
    ]
    for line in cell.source.splitlines():
        assert re.fullmatch(r"\w+: (int|float|str|bool|list) = (\S+|\[.*\])  # .+", line), line
        assert line.count("=") == 1 and "|" not in line and len(line) <= 100, line
    first, *others = source.parameters.values()
    assert (first.name, first.default) == ("profile", OWN.get(source.number, profiles.DEFAULT))
    tree = code(source)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    own = {p.name for p in others} - FIELDS
    assert own <= used and own == BESIDE.get(source.number, set())
    assert cells[place + 1].source.count("lab = Lab.from_parameters(globals())\n") == 1


@each
def test_metadata_is_complete_and_true(source):
    assert source.title and source.takes and source.makes
    assert set(source.studies) <= {*recipes.STUDIES, "samples", *DATA}
    tree = code(source)
    saved = [c.args[2].value for c in calls(tree) if ast.unparse(c.func).endswith(".save")]
    assert sorted(saved) == sorted(source.figures)
    asked = {c.args[0].value for c in calls(tree) if ast.unparse(c.func).endswith(".study")}
    assert asked == set(source.studies) - {"samples", *DATA}
    called = {c.func.attr for c in calls(tree) if ast.unparse(c.func).startswith("lab.")}
    assert {n for n in DATA if DATA[n] in called} == set(source.studies) & set(DATA)


def test_no_two_notebooks_write_one_figure():
    figures = [name for source in SUITE for name in source.figures]
    assert len(set(figures)) == len(figures)


@each
def test_everything_called_exists(source):
    tree = code(source)
    known, seen = names(tree), 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = known.get(node.value.id)
            if owner is not None:
                assert node.attr in attributes(owner), f"{node.value.id}.{node.attr}"
                seen += 1
    assert seen > 5
    for call in calls(tree):
        match call.func:
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in known:
                owner = getattr(known[name], "of", known[name])
                function = getattr(owner, attr)
                unbound = isinstance(owner, type) and not inspect.ismethod(function)
                own = [None] if unbound else []  # self
                starred = any(isinstance(argument, ast.Starred) for argument in call.args)
                if starred or any(keyword.arg is None for keyword in call.keywords):
                    continue
                keywords = {keyword.arg: None for keyword in call.keywords}
                inspect.signature(function).bind(*own, *call.args, **keywords)


@each
def test_no_path_of_one_machine_is_written_in(source):
    text = source.path.read_text(encoding="utf-8")
    for pattern in (
        r"(?<![\w.<])/(home|root|tmp|work|usr|Users|mnt|content)/",
        r"[A-Z]:\\\\",
        "~/",
    ):
        assert not re.search(pattern, text), pattern
    assert str(Path.home()) not in text and str(paths.root()) not in text


@each
def test_commands_of_the_exercises_would_be_accepted(source):
    text = "\n".join(c.source for c in read(source).cells if c.cell_type == "markdown")
    commands = re.findall(r"`cfutils run ([^`]+)`", text)
    for command in commands:
        profile, n, number, *rest = shlex.split(command)
        assert (n, number) == ("-n", source.number), command
        if profile not in profiles.names():
            assert f"profiles/{profile}.yaml" in text, command  # the exercise says to write it
            continue
        assert rest[0] == "-p", command
        assert prepare(profile, [number], rest[1:])
    own = OWN.get(source.number, profiles.DEFAULT)
    assert sum(command.startswith(own) for command in commands) >= 2
