"""Write the results into README.md, between markers: verdicts on the claims, the default profile, a real model.

    .venv/bin/python scripts/readme_results.py

Reads the tables that notebooks 03, 04, 05 and 07 drew from, figures/PROFILE/*.csv, and the records of shipped
results; a test holds them together, so no number in the README is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import pandas as pd

from cfutils import paths
from cfutils.analysis import plots, ranking, verdicts
from cfutils.gallery.captions import caption
from cfutils.profiles import DEFAULT, Profile, load

MARKS = "<!-- {}:start -->\n", "<!-- {}:end -->\n"
JUDGED = {"tiny-claims": "tiny", "tiny-think": "tiny-think"}
"""Profiles whose verdicts are shown, and the names of their bases."""
REAL = ("smollm2", "smollm2-stress", "smollm2-gsm8k", "smollm2-not-healed")
"""Profiles of a real language model."""
SURVEY = "smollm2-survey"
"""Profile of it with every method, several temperatures and shares of replay."""
HEADLINE = ("ft", "cfs", "cf_kl")
"""Recipes in the sentence about it."""
BESIDE = {
    "ewc": "EWC with the Fisher of context-free samples", "cfs": "context-free NLL", "cf_kl": "context-free KL",
    "ft": "plain fine-tuning at a rate chosen for it",
    "replay_only": "replay without a target",
}  # fmt: skip
"""Recipes named beside the one that is recommended."""
Read = Callable[[str], pd.DataFrame]
"""Reads a table, CSV or Parquet, by its path below the repository's root."""


def claims(read: Read) -> str:
    """Return what is lost, the recommendation, the main figure, and one row per claim and base, as Markdown."""
    rankings = {name: read(f"figures/{name}/ranking.csv") for name in JUDGED}
    lines = [
        headline(rankings, read(f"figures/{REAL[0]}/against_ft.csv")),
        "",
        recommendation(rankings),
        "",
        f"![What context-free replay retains more than each rival](figures/{next(iter(JUDGED))}/claims.png)",
        "",
        *verdict_rows({base: read(f"figures/{name}/claims.csv") for name, base in JUDGED.items()}, of="base"),
    ]
    return "\n".join(lines) + "\n"


def verdict_rows(tables: dict[str, pd.DataFrame], *, of: str, tested: bool = False) -> list[str]:
    """Return the lines of a table with one row per claim and study, from the studies' frames of `verdicts.table`.

    of: heading of the studies' names. tested: leave out claims without an effect, whose recipes were not run.
    """
    lines = [
        f"| claim | {of} | verdict | effect [95 % interval] | against | matters from | detectable | seeds, items |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [
        (row["claim"], row["statement"], name, row)
        for name, table in tables.items()
        for row in verdicts.summary(table).to_dict("records")
        if not tested or pd.notna(row["effect"])
    ]
    for claim, statement, name, row in sorted(rows, key=lambda r: (r[0], r[1])):
        effect = ""
        if pd.notna(row["effect"]):
            effect = f"{row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] {verdicts.unit(row)}"
        cells = [
            f"{claim} {statement}", name, f"**{row['verdict']}**", effect, plots.named(row["rival"]),
            f"{row['delta']:.3g}", f"{row['detectable']:.3g}" if pd.notna(row["detectable"]) else "",
            f"{row['seeds']:.0f}, {row['items']:,.0f}" if row["seeds"] else "",
        ]  # fmt: skip
        lines.append(line(cells))
    return lines


def headline(rankings: dict[str, pd.DataFrame], real: pd.DataFrame) -> str:
    """Return what plain fine-tuning and the two forms of context-free replay lose, on our base and on a real model."""
    name = next(iter(rankings))
    drops = rankings[name].set_index("recipe")
    own = ", ".join(f"{plots.label(recipe)} {loss(row)}" for recipe, row in drops.loc[list(HEADLINE)].iterrows())
    return (
        "**What is lost of the retained answers, in bits per byte, at one target score unless stated. Our base"
        f" `{JUDGED[name]}`: {own}. SmolLM2-135M tuned on {plots.label(load(REAL[0]).target)}: {beside_ft(real)};"
        " in parentheses the difference from plain fine-tuning. Brackets are 95 % intervals over seeds and items.**"
    )


def loss(row: pd.Series) -> str:
    """Return the drop in a row of a ranking, with its interval."""
    return f"{row['drop']:z.2f} [{row['low']:z.2f}, {row['high']:z.2f}]"


