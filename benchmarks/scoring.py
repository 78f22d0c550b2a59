"""Scoring: our class for lm-eval beside its HFLM, all retained tasks of a profile together.

Tasks with choices ask for log-likelihoods, the others for generated answers. Five shots come in two ways:
`own`, other examples for every item, which is lm-eval's default, and `same`, the same ones for all items
of a task. `hflm` has the batch size that serves it best here, `hflm_1` that of lm-eval's command, one.
`exact` is HFLM in fp64: not a rival, but what tells whose rounding a difference is.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

import common

ITEMS = {"smollm2": {"zero": 6, "own": 1, "same": 3}, "tiny": {"zero": 100, "own": 40, "same": 40}}
"""Items of each task."""
BATCH = {"smollm2": 8, "tiny": 128}
SHOTS = 5
ARMS = {"zero": ("ours", "hflm", "hflm_1", "exact"), "own": ("ours", "hflm"), "same": ("ours", "hflm")}


def turn(*, arm: str, base: str, shots: str, number: int) -> dict:
    """Score; return the seconds, each choice's log-likelihood and greedy flag, and the answers."""
    lab, folder = common.opened(base)
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from cfutils.evaluation.lm_eval_model import Harness
    from cfutils.models import loading, tokenizers

    kinds: dict[str, list[Instance]] = {"loglikelihood": [], "generate_until": []}
    for kind, arguments in _requests(lab.profile, ITEMS[base][shots], shots):
        kinds[kind].append(Instance(kind, {}, arguments, len(kinds[kind])))
    kinds = {kind: asked for kind, asked in kinds.items() if asked}
    model, tokenizer = loading.load(folder, dtype=lab.profile.dtype), tokenizers.load_tokenizer(folder)
    if arm == "ours":
        lm = Harness(
            pretrained=model, tokenizer=tokenizer, batch_size=lab.profile.chunk,
            pass_tokens=lab.profile.pass_tokens,
        )  # fmt: skip
    else:
        model.set_attn_implementation("sdpa")
        model.generation_config.eos_token_id = tokenizer.eos_token_id  # else done rows write on
        if arm == "exact":
            model = model.double()
        size = 1 if arm == "hflm_1" else BATCH[base]
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
    for kind, asked in kinds.items():  # the first products set memory up
        getattr(lm, kind)(asked[:8], disable_tqdm=True)
    found = {"loglikelihood": [], "generate_until": []}
    seconds = {}
    for kind, asked in kinds.items():
        clock = time.perf_counter()
        found[kind] = getattr(lm, kind)(asked, disable_tqdm=True)
        seconds[f"seconds_{kind}"] = time.perf_counter() - clock
    return {
        "requests": sum(map(len, kinds.values())),
        "seconds": sum(seconds.values()),
        **seconds,
        "peak_mb": common.peak_mb(),
        "loglikelihoods": [round(value, 6) for value, _ in found["loglikelihood"]],
        "greedy": [int(flag) for _, flag in found["loglikelihood"]],
        "answers": found["generate_until"],
    }


def _requests(profile, limit: int, shots: str) -> Iterator[tuple[str, tuple]]:
    """Yield kind and arguments of every request; examples are items that are not scored."""
    from cfutils.data import benchmarks

    for name in profile.retained:
        task = benchmarks.lm_eval_task(name)
        docs, space = list(task.eval_docs), task.config.target_delimiter
        chosen = benchmarks.evenly(len(docs), min(limit, len(docs) - SHOTS))
        others = [i for i in range(len(docs)) if i not in set(chosen)]
        for index in chosen:
            few = others[:SHOTS]
            if shots == "own":
                few = random.Random(json.dumps([name, index])).sample(others, SHOTS)
            before = "" if shots == "zero" else "".join(_shown(task, docs[i]) + "\n\n" for i in few)
            doc = docs[index]
            if task.OUTPUT_TYPE == "generate_until":
                settings = {**task.config.generation_kwargs, "max_gen_toks": profile.max_new_tokens}
                yield "generate_until", (before + task.doc_to_text(doc), settings)
                continue
            for choice in task.doc_to_choice(doc):
                if task.multiple_input:
                    yield "loglikelihood", (before + choice, space + str(task.doc_to_target(doc)))
                else:
                    yield "loglikelihood", (before + task.doc_to_text(doc), space + choice)


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
        for base in ITEMS for shots in ITEMS[base] for arm in ARMS[shots]
    ]  # fmt: skip
    common.main(__file__, turn, settings)
