"""From figures/bench/*.csv to one table and one figure: medians, ranges, ratios, machine and versions."""

from __future__ import annotations

import json

import common
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator

from cfutils.analysis import plots

WORK = {
    "scoring": ("seconds", ["base", "shots"], "ours", "s", False),
    "tuning": ("tokens_per_s", ["base"], "ours", "supervised tokens/s", True),
    "replay": ("seconds_per_step", ["base"], "kl", "s/step", False),
    "sampling": ("tokens_per_s", ["base", "dtype"], "ours", "tokens/s", True),
}
"""Of each benchmark: its figure, what is compared with what, which arm is ours, unit, direction."""
LABELS = {
    "ours": "ours", "hflm": "lm-eval HFLM, its best batch", "hflm_1": "lm-eval HFLM, batch 1",
    "ours_checkpointing": "ours, activations recomputed", "sft": "TRL SFTTrainer, defaults",
    "sft_plain": "TRL SFTTrainer, activations kept", "trainer": "transformers Trainer",
    "kl": "replay by KL", "nll": "replay by NLL", "kl_live": "KL, base run at each step",
    "forward": "plain forward pass", "generate": "transformers.generate", "vllm": "ours, by vLLM",
}  # fmt: skip
BASES = {"smollm2": "SmolLM2-135M", "tiny": "tiny base"}
SHOTS = {"zero": "(zero-shot)", "own": "(5 own shots)", "same": "(5 same shots)"}
OURS, PEER = "#D55E00", "#9A9A9A"


def read(name: str) -> pd.DataFrame:
    """Return a benchmark's turns, or an empty frame if it was not run."""
    path = common.FOLDER / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def rivals(work: str) -> pd.DataFrame:
    """The turns that were about speed."""
    frame = read(work)
    return frame[frame["arm"] != "exact"] if len(frame) else frame


