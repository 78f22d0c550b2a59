"""The page at the end of a run: for every folder that figures were drawn into, with the notebooks executed for it."""

from __future__ import annotations

import shutil

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from cfutils import paths
from cfutils.analysis import plots
from cfutils.errors import UserError
from cfutils.runner import batch, pages
from cfutils.runner.jobs import prepare

DRAW = """import matplotlib.pyplot as plt, pandas as pd
from cfutils.lab import Lab
lab = Lab.from_parameters(globals())
fig, ax = plt.subplots(figsize=(2, 1))
lab.save(fig, pd.DataFrame({"x": [1]}), "curve")
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project of two notebooks that draw one figure, and one that fails."""
    for folder in ("notebooks", "profiles"):
        (tmp_path / folder).mkdir()
    shutil.copytree(paths.root() / "data" / "tiny", tmp_path / "data" / "tiny")
    shutil.copy(paths.root() / "data" / "assets.yaml", tmp_path / "data")
    (tmp_path / "profiles" / "tiny.yaml").write_text(
        'about: tiny\nbase: nowhere/none\nnotebooks: ["01", "02", "03"]\n'
    )
    for name, code in (("01_one", DRAW), ("02_two", DRAW), ("03_fails", "1 / 0")):
        node = nbformat.v4.new_notebook()
        node.metadata["cfutils"] = {"title": name[3:].capitalize(), "figures": ["curve"] if code == DRAW else []}
        parameters = 'profile: str = "tiny"\n' + "n_train: int = None\n" * (name == "02_two")
        node.cells = [
            nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(code),
        ]
        nbformat.write(node, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setenv("CFUTILS_ROOT", str(tmp_path))
    monkeypatch.delenv("CFUTILS_RUNS", raising=False)
    monkeypatch.delenv("CFUTILS_FIGURES", raising=False)
    return tmp_path


def test_a_run_ends_with_a_page_that_links_what_was_executed(root, capsys):
    """Also where a notebook failed: it stands on the page without a copy."""
    assert batch.run("tiny") == 1
    page = root / "figures" / "tiny" / "index.html"
    assert f"report and gallery: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    for name in ("01_one", "02_two"):
        assert f'href="notebooks/{name}.html"' in text
        assert "from_parameters" in (page.parent / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    assert "03_fails.html" not in text and "03 · Fails" in text


def test_a_changed_parameter_has_a_page_of_its_own(root):
    assert batch.run("tiny", ["01", "02"], ["n_train=8"]) == 0
    pages_there = sorted(path.parent.name for path in (root / "figures").glob("*/index.html"))
    assert pages_there == ["tiny", "tiny+n_train=8"]
    text = (root / "figures" / "tiny+n_train=8" / "index.html").read_text(encoding="utf-8")
    assert 'href="notebooks/02_two.html"' in text and "03 · Fails" not in text
    assert not (root / "figures" / "tiny" / "notebooks" / "02_two.html").exists()


def test_without_figures_there_is_no_page(root):
    assert batch.run("tiny", ["03"]) == 1
    assert not (root / "figures").exists()
    with pytest.raises(UserError, match="no figures yet: `cfutils run tiny` draws them"):
        pages.again("tiny")


def test_a_page_is_written_again_without_running_anything(root, capsys):
    from cfutils.__main__ import main

    folder = root / "figures" / "tiny"
    fig, _ = plt.subplots()
    plots.save(fig, "curve", pd.DataFrame({"x": [1]}), folder)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "01_one.html").write_text("executed before")
    assert main(["gallery", "tiny"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "index.html")
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert 'href="notebooks/01_one.html"' in text and "02_two.html" not in text
    assert not (root / "data" / "runs" / "notebooks").exists()


def test_folders_are_those_that_the_labs_draw_into():
    (job,) = prepare("tiny", ["04"], ["temperatures=[0.8, 1]", "ratio=0.5"])
    lab = pages._lab(prepare("tiny", ["00"], [])[0].profile, job.profile)
    assert lab.name == "tiny+ratio=0.5+temperatures=0.8,1"
