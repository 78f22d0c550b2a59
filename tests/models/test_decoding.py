"""The decoding loop: on a known distribution, against a reference on a real architecture, and by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import Cache, LlamaConfig
from transformers.utils import ModelOutput

from cfutils.models import loading
from cfutils.models.generation import decoders, transformers_engine
from cfutils.models.generation.decoders import Way
from cfutils.models.generation.transformers_engine import choose, continue_all
from cfutils.models.generation.types import Request

P = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]  # p(next | last)


class Markov:
    """A model of three tokens, the next given by the last alone; records the rows of each pass."""

    device, dtype = torch.device("cpu"), torch.float32
    config = LlamaConfig(vocab_size=3, num_hidden_layers=1, attn_implementation="eager")

    def __init__(self):
        self.logits, self.rows = torch.tensor(P).log(), []

    def prepare_inputs_for_generation(self, ids, **given):
        return {"input_ids": ids, **given}

    def forward(self, input_ids, past_key_values=None, **_):
        self.rows.append(len(input_ids))
        return ModelOutput(logits=self.logits[input_ids], past_key_values=past_key_values or Cache(layers=[]))

    __call__ = forward


def draw(requests, *, temperature=1.0, max_tokens=1, stop=(), **more):
    model = Markov()
    assert decoders.way(model) is Way.PADDED
    model.rows.clear()
    found = continue_all(
        model, requests, temperature=temperature, max_tokens=max_tokens, stop=stop, limit=8, **more
    )
    return found, model.rows


def test_temperature_0_takes_the_most_probable_token():
    """0 -> 0; 1 -> 1; 2 -> 2, whatever the seed; log p is that at temperature 1."""
    found, _ = draw([Request((2, last), seed) for last in range(3) for seed in range(3)],
                    temperature=0, max_tokens=4)  # fmt: skip
    for i, completion in enumerate(found):
        last = i // 3
        assert completion.token_ids == [last] * 4
        assert completion.logprobs == pytest.approx([np.log(P[last][last])] * 4)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_distribution(temperature):
    """4000 pairs: chi-square over the 9 possible ones below 26.1, its 99.9th percentile (8 degrees)."""
    found, _ = draw([Request((0,), i) for i in range(4000)], temperature=temperature, max_tokens=2)
    p = np.array(P) ** (1 / temperature)
    p /= p.sum(1, keepdims=True)
    seen = Counter(tuple(c.token_ids) for c in found)
    expected = {(a, b): 4000 * p[0][a] * p[a][b] for a in range(3) for b in range(3)}
    assert sum((seen[k] - n) ** 2 / n for k, n in expected.items()) < 26.1
    for completion in found[:50]:
        a, b = completion.token_ids
        assert completion.logprobs == pytest.approx(np.log([P[0][a], P[a][b]]))


def test_a_sample_does_not_depend_on_its_neighbours():
    """They end earlier, have other prompts, and come before or after it in the batch."""
    one = Request((0, 1), 42)
    (alone,), _ = draw([one], max_tokens=30, stop=(2,))
    others = [Request((0,) * n, n) for n in range(1, 9)]
    for place in (0, 4, 8):
        requests = [*others[:place], one, *others[place:]]
        found, _ = draw(requests, max_tokens=30, stop=(2,))
        assert found[place] == alone
    (other,), _ = draw([Request((0, 1), 43)], max_tokens=30)
    assert other.token_ids != draw([one], max_tokens=30)[0][0].token_ids


def test_finished_rows_are_dropped():
    found, rows = draw([Request((0,), i) for i in range(50)], max_tokens=40, stop=(2,))
    lengths = [len(c.token_ids) for c in found]
    expected, size = [], 50  # rows are dropped once an eighth of the batch is finished
    for step in range(max(lengths)):
        expected.append(size)
        left = sum(n > step + 1 for n in lengths)
        size = left if left <= size * 7 / 8 else size
    assert rows == expected
    assert len(set(rows)) > 4 and len(rows) < 40
    assert {c.finish_reason for c in found} == {"stop"}
    assert all(c.token_ids[-1] == 2 and 2 not in c.token_ids[:-1] for c in found)


def test_enough_ends_a_row_at_the_next_check():
    """Checks after tokens 16 and 32: rows that begin with 1 end at the first, the others go on to 40."""
    requests = [Request((0,), i) for i in range(20)]
    plain, _ = draw(requests, max_tokens=40)
    found, rows = draw(requests, max_tokens=40, enough=lambda ids: ids[0] == 1)
    early = [c.token_ids[0] == 1 for c in plain]
    assert 0 < sum(early) < 20
    for a, b, is_early in zip(plain, found, early, strict=True):
        n = 16 if is_early else 40
        assert b.token_ids == a.token_ids[:n]
        assert b.finish_reason == ("stop" if is_early else "length")
    assert 20 - sum(early) <= 20 * 7 / 8
    assert rows == [20] * 16 + [20 - sum(early)] * 24
    found, rows = draw(requests, max_tokens=40, enough=lambda ids: len(ids) > 16)
    assert {len(c.token_ids) for c in found} == {32} and len(rows) == 32


# ---- one token


def test_a_token_is_the_first_whose_cumulative_probability_exceeds_the_number(monkeypatch):
    """p = (.1 .2 0 .3 .4), cumulative .1 .3 .3 .6 1, in pieces of two tokens, the last one padded."""
    monkeypatch.setattr(transformers_engine, "PIECE", 2)
    p = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4])
    numbers = [0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 1 - 1e-16]
    tokens, logprobs = choose(
        (p.log() + 2).repeat(8, 1), torch.tensor(numbers, dtype=torch.float64), temperature=1.0
    )
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    torch.testing.assert_close(logprobs, p.log()[tokens])


def test_temperature_sharpens_the_sample_and_not_the_log_probability():
    """At T = 1/2, p = (.2 .8) becomes (.04 .64) / .68 = (1/17, 16/17)."""
    logits = torch.tensor([[0.2, 0.8]]).log().repeat(2, 1)
    numbers = torch.tensor([0.99 / 17, 1.01 / 17], dtype=torch.float64)
    tokens, logprobs = choose(logits, numbers, temperature=0.5)
    assert tokens.tolist() == [0, 1]
    torch.testing.assert_close(logprobs, torch.tensor([0.2, 0.8]).log())


def test_a_token_of_probability_zero_is_never_sampled():
    """Most of the vocabulary at minus infinity, numbers up to the last one below 1."""
    torch.manual_seed(0)
    logits = torch.randn(2000, 700)
    there = torch.rand(2000, 700) < 0.02
    there[:, 350] = True
    numbers = torch.cat([torch.rand(1990, dtype=torch.float64), torch.full((10,), 1 - 1e-16).double()])
    tokens, logprobs = choose(logits.masked_fill(~there, -torch.inf), numbers, temperature=1.0)
    assert there.gather(1, tokens[:, None]).all() and torch.isfinite(logprobs).all()


@pytest.mark.parametrize(("top_p", "temperature", "kept"), [
    (1.0, 1.0, {0, 1, 2, 3}),
    (0.951, 1.0, {0, 1, 2, 3}),  # the first three have .95, the first two .8
    (0.949, 1.0, {0, 1, 3}),
    (0.801, 1.0, {0, 1, 3}),
    (0.799, 1.0, {1, 3}),
    (0.499, 1.0, {3}),
    (0.001, 1.0, {3}),  # never empty
    (0.80, 0.5, {1, 3}),  # squares, .25 .09 .0225 .0025 of .365: .685 .247 .062 .007
    (0.68, 0.5, {3}),
    (0.80, 2.0, {0, 1, 3}),  # roots, .707 .548 .387 .224 of 1.866: .379 .294 .208 .120
])  # fmt: skip
def test_the_nucleus_by_hand(monkeypatch, top_p, temperature, kept):
    """p = (.15 .3 .05 .5): numbers all over [0, 1) draw every token of the nucleus, and no other."""
    monkeypatch.setattr(transformers_engine, "PIECE", 2)
    p = torch.tensor([0.15, 0.3, 0.05, 0.5], dtype=torch.float64)
    numbers = torch.linspace(0, 1 - 1e-9, 4001, dtype=torch.float64)
    logits = (p.log() + 3).repeat(len(numbers), 1)
    tokens, logprobs = choose(logits, numbers, temperature=temperature, top_p=top_p)
    assert set(tokens.tolist()) == kept
    torch.testing.assert_close(logprobs, p.log()[tokens], check_dtype=False)  # of the whole distribution, at T = 1
    law = torch.where(torch.tensor([i in kept for i in range(4)]), p ** (1 / temperature), 0)
    shares = torch.bincount(tokens, minlength=4) / len(numbers)
    torch.testing.assert_close(shares, law / law.sum(), atol=1e-3, rtol=0, check_dtype=False)


def test_of_equal_probabilities_the_first_are_in_the_nucleus():
    """Four tokens of 1/4 each: half of them for top-p 0.5."""
    numbers = torch.linspace(0, 1 - 1e-9, 101, dtype=torch.float64)
    tokens, _ = choose(torch.zeros(101, 4), numbers, temperature=1.0, top_p=0.5)
    assert set(tokens.tolist()) == {0, 1}


# ---- against a reference


def reference(model, request, *, max_tokens, stop):
    """A full forward pass per token, a plain cumulative sum in fp64, the same uniform numbers."""
    uniforms = transformers_engine._uniforms(request.seed, max_tokens)
    ids, drawn = list(request.prompt), []
    for number in uniforms:
        sums = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).cumsum(-1)
        drawn.append(int(torch.searchsorted(sums, number * sums[-1], right=True)))
        ids.append(drawn[-1])
        if drawn[-1] in stop:
            break
    return drawn


@pytest.mark.parametrize("packed", [True, False])
@torch.inference_mode()
def test_tokens_are_those_of_full_forward_passes(tiny_base, packed):
    """Prompts of different length, rows that end early; with our cache and with the model's own."""
    rng = np.random.default_rng(0)
    prompts = [tuple(map(int, rng.integers(1, 300, 1 + i % 5))) for i in range(24)]
    check(tiny_base, prompts, packed=packed)


