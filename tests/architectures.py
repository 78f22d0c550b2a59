"""Architectures that people fine-tune, with tiny random weights, for tests of models and the compatibility table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cfutils.models.generation.decoders import Way
from cfutils.profiles import Execution
from cfutils.training.settings import Tuning

VOCABULARY, WINDOW, END = 97, 6, 2
TOKENS = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=END, pad_token_id=0)
SIZE = dict(TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512)  # fmt: skip
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
    "gpt2": Architecture("gpt2", dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=512,
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
    "olmo": Architecture("olmo", SIZE),
    "olmo2": Architecture("olmo2", SIZE),
    "olmo3": Architecture("olmo3", SIZE | HALF_WINDOW),
    "granite": Architecture("granite", dict(SIZE, logits_scaling=3.0)),
    "cohere": Architecture("cohere", SIZE),
    "cohere2": Architecture("cohere2", SIZE | HALF_WINDOW),
    "opt": Architecture("opt", dict(TOKENS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, dropout=0.0,
                                    num_attention_heads=4, word_embed_proj_dim=16, max_position_embeddings=512)),
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

UNSCORED = {
    "recurrent gemma": Architecture("recurrent_gemma", dict(
        TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, lru_width=32, num_attention_heads=4,
        head_dim=8, block_types=["recurrent", "attention"])),
}  # fmt: skip
"""Those whose scores would be wrong: refused when they are loaded."""
UNSAMPLED = {
    "rwkv": Architecture("rwkv", dict(TOKENS, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)),
    "openai-gpt": Architecture("openai-gpt", dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)),
}
"""Those that can be scored and tuned, and draw no samples."""

EXECUTION = Execution(
    engine="transformers", chunk=4, pass_tokens=64, gradient_checkpointing=False, checkpoint_minutes=5.0,
    trust_remote_code=False,
)  # fmt: skip
TUNING = Tuning(
    seed=0, lr=1e-3, epochs=1, batch_size=4, warmup=0.0, weight_decay=0.0, clip=1e9, dtype="float32",
    autocast=False, ratio=None, replay_weight=None, replay_loss="nll", train="all", l2_weight=None, lora_rank=None,
)  # fmt: skip


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
