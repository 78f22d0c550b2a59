"""Captions of figures, with the numbers of the data behind them.

    caption("ranking", data) -> ("Every method at one target score", "Of 24 methods that reach ...")

A figure without a row here, or whose data have other columns, gets what can be said of any table: its size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from cfutils.analysis import forgetting, plots, ranking, recommend, verdicts

UNKNOWN = (KeyError, IndexError, TypeError, ValueError)
"""What data raise that an earlier version has drawn, whose columns or rows were others."""


def caption(name: str, data: pd.DataFrame) -> tuple[str, str]:
    """Return the title of a figure and what its data say in a sentence or two."""
    title, say = CAPTIONS.get(name, (name.replace("_", " ").capitalize(), _any))
    try:
        return title, say(data)
    except UNKNOWN:
        return title, _any(data)


def _any(data: pd.DataFrame) -> str:
    return f"Drawn from {len(data):,} rows: {', '.join(map(str, data.columns[:8]))}."


def _span(row: Mapping, value: str) -> str:
    """Write a value with its interval."""
    return f"{row[value]:z.2f} [{row['low']:z.2f}, {row['high']:z.2f}]"


def _claims(data: pd.DataFrame) -> str:
    found = verdicts.summary(data)["verdict"].value_counts()
    counts = [f"{found[word]} {word}" for word in verdicts.VERDICTS if word in found]
    return f"{found.sum()} claims: {', '.join(counts)}. Above 0 the method tested retains more than its rival."


def _along(data: pd.DataFrame) -> str:
    """Say of each recipe at which values it retains more or less than at the one they are compared with."""
    own = data[data["metric"] == data["metric"].iloc[0]].copy()
    own[["recipe", "value"]] = own["rival"].str.split(" at ", expand=True)
    said = []
    for recipe, part in own.groupby("recipe", sort=False):
        if (part["verdict"] == "not testable").all():
            said.append(f"{plots.label(recipe)}: not testable ({part['reason'].iloc[0]})")
            continue
        differs = [
            f"{'less' if row['effect'] > 0 else 'more'} at {row['value']} ({abs(row['effect']):.3f})"
            for row in part[part["verdict"] == "supported"].to_dict("records")
        ]
        counts = part.loc[part["verdict"] != "supported", "verdict"].value_counts()
        rest = [f"{n} {word}" for word, n in counts.items()]
        differs = differs or ["neither more nor less beyond noise"]
        said.append(f"{plots.label(recipe)} retains {', '.join(differs)}" + (f"; {', '.join(rest)}" if rest else ""))
    return f"{'. '.join(said)}. In {plots.label(own['metric'].iloc[0])}, paired by seed and item."


def _ranking(data: pd.DataFrame) -> str:
    same = data[data["reach"] == "same"]
    unit, first, last, short = plots.label(data["metric"].iloc[0]), same.iloc[0], same.iloc[-1], len(data) - len(same)
    return (
        f"Of {len(same)} methods that reach the target score of {plots.label(ranking.treatment(data))}, "
        f"{plots.label(first['recipe'])}"
        f" forgets least ({first['drop']:.2f} in {unit}) and {plots.label(last['recipe'])} most ({last['drop']:.2f})."
        + (f" {short} do not reach it." if short else "")
    )


def _frontiers(data: pd.DataFrame) -> str:
    return (
        f"{data['recipe'].nunique()} methods, each over its own knob: {len(data)} settings, {data['n_seeds'].max():.0f}"
        " seeds. Right and up are better."
    )


def _frontier(data: pd.DataFrame) -> str:
    base, tuned = data[data["recipe"] == "base"].iloc[0], data[data["recipe"] != "base"]
    worst, best = tuned.loc[tuned["y"].idxmin()], tuned.loc[tuned["y"].idxmax()]
    return (
        f"{len(tuned)} recipes and settings: retained score from {worst['y']:.2f} ({worst['label']}) to {best['y']:.2f}"
        f" ({best['label']}); the base has {base['y']:.2f}. Right and up are better."
    )


def _ablation(setting: str) -> Callable[[pd.DataFrame], str]:
    def say(data: pd.DataFrame) -> str:
        kept = data[data["panel"] == "retained"]
        parts = []
        for recipe, own in kept[kept[setting].notna()].groupby("recipe", sort=False):
            best = own.loc[own["value"].idxmin()]
            parts.append(f"{plots.label(recipe)} loses least at {best[setting]:g}: {_span(best, 'value')}")
        plain, seeds = kept[kept["recipe"] == "ft"], int(data["n_seeds"].max())
        parts += [f"plain fine-tuning loses {_span(row, 'value')}" for row in plain.to_dict("records")]
        return f"{'; '.join(parts)}. {seeds} seed{'s' * (seeds > 1)}."

    return say


def _recipe_bars(data: pd.DataFrame) -> str:
    tuned = data[data["recipe"] != "base"].reset_index(drop=True)
    names = plots.row_labels(tuned)
    least, most = tuned["bpb_gold_drop"].idxmin(), tuned["bpb_gold_drop"].idxmax()
    return (
        f"Drop in answer bits per byte, mean over retained tasks: from {tuned['bpb_gold_drop'][least]:z.2f}"
        f" ({names[least]}) to {tuned['bpb_gold_drop'][most]:z.2f} ({names[most]})."
    )


def _heatmap(data: pd.DataFrame) -> str:
    means = data[data["task"] != "mean"].groupby("task", sort=False)["drop"].mean()
    most, least = means.idxmax(), means.idxmin()
    return (
        f"Mean over {data['label'].nunique()} recipes: most is lost on {plots.label(most)} ({means[most]:+.2f}), least"
        f" on {plots.label(least)} ({means[least]:+.2f})."
    )


def _kl_against_drop(data: pd.DataFrame) -> str:
    parts = []
    for probe, own in data.groupby("probe", sort=False):
        parts.append(f"{forgetting.relation(own['kl'], own['drop'])['tau']:.2f} on {plots.label(probe)}")
    return f"{data['run'].nunique()} runs. Kendall's τ of KL and drop: {', '.join(parts)}."


def _kl_bias(data: pd.DataFrame) -> str:
    own = data[(data["source"] == "context_free") & (data["temperature"] == 1) & (data["estimator"] == "log_ratio")]
    parts = [f"{row['estimate'] - row['reference']:+.3f} for {row['model']}" for row in own.to_dict("records")]
    return f"Estimate from context-free samples at T = 1, minus the reference, nats per token: {', '.join(parts)}."


def _kl_convergence(data: pd.DataFrame) -> str:
    own = data[data["estimator"] == "log_ratio"].sort_values("n")
    first, last = own.iloc[0], own.iloc[-1]
    return (
        f"From {first['n']} to {last['n']:,} samples the standard deviation of an estimate by the log ratio falls from"
        f" {first['sd']:.2f} to {last['sd']:.2f} nats per sequence."
    )


def _kl_temperature(data: pd.DataFrame) -> str:
    own = data[data["estimator"] == "log_ratio"]
    worst = own.loc[own["bias"].abs().idxmax()]
    return (
        f"The log ratio is off most for {worst['model']} at T = {worst['temperature']:g}: {worst['bias']:+.2f}"
        f" {worst['unit']}."
    )


def _learning_rate(data: pd.DataFrame) -> str:
    best = data[data["chosen"].astype(bool)].iloc[0]
    n = data["lr"].nunique()
    return f"Of {n} rates the NLL of validation items is lowest at {best['lr']:g}: {best['value']:.3f} nats per token."


def _training(data: pd.DataFrame) -> str:
    return (
        f"{data['recipe'].nunique()} recipes, {data['seed'].nunique()} seed{'s' * (data['seed'].nunique() > 1)},"
        f" {data['step'].max() + 1:,} steps: the loss on the target and on replay."
    )


def _pretraining(data: pd.DataFrame) -> str:
    first, last = data.iloc[0], data.iloc[-1]
    seen = last["tokens"] / 1e6
    return f"From {first['loss']:.1f} to {last['smooth']:.2f} nats per token over {seen:.1f} million tokens."


def _skills(data: pd.DataFrame) -> str:
    kept, target = data[data["role"] == "retained"], data[data["role"] == "target"]
    news = ", ".join(f"{row['task']} {row['value']:.0%}" for row in target.to_dict("records"))
    mastered = (kept["value"] >= 0.8).sum()
    return f"{mastered} of {len(kept)} skills answered right in 80 % or more; targets, not yet learned: {news}."


def _kinds(data: pd.DataFrame) -> str:
    declared = data[data["source"] == "mixture"].set_index("kind")["share"]
    own = data[(data["source"] == "context_free") & (data["temperature"] == 1)].set_index("kind")
    gap = (own["share"] - declared).dropna()
    kind = gap.abs().idxmax()
    return (
        f"Of {own['n'].max():,.0f} samples at T = 1 the share furthest from the declared one is that of {kind}:"
        f" {own.loc[kind, 'share']:.1%} instead of {declared[kind]:.0%}."
    )


def _diagnostics(data: pd.DataFrame) -> str:
    ended = data[data["panel"] == "ended"]
    return f"Ended by an end token: {'; '.join(f'{r.series}: {r.y:.0%}' for r in ended.itertuples())}."


def _text(data: pd.DataFrame) -> str:
    low, high = data["tokens"].min(), data["tokens"].max()
    return f"The first {len(data)} samples as drawn, {low} to {high} tokens; none is selected."


def _drift(data: pd.DataFrame) -> str:
    means = data.groupby("recipe", sort=False)["value"].mean()
    parts = [f"{plots.label(name)} {value:.2f}" for name, value in means.items()]
    return f"One passage, mean over its tokens in nats: {', '.join(parts)}."


def _thinking_skills(data: pd.DataFrame) -> str:
    solved = data[data["solved"].astype(bool)]
    parts = [f"{row['task']} {row['acc_cut']:.0%} → {row['acc']:.0%}" for row in solved.to_dict("records")]
    return f"Solved by thinking (right without → with the thought): {', '.join(parts)}."


def _thinking_shapes(data: pd.DataFrame) -> str:
    own = data[(data["temperature"] == 1) & (data["shape"] == "thinking")]
    names = {"context_free": "from the start token", "template_prefix": "from the user header"}
    parts = [
        f"{row.share:.0%} {names.get(row.source, row.source)} (declared {row.declared:.0%})"
        for row in own.itertuples()
    ]
    return f"Samples with a thought at T = 1: {', '.join(parts)}."


def _thinking_recipes(data: pd.DataFrame) -> str:
    right = data[(data["metric"] == "acc") & (data["task"] == "mean")].set_index("label")["value"]
    tuned = right.drop("Base")
    return (
        f"Right answers on skills solved by thinking: base {right['Base']:.0%}, {tuned.idxmax()} {tuned.max():.0%},"
        f" {tuned.idxmin()} {tuned.min():.0%}."
    )


def _own_runs(data: pd.DataFrame) -> str:
    own = data[data["recommended"].astype(bool)].iloc[0]
    return f"{len(data)} runs; recommended: {recommend.name(own)}, with a drop of {own['drop']:+.3f}."


CAPTIONS: dict[str, tuple[str, Callable[[pd.DataFrame], str]]] = {
    "claims": ("Verdicts on the claims", _claims),
    "verdicts": ("Verdicts on the claims", _claims),
    "temperature_verdicts": ("Does the temperature matter? Beside T = 1", _along),
    "ratio_verdicts": ("Does the share of replay matter? Beside the smallest", _along),
    "ranking": ("Every method at one target score", _ranking),
    "against_ft": ("Every recipe at the target score of plain fine-tuning", _ranking),
    "frontiers": ("Every method over its own knob", _frontiers),
    "frontier": ("New task against old abilities", _frontier),
    "recipe_bars": ("Forgetting, mean over retained tasks", _recipe_bars),
    "drop_heatmap_acc": ("Forgetting by task: right answers", _heatmap),
    "drop_heatmap_bpb_gold": ("Forgetting by task: answer bits per byte", _heatmap),
    "drop_heatmap_margin": ("Forgetting by task: margin of the right choice", _heatmap),
    "kl_against_drop": ("Distance from the base against forgetting", _kl_against_drop),
    "claims_kl_against_drop": ("Distance from the base against forgetting", _kl_against_drop),
    "kl_bias": ("Bias of KL estimates by text", _kl_bias),
    "claims_kl_bias": ("Bias of KL estimates by text", _kl_bias),
    "kl_convergence": ("KL estimated from n samples", _kl_convergence),
    "kl_temperature": ("Bias of KL estimates by temperature", _kl_temperature),
    "temperature": ("Generation temperature of the replay", _ablation("temperature")),
    "claims_temperature": ("Generation temperature of the replay", _ablation("temperature")),
    "thinking_temperature": ("Generation temperature, skills solved by thinking", _ablation("temperature")),
    "ratio": ("Share of replay", _ablation("ratio")),
    "claims_ratio": ("Share of replay", _ablation("ratio")),
    "thinking_ratio": ("Share of replay, skills solved by thinking", _ablation("ratio")),
    "replay_weight": ("Weight of the replay loss", _ablation("replay_weight")),
    "learning_rate": ("Learning rate by validation items of the target", _learning_rate),
    "training_curves": ("Training curves of both terms", _training),
    "pretraining_curve": ("Pretraining of the tiny base", _pretraining),
    "base_skills": ("What the base can do", _skills),
    "kind_shares": ("Kinds of sampled text against the mixture", _kinds),
    "samples_diagnostics": ("Length, probability and entropy of samples", _diagnostics),
    "temperature_samples": ("Samples at several temperatures", _diagnostics),
    "samples_text": ("The first samples", _text),
    "token_drift": ("Token drift in one passage", _drift),
    "thinking_skills": ("Skills solved by thinking", _thinking_skills),
    "thinking_shapes": ("Shapes of samples", _thinking_shapes),
    "thinking_recipes": ("Thoughts and right answers after tuning", _thinking_recipes),
    "thinking_target": ("The same, on a target with thoughts", _thinking_recipes),
    "own_runs": ("What every run forgets", _own_runs),
}
"""Title and sentence of each figure."""