@torch.inference_mode()
def test_a_common_prefix_is_computed_once(tiny_base):
    """70 common tokens, 12 endings of 1 to 3, three of them twice: a trunk of 70, then the endings."""
    rng = np.random.default_rng(1)
    start = tuple(map(int, rng.integers(1, 300, 70)))
    ends = [tuple(map(int, rng.integers(1, 300, 1 + i % 3))) for i in range(9)]
    prompts = [start + end for end in (*ends, *ends[:3])]
    passes = check(tiny_base, prompts, packed=True)
    assert passes[:2] == [70, sum(map(len, ends))]
    assert max(passes[2:]) <= 12  # then one token per row


def check(folder, prompts, *, packed):
    """Compare with the reference; return the number of tokens in each forward pass."""
    model, passes = loading.load(folder, dtype="float32"), []
    if not packed:
        model.set_attn_implementation("sdpa")
    requests = [Request(prompt, i) for i, prompt in enumerate(prompts)]
    stop = tuple(range(40))
    assert decoders.way(model) is (Way.PACKED if packed else Way.PADDED)
    hook = model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: passes.append(args[0].numel())
    )
    found = continue_all(model, requests, temperature=1.0, max_tokens=20, stop=stop, limit=30)
    hook.remove()
    for request, completion in zip(requests, found, strict=True):
        assert completion.token_ids == reference(model, request, max_tokens=20, stop=stop)
    lengths = {len(c.token_ids) for c in found}
    assert len(lengths) > 5 and 20 in lengths
    return passes
