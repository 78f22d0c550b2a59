"""What some of lm-eval's tasks need of the hub beyond their own definitions: data that moved, terms to accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _pubmedqa_prompt(doc: dict) -> str:
    contexts = "\n".join(doc["context"]["contexts"])
    return f"Abstract: {contexts}\nQuestion: {doc['question']}\nAnswer:"


MOVED: dict[str, dict[str, Any]] = {
    # lm-eval names bigbio/pubmed_qa, a loading script, which datasets 4 and later refuse to run. These are all 1,000
    # items that experts labelled, in its authors' own repository, which does not mark the 500 of the test set.
    "pubmedqa": {
        "dataset_path": "qiaojin/PubMedQA", "dataset_name": "pqa_labeled", "doc_to_text": _pubmedqa_prompt,
        "training_split": None, "validation_split": None, "test_split": "train",
    },
}  # fmt: skip
"""What replaces parts of a task's definition, by name."""
GATED = ("Idavidrein/gpqa",)
"""Data sets whose terms must be accepted on the hub, once for an account."""


def access(definition: Mapping[str, Any]) -> str | None:
    """Return why the items of a task cannot be fetched by this user, with the fix, if that is known without fetching.

    Looks for a token of the hub where the data are gated; whether its account has accepted the terms, the hub alone
    knows.
    """
    name = definition.get("dataset_path")
    if name not in GATED:
        return None
    from huggingface_hub import get_token

    if get_token():
        return None
    return (
        f"its items are gated: accept the terms at https://huggingface.co/datasets/{name}, then set HF_TOKEN or run "
        "`hf auth login`"
    )
