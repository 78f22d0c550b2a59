"""What the kept abilities of a study are, once loaded: how many tasks and items, and what scoring an item costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cfutils.adapt.sizes import GENERATED
from cfutils.data import benchmarks, own_tasks
from cfutils.errors import invalid_value
from cfutils.profiles import Profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEASURED = 50
"""Items of a task on the hub whose tokens are counted; of a file of one's own it is all."""


@dataclass(frozen=True)
class Kept:
    """What was found."""

    tasks: int
    tokens: float
    """Mean cost of an item, in tokens of a forward pass, every task weighed alike."""
    max_new_tokens: int
    """Cap on a generated answer."""
    names: tuple[str, ...]
    """What is kept, with the number of items of a file, or of tasks of a group."""


def load(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return the lm-eval tasks of each file and each name on the hub; none of what the package or the tiny base holds.

    Raises `UserError` for a hub out of reach.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in profile.retained:
        where = benchmarks.source(name, profile.benchmarks)
        if where == "own":
            own_tasks.check(name, target=profile.target, columns=profile.columns, fetch=True)
        there = where in ("own", "hub")
        how = {"benchmarks": profile.benchmarks, "num_fewshot": profile.num_fewshot}
        found[name] = benchmarks.lm_eval_tasks(name, **how) if there else {}
    return found


def measure(
    profile: Profile, loaded: Mapping[str, Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, context: int,
    typical: float,
) -> Kept:  # fmt: skip
    """Count the tokens of what `load` has loaded.

    context: tokens that the base takes. typical: tokens of an item of the other tasks. Raises `UserError` for a file
    with an item that is longer than the context: its beginning would be cut.
    """
    costs, names = [], []
    own = [task for name, tasks in loaded.items() if own_tasks.is_own(name) for task in tasks.values()]
    cap = max([profile.max_new_tokens, *((t.config.generation_kwargs or {}).get("max_gen_toks", 0) for t in own)])
    for name, tasks in loaded.items():
        costs += [typical] if not tasks else []
        label = own_tasks.label(name)
        for task in tasks.values():
            items = len(task.eval_docs)
            chosen = range(items) if own_tasks.is_own(name) else benchmarks.evenly(items, MEASURED)
            found = np.array([_tokens(task, task.eval_docs[i], tokenizer, cap) for i in chosen])
            costs.append(float(found[:, 0].mean()))
            if own_tasks.is_own(name):
                _refuse_long(name, found[:, 1], context)
                label += f" ({items:,} items)"
        names.append(f"{label} (a group: {len(tasks)} tasks, counts as one)" if len(tasks) > 1 else label)
    return Kept(len(costs), float(np.mean(costs)), cap, tuple(names))


def _tokens(task: Any, doc: dict[str, Any], tokenizer: PreTrainedTokenizerBase, cap: int) -> tuple[float, int]:
    """Return what an item costs, a context that its choices share counted once, and the tokens of its longest text."""
    texts = list(_texts(task, doc))
    size = {text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) for pair in texts for text in pair}
    cost = sum(size[context] for context in {c for c, _ in texts}) + sum(size[behind] for _, behind in texts)
    longest = max(size[context] + size[behind] for context, behind in texts)
    if task.OUTPUT_TYPE == "generate_until":  # and the gold answer behind the same context
        context = size[texts[0][0]]
        return cost + context + GENERATED * cap, max(longest, context + cap)
    return cost, longest


def _texts(task: Any, doc: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the (context, continuation) pairs that are scored, without a chat template."""
    context = task.fewshot_context(doc, task.config.num_fewshot)
    asked = task.construct_requests(doc, context, metadata=(task.config.task, 0, 1))
    for one in asked if isinstance(asked, list) else [asked]:
        behind = one.args[1]
        if task.OUTPUT_TYPE == "generate_until":
            gold = task.doc_to_target(doc)
            behind = f"{task.config.target_delimiter}{gold[0] if isinstance(gold, list | tuple) else gold}"
        yield one.args[0], behind


def _refuse_long(name: str, lengths: np.ndarray, context: int) -> None:
    if (long := np.flatnonzero(lengths > context)).size:
        raise invalid_value(
            "retained", name,
            f"a file whose items fit into the {context:,} tokens that the base takes, answers included; {len(long)} do "
            f"not (first: item {long[0] + 1} with {lengths[long[0]]:.0f})",
            "Shorten them or leave them out.",
        )  # fmt: skip
