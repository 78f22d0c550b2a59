"""Scores against direct computation: NLL and lm-eval's items, by item and summed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cfutils.data import benchmarks, sequences, skills, targets
from cfutils.data.example import Example
from cfutils.evaluation import lm_eval_model, scores
from cfutils.models.generation import transformers_engine
from cfutils.profiles import Execution
from tests.evaluation.conftest import log_probs

EXECUTION = Execution(
    engine="transformers", chunk=4, pass_tokens=1024, gradient_checkpointing=False,
    checkpoint_minutes=5.0, trust_remote_code=False,
)  # fmt: skip
HOW = {"max_new_tokens": 16, "chat_template": False, "execution": EXECUTION}
RETAINED = scores.Retained(
    tasks=(), limit=2, num_fewshot={}, benchmarks="package", max_new_tokens=16, chat_template=False
)


def loglik(model, tokenizer, context, continuation):
    """log p(continuation | context) in nats, the two tokenised together as lm-eval does."""
    head = tokenizer(context)["input_ids"]
    ids = tokenizer(context + continuation)["input_ids"]
    logp = log_probs(model, ids)
    return sum(logp[t - 1, ids[t]].item() for t in range(len(head), len(ids)))


# ---- lm-eval


def test_margin_and_bits_per_byte_from_log_likelihoods(
    base, tiny_base, tokenizer, tiny_choices
):
    """Four of six items, each against log p(" choice" | "question Answer:") by hand.

    margin = right - best wrong; bpb_gold = -right / (bytes of " choice" * ln 2); acc: right is largest.
    """
    task, indices = tiny_choices(), [0, 1, 3, 4]
    frame = scores.lm_eval_items(
        base, tiny_base, {"tiny_choices": task}, {"tiny_choices": indices}, group="retained",
        **HOW,
    )  # fmt: skip
    assert list(frame) == scores.ITEM and set(frame["task"]) == {"tiny_choices"}
    table = frame.pivot(index="item", columns="metric", values="value")
    weight = frame.pivot(index="item", columns="metric", values="weight")
    assert sorted(table.index) == [str(i) for i in indices]
    assert set(table) == {"acc", "acc_norm", "margin", "bpb_gold"}
    for i in indices:
        doc = task.eval_docs[i]
        context, gold = f"{doc['question']}\nAnswer:", doc["gold"]
        choices = [f" {option}" for option in doc["options"]]
        logliks = [loglik(base, tokenizer, context, choice) for choice in choices]
        right, wrong = logliks[gold], logliks[1 - gold]
        n_bytes = len(choices[gold].encode())
        row = table.loc[str(i)]
        assert row.margin == pytest.approx(right - wrong, abs=1e-3)
        assert row.bpb_gold == pytest.approx(-right / (n_bytes * math.log(2)), rel=1e-4)
        assert row.acc == float(right > wrong)
        assert weight.loc[str(i), "bpb_gold"] == n_bytes
        assert weight.loc[str(i), ["acc", "margin"]].tolist() == [1, 1]


def test_scoring_leaves_the_global_generators_alone(base, tiny_base, tiny_choices):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    scores.lm_eval_items(
        base, tiny_base, {"tiny_choices": tiny_choices()}, {"tiny_choices": [0]}, group="retained",
        **HOW,
    )  # fmt: skip
    assert torch.equal(torch.rand(1), expected)


@pytest.fixture
def named(tiny_choices, monkeypatch):
    """Put the task in memory in the place of any; names of tasks, as they are scored together."""
    scored = []
    score_items = scores.lm_eval_items

    def tasks(name, *, benchmarks, num_fewshot):
        made = tiny_choices()
        made.config.task = name
        return {name: made}

    def items(model, folder, chosen, indices, **more):
        scored.append(list(chosen))
        if "stop" in chosen and sum("stop" in names for names in scored) == 1:
            raise KeyboardInterrupt
        return score_items(model, folder, chosen, indices, **more)

    monkeypatch.setattr(benchmarks, "lm_eval_tasks", tasks)
    monkeypatch.setattr(scores, "lm_eval_items", items)
    return scored


def test_retained_tasks_resume_part_by_part(
    base, tiny_base, named, tmp_path, monkeypatch
):
    """Two items a task, parts of four: the first is done, the second fails, and alone is scored."""
    monkeypatch.setattr(scores, "PART", 4)
    settings = replace(RETAINED, tasks=("one", "two", "stop"))
    with pytest.raises(KeyboardInterrupt):
        scores.retained(tmp_path, lambda: base, tiny_base, settings, EXECUTION)
    assert [path.name for path in tmp_path.iterdir()] == ["part-0.parquet"]
    scores.retained(tmp_path, lambda: base, tiny_base, settings, EXECUTION)
    assert named == [["one", "two"], ["stop"], ["stop"]]
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert items.groupby("task")["item"].nunique().to_dict() == {"one": 2, "stop": 2, "two": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["items.parquet"]


def test_parts_do_not_change_the_scores(
    base, tiny_base, named, tmp_path, monkeypatch
):
    settings = replace(RETAINED, tasks=("one", "two", "three"), limit=3)
    found = []
    for size in (1, 512):
        monkeypatch.setattr(scores, "PART", size)
        (tmp_path / str(size)).mkdir()
        scores.retained(tmp_path / str(size), lambda: base, tiny_base, settings, EXECUTION)
        found.append(pd.read_parquet(tmp_path / str(size) / "items.parquet"))
    assert named == [["one"], ["two"], ["three"], ["one", "two", "three"]]
    pd.testing.assert_frame_equal(*found)


def test_a_skill_that_is_answered_by_generation(
    base, tiny_base, tokenizer, monkeypatch
):
    """acc: what stands behind the last ` = `; bpb_gold: the right response behind its prompt, by hand."""
    task, indices = benchmarks.lm_eval_task("sum"), [0, 5, 9, 30]
    docs = [task.eval_docs[i] for i in indices]
    last = [doc["response"].rsplit("= ")[-1] for doc in docs]
    steps = docs[3]["response"].rsplit(" = ")[0]
    answers = [docs[0]["response"], f" no steps = {last[1]} ", f" = {last[2]}0", steps]

    def generate(self, requests, **_):
        assert [r.args[0] for r in requests] == [doc["prompt"] for doc in docs]
        return answers

    monkeypatch.setattr(lm_eval_model.Harness, "generate_until", generate)
    settings = {"chosen": {"sum": task}, "indices": {"sum": indices}, **HOW}
    frame = scores.lm_eval_items(base, tiny_base, group="retained", **settings)
    assert list(frame) == scores.ITEM and set(frame["task"]) == {"sum"}
    table = frame.pivot(index="item", columns="metric", values="value").loc[map(str, indices)]
    assert set(table) == {"acc", "bpb_gold"}
    assert table["acc"].tolist() == [1, 1, 0, 0]
    weight = frame[frame["metric"] == "bpb_gold"].set_index("item")["weight"]
    for i, doc in zip(indices, docs, strict=True):
        by_hand = bits(base, tokenizer, doc["prompt"], doc["response"])
        assert table.loc[str(i), "bpb_gold"] == pytest.approx(by_hand, rel=1e-4)
        assert weight[str(i)] == len(doc["response"])
    frame = scores.lm_eval_items(base, tiny_base, group="target", **settings)
    assert set(frame["metric"]) == {"exact_match"}  # a target has its NLL elsewhere
    assert frame["value"].tolist() == [1, 1, 0, 0]


def test_a_task_with_several_accepted_answers(base, tiny_base, tokenizer, monkeypatch):
    """acc: exact match of SQuAD, whichever is accepted; f1 beside it; bpb_gold: the first one, behind a space."""
    docs = [{"query": "Q: a cat?", "answers": ["the cat", "dog"]}, {"query": "Q: b?", "answers": ["fish"]}]
    task = benchmarks.lm_eval_task("squad", docs=docs)
    monkeypatch.setattr(lm_eval_model.Harness, "generate_until", lambda self, requests, **_: [" dog", " a red fish"])
    frame = scores.lm_eval_items(base, tiny_base, {"squad": task}, {"squad": [0, 1]}, group="retained", **HOW)
    table = frame.pivot(index="item", columns="metric", values="value")
    assert table["acc"].tolist() == [1, 0]
    assert table["f1"].tolist() == [1, pytest.approx(2 / 3)]
    for item, (doc, answer) in zip("01", zip(docs, [" the cat", " fish"], strict=True), strict=True):
        assert table.loc[item, "bpb_gold"] == pytest.approx(bits(base, tokenizer, doc["query"], answer), rel=1e-4)


def test_questions_of_ones_own_by_hand(base, tiny_base, tokenizer, tmp_path, monkeypatch):
    """acc and f1 of the generated answer against every accepted one; bpb_gold of the first, behind a space."""
    rows = [{"question": "a cat?", "answers": ["the cat", "dog"]}, {"question": "b?", "answers": ["fish"]}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["Question: a cat?\nAnswer:", "Question: b?\nAnswer:"]

    def generate(self, requests, **_):
        assert [r.args[0] for r in requests] == asked
        return [" Dog.", " a red fish"]

    monkeypatch.setattr(lm_eval_model.Harness, "generate_until", generate)
    settings = replace(RETAINED, tasks=(str(tmp_path / "mine.jsonl"),), limit=None)
    scores.retained(tmp_path, lambda: base, tiny_base, settings, EXECUTION)
    frame = pd.read_parquet(tmp_path / "items.parquet")
    assert set(frame["task"]) == {"mine"}
    table = frame.pivot(index="item", columns="metric", values="value")
    assert table["acc"].tolist() == [1, 0] and table["f1"].tolist() == [1, pytest.approx(2 / 3)]
    for item, prompt, answer in zip("01", asked, (" the cat", " fish"), strict=True):
        assert table.loc[item, "bpb_gold"] == pytest.approx(bits(base, tokenizer, prompt, answer), rel=1e-4)


def made(docs, **config):
    """A task of lm-eval held in memory."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config={
        "task": "made", "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)}, "test_split": "test",
        "num_fewshot": 0, "doc_to_text": "{{q}}", **config,
    })  # fmt: skip


