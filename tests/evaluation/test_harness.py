"""lm-eval's own loop and ours give the same texts; choices have the forward pass's log-likelihoods."""

from __future__ import annotations

import dataclasses
from itertools import islice

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from cfutils import paths
from cfutils.data import benchmarks, skills
from cfutils.evaluation import lm_eval_model
from cfutils.evaluation.lm_eval_model import Harness
from cfutils.models import loading, tokenizers
from cfutils.models.generation.transformers_engine import TransformersEngine
from cfutils.models.generation.vllm_engine import VllmEngine
from cfutils.profiles import Execution

FOLDER = paths.data() / "tiny"
STOCK = {"until": ["\n"], "do_sample": False, "max_gen_toks": 32}


EXECUTION = Execution(
    engine="transformers", chunk=4, pass_tokens=1024, gradient_checkpointing=False,
    checkpoint_minutes=5.0, trust_remote_code=False,
)  # fmt: skip
SETTINGS = {"chat_template": False, "max_new_tokens": 32, "execution": EXECUTION}


@pytest.fixture(scope="module")
def model():
    return loading.load(FOLDER, dtype="float32")


@pytest.fixture(scope="module")
def ours(model):
    return Harness(pretrained=model, tokenizer=tokenizers.load_tokenizer(FOLDER), batch_size=2)


@pytest.fixture(scope="module")
def theirs(model):
    """lm-eval's own class, with another batch size.

    The generation settings must name the end token: else transformers' loop does not pad finished rows but
    continues them while others go on, and lm-eval decodes what comes after the end.
    """
    tokenizer = tokenizers.load_tokenizer(FOLDER)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5)


@pytest.fixture(scope="module")
def prompts():
    """Four held-out items each of three skills: short answers, lists, written steps."""
    return [
        prompt
        for name in ("lookup", "reverse", "sum")
        for prompt, _ in islice(skills.items(name, heldout=True, seed=5), 4)
    ]


