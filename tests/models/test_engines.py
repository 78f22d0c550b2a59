"""Both engines: stop texts, seeds, reproducibility, and one distribution (vLLM itself is slow)."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cfutils import paths
from cfutils.models import bases, loading, tokenizers
from cfutils.models.generation import sampling, transformers_engine
from cfutils.models.generation.transformers_engine import TransformersEngine
from cfutils.models.generation.types import Completion, Request
from cfutils.models.generation.vllm_engine import VllmEngine, _environment

TINY = paths.data() / "tiny"


def test_vllm_gets_every_core_and_runs_in_one_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 0, 1})
    environment = _environment()
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1,3"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_no_requests_start_no_vllm():
    with VllmEngine(TINY, dtype="float32", max_length=8, chunk=4) as engine:
        before = multiprocessing.active_children()
        assert engine.draw([], temperature=1.0, max_tokens=4, stop=()) == []
        assert multiprocessing.active_children() == before


# ---- transformers


@pytest.fixture(scope="module")
def words(tiny_base):
    """The tokenizer of the small random model, and its ids of single letters."""
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    return tokenizer, {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefgh"}


@pytest.fixture
def scripted(monkeypatch, tiny_base, words):
    """Make an engine whose model writes one given text, letter by letter; records the calls of the loop."""
    tokenizer, ids = words
    model = loading.load(tiny_base, dtype="float32")
    calls = []

    def make(text, **settings):
        def loop(_, requests, *, max_tokens, enough, **__):
            calls.append((len(requests), enough is not None))
            written = [ids[letter] for letter in text[:max_tokens]]
            one = Completion(written, [-float(i) for i in range(len(written))], "length")
            return [one] * len(requests)

        monkeypatch.setattr(transformers_engine, "continue_all", loop)
        return TransformersEngine.from_model(
            model, tokenizer, **{"chunk": 8, "pass_tokens": 64, **settings}
        )

    return make, ids, calls


def test_a_completion_is_cut_after_the_token_that_completes_a_stop_text(scripted):
    """abcdefgh: "de" is complete with the fifth letter, "fg" with the seventh; "xy" never is."""
    make, ids, _ = scripted
    requests, settings = [Request((1,), 0)], {"temperature": 1.0, "max_tokens": 8, "stop": ()}
    engine = make("abcdefgh")
    (found,) = engine.draw(requests, **settings, stop_texts=("fg", "de"))
    assert found == Completion([ids[x] for x in "abcde"], [0.0, -1.0, -2.0, -3.0, -4.0], "stop")
    (found,) = engine.draw(requests, **settings, stop_texts=("a",))
    assert found == Completion([ids["a"]], [0.0], "stop")
    (found,) = engine.draw(requests, **settings, stop_texts=("xy",))
    assert len(found.token_ids) == 8 and found.finish_reason == "length"


def test_requests_are_decoded_in_chunks(scripted):
    """And nothing is checked while decoding unless there are stop texts."""
    make, _, calls = scripted
    requests = [Request((1,), i) for i in range(7)]
    settings = {"temperature": 1.0, "max_tokens": 2, "stop": ()}
    assert len(make("ab", chunk=3).draw(requests, **settings)) == 7
    assert calls == [(3, False), (3, False), (1, False)]
    calls.clear()
    assert len(make("ab", chunk=8).draw(requests, **settings, stop_texts=("b",))) == 7
    assert calls == [(7, True)]


def test_stop_texts_end_samples_of_the_real_loop(tiny_base, words):
    """Each sample is the one without stop texts, cut where its text first has an "e"."""
    tokenizer, _ = words
    requests = [Request((0,), i) for i in range(12)]
    settings = {"temperature": 1.0, "max_tokens": 40, "stop": (0,)}
    with TransformersEngine(tiny_base, dtype="float32", chunk=5, pass_tokens=64) as engine:
        whole = engine.draw(requests, **settings)
        found = engine.draw(requests, **settings, stop_texts=("e",))
    assert check_cut(whole, found, tokenizer, "e") > 3


@pytest.mark.parametrize("stop", [(0,), tuple(range(300))])
def test_what_is_told_to_be_done_is_all_requests_in_the_end(tiny_base, stop):
    """Whether most end at the cap, or all with the first token."""
    told = []
    with TransformersEngine(tiny_base, dtype="float32", chunk=5, pass_tokens=64) as engine:
        engine.draw(
            [Request((0,), i) for i in range(12)], temperature=1.0, max_tokens=8, stop=stop, advance=told.append
        )
    assert sum(told) == pytest.approx(12) and min(told) >= 0 and len(told) >= 6


def check_cut(whole, found, tokenizer, stop_text):
    """Compare completions with the uncut ones; return how many were cut."""
    n_cut = 0
    for a, b in zip(whole, found, strict=True):
        n = len(b.token_ids)
        assert b.token_ids == a.token_ids[:n]
        assert b.logprobs == pytest.approx(a.logprobs[:n], abs=1e-4)
        if stop_text in tokenizer.decode(b.token_ids, skip_special_tokens=True):
            assert stop_text not in tokenizer.decode(b.token_ids[:-1], skip_special_tokens=True)
            assert b.finish_reason == "stop"
            n_cut += n < len(a.token_ids)
        else:
            assert (n, b.finish_reason) == (len(a.token_ids), a.finish_reason)
    return n_cut


def test_an_engine_leaves_a_loaded_model_as_it_was(tiny_base, words):
    """It computes what one on the folder does; after it the model is still there."""
    tokenizer, _ = words
    model = loading.load(tiny_base, dtype="float32")
    requests, settings = [Request((0, 5), 3)], {"temperature": 1.0, "max_tokens": 5, "stop": (0,)}
    with TransformersEngine.from_model(model, tokenizer, chunk=4, pass_tokens=64) as engine:
        found = engine.draw(requests, **settings)
    with TransformersEngine(tiny_base, dtype="float32", chunk=4, pass_tokens=64) as engine:
        assert engine.draw(requests, **settings) == found
    with torch.inference_mode():
        assert model(torch.tensor([[0]])).logits.shape[-1] == 300


# ---- vLLM: any number of prompts of any length, always the same samples

CHUNK = 300


def mixed_requests(first_seed=3_000_000):
    """Prompts of 20 to 150 tokens, in total many times vLLM's batch (4096 tokens on a CPU) and its cache."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 151, CHUNK)
    prompts = [tuple(map(int, rng.integers(5, 500, n))) for n in lengths]
    assert sum(lengths) > 5 * 4096
    return [Request(prompt, first_seed + i) for i, prompt in enumerate(prompts)]


