"""Samples follow the base's own distribution; the job writes complete records and survives a kill."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from cfutils.errors import UserError
from cfutils.models import loading, tokenizers
from cfutils.models.generation import sampling
from cfutils.models.generation.transformers_engine import TransformersEngine
from cfutils.models.generation.types import Request
from cfutils.models.generation.vllm_engine import VllmEngine

N_VOCABULARY = 300


@pytest.fixture(scope="module")
def engine(tiny_base):
    with TransformersEngine(tiny_base, dtype="float32", chunk=16, pass_tokens=1024) as engine:
        yield engine


@pytest.fixture(scope="module")
def model(tiny_base):
    return loading.load(tiny_base, dtype="float32")


def drawing(engine, n, *, temperature=1.0, max_tokens=16, stop=(0,), seed=0, prompt=(0,)):
    return engine.draw(
        [Request(prompt, seed + i) for i in range(n)], temperature=temperature,
        max_tokens=max_tokens, stop=stop,
    )  # fmt: skip


@torch.inference_mode()
def forward_logprobs(model, prompt, tokens):
    """log p of each token at T = 1, by one plain forward pass."""
    ids = torch.tensor([[*prompt, *tokens]])
    logp = model(ids).logits[0, :-1].log_softmax(-1)
    return logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0].numpy()


# ---- the engine


def test_different_seeds_give_different_samples_and_the_same_seed_the_same(engine):
    drawn = drawing(engine, 30)
    assert len({tuple(c.token_ids) for c in drawn}) == 30
    assert drawn == drawing(engine, 30)


def test_a_sample_does_not_depend_on_what_is_drawn_beside_it(engine):
    together = drawing(engine, 12, seed=50)
    alone = [drawing(engine, 1, seed=50 + i)[0] for i in range(12)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_prompts_of_several_lengths_do_not_disturb_each_other(engine, model):
    """Log-probabilities are those of forward passes without padding."""
    prompts = [(0,), (0, 5, 6, 7, 8, 9, 10), (40, 41, 42)]
    drawn = engine.draw(
        [Request(p, i) for i, p in enumerate(prompts)], temperature=1.0, max_tokens=12, stop=(0,)
    )
    for prompt, c in zip(prompts, drawn, strict=True):
        expected = forward_logprobs(model, prompt, c.token_ids)
        np.testing.assert_allclose(c.logprobs, expected, atol=1e-4)


def test_a_stop_token_ends_a_sample_and_is_kept(engine):
    """Sixty stop tokens, so that samples end at many lengths and rows are dropped."""
    stop = tuple(range(60))
    drawn = drawing(engine, 40, stop=stop, max_tokens=8)
    assert {c.finish_reason for c in drawn} == {"stop", "length"}
    for c in drawn:
        assert not set(c.token_ids[:-1]) & set(stop)
        ended = c.token_ids[-1] in stop
        assert c.finish_reason == ("stop" if ended else "length")
        assert ended or len(c.token_ids) == 8
        assert len(c.logprobs) == len(c.token_ids)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_log_probabilities_are_the_bases_own_at_temperature_1(engine, model, temperature):
    for c in drawing(engine, 6, temperature=temperature, stop=tuple(range(60)), max_tokens=10):
        expected = forward_logprobs(model, (0,), c.token_ids)
        np.testing.assert_allclose(c.logprobs, expected, atol=1e-4)


def test_a_lower_temperature_samples_more_probable_tokens(engine):
    means = [
        np.mean([c.logprobs[0] for c in drawing(engine, 200, temperature=t, max_tokens=1)])
        for t in (0.3, 1.0, 2.0)
    ]
    assert means[0] > means[1] > means[2]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_tokens_follow_the_softmax(engine, model, temperature):
    """2000 samples: each token's frequency within 4 standard errors where 5 or more are expected.

    Rarer tokens are pooled. Seeds are fixed, so the test cannot fail by chance once it has passed.
    """
    n = 2000
    drawn = drawing(engine, n, temperature=temperature, max_tokens=1, seed=1000)
    counts = np.bincount([c.token_ids[0] for c in drawn], minlength=N_VOCABULARY)
    with torch.inference_mode():
        logits = model(torch.tensor([[0]])).logits[0, -1] / temperature
    p = logits.softmax(-1).double().numpy()
    common = n * p >= 5
    observed = [*counts[common], counts[~common].sum()]
    p = np.array([*p[common], p[~common].sum()])
    assert len(p) > 20
    z = (observed - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(z).max() < 4
    chi2 = (((observed - n * p) ** 2) / (n * p)).sum()
    assert chi2 < len(p) - 1 + 4 * np.sqrt(2 * (len(p) - 1))  # mean and deviation of chi-square


# ---- the job


class Killed(BaseException):
    """In place of a kill."""


class Fragile:
    """An engine that dies at a given call, and records the seeds that it was given."""

    def __init__(self, engine, *, calls=10**9):
        self.engine, self.left, self.drawn = engine, calls, []

    def draw(self, requests, **settings):
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.drawn += [r.seed for r in requests]
        return self.engine.draw(requests, **settings)


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return tokenizers.load_tokenizer(tiny_base)


@pytest.fixture
def job(engine, tokenizer, tmp_path):
    """Draw ten samples in chunks of four into a folder; return the frame."""

    def run(name="work", *, engine=engine, **settings):
        work = tmp_path / name
        work.mkdir(exist_ok=True)
        settings = {
            "prompts": [(0,)] * 10, "first_seed": 1_000_000, "temperature": 1.0, "max_tokens": 16,
            "stop": (0,), "chunk": 4, **settings,
        }  # fmt: skip
        tokens = sampling.draw(work, engine=lambda: engine, tokenizer=tokenizer, **settings)
        if settings.get("share"):
            assert tokens is None
            return sorted(path.name for path in work.iterdir())
        assert [path.name for path in work.iterdir()] == ["samples.parquet"]
        frame = pd.read_parquet(work / "samples.parquet")
        assert tokens == frame["token_ids"].map(len).sum()
        return frame

    return run


def test_records_are_complete(job, model, tokenizer):
    frame = job(temperature=0.8)
    assert list(frame) == [
        "index", "seed", "temperature", "prompt_ids", "token_ids", "logprobs", "finish_reason", "text"
    ]  # fmt: skip
    assert frame["index"].tolist() == list(range(10))
    assert frame["seed"].tolist() == [1_000_000 + i for i in range(10)]
    assert set(frame["temperature"]) == {0.8}
    for row in frame.itertuples():
        assert list(row.prompt_ids) == [0]
        assert row.text == tokenizer.decode(row.token_ids, skip_special_tokens=True)
        expected = forward_logprobs(model, row.prompt_ids, list(row.token_ids))
        np.testing.assert_allclose(row.logprobs, expected, atol=1e-4)


def test_a_killed_job_resumes_and_gives_the_same_samples(job, engine):
    """Chunks of 4, 4 and 2; killed before the third: 8 are kept, 2 are drawn."""
    whole = job("whole")
    with pytest.raises(Killed):
        job("killed", engine=Fragile(engine, calls=2))
    rest = Fragile(engine)
    again = job("killed", engine=rest)
    assert rest.drawn == [1_000_008, 1_000_009]
    pd.testing.assert_frame_equal(again, whole)


def test_shares_of_several_processes_are_joined_without_another_draw(job, engine):
    """Chunks of 4, 4 and 2: the first share has the first and the last."""
    whole, first, second = job("whole"), Fragile(engine), Fragile(engine)
    assert job("shared", engine=second, share=(1, 2)) == ["part-000004-000008.parquet"]
    assert len(job("shared", engine=first, share=(0, 2))) == 3
    assert [seed - 1_000_000 for seed in first.drawn] == [0, 1, 2, 3, 8, 9]
    assert [seed - 1_000_000 for seed in second.drawn] == [4, 5, 6, 7]
    pd.testing.assert_frame_equal(job("shared", engine=Fragile(engine, calls=0)), whole)


def test_a_killed_job_may_resume_with_another_size_of_chunks(job, engine):
    """Killed after 0-3; chunks of six then are 0-5 and 6-9, and the part 0-3 is not used."""
    whole = job("whole")
    with pytest.raises(Killed):
        job("killed", engine=Fragile(engine, calls=1))
    rest = Fragile(engine)
    again = job("killed", engine=rest, chunk=6)
    assert rest.drawn == [1_000_000 + i for i in range(10)]
    pd.testing.assert_frame_equal(again.drop(columns="logprobs"), whole.drop(columns="logprobs"))


def test_the_size_of_a_chunk_does_not_change_the_samples(job):
    """With this engine, which seeds every request."""
    one, two = (job(str(n), chunk=n)["token_ids"].map(list).tolist() for n in (3, 64))
    assert one == two


def test_the_sets_of_samples_have_disjoint_seeds(job):
    """So no probe is a sample that replay may contain, whatever the number of samples."""
    first = [number * sampling.SEED_BLOCK for number in sampling.SETS.values()]
    drawn = pd.concat([job(str(seed), first_seed=seed) for seed in first])
    assert drawn["seed"].is_unique and len(drawn) == 10 * len(sampling.SETS)
    assert drawn["token_ids"].map(tuple).is_unique
    with pytest.raises(UserError, match=r"number of samples = 1000001 .* at most 1,000,000"):
        job(prompts=[(0,)] * (sampling.SEED_BLOCK + 1))


def test_contextual_samples_continue_their_prompts(job):
    prompts = [(3, 4, 5), (6, 7)] * 2
    frame = job(prompts=prompts)
    assert [tuple(ids) for ids in frame["prompt_ids"]] == prompts
    assert len(frame) == 4


def test_each_engine_is_opened_by_its_name(tiny_base):
    settings = {"dtype": "float32", "max_length": 40, "chunk": 4, "pass_tokens": 64}
    opened = [sampling.open_engine(name, tiny_base, **settings) for name in ("transformers", "vllm")]
    assert [type(engine) for engine in opened] == [TransformersEngine, VllmEngine]
    with pytest.raises(UserError, match="engine = 'hf' is not allowed: 'vllm' or 'transformers'"):
        sampling.open_engine("hf", tiny_base, **settings)


# ---- description


def test_describe_by_hand():
    """Three samples of 2, 2 and 1 tokens: sums of log p -2, -2, -3.

    logprob = -7 / 5 = -1.4. Residuals sum - mean * length: 0.8, 0.8, -1.6; over the mean length 5/3:
    0.48, 0.48, -0.96, whose deviation (n - 1) is sqrt((2 * 0.2304 + 0.9216) / 2) = sqrt(0.6912);
    over sqrt(3): sqrt(0.2304) = 0.48. Unigrams 1 2 1 2 3: 3 of 5; bigrams twice (1 2): 1 of 2;
    no trigrams: 0. Two of three samples are equal.
    """
    frame = pd.DataFrame(
        {
            "source": "context_free",
            "temperature": 1.0,
            "token_ids": [[1, 2], [1, 2], [3]],
            "logprobs": [[-1.0, -1.0], [-0.5, -1.5], [-3.0]],
            "finish_reason": ["stop", "length", "stop"],
        }
    )
    row = sampling.describe(frame).iloc[0]
    assert (row.samples, row.tokens, row.mean_length) == (3, 5, pytest.approx(5 / 3))
    assert row.eos_share == row.duplicates == pytest.approx(2 / 3)
    assert row.logprob == pytest.approx(-1.4) and row.logprob_stderr == pytest.approx(0.48)
    assert (row.distinct_1, row.distinct_2, row.distinct_3) == (0.6, 0.5, 0.0)
