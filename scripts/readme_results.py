"""Write the results of the default profile into README.md, between its two markers.

    .venv/bin/python scripts/readme_results.py

Reads figures/<default profile>/recipe_bars.csv, the table that notebook 03 drew from; a test holds the two
together, so no number in the README is typed by hand.
"""

from __future__ import annotations

import pandas as pd

from cfutils import paths
from cfutils.analysis import plots
from cfutils.profiles import DEFAULT, load

START, END = "<!-- results:start -->\n", "<!-- results:end -->\n"


DATA = f"figures/{DEFAULT}/recipe_bars.csv"


def finding(table: pd.DataFrame) -> str:
    """Return the main result in one sentence."""
    ft, cfs, kl, data = (
        table[table["recipe"] == name].iloc[0] for name in ("ft", "cfs", "cf_kl", "pretraining")
    )
    learnt = table[table["target_exact_match"] >= 0.95 * ft.target_exact_match]
    best = {m: learnt.loc[learnt[f"{m}_drop"].idxmin()] for m in ("acc", "bpb_gold")}
    return (
        "**Mixing samples that a model draws from its start token alone (context-free samples) into fine-tuning"
        f" cuts the drop in retained accuracy from {ft.acc_drop:.3f} to {cfs.acc_drop:.3f} (NLL replay) or"
        f" {kl.acc_drop:.3f} (full-vocabulary KL), at {cfs.target_exact_match:.1%} and"
        f" {kl.target_exact_match:.1%} of target items answered right ({ft.target_exact_match:.1%} with plain"
        f" fine-tuning). Replaying the base's true pretraining documents gives {data.acc_drop:.3f}."
        " Of all recipes that answer at least 95 % as many target items right as plain fine-tuning, the smallest"
        f" drop in accuracy is that of {plots.label(best['acc'].recipe)} ({best['acc'].acc_drop:.3f}), and in bits"
        f" per byte that of {plots.label(best['bpb_gold'].recipe)} ({best['bpb_gold'].bpb_gold_drop:.3f}).**"
    )


def block(table: pd.DataFrame) -> str:
    """Return the finding and the table behind it, as Markdown."""
    profile = load(DEFAULT)
    seeds = len(profile.seeds)
    covered = "items and seeds" if seeds > 1 else "items alone, not seeds"
    lines = [
        finding(table),
        "",
        f"Profile `{DEFAULT}`, {seeds} seed{'s' * (seeds > 1)}, one row per recipe. A drop above 0 is worse than"
        f" the base; in brackets its 95 % interval, paired by item, over {covered}.",
        "",
        "| recipe | target right | target NLL | retained right | drop | verdict | drop in bits per byte | "
        "KL on fresh samples |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in zip(plots.row_labels(table), table.itertuples(), strict=True):
        cells = [name, f"{row.target_exact_match:.3f}", f"{row.target_nll:.3f}", f"{row.acc:.3f}"]
        if row.recipe == "base":
            cells += ["", "", "", "0"]
        else:
            cells += [
                f"{row.acc_drop:+.3f} [{row.acc_low:+.3f}, {row.acc_high:+.3f}]",
                row.acc_verdict,
                f"{row.bpb_gold_drop:+.3f} [{row.bpb_gold_low:+.3f}, {row.bpb_gold_high:+.3f}]",
                f"{row.kl:.3f} ± {row.kl_stderr:.3f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Retained: the mean over {len(profile.retained)} skills, up to {profile.limit} items each. Target"
        f" `{profile.target}`: {profile.n_heldout} held-out items.",
        "NLL, and KL ± its standard error, in nats per token. The learning rate was chosen by target score"
        " alone (notebook 02).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace what stands between the markers."""
    readme = paths.root() / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    results = block(pd.read_csv(paths.root() / DATA))
    readme.write_text(before + START + results + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
