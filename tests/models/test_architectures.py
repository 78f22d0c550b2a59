"""Architectures that people fine-tune, with tiny random weights, against transformers' own passes and `generate`.

Sequences are longer than every window. Each architecture agrees in fp32, or is refused before work begins.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cfutils.data import mixing
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.evaluation import token_scores
from cfutils.models import packing, prefix_trees
from cfutils.models.generation import decoders
from cfutils.models.generation.decoders import Way
from cfutils.models.generation.transformers_engine import continue_all
from cfutils.models.generation.types import Request
from cfutils.models.prefix_trees import Text
from cfutils.profiles import Execution
from cfutils.training.loop import Loop
from cfutils.training.settings import Tuning

VOCABULARY, WINDOW, END = 97, 6, 2
TOKENS = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=END, pad_token_id=0)
SIZE = dict(TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128)  # fmt: skip
HALF_WINDOW = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
STATES = dict(TOKENS, hidden_size=32, state_size=8, num_hidden_layers=2)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
MLA = dict(num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
           v_head_dim=8, moe_intermediate_size=16, n_routed_experts=4, n_group=1, topk_group=1)  # fmt: skip
MAMBA_LAYERS = dict(mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_chunk_size=4)


@dataclass(frozen=True)
class Architecture:
    """A type of model, a small configuration of it, and how documents and prompts go through it."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    packed: bool = True
    way: Way = Way.PACKED


PADDED = dict(packed=False, way=Way.PADDED)
ARCHITECTURES = {
    "gpt2": Architecture("gpt2", dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=128,
                                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    "llama": Architecture("llama", SIZE),
    "qwen2": Architecture("qwen2", SIZE),
    "qwen2, window": Architecture(
        "qwen2", dict(SIZE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": Architecture("qwen3", dict(SIZE, head_dim=8)),
    "gemma2": Architecture("gemma2", dict(SIZE | HALF_WINDOW, head_dim=8, query_pre_attn_scalar=8)),
    "gemma3": Architecture("gemma3_text", dict(SIZE | HALF_WINDOW, head_dim=8, query_pre_attn_scalar=8)),
    "mistral, window": Architecture("mistral", dict(SIZE, sliding_window=WINDOW)),
    "phi3, window": Architecture("phi3", dict(SIZE, sliding_window=WINDOW)),
    "olmo2": Architecture("olmo2", SIZE),
    "olmo3": Architecture("olmo3", SIZE | HALF_WINDOW),
    "granite": Architecture("granite", dict(SIZE, logits_scaling=3.0)),
    "cohere": Architecture("cohere", SIZE),
    "cohere2": Architecture("cohere2", SIZE | HALF_WINDOW),
    "opt": Architecture("opt", dict(TOKENS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, dropout=0.0,
                                    num_attention_heads=4, word_embed_proj_dim=16, max_position_embeddings=128)),
    "gpt-neox": Architecture("gpt_neox", SIZE),
    "mixtral, window": Architecture("mixtral", dict(SIZE | EXPERTS, sliding_window=WINDOW)),
    "deepseek v3": Architecture("deepseek_v3", SIZE | MLA, way=Way.PADDED),  # caches what keys are made from
    "llama4, chunks": Architecture("llama4_text", dict(
        SIZE | EXPERTS, attention_chunk_size=WINDOW, layer_types=["chunked_attention", "full_attention"],
        head_dim=8, intermediate_size_mlp=48, no_rope_layers=[1, 0], moe_layers=[1])),
    "gemma4": Architecture("gemma4_text", dict(  # the last two layers attend to keys of the first two
        SIZE, num_hidden_layers=4, num_kv_shared_layers=2, sliding_window=WINDOW, head_dim=8, global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"] * 2, vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8), way=Way.PADDED),
    "minimax m3, blocks": Architecture("minimax_m3_vl_text", dict(
        SIZE | EXPERTS, head_dim=8, dense_intermediate_size=48, shared_intermediate_size=16, rotary_dim=8,
        layer_types=["minimax_m3_sparse", "full_attention"], index_n_heads=2, index_head_dim=8,
        index_block_size=4, index_topk_blocks=2), packed=False, way=Way.ALIKE),
    "bloom": Architecture("bloom", dict(TOKENS, hidden_size=32, n_layer=2, n_head=4,
                                        hidden_dropout=0.0, attention_dropout=0.0), **PADDED),
    "gpt-oss": Architecture("gpt_oss", dict(SIZE | EXPERTS | HALF_WINDOW, head_dim=8), **PADDED),
    "mamba": Architecture("mamba", STATES, **PADDED),
    "mamba2": Architecture("mamba2", dict(STATES, num_heads=4, head_dim=16, n_groups=1, chunk_size=4), **PADDED),
    "falcon mamba": Architecture("falcon_mamba", STATES, **PADDED),
    "jamba": Architecture("jamba", dict(SIZE, attn_layer_offset=1, attn_layer_period=2, num_experts=2,
                                        mamba_d_state=8, mamba_dt_rank=4), **PADDED),
    "zamba2": Architecture("zamba2", dict(SIZE, num_key_value_heads=4, mamba_d_state=8, mamba_headdim=16,
                                          n_mamba_heads=4, mamba_ngroups=1, chunk_size=4, num_mem_blocks=1,
                                          layers_block_type=["mamba", "hybrid"], adapter_rank=8), **PADDED),
    "bamba": Architecture("bamba", dict(SIZE | MAMBA_LAYERS, attn_layer_indices=[1]), **PADDED),
    "granite 4": Architecture("granitemoehybrid", dict(SIZE | EXPERTS | MAMBA_LAYERS, shared_intermediate_size=16,
                                                       layer_types=["mamba", "attention"]), **PADDED),
    "lfm2": Architecture("lfm2", dict(SIZE, layer_types=["conv", "full_attention"]), **PADDED),
}  # fmt: skip

EXECUTION = Execution(
    engine="transformers", chunk=4, pass_tokens=64, gradient_checkpointing=False, checkpoint_minutes=5.0,
    trust_remote_code=False,
)  # fmt: skip
TUNING = Tuning(
    seed=0, lr=1e-3, epochs=1, batch_size=4, warmup=0.0, weight_decay=0.0, clip=1e9, dtype="float32",
    autocast=False, ratio=None, replay_weight=None, replay_loss="nll", train="all", l2_weight=None, lora_rank=None,
)  # fmt: skip


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


def made(kind: str, config: dict[str, Any], *, tied: bool = False) -> nn.Module:
    """A model whose matrices are large enough for errors to show; the same at each call."""
    torch.manual_seed(0)
    made_of = AutoConfig.for_model(kind, **config, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(made_of).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.ndim > 1 and "A_log" not in key:
                p.normal_(std=0.2)
    return model


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


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("recurrent_gemma", dict(TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, lru_width=32,
                                num_attention_heads=4, head_dim=8, block_types=["recurrent", "attention"])),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_scored_is_refused(kind, config):
    with pytest.raises(UserError, match=r"cannot be scored .* Choose another decoder"):
        packing.prepare(made(kind, config))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("rwkv", dict(TOKENS, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)),
        ("openai-gpt", dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)),
    ],
)
def test_a_model_without_a_cache_that_rows_can_leave_samples_nothing(kind, config):
    model = made(kind, config)
    assert packing.prepare(model)
    with pytest.raises(UserError, match=r"cannot sample here: .* Choose a base"):
        continue_all(model, [Request((5,), 0)], temperature=1.0, max_tokens=2, stop=(END,), limit=8)
