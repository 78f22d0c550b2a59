"""Every figure from small made-up frames: it draws, its files repeat to the byte, odd text is safe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cfutils.analysis import forgetting, plots
from cfutils.analysis.plots import direct_labels, drift
from cfutils.errors import UserError
from cfutils.recipes import RECIPES

NAN = float("nan")
ODD = 'costs $5 and $6 <script>alert(1)</script>\r\n\ttab \x07 & "quote" 😀 ‮ e\u0301 漢字 $\\frac$'
TASKS = ("hellaswag", "arc_easy", "piqa")
PROBES = ("context_free", "prose", "stories", "target_inputs")


def make_samples(n=40, temperatures=(0.7, 1.0)):
    """Samples and entropies as the lab gives them."""
    rng = np.random.default_rng(0)
    words = [
        "The",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        ";",
        "and",
        "then",
        ",",
        "of",
        "course",
        ",",
        "sleeps",
        ".",
    ]
    rows, curves = [], []
    for t in temperatures:
        for i in range(n):
            length = int(min(rng.geometric(1 / 70) + 4, 128))
            text = ODD if i == 1 else " ".join(rng.choice(words, length))
            rows.append(
                {"index": i, "seed": 0, "temperature": t, "token_ids": list(range(length)),
                 "logprobs": (-rng.gamma(0.5 + t / 2, 2.5, length)).tolist(),
                 "finish_reason": "length" if length == 128 else "stop", "text": text}
            )  # fmt: skip
        place = np.arange(128)
        curves.append(
            pd.DataFrame(
                {"source": "context_free", "temperature": t, "position": place,
                 "entropy": 3 * t + 4 * np.exp(-place / 5) + rng.normal(0, 0.15, 128),
                 "stderr": 0.1 + place / 600}
            )
        )  # fmt: skip
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True)


def make_log(steps=120, recipes=("ft", "cfs", "cf_kl", "lora"), seeds=(0, 1)):
    """A training log."""
    rng = np.random.default_rng(1)
    rows = []
    for k, recipe in enumerate(recipes):
        for seed in seeds:
            for step in range(steps):
                replay = 3.2 - 0.05 * k + rng.normal(0, 0.1) if RECIPES[recipe].replay else NAN
                rows.append(
                    {"recipe": recipe, "seed": seed, "step": step, "lr": 1e-4 * min(step + 1, 20),
                     "penalty": NAN,
                     "target_loss": 1 + (1 + 0.1 * k) * np.exp(-step / 30) + rng.normal(0, 0.1),
                     "replay_loss": replay}
                )  # fmt: skip
    return pd.DataFrame(rows)


def make_runs(names=tuple(RECIPES)[:9], seeds=(0,), alphas=(0.25, 0.5, 0.75)):
    """Settings of runs, each with how much it learnt and forgot."""
    runs = [{"run": "b", "recipe": "base", "seed": -1, "learn": 0.0, "forget": 0.0}]
    harm = dict(ft=1.0, cfs=0.25, cf_kl=0.05, contextual=0.4, replay_text=0.3,
                pretraining=0.2, l2=0.5, lora=0.6)  # fmt: skip
    for seed in seeds:
        for name in names:
            one = {"recipe": name, "seed": seed, "lr": 2e-4}
            if name == "wise_ft":
                runs += [{**one, "run": f"{name}{seed}{a}", "alpha": a, "learn": a**0.7,
                          "forget": a**1.8} for a in alphas]  # fmt: skip
            else:
                learn = 1.0 if name == "ft" else 0.85 + 0.02 * len(name) / 3
                runs.append({**one, "run": f"{name}{seed}", "learn": learn, "forget": harm[name]})
    return runs


def make_sweep(x, values, names=("cfs", "cf_kl"), seeds=(0,)):
    """Settings of an ablation's runs with plain fine-tuning."""
    runs = make_runs(names=("ft",), seeds=seeds)
    for seed in seeds:
        for k, name in enumerate(names):
            runs += [{"run": f"{name}{seed}{v}", "recipe": name, "seed": seed, "lr": 2e-4, x: v,
                      "learn": 0.95 - 0.1 * i / len(values),
                      "forget": 0.5 / (1 + i) / (1 + k)} for i, v in enumerate(values)]  # fmt: skip
    return runs