def small_vllm():
    """A cache of 96 blocks of 128 tokens: sequences that grow into a second block preempt others."""
    config = json.loads((TINY / "config.json").read_text())
    n_bytes = 2 * config["num_hidden_layers"] * config["hidden_size"] * 4 * 128 * 96
    return VllmEngine(TINY, dtype="float32", max_length=182, chunk=CHUNK, cache_bytes=n_bytes)


def tokens_drawn(engine, requests):
    """Return token ids and log-probabilities of samples of up to 32 tokens."""
    drawn = engine.draw(requests, temperature=1.0, max_tokens=32, stop=(0,))
    return [[c.token_ids, c.logprobs] for c in drawn]


def draw_in_a_process_of_its_own(path):
    """Write the samples that a new process draws, after others."""
    with small_vllm() as engine:
        tokens_drawn(engine, mixed_requests(first_seed=5)[:3])
        Path(path).write_text(json.dumps(tokens_drawn(engine, mixed_requests())))


@pytest.mark.slow
def test_vllm_draws_the_same_samples_in_any_process_for_any_prompts(tmp_path):
    """Prompts prefilled in pieces, preempted sequences, other calls before: nothing changes the samples.

    With one seed per request vLLM 0.32 ends here with "CPU Generator does not use offset".
    """
    requests = mixed_requests()
    with small_vllm() as engine:
        first = tokens_drawn(engine, requests)
        few = tokens_drawn(engine, requests[:7])
        again = tokens_drawn(engine, requests)
        other = tokens_drawn(engine, mixed_requests(first_seed=4_000_000))
    assert again == first
    path, here = tmp_path / "samples.json", Path(__file__)
    command = f"import sys, {here.stem} as here; here.draw_in_a_process_of_its_own(sys.argv[1])"
    subprocess.run([sys.executable, "-c", command, str(path)], cwd=here.parent, check=True)
    assert json.loads(path.read_text()) == first
    n_tokens = [len(ids) for ids, _ in first]
    assert len(first) == CHUNK and max(n_tokens) == 32
    assert sum(a[0] != b[0] for a, b in zip(first, other, strict=True)) > CHUNK / 2
    assert len({tuple(ids) for ids, _ in few}) == 7


@pytest.mark.slow
def test_one_seed_decides_a_call_of_vllm():
    """That of the first request: the others' change nothing, and equal prompts get different samples."""
    with small_vllm() as engine:
        first = tokens_drawn(engine, [Request((0,), seed) for seed in range(20, 60)])
        again = tokens_drawn(engine, [Request((0,), seed) for seed in (20, *[7] * 39)])
        other = tokens_drawn(engine, [Request((0,), seed) for seed in range(21, 61)])
    assert again == first
    assert other != first
    assert len({tuple(ids) for ids, _ in first}) > 20


