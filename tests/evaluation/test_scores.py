"""Scores against direct computation: KL, NLL and lm-eval's items, by item and summed."""

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
from cfutils.data.sequences import Sequence
from cfutils.evaluation import lm_eval_model, scores
from cfutils.models import loading, tokenizers
from cfutils.models.base_states import BaseStates
from cfutils.models.generation import transformers_engine
from cfutils.profiles import Execution

SEQUENCES = [Sequence((0, 5, 6, 7, 8), 1), Sequence((9, 10, 11), 2), Sequence((3, 4, 5, 6), 1)]


EXECUTION = Execution(
    engine="transformers", chunk=4, pass_tokens=1024, gradient_checkpointing=False,
    checkpoint_minutes=5.0, trust_remote_code=False,
)  # fmt: skip
HOW = {"max_new_tokens": 16, "chat_template": False, "execution": EXECUTION}
RETAINED = scores.Retained(
    tasks=(), limit=2, num_fewshot={}, benchmarks="package", max_new_tokens=16, chat_template=False
)


@pytest.fixture(scope="module")
def base(tiny_base):
    return loading.load(tiny_base, dtype="float32")


@pytest.fixture(scope="module")
def other(tiny_base):
    """The base with every weight shifted at random."""
    model = loading.load(tiny_base, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return tokenizers.load_tokenizer(tiny_base)


@torch.inference_mode()
def log_probs(model, ids):
    """log p(. | prefix) at each position, (length, vocabulary), by one pass without padding."""
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def loglik(model, tokenizer, context, continuation):
    """log p(continuation | context) in nats, the two tokenised together as lm-eval does."""
    head = tokenizer(context)["input_ids"]
    ids = tokenizer(context + continuation)["input_ids"]
    logp = log_probs(model, ids)
    return sum(logp[t - 1, ids[t]].item() for t in range(len(head), len(ids)))


# ---- probes


def test_probes_are_stored_by_item_and_the_bases_own_by_token(base, other, tokenizer, tmp_path):
    """Token rows show the text: those of real prose are not written."""
    probes = {"prose": SEQUENCES[2:], "context_free": SEQUENCES[:2]}
    scores.probe(tmp_path, other, BaseStates(base, limit=64), tokenizer, probes, limit=64)
    items = pd.read_parquet(tmp_path / "items.parquet")
    tokens = pd.read_parquet(tmp_path / "tokens.parquet")
    assert list(items) == scores.ITEM and set(items["group"]) == {"probe"}
    assert list(tokens) == ["task", "sequence", "position", "token", "nll", "kl"]
    assert items["metric"].tolist() == ["nll", "kl", "bpb"] * 3
    order = [SEQUENCES[2], *SEQUENCES[:2]]
    texts = [tokenizer.decode(s.ids[s.first :], skip_special_tokens=True) for s in order]
    n_bytes = [len(text.encode()) for text in texts]
    assert items["weight"].tolist() == [3, 3, n_bytes[0], 4, 4, n_bytes[1], 1, 1, n_bytes[2]]
    nll, bits = (items.loc[items["metric"] == m, "value"].to_numpy() for m in ("nll", "bpb"))
    np.testing.assert_allclose(bits, nll * [3, 4, 1] / (np.array(n_bytes) * math.log(2)))
    assert set(tokens["task"]) == {"context_free"} and tokens["sequence"].tolist() == [0] * 4 + [1]
    assert tokens["token"].tolist()[:2] == [tokenizer.decode([5]), tokenizer.decode([6])]
    means = tokens.groupby("sequence")[["nll", "kl"]].mean()
    for metric in ("nll", "kl"):
        chosen = items[(items["task"] == "context_free") & (items["metric"] == metric)]
        np.testing.assert_allclose(chosen["value"], means[metric])
    assert (items.loc[items["metric"] == "kl", "value"] > 1e-3).all()


def test_a_probe_that_is_an_end_token_alone_has_no_bits_per_byte(base, tokenizer, tmp_path):
    scores.probe(tmp_path, base, None, tokenizer, {"prose": [Sequence((0, 0), 1)]}, limit=64)
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert items["metric"].tolist() == ["nll", "kl"]
    tokens = pd.read_parquet(tmp_path / "tokens.parquet")
    assert list(tokens) == scores.TOKEN and len(tokens) == 0


def test_estimates_by_hand(base, other, tmp_path, monkeypatch):
    """log_ratio: sum of log p_0 - log p; kl: sum over the same prefixes; both in nats a sequence."""
    monkeypatch.setattr(scores, "TIMED", 2)
    notes = scores.estimate(tmp_path, BaseStates(base, limit=8), other, SEQUENCES, limit=8)
    frame = pd.read_parquet(tmp_path / "estimate.parquet")
    assert frame["tokens"].tolist() == [4, 1, 3]
    for sequence, row in zip(SEQUENCES, frame.itertuples(), strict=True):
        log_p0, log_p = log_probs(base, sequence.ids), log_probs(other, sequence.ids)
        where = range(sequence.first, len(sequence.ids))
        ratio = sum((log_p0 - log_p)[t - 1, sequence.ids[t]].item() for t in where)
        kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
        assert row.log_ratio == pytest.approx(ratio, rel=1e-3, abs=1e-5)
        assert row.kl == pytest.approx(sum(kl[t - 1].item() for t in where), rel=1e-3)
    assert notes["timed"] == 2 and set(notes["seconds"]) == {"log_ratio", "kl"}
    assert min(notes["seconds"].values()) > 0
    json.dumps(notes)


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


# ---- target and entropy


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


def test_entropy_along_samples(base, tmp_path):
    """-sum p log p at each position, and the distance of the stated log-probabilities."""
    samples = pd.DataFrame(
        {
            "index": [0, 1],
            "prompt_ids": [[0], [4, 5]],
            "token_ids": [[7, 8, 0], [6]],
            "logprobs": [[-1.0, -2.0, -3.0], [-4.0]],
        }
    )
    notes = scores.entropy(tmp_path, base, samples, limit=64)
    frame = pd.read_parquet(tmp_path / "entropy.parquet")
    assert frame["sample"].tolist() == [0, 0, 0, 1]
    assert frame["position"].tolist() == [0, 1, 2, 0]
    logp = log_probs(base, [0, 7, 8, 0])
    np.testing.assert_allclose(frame["entropy"][:3], -(logp.exp() * logp).sum(-1)[:3], rtol=1e-4)
    expected = [logp[0, 7], logp[1, 8], logp[2, 0], log_probs(base, [4, 5, 6])[1, 6]]
    np.testing.assert_allclose(frame["logprob"], expected, rtol=1e-4)
    gaps = np.abs(np.array([-1.0, -2, -3, -4]) - np.array([float(v) for v in expected]))
    assert notes["engine_gap"] == pytest.approx((gaps[:3].mean() + gaps[3]) / 2, rel=1e-3)
    json.dumps(notes)