def recommendation(rankings: dict[str, pd.DataFrame]) -> str:
    """Return which method forgets least over the bases, at one target score, in three sentences."""
    tables = {JUDGED[name]: table.set_index("recipe") for name, table in rankings.items()}
    reached = [set(t.index[t["reach"] == "same"]) for t in tables.values()]
    share = pd.DataFrame({base: t["drop"] / t.loc["ft", "drop"] for base, t in tables.items()})
    order = share.loc[sorted(set.intersection(*reached))].mean(axis=1).sort_values().index
    better = [
        plots.label(name) for name in order
        if all(t.loc[name, "difference"] < 0 and t.loc[name, "p_adjusted"] < verdicts.ALPHA for t in tables.values())
    ]  # fmt: skip
    best = order[0]
    lost = []
    for base, t in tables.items():
        others = "; ".join(f"{text} {t.loc[name, 'drop']:z.2f}" for name, text in BESIDE.items() if name != best)
        lost.append(f"{loss(t.loc[best])} on `{base}` ({others})")
    return (
        f"**On our own bases we recommend {plots.label(best)}. At the target score of context-free NLL it loses, in"
        f" bits per byte of the retained answers, {' and '.join(lost)}. Of {len(order)} methods that reach that target"
        " score, these forget less than context-free NLL beyond noise on every base:"
        f" {', '.join(better) or 'none'}.**"
    )


