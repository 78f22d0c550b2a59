"""Shipped results from a finished store to redrawn tables, and two sets of results compared."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest

from cfutils import __main__ as cli
from cfutils import paths
from cfutils.errors import UserError
from cfutils.lab import Lab
from cfutils.pipeline.results import Shipped
from cfutils.runner import plan, results

SMALL = """about: small
base: shipped:tiny
engine: transformers
target: rotate
n_train: 8
n_heldout: 4
n_generate: 4
n_probe: 2
n_samples: 6
n_contextual: 4
max_tokens: 12
max_length: 32
limit: 2
retained: [job, category]
recipes: [ft, cfs]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the tiny base, one small profile, and one notebook that reads one study."""
    import nbformat

    root, here = tmp_path / "project", paths.root()
    for folder in ("notebooks", "profiles", "data"):
        (root / folder).mkdir(parents=True)
    shutil.copytree(here / "data" / "tiny", root / "data" / "tiny")
    shutil.copy(here / "data" / "assets.yaml", root / "data")
    (root / "data" / "cache").symlink_to(here / "data" / "cache")
    (root / "profiles" / "small.yaml").write_text(SMALL)
    node = nbformat.v4.new_notebook(metadata={"cfutils": {"title": "One", "studies": ["methods"]}})
    source = 'profile: str = "small"  # scale\nseeds: list = None  # seeds of tuning'
    node.cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})]
    nbformat.write(node, root / "notebooks" / "01_one.ipynb")
    monkeypatch.setenv("CFUTILS_ROOT", str(root))
    monkeypatch.setenv("CFUTILS_RUNS", str(root / "runs"))
    return root


@pytest.mark.slow
def test_results_ship_and_are_read_without_a_model(project, events, capsys):
    """Built, exported, the store deleted: the same study, with no model loaded and nothing built."""
    assert cli.main(["results", "export", "small"]) == 2  # nothing is there yet
    study = Lab("small").study("methods")
    steps = study.log()["step"].tolist()
    assert cli.main(["results", "export", "small"]) == 0
    assert "of 11 artifacts" in capsys.readouterr().out.replace("11 of 11", "of 11")
    assert cli.main(["results", "export", "small", "-p", "seeds=[0, 7]"]) == 0  # what there is of a longer study
    assert re.search(r"11 of (1[2-9]|2\d) artifacts.*; [1-9]\d? are not built yet", capsys.readouterr().out)
    assert cli.main(["results", "compare", "small", "here", "-p", "seeds=[0]"]) == 2
    assert cli.main(["results", "compare", "small", "here"]) == 0
    assert "identical" in capsys.readouterr().out
    shutil.rmtree(project / "runs")
    events()
    again = Lab("small").study("methods")
    pd.testing.assert_frame_equal(again.scores, study.scores)
    pd.testing.assert_frame_equal(again.items, study.items)
    assert again.log()["step"].tolist() == steps
    again.mixes(), again.tokens(recipes=["cfs"])
    assert {(e["event"], e["shipped"]) for e in events()} == {("reused", True)}
    assert set(again.lab.provenance()["origin"]) == {"shipped"}
    states = {row["kind"]: row["state"] for row in plan.plan(again.lab.profile, ["methods"])}
    assert states["target"] == "shipped" and states["tuned"] == "unneeded"
    with pytest.raises(UserError, match="here holds no scores of profile small"):
        results.compare("small", "here")


@pytest.mark.slow
def test_what_differs_is_found(project):
    """One item's value changed in a copy of the results."""
    Lab("small").study("methods")
    results.export("small")
    copy = project / "copy" / "small"
    shutil.copytree(paths.results("small"), copy)
    items = pd.read_parquet(copy / "items.parquet")
    place = items.index[(items["metric"] == "nll") & (items["group"] == "target")][0]
    items.loc[place, "value"] += 0.5
    items.to_parquet(copy / "items.parquet")
    found = results.compare("small", str(copy)).set_index(["group", "task", "metric"])
    assert found.loc[("target", "rotate", "nll"), "largest"] == pytest.approx(0.5)
    assert found.loc[("target", "rotate", "bpb"), "agreement"] == "identical"


def test_a_side_without_results_is_refused(project):
    assert not Shipped(paths.results("small")).records
    with pytest.raises(UserError, match="results = 'small' is not allowed"):
        results.compare("small", "small")