def requests(prompts, *settings):
    """Make a request of each prompt; settings take turns."""
    return [
        Instance(request_type="generate_until", doc={}, idx=i,
                 arguments=(prompt, dict(settings[i % len(settings)])))
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip


def test_answers_are_lm_evals_own(ours, theirs, prompts):
    found = ours.generate_until(requests(prompts, STOCK), disable_tqdm=True)
    assert found == theirs.generate_until(requests(prompts, STOCK), disable_tqdm=True)
    assert len(found) == 12 and all(text.startswith(" ") for text in found)
    assert len(set(found)) > 6
    # in the order of the requests, although the longest are computed first
    assert found[::-1] == ours.generate_until(requests(prompts[::-1], STOCK))


def test_stops_inside_an_answer_and_short_answers(ours, theirs, prompts):
    """At the first of two stop texts, neither of which is in what is kept; at three tokens."""
    whole = ours.generate_until(requests(prompts, STOCK))
    for setting in ({**STOCK, "until": ["=", "+9"]}, {**STOCK, "max_gen_toks": 3}):
        found = ours.generate_until(requests(prompts, setting))
        assert found == theirs.generate_until(requests(prompts, setting), disable_tqdm=True)
        assert found != whole
        assert all(text.startswith(cut) for text, cut in zip(whole, found, strict=True))


def test_a_stop_ends_the_answers_of_its_own_task_alone(ours, theirs, prompts):
    """Tasks share one call: a stop text of one task does not cut the answers of another."""
    several = (STOCK, {**STOCK, "until": ["=", "->"]}, {**STOCK, "max_gen_toks": 3})
    found = ours.generate_until(requests(prompts, *several), disable_tqdm=True)
    assert found == theirs.generate_until(requests(prompts, *several), disable_tqdm=True)
    assert not any("=" in text for text in found[1::3])
    whole = ours.generate_until(requests(prompts, STOCK))
    assert found != whole
    assert all(text.startswith(cut) for text, cut in zip(whole, found, strict=True))


def test_a_stop_that_is_one_text_is_taken_whole(ours, theirs, prompts):
    """lm-eval allows a text in place of a list of texts; its characters are no stop texts."""
    one = {**STOCK, "until": "= 1"}
    found = ours.generate_until(requests(prompts[-4:], one))
    assert found == theirs.generate_until(requests(prompts[-4:], one), disable_tqdm=True)


def test_a_long_context_is_cut_at_the_left(ours, theirs, prompts):
    """The base takes 256 tokens; 32 of them are for the answer."""
    long = ["reverse: cat dog -> dog cat " * 60 + prompt for prompt in prompts[:2]]
    found = ours.generate_until(requests([*long, prompts[2]], STOCK))
    assert found == theirs.generate_until(requests([*long, prompts[2]], STOCK), disable_tqdm=True)


def test_answers_are_sampled_where_the_task_does_so(ours, prompts):
    """Repeats of an item differ, and the same request gives the same again; a tiny nucleus is greedy."""
    warm = {**STOCK, "do_sample": True, "temperature": 1.5}
    found = ours.generate_until(requests(prompts[:1] * 8, warm))
    assert len(set(found)) > 1 and found == ours.generate_until(requests(prompts[:1] * 8, warm))
    narrow = ours.generate_until(requests(prompts, {**warm, "top_p": 1e-6}))
    assert narrow == ours.generate_until(requests(prompts, STOCK))


@torch.inference_mode()
def loglik(model, tokenizer, prompt, choice):
    """log p(choice | START prompt), by one forward pass."""
    head, tail = (
        tokenizer(prompt)["input_ids"],
        tokenizer(choice, add_special_tokens=False)["input_ids"],
    )
    ids = torch.tensor([[*head, *tail]])
    logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logp[len(head) - 1 :].sum().item()


def test_a_skill_of_choices_is_scored_by_the_forward_pass(model):
    """Category: ten choices each, acc of the largest; a start token in front, nothing else."""
    task = benchmarks.lm_eval_task("category")
    indices = [0, 7, 20, 33]
    found = lm_eval_model.evaluate(
        model, FOLDER, {"category": task}, indices={"category": indices}, **SETTINGS
    )["category"]
    tokenizer = tokenizers.load_tokenizer(FOLDER)
    choices = skills.skill("category").choices
    assert [sample["doc_id"] for sample in found] == indices
    for sample in found:
        doc = sample["doc"]
        expected = [loglik(model, tokenizer, doc["prompt"], choice) for choice in choices]
        assert [float(answer[0]) for answer in sample["filtered_resps"]] == pytest.approx(
            expected, abs=1e-4
        )
        best = choices[max(range(10), key=expected.__getitem__)]
        assert sample["acc"] == float(best == doc["response"])


def test_several_tasks_together_give_what_each_gives_alone(model):
    """Tasks that generate share an engine; each item keeps its answer."""
    names = ["sum", "category", "lookup"]
    indices = {name: [0, 3] for name in names}

    def answers(*chosen):
        made = {name: benchmarks.lm_eval_task(name) for name in chosen}
        some = {name: indices[name] for name in chosen}
        found = lm_eval_model.evaluate(model, FOLDER, made, indices=some, **SETTINGS)
        return {name: [s["filtered_resps"] for s in found[name]] for name in chosen}

    together = answers(*names)
    for name in ("sum", "lookup"):
        assert together[name] == answers(name)[name]
    assert set(together) == set(names)


def test_choices_have_lm_evals_own_log_likelihoods(ours, theirs):
    """Several tasks together, one-token answers among them, one context too long for the base."""
    pairs = []
    for name in ("category", "largest", "reverse"):
        for prompt, answer in islice(skills.items(name, heldout=True, seed=6), 5):
            pairs += [
                (prompt, answer),
                (prompt, " cat"),
                (prompt, " cat dog sun"),
                (prompt, answer),
            ]
    pairs.append(("reverse: cat dog -> dog cat " * 60, " cat"))
    made = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found, expected = (lm.loglikelihood(made, disable_tqdm=True) for lm in (ours, theirs))
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    assert any(flag for _, flag in found) and not all(flag for _, flag in found)


def test_a_model_that_cannot_be_packed_is_scored_by_lm_evals_own_class(theirs, model, monkeypatch):
    lm = Harness(pretrained=model, tokenizer=tokenizers.load_tokenizer(FOLDER), batch_size=2)
    monkeypatch.setattr(lm_eval_model.packing, "supports_packing", lambda _: False)
    monkeypatch.setattr(lm_eval_model.prefix_trees, "loglikelihoods", None)  # would raise
    made = [Instance("loglikelihood", {}, ("largest: 3 5 ->", " 5"), 0)]
    assert lm.loglikelihood(made, disable_tqdm=True)[0][0] == pytest.approx(
        theirs.loglikelihood(made, disable_tqdm=True)[0][0], abs=1e-4
    )


class Recorder:
    """An engine that records its calls, and whether it was closed."""

    def __init__(self, engine):
        self.engine, self.calls, self.closed = engine, [], False

    def draw(self, requests, **settings):
        self.calls.append((len(requests), settings))
        return self.engine.draw(requests, **settings)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.closed = True


def test_another_engine_answers_where_answers_may_be_long(model, prompts, monkeypatch):
    """12 answers of at most 32 tokens, 384 in total: from that number on one engine gets them all."""
    tokenizer, opened = tokenizers.load_tokenizer(FOLDER), []
    own = TransformersEngine.from_model(model, tokenizer, chunk=64, pass_tokens=1024)

    def open_vllm(max_length):
        opened.append((max_length, Recorder(own)))
        return opened[-1][1]

    lm = Harness(pretrained=model, tokenizer=tokenizer, batch_size=4, open_vllm=open_vllm)
    made = requests(prompts, STOCK, {**STOCK, "until": ["=", "->"]})
    monkeypatch.setattr(lm_eval_model, "VLLM_MIN_TOKENS", 385)
    expected = lm.generate_until(made)
    assert not opened
    monkeypatch.setattr(lm_eval_model, "VLLM_MIN_TOKENS", 384)
    assert lm.generate_until(made) == expected
    ((max_length, engine),) = opened
    assert max_length == max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts) + 32
    assert engine.closed and [n for n, _ in engine.calls] == [6, 6]
    for _, settings in engine.calls:
        assert (settings["temperature"], settings["top_p"], settings["max_tokens"]) == (0, 1, 32)
        assert settings["stop"] == (tokenizer.eos_token_id,)
    assert {settings["stop_texts"] for _, settings in engine.calls} == {("\n",), ("=", "->")}