def test_gold_answers_that_are_numbers_or_places_among_choices(base, tiny_base, tokenizer, monkeypatch):
    monkeypatch.setattr(lm_eval_model.Harness, "generate_until", lambda self, requests, **_: ["4"] * len(requests))
    how = {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    docs = [{"q": "two:", "a": 4, "options": ["3", "4"], "place": 1}]
    for named in ({"doc_to_target": "a"}, {"doc_to_target": "place", "doc_to_choice": "options"}):
        task = made(docs, **named, **how)
        frame = scores.lm_eval_items(base, tiny_base, {"made": task}, {"made": [0]}, group="retained", **HOW)
        table = frame.set_index("metric")["value"]
        assert table["acc"] == 1
        assert table["bpb_gold"] == pytest.approx(bits(base, tokenizer, "two:", " 4"), rel=1e-4)


@pytest.mark.parametrize(
    "gold, wrong, metric", [([2, 0], [1], "acc"), (2, [0, 1], "acc_mutual_info"), ("red", [0, 1], "acc")]
)
def test_right_and_wrong_choices(base, tiny_base, tokenizer, gold, wrong, metric):
    """Of several right ones the first counts; acc_mutual_info asks for each once more, without its context."""
    options = ["a dog", "the sea", "red"]
    task = made(
        [{"q": "It is", "options": options, "gold": gold}], output_type="multiple_choice", doc_to_choice="options",
        doc_to_target="gold", metric_list=[{"metric": metric}],
    )  # fmt: skip
    frame = scores.lm_eval_items(base, tiny_base, {"made": task}, {"made": [0]}, group="retained", **HOW)
    logliks = [loglik(base, tokenizer, "It is", f" {one}") for one in options]
    table = frame.set_index("metric")["value"]
    assert table["margin"] == pytest.approx(logliks[2] - max(logliks[i] for i in wrong), abs=1e-3)
    assert table["bpb_gold"] == pytest.approx(-logliks[2] / (len(" red") * math.log(2)), rel=1e-4)


def test_a_metric_of_which_less_is_better_is_left_out(base, tiny_base, monkeypatch):
    """A drop of it would be read as worse; bits per byte stand for it."""
    monkeypatch.setattr(lm_eval_model.Harness, "generate_until", lambda self, requests, **_: ["b"] * len(requests))
    metrics = [{"metric": name, "aggregation": "mean"} for name in ("hits", "errors")]
    metrics = [{**one, "higher_is_better": one["metric"] == "hits"} for one in metrics]
    task = made(
        [{"q": "a", "a": "b"}], output_type="generate_until", doc_to_target="{{a}}", metric_list=metrics,
        process_results=lambda doc, results: {"hits": 1.0, "errors": 0.0},
    )  # fmt: skip
    frame = scores.lm_eval_items(base, tiny_base, {"made": task}, {"made": [0]}, group="retained", **HOW)
    assert set(frame["metric"]) == {"hits", "bpb_gold"}


def test_a_task_of_log_likelihoods(base, tiny_base, tokenizer):
    """LAMBADA: acc is whether the last word is the likeliest; bpb_gold by hand; no perplexity of an item."""
    docs = [{"text": "A story of a small town"}, {"text": "the river runs to the sea"}]
    task = benchmarks.lm_eval_task("lambada_openai", docs=docs)
    frame = scores.lm_eval_items(
        base, tiny_base, {"lambada_openai": task}, {"lambada_openai": [0, 1]}, group="retained", **HOW
    )
    assert set(frame["metric"]) == {"acc", "bpb_gold"}
    table = frame.pivot(index="item", columns="metric", values="value")
    for item, doc in zip("01", docs, strict=True):
        head, _, last = doc["text"].rpartition(" ")
        assert table.loc[item, "bpb_gold"] == pytest.approx(bits(base, tokenizer, head, f" {last}"), rel=1e-4)


def bits(model, tokenizer, prompt, answer):
    """Bits per byte of an answer behind a prompt, token by token."""
    head, tail = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
    logp = log_probs(model, [*head, *tail])
    nll = -sum(logp[len(head) + t - 1, token].item() for t, token in enumerate(tail))
    return nll / (len(answer.encode()) * math.log(2))


def test_a_skill_of_choices_has_continuous_metrics_too(base, tiny_base):
    task = benchmarks.lm_eval_task("member")
    frame = scores.lm_eval_items(
        base, tiny_base, {"member": task}, {"member": [0, 1, 2]}, group="retained", **HOW
    )
    assert frame["metric"].value_counts().to_dict() == {"acc": 3, "margin": 3, "bpb_gold": 3}
    weight = frame[frame["metric"] == "bpb_gold"].set_index("item")["weight"]
    assert weight.to_dict() == {str(i): len(task.eval_docs[i]["response"]) for i in range(3)}


def test_metrics_without_a_value_for_an_item_are_left_out(base, tiny_base, tiny_choices, monkeypatch):
    samples = [
        {"doc_id": 0, "filter": "none", "metrics": ["f1", "acc"], "f1": (1, 0), "acc": 1, "doc": {}},
        {"doc_id": 0, "filter": "none", "metrics": ["f1", "acc"], "f1": (1, 0), "acc": 0, "doc": {}},
    ]
    monkeypatch.setattr(lm_eval_model, "evaluate", lambda *_, **__: {"tiny_choices": samples})
    monkeypatch.setattr(scores, "_continuous", lambda *_: [])
    frame = scores.lm_eval_items(
        base, tiny_base, {"tiny_choices": tiny_choices()}, {"tiny_choices": [0]}, group="retained", **HOW
    )
    assert frame["metric"].tolist() == ["acc", "acc"] and frame["value"].tolist() == [1, 0]


def test_no_retained_tasks_give_an_empty_frame(tiny_base, tmp_path):
    scores.retained(tmp_path, lambda: None, tiny_base, RETAINED, EXECUTION)
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert list(items) == scores.ITEM and len(items) == 0


# ---- target


def test_target_items_by_hand(base, tiny_base, tiny_target, tokenizer, tmp_path):
    """nll: mean over response and end token; bpb: without the end token, per byte, in bits."""
    examples = targets.own(str(tiny_target)).examples[:3]
    encoded = [sequences.from_example(tokenizer, e, chat_template=False) for e in examples]
    scores.target(tmp_path, base, tiny_base, str(tiny_target), examples, encoded, n_generate=2, **HOW)
    items = pd.read_parquet(tmp_path / "items.parquet").set_index(["item", "metric"])
    assert set(items["task"]) == {"sums"} and set(items["group"]) == {"target"}
    assert len(items) == 2 * 3  # a file of one's own has no task of lm-eval
    for example, s in zip(examples, encoded, strict=True):
        logp = log_probs(base, s.ids)
        nll = [-logp[t - 1, s.ids[t]].item() for t in range(s.first, len(s.ids))]
        n_bytes = len(example.response.encode())
        row = items.loc[example.id, "nll"]
        assert row.value == pytest.approx(np.mean(nll), rel=1e-4) and row.weight == len(nll)
        row = items.loc[example.id, "bpb"]
        expected = sum(nll[:-1]) / (n_bytes * math.log(2))
        assert row.value == pytest.approx(expected, rel=1e-4) and row.weight == n_bytes


def test_a_target_that_generates_is_answered_for_some_items(
    base, tiny_base, tokenizer, tmp_path, monkeypatch
):
    """gsm8k by lm-eval's own definition: strict and flexible match of the first n_generate items."""
    calls = []
    draw = transformers_engine.continue_all
    monkeypatch.setattr(
        transformers_engine, "continue_all", lambda *a, **k: calls.append((a, k)) or draw(*a, **k)
    )
    docs = [{"question": f"{i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(3)]
    examples = [targets._gsm8k_example(doc) for doc in docs]
    encoded = [sequences.from_example(tokenizer, e, chat_template=False) for e in examples]
    scores.target(
        tmp_path, base, tiny_base, "gsm8k", examples, encoded, n_generate=2, **{**HOW, "max_new_tokens": 5}
    )
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert items.groupby("metric", sort=False)["item"].nunique().to_dict() == {
        "nll": 3, "bpb": 3, "exact_match": 2, "exact_match_flexible": 2
    }  # fmt: skip
    assert set(items["task"]) == {"gsm8k"}
    ((_, requests), settings), = calls
    assert len(requests) == 2
    assert (settings["max_tokens"], settings["temperature"]) == (5, 0)


def test_a_target_that_is_a_skill_is_scored_on_its_own_held_out_items(
    base, tiny_base, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        lm_eval_model.Harness, "generate_until",
        lambda self, requests, **_: [skills.skill("rotate").solve(r.args[0]) for r in requests],
    )  # fmt: skip
    _, examples, _ = targets.split("rotate", lambda e: 1, max_length=9, n_train=0, n_heldout=3)
    encoded = [sequences.from_example(tokenizer, e, chat_template=False) for e in examples]
    scores.target(
        tmp_path, base, tiny_base, "rotate", examples, encoded, n_generate=2, **HOW
    )
    items = pd.read_parquet(tmp_path / "items.parquet")
    found = items.groupby("metric", sort=False)["item"].nunique().to_dict()
    assert found == {"nll": 3, "bpb": 3, "exact_match": 2}
    assert items.loc[items["metric"] == "exact_match", "value"].tolist() == [1, 1]
    assert set(items["task"]) == {"rotate"}


def test_a_target_of_choices_is_scored_on_all_held_out_items(
    base, tiny_base, tokenizer, tmp_path
):
    """medmcqa by lm-eval's own definition, acc alone of its metrics."""
    docs = [
        {"question": f"Which {i}?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": i}
        for i in range(3)
    ]
    examples = [Example(d["question"], " It is so.", d) for d in docs]
    encoded = [sequences.from_example(tokenizer, e, chat_template=False) for e in examples]
    scores.target(
        tmp_path, base, tiny_base, "medmcqa", examples, encoded, n_generate=0, **HOW
    )
    items = pd.read_parquet(tmp_path / "items.parquet")
    found = items.groupby("metric", sort=False)["item"].nunique().to_dict()
    assert found == {"nll": 3, "bpb": 3, "acc": 3}


def test_the_tasks_of_a_group_count_as_one():
    frame = pd.DataFrame({"task": ["a", "b", "c"], "item": ["0", "0", "1"], "value": [1.0, 0.0, 1.0]})
    found = scores._as_one(frame, {"a": "group", "b": "group"})
    assert found["task"].tolist() == ["group", "group", "c"]
    assert found["item"].tolist() == ["a:0", "b:0", "1"]
    assert found["value"].tolist() == [1.0, 0.0, 1.0]
