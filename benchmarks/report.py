"""From figures/bench/*.csv to one table and one figure: medians, ranges, ratios, machine and versions."""

from __future__ import annotations

import json

import common
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from cfutils import plots


def read(name: str) -> pd.DataFrame:
    """Return a benchmark's turns, or an empty frame if it was not run."""
    path = common.FOLDER / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def rows() -> list[dict]:
    """One row an arm: its figure's median and range, and how many times better ours is."""
    found: list[dict] = []

    def add(frame, what, value, groups, ours, unit, more_is_better=True) -> None:
        for keys, group in frame.groupby(groups, sort=False):
            by = {arm: part[value] for arm, part in group.groupby("arm", sort=False)}
            mine = by[ours].median()
            for arm, values in by.items():
                ratio = mine / values.median()
                found.append({
                    "work": what, "base": keys[0], "setting": " ".join(map(str, keys[1:])),
                    "arm": arm, "unit": unit, "value": common.spread(values), "turns": len(values),
                    "peak MB": common.spread(group[group["arm"] == arm]["peak_mb"].fillna(0)),
                    f"{ours} is": "" if arm == ours else
                        f"{ratio if more_is_better else 1 / ratio:.2f}×",
                })  # fmt: skip

    if len(frame := read("scoring")):
        add(frame, "scoring", "seconds", ["base", "shots"], "ours", "s", False)
    if len(frame := read("tuning")):
        add(frame, "tuning", "tokens_per_s", ["base"], "ours", "supervised tokens/s")
    if len(frame := read("replay")):
        add(frame, "replay", "seconds_per_step", ["base"], "kl", "s/step", False)
    if len(frame := read("sampling")):
        add(frame, "sampling", "tokens_per_s", ["base", "dtype"], "ours", "tokens/s")
    for row in found:  # one column, whichever arm it is about
        row["ratio"] = next((row.pop(k) for k in list(row) if k.endswith(" is")), "")
    return found


def agreement() -> list[str]:
    """Whether the arms computed the same."""
    lines = []
    if len(frame := read("scoring")):
        for (base, shots), group in frame.groupby(["base", "shots"], sort=False):
            by = group.groupby("arm").first()
            ours, peer = (np.array(json.loads(by.loc[a, "loglikelihoods"])) for a in ("ours", "hflm"))
            flags = [json.loads(by.loc[a, "greedy"]) for a in ("ours", "hflm")]
            differ = sum(a != b for a, b in zip(*flags, strict=True))
            lines.append(
                f"Scoring, {base}, {shots}: {len(ours)} log-likelihoods differ by at most "
                f"{np.abs(ours - peer).max():.1e}; {differ} greedy answers differ."
            )
    for name in ("tuning", "replay"):
        for base, group in read(name).groupby("base", sort=False) if len(read(name)) else ():
            curves = {arm: json.loads(part["losses"].iloc[0]) for arm, part in group.groupby("arm")}
            curves.pop("nll", None)
            first = np.array(curves.pop("ours" if name == "tuning" else "kl"))
            gap = max(np.abs(first - np.array(c)).max() for c in curves.values())
            lines.append(f"{name.capitalize()}, {base}: curves of loss differ by at most {gap:.1e}.")
    if len(frame := read("sampling")):
        for keys, group in frame.dropna(subset="logprob").groupby(["base", "dtype"], sort=False):
            means = group.groupby("arm")["logprob"].mean().round(3).to_dict()
            lines.append(f"Sampling, {' '.join(keys)}: mean log p a token {means}.")
    if len(frame := read("replay")):
        for base, group in frame[frame["arm"] == "kl"].groupby("base", sort=False):
            once = group["once_s"].median() / group["seconds_per_step"].median()
            lines.append(f"Replay, {base}: asking the base once takes as long as {once:.1f} steps.")
    if len(frame := read("whole")):
        cold, warm = frame["cold_s"].iloc[-1], frame["warm_s"].iloc[-1]
        lines.append(f"Whole default run: cold {cold:.0f} s, warm {warm:.1f} s.")
    return lines