def make_items(runs, n=60, tasks=TASKS):
    """Item-level outcomes of runs: hard and easy items that base and tuned share."""
    frames = []
    cells = [("target", "gsm8k", "nll"), ("target", "gsm8k", "bpb")]
    cells += [("retained", t, m) for t in tasks for m in ("acc", "margin", "bpb_gold")]
    cells += [("probe", p, "kl") for p in PROBES]
    for place, (group, task, metric) in enumerate(cells):
        rng = np.random.default_rng(place)
        hard, weight = rng.normal(1.5, 0.6, n), rng.integers(5, 40, n)
        for k, run in enumerate(runs):
            rng = np.random.default_rng([place, k])
            noise = rng.normal(0, 0.06, n) if run["recipe"] != "base" else np.zeros(n)
            worse = run["forget"] * (0.08 + 0.03 * (place % 3)) + noise
            if metric == "acc":
                value = (hard - worse > 1.2).astype(float)
            elif metric == "kl":
                value = np.abs(worse) * 2 * (1 + place % 4)
            elif group == "target":
                value = hard * (1 - 0.4 * run["learn"]) + noise
            else:
                value = hard + (worse if metric == "bpb_gold" else -worse)
            keys = {c: run.get(c, NAN) for c in forgetting.RUN}
            frames.append(
                pd.DataFrame({**keys, "group": group, "task": task, "metric": metric, "value": value,
                              "item": [str(i) for i in range(n)],
                              "weight": weight if metric in ("nll", "bpb", "kl") else 1.0})
            )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def make_levels():
    """Validation NLL of a learning-rate sweep, as `forgetting.levels` gives it."""
    rows = [("base", NAN, 1.9), ("ft", 3e-5, 1.5), ("ft", 1e-4, 1.2), ("ft", 3e-4, 0.11),
            ("ft", 1e-3, 1.4)]  # fmt: skip
    return pd.DataFrame(
        [{"recipe": recipe, "lr": lr, "group": "validation", "task": "gsm8k", "metric": "nll",
          "value": value, "low": value / 1.2, "high": value * 1.2, "level": 0.95,
          "n_seeds": 0 if recipe == "base" else 2} for recipe, lr, value in rows]
    )  # fmt: skip


def make_tokens(recipes=("ft", "cfs"), n=70):
    """A passage with its drift; some tokens are odd."""
    rng = np.random.default_rng(3)
    words = [" the", " committee", " of", " rivers", ",", " was", " founded", ".", "\n", " $x$", "😀",
             " <script>", " in", " 1887", "ing", "\n\n"]  # fmt: skip
    text = [*rng.choice(words, n - 1), ODD]
    base = rng.gamma(1, 2.0, n)
    rows = []
    for k, recipe in enumerate(recipes):
        kl = rng.gamma(0.5, 0.4, n) / (1 + 2 * k)
        rows += [{"recipe": recipe, "sequence": 0, "position": i, "token": str(text[i]), "kl": kl[i],
                  "nll_base": base[i], "nll": base[i] + rng.normal(0.1, 1) / (1 + k)}
                 for i in range(n)]  # fmt: skip
    return pd.DataFrame(rows)


def make_loss(steps=300):
    """The log of a pretraining, its steps out of order."""
    step = np.arange(steps)[::-1]
    return pd.DataFrame({"step": step, "tokens": 3000 + step, "seconds": 2.0 * step,
                         "loss": 2 + 6 * np.exp(-step / 30) + 0.2 * (step % 3)})  # fmt: skip


def make_skills():
    """Scores of the base on skills, two of them targets."""
    rows = [("sort", 0.9, False, "retained"), ("rotate", 0.0, False, "target"),
            ("sum", 0.97, True, "retained"), ("job", 1.0, False, "retained"),
            ("total", 0.4, True, "target")]  # fmt: skip
    return pd.DataFrame(
        [{"task": task, "value": value, "low": max(value - 0.05, 0), "high": min(value + 0.06, 1),
          "n": 200, "steps": steps, "role": role} for task, value, steps, role in rows]
    )  # fmt: skip


def make_shares(temperatures=(0.5, 1.0)):
    """Shares of kinds: declared, of context-free samples, of contextual ones."""
    mixture = {"job": 0.3, "prose": 0.5, "sum": 0.2}
    rows = [{"source": "mixture", "temperature": NAN, "kind": kind, "count": NAN, "n": NAN,
             "share": share, "low": NAN, "high": NAN} for kind, share in mixture.items()]  # fmt: skip
    for source, t in [("contextual", 1.0), *(("context_free", t) for t in temperatures)]:
        counts = (1, 0, 2, 97) if source == "contextual" else (int(40 * t), int(50 / t), 10, 0)
        rows += [{"source": source, "temperature": t, "kind": kind, "count": count, "n": sum(counts),
                  "share": count / sum(counts), "low": max(0, count / sum(counts) - 0.05),
                  "high": count / sum(counts) + 0.05}
                 for kind, count in zip([*mixture, "rotate"], counts, strict=True)]  # fmt: skip
    return pd.DataFrame(rows)


def make_curve(sizes=tuple(2**k for k in range(3, 14))):
    """Estimates of KL by their number of samples; the log ratio's variance is four times the other's."""
    rows = []
    for estimator, one in (("full_kl", 3.0), ("log_ratio", 6.0)):
        for n in sizes:
            sd, bias = one / n**0.5, 0.1 * one / n**0.5
            rows.append({"estimator": estimator, "n": n, "mean": 2 + bias, "sd": sd,
                         "low": 2 - 1.8 * sd, "high": 2 + 2.2 * sd, "bias": bias,
                         "bias_low": bias - sd / 10, "bias_high": bias + sd / 10,
                         "reference": 2.0})  # fmt: skip
    return pd.DataFrame(rows)


