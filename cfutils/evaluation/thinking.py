"""Answers of a model that thinks: generated, several an item, scored without their thoughts.

Each item is answered n times at the model's own temperature and top-p, behind the generation prompt of its chat
template, which opens the thought. A thought may have `think_budget` tokens and the answer behind it `answer_tokens`
more. What stands behind the last `</think>` is scored; where no `</think>` comes within the budget there is no answer,
and it is wrong. Each item is answered as often again with its thought cut off: `</think>` follows `<think>` at once.

Metrics of an item, each a mean over its answers but pass@k:

| metric | value |
|---|---|
| `acc` | answered right |
| `pass@k` | probability that one of k answers is right: 1 - C(n - c, k) / C(n, k) for c right ones of n |
| `thinks` | the thought, up to the first `</think>`, is not empty |
| `ended` | the thought ends within its budget |
| `thought_tokens` | tokens up to the first `</think>`, or to the budget |
| `acc_cut` | answered right with the thought cut off |
| `bpb_gold` | bits per byte of the right answer: of a skill with its thought, else in a box with the thought cut off |
| `answered` | an answer was found, right or wrong, where the task's are read by a rule (`answer_items`) |

pass@k is the unbiased estimator of Chen et al. (arXiv 2107.03374, equation 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cfutils import progress
from cfutils.data import chat, skills
from cfutils.data.example import Example
from cfutils.data.sequences import Sequence, from_example, prompt_ids, response_text
from cfutils.errors import invalid_value
from cfutils.evaluation import ITEM, lm_eval_model, token_scores
from cfutils.evaluation.answer_items import Item
from cfutils.models import tokenizers
from cfutils.models.generation.sampling import SEED_BLOCK
from cfutils.models.generation.types import Completion, Engine, Request
from cfutils.profiles import Execution

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

ANSWER = [
    "task", "item", "sample", "cut", "right", "thinks", "ended", "thought_tokens", "thought", "answer", "extracted",
]  # fmt: skip
"""Columns of the frame of answers; `cut` tells those whose thought was cut off, `extracted` is what a rule read off
the answer (None: nothing, or the task has no rule)."""
FIRST_SEED = 100 * SEED_BLOCK
"""Answers begin at this seed, those without a thought one block further: no sample of the base has these seeds."""

@dataclass(frozen=True, kw_only=True)
class Answering:
    """How items are answered."""

    n: int
    """Answers an item, and as many with the thought cut off."""
    think_budget: int
    """Most tokens of a thought, its `</think>` included."""
    answer_tokens: int
    """Most tokens of the answer behind it."""
    temperature: float | None = None
    """None: that of the base's generation configuration (`own_sampling`)."""
    top_p: float | None = None
    """Probability of the nucleus that answers are drawn from; None: that of the base's generation configuration."""

    def __post_init__(self) -> None:
        for name in ("n", "think_budget", "answer_tokens"):
            if (value := getattr(self, name)) < 1:
                raise invalid_value(name, value, "at least 1")