@pytest.mark.slow
def test_stop_texts_end_the_same_samples_with_both_engines():
    """Greedy answers to prompts of the tiny base: full ones, and cut after the first "=" or space."""
    tokenizer = tokenizers.load_tokenizer(TINY)
    texts = [
        f"{name}: {items} ->"
        for name in ("reverse", "sum", "lookup")
        for items in ("3 5 8", "cat dog")
    ]
    requests, told = [Request(tuple(tokenizer(text)["input_ids"]), 0) for text in texts], []
    settings = {"temperature": 0, "max_tokens": 20, "stop": (tokenizer.eos_token_id,)}
    with VllmEngine(TINY, dtype="float32", max_length=80, chunk=8) as engine:
        whole = engine.draw(requests, **settings, advance=told.append)
        vllm = engine.draw(requests, **settings, stop_texts=("=", " "))
    with TransformersEngine(TINY, dtype="float32", chunk=8, pass_tokens=64) as engine:
        found = engine.draw(requests, **settings, stop_texts=("=", " "))
    for a, b, c in zip(whole, vllm, found, strict=True):
        assert (b.token_ids, b.finish_reason) == (c.token_ids, c.finish_reason)
        assert b.token_ids == a.token_ids[: len(b.token_ids)]
    assert sum(len(a.token_ids) > len(b.token_ids) for a, b in zip(whole, vllm, strict=True)) > 3
    assert sum(told) == len(requests)


# ---- two engines, one distribution


@pytest.fixture(scope="module", params=["smollm2", "tiny"])
def base(request, tmp_path_factory):
    """SmolLM2, and the tiny base: an OLMo of head size 32, the smallest that vLLM takes."""
    folder, start_text = TINY, None
    if request.param == "smollm2":
        folder, start_text = tmp_path_factory.mktemp("smollm2"), "<|endoftext|>"
        bases.prepare(folder, bases.resolve("asset:smollm2").params)
    tokenizer = tokenizers.load_tokenizer(folder)
    start = tokenizers.start_token(tokenizer, start_text)
    return request.param, folder, start, tokenizers.end_tokens(tokenizer, start)


@pytest.fixture(scope="module")
def drawn(base):
    """The same requests with both engines, many more for the tiny base."""
    name, folder, start, stop = base
    requests = [Request((start,), 7_000_000 + i) for i in range(24 if name == "smollm2" else 300)]
    settings = {"dtype": "float32", "max_length": 40, "chunk": 24, "pass_tokens": 1024}
    found, others = [], set(multiprocessing.active_children())  # workers that other tests left idle
    for engine_name in ("vllm", "transformers"):
        with sampling.open_engine(engine_name, folder, **settings) as engine:
            found.append(engine.draw(requests, temperature=1.0, max_tokens=24, stop=stop))
        started = set(multiprocessing.active_children()) - others
        assert not started  # vLLM is gone, with all of its memory
    return found


@pytest.mark.slow
def test_samples_differ(drawn, base):
    """Few of the tiny base are equal: its facts are whole documents, which fair sampling repeats."""
    different = len({tuple(c.token_ids) for c in drawn[0]})
    assert different == len(drawn[0]) if base[0] == "smollm2" else different > 200


@pytest.mark.slow
def test_an_end_token_is_kept_and_ends_the_sample(drawn, base):
    stop = base[3]
    for completion in (*drawn[0], *drawn[1]):
        assert len(completion.token_ids) == len(completion.logprobs) <= 24
        ended = completion.token_ids[-1] in stop
        assert completion.finish_reason == ("stop" if ended else "length")
        assert not set(completion.token_ids[:-1]) & set(stop)


@pytest.mark.slow
def test_vllm_log_probabilities_are_those_of_the_forward_pass(drawn, base):
    """vLLM's log p of its own tokens equals transformers' (fp32, other kernels)."""
    name, folder, start, _ = base
    model = loading.load(folder, dtype="float32")
    few, atol = (6, 2e-3) if name == "smollm2" else (100, 1e-3)
    with torch.inference_mode():
        for completion in drawn[0][:few]:
            ids = torch.tensor([[start, *completion.token_ids]])
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            np.testing.assert_allclose(completion.logprobs, logp.numpy(), atol=atol)


@pytest.mark.slow
def test_engines_sample_from_the_same_distribution(drawn, base):
    """Mean log p per token of the two engines' samples agrees within 3 standard errors (4 for few)."""

    def mean(completions):
        sums = np.array([sum(c.logprobs) for c in completions])
        n = np.array([len(c.logprobs) for c in completions], float)
        value = sums.sum() / n.sum()
        return value, (sums - value * n).std(ddof=1) / n.mean() / np.sqrt(len(n))

    (a, ea), (b, eb) = mean(drawn[0]), mean(drawn[1])
    assert abs(a - b) < (4 if base[0] == "smollm2" else 3) * np.hypot(ea, eb)