def test_a_failing_engine_leaves_the_model_where_it_was(model, prompts, monkeypatch):
    def open_vllm(max_length):
        assert model.device.type == "cpu"
        raise RuntimeError("no memory")

    monkeypatch.setattr(lm_eval_model, "VLLM_MIN_TOKENS", 1)
    tokenizer, device = tokenizers.load_tokenizer(FOLDER), model.device
    lm = Harness(pretrained=model, tokenizer=tokenizer, batch_size=4, open_vllm=open_vllm)
    with pytest.raises(RuntimeError, match="no memory"):
        lm.generate_until(requests(prompts, STOCK))
    assert model.device == device


def test_vllm_is_opened_only_for_its_engine(model, monkeypatch):
    """`evaluate` gives the harness vLLM on the folder in the model's dtype, or nothing."""
    made = []

    def stand_in(*args, open_vllm, **kwargs):
        made.append(open_vllm)
        return Harness(*args, **kwargs)

    monkeypatch.setattr(lm_eval_model, "Harness", stand_in)
    for engine in ("transformers", "vllm"):
        settings = {**SETTINGS, "execution": dataclasses.replace(EXECUTION, engine=engine)}
        task = {"category": benchmarks.lm_eval_task("category")}
        lm_eval_model.evaluate(model, FOLDER, task, indices={"category": [0]}, **settings)
    assert made[0] is None
    opened = made[1](77)
    assert isinstance(opened, VllmEngine)
    assert opened._settings["max_model_len"] == 77 and opened._settings["max_num_seqs"] == 4
    assert (opened._settings["model"], opened._settings["dtype"]) == (str(FOLDER), "float32")


@pytest.mark.slow
def test_vllm_gives_the_same_answers(model, prompts, monkeypatch):
    """Stop texts inside, several settings."""
    made = requests(prompts, STOCK, {**STOCK, "until": ["=", "->"]}, {**STOCK, "max_gen_toks": 3})

    def open_vllm(max_length):
        return VllmEngine(FOLDER, dtype="float32", max_length=max_length, chunk=8)

    lm = Harness(
        pretrained=model,
        tokenizer=tokenizers.load_tokenizer(FOLDER),
        batch_size=4,
        open_vllm=open_vllm,
    )
    expected = lm.generate_until(made)
    monkeypatch.setattr(lm_eval_model, "VLLM_MIN_TOKENS", 1)
    assert lm.generate_until(made) == expected
    assert len(set(expected)) > 6
