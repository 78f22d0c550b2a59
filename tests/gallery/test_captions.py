"""Captions: numbers of hand-made data, and what is said of data that are not known."""

from __future__ import annotations

import pandas as pd
import pytest

from cfutils import paths, profiles
from cfutils.gallery import figures
from cfutils.gallery.captions import CAPTIONS, caption
from cfutils.runner.notebook import notebooks


def test_the_ranking_names_the_first_and_the_last_of_those_that_reach_the_target():
    data = pd.DataFrame(
        {
            "recipe": ["replay_only", "l2", "cfs"],
            "drop": [0.0, 0.25, 1.5],
            "difference": [-1.5, -1.25, None],
            "metric": "bpb_gold",
            "reach": ["learns less", "same", "same"],
        }
    )
    title, text = caption("ranking", data)
    assert title == "Every method at one target score"
    assert text == (
        "Of 2 methods that reach the target score of Context-free NLL, L2 to base forgets least (0.25 in answer bits"
        " per byte) and Context-free NLL most (1.50). 1 do not reach it."
    )


def test_an_ablation_names_the_setting_that_loses_least_with_its_interval():
    columns = ["panel", "recipe", "ratio", "value", "low", "high", "n_seeds"]
    rows = [
        ("retained", "base", None, 0, 0, 0, 0),
        ("retained", "ft", None, 2, 1.5, 2.5, 3),
        ("retained", "cfs", 0.2, 1, 0.5, 1.5, 3),
        ("retained", "cfs", 0.6, -0.001, -0.5, 0.5, 3),
        ("target", "cfs", 0.2, -9, 0, 0, 3),
    ]
    _, text = caption("ratio", pd.DataFrame(rows, columns=columns))
    assert text == (
        "Context-free NLL loses least at 0.6: 0.00 [-0.50, 0.50]; plain fine-tuning loses 2.00 [1.50, 2.50]. 3 seeds."
    )


def test_a_setting_that_matters_is_named_with_its_difference_and_side():
    rows = [
        ("cfs at temperature 0.5", "bpb_gold", 0.25, "supported"),
        ("cfs at temperature 0.75", "bpb_gold", -0.0625, "supported"),
        ("cfs at temperature 1.5", "bpb_gold", 0.1, "inconclusive"),
        ("cf_kl at temperature 0.5", "bpb_gold", 0.001, "equivalent"),
        ("l2 at temperature 0.5", "bpb_gold", 0.3, "not testable"),
        ("cfs at temperature 0.5", "kl", 0.5, "supported"),
    ]
    data = pd.DataFrame(rows, columns=["rival", "metric", "effect", "verdict"]).assign(reason="one seed")
    title, text = caption("temperature_verdicts", data)
    assert title == "Does the temperature matter? Beside T = 1"
    assert text == (
        "Context-free NLL retains less at temperature 0.5 (0.250), more at temperature 0.75 (0.062); 1 inconclusive."
        " Context-free KL retains neither more nor less beyond noise; 1 equivalent."
        " L2 to base: not testable (one seed). In answer bits per byte, paired by seed and item."
    )


@pytest.mark.parametrize("name", ["ranking", "my_figure"])
def test_unknown_data_are_described_by_their_size(name):
    assert caption(name, pd.DataFrame({"x": [1, 2], "y": [3, 4]}))[1] == "Drawn from 2 rows: x, y."


def test_every_figure_of_the_suite_has_a_caption_of_its_own():
    """Of those that ship also a sentence from their data, not the one for any table."""
    named = {figure for notebook in notebooks() for figure in notebook.figures}
    assert named <= set(CAPTIONS)
    drawn = [path for name in profiles.names() for path in (paths.root() / "figures" / name).glob("*.csv")]
    assert drawn
    for path in drawn:
        assert not caption(path.stem, pd.read_csv(path))[1].startswith("Drawn from"), path


def test_figures_stand_under_the_notebook_that_draws_them():
    suite = {one.number: one for one in notebooks()}
    found = figures.gathered(paths.root() / "figures" / "tiny-claims", [suite["03"], suite["07"]])
    assert [title for title, _ in found] == [f"07 · {suite['07'].title}"]
    assert [one.name for one in found[0][1]] == list(suite["07"].figures)
    first = found[0][1][0]
    assert (first.width, first.height) == (2080, 1376) and first.files == ("frontiers.pdf", "frontiers.csv")
