"""How many items tasks have, and how many tokens: as data/workloads.yaml states; the rest is assumed aloud."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cfutils import paths
from cfutils.data import own_tasks, skills, targets
from cfutils.models import bases
from cfutils.profiles import Profile

DOCUMENT = 800.0
"""Mean tokens of a document that a base samples, if its length has an exponential law: SmolLM2's samples of at most
128 tokens have 118.6 on average. Assumed of every base but those that ship."""
THOUGHT = 0.35
"""Share of think_budget that a thought takes on average (assumed)."""
ANSWER = 0.5
"""Share of max_new_tokens that an answer behind a thought takes on average (assumed). Other answers end with their
batch's longest, so they are counted whole."""
LINES = (".jsonl", ".csv", ".tsv")
"""Files of questions whose items are counted as lines."""
CHARACTERS = 4.0
"""Characters of a token of English prose (assumed of data of one's own)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of items, to be scored."""

    items: int
    tokens: float
    """Mean tokens of an item: its context once and all its choices."""
    scored: float
    """Mean tokens of an item that a log-likelihood is taken of."""
    generates: bool = False
    """Whether an answer is generated."""
    assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is tuned on."""

    tokens: float
    """Mean tokens of an item."""
    supervised: float
    """Mean tokens of an item that carry loss."""
    spread: float = 0.3
    """Standard deviation of the tokens of an item, as a share of their mean."""
    tasks: tuple[Task, ...] = ()
    """What scores it beside the likelihood of responses."""
    assumed: bool = False


@functools.cache
def _table() -> dict[str, Any]:
    return yaml.safe_load((paths.data() / "workloads.yaml").read_text(encoding="utf-8"))


def _task(name: str, benchmarks: str) -> Task:
    row = dict(_table()["tasks"].get(name) or _table()["skill" if name in skills.skills() else "unknown task"])
    packaged = row.pop("packaged", row["items"])
    return Task(**{**row, "items": packaged if benchmarks == "package" else row["items"]})


def tasks(profile: Profile) -> dict[str, Task]:
    """Return the retained tasks of a profile by name; a file of one's own has as many items as it has."""
    found = {}
    for name in profile.retained:
        found[name] = _file(paths.given("retained", name)) if _counted(name) else _task(name, profile.benchmarks)
    return found


def _counted(name: str) -> bool:
    """Whether a task is a file with a line for each item."""
    return own_tasks.is_own(name) and Path(name).suffix in LINES


def _file(path: Path) -> Task:
    with open(path, "rb") as file:
        items = max(1, sum(1 for line in file if line.strip()))
    tokens = path.stat().st_size / items / CHARACTERS
    return Task(items=items, tokens=tokens, scored=min(8.0, tokens), generates=True, assumed=True)


def target(profile: Profile) -> Target:
    """Return what a profile is tuned on; of data of one's own the lengths are measured in characters."""
    row = dict(_table()["targets"].get(profile.target) or {})
    if row:
        scored = tuple(_task(name, profile.benchmarks) for name in targets.TARGETS[profile.target].tasks)
        return Target(**_cut(row, profile.max_length), tasks=scored)
    try:
        items = targets.own(profile.target, profile.columns).examples
        lengths = [((len(e.prompt) + len(e.response)) / CHARACTERS, len(e.response) / CHARACTERS) for e in items]
        lengths = [one for one in lengths if one[0] <= profile.max_length] or [(profile.max_length, 1.0)]
        tokens, supervised = (sum(column) / len(lengths) for column in zip(*lengths, strict=True))
    except (ImportError, OSError):  # data on the hub, without a network
        share = _table()["unknown target"]
        tokens, supervised = (profile.max_length * share[name] for name in ("tokens", "supervised"))
    return Target(tokens=tokens + 2, supervised=supervised + 1, assumed=True)


def _cut(row: dict[str, Any], longest: int) -> dict[str, Any]:
    """Scale lengths down where only items of at most `longest` tokens are taken."""
    scale = min(1.0, 0.65 * longest / row["tokens"])  # items under a limit are two thirds of it on average
    return {**row, "tokens": scale * row["tokens"], "supervised": scale * row["supervised"]}


def sample(base: str, longest: int) -> float:
    """Return the mean tokens of a context-free sample that is cut at `longest` tokens.

    The mean of min(L, longest) where L has an exponential law is M (1 - exp(-longest / M)).
    """
    mean = document(base)
    return mean * (1 - math.exp(-longest / mean))


def spread(profile: Profile) -> float:
    """Return the standard deviation of the tokens of a context-free sample, whose second moment is 2 M^2 (1 - (1 + x)
    exp(-x)) where it is cut at x M tokens."""
    mean, longest = document(profile.base), profile.max_tokens
    x = longest / mean
    return math.sqrt(2 * mean**2 * (1 - (1 + x) * math.exp(-x)) - sample(profile.base, longest) ** 2)


def document(base: str) -> float:
    """Return M, the mean tokens of a document that a base writes; known of the bases that ship."""
    name = base.removeprefix(f"{bases.HEALED}:")
    if name not in bases.SHIPPED:
        return DOCUMENT
    known = yaml.safe_load((paths.data() / bases.world(name) / "pretraining.yaml").read_text(encoding="utf-8"))
    return known["tokens"] / known["documents"]


def said(profile: Profile) -> list[str]:
    """Return what of a profile's sizes is assumed, a sentence each."""
    found = []
    known = tasks(profile)
    sized = {*_table()["tasks"], *skills.skills()}
    if unknown := [name for name in known if name not in sized and not _counted(name)]:
        one = _table()["unknown task"]
        found.append(
            f"items of {', '.join(unknown)}: unknown, assumed {one['items']:,} of {one['tokens']} tokens each"
        )
    if guessed := [name for name in known if known[name].assumed and name not in unknown]:
        found.append(f"tokens of an item of {', '.join(guessed)} (items are counted)")
    if (one := target(profile)).assumed:
        found.append(
            f"an item of {profile.target} has {one.tokens:.0f} tokens, of which {one.supervised:.0f} carry loss"
        )
    if profile.base.removeprefix(f"{bases.HEALED}:") not in bases.SHIPPED:
        found.append(
            f"a sample has {sample(profile.base, profile.max_tokens):.0f} of at most {profile.max_tokens} tokens"
        )
    if profile.think_budget:
        found.append(
            f"a thought has {THOUGHT * profile.think_budget:,.0f} of at most {profile.think_budget:,} tokens, the "
            f"answer behind it {ANSWER * profile.max_new_tokens:.0f}"
        )
    return found
