"""Architectures that people fine-tune, with tiny random weights, against transformers' own passes and `generate`.

Sequences are longer than every window. Each architecture agrees in fp32, or is refused before work begins.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    END,
    EXECUTION,
    TUNING,
    UNSAMPLED,
    UNSCORED,
    VOCABULARY,
    Architecture,
    made,
)

from cfutils.data import mixing
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.evaluation import token_scores
from cfutils.models import packing, prefix_trees
from cfutils.models.generation import decoders
from cfutils.models.generation.transformers_engine import continue_all
from cfutils.models.generation.types import Request
from cfutils.models.prefix_trees import Text
from cfutils.training.loop import Loop


def drawn(seed: int, n: int) -> tuple[int, ...]:
    """Tokens at random, none of them special."""
    return tuple(map(int, np.random.default_rng(seed).integers(3, VOCABULARY, n)))


SEQUENCES = [Sequence(drawn(i, n), first) for i, (n, first) in enumerate([(19, 3), (4, 1), (13, 5), (2, 1)])]
PROMPTS = [drawn(10 + i, n) for i, n in enumerate((14, 3, 1))]
NEW = 6
"""Tokens of an answer."""


def texts() -> list[Text]:
    """Two questions behind a beginning of 70 tokens, and one alone, each with three choices."""
    found = []
    for i, context in enumerate([drawn(20, 70) + drawn(21, 5), drawn(20, 70) + drawn(22, 9), drawn(23, 15)]):
        for choice in (drawn(30 + i, n) for n in (1, 3, 8)):
            found.append(Text((*context, *choice)[:-1], choice))
    return found


@dataclass(frozen=True)
class Case:
    """A model as transformers has it, and the same prepared."""

    about: Architecture
    own: Any
    model: Any

    def log_probs(self, ids: tuple[int, ...]) -> torch.Tensor:
        """log p(. | prefix) after each token of one sequence alone, (tokens, vocabulary)."""
        return self.own(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.fixture(scope="module", params=[(n, t) for n in ARCHITECTURES for t in (False, True)],
                ids=lambda p: f"{p[0]}, {'tied' if p[1] else 'untied'}")  # fmt: skip
def case(request):
    torch.set_num_threads(1)
    about = ARCHITECTURES[request.param[0]]
    own = made(about.kind, about.config, tied=request.param[1])
    assert (own.get_output_embeddings().weight is own.get_input_embeddings().weight) == request.param[1]
    model = copy.deepcopy(own)
    assert (packing.prepare(model) is None) == about.packed
    assert decoders.way(model) is about.way
    return Case(about, own, model)


@torch.inference_mode()
def test_token_nlls_are_those_of_each_sequence_alone(case):
    found = token_scores.score(case.model, None, SEQUENCES, limit=40)
    for sequence, scored in zip(SEQUENCES, found, strict=True):
        log_p = case.log_probs(sequence.ids)[sequence.first - 1 : -1]
        wanted = torch.tensor(sequence.ids[sequence.first :])
        np.testing.assert_allclose(scored.nll, -log_p.gather(1, wanted[:, None])[:, 0], atol=1e-4)


@torch.inference_mode()
def test_greedy_answers_are_those_of_generate(case):
    requests = [Request(prompt, 0) for prompt in PROMPTS]
    found = continue_all(case.model, requests, temperature=0, max_tokens=NEW, stop=(END,), limit=40)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        out = case.own.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        assert completion.token_ids == out.sequences[0, len(prompt) :].tolist()
        log_p = torch.cat(out.logits).log_softmax(-1).amax(-1)
        np.testing.assert_allclose(completion.logprobs, log_p, atol=1e-4)


@torch.inference_mode()
def test_log_likelihoods_in_prefix_trees_are_those_of_each_text_alone(case):
    if not case.about.packed:
        with pytest.raises(UserError, match="computes no packed rows"):
            prefix_trees.loglikelihoods(case.model, texts(), limit=60)
        return
    found = prefix_trees.loglikelihoods(case.model, texts(), limit=60)
    for text, (value, greedy) in zip(texts(), found, strict=True):
        log_p = case.log_probs(text.ids)[-len(text.wanted) :]
        wanted = torch.tensor(text.wanted)
        assert value == pytest.approx(log_p.gather(1, wanted[:, None]).sum().item(), abs=1e-4)
        assert greedy == bool((log_p.argmax(-1) == wanted).all())


def test_a_step_descends_the_mean_nll_of_sequences_alone(case):
    """Loss and gradient norm of the trainer's first step against those of one pass for each sequence."""
    own, model = copy.deepcopy(case.own).train(), copy.deepcopy(case.model)
    nll = torch.zeros(())
    for s in SEQUENCES:
        log_p = own(input_ids=torch.tensor([s.ids])).logits[0, s.first - 1 : -1].log_softmax(-1)
        nll = nll - log_p.gather(1, torch.tensor(s.ids[s.first :])[:, None]).sum()
    nll = nll / sum(s.supervised for s in SEQUENCES)
    nll.backward()
    norm = torch.stack([p.grad.square().sum() for p in own.parameters() if p.grad is not None]).sum().sqrt()
    mixed = mixing.mix(SEQUENCES, [], ratio=0.0, seed=0)
    row = Loop(model, None, mixed, tuning=TUNING, execution=EXECUTION)._step(0)
    assert row["target_loss"] == pytest.approx(nll.item(), abs=1e-4)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


# ---- what is refused


@pytest.mark.parametrize("name", UNSCORED)
def test_a_model_that_cannot_be_scored_is_refused(name):
    with pytest.raises(UserError, match=r"cannot be scored .* Choose another decoder"):
        packing.prepare(made(UNSCORED[name].kind, UNSCORED[name].config))


@pytest.mark.parametrize("name", UNSAMPLED)
def test_a_model_without_a_cache_that_rows_can_leave_samples_nothing(name):
    model = made(UNSAMPLED[name].kind, UNSAMPLED[name].config)
    assert packing.prepare(model)
    with pytest.raises(UserError, match=r"cannot sample here: .* Choose a base"):
        continue_all(model, [Request((5,), 0)], temperature=1.0, max_tokens=2, stop=(END,), limit=8)
