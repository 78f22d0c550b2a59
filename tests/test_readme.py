"""The README is true: its commands are accepted, its numbers are those of the shipped figures."""

import importlib.util
import io
import re
import shlex
import subprocess

import pandas as pd
import pytest

from cfutils import paths
from cfutils.__main__ import parser
from cfutils.runner.jobs import prepare

README = (paths.root() / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.split("#")[0])[1:]
    for line in re.findall(r"^cfutils .*$", README, re.MULTILINE)
]


def _script():
    """The script that writes the block of results."""
    path = paths.root() / "scripts" / "readme_results.py"
    spec = importlib.util.spec_from_file_location("readme_results", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_accepted(command):
    options = parser().parse_args(command)
    if command[0] == "run":
        assert prepare(options.profile, options.notebook, options.parameter)


def test_there_are_commands():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("name", SCRIPT.BLOCKS)
def test_results_are_those_of_the_shipped_figures(name):
    """Those in git: figures drawn again on another machine may differ in the last digits."""

    def shipped(path: str) -> pd.DataFrame:
        command = ["git", "-C", str(paths.root()), "show", f"HEAD:{path}"]
        found = subprocess.run(command, capture_output=True)
        if found.returncode:
            pytest.skip(f"no git checkout to read the shipped {path} from")
        return SCRIPT.parse(path, io.BytesIO(found.stdout))

    assert SCRIPT.parts(README, name)[1] == SCRIPT.BLOCKS[name](shipped)


def test_every_picture_is_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(pictures) >= 3
    for name in pictures:
        assert (paths.root() / name).is_file(), name


def test_the_packages_are_those_of_the_code():
    """One row of the table for each package, in import order."""
    table = README.split("| package of `cfutils/` |")[1].split("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    there = {path.parent.name for path in (paths.root() / "cfutils").glob("*/__init__.py")}
    assert set(named) == there and len(named) == len(there)


def test_every_file_named_is_there():
    names = set(re.findall(r"`((?:cfutils|scripts|data|notebooks|figures)/[\w./-]+\.\w+)`", README))
    assert len(names) >= 4
    for name in names:
        assert (paths.root() / name).is_file(), name
