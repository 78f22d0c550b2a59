"""How vLLM is set up; the real one against the real forward pass (slow)."""

import multiprocessing

import numpy as np
import pytest
import torch

from cfutils import models
from cfutils.engines import Request, TransformersEngine, VllmEngine, _cpu_environment
from cfutils.lab import Lab


def test_every_core_is_bound(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 0, 1})
    assert _cpu_environment()["VLLM_CPU_OMP_THREADS_BIND"] == "0,1,3"


# ---- two engines, one law


@pytest.fixture(scope="module", params=["smoke", "tiny"])
def base(request):
    """SmolLM2, and the tiny base: an OLMo of head size 32, the smallest that vLLM takes."""
    lab = Lab(request.param, chunk=24)
    folder = models.folder(lab.ensure(lab.steps.base))
    tokenizer = models.load_tokenizer(folder)
    start = models.start_token(tokenizer, lab.profile.start_token)
    return lab.profile, folder, start, models.end_tokens(tokenizer, start)


@pytest.fixture(scope="module")
def drawn(base):
    """The same requests by both engines, and a second call of vLLM; of the tiny base many more."""
    profile, folder, start, stop = base
    requests = [Request((start,), 7_000_000 + i) for i in range(24 if profile.name == "smoke" else 300)]
    with VllmEngine(folder, profile, max_length=40) as engine:
        vllm = engine.draw(requests, temperature=1.0, max_tokens=24, stop=stop)
        again = engine.draw(requests, temperature=1.0, max_tokens=24, stop=stop)
    assert not multiprocessing.active_children()  # gone, with all of its memory
    with TransformersEngine(folder, profile) as engine:
        plain = engine.draw(requests, temperature=1.0, max_tokens=24, stop=stop)
    return vllm, again, plain


@pytest.mark.slow
def test_vllm_repeats_itself_and_no_two_samples_are_alike(drawn, base):
    """Of the tiny base few are: facts are whole documents, which a fair draw repeats."""
    vllm, again, _ = drawn
    assert [c.token_ids for c in vllm] == [c.token_ids for c in again]
    different = len({tuple(c.token_ids) for c in vllm})
    assert different == len(vllm) if base[0].name == "smoke" else different > 200


@pytest.mark.slow
def test_an_end_token_is_kept_and_ends_the_sample(drawn, base):
    stop = base[3]
    for completion in (*drawn[0], *drawn[2]):
        assert len(completion.token_ids) == len(completion.logprobs) <= 24
        ended = completion.token_ids[-1] in stop
        assert completion.finish_reason == ("stop" if ended else "length")
        assert not set(completion.token_ids[:-1]) & set(stop)


@pytest.mark.slow
def test_vllm_log_probabilities_are_those_of_the_forward_pass(drawn, base):
    """One law: vLLM's log p of its own tokens equals transformers' (fp32, another kernel)."""
    profile, folder, start, _ = base
    model = models.load(folder, profile)
    few, atol = (6, 2e-3) if profile.name == "smoke" else (100, 1e-3)
    with torch.inference_mode():
        for completion in drawn[0][:few]:
            ids = torch.tensor([[start, *completion.token_ids]])
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            np.testing.assert_allclose(completion.logprobs, logp.numpy(), atol=atol)


@pytest.mark.slow
def test_engines_draw_from_the_same_law(drawn, base):
    """Mean log p per token of the two engines' samples agrees; three standard errors, of few four."""

    def mean(completions):
        sums = np.array([sum(c.logprobs) for c in completions])
        n = np.array([len(c.logprobs) for c in completions], float)
        value = sums.sum() / n.sum()
        return value, (sums - value * n).std(ddof=1) / n.mean() / np.sqrt(len(n))

    (a, ea), (b, eb) = mean(drawn[0]), mean(drawn[2])
    assert abs(a - b) < (4 if base[0].name == "smoke" else 3) * np.hypot(ea, eb)
