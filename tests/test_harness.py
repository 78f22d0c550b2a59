"""lm-eval's own loop and ours give the same texts; choices have the forward pass's log-likelihoods."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from cfutils import harness, models, paths, profiles, skills, tasks
from cfutils.engines import VllmEngine
from cfutils.harness import Harness

FOLDER = paths.data() / "tiny"
STOCK = {"until": ["\n"], "do_sample": False, "max_gen_toks": 32}


@pytest.fixture(scope="module")
def profile():
    return profiles.load("tiny", chunk=4)


@pytest.fixture(scope="module")
def model(profile):
    return models.load(FOLDER, profile)


@pytest.fixture(scope="module")
def ours(model):
    return Harness(pretrained=model, tokenizer=models.load_tokenizer(FOLDER), batch_size=2)


@pytest.fixture(scope="module")
def theirs(model):
    """Lm-eval's own class, with a batch of another size.

    Told of the end token: a finished row of transformers' loop is padded only if the generation settings
    name it; else the row writes on while others do, and lm-eval decodes what stands behind the end.
    """
    tokenizer = models.load_tokenizer(FOLDER)
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
    # in the order of the requests, whatever their length
    assert found[::-1] == ours.generate_until(requests(prompts[::-1], STOCK))


def test_stops_inside_an_answer_and_short_answers(ours, theirs, prompts):
    """At the first of two stop texts, neither of which stands in what is kept; at three tokens."""
    whole = ours.generate_until(requests(prompts, STOCK))
    for setting in ({**STOCK, "until": ["=", "+9"]}, {**STOCK, "max_gen_toks": 3}):
        found = ours.generate_until(requests(prompts, setting))
        assert found == theirs.generate_until(requests(prompts, setting), disable_tqdm=True)
        assert found != whole
        assert all(text.startswith(cut) for text, cut in zip(whole, found, strict=True))


def test_a_stop_ends_the_answers_of_its_own_task_alone(ours, theirs, prompts):
    """Tasks share the loop: what stops the one does not cut what another goes on to write."""
    several = (STOCK, {**STOCK, "until": ["=", "->"]}, {**STOCK, "max_gen_toks": 3})
    found = ours.generate_until(requests(prompts, *several), disable_tqdm=True)
    assert found == theirs.generate_until(requests(prompts, *several), disable_tqdm=True)
    assert not any("=" in text for text in found[1::3])
    whole = ours.generate_until(requests(prompts, STOCK))
    assert found != whole
    assert all(text.startswith(cut) for text, cut in zip(whole, found, strict=True))


def test_a_stop_that_is_one_text_is_taken_whole(ours, theirs, prompts):
    """Lm-eval takes a text in the place of a list of texts; its characters are no stops."""
    one = {**STOCK, "until": "= 1"}
    found = ours.generate_until(requests(prompts[-4:], one))
    assert found == theirs.generate_until(requests(prompts[-4:], one), disable_tqdm=True)


def test_a_long_context_is_cut_at_the_left(ours, theirs, prompts):
    """The base takes 256 tokens; 32 of them are for the answer."""
    long = ["reverse: cat dog -> dog cat " * 60 + prompt for prompt in prompts[:2]]
    found = ours.generate_until(requests([*long, prompts[2]], STOCK))
    assert found == theirs.generate_until(requests([*long, prompts[2]], STOCK), disable_tqdm=True)


def test_sampled_answers_are_refused(ours, prompts):
    with pytest.raises(NotImplementedError, match="samples its answers"):
        ours.generate_until(requests(prompts[:1], {**STOCK, "do_sample": True}))


@torch.inference_mode()
def loglik(model, tokenizer, prompt, choice):
    """log p(choice | START prompt), by one forward pass."""
    head, tail = tokenizer(prompt)["input_ids"], tokenizer(choice, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*head, *tail]])
    logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logp[len(head) - 1 :].sum().item()


def test_a_skill_of_choices_is_scored_by_the_forward_pass(model, profile):
    """Category: ten choices each, acc of the largest; start token in front, nothing else."""
    task = tasks.lm_eval_task("category")
    indices = [0, 7, 20, 33]
    found = harness.evaluate(
        model, FOLDER, {"category": task}, indices={"category": indices}, profile=profile
    )["category"]
    tokenizer = models.load_tokenizer(FOLDER)
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


def test_several_tasks_at_once_are_what_each_is_alone(model, profile):
    """Tasks that generate share one loop; each item keeps its answer."""
    names = ["sum", "category", "lookup"]
    indices = {name: [0, 3] for name in names}

    def answers(*chosen):
        made = {name: tasks.lm_eval_task(name) for name in chosen}
        some = {name: indices[name] for name in chosen}
        found = harness.evaluate(model, FOLDER, made, indices=some, profile=profile)
        return {name: [s["filtered_resps"] for s in found[name]] for name in chosen}

    together = answers(*names)
    for name in ("sum", "lookup"):
        assert together[name] == answers(name)[name]
    assert set(together) == set(names)


def test_choices_have_lm_evals_own_log_likelihoods(ours, theirs):
    """Several tasks at once, one-token answers among them, one context too long for the base."""
    pairs = []
    for name in ("category", "largest", "reverse"):
        for prompt, answer in islice(skills.items(name, heldout=True, seed=6), 5):
            pairs += [(prompt, answer), (prompt, " cat"), (prompt, " cat dog sun"), (prompt, answer)]
    pairs.append(("reverse: cat dog -> dog cat " * 60, " cat"))
    made = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found, expected = (lm.loglikelihood(made, disable_tqdm=True) for lm in (ours, theirs))
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    assert any(flag for _, flag in found) and not all(flag for _, flag in found)


def test_a_model_that_cannot_be_packed_is_scored_by_lm_evals_own_class(theirs, model, monkeypatch):
    lm = Harness(pretrained=model, tokenizer=models.load_tokenizer(FOLDER), batch_size=2)
    monkeypatch.setattr(harness.packing, "packs", lambda _: False)
    monkeypatch.setattr(harness.trees, "loglikelihoods", None)  # would raise
    made = [Instance("loglikelihood", {}, ("largest: 3 5 ->", " 5"), 0)]
    assert lm.loglikelihood(made, disable_tqdm=True)[0][0] == pytest.approx(
        theirs.loglikelihood(made, disable_tqdm=True)[0][0], abs=1e-4
    )


@pytest.mark.slow
def test_vllm_writes_the_same_answers_where_they_may_be_long(model, profile, prompts, monkeypatch):
    """Stops inside, several settings; below the limit the loop answers and vLLM is not started."""
    tokenizer, opened = models.load_tokenizer(FOLDER), []

    def engine():
        opened.append(VllmEngine(FOLDER, profile, max_length=256))
        return opened[-1]

    lm = Harness(pretrained=model, tokenizer=tokenizer, batch_size=4, engine=engine)
    asked = requests(prompts, STOCK, {**STOCK, "until": ["=", "->"]}, {**STOCK, "max_gen_toks": 3})
    expected = lm.generate_until(asked)
    assert not opened
    monkeypatch.setattr(harness, "PAYS", 1)
    assert lm.generate_until(asked) == expected
    assert len(opened) == 1 and len(set(expected)) > 6
