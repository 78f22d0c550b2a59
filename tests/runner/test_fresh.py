"""A notebook that ran well is left alone as long as nothing that it hangs on has changed."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest

from cfutils.runner import batch, execute, fresh

PROFILE = "about: tiny\nbase: nowhere/none\nratio: 0.25\n"
PARAMETERS = 'profile: str = "tiny"  # scale\nn_train: int = 8  # items\n'


def write(root: Path, cell: str) -> None:
    """Put the one notebook into the project."""
    node = nbformat.v4.new_notebook(metadata={"cfutils": {"title": "One", "figures": ["curve"]}})
    node.cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(cell),
    ]
    for number, made in enumerate(node.cells):
        made["id"] = f"cell{number}"  # those of nbformat are random
    nbformat.write(node, root / "notebooks" / "01_one.ipynb")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with a profile and a notebook, whose execution is played: no kernel starts."""
    for folder in ("notebooks", "profiles"):
        (tmp_path / folder).mkdir()
    (tmp_path / "profiles" / "tiny.yaml").write_text(PROFILE)
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    write(tmp_path, "x = 1")
    monkeypatch.setenv("CFUTILS_ROOT", str(tmp_path))
    for name in ("CFUTILS_RUNS", "CFUTILS_EVENTS", "CFUTILS_FIGURES"):
        monkeypatch.delenv(name, raising=False)

    def play(notebook, parameters, *, folder, env, show):
        (folder / f"{notebook.name}.ipynb").write_text("{}")
        record = tmp_path / "data/runs/run/a1/record.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
        for ending in ("png", "pdf", "csv"):
            path = tmp_path / f"figures/tiny/curve.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(ending)
        events = [
            {"event": "built", "kind": "run", "key": "a1"},
            {"event": "figure", "path": str(tmp_path / "figures/tiny/curve.png")},
        ]
        lines = "".join(json.dumps(event) + "\n" for event in events)
        execute.events_file(notebook, folder).write_text(lines)

    monkeypatch.setattr(execute, "run", play)
    return tmp_path


def status(root: Path, *given: str, rebuild: bool = False) -> str:
    """Run the suite; return what became of its notebook."""
    assert batch.run("tiny", [], given, rebuild=rebuild) == 0
    summary = json.loads((root / "data/runs/notebooks/tiny/summary.json").read_text())
    return summary["notebooks"][0]["status"]


def test_unchanged_when_nothing_changed(root, capsys):
    assert status(root) == "good"
    assert status(root) == "unchanged"
    said = capsys.readouterr().out
    assert "01_one: unchanged" in said and said.count("1 of 1 good") == 2
    summary = json.loads((root / "data/runs/notebooks/tiny/summary.json").read_text())
    row = summary["notebooks"][0]
    assert (row["built"], row["reused"], row["models"]) == (0, 1, 0)
    assert row["figures"] == ["curve"]


CHANGES = {
    "a figure is gone": lambda r: (r / "figures/tiny/curve.png").unlink(),
    "a figure has other bytes": lambda r: (r / "figures/tiny/curve.pdf").write_text("other"),
    "a figure's data has other bytes": lambda r: (r / "figures/tiny/curve.csv").write_text("other"),
    "an artifact is gone": lambda r: shutil.rmtree(r / "data/runs/run/a1"),
    "an artifact's record is gone": lambda r: (r / "data/runs/run/a1/record.json").unlink(),
    "the source": lambda r: write(r, "x = 2"),
    "the profile": lambda r: (r / "profiles/tiny.yaml").write_text(PROFILE + "seeds: [0, 1]\n"),
    "the output is gone": lambda r: (r / "data/runs/notebooks/tiny/01_one.ipynb").unlink(),
    "the note is torn": lambda r: next(r.glob("data/runs/*/*/*.fresh.json")).write_text("{"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_runs_again_when_something_changed_and_then_no_more(root, change):
    assert status(root) == "good"
    change(root)
    assert status(root) == "good"
    assert status(root) == "unchanged"


def test_runs_again_with_another_parameter(root):
    assert status(root) == "good"
    assert status(root, "n_train=3") == "good"
    assert status(root, "n_train=3") == "unchanged"
    assert status(root) == "good"


@pytest.mark.parametrize("line", ["target: {}", "retained: [{}]"])
def test_runs_again_when_the_items_of_a_file_of_ones_own_changed(root, line):
    own = root / "own.jsonl"
    (root / "profiles" / "tiny.yaml").write_text(PROFILE + line.format(json.dumps(str(own))) + "\n")
    assert status(root) == "good"
    assert status(root) == "unchanged"
    own.write_text('{"prompt": "a", "response": "c"}\n')
    assert status(root) == "good"


@pytest.mark.parametrize("what", ["_package_digest", "versions"])
def test_runs_again_with_other_code_or_versions(root, monkeypatch, what):
    assert status(root) == "good"
    monkeypatch.setattr(fresh, what, lambda: "other")
    assert status(root) == "good"


def test_rebuild_runs_again(root):
    assert status(root) == "good"
    assert status(root, rebuild=True) == "good"
    assert status(root) == "unchanged"


def test_what_failed_is_never_unchanged(root, monkeypatch):
    fail = execute.Failure(None, "", "ValueError", "no")
    monkeypatch.setattr(execute, "run", lambda *_, **__: fail)
    for _ in range(2):
        assert batch.run("tiny") == 1
    assert not (root / "data/runs/notebooks/tiny/01_one.fresh.json").exists()


def test_code_is_that_of_subpackages_too_and_comments_are_none(tmp_path, monkeypatch):
    for name, text in {
        "__init__.py": "", "sub/__init__.py": "", "sub/fresh.py": "", "sub/part.py": "x = 1",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(fresh, "__file__", str(tmp_path / "sub/fresh.py"))
    found = fresh._package_digest.__wrapped__
    before = found()
    fresh.source_digest.cache_clear()
    (tmp_path / "sub/part.py").write_text('"""A part."""\nx = 1  # why\n')
    assert found() == before
    fresh.source_digest.cache_clear()
    (tmp_path / "sub/part.py").write_text("x = 2")
    assert found() != before
