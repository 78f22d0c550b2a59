"""Skills that a base solves by thinking, and what tuning does to them: statistics on tidy frames, without torch.

    items -> skills (the base with and without its thought, by task)
    items -> solved_by_thinking (names, from the base alone) -> only (items of these skills) -> forgetting, verdicts
                                                             -> differences (pairs of recipes on these skills)
    answers -> precision (means over items and answers, and which of the two their error comes from)

Items are those of a base that thinks (`evaluation.thinking`): `acc` is the share of answers that are right, `acc_cut`
the same with the thought cut off, `thinks` the share with a thought that is not empty, `thought_tokens` its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from cfutils.analysis import bootstrap, contrasts, forgetting
from cfutils.analysis.claims import ALPHA, THOUGHT
from cfutils.analysis.paired import Pool
from cfutils.analysis.significance import holm
from cfutils.data import chat
from cfutils.data import skills as known
from cfutils.errors import UserError

BY = 0.2
"""Gain in the share of right answers from which a skill counts as solved by thinking."""
PAIRS = (("template_prefix", "cfs"), ("mixed", "cfs"), ("mixed_kl", "cf_kl"))
"""Sources of replay that are compared: each recipe, and the one with context-free samples and the same loss."""


def solved_by_thinking(items: pd.DataFrame, *, by: float = BY) -> tuple[str, ...]:
    """Return the retained tasks whose right answers the base owes to its thoughts, in the order of the items.

    A task counts if the base's mean `acc` exceeds its mean `acc_cut` by at least `by`. The base alone decides: rows of
    tuned models are not read. Empty for a base that does not think, whose items have no `acc_cut`.
    """
    mine = items[(items["recipe"] == "base") & (items["group"] == "retained")]
    found = {
        name: mine[mine["metric"] == name].groupby("task", sort=False)["value"].mean()
        for name in ("acc", "acc_cut")
    }
    gain = (found["acc"] - found["acc_cut"]).reindex(mine["task"].unique())
    return tuple(gain.index[gain >= by - 1e-9])  # a gain of exactly `by` counts, whatever its last digit


def skills(items: pd.DataFrame, *, by: float = BY, level: float = 0.95) -> pd.DataFrame:
    """The base's share of right answers on each retained task, with its thought and with the thought cut off.

    Intervals are over items: Wilson's for the two shares, the percentile bootstrap of paired differences for the gain.
    Returns columns, the largest gain first: task, acc, acc_low, acc_high, acc_cut, acc_cut_low, acc_cut_high, gain,
    gain_low, gain_high, n (items), level, solved (`solved_by_thinking`). Raises `UserError` for a base that does not
    think.
    """
    mine = items[(items["recipe"] == "base") & (items["group"] == "retained")]
    cut = mine[mine["metric"] == "acc_cut"]
    if cut.empty:
        raise UserError("the items hold no acc_cut of the base: it does not think, or the profile has no think_budget")
    # the cut answers as those of another model, so that the gain is its paired drop
    cut = cut.assign(metric="acc", recipe="cut off", run="cut off", seed=0)
    whole = mine[(mine["metric"] == "acc") & mine["task"].isin(cut["task"])]
    found = forgetting.pooled(pd.concat([whole, cut]), level=level)
    names = {
        "base": "acc", "base_low": "acc_low", "base_high": "acc_high", "tuned": "acc_cut",
        "tuned_low": "acc_cut_low", "tuned_high": "acc_cut_high", "drop": "gain", "low": "gain_low",
        "high": "gain_high",
    }  # fmt: skip
    found = found[found["task"] != "mean"].rename(columns=names)
    found = found.assign(solved=found["task"].isin(solved_by_thinking(items, by=by)))
    found = found[["task", *names.values(), "n", "level", "solved"]]
    return found.sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def only(items: pd.DataFrame, tasks: Iterable[str]) -> pd.DataFrame:
    """Return items without the retained tasks that are not named; target and probes stay.

    Means over retained tasks are then means over these. Raises `UserError` if none of them is there.
    """
    named = (items["group"] == "retained") & items["task"].isin(tuple(tasks))
    if not named.any():
        raise UserError("no retained task is left: the base solves none of them by thinking")
    return items[named | (items["group"] != "retained")]


def declared_shapes(base: str) -> pd.DataFrame:
    """Return the share of each shape (`chat.SHAPES`) among the documents that a base was pretrained on.

    base: as a profile names it. Sources: context_free, all documents, and template_prefix, those that begin with a
    user turn. Columns: source, shape, share. No rows for a base whose mixture is unknown, or has no such documents.
    """
    world = base.partition(":")[2]
    about = known.world(world) if world in known.WORLDS else {}
    share = dict.fromkeys(chat.SHAPES, 0.0)
    for kind, whole in about["mixture"].items() if about.get("chat") else ():
        one = known.skills().get(kind)  # None is prose
        plain = about["plain"].get(kind, 0.0) if one else 1.0
        thought = 1 - about["unthinking"] if one and one.steps else 0.0
        share["plain"] += whole * plain
        share["thinking"] += whole * (1 - plain) * thought
        share["unthinking"] += whole * (1 - plain) * (1 - thought)
    turns = sum(share.values()) - share["plain"]
    rows = [("context_free", shape, value) for shape, value in share.items()]
    rows += [("template_prefix", s, 0.0 if s == "plain" else value / (turns or 1)) for s, value in share.items()]
    return pd.DataFrame(rows if turns else [], columns=["source", "shape", "share"])


def differences(
    items: pd.DataFrame, tasks: Sequence[str], *, pairs: Sequence[tuple[str, str]] = PAIRS
) -> pd.DataFrame:
    """Paired differences between recipes in the share of right answers, each of the tasks counting alike.

    The unit is the pair (seed, item), as in `verdicts`, with the same variance; above 0 the recipe retains more than
    its rival. A rival with several points is taken at the recipe's target score.

    Returns columns: recipe, rival, effect, low, high (95 %), p_adjusted (two-sided, Holm's over the rows), seeds,
    items, target_gap (recipe minus rival; above 0 where the recipe learned more), target_metric (what that is in),
    matched (whether target scores count as equal), reading. Numbers are NaN where a recipe was not run.
    """
    pool = Pool(only(items, tasks))
    scores = pool.scores(THOUGHT, tuple(tasks))
    rows = []
    for recipe, rival in pairs:
        pair = contrasts.against(pool, recipe, rival)
        row = {"recipe": recipe, "rival": rival, "seeds": len(pair.seeds), "items": scores.value.shape[1]}
        if pair.problem:
            rows.append(row | {"reading": pair.problem[1]})
            continue
        found = scores.estimate(pair.ours - pair.theirs)
        low, high = map(float, found.interval(1 - ALPHA))
        gap = float(pair.gap.effect) if pair.gap else np.nan
        rows.append(
            row | {"effect": float(found.effect), "low": low, "high": high, "target_gap": gap,
                   "target_metric": pair.metric, "matched": pair.matched,
                   "p": float(found.p()) if found.n_seeds > 1 else np.nan}
        )  # fmt: skip
    columns = ["recipe", "rival", "effect", "low", "high", "p", "seeds", "items", "target_gap", "target_metric",
               "matched", "reading"]  # fmt: skip
    out = pd.DataFrame(rows).reindex(columns=columns)
    out.insert(columns.index("p"), "p_adjusted", holm(out["p"]))
    words = [row["reading"] if pd.isna(row["effect"]) else _reading(row) for row in out.to_dict("records")]
    return out.drop(columns="p").assign(reading=words)


def _reading(row: Mapping) -> str:
    """Say what an interval of a difference shows."""
    interval = f"between {row['low']:+.3f} and {row['high']:+.3f}"
    if row["seeds"] == 1:
        return f"one seed, no verdict: {interval}"
    if not row["p_adjusted"] < ALPHA:
        return f"no difference shown: {interval}"
    return f"{'more' if row['effect'] > 0 else 'less'} retained: {interval}"


def precision(answers: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Means over the answers of one model by task, with intervals over items *and* answers.

    answers: a frame of `Lab.answers`; those with the thought cut off are left out. Each item has the same number k of
    answers. With m_i the mean of the answers of item i and s_i^2 their variance (k - 1 in the denominator), the mean is
    that of m_i, and its standard error sqrt(var(m_i) / n): it covers the choice of items and the sampling of answers,
    for var(m_i) estimates between + within / k. within = mean of s_i^2, between = var(m_i) - within / k, at least 0
    (one-way random effects; Miller, arXiv 2411.00640). `answers_share` is the part of the squared error that more
    answers an item would take away, (within / k) / var(m_i), at most 1. The interval is Student's with n - 1 degrees of
    freedom, for shares within [0, 1].

    Returns columns: task, metric (right, answered, ended, thinks, thought_tokens), n (items), k, mean, stderr,
    low, high, between, within, answers_share, level; `answered` where the task's answers are read by a rule (some
    answer was). Variances are NaN with one item, and those of answers with one answer an item. Raises `UserError` if
    items have different numbers of answers.
    """
    bootstrap.check_level(level)
    free = answers[~answers["cut"].astype(bool)]
    if "extracted" in free:
        free = free.assign(answered=free["extracted"].notna())
    rows = []
    for task, own in free.groupby("task", sort=False):
        sizes = own.groupby("item", sort=False).size().unique()
        if len(sizes) > 1:
            raise UserError(f"{task}: items have {', '.join(map(str, sorted(sizes)))} answers; give as many to each")
        for metric in ("right", "answered", "ended", "thinks", "thought_tokens"):
            if metric not in own or (metric == "answered" and not own[metric].any()):
                continue
            by_item = own[metric].astype(float).groupby(own["item"], sort=False)
            rows.append({"task": task, "metric": metric, **_mean(by_item.mean(), by_item.var(), int(sizes[0]), level)})
            if metric != "thought_tokens":
                rows[-1] |= {name: float(np.clip(rows[-1][name], 0, 1)) for name in ("low", "high")}
    return pd.DataFrame(rows).assign(level=level)


def _mean(means: pd.Series, variances: pd.Series, k: int, level: float) -> dict[str, float]:
    n, mean, spread, within = len(means), float(means.mean()), float(means.var()), float(variances.mean())
    stderr = np.sqrt(spread / n)
    half = stats.t.ppf((1 + level) / 2, n - 1) * stderr if n > 1 else np.nan
    share = min(1.0, within / k / spread) if spread > 0 else np.nan
    return {
        "n": n, "k": k, "mean": mean, "stderr": stderr, "low": mean - half, "high": mean + half,
        "between": max(0.0, spread - within / k), "within": within, "answers_share": share,
    }  # fmt: skip


def transcripts(answers: Mapping[str, pd.DataFrame], *, tasks: Sequence[str], n: int = 2) -> pd.DataFrame:
    """Return the first answer to each of the first n items of each task, a column per model, as it was written.

    answers: by the name of each model, frames of `Lab.answers`. Rows are (skill, item). The mark behind an answer says
    whether it is right; a thought that did not end within its budget ends in an ellipsis.
    """
    columns = {}
    for name, found in answers.items():
        free = found[~found["cut"].astype(bool) & found["task"].isin(tasks)].drop_duplicates(["task", "item"])
        first = free.groupby("task", sort=False).head(n)
        keys = zip(first["task"], first["item"], strict=True)
        columns[name] = dict(zip(keys, map(_said, first.to_dict("records")), strict=True))
    out = pd.DataFrame(columns).rename_axis(["skill", "item"])
    return pd.concat([out.loc[[task]] for task in tasks])


def _said(row: Mapping) -> str:
    ending = f"{chat.CLOSE}{row['answer']}" if row["ended"] else " …"
    return f"{chat.OPEN}{row['thought']}{ending}  {'✓' if row['right'] else '✗'}"