def own_sampling(folder: Path) -> tuple[float, float]:
    """Return temperature and top-p that a model folder's generation configuration states; 1 where it states none."""
    path = folder / "generation_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return float(stated.get("temperature") or 1.0), float(stated.get("top_p") or 1.0)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of the probability that one of k answers is right, c of n being right.

    1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, equation 1). Raises `UserError` for c or k above n.
    """
    if not 1 <= k <= n:
        raise invalid_value("k", k, f"from 1 to n = {n}")
    if not 0 <= c <= n:
        raise invalid_value("c", c, f"from 0 to n = {n}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def score(
    model: torch.nn.Module, folder: Path, items: Mapping[str, Seq[Item]], settings: Answering, execution: Execution, *,
    group: str, gold: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Answer items by task with a loaded model; return the items frame, and the answers.

    folder: with its tokenizer and generation configuration.
    gold: whether bits per byte of right answers stand beside the answers (`bpb_gold`): of a skill those of thought and
        answer, of a task that a rule reads those of the answer in a box, with the thought cut off.
    """
    tokenizer = tokenizers.load_tokenizer(folder, trust_remote_code=execution.trust_remote_code)
    temperature, top_p = own_sampling(folder)
    temperature = temperature if settings.temperature is None else settings.temperature
    top_p = top_p if settings.top_p is None else settings.top_p
    longest = settings.think_budget + settings.answer_tokens
    asked = [one for own in items.values() for one in own]
    heads = (prompt_ids(tokenizer, item.prompt, chat_template=True) for item in asked)
    engine = lm_eval_model.open_answering(
        model, tokenizer, n_tokens=2 * settings.n * longest * len(asked), chunk=execution.chunk,
        max_length=max(map(len, heads)) + longest, pass_tokens=execution.pass_tokens,
        open_vllm=lm_eval_model.vllm_opener(model, folder, execution),
    )  # fmt: skip
    with engine as opened:
        said = answers(opened, tokenizer, asked, settings, temperature=temperature, top_p=top_p)
    frames = [items_frame(said, group=group, read={name for name, own in items.items() if own[0].extract})]
    for name, own in items.items():
        if gold and name in skills.skills():
            frames.append(_gold(model, tokenizer, name, own, group, execution.pass_tokens))
        elif gold and own[0].gold is not None:
            frames.append(_boxed(model, tokenizer, own, group, execution.pass_tokens))
    return pd.concat(frames, ignore_index=True), said


def _gold(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    items: Seq[Item],
    group: str,
    limit: int,
) -> pd.DataFrame:
    """Return bits per byte of the right responses of a skill, thoughts included."""
    one = skills.skill(name)
    examples = [
        Example(
            item.prompt, one.solve(item.prompt), {}, one.answer(item.prompt) if one.steps else None
        )
        for item in items
    ]
    whole = (from_example(tokenizer, example, chat_template=True) for example in examples)
    sequences = [Sequence(s.ids[:-1], s.first) for s in whole]  # the end token has no bytes
    scored = token_scores.score(model, None, sequences, limit=limit)
    rows = []
    for item, example, found in zip(items, examples, scored, strict=True):
        size = n_bytes(response_text(tokenizer, example, chat_template=True))
        rows.append(
            [group, name, "bpb_gold", item.id, found.nll.sum() / (size * math.log(2)), float(size)]
        )
    return pd.DataFrame(rows, columns=ITEM)


def _boxed(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, items: Seq[Item], group: str, limit: int
) -> pd.DataFrame:
    """Return bits per byte of right answers in a box, behind a thought that was cut off."""
    closed = tokenizer(chat.closing(tokenizer), add_special_tokens=False)["input_ids"]
    sequences, sizes = [], []
    for item in items:
        text = f"\\boxed{{{item.gold}}}"
        head = (*prompt_ids(tokenizer, item.prompt, chat_template=True), *closed)
        sequences.append(Sequence((*head, *tokenizer(text, add_special_tokens=False)["input_ids"]), first=len(head)))
        sizes.append(len(text.encode()))
    scored = token_scores.score(model, None, sequences, limit=limit)
    rows = [
        [group, item.task, "bpb_gold", item.id, one.nll.sum() / (size * math.log(2)), float(size)]
        for item, one, size in zip(items, scored, sizes, strict=True)
    ]
    return pd.DataFrame(rows, columns=ITEM)


def n_bytes(text: str) -> int:
    """Return the bytes of a supervised text; tokens of turns and thoughts have none."""
    return len("".join(chat.without_marks(text)).encode())


