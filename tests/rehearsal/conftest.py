"""A hub of two small repositories, and a process whose libraries fetch from it."""

import os
import subprocess
import sys

import pytest

from cfutils.rehearsal import shrink
from cfutils.rehearsal.hub import Hub


@pytest.fixture
def hub(tmp_path):
    """A model with three revisions, a data set, and a gated data set."""
    for path, text in {
        "models/owner/model/config.json": '{"model_type": "olmo"}', "models/owner/model/sub/notes.txt": "0123456789",
        "datasets/owner/data/README.md": "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n"
                                         "    path: main/train-*\n---\n",
        "datasets/owner/data/main/train-0.jsonl": '{"q": "one"}\n{"q": "two"}\n',
        "datasets/owner/secret/README.md": "---\n{}\n---\n", "datasets/owner/secret/train.jsonl": '{"q": "three"}\n',
    }.items():  # fmt: skip
        file = tmp_path / "hub" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    revisions = {"owner/model": ("main", "v1.0", "a/branch")}
    with Hub(tmp_path / "hub", gated=frozenset({"owner/secret"}), revisions=revisions) as running:
        yield running


@pytest.fixture
def python(hub, tmp_path):
    """Run a script in a process of its own, for libraries read HF_ENDPOINT once; return what it prints."""

    def run(script, **more):
        values = {**shrink.environment(hub.endpoint, tmp_path), "HF_TOKEN": None, **more}
        env = {k: v for k, v in os.environ.items() if k not in values} | {k: v for k, v in values.items() if v}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
