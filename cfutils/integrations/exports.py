"""Samples in the files that other trainers read, and the lines of their configurations that mix them.

    samples.parquet, dataset/   every sample: token ids, log-probabilities, why it ended, text (Hugging Face `datasets`)
    text.jsonl                  {"text": ...}: TRL's language modelling, axolotl's completion, LLaMA-Factory's pt stage,
                                and plain text pretraining all read this one
    prompt_completion.jsonl     {"prompt": ..., "completion": ...}: TRL's prompt-completion
    dataset_info.json           LLaMA-Factory's entry
    MIXING.md                   two lines for each tool, which mix samples at a ratio counted in tokens

The tools choose rows, and a ratio is one of tokens: so the number of rows is computed here. They take text and encode
it again; `retokenised` counts the samples for which that changes something.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfutils import progress
from cfutils.errors import invalid_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "context_free_samples"
"""Name of the data set in LLaMA-Factory's list."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many rows of a file make up a ratio of the mix. Raises `UserError` for a ratio outside (0, 1)."""

    tokens: Seq[int]
    """Tokens of each row, end tokens counted."""
    ratio: float
    """Replay tokens over replay and target tokens."""
    target_tokens: int | None
    """Target tokens that carry loss; None: all rows are taken, and they say how many fit."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise invalid_value("--ratio", self.ratio, "a share of the final mix above 0 and below 1")
        if self.target_tokens is not None and self.target_tokens < 1:
            raise invalid_value("--target-tokens", self.target_tokens, "a whole number from 1")

    @property
    def budget(self) -> int:
        """Replay tokens that the ratio asks for."""
        if self.target_tokens is None:
            return sum(self.tokens)
        return round(self.ratio / (1 - self.ratio) * self.target_tokens)

    @property
    def rows(self) -> int:
        """Rows from the first whose tokens come nearest to the budget, one at least (samples are independent)."""
        counts = np.asarray(self.tokens)
        return max(1, int((counts.cumsum() - counts / 2 <= self.budget).sum()))

    @property
    def taken(self) -> int:
        """Tokens of those rows."""
        return sum(self.tokens[: self.rows])

    @property
    def shortfall(self) -> int:
        """Tokens that are lacking although every row is taken; rows are never repeated."""
        return max(0, self.budget - self.taken) if self.rows == len(self.tokens) else 0


def rows(samples: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, *, start: int) -> pd.DataFrame:
    """Return what the tools are given of each sample that has a text: prompt, completion, text, tokens, same.

    samples: as they were drawn (`generation.sampling.draw`). start: id of the start token.
    prompt: text that the tokenizer reads as the sample's prompt, empty where it puts the start token there itself.
    text: the completion of a context-free sample; of others prompt and completion.
    tokens: number drawn. same: whether prompt and completion are read back token for token, the end token aside.
    """
    prompts = {ids: _prompt(tokenizer, ids) for ids in map(tuple, samples["prompt_ids"])}
    found = pd.DataFrame(
        {
            "prompt": [prompts[tuple(ids)] for ids in samples["prompt_ids"]],
            "completion": samples["text"],
            "tokens": samples["token_ids"].map(len),
        }
    )
    free = samples["prompt_ids"].map(lambda ids: list(ids) == [start])  # the start token is no text
    found["text"] = found["completion"].where(free, found["prompt"] + found["completion"])
    read = tokenizer((found["prompt"] + found["completion"]).tolist())["input_ids"]
    drawn = ([*p, *t] for p, t in zip(samples["prompt_ids"], samples["token_ids"], strict=True))
    end = tokenizer.eos_token_id
    found["same"] = [_ended(a, end) == _ended(b, end) for a, b in zip(read, drawn, strict=True)]
    return found[found["completion"] != ""].reset_index(drop=True)


def _prompt(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """Return the text of prompt tokens, without a start token that the tokenizer adds."""
    rest, whole = tokenizer.decode(ids[1:]), tokenizer.decode(ids)
    return rest if tuple(tokenizer(rest)["input_ids"]) == ids else whole


def _ended(ids: Seq[int], end: int | None) -> list[int]:
    ids = list(map(int, ids))
    return ids[:-1] if ids and ids[-1] == end else ids


def adds_start(tokenizer: PreTrainedTokenizerBase, start: int) -> bool:
    """Whether the tokenizer puts the start token in front of a text itself."""
    return tokenizer("a")["input_ids"][0] == start


def write(
    folder: Path, samples: pd.DataFrame, found: pd.DataFrame, share: Share, *, shown: str, starts: bool
) -> None:
    """Write every file into a folder that is there.

    found: the `rows` of the samples. shown: the folder's name in MIXING.md. starts: whether the tokenizer `adds_start`.
    """
    import datasets

    samples.to_parquet(folder / "samples.parquet", index=False)
    with progress.task("writing"):
        datasets.Dataset.from_pandas(samples, preserve_index=False).save_to_disk(folder / "dataset")
    for name, columns in (("text", ["text"]), ("prompt_completion", ["prompt", "completion"])):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            # escapes of JSON for all but ASCII: a reader that splits lines at U+2028 would break a text in two
            file.writelines(json.dumps(row) + "\n" for row in found[columns].to_dict("records"))
    entry = {"file_name": "text.jsonl", "columns": {"prompt": "text"}, "num_samples": share.rows}
    (folder / "dataset_info.json").write_text(json.dumps({NAME: entry}, indent=2) + "\n", encoding="utf-8")
    (folder / "MIXING.md").write_text(_mixing(samples, found, share, shown, starts), encoding="utf-8")


def _mixing(samples: pd.DataFrame, found: pd.DataFrame, share: Share, shown: str, starts: bool) -> str:
    cut, empty = (samples["finish_reason"] == "length").mean(), len(samples) - len(found)
    start = "The tokenizer puts the start token in front of a text (LLaMA-Factory: where its add_bos_token is true)."
    if not starts:
        start = (
            "The tokenizer puts no start token in front of a text. `prompt_completion.jsonl` has it in the prompt;\n"
            "  with `text.jsonl` a document's first token is learned only where it is packed behind an end token."
        )
    return f"""# Mixing these samples into fine-tuning

