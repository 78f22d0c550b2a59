"""The card of a set of samples: what it was drawn from, and how, so that another can draw it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import DatasetCard, DatasetCardData

from cfutils.models import bases
from cfutils.models.generation import sampling

if TYPE_CHECKING:
    import pandas as pd

    from cfutils.pipeline.store import Artifact


def write(
    folder: Path, base: Artifact, artifact: Artifact, samples: pd.DataFrame, *, model: str, told: Mapping[str, str],
    same: float,
) -> None:  # fmt: skip
    """Write README.md, a card of the hub, into a folder that holds samples.parquet.

    base, artifact: what was sampled, and the samples with their record. model: the base as the user named it.
    told: further facts by name. same: share of the texts that are read back as the tokens that were drawn.
    """
    record, notes = artifact.record, artifact.notes
    drawn = record["inputs"]["params"]
    kind = drawn["source"].replace("_", "-")
    about = sampling.describe(samples.assign(source=kind)).iloc[0]
    licence = bases.licence(model, base.notes.get("commit"))
    facts = {
        "base": f"{model} ({notes['base']})",
        "revision": base.notes.get("commit") or f"the files with digest {base.key}",
        "kind": kind,
        "start token": f"`{notes['start_token']}`, id {notes['start_id']}",
        **told,
        "temperature": f"{drawn['temperature']:g}, without top-k and top-p",
        "cap": f"{drawn['max_tokens']:,} tokens",
        "samples": f"{about.samples:,}",
        "tokens": f"{about.tokens:,}",
        "ended by an end token": f"{about.eos_share:.1%}",
        "equal to another sample": f"{about.duplicates:.1%}",
        "mean log-probability": f"{about.logprob:.3f} nats per token at temperature 1",
        "text read back as the tokens drawn": f"{same:.1%}",
        "engine": f"{drawn['engine']}, {drawn['dtype']}, {drawn['chunk']} at a time",
        "machine": record["machine"].get("gpu") or record["machine"]["cpu"],
        "seeds": f"{samples['seed'].min()} to {samples['seed'].max()}, the same at every run",
        "day": record["started"][:10],
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items())),
    }
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())
    data = DatasetCardData(
        license=licence or "unknown", task_categories=["text-generation"],
        tags=["synthetic", f"{kind}-samples"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "samples.parquet"}]}],
    )  # fmt: skip
    text = f"""# Samples of {model}

What the model writes {"given its start token alone" if kind == "context-free" else "behind prompts"}. Mixed into
fine-tuning, such samples limit forgetting ([arXiv 2505.13811](https://arxiv.org/abs/2505.13811)); MIXING.md has the
lines for TRL, axolotl, LLaMA-Factory and plain text pretraining.

| | |
|---|---|
{rows}

Columns: `token_ids` (what was drawn, with its end token), `prompt_ids` (what it continues), `logprobs` (of each token
at temperature 1, in nats), `finish_reason` (`stop`, or `length`: cut at the cap), `text` (without special tokens),
`index`, `seed`, `temperature`.

**Licence.** The base's licence is {licence or "not stated where it was loaded from"}; its terms decide what may be done
with what it writes. A model repeats parts of what it was trained on: look before you publish.
"""
    DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")
