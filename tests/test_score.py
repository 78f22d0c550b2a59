"""Scores against direct computation: KL, NLL and lm-eval's items, by item and summed."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from cfutils import forgetting, models, replay, score, tasks
from cfutils.replay import Sequence
from cfutils.tasks import Example

SEQUENCES = [Sequence((0, 5, 6, 7, 8), 1), Sequence((9, 10, 11), 2), Sequence((3, 4, 5, 6), 1)]


@pytest.fixture(scope="module")
def base(tiny_base, tiny_profile):
    return models.load(tiny_base, tiny_profile)


@pytest.fixture(scope="module")
def other(tiny_base, tiny_profile):
    """The base with every weight shifted at random."""
    model = models.load(tiny_base, tiny_profile)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return models.load_tokenizer(tiny_base)


@torch.inference_mode()
def log_law(model, ids):
    """log p(. | prefix) at each position, (length, vocabulary), by one pass without padding."""
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def loglik(model, tokenizer, context, continuation):
    """log p(continuation | context) in nats, the two tokenised together as lm-eval does."""
    head = tokenizer(context)["input_ids"]
    ids = tokenizer(context + continuation)["input_ids"]
    logp = log_law(model, ids)
    return sum(logp[t - 1, ids[t]].item() for t in range(len(head), len(ids)))


# ---- sums


def item_frame(values, weights):
    rows = zip("ab" * len(values), values, weights, strict=False)
    columns = ["item", "value", "weight"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(group="probe", task="prose", metric="nll")[score.ITEM]


def test_a_score_is_a_weighted_mean_with_the_error_of_a_ratio():
    """Values 1, 3 with weights 1, 3: (1 + 9) / 4 = 2.5.

    Residuals w (v - 2.5): -1.5 and 1.5; n / (n - 1) = 2, so sqrt(2 * (2.25 + 2.25)) / 4 = 0.75.
    """
    row = forgetting.aggregate(item_frame([1, 3], [1, 3])).iloc[0]
    assert (row.value, row.stderr, row.n) == (2.5, 0.75, 2)
    assert (row.group, row.task, row.metric) == ("probe", "prose", "nll")


def test_with_equal_weights_it_is_the_mean_and_its_standard_error():
    """1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, over n = 3."""
    row = forgetting.aggregate(item_frame([1, 2, 6], [5, 5, 5])).iloc[0]
    assert row.value == 3 and row.stderr == pytest.approx(math.sqrt(7 / 3))
    assert math.isnan(forgetting.aggregate(item_frame([4], [2])).iloc[0].stderr)


# ---- tokens


def test_kl_of_a_model_to_itself_is_zero(base):
    for nll, kl in score.token_scores(base, base, SEQUENCES, size=2):
        np.testing.assert_allclose(kl, 0, atol=1e-6)
        assert (nll > 0).all()
    for _, kl in score.token_scores(base, None, SEQUENCES, size=2):
        assert (kl == 0).all()


@pytest.mark.parametrize("size", [1, 2, 8])
def test_token_scores_equal_a_direct_computation(base, other, size):
    """NLL of the tuned model and KL(base || tuned), unpadded, in fp64, at the supervised tokens."""
    found = score.token_scores(other, base, SEQUENCES, size=size)
    for sequence, (nll, kl) in zip(SEQUENCES, found, strict=True):
        log_p0, log_p = log_law(base, sequence.ids), log_law(other, sequence.ids)
        where = range(sequence.first, len(sequence.ids))
        np.testing.assert_allclose(nll, [-log_p[t - 1, sequence.ids[t]] for t in where], rtol=1e-4)
        direct = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
        np.testing.assert_allclose(kl, [direct[t - 1] for t in where], rtol=1e-3, atol=1e-6)
        assert len(nll) == len(kl) == sequence.supervised


def test_probes_are_stored_by_item_and_by_token(base, other, tokenizer, tmp_path):
    sequences = {"prose": SEQUENCES[:2], "stories": SEQUENCES[2:]}
    score.probe(tmp_path, other, base, tokenizer, sequences, size=8)
    items = pd.read_parquet(tmp_path / "items.parquet")
    tokens = pd.read_parquet(tmp_path / "tokens.parquet")
    assert list(items) == score.ITEM and set(items["group"]) == {"probe"}
    assert list(tokens) == ["task", "sequence", "position", "token", "nll", "kl"]
    assert items["weight"].tolist() == [4, 4, 1, 1, 3, 3]
    assert tokens["token"].tolist()[:2] == [tokenizer.decode([5]), tokenizer.decode([6])]
    scores = forgetting.aggregate(items).set_index(["task", "metric"])["value"]
    means = tokens.groupby("task")[["nll", "kl"]].mean()
    for task in sequences:
        for metric in ("nll", "kl"):
            assert scores[task, metric] == pytest.approx(means.loc[task, metric])


# ---- lm-eval


def test_margin_and_bits_per_byte_from_log_likelihoods(
    base, tiny_base, tiny_profile, tokenizer, tiny_choices
):
    """Four of six items, each against log p(" choice" | "question Answer:") by hand.

    margin = right - best wrong; bpb_gold = -right / (bytes of " choice" * ln 2); acc: right is largest.
    """
    task, indices = tiny_choices(), [0, 1, 3, 4]
    frame = score.lm_eval_items(
        base, tiny_base, task, indices=indices, group="retained", profile=tiny_profile
    )
    assert list(frame) == score.ITEM and set(frame["task"]) == {"tiny_choices"}
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


def test_scoring_leaves_the_global_generators_alone(base, tiny_base, tiny_profile, tiny_choices):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    score.lm_eval_items(
        base, tiny_base, tiny_choices(), indices=[0], group="retained", profile=tiny_profile
    )
    assert torch.equal(torch.rand(1), expected)


def test_retained_tasks_resume_one_by_one(base, tiny_base, tiny_profile, tiny_choices, tmp_path,
                                          monkeypatch):  # fmt: skip
    """The first is done, the second fails; afterwards only the second is scored."""
    asked = []

    def task(name, *, local):
        asked.append(name)
        made = tiny_choices()
        made.config.task = name
        if name == "two" and asked.count("two") == 1:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(tasks, "lm_eval_task", task)
    profile = tiny_profile.change(retained=["one", "two"], limit=2)
    with pytest.raises(KeyboardInterrupt):
        score.retained(tmp_path, lambda: base, tiny_base, profile=profile)
    score.retained(tmp_path, lambda: base, tiny_base, profile=profile)
    assert asked == ["one", "two", "two"]
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert items.groupby("task")["item"].nunique().to_dict() == {"one": 2, "two": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["items.parquet"]


def test_no_retained_tasks_give_an_empty_frame(tiny_base, tiny_profile, tmp_path):
    score.retained(tmp_path, lambda: None, tiny_base, profile=tiny_profile.change(retained=[]))
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert list(items) == score.ITEM and len(forgetting.aggregate(items)) == 0


# ---- target and entropy


def test_target_items_by_hand(base, tiny_base, tiny_profile, tiny_target, tokenizer, tmp_path):
    """nll: mean over response and end token; bpb: without the end token, per byte, in bits."""
    examples = tasks.read_jsonl(tiny_target)[:3]
    sequences = [replay.from_example(tokenizer, e, chat_template=False) for e in examples]
    score.target(tmp_path, base, tiny_base, examples, sequences, profile=tiny_profile)
    items = pd.read_parquet(tmp_path / "items.parquet").set_index(["item", "metric"])
    assert set(items["task"]) == {"sums"} and set(items["group"]) == {"target"}
    assert len(items) == 2 * 3  # a file of one's own has no task of lm-eval
    for example, s in zip(examples, sequences, strict=True):
        logp = log_law(base, s.ids)
        nll = [-logp[t - 1, s.ids[t]].item() for t in range(s.first, len(s.ids))]
        n_bytes = len(example.response.encode())
        row = items.loc[example.id, "nll"]
        assert row.value == pytest.approx(np.mean(nll), rel=1e-4) and row.weight == len(nll)
        row = items.loc[example.id, "bpb"]
        expected = sum(nll[:-1]) / (n_bytes * math.log(2))
        assert row.value == pytest.approx(expected, rel=1e-4) and row.weight == n_bytes


def test_a_target_that_generates_is_answered_for_some_items(
    base, tiny_base, tiny_profile, tokenizer, tmp_path, monkeypatch
):
    """gsm8k by lm-eval's own definition: strict and flexible match of the first n_generate items."""
    asked = []
    generate = type(base).generate
    monkeypatch.setattr(
        type(base), "generate", lambda *a, **k: asked.append(k) or generate(*a, **k)
    )
    docs = [{"question": f"{i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(3)]
    examples = [tasks._gsm8k_example(doc) for doc in docs]
    sequences = [replay.from_example(tokenizer, e, chat_template=False) for e in examples]
    profile = tiny_profile.change(target="gsm8k", n_generate=2, max_new_tokens=5)
    score.target(tmp_path, base, tiny_base, examples, sequences, profile=profile)
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert items.groupby("metric", sort=False)["item"].nunique().to_dict() == {
        "nll": 3, "bpb": 3, "exact_match": 2, "exact_match_flexible": 2
    }  # fmt: skip
    assert set(items["task"]) == {"gsm8k"}
    lengths = {k["max_length"] - k["input_ids"].shape[1] for k in asked if "max_length" in k}
    assert asked and (lengths or {k["max_new_tokens"] for k in asked}) == {5}


def test_a_target_of_choices_is_scored_on_all_held_out_items(
    base, tiny_base, tiny_profile, tokenizer, tmp_path
):
    """medmcqa by lm-eval's own definition, acc alone of its metrics."""
    docs = [
        {"question": f"Which {i}?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": i}
        for i in range(3)
    ]
    examples = [Example(d["question"], " It is so.", d) for d in docs]
    sequences = [replay.from_example(tokenizer, e, chat_template=False) for e in examples]
    profile = tiny_profile.change(target="medmcqa", n_heldout=3)
    score.target(tmp_path, base, tiny_base, examples, sequences, profile=profile)
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
    notes = score.entropy(tmp_path, base, samples)
    frame = pd.read_parquet(tmp_path / "entropy.parquet")
    assert frame["sample"].tolist() == [0, 0, 0, 1]
    assert frame["position"].tolist() == [0, 1, 2, 0]
    logp = log_law(base, [0, 7, 8, 0])
    np.testing.assert_allclose(frame["entropy"][:3], -(logp.exp() * logp).sum(-1)[:3], rtol=1e-4)
    expected = [logp[0, 7], logp[1, 8], logp[2, 0], log_law(base, [4, 5, 6])[1, 6]]
    np.testing.assert_allclose(frame["logprob"], expected, rtol=1e-4)
    gaps = np.abs(np.array([-1.0, -2, -3, -4]) - np.array([float(v) for v in expected]))
    assert notes["engine_gap"] == pytest.approx((gaps[:3].mean() + gaps[3]) / 2, rel=1e-3)
    json.dumps(notes)
