"""Scoring: our class for lm-eval beside its HFLM, all retained tasks with choices together.

Five shots come in two ways: `own`, other examples for every item, which is lm-eval's default, and
`same`, the same ones for all items of a task. HFLM is given the batch size that serves it best here.
"""

from __future__ import annotations

import json
import random
import time

import common

ITEMS = {"smollm2": {"zero": 6, "own": 1, "same": 3}, "tiny": {"zero": 200, "own": 60, "same": 60}}
HFLM_BATCH = {"smollm2": 8, "tiny": 32}
SHOTS = 5
ARMS = ("ours", "hflm")


def turn(*, arm: str, base: str, shots: str, number: int) -> dict:
    """Score; return the seconds, and each request's log-likelihood and greedy flag."""
    lab, folder = common.opened(base)
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from cfutils import models
    from cfutils.harness import Harness

    requests = [
        Instance("loglikelihood", {}, pair, 0)
        for pair in _requests(lab.profile, ITEMS[base][shots], shots)
    ]
    model, tokenizer = models.load(folder, lab.profile), models.load_tokenizer(folder)
    if arm == "ours":
        lm = Harness(pretrained=model, tokenizer=tokenizer, pass_tokens=lab.profile.pass_tokens)
    else:
        model.set_attn_implementation("sdpa")
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=HFLM_BATCH[base])
    lm.loglikelihood(requests[:8], disable_tqdm=True)  # the first products set memory up
    clock = time.perf_counter()
    found = lm.loglikelihood(requests, disable_tqdm=True)
    return {
        "requests": len(requests),
        "seconds": time.perf_counter() - clock,
        "peak_mb": common.peak_mb(),
        "loglikelihoods": [round(value, 6) for value, _ in found],
        "greedy": [int(flag) for _, flag in found],
    }


def _requests(profile, limit: int, shots: str) -> list[tuple[str, str]]:
    """Return (context, continuation) of every choice; examples are items that are not scored."""
    from cfutils import tasks

    found = []
    for name in profile.retained:
        task = tasks.lm_eval_task(name)
        if task.OUTPUT_TYPE != "multiple_choice":
            continue
        docs, space = list(task.eval_docs), task.config.target_delimiter
        chosen = tasks.evenly(len(docs), min(limit, len(docs) - SHOTS))
        others = [i for i in range(len(docs)) if i not in set(chosen)]
        for index in chosen:
            few = others[:SHOTS]
            if shots == "own":
                few = random.Random(json.dumps([name, index])).sample(others, SHOTS)
            before = "" if shots == "zero" else "".join(_shown(task, docs[i]) + "\n\n" for i in few)
            doc = docs[index]
            for choice in task.doc_to_choice(doc):
                if task.multiple_input:
                    found.append((before + choice, space + str(task.doc_to_target(doc))))
                else:
                    found.append((before + task.doc_to_text(doc), space + choice))
    return found


def _shown(task, doc) -> str:
    """One example with its answer."""
    if task.multiple_input:
        first = task.doc_to_choice(doc)[task.doc_to_text(doc)]
        return first + task.config.target_delimiter + str(task.doc_to_target(doc))
    gold = task.doc_to_target(doc)
    gold = gold if isinstance(gold, str) else task.doc_to_choice(doc)[gold]
    return task.doc_to_text(doc) + task.config.target_delimiter + gold


if __name__ == "__main__":
    settings = [
        {"arm": arm, "base": base, "shots": shots}
        for base in ITEMS for shots in ITEMS[base] for arm in ARMS
    ]  # fmt: skip
    common.main(__file__, turn, settings)
