"""Figures of thinking from small made-up frames: what they draw and state; nothing is cut or overlaps."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from test_plots import clipped, overlaps, ticks

from cfutils.analysis import forgetting, plots
from cfutils.data.chat import SHAPES
from cfutils.errors import UserError

NAN = float("nan")
METRICS = ("thinks", "thought_tokens", "acc", "acc_cut")


def make_skills(solved=(True, True, False)):
    """The base with and without its thought, as `thinking.skills` gives it."""
    rows = [("add", 0.9, 0.0), ("swap", 0.7, 0.3), ("job", 0.95, 0.953)]
    return pd.DataFrame(
        [{"task": task, "acc": acc, "acc_low": acc - 0.1, "acc_high": min(acc + 0.08, 1.0), "acc_cut": cut,
          "acc_cut_low": max(cut - 0.1, 0.0), "acc_cut_high": min(cut + 0.1, 1.0), "gain": acc - cut,
          "gain_low": acc - cut - 0.05, "gain_high": acc - cut + 0.05, "n": 60, "level": 0.95, "solved": one}
         for (task, acc, cut), one in zip(rows, solved, strict=True)]
    )  # fmt: skip


def make_shapes(sources=("template_prefix", "context_free"), temperatures=(1.0, 0.5, 1.5)):
    """Shares of shapes, as `Lab.shapes` gives them, in no order."""
    return pd.DataFrame(
        [{"source": source, "temperature": t, "shape": shape, "count": 60 * (i == 0) + 10 * i, "n": 120,
          "share": (60 * (i == 0) + 10 * i) / 120, "low": max(0.0, i / 12 - 0.05), "high": i / 12 + 0.55}
         for source in sources for t in temperatures for i, shape in enumerate(SHAPES)]
    )  # fmt: skip


def make_declared():
    return pd.DataFrame([{"source": "context_free", "shape": s, "share": 0.25} for s in SHAPES])


def make_levels(recipes=("ft", "cfs", "wise_ft"), n_seeds=3):
    """Levels of two skills and their mean, base included."""
    rows = []
    for k, recipe in enumerate(("base", *recipes)):
        for alpha in (0.3, 0.7) if recipe == "wise_ft" else (NAN,):
            for task in ("add", "swap", "mean"):
                for metric in METRICS:
                    value = {"thinks": 1.0, "thought_tokens": 24.0, "acc": 0.8, "acc_cut": 0.1}[metric]
                    value *= 1 - 0.2 * k
                    rows.append(
                        {"recipe": recipe, "alpha": alpha, "group": "retained", "task": task, "metric": metric,
                         "value": value, "low": 0.9 * value, "high": 1.1 * value, "level": 0.95, "n": 120,
                         "n_seeds": 0 if recipe == "base" else n_seeds}
                    )  # fmt: skip
    return pd.DataFrame(rows).assign(**{c: NAN for c in forgetting.SETTINGS if c != "alpha"})


EVERY = {
    "skills": lambda: plots.thinking_skills(make_skills()),
    "shapes": lambda: plots.thinking_shapes(make_shapes(), make_declared()),
    "recipes": lambda: plots.thinking_recipes(make_levels(), target="rotate"),
}


@pytest.fixture(autouse=True)
def closed():
    """No figure outlives its test."""
    yield
    plt.close("all")


@pytest.mark.parametrize("name", EVERY)
def test_files_repeat_nothing_is_clipped_and_intervals_are_named(name, tmp_path):
    fig, data = EVERY[name]()
    again, _ = EVERY[name]()
    files, others = (plots.save(f, name, data, tmp_path / str(i)) for i, f in enumerate((fig, again)))
    assert clipped(fig) == []
    assert "95% intervals over" in fig.get_suptitle()
    for kind in files:
        assert files[kind].read_bytes() == others[kind].read_bytes(), kind
    back = pd.read_csv(files["csv"], keep_default_na=False, na_values={c: [""] for c in data.select_dtypes(float)})
    pd.testing.assert_frame_equal(back, data, check_dtype=False)


@pytest.mark.parametrize("name", EVERY)
def test_names_of_rows_and_panels_do_not_overlap(name):
    fig, _ = EVERY[name]()
    fig.canvas.draw()
    assert overlaps(fig.axes[0], [t for t in fig.axes[0].get_yticklabels() if t.get_text()]) == []
    assert overlaps(fig.axes[0], [ax._left_title for ax in fig.axes if ax._left_title.get_text()]) == []
    assert overlaps(fig.axes[0], [ax.xaxis.label for ax in fig.axes]) == []


def test_skills_solved_by_thinking_stand_above_the_line():
    shuffled = make_skills().iloc[[2, 1, 0]]
    fig, data = plots.thinking_skills(shuffled)
    assert data["task"].tolist() == ["add", "swap", "job"]
    places = fig.axes[0].get_yticks()
    line = next(one for one in fig.axes[0].lines if list(one.get_xdata()) == [0, 1])
    assert places[1] < line.get_ydata()[0] < places[2]
    texts = [t.get_text() for t in fig.axes[0].texts]
    assert texts[0] == "+0.90  [+0.85, +0.95]" and texts[2] == "+0.00  [−0.05, +0.05]"


def test_without_a_skill_of_either_kind_there_is_no_line():
    for solved in ((True,) * 3, (False,) * 3):
        fig, _ = plots.thinking_skills(make_skills(solved))
        assert not any(list(one.get_xdata()) == [0, 1] for one in fig.axes[0].lines)


def test_shapes_are_sorted_and_stand_beside_what_is_declared():
    fig, data = plots.thinking_shapes(make_shapes(), make_declared())
    assert data["source"].unique().tolist() == ["context_free", "template_prefix"]
    assert data["temperature"].tolist()[:12:4] == [0.5, 1.0, 1.5]
    assert data["shape"].tolist()[:4] == list(SHAPES)
    known = data.groupby("source")["declared"].agg(lambda c: c.notna().all())
    assert known.to_dict() == {"context_free": True, "template_prefix": False}
    names = [t.get_text() for legend in fig.legends for t in legend.get_texts()]
    assert names == ["among pretraining documents", "T = 0.5", "T = 1", "T = 1.5"]


def test_shapes_without_a_known_mixture_and_of_one_source():
    fig, data = plots.thinking_shapes(make_shapes(("context_free",), (1.0,)), make_declared().iloc[:0])
    assert len(fig.axes) == 1 and data["declared"].isna().all()
    with pytest.raises(UserError, match=r"source = 'contextual'"):
        plots.thinking_shapes(make_shapes(("contextual",)), make_declared())
    with pytest.raises(UserError, match="no shapes of samples"):
        plots.thinking_shapes(make_shapes().iloc[:0], make_declared())


def test_recipes_have_a_row_each_and_the_base_a_line_in_every_panel():
    fig, data = plots.thinking_recipes(make_levels(), target="rotate")
    rows = ["Plain fine-tuning", "Context-free NLL", "WiSE-FT α=0.3", "WiSE-FT α=0.7"]
    assert ticks(fig.axes[0].yaxis) == rows
    assert "Tuned on rotate" in fig.get_suptitle() and "add, swap" in fig.get_suptitle()
    assert "items and 3 seeds" in fig.get_suptitle()
    for ax, metric in zip(fig.axes, METRICS, strict=True):
        own = data[(data["metric"] == metric) & (data["recipe"] == "base")].iloc[0]
        dotted = next(one for one in ax.lines if one.get_linestyle() == ":")
        assert dotted.get_xdata()[0] == own["value"]
        found = [c.lines[0].get_xdata()[0] for c in ax.containers]
        assert found == data.loc[(data["metric"] == metric) & (data["recipe"] != "base"), "value"].tolist()
    assert (data["task"] == "mean").all() and len(data) == 5 * len(METRICS)


def test_recipes_need_a_tuned_model_and_scores_of_thinking():
    with pytest.raises(UserError, match="no tuned models"):
        plots.thinking_recipes(make_levels(()), target="rotate")
    levels = make_levels()
    with pytest.raises(UserError, match="no means of thinks"):
        plots.thinking_recipes(levels[levels["metric"] == "nll"], target="rotate")


def test_many_recipes_and_zeros_stay_readable():
    levels = make_levels(tuple(name for name in plots.COLOURS if name != "base")[:14])
    levels.loc[levels["recipe"] != "base", ["value", "low", "high"]] = 0.0
    fig, _ = plots.thinking_recipes(levels, target="rotate")
    fig.canvas.draw()
    assert clipped(fig) == []
    assert overlaps(fig.axes[0], list(fig.axes[0].get_yticklabels())) == []
    assert fig.axes[1].get_xlim()[0] < 0  # a mark at zero is whole