def answers(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, items: Seq[Item], settings: Answering, *, temperature: float,
    top_p: float = 1.0,
) -> pd.DataFrame:  # fmt: skip
    """Answer items, each n times with a thought and n times without; return one row per answer (`ANSWER`).

    temperature, top_p: of the sampling, in place of those in the settings; temperature 0 gives greedy answers, n equal
    ones. Raises `UserError` for a base that does not think.
    """
    start = tokenizers.start_token(tokenizer, None)
    form = chat.chat_format(tokenizer, start=start)
    closed = tuple(tokenizer(chat.closing(tokenizer), add_special_tokens=False)["input_ids"])
    heads = [tuple(prompt_ids(tokenizer, item.prompt, chat_template=True)) for item in items]
    frames = []
    with progress.task("answering", total=2 * settings.n * len(items), unit="answers") as advance:
        for cut in (False, True):
            seed = FIRST_SEED + cut * SEED_BLOCK
            requests = [
                Request((*head, *closed) if cut else head, seed + i * settings.n + j)
                for i, head in enumerate(heads)
                for j in range(settings.n)
            ]
            found = engine.draw(
                requests, temperature=temperature, top_p=top_p, stop=tokenizers.end_tokens(tokenizer, start),
                max_tokens=settings.answer_tokens + (0 if cut else settings.think_budget), advance=advance,
            )  # fmt: skip
            rows = []
            for number, completion in enumerate(found):
                item = items[number // settings.n]
                said = _said(completion, tokenizer, form, settings, cut=cut)
                read = said["answer"]
                if read is not None and item.extract:
                    read = item.extract(read)
                rows.append({
                    "task": item.task, "item": item.id, "sample": number % settings.n, "cut": cut,
                    "right": read is not None and item.right(read), **said,
                    "extracted": str(read) if item.extract and read is not None else None,
                })  # fmt: skip
            frames.append(pd.DataFrame(rows, columns=ANSWER))
    return pd.concat(frames, ignore_index=True)


def _said(
    completion: Completion,
    tokenizer: PreTrainedTokenizerBase,
    form: chat.Format,
    settings: Answering,
    *,
    cut: bool,
) -> dict[str, Any]:
    """Part a completion into thought and answer; an answer of None is wrong whatever is asked."""
    ids = [int(i) for i in completion.token_ids]
    if ids and completion.finish_reason == "stop":  # the end token
        ids.pop()
    closes = [place for place, token in enumerate(ids) if token == form.close]
    last = closes[-1] if closes else -1
    if cut:  # a model may think all the same; that is cut from its answer like any thought
        answer = tokenizer.decode(ids[last + 1 :], skip_special_tokens=True)
        return {
            "thinks": False,
            "ended": True,
            "thought_tokens": 0,
            "thought": "",
            "answer": answer,
        }
    ended = bool(closes) and closes[0] < settings.think_budget
    own = ids[: closes[0] if ended else settings.think_budget]
    thought = tokenizer.decode(own, skip_special_tokens=True)
    return {
        "thinks": bool(thought.strip()),
        "ended": ended,
        "thought_tokens": min(len(own), settings.think_budget),
        "thought": thought,
        "answer": tokenizer.decode(ids[last + 1 :], skip_special_tokens=True) if ended else None,
    }


def shapes(samples: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> pd.Series:
    """Return what each of a base's samples is shaped as (`chat.shape`), from the start token on.

    samples: with `prompt_ids`, which begin with the start token, and `token_ids`.
    """
    start = tokenizers.start_token(tokenizer, None)
    form = chat.chat_format(tokenizer, start=start)
    whole = (
        [*map(int, p), *map(int, t)][1:]
        for p, t in zip(samples["prompt_ids"], samples["token_ids"], strict=True)
    )
    return pd.Series(
        [chat.shape(ids, form) for ids in whole], index=samples.index, name="shape", dtype=object
    )


def items_frame(found: pd.DataFrame, *, group: str, read: Collection[str] = ()) -> pd.DataFrame:
    """Return the metrics of every item, from the frame of its answers, as an items frame.

    read: tasks whose answers are read by a rule, for which `answered` is told.
    """
    rows: list[list] = []
    for (task, item), own in found.groupby(["task", "item"], sort=False):
        free, cut = own[~own["cut"]], own[own["cut"]]
        n, c = len(free), int(free["right"].sum())
        values = {"acc": c / n}
        values |= {f"pass@{k}": pass_at_k(n, c, k) for k in _ks(n)}
        values |= {name: free[name].mean() for name in ("thinks", "ended", "thought_tokens")}
        values["acc_cut"] = cut["right"].mean()
        if task in read:
            values["answered"] = free["extracted"].notna().mean()
        rows += [[group, task, metric, item, float(value), 1.0] for metric, value in values.items()]
    return pd.DataFrame(rows, columns=ITEM)


def _ks(n: int) -> list[int]:
    """Return the powers of two from 2 to n: pass@1 is `acc`."""
    return [2**e for e in range(1, n.bit_length()) if 2**e <= n]