def make_bias(models=("Plain fine-tuning", "Context-free $NLL"), unit="nats per sequence"):
    """Estimates of KL by the source of their texts, in no order."""
    rows = []
    for place, model in enumerate(models):
        for source, t in (("text", NAN), ("contextual", 1.0), ("context_free", 1.0),
                          ("pretraining", NAN), ("context_free", 0.5)):  # fmt: skip
            for estimator, off in (("full_kl", -0.2), ("log_ratio", 0.4)):
                value = 3 / (1 + place) + off * (2 - (t == 1))
                rows.append({"model": model, "source": source, "temperature": t, "n": 512,
                             "estimator": estimator, "estimate": value, "low": value - 0.1,
                             "high": value + 0.2, "bias": value - 3 / (1 + place),
                             "bias_low": value - 3 / (1 + place) - 0.15,
                             "bias_high": value - 3 / (1 + place) + 0.25,
                             "reference": 3 / (1 + place), "reference_low": 2.9 / (1 + place),
                             "reference_high": 3.1 / (1 + place), "unit": unit})  # fmt: skip
    return pd.DataFrame(rows)


def every_figure():
    """Name and function of every figure, drawn when called."""
    samples, entropies = make_samples()
    methods = make_items(make_runs(seeds=(0, 1)))
    drops = forgetting.pooled(methods, n_boot=100)
    runs = forgetting.paired_drop(methods, n_boot=100)
    sweep = make_sweep("temperature", (0.5, 0.7, 1.0, 1.3))
    heat = forgetting.pooled(make_items(sweep), n_boot=100)
    return {
        "samples_diagnostics": lambda: plots.samples_diagnostics(samples, entropies),
        "samples_text": lambda: plots.samples_text(samples),
        "training_curves": lambda: plots.training_curves(make_log()),
        "learning_rate": lambda: plots.learning_rate(make_levels()),
        "frontier": lambda: plots.frontier(drops),
        "drop_heatmap": lambda: plots.drop_heatmap(drops),
        "kl_against_drop": lambda: plots.kl_against_drop(runs),
        "token_drift": lambda: plots.token_drift(make_tokens()),
        "ablation": lambda: plots.ablation(heat, "temperature"),
        "recipe_bars": lambda: plots.recipe_bars(drops),
        "pretraining_curve": lambda: plots.pretraining_curve(make_loss()),
        "skill_bars": lambda: plots.skill_bars(make_skills()),
        "kind_shares": lambda: plots.kind_shares(make_shares()),
        "kl_convergence": lambda: plots.kl_convergence(make_curve()),
        "kl_bias": lambda: plots.kl_bias(make_bias()),
        "kl_against_temperature": lambda: plots.kl_against_temperature(make_bias()),
    }


def draw_all(folder):
    """Draw and save every figure; yields name, figure, data, paths."""
    for name, draw in every_figure().items():
        fig, data = draw()
        yield name, fig, data, plots.save(fig, name, data, folder)
        plt.close(fig)


def clipped(fig):
    """Titles, labels, legends and notes of a figure that reach beyond its edge."""
    fig.canvas.draw()
    texts = [*fig.texts, *(t for legend in fig.legends for t in legend.get_texts())]
    texts += [fig._suptitle] if fig._suptitle else []
    for ax in fig.axes:
        texts += ax.texts
        if ax.axison:
            texts += [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]
    frame = fig.bbox.padded(1)
    boxes = {t.get_text(): t.get_window_extent().extents for t in texts if t.get_text()}
    return [text for text, (x0, y0, x1, y1) in boxes.items()
            if min(x0 - frame.x0, y0 - frame.y0, frame.x1 - x1, frame.y1 - y1) < 0]  # fmt: skip


def bars(ax):
    """The error bars of a panel by the name of their series: (n, 2, 2) segments."""
    return {c.get_label(): np.array(c.lines[2][0].get_segments()) for c in ax.containers}


def ticks(axis):
    """What the ticks of an axis say."""
    return [t.get_text() for t in axis.get_ticklabels()]