def line(cells: Iterable[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def study(profile: Profile) -> str:
    """Return what a profile of the real model tunes and scores."""
    return (
        f"`{profile.name}`: base `{profile.base}`, {profile.n_train:,} items of {plots.label(profile.target)},"
        f" {len(profile.retained)} retained tasks with up to {profile.limit} items each"
    )


def distance(row: pd.Series) -> str:
    """Return the KL on fresh samples with its standard error."""
    return f"{row['kl']:.3f} ± {row['kl_stderr']:.3f}"


def between(row: pd.Series, metric: str) -> str:
    """Return a drop with its interval."""
    return f"{row[f'{metric}_drop']:+.3f} [{row[f'{metric}_low']:+.3f}, {row[f'{metric}_high']:+.3f}]"


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


def results(read: Read) -> str:
    """Return the finding of the default profile and the table behind it, as Markdown."""
    table = read(f"figures/{DEFAULT}/recipe_bars.csv")
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
    for name, (_, row) in zip(plots.row_labels(table), table.iterrows(), strict=True):
        cells = [name, f"{row.target_exact_match:.3f}", f"{row.target_nll:.3f}", f"{row.acc:.3f}"]
        if row.recipe == "base":
            cells += ["", "", "", "0"]
        else:
            cells += [
                between(row, "acc"),
                row.acc_verdict,
                between(row, "bpb_gold"),
                distance(row),
            ]
        lines.append(line(cells))
    lines += [
        "",
        f"Retained: the mean over {len(profile.retained)} skills, up to {profile.limit} items each. Target"
        f" `{profile.target}`: {profile.n_heldout} held-out items.",
        "NLL, and KL ± its standard error, in nats per token. The learning rate was chosen by validation"
        " items of the target alone (notebook 02).",
    ]
    return "\n".join(lines) + "\n"


def one_task(drops: pd.DataFrame) -> str:
    """Return where plain fine-tuning loses most, and what each recipe of the headline loses there and elsewhere."""
    own = drops[(drops["task"] != "mean") & drops["recipe"].isin(HEADLINE)]
    table = own.pivot(index="task", columns="recipe", values="drop")
    task = table["ft"].idxmax()
    there, elsewhere = (
        ", ".join(f"{plots.label(name)} {part[name]:+.3f}" for name in HEADLINE)
        for part in (table.loc[task], table.drop(index=task).mean())
    )
    return f"on {plots.label(task)} {there}; mean of the other {len(table) - 1} tasks: {elsewhere}"


def beside_ft(table: pd.DataFrame) -> str:
    """Return what each recipe of the headline loses, and its paired difference from plain fine-tuning."""
    parts = []
    for name, row in table.set_index("recipe").loc[list(HEADLINE)].iterrows():
        beside = "" if name == "ft" else f" ({difference(row)})"
        parts.append(f"{plots.label(name)} {row['drop']:.3f}{beside}")
    return ", ".join(parts)


def difference(row: pd.Series) -> str:
    """Return the paired difference from plain fine-tuning with its interval, and what keeps it from standing."""
    remark = ranking.remark(row)
    ends = f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    return f"{row['difference']:+.3f} {ends}{remark and f', {remark}'}"


def methods(read: Read) -> list[str]:
    """Return the lines of a table of every method on the real model, the smallest drop first."""
    table = read(f"figures/{SURVEY}/recipe_bars.csv")
    beside = read(f"figures/{SURVEY}/against_ft.csv").set_index("recipe")
    table = table.assign(label=plots.row_labels(table))[table["recipe"] != "base"]
    lines = [
        f"**Every method.** {study(load(SURVEY))}; {table['n_seeds'].max()} seeds.",
        "",
        "| recipe | target NLL | drop in bits per byte | verdict | beside plain fine-tuning | KL on fresh samples |",
        "|---|---|---|---|---|---|",
    ]
    for _, row in table.sort_values("bpb_gold_drop").iterrows():
        # weight averages are several rows, and their difference is that at plain fine-tuning's target score
        paired = row["recipe"] != "ft" and pd.isna(row["alpha"])
        cells = [
            row["label"], f"{row['target_nll']:.3f}", between(row, "bpb_gold"), row["bpb_gold_verdict"],
            difference(beside.loc[row["recipe"]]) if paired else "", distance(row),
        ]  # fmt: skip
        lines.append(line(cells))
    return lines


def setting(read: Read, name: str) -> str:
    """Return at which value of a setting of the replay least is lost, and whether that is known."""
    (_, where), (asked, judged) = (
        caption(part, read(f"figures/{SURVEY}/{part}.csv")) for part in (name, f"{name}_verdicts")
    )
    return f"{where} {asked}: {judged}"


def spent(read: Read) -> str:
    """Return the hours that the shipped results of a real model took, by processor, and what it tuned in."""
    shipped = [read(f"data/results/{name}/records.parquet") for name in (*REAL, SURVEY)]
    records = pd.DataFrame([json.loads(text) for table in shipped for text in table["record"]])
    records = records.drop_duplicates("key")  # profiles share the healed base, for one
    parts = []
    for cpu, own in records.groupby(records["machine"].map(lambda machine: machine["cpu"]), sort=False):
        precision = own.loc[own["label"].str.match("ft "), "notes"].iloc[0]["precision"]
        parts.append(f"{own['seconds'].sum() / 3600:.1f} h on an {cpu} (tuned in {precision})")
    return " and ".join(parts)


def real(read: Read) -> str:
    """Return what is found on a real language model: a sentence, one row per recipe and study, and the verdicts."""
    lost, about, rows, most = [], [], [], []
    for profile in map(load, REAL):
        table = read(f"figures/{profile.name}/recipe_bars.csv")
        base, tuned = table[table["recipe"] == "base"].iloc[0], table[table["recipe"] != "base"]
        lost.append(f"`{profile.name}`: {beside_ft(read(f'figures/{profile.name}/against_ft.csv'))}")
        about.append(f"{study(profile)}.")
        most.append(f"`{profile.name}`: {one_task(read(f'figures/{profile.name}/drop_heatmap_bpb_gold.csv'))}.")
        scores = f"{base['target_nll']:.3f}", f"{base['acc']:.3f}"
        rows.append([f"`{profile.name}`", "Base", "", *scores, *[""] * 4, "0"])
        for name, (_, row) in zip(plots.row_labels(tuned), tuned.iterrows(), strict=True):
            rows.append([
                f"`{profile.name}`", name, f"{row['n_seeds']}", f"{row['target_nll']:.3f}", f"{row['acc']:.3f}",
                between(row, "acc"), row["acc_verdict"], between(row, "bpb_gold"), row["bpb_gold_verdict"],
                distance(row),
            ])  # fmt: skip
    lines = [
        f"**What SmolLM2-135M loses of its retained answers, in bits per byte. {'. '.join(lost)}. In parentheses the"
        " difference from plain fine-tuning, paired by seed and item, with its 95 % interval.**",
        "",
        f"![What every recipe loses, and how much less than plain fine-tuning](figures/{REAL[0]}/against_ft.png)",
        "",
        " ".join(about),
        "",
        "| profile | recipe | seeds | target NLL | retained right | drop | verdict | drop in bits per byte | verdict |"
        " KL on fresh samples |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(line, rows),
        "",
        f"One task can be most of a mean. {' '.join(most)}",
        "",
        *methods(read),
        "",
        *verdict_rows(
            {f"`{name}`": read(f"figures/{name}/verdicts.csv") for name in (*REAL, SURVEY)}, of="profile", tested=True
        ),
        "",
        f"**Which temperature?** {setting(read, 'temperature')}",
        "",
        f"**How much replay?** {setting(read, 'ratio')}",
        "",
        f"![Loss, target and KL against the temperature of sampling](figures/{SURVEY}/temperature.png)",
        "",
        f"![Loss, target and KL against the share of replay](figures/{SURVEY}/ratio.png)",
        "",
        f"Computed on two cores in {spent(read)}: the sum over all steps, of which two ran side by side at times.",
    ]
    return "\n".join(lines) + "\n"


BLOCKS: dict[str, Callable[[Read], str]] = {"claims": claims, "results": results, "smollm2": real}
"""What stands between the markers of each name."""


def parts(text: str, name: str) -> tuple[str, str, str]:
    """Return what stands in front of a block, in it, and behind it."""
    start, end = (mark.format(name) for mark in MARKS)
    before, rest = text.split(start)
    inside, after = rest.split(end)
    return before + start, inside, end + after


def parse(path: str, file: Path | IO[bytes]) -> pd.DataFrame:
    """Read a table in the format that its path ends in, from that file or its bytes."""
    return pd.read_parquet(file) if path.endswith(".parquet") else pd.read_csv(file)


def main() -> None:
    """Write every block again."""
    readme = paths.root() / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, write in BLOCKS.items():
        before, _, after = parts(text, name)
        text = before + write(lambda path: parse(path, paths.root() / path)) + after
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
