"""Real prose in whole documents, split by a hash of the document."""

from __future__ import annotations

import functools
import hashlib

from cfutils.data.benchmarks import requests
from cfutils.errors import invalid_value


@functools.cache
def documents(kind: str) -> tuple[str, ...]:
    """Return whole documents of real prose, in the order of their hash: `wikipedia` or `stories`.

    Wikipedia passages are SQuAD's and BoolQ's (neither is a score here), stories are CoQA's.
    """
    if kind == "wikipedia":
        squad = (
            doc["query"].split("Background: ", 1)[1].rsplit("\nQuestion:", 1)[0]
            for doc in requests("squad/bpb_5shot")
        )
        boolq = (
            doc["query"].split(" -- ", 1)[-1].rsplit("\nQuestion:", 1)[0]
            for doc in requests("boolq/val_rc_5shot")
        )
        texts = {*squad, *boolq}
    elif kind == "stories":
        texts = {doc["story"] for doc in requests("coqa/bpb_0shot")}
    else:
        raise invalid_value("prose", kind, "wikipedia or stories")
    return tuple(
        sorted(map(str.strip, texts), key=lambda t: hashlib.sha256(t.encode()).hexdigest())
    )


