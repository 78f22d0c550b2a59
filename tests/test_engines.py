"""The plain loop on a law that is known; the real vLLM against the real forward pass (slow)."""

import multiprocessing
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cfutils import engines, models
from cfutils.engines import Request, TransformersEngine, VllmEngine, _cpu_environment
from cfutils.lab import Lab

LAW = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]  # p(next | last)


class Markov:
    """A model of three tokens whose next one depends on the last alone; counts the rows of each pass."""

    device = torch.device("cpu")

    def __init__(self):
        self.logits, self.rows = torch.tensor(LAW).log(), []

    def __call__(self, *, input_ids, past_key_values, **_):
        self.rows.append(len(input_ids))
        cache = past_key_values or SimpleNamespace(batch_select_indices=lambda keep: None)
        return SimpleNamespace(logits=self.logits[input_ids[:, -1:]], past_key_values=cache)


def draw(requests, *, temperature=1.0, max_tokens=1, stop=(), **more):
    model = Markov()
    found = engines.continue_all(
        model, requests, temperature=temperature, max_tokens=max_tokens, stop=stop, **more
    )
    return found, model.rows


def test_temperature_0_takes_the_likeliest_token():
    """0 -> 0; 1 -> 1; 2 -> 2, whatever the seed; log p is that of the law itself."""
    found, _ = draw([Request((2, last), seed) for last in range(3) for seed in range(3)],
                    temperature=0, max_tokens=4)  # fmt: skip
    for i, completion in enumerate(found):
        last = i // 3
        assert completion.token_ids == [last] * 4
        assert completion.logprobs == pytest.approx([np.log(LAW[last][last])] * 4)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_law(temperature):
    """4000 pairs: chi-square of the 9 possible below 26.1, which luck exceeds once in 1000 times."""
    found, _ = draw([Request((0,), i) for i in range(4000)], temperature=temperature, max_tokens=2)
    law = np.array(LAW) ** (1 / temperature)
    law /= law.sum(1, keepdims=True)
    seen = Counter(tuple(c.token_ids) for c in found)
    expected = {(a, b): 4000 * law[0][a] * law[a][b] for a in range(3) for b in range(3)}
    assert sum((seen[k] - n) ** 2 / n for k, n in expected.items()) < 26.1
    for completion in found[:50]:
        a, b = completion.token_ids
        assert completion.logprobs == pytest.approx(np.log([LAW[0][a], LAW[a][b]]))


def test_a_draw_does_not_depend_on_its_neighbours():
    """Others end before it, begin elsewhere, stand before or behind it."""
    one = Request((0, 1), 42)
    (alone,), _ = draw([one], max_tokens=30, stop=(2,))
    others = [Request((0,) * n, n) for n in range(1, 9)]
    for place in (0, 4, 8):
        requests = [*others[:place], one, *others[place:]]
        found, _ = draw(requests, max_tokens=30, stop=(2,))
        assert found[place] == alone
    (other,), _ = draw([Request((0, 1), 43)], max_tokens=30)
    assert other.token_ids != draw([one], max_tokens=30)[0][0].token_ids


def test_finished_rows_leave_the_batch():
    found, rows = draw([Request((0,), i) for i in range(50)], max_tokens=40, stop=(2,))
    lengths = [len(c.token_ids) for c in found]
    assert rows == [sum(n > step for n in lengths) for step in range(max(lengths))]
    assert rows[0] == 50 and len(rows) < 40
    assert {c.finish_reason for c in found} == {"stop"}
    assert all(c.token_ids[-1] == 2 and 2 not in c.token_ids[:-1] for c in found)


def test_enough_ends_a_row_at_the_next_time_it_is_asked():
    """Asked behind tokens 16 and 32: rows that begin with 1 have enough, the others go on to 40."""
    requests = [Request((0,), i) for i in range(20)]
    plain, _ = draw(requests, max_tokens=40)
    found, rows = draw(requests, max_tokens=40, enough=lambda ids: ids[0] == 1)
    early = [c.token_ids[0] == 1 for c in plain]
    assert 0 < sum(early) < 20
    for a, b, is_early in zip(plain, found, early, strict=True):
        n = 16 if is_early else 40
        assert b.token_ids == a.token_ids[:n] and b.finish_reason == "length"
    assert rows == [20] * 16 + [20 - sum(early)] * 24
    asked, rows = draw(requests, max_tokens=40, enough=lambda ids: len(ids) > 16)
    assert {len(c.token_ids) for c in asked} == {32} and len(rows) == 32


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
