"""The README tells the truth: its commands are accepted, its numbers are those of the figures."""

import importlib.util
import io
import re
import shlex
import subprocess

import pandas as pd
import pytest

from cfutils import batch, paths
from cfutils.__main__ import parser

README = (paths.root() / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.split("#")[0])[1:]
    for line in re.findall(r"^cfutils .*$", README, re.MULTILINE)
]


def results():
    """The script that writes the block of results."""
    path = paths.root() / "scripts" / "readme_results.py"
    spec = importlib.util.spec_from_file_location("readme_results", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_accepted(command):
    options = parser().parse_args(command)
    if command[0] == "run":
        assert batch.prepare(options.profile, options.notebook, options.parameter)


def test_there_are_commands():
    assert len(COMMANDS) >= 8


def test_results_are_those_of_the_figures():
    script = results()
    block = README.split(script.START)[1].split(script.END)[0]
    found = [script.block(pd.read_csv(paths.root() / script.DATA))]
    # who draws the figures again, on another processor, changes last digits; README speaks of those shipped
    command = ["git", "-C", str(paths.root()), "show", f"HEAD:{script.DATA}"]
    shipped = subprocess.run(command, capture_output=True, text=True)
    if shipped.returncode == 0:
        found.append(script.block(pd.read_csv(io.StringIO(shipped.stdout))))
    assert block in found


def test_every_picture_is_there():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (paths.root() / name).is_file(), name
