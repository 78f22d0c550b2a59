"""Imports of the package go one way, without circles, and light modules stay light."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from cfutils import paths
from cfutils.pipeline import provenance

ORDER = (
    ("errors", "paths", "events", "digests", "atomic", "units", "display", "progress", "environment"),
    ("profiles", "fields", "field_errors", "recipes", "method", "yaml_input"),
    ("data",),
    ("models",),
    ("training",),
    ("evaluation",),
    ("pipeline",),
    ("analysis",),
    ("integrations",),
    ("studies",),
    ("lab",),
    ("gallery",),
    ("rehearsal",),
    ("runner",),
    ("planning",),
    ("adapt",),
    ("__main__",),
)
"""Packages and top-level modules, lowest first: each may import from its own line and those above it here."""
FLOOR = {name: number for number, names in enumerate(ORDER) for name in names}
LIGHT = (
    "cfutils.__main__", "cfutils.lab", "cfutils.pipeline.steps", "cfutils.pipeline.builders.scoring",
    "cfutils.data.targets", "cfutils.data.benchmarks", "cfutils.models.bases", "cfutils.analysis.plots",
)  # fmt: skip
HEAVY = ("torch", "transformers", "datasets", "lm_eval", "vllm", "accelerate", "peft")


def modules() -> dict[str, tuple[str, ...]]:
    """Every module of the package, and the modules of the package that it imports (inside functions too)."""
    root = paths.root()
    found = {}
    for path in sorted((root / "cfutils").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = provenance.imports(name)
    return found


def area(module: str) -> str:
    """The package, or the top-level module, that a module is part of; "" for cfutils itself."""
    return module.split(".")[1] if "." in module else ""


def test_imports_go_one_way():
    wrong = [
        f"{name} imports {imported}"
        for name, imports in modules().items()
        for imported in imports
        if area(name) and area(imported) and FLOOR[area(imported)] > FLOOR[area(name)]
    ]
    assert wrong == []


def test_analysis_needs_no_pipeline_and_evaluation_no_lab():
    wrong = [
        (name, imported)
        for name, imports in modules().items()
        for imported in imports
        if area(name) == "analysis" and area(imported) in ("pipeline", "evaluation", "training", "models")
    ]
    assert wrong == []


def test_there_are_no_circles():
    graph = {
        name: [i for i in imports if i != name and not name.startswith(f"{i}.")]
        for name, imports in modules().items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_every_package_says_what_it_takes_and_makes():
    for path in (paths.root() / "cfutils").rglob("__init__.py"):
        assert path.read_text(encoding="utf-8").startswith('"""'), path


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module):
    code = f"import sys, {module}\nprint(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
