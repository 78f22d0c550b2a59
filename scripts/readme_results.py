"""Write the results of the default profile into README.md, between its two markers.

    .venv/bin/python scripts/readme_results.py

Reads figures/<default profile>/recipe_bars.csv, the table that notebook 03 drew from; a test holds the two
together, so no number in the README is typed by hand.
"""

from __future__ import annotations

import pandas as pd

from cfutils import paths, plots
from cfutils.profiles import DEFAULT, load

START, END = "<!-- results:start -->\n", "<!-- results:end -->\n"


def block() -> str:
    """Return the table and what it says, as Markdown."""
    table = pd.read_csv(paths.root() / "figures" / DEFAULT / "recipe_bars.csv")
    profile = load(DEFAULT)
    lines = [
        f"Profile `{DEFAULT}`, {len(profile.seeds)} seed: the base, then a row each recipe. A drop above",
        "0 is worse than the base; in brackets the 95 % interval, paired by item.",
        "",
        "| recipe | target NLL | retained accuracy | drop of accuracy | drop in bits per byte | verdict | "
        "KL on fresh samples |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in zip(plots.row_labels(table), table.itertuples(), strict=True):
        cells = [name, f"{row.target_nll:.3f}", f"{row.acc:.3f}"]
        if row.recipe == "base":
            cells += ["", "", "", "0"]
        else:
            cells += [
                f"{row.acc_drop:+.3f} [{row.acc_low:+.3f}, {row.acc_high:+.3f}]",
                f"{row.bpb_gold_drop:+.3f} [{row.bpb_gold_low:+.3f}, {row.bpb_gold_high:+.3f}]",
                row.bpb_gold_verdict,
                f"{row.kl:.3f} ± {row.kl_stderr:.3f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    at = table.drop_duplicates("recipe").set_index("recipe")
    lines += [
        "",
        f"Plain fine-tuning against the base: **{at.bpb_gold_verdict['ft']}** in bits per byte,"
        f" **{at.acc_verdict['ft']}** in accuracy.",
        f"KL on fresh context-free samples: {at.kl['ft']:.3f} after plain fine-tuning,"
        f" {at.kl['cfs']:.3f} with context-free NLL, {at.kl['cf_kl']:.3f} with context-free KL.",
        "",
        f"Retained: the mean over {len(profile.retained)} tasks of {profile.limit} items. Target NLL on",
        f"{profile.n_heldout} held-out items, KL ± its standard error, both in nats a token.",
    ]
    if len(profile.seeds) == 1:
        lines += [
            "One seed cannot tell what another order of the data or other samples would have given: the",
            "intervals cover items alone, and a difference between two recipes within them is no finding.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace what stands between the markers."""
    readme = paths.root() / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    readme.write_text(before + START + block() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
