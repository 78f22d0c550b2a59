"""The real vLLM against the real forward pass, on the packaged base."""

import multiprocessing

import numpy as np
import pytest

from cfutils import models
from cfutils.engines import Request, TransformersEngine, VllmEngine, _cpu_environment
from cfutils.lab import Lab

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base():
    lab = Lab("smoke", chunk=24)
    folder = models.folder(lab.ensure(lab.steps.base))
    tokenizer = models.load_tokenizer(folder)
    start = models.start_token(tokenizer, lab.profile.start_token)
    return lab.profile, folder, start, models.end_tokens(tokenizer, start)


@pytest.fixture(scope="module")
def drawn(base):
    """The same requests by both engines, and a second call of vLLM."""
    profile, folder, start, stop = base
    requests = [Request((start,), 7_000_000 + i) for i in range(24)]
    with VllmEngine(folder, profile, max_length=40) as engine:
        vllm = engine.draw(requests, temperature=1.0, max_tokens=24, stop=stop)
        again = engine.draw(requests, temperature=1.0, max_tokens=24, stop=stop)
    assert not multiprocessing.active_children()  # gone, with all of its memory
    with TransformersEngine(folder, profile) as engine:
        plain = engine.draw(requests, temperature=1.0, max_tokens=24, stop=stop)
    return vllm, again, plain


def test_vllm_repeats_itself_and_no_two_samples_are_alike(drawn):
    vllm, again, _ = drawn
    assert [c.token_ids for c in vllm] == [c.token_ids for c in again]
    assert len({tuple(c.token_ids) for c in vllm}) == len(vllm)


def test_an_end_token_is_kept_and_ends_the_sample(drawn, base):
    stop = base[3]
    for completion in (*drawn[0], *drawn[2]):
        assert len(completion.token_ids) == len(completion.logprobs) <= 24
        ended = completion.token_ids[-1] in stop
        assert completion.finish_reason == ("stop" if ended else "length")
        assert not set(completion.token_ids[:-1]) & set(stop)


def test_vllm_log_probabilities_are_those_of_the_forward_pass(drawn, base):
    """One law: vLLM's log p of its own tokens equals transformers' (fp32, another kernel)."""
    import torch

    profile, folder, start, _ = base
    model = models.load(folder, profile)
    with torch.inference_mode():
        for completion in drawn[0][:6]:
            ids = torch.tensor([[start, *completion.token_ids]])
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            np.testing.assert_allclose(completion.logprobs, logp.numpy(), atol=2e-3)


def test_engines_draw_from_the_same_law(drawn):
    """Mean log p per token of the two engines' samples agrees within four standard errors."""

    def mean(completions):
        sums = np.array([sum(c.logprobs) for c in completions])
        n = np.array([len(c.logprobs) for c in completions], float)
        value = sums.sum() / n.sum()
        return value, (sums - value * n).std(ddof=1) / n.mean() / np.sqrt(len(n))

    (a, ea), (b, eb) = mean(drawn[0]), mean(drawn[2])
    assert abs(a - b) < 4 * np.hypot(ea, eb)


def test_every_core_is_bound(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 0, 1})
    assert _cpu_environment()["VLLM_CPU_OMP_THREADS_BIND"] == "0,1,3"