{summary(share)}

The ratio is that of tokens that carry loss: replay / (replay + target). The lines below take the first rows
(LLaMA-Factory: as many at random). Paths are from the folder where `cfutils sample` ran.

## TRL

```python
replay = load_dataset("json", data_files="{shown}/prompt_completion.jsonl", split="train[:{share.rows}]")
train_dataset = concatenate_datasets([train_dataset, replay]).shuffle(seed=0)
```

Both sets must have the same columns: prompt and completion here; `text.jsonl` fits beside a set of `text`.

## axolotl

```yaml
datasets:  # beside yours
  - {{path: {shown}/text.jsonl, ds_type: json, type: completion, field: text, split: "train[:{share.rows}]"}}
```

## LLaMA-Factory

```yaml
dataset: yours,{NAME}
mix_strategy: concat
```

In `stage: pt`, with the entry of `dataset_info.json` (it says `num_samples: {share.rows}`) copied to yours, or
`dataset_dir: {shown}`. The other stages put every text into a chat template: no longer what the model wrote.

## Plain text pretraining

```bash
head -n {share.rows} {shown}/text.jsonl > replay.jsonl
cat yours.jsonl replay.jsonl | shuf > train.jsonl
```

## What text loses

- {1 - found["same"].mean():.1%} of the texts are not read back as the tokens that were drawn: several spellings of
  one text, special tokens, bytes that are no character. `token_ids` in `samples.parquet` are what was drawn.
- {cut:.1%} of the samples were cut at the cap. The tools end every text with the end token, those too: raise
  `--max-tokens` where the share is large.
- {empty:,} of {len(samples):,} samples are empty (the end token came first) and are left out of the JSONL files.
- {start}
"""


def summary(share: Share) -> str:
    """Say how many rows are taken for how many target tokens, and what is lacking."""
    n, got, r = len(share.tokens), share.taken, share.ratio
    if share.target_tokens is None:
        fit = round(got * (1 - r) / r)
        return (f"All {n:,} texts have {got:,} tokens: at ratio {r:g} they go with {fit:,} target tokens. "
                "`--target-tokens N` or `--data FILE` takes as many as your data need.")  # fmt: skip
    told = (f"Ratio {r:g}: {share.target_tokens:,} target tokens take {share.budget:,} replay tokens; the first "
            f"{share.rows:,} of {n:,} texts have {got:,}.")  # fmt: skip
    if not share.shortfall:
        return told
    reached, more = got / (got + share.target_tokens), -(-share.budget * n // max(1, got))
    return (f"{told} {share.shortfall:,} are lacking, so that the ratio reached is {reached:.3f}: draw about "
            f"{more:,} samples (-n {more}). Samples are never repeated.")  # fmt: skip