def growth(axes) -> None:
    """Seconds and peak memory against the amount of work."""
    if not len(frame := read("growth")):
        return
    for axis, group in frame.groupby("axis", sort=False):
        by = group.groupby("times")
        seconds, memory = by["seconds"], by["peak_mb"].median()
        line = axes[0].plot(seconds.median() / seconds.median().iloc[0], marker="o", label=axis)
        low, high = seconds.min(), seconds.max()
        base = seconds.median().iloc[0]
        axes[0].fill_between(low.index, low / base, high / base, alpha=0.2, color=line[0].get_color())
        axes[1].plot(memory, marker="o", label=axis)
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xlabel("times the work")
        ax.xaxis.set_major_formatter(lambda x, _: f"×{x:g}")
    axes[0].set_yscale("log", base=2)
    axes[0].yaxis.set_major_formatter(lambda x, _: f"×{x:g}")
    axes[0].axline((1, 1), slope=1, color="grey", linestyle=":", label="linear")
    axes[0].set_title("Time as work grows (tiny)", loc="left")
    axes[1].set_title("Peak memory, MB", loc="left")
    axes[1].set_ylim(0, None)
    axes[0].legend(frameon=False)


def bars(ax, frame: pd.DataFrame, value: str, title: str, base: str) -> None:
    """Median of each arm, with its range."""
    ax.set_title(title, loc="left")
    if not len(frame):
        return
    by = frame[frame["base"] == base].groupby("arm", sort=False)[value]
    middle = by.median()
    error = [middle - by.min(), by.max() - middle]
    colours = ["#D55E00" if arm.startswith(("ours", "kl")) and arm != "kl_live" else "#9A9A9A"
               for arm in middle.index]  # fmt: skip
    ax.barh(middle.index[::-1], middle[::-1], color=colours[::-1],
            xerr=[e[::-1] for e in error], error_kw={"ecolor": "#333333", "capsize": 2})  # fmt: skip


def main() -> None:
    """Write benchmarks.md and benchmarks.png, .pdf, .csv."""
    table = pd.DataFrame(rows())
    head = " | ".join(table.columns)
    lines = [f"| {head} |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    facts = ", ".join(f"{k} {v}" for k, v in common.machine().items())
    text = [
        "# Benchmarks", "", f"Measured on: {facts}.", "",
        "Median [range] over turns; `ratio` above 1 says that ours (for replay: `kl`) is the better one,",
        "by how much. Written by `make bench`.", "", *lines, "", *(f"- {x}" for x in agreement()), "",
    ]  # fmt: skip
    (common.FOLDER / "README.md").write_text("\n".join(text), encoding="utf-8")
    plots.style()
    fig, axes = plt.subplots(3, 2, figsize=(10, 9.5), layout="constrained")
    scoring, sampling, base = read("scoring"), read("sampling"), "smollm2"
    for frame, also in ((scoring, "shots"), (sampling, "dtype")):
        if len(frame):
            frame["arm"] += " " + frame[also]
    bars(axes[0, 0], scoring, "seconds", "Scoring, seconds (zero-shot; 5 own, 5 same shots)", base)
    bars(axes[0, 1], read("tuning"), "tokens_per_s", "Tuning, supervised tokens/s", base)
    bars(axes[1, 0], read("replay"), "seconds_per_step", "Replay, seconds a step", base)
    bars(axes[1, 1], sampling, "tokens_per_s", "Sampling, tokens/s", base)
    growth(axes[2])
    fig.suptitle("SmolLM2-135M in fp32 on two cores; ours in colour, bars are medians, lines ranges")
    for ax in axes.flat:
        ax.set_visible(ax.has_data())
    plots.save(fig, "benchmarks", table, common.FOLDER)
    print("\n".join(text))


if __name__ == "__main__":
    main()