def rows() -> list[dict]:
    """One row per arm: median and range, and how many times better ours is, in speed and in memory."""
    found: list[dict] = []
    for work, (value, groups, ours, unit, more_is_better) in WORK.items():
        frame = rivals(work)
        for keys, group in frame.groupby(groups, sort=False) if len(frame) else ():
            by = {arm: part for arm, part in group.groupby("arm", sort=False)}
            mine = by[ours].median(numeric_only=True)
            for arm, part in by.items():
                theirs = part.median(numeric_only=True)
                ratio = mine[value] / theirs[value]
                other = arm != ours
                found.append({
                    "work": work, "base": keys[0], "setting": " ".join(map(str, keys[1:])),
                    "arm": LABELS[arm], "unit": unit, "value": common.spread(part[value]),
                    "turns": len(part),
                    "ratio": f"{ratio if more_is_better else 1 / ratio:.2f}×" if other else "",
                    "peak MB": common.spread(part["peak_mb"]) if part["peak_mb"].notna().all() else "",
                    "our memory": f"{mine['peak_mb'] / theirs['peak_mb']:.2f}×"
                    if other and part["peak_mb"].notna().all() else "",
                })  # fmt: skip
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
                f"{np.abs(ours - peer).max():.1e}; {differ} greedy flags differ."
            )
            if "exact" in by.index:
                exact = np.array(json.loads(by.loc["exact", "loglikelihoods"]))
                lines.append(
                    f"Scoring, {base}, {shots}, against fp64: ours differs by at most "
                    f"{np.abs(ours - exact).max():.1e}, HFLM by at most {np.abs(peer - exact).max():.1e}."
                )
            if texts := json.loads(by.loc["ours", "answers"]):
                pairs = zip(texts, json.loads(by.loc["hflm", "answers"]), strict=True)
                differ = sum(a != b for a, b in pairs)
                lines.append(
                    f"Scoring, {base}, {shots}: of {len(texts)} generated answers {differ} differ."
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
            lines.append(f"Sampling, {' '.join(keys)}: mean log p per token {means}.")
    if len(frame := read("replay")):
        for base, group in frame[frame["arm"] == "kl"].groupby("base", sort=False):
            once = group["once_s"].median() / group["seconds_per_step"].median()
            lines.append(f"Replay, {base}: asking the base once takes as long as {once:.1f} steps.")
    if len(frame := read("growth")):
        for axis, group in frame.groupby("axis", sort=False):
            by = group.groupby("times").median(numeric_only=True)
            first, last = by.iloc[0], by.iloc[-1]
            lines.append(
                f"Growth, {axis} ×{by.index[-1]}: {last['seconds'] / first['seconds']:.1f} times the "
                f"seconds, {last['peak_mb'] / first['peak_mb']:.2f} times the memory."
            )
    if len(frame := read("tuning")):
        for base, group in frame.groupby("base", sort=False):
            by = group.groupby("arm")[["tokens_per_s", "peak_mb"]].median()
            ours, peer = by.loc["ours_checkpointing"], by.loc["sft"]
            lines.append(
                f"Tuning, {base}, activations computed again by both: "
                f"{ours['tokens_per_s'] / peer['tokens_per_s']:.2f}× SFTTrainer at "
                f"{ours['peak_mb'] / peer['peak_mb']:.2f}× its memory."
            )
    if len(frame := read("planning")):
        for base, group in frame.groupby("profile", sort=False):
            ratios = {"memory": group["predicted_mb"] / group["memory_mb"]}
            longer = group[group["seconds"] >= 1]
            ratios["seconds"] = longer["predicted_seconds"] / longer["seconds"]
            parts = [f"{name} {r.min():.2f} to {r.max():.2f} times what is measured" for name, r in ratios.items()]
            lines.append(f"Plan, {base}, {len(group)} kinds of step: predicted are {', '.join(parts)}.")
    if len(frame := read("whole")):
        cold, warm = frame["cold_s"].iloc[-1], frame["warm_s"].iloc[-1]
        lines.append(f"Whole default run: cold {cold:.0f} s, warm {warm:.1f} s.")
    return lines


def growth(axes) -> None:
    """Seconds and peak memory against the amount of work, each as a multiple of the smallest amount's."""
    frame = read("growth")
    titles = {"seconds": "Time as work grows (tiny)", "peak_mb": "Peak memory as work grows (tiny)"}
    for ax, (value, title) in zip(axes, titles.items(), strict=True):
        for axis, group in frame.groupby("axis", sort=False) if len(frame) else ():
            by = group.groupby("times")[value]
            first = by.median().iloc[0]
            (line,) = ax.plot(by.median() / first, marker="o", label=axis)
            low, high = by.min() / first, by.max() / first
            ax.fill_between(low.index, low, high, alpha=0.2, color=line.get_color())
        ax.axline((1, 1), (16, 16), color="grey", linestyle=":", label="linear")
        ax.set(xscale="log", yscale="log", xlabel="times the work")
        for scale in (ax.xaxis, ax.yaxis):
            scale.set_major_locator(FixedLocator([1, 2, 4, 8, 16]))
            scale.set_minor_locator(NullLocator())
            scale.set_major_formatter(lambda x, _: f"×{x:g}")
        ax.set_ylim(0.7, 20)
        ax.set_title(title, loc="left")
    axes[0].legend(frameon=False)


def bars(ax, work: str, base: str) -> None:
    """Median of each arm with its range, and how it compares with ours."""
    value, groups, ours, unit, more_is_better = WORK[work]
    frame = rivals(work)
    frame = frame[frame["base"] == base] if len(frame) else frame
    names, at = [], 0
    for keys, group in frame.groupby(groups, sort=False) if len(frame) else ():
        by = group.groupby("arm", sort=False)[value]
        for arm, values in by:
            middle = values.median()
            ratio = by.get_group(ours).median() / middle
            error = [[middle - values.min()], [values.max() - middle]]
            mine = arm.startswith("ours") or arm in (ours, "vllm")
            ax.barh(at, middle, color=OURS if mine else PEER, xerr=error,
                    error_kw={"ecolor": "#333333", "capsize": 2})  # fmt: skip
            text = "" if arm == ours else f"  {ratio if more_is_better else 1 / ratio:.2f}×"
            ax.annotate(text, (values.max(), at), va="center", fontsize=8)
            names.append(" ".join([LABELS[arm], *(SHOTS.get(k, k) for k in keys[1:])]))
            at += 1
    ax.set_yticks(range(at), names, fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set_title(f"{work.capitalize()}, {BASES[base]}: {unit}", loc="left")


def main() -> None:
    """Write README.md, and benchmarks.png, .pdf, .csv."""
    table = pd.DataFrame(rows())
    head = " | ".join(table.columns)
    lines = [f"| {head} |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    facts = ", ".join(f"{k} {v}" for k, v in common.machine().items())
    text = [
        "# Benchmarks", "", f"Measured on: {facts}.", "",
        "Median [range] over turns. `ratio` above 1: so many times faster is ours (for replay: KL from",
        "stored states). `our memory` below 1: ours peaks at so much of it. Written by `make bench`.",
        "", *lines, "", *(f"- {x}" for x in agreement()), "",
    ]  # fmt: skip
    (common.FOLDER / "README.md").write_text("\n".join(text), encoding="utf-8")
    plots.style()
    heights = [1.6, 1, 0.7, 0.8, 1.2]
    fig, axes = plt.subplots(
        5, 2, figsize=(12, 15), layout="constrained", height_ratios=heights
    )
    for row, work in zip(axes, WORK, strict=False):
        for ax, base in zip(row, BASES, strict=True):
            bars(ax, work, base)
    growth(axes[-1])
    fig.suptitle(
        "Ours in colour; bars are medians, lines ranges; numbers: so many times faster is ours"
    )
    for ax in axes.flat:
        ax.set_visible(ax.has_data())
    plots.save(fig, "benchmarks", table, common.FOLDER)
    print("\n".join(text))


if __name__ == "__main__":
    main()
