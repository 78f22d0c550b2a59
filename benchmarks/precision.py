"""What the type of the weights does to tuning: the same run in fp32, in bf16 autocast, and in bf16 throughout.

A bf16 number has 8 significant bits: near 1 the next one below is 2^-8 away, and an update of less than half of that
leaves it as it was. AdamW moves each weight by about the learning rate, so at 1e-5 most updates of a weight that is
larger than 0.005 are lost. `autocast` keeps fp32 weights and computes in bf16, as `cfutils.training` does.
All three ways have the base, the batches and the seed in common. Each movement is measured from where its own way
began: in bf16 that is the base rounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import common
import pandas as pd

SIZES = {"tiny": {"batch_size": 8, "n_train": 240}, "smollm2": {"batch_size": 4, "n_train": 48}}
"""Runs of 30 and of 12 optimiser steps."""
RATES = (1e-5, 1e-4)
SEEDS = {"tiny": (0, 1, 2), "smollm2": (0, 1)}
WAYS = {"float32": ("float32", False), "autocast": ("float32", True), "bfloat16": ("bfloat16", False)}
"""Type of the weights, and whether the forward pass is in bf16 autocast."""
LABELS = {"float32": "fp32", "autocast": "fp32 weights, bf16 autocast", "bfloat16": "bf16 weights"}
TITLES = {"tiny": "tiny base", "smollm2": "SmolLM2-135M"}


def share_lost(moved, reference) -> float:
    """Return the share of the weights that move in `reference` and do not move at all in `moved`.

    Both are movements, final less first weights, as lists of tensors of the same shapes.
    """
    lost = sum(int(((m == 0) & (r != 0)).sum()) for m, r in zip(moved, reference, strict=True))
    return lost / sum(int((r != 0).sum()) for r in reference)


def relative_distance(moved, reference) -> float:
    """Return ||moved - reference|| / ||reference||: 0 where they end alike, 1 where `moved` is zero throughout."""
    apart = sum(float((m - r).double().square().sum()) for m, r in zip(moved, reference, strict=True))
    return (apart / sum(float(r.double().square().sum()) for r in reference)) ** 0.5


def turn(*, base: str, seed: int, number: int) -> dict:
    """Tune at each learning rate in every way, from the same base on the same batches; one row a way and a step."""
    lab, folder = common.opened(base, epochs=1, **SIZES[base])
    target = common.target(lab.profile, folder)
    return {"rows": [row for lr in RATES for row in _tuned(lab.profile.change(lr=lr), folder, target, seed)]}


def _tuned(profile, folder, target, seed: int) -> Iterator[dict]:
    from cfutils.data import mixing
    from cfutils.models import loading
    from cfutils.training.loop import Loop

    mixed, reference = mixing.mix(target, [], ratio=0.0, seed=seed), None
    tuning = common.tuning(profile, "ft", seed=seed)
    for way, (dtype, autocast) in WAYS.items():
        model = loading.load(folder, dtype=dtype)
        first = [p.detach().clone() for p in model.parameters()]
        loop = Loop(model, None, mixed, tuning=tuning, execution=profile.execution, autocast=autocast)
        losses = [loop._step(step)["target_loss"] for step in range(len(loop.steps))]
        moved = [p.detach().float() - f.float() for p, f in zip(model.parameters(), first, strict=True)]
        reference = reference or moved
        found = {"lr": profile.lr, "way": way, "lost": share_lost(moved, reference),
                 "distance": relative_distance(moved, reference)}  # fmt: skip
        yield from ({**found, "step": step, "loss": loss} for step, loss in enumerate(losses))


def tidy(turns: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each base, learning rate, seed, way and step."""
    frames = [
        pd.DataFrame(json.loads(one["rows"])).assign(base=one["base"], seed=one["seed"])
        for one in turns.to_dict("records")
    ]
    return pd.concat(frames, ignore_index=True)[["base", "lr", "seed", "way", "step", "loss", "lost", "distance"]]


def draw(data: pd.DataFrame):
    """Draw two rows for each base: loss by way, above; its difference from fp32 on the same batches, below; beside them
    the share of updates that is lost, and where the weights end. Intervals are over seeds, at 95 % (t)."""
    from cfutils.analysis.plots.style import SERIES, figure, legend

    colours = dict(zip(WAYS, SERIES, strict=False))
    bases = [base for base in SIZES if base in set(data["base"])]
    fig, axes = figure(
        "The same run with weights in fp32 and in bf16: plain fine-tuning, means and 95 % intervals over seeds",
        (12, 5.6 * len(bases)), nrows=2 * len(bases), ncols=3, squeeze=False,
    )  # fmt: skip
    for n, base in enumerate(bases):
        part = data[data["base"] == base]
        above, below = axes[2 * n : 2 * n + 2]
        for ax, under, lr in zip(above, below, RATES, strict=False):
            curves = part[part["lr"] == lr].pivot_table(index="step", columns=["way", "seed"], values="loss")
            for way, colour in colours.items():
                look = {"color": colour, "linestyle": "--" if way == "autocast" else "-", "label": LABELS[way]}
                steps = curves.index + 1
                ax.plot(steps, curves[way].mean(axis=1), **look)
                mean, half = interval((curves[way] - curves["float32"]).T)
                under.plot(steps, mean, **look)
                under.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
            ax.set(ylabel="loss (nats per token)")
            ax.set_title(f"{TITLES[base]}, {part['seed'].nunique()} seeds, learning rate {lr:g}", loc="left")
            under.set(xlabel="optimiser step", ylabel="loss minus that of fp32")
        last = part[part["step"] == 0]
        panels = {"lost": "Weights that fp32 moves and that stay", "distance": "Distance from fp32's weights"}
        for ax, (value, title) in zip((above[2], below[2]), panels.items(), strict=True):
            for i, way in enumerate(("autocast", "bfloat16")):
                for j, lr in enumerate(RATES):
                    chosen = last[(last["way"] == way) & (last["lr"] == lr)].set_index("seed")[value]
                    mean, half = (float(x.iloc[0]) for x in interval(chosen.to_frame()))
                    at = j + 0.36 * (i - 0.5)
                    ax.bar(at, mean, 0.34, yerr=half, color=colours[way], error_kw={"capsize": 2.5})
                    text = f"{mean:.2%}" if value == "lost" else f"{mean:.3f}"
                    ax.annotate(text, (at, mean + half), (0, 3), textcoords="offset points", ha="center", fontsize=8)
            ax.set_xticks(range(len(RATES)), [f"lr {lr:g}" for lr in RATES])
            ax.set(ylim=(0, 1.12), ylabel="share" if value == "lost" else "relative to fp32's movement")
            ax.set_title(title, loc="left")
    legend(fig, list(axes.flat))
    return fig


def interval(values: pd.DataFrame):
    """Return mean and half width of the 95 % interval (Student's t) of each column, over rows (seeds)."""
    from scipy import stats

    n = len(values)
    return values.mean(), stats.t.ppf(0.975, n - 1) * values.std() / n**0.5


if __name__ == "__main__":
    settings = [{"base": base, "seed": seed} for base in SIZES for seed in SEEDS[base]]
    found = common.main(__file__, turn, settings, rounds=1)
    if found is not None:
        from cfutils.analysis import plots

        data = tidy(found)
        plots.save(draw(data), "precision", data, common.FOLDER)
