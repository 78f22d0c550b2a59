"""Skills that a base solves by thinking, and what tuning does to them: statistics on tidy frames, without torch.

    items -> skills (the base with and without its thought, by task)
    items -> solved_by_thinking (names, from the base alone) -> only (items of these skills) -> forgetting, verdicts
                                                             -> differences (pairs of recipes on these skills)

Items are those of a base that thinks (`evaluation.thinking`): `acc` is the share of answers that are right, `acc_cut`
the same with the thought cut off, `thinks` the share with a thought that is not empty, `thought_tokens` its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from cfutils.analysis import contrasts, forgetting
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
    items, target_gap (recipe minus rival, in right answers; above 0 where the recipe learned more), matched (whether
    target scores count as equal), reading. Numbers are NaN where a recipe was not run.
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
            row | {"effect": float(found.effect), "low": low, "high": high, "target_gap": gap, "matched": pair.matched,
                   "p": float(found.p()) if found.n_seeds > 1 else np.nan}
        )  # fmt: skip
    columns = ["recipe", "rival", "effect", "low", "high", "p", "seeds", "items", "target_gap", "matched", "reading"]
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