@pytest.fixture(autouse=True)
def closed():
    """No figure outlives its test."""
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Every figure drawn once: name to (data, paths, clipped texts, all texts); and where again."""
    folder, again = tmp_path_factory.mktemp("figures"), tmp_path_factory.mktemp("again")
    root = Path(plots.__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "7", "MPLBACKEND": "Agg"}
    other = subprocess.Popen([sys.executable, __file__, str(again)], env=env)
    found = {}
    for name, fig, data, files in draw_all(folder):
        texts = [t.get_text() for t in fig.findobj(matplotlib.text.Text)]
        found[name] = (data, files, clipped(fig), texts)
    assert other.wait() == 0
    return found, again


def test_files_repeat_to_the_byte_in_another_process(drawn):
    found, again = drawn
    for _, files, _, _ in found.values():
        for path in files.values():
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_nothing_is_clipped(drawn):
    assert {name: texts for name, (_, _, texts, _) in drawn[0].items() if texts} == {}


def test_the_csv_is_the_data_drawn(drawn):
    for data, files, _, _ in drawn[0].values():
        back = pd.read_csv(files["csv"], keep_default_na=False, na_values={
            c: [""] for c in data if pd.api.types.is_float_dtype(data[c])})  # fmt: skip
        pd.testing.assert_frame_equal(back, data, check_dtype=False)


def test_no_work_file_is_left(drawn):
    folder = next(iter(drawn[0].values()))[1]["png"].parent
    assert not list(folder.glob(".*"))


def test_figures_state_their_seeds_and_intervals(drawn):
    assert any("2 seeds" in t for t in drawn[0]["frontier"][3])
    assert any("one seed" in t for t in drawn[0]["ablation"][3])
    without = {"samples_text", "training_curves", "token_drift", "pretraining_curve"}
    for name in set(drawn[0]) - without:
        texts = [t for t in drawn[0][name][3] if "95%" in t or "holds zero" in t]
        assert texts, name


def test_frontier_labels_its_points_directly(drawn):
    data, _, _, texts = drawn[0]["frontier"]
    assert [t for t in texts if t in set(data["label"])] == data["label"].tolist()


def test_save_emits_an_event(tmp_path, monkeypatch):
    monkeypatch.setenv("CFUTILS_EVENTS", str(tmp_path / "events"))
    fig, data = plots.recipe_bars(forgetting.pooled(make_items(make_runs(("ft",))), n_boot=50))
    files = plots.save(fig, "bars", data, tmp_path / "new")
    event = json.loads((tmp_path / "events").read_text())
    assert event == {"event": "figure", "path": str(files["png"])}
    assert b"Software" not in files["png"].read_bytes()
    assert b"CreationDate" not in files["pdf"].read_bytes()


def test_every_recipe_has_its_own_colour_and_marker():
    names = ["base", *RECIPES]
    assert [*plots.COLOURS] == names
    assert len({(plots.COLOURS[name], plots.MARKERS[name]) for name in names}) == len(names)
    first = names[:10]  # those of the default profile
    assert len({plots.COLOURS[n] for n in first}) == len({plots.MARKERS[n] for n in first}) == len(first)
    assert plots.colour("unheard of") == "#444444"
    assert plots.label("unheard of") == "unheard of"


def test_length_histogram_and_share_that_ended():
    samples = pd.DataFrame(
        {"index": [0, 1], "temperature": 1.0, "token_ids": [[1, 2], [1, 2, 3, 4]],
         "logprobs": [[-0.1, -50.0], [0.0] * 4], "finish_reason": ["stop", "length"],
         "text": ["a", "b"]}
    )  # fmt: skip
    entropies = pd.DataFrame(
        {"source": "context_free", "temperature": 1.0, "position": [0], "entropy": [2.0],
         "stderr": [0.5]}
    )  # fmt: skip
    _, data = plots.samples_diagnostics(samples, entropies)
    by_panel = {name: part for name, part in data.groupby("panel")}
    assert by_panel["ended"]["y"].tolist() == [0.5]
    # the token at -50 nats is in the lowest bin, not lost
    assert by_panel["log-probability"]["y"].iloc[0] == pytest.approx(1 / 6)
    assert by_panel["length"]["y"].sum() == by_panel["log-probability"]["y"].sum() == 1
    # 2 +- 1.96 * 0.5
    assert by_panel["entropy"][["low", "high"]].iloc[0].tolist() == pytest.approx([1.02, 2.98])


def test_entropies_of_tokens_are_averaged_by_position():
    samples, _ = make_samples(4, (1.0,))
    tokens = pd.DataFrame(
        {"source": "context_free", "temperature": 1.0, "sample": [0, 1, 0], "position": [0, 0, 1],
         "entropy": [1.0, 3.0, 2.0]}
    )  # fmt: skip
    _, data = plots.samples_diagnostics(samples, tokens)
    part = data[data["panel"] == "entropy"]
    assert part["y"].tolist() == [2, 2]
    # 1 and 3: standard error sqrt(2/2) = 1; a position that one sample reaches has none
    assert part["low"].tolist() == pytest.approx([2 - 1.96, NAN], nan_ok=True)


def test_training_curves_keep_the_order_of_steps():
    log = pd.DataFrame(
        {"recipe": "ft", "seed": 0, "step": [0, 1, 2, 3], "lr": [1.0, 2.0, 1.5, 0.5],
         "target_loss": [4.0, 3.0, 2.0, 1.0], "replay_loss": NAN}
    )  # fmt: skip
    fig, data = plots.training_curves(log)
    assert data["raw"].tolist() == [4, 3, 2, 1]
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["Target, NLL"]


def test_replay_by_nll_and_by_kl_have_a_panel_each():
    log = pd.DataFrame(
        {"recipe": ["ft", "cfs", "cf_kl"], "seed": 0, "step": 0, "target_loss": 1.0,
         "replay_loss": [NAN, 3.5, 0.1]}
    )  # fmt: skip
    fig, data = plots.training_curves(log)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == ["Target, NLL", "Replay, NLL", "Replay, KL(base ‖ tuned)"]
    assert data.groupby("term")["recipe"].agg(list)["replay_kl"] == ["cf_kl"]


def test_learning_rate_is_chosen_by_the_lowest_validation_nll():
    fig, data = plots.learning_rate(make_levels())
    assert data.loc[data["chosen"], "lr"].tolist() == [3e-4]
    ax = fig.axes[0]
    assert ax.get_yscale() == "log"  # 0.11 to 1.9 is more than a factor of ten
    assert "95% intervals over items and 2 seeds, of each score" in fig.get_suptitle()
    ends = bars(ax)["Plain fine-tuning"][2, :, 1]
    assert ends.tolist() == pytest.approx([0.11 / 1.2, 0.11 * 1.2])
    # a seed that diverged takes its learning rate out of the choice
    levels = make_levels()
    levels.loc[levels["lr"] == 3e-4, ["value", "low", "high"]] = NAN
    _, data = plots.learning_rate(levels)
    assert data.loc[data["chosen"], "lr"].tolist() == [1e-4]


def test_frontier_has_the_base_and_puts_better_right_and_up():
    items = make_items(make_runs(("ft", "wise_ft")))
    drops = forgetting.pooled(items, n_boot=50)
    for metric, upside_down in (("bpb_gold", True), ("acc", False)):
        fig, data = plots.frontier(drops, metric=metric)
        assert fig.axes[0].xaxis_inverted()
        assert fig.axes[0].yaxis_inverted() == upside_down
    assert data["recipe"].tolist() == ["base", "ft", "wise_ft", "wise_ft", "wise_ft"]
    assert data["label"].tolist()[2] == "WiSE-FT α=0.25"
    assert fig.axes[0].get_xscale() == "linear"
    # both intervals are those of the scores themselves
    levels = forgetting.levels(items)
    for row in data.itertuples():
        mine = levels[levels["recipe"] == row.recipe]
        mine = mine[mine["alpha"].isna() if np.isnan(row.alpha) else mine["alpha"] == row.alpha]
        new = mine[(mine["group"] == "target") & (mine["metric"] == "nll")].iloc[0]
        old = mine[(mine["task"] == "mean") & (mine["metric"] == "acc")].iloc[0]
        expected = [*new[["value", "low", "high"]], *old[["value", "low", "high"]]]
        found = [row.x, row.x_low, row.x_high, row.y, row.y_low, row.y_high]
        assert found == pytest.approx(expected)
        assert 0 <= row.y_low < row.y < row.y_high <= 1


def test_frontier_has_a_log_axis_for_small_nlls_and_takes_a_share():
    items = make_items(make_runs(("ft", "cfs", "wise_ft")))
    small = (items["recipe"] == "ft") & (items["group"] == "target")
    items.loc[small, "value"] *= 0.01
    right = items[items["metric"] == "nll"].assign(
        metric="exact_match", value=lambda f: (f["value"] < 1).astype(float)
    )
    drops = forgetting.pooled(pd.concat([items, right]), n_boot=50)
    fig, _ = plots.frontier(drops)
    assert fig.axes[0].get_xscale() == "log"
    assert fig.axes[0].get_xlabel().startswith("target NLL (nats per token), log axis")
    fig, data = plots.frontier(drops, target="exact_match")
    assert not fig.axes[0].xaxis_inverted()
    assert data.loc[data["recipe"] == "ft", "x"].tolist() == [1]
    assert data.loc[data["recipe"] == "ft", "x_low"].iloc[0] < 1


def overlaps(ax, texts):
    """Pairs of texts whose boxes overlap."""
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    boxes = [matplotlib.text.Text.get_window_extent(t, renderer) for t in texts]
    return [(a, b) for a in range(len(boxes)) for b in range(a) if boxes[a].overlaps(boxes[b])]


@pytest.mark.parametrize("spread", [1.0, 0.02, 0.0])
def test_direct_labels_do_not_overlap_and_stay_inside(spread):
    """Nine points, apart, crowded, and all at one place."""
    rng = np.random.default_rng(0)
    ax = plt.subplots(figsize=(8, 5))[1]
    ax.set(xlim=(0, 1), ylim=(0, 1))
    at = 0.5 + spread * (rng.random((9, 2)) - 0.5)
    marks = [direct_labels.Mark(x=x, y=y, text=f"Recipe {i}", colour="#000000")
             for i, (x, y) in enumerate(at)]  # fmt: skip
    direct_labels.label_points(ax, marks)
    assert [t.get_text() for t in ax.texts] == [m.text for m in marks]
    assert overlaps(ax, ax.texts) == []
    frame = ax.bbox
    for text in ax.texts:
        box = matplotlib.text.Text.get_window_extent(text)
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
    joined = sum(t.arrow_patch is not None for t in ax.texts)
    assert joined == 0 if spread == 1 else joined > 4


def test_direct_labels_keep_off_lines():
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    lines = [((0.5, 0), (0.5, 1)), ((0, 0.5), (1, 0.5))]
    mark = direct_labels.Mark(x=0.5, y=0.5, text="Recipe", colour="#000000")
    direct_labels.label_points(ax, [mark], segments=lines)
    fig.canvas.draw()
    box = matplotlib.text.Text.get_window_extent(ax.texts[0])
    centre = ax.transData.transform((0.5, 0.5))
    assert not (box.x0 < centre[0] < box.x1) and not (box.y0 < centre[1] < box.y1)


def test_heatmap_marks_what_noise_explains():
    items = make_items(make_runs(("ft", "cf_kl"), seeds=(0, 1)))
    fig, data = plots.drop_heatmap(forgetting.pooled(items))
    marks = sum("≈ 0" in t.get_text() for t in fig.axes[0].texts)
    assert marks == (data["verdict"] == "within noise").sum() > 0
    assert set(data["task"]) == {*TASKS, "mean"}


def test_one_seed_is_no_verdict():
    drops = forgetting.pooled(make_items(make_runs(("ft", "cf_kl"))))
    fig, data = plots.drop_heatmap(drops)
    assert set(data["verdict"]) == {"one seed"}
    assert not any("≈" in t.get_text() for t in fig.axes[0].texts)
    assert "one seed: differences are not judged against noise" in fig.get_suptitle()
    fig, data = plots.recipe_bars(drops)
    assert [t.get_text() for t in fig.axes[0].texts] == ["one seed", "one seed"]
    assert "95% intervals over items (one seed), of the difference from" in fig.get_suptitle()


def test_kl_figure_takes_a_run_that_did_not_move():
    items = make_items(make_runs(("ft", "cfs", "l2")))
    items.loc[(items["recipe"] == "l2") & (items["metric"] == "kl"), "value"] = 0.0
    fig, data = plots.kl_against_drop(forgetting.paired_drop(items, n_boot=50))
    assert len(data) == 3 * len(PROBES)
    assert fig.axes[0].get_xscale() == "symlog"
    still = data["recipe"] == "l2"
    assert (data.loc[still, ["kl", "kl_low", "kl_high"]] == 0).all(axis=None)
    assert (data.loc[~still, "kl_low"] > 0).all()


def test_ablation_wants_one_study():
    items = make_items(make_sweep("replay_weight", (0.0, 0.3, 1.0, 3.0), ("cfs",)))
    fig, data = plots.ablation(forgetting.pooled(items, n_boot=50), "replay_weight", log=True)
    assert fig.axes[0].get_xscale() == "symlog"
    assert data.loc[data["recipe"].isin(["base", "ft"]), "replay_weight"].isna().all()
    twice = pd.concat([items, items[items["recipe"] == "cfs"].assign(
        ratio=0.9, run=lambda d: d["run"] + "x")])  # fmt: skip
    with pytest.raises(UserError, match="two runs of a recipe at one replay_weight"):
        plots.ablation(forgetting.pooled(twice, n_boot=50), "replay_weight")
    with pytest.raises(UserError, match="x = 'colour'"):
        plots.ablation(forgetting.pooled(items, n_boot=0), "colour")


def test_ablation_draws_each_score_with_its_own_interval():
    items = make_items(make_sweep("temperature", (0.4, 0.6, 0.8, 1.0, 1.2, 1.6), seeds=(0, 1)))
    small = (items["recipe"] != "base") & (items["group"] == "target")
    items.loc[small, "value"] = items.loc[small, "value"].abs() * 0.02
    drops = forgetting.pooled(items, n_boot=50)
    fig, data = plots.ablation(drops, "temperature")
    left, middle, right = fig.axes
    assert (left.get_yscale(), middle.get_yscale(), right.get_yscale()) == ("linear", "log", "linear")
    assert set(data["recipe"]) == {"base", "ft", "cfs", "cf_kl"}
    assert len(data) == 3 * (2 + 2 * 6)
    for ax in fig.axes:
        assert {name: len(own) for name, own in bars(ax).items()} == {
            "Context-free NLL": 6, "Context-free KL": 6}  # fmt: skip
        lines = [x.get_label() for x in ax.lines]
        assert "Base" in lines and "Plain fine-tuning" in lines
    levels = forgetting.levels(items)
    nll = levels[(levels["group"] == "target") & (levels["metric"] == "nll")]
    own = data[(data["panel"] == "target") & (data["recipe"] == "cfs")]
    mine = nll[nll["recipe"] == "cfs"]
    for column in ("value", "low", "high"):
        assert own[column].tolist() == pytest.approx(mine[column].tolist())
    assert (own["low"] > 0).all()
    base = data[data["recipe"] == "base"].set_index("panel")
    assert base.loc["retained", ["value", "low", "high"]].tolist() == [0, 0, 0]
    expected = nll.loc[nll["recipe"] == "base", ["value", "low", "high"]].iloc[0]
    assert base.loc["target", ["value", "low", "high"]].tolist() == pytest.approx(expected.tolist())
    kept = drops[(drops["task"] == "mean") & (drops["metric"] == "bpb_gold")]
    own = data[(data["panel"] == "retained") & (data["recipe"] == "cf_kl")]
    assert own["low"].tolist() == kept.loc[kept["recipe"] == "cf_kl", "low"].tolist()
    assert "of the score itself (middle, right)" in fig.get_suptitle()


def test_tokens_are_laid_without_loss():
    tokens = ["ab", "cde", "\n", "f" * 12, "", "g"]
    laid, used = drift._lay(tokens, 5)
    # "ab" and "cde" fill a line, the line end takes the next, twelve f break into 5, 5, 2, then g
    assert laid == [(0, 0, 0, "ab"), (1, 0, 2, "cde"), (2, 1, 0, "⏎"), (3, 2, 0, "fffff"),
                    (3, 3, 0, "fffff"), (3, 4, 0, "ff"), (5, 4, 2, "g")]  # fmt: skip
    assert used == 5


def test_drift_shows_the_change_in_log_probability():
    _, data = plots.token_drift(make_tokens(n=30), value="change", length=10)
    tokens = make_tokens(n=30)
    first = tokens[(tokens["recipe"] == "ft") & (tokens["position"] == 0)].iloc[0]
    assert len(data) == 20
    assert data["value"].iloc[0] == first["nll_base"] - first["nll"]
    with pytest.raises(UserError, match="value = 'size'"):
        plots.token_drift(tokens, value="size")
    with pytest.raises(UserError, match="sequence 9"):
        plots.token_drift(tokens, sequence=9)


def test_pretraining_curve_counts_tokens_and_takes_the_running_median():
    fig, data = plots.pretraining_curve(make_loss())
    assert list(data) == ["step", "tokens", "loss", "smooth"]
    assert data["step"].tolist() == list(range(300))
    assert data["tokens"].tolist()[:2] == [3000, 6001]
    inside = data["loss"][148:151].tolist()
    assert data["smooth"][149] == sorted(inside)[1]  # over 300 / 100 steps
    raw, smooth, _ = fig.axes[0].lines
    assert raw.get_xdata()[1] == pytest.approx(0.006001)
    assert raw.get_alpha() < 1 and smooth.get_alpha() is None
    (note,) = (t.get_text() for t in fig.axes[0].texts)
    assert (
        note
        == f"{data['smooth'].iloc[-1]:.2f} nats per token after\n0.9 million tokens, 10 minutes"
    )


def test_skills_come_best_first_and_targets_apart():
    fig, data = plots.skill_bars(make_skills())
    assert data["task"].tolist() == ["job", "sum", "sort", "total", "rotate"]
    ax = fig.axes[0]
    assert ticks(ax.yaxis) == data["task"].tolist()
    assert (np.diff(ax.get_yticks()) > 1.2).tolist() == [False, False, True, False]
    drawn = bars(ax)
    assert {name: len(own) for name, own in drawn.items()} == {
        "retained, answer at once": 2, "retained, steps written out": 1,
        "target, answer at once": 1, "target, steps written out": 1}  # fmt: skip
    # a bar ends where the interval does
    assert drawn["retained, steps written out"][0, :, 0].tolist() == pytest.approx([0.92, 1.0])
    line = next(x for x in ax.lines if x.get_label() == "80% right")
    assert line.get_xdata()[0] == 0.8
    assert [t.get_text() for t in ax.texts] == ["n = 200"] * 5


def test_skills_without_a_role_are_retained():
    fig, data = plots.skill_bars(make_skills().drop(columns="role"))
    assert set(data["role"]) == {"retained"}
    assert np.diff(fig.axes[0].get_yticks()).tolist() == [1] * 4


def test_kinds_come_as_in_the_mixture_prose_first_outsiders_last():
    fig, data = plots.kind_shares(make_shares())
    left, right = fig.axes
    assert ticks(left.yaxis) == ["prose", "job", "sum", "rotate\n(not in the mixture)"]
    assert data["source"].unique().tolist() == ["mixture", "context_free", "contextual"]
    kinds = data.loc[data["source"] == "contextual", "kind"].tolist()
    assert kinds == ["prose", "job", "sum", "rotate"]
    assert len(data) == len(make_shares())
    for ax in (left, right):  # the declared shares, each a tick on its row
        at = np.array(ax.collections[0].get_segments())
        assert at[:, 0] == pytest.approx(np.array([[0.5, -0.42], [0.3, 0.58], [0.2, 1.58]]))
    names = ["context-free, T = 0.5, n = 130", "context-free, T = 1, n = 100"]
    assert list(bars(left)) == names
    assert list(bars(right)) == ["contextual, T = 1, n = 100"]
    cold, plain = (c.lines[0] for c in left.containers)
    assert plain.get_markersize() > cold.get_markersize()
    assert bars(left)[names[1]][0, :, 0].tolist() == pytest.approx([0.45, 0.55])
    assert left.get_xlim() != right.get_xlim()
    assert bars(right)["contextual, T = 1, n = 100"][3, :, 0].tolist() == pytest.approx(
        [0.92, 1.02]
    )


def test_kinds_take_one_source_and_want_a_mixture():
    shares = make_shares()
    fig, _ = plots.kind_shares(shares[shares["source"] != "contextual"])
    assert len(fig.axes) == 1
    with pytest.raises(UserError, match="shares of the mixture"):
        plots.kind_shares(shares[shares["source"] != "mixture"])
    with pytest.raises(UserError, match="source = 'job'"):
        plots.kind_shares(shares.assign(source="job"))


def test_convergence_shows_spread_guide_and_ratio_of_variances():
    fig, data = plots.kl_convergence(make_curve())
    left, right = fig.axes
    assert data["estimator"].unique().tolist() == ["log_ratio", "full_kl"]
    assert data["guide"].to_numpy() == pytest.approx(data["sd"].to_numpy())
    assert len(left.collections) - len(left.containers) == 2  # a band each
    assert (left.get_xscale(), left.get_yscale()) == ("log", "linear")
    assert (right.get_xscale(), right.get_yscale()) == ("log", "log")
    line = next(x for x in left.lines if x.get_label() == "reference")
    assert line.get_ydata()[0] == 2
    # mean 2 + 0.6 / sqrt(8), +- its interval of 0.6 / sqrt(8)
    ends = bars(left)["log ratio of texts"][0, :, 1]
    assert ends.tolist() == pytest.approx([2, 2 + 1.2 / 8**0.5])
    assert "4 × the full KL's (4 to 4)" in right.texts[0].get_text()
    assert ticks(left.xaxis) == ["8", "32", "128", "512", "2048", "8192"]
    _, alone = plots.kl_convergence(make_curve().query("estimator == 'full_kl'"))
    assert len(alone) == 11


def test_bias_has_one_row_per_source_and_one_panel_per_model():
    fig, data = plots.kl_bias(make_bias(unit="nats per token"))
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        "Plain fine-tuning",
        "Context-free $NLL",
    ]
    rows = ["context-free, T = 0.5", "context-free, T = 1", "contextual, T = 1", "pretraining text",
            "ordinary text"]  # fmt: skip
    assert ticks(fig.axes[0].yaxis) == rows
    assert data["row"].unique().tolist() == rows
    for ax, reference in zip(fig.axes, (3, 1.5), strict=True):
        assert ax.get_xlabel() == "estimate (nats per token)"
        assert next(x for x in ax.lines if x.get_label() == "reference").get_xdata()[0] == reference
        (band,) = (p for p in ax.patches if isinstance(p, matplotlib.patches.Rectangle))
        assert (band.get_x(), band.get_width()) == pytest.approx((reference * 29 / 30, reference / 15))
        assert {name: len(own) for name, own in bars(ax).items()} == {
            "log ratio of texts": 5, "full KL at every token": 5}  # fmt: skip
    ends = bars(fig.axes[0])["full KL at every token"][1, :, 0]
    assert ends.tolist() == pytest.approx([2.7, 3.0])
    assert "95% intervals over texts (512 each); each panel has its own scale" in fig.get_suptitle()


def test_bias_by_temperature_is_that_of_context_free_samples():
    fig, data = plots.kl_against_temperature(make_bias())
    assert data["temperature"].tolist() == [0.5, 0.5, 1, 1] * 2
    assert data["bias"].tolist() == pytest.approx([0.8, -0.4, 0.4, -0.2] * 2)
    assert data["bias_low"].tolist() == pytest.approx([0.65, -0.55, 0.25, -0.35] * 2)
    assert len(fig.axes) == 2
    for ax in fig.axes:
        assert ticks(ax.xaxis) == ["0.5", "1"]
        ends = bars(ax)["log ratio of texts"][0, :, 1]
        assert ends.tolist() == pytest.approx([0.65, 1.05])
    assert fig.axes[0].get_ylabel() == "estimate − reference\n(nats per sequence)"


def test_bias_figures_refuse_what_they_cannot_show():
    for draw in (plots.kl_bias, plots.kl_against_temperature):
        with pytest.raises(UserError, match="holds 3 models, the frame has 4"):
            draw(make_bias("abcd"))
        with pytest.raises(UserError, match="mixes units"):
            draw(pd.concat([make_bias("a"), make_bias("b", "nats per token")]))
        with pytest.raises(UserError, match="estimator = 'k3'"):
            draw(make_bias().assign(estimator="k3"))


@pytest.mark.parametrize("draw", [
    lambda f: plots.samples_text(f), lambda f: plots.training_curves(f),
    lambda f: plots.frontier(f), lambda f: plots.token_drift(f), lambda f: plots.learning_rate(f),
    plots.pretraining_curve, plots.skill_bars, plots.kind_shares, plots.kl_convergence, plots.kl_bias,
    plots.kl_against_temperature,
])  # fmt: skip
def test_an_empty_frame_is_refused(draw):
    columns = [*forgetting.RUN, *forgetting.CELL, "step", "target_loss", "replay_loss", "sequence",
               "base", "tuned", "low", "high", "source", "level"]  # fmt: skip
    with pytest.raises(UserError, match="nothing to draw"):
        draw(pd.DataFrame(columns=columns))


if __name__ == "__main__":
    for _ in draw_all(Path(sys.argv[1])):
        pass
