"""Ways to the notebooks and galleries: the list that JupyterLab opens on, and what Binder builds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib

import nbformat
import yaml

from cfutils import paths
from cfutils.runner.notebook import notebooks

ROOT = paths.root()
INDEX = ROOT / "notebooks" / "index.ipynb"
TEXT = "\n".join(cell["source"] for cell in nbformat.read(INDEX, as_version=4).cells)


def test_the_index_lists_every_notebook_with_the_question_that_the_readme_states():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^\| (\d\d) [^|]+ \| ([^|]+) \|", readme, re.MULTILINE))
    lines = [f"| [{one.number} · {one.title}]({one.path.name}) | {asked[one.number]} |" for one in notebooks()]
    assert [line for line in TEXT.splitlines() if re.match(r"\| \[\d", line)] == lines


def test_the_index_computes_nothing_and_is_a_clean_source():
    text = INDEX.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    assert {cell["cell_type"] for cell in json.loads(text)["cells"]} == {"markdown"}


def test_the_galleries_of_the_index_are_those_of_folders_with_figures():
    linked = re.findall(r"\.\./figures/([\w-]+)/index\.html", TEXT)
    assert linked and all(any((ROOT / "figures" / name).glob("*.png")) for name in linked)


def test_pages_are_not_for_git():
    """They quote items of benchmarks."""
    names = ["figures/tiny/index.html", "figures/tiny/notebooks/01_generation.html"]
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 or done.stdout.split() == names  # 128: not a git checkout


def test_make_lab_opens_the_index():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"default_url=/lab/tree/{INDEX.relative_to(ROOT).as_posix()}" in makefile


def test_binder_builds_the_declared_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    *conda, by_pip = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    torch = next(line for line in project["dependencies"] if line.startswith("torch=="))
    assert conda == ["python=3.11", "pip", torch.replace("torch==", "pytorch-cpu=")]
    assert by_pip["pip"] == [line for line in project["dependencies"] if line != torch]


def test_what_binder_runs_last_is_a_program():
    script = ROOT / "binder" / "postBuild"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
