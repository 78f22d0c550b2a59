"""Stand-ins for bases of the hub: their architecture and the kind of their tokenizer, tiny, with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY = 700
"""Tokens of a stand-in's tokenizer: bytes, frequent pairs, special tokens."""
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.1,
}  # fmt: skip
"""Heads have 32 dimensions, the fewest that vLLM takes on a CPU."""
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
R1_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{% set ns.system = message['content'] %}"
    "{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
"""R1-Distill's own template without tools: it opens the thought itself, and drops thoughts of earlier turns."""


@dataclass(frozen=True)
class StandIn:
    """How the stand-in of one base is made."""

    model_type: str
    """The architecture, by transformers' name."""
    special: tuple[str, ...]
    """Special tokens, first ids first."""
    tokenizer: dict[str, Any]
    """tokenizer_config.json."""
    config: dict[str, Any] = field(default_factory=dict)
    """Values of config.json beside `SIZES`; tokens stand for their ids."""
    generation: dict[str, Any] = field(default_factory=dict)
    """generation_config.json; tokens stand for their ids."""
    split: str | None = None
    """Regular expression of the pre-tokenizer; None is GPT-2's."""
    adds_start: bool = False
    """Whether the tokenizer puts its BOS in front of every text."""


OLMO = StandIn(
    "olmo",
    special=("|||IP_ADDRESS|||", "<|padding|>", "<|endoftext|>"),
    # no BOS, on purpose; the old configuration files name an end token that is none
    tokenizer={
        "tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False, "bos_token": None, "unk_token": None,
        "eos_token": "<|endoftext|>", "pad_token": "<|padding|>", "clean_up_tokenization_spaces": False,
    },
    config={"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": True},
    generation={"_from_model_config": True, "eos_token_id": 0, "pad_token_id": 1},
)  # fmt: skip
R1_DISTILL_LLAMA = StandIn(
    "llama",
    special=(
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>",
    ),
    tokenizer={
        "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False, "legacy": True,
        "bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>",
        "pad_token": "<｜end▁of▁sentence｜>", "unk_token": None, "model_max_length": 16384,
        "clean_up_tokenization_spaces": False, "chat_template": R1_TEMPLATE,
    },
    config={
        "bos_token_id": "<｜begin▁of▁sentence｜>", "eos_token_id": "<｜end▁of▁sentence｜>", "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    generation={
        "_from_model_config": True, "bos_token_id": "<｜begin▁of▁sentence｜>",
        "eos_token_id": "<｜end▁of▁sentence｜>", "do_sample": True, "temperature": 0.6, "top_p": 0.95,
    },
    split=LLAMA_3_SPLIT, adds_start=True,
)  # fmt: skip
STAND_INS = {
    "allenai/OLMo-1B-hf": OLMO,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": R1_DISTILL_LLAMA,
}
"""By hub id of the base."""


def write(name: str, folder: Path, texts: Iterable[str]) -> None:
    """Write the stand-in of a base as the hub has it: configuration, tokenizer, safetensors, card.

    texts: what the tokenizer's pairs are counted in.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    stand_in = STAND_INS[name]
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(stand_in, folder, texts)
    named = _with_ids(stand_in.config, ids)
    config = AutoConfig.for_model(stand_in.model_type, vocab_size=ids.pop(None), **SIZES, **named)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    _json(folder / "generation_config.json", _with_ids(stand_in.generation, ids))
    card = f"---\nlicense: apache-2.0\n---\nA stand-in for {name}: random weights. Its numbers mean nothing.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_tokenizer(stand_in: StandIn, folder: Path, texts: Iterable[str]) -> dict[str | None, int]:
    """Write a byte-level BPE; return the ids of its tokens, and under None how many there are."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe, whole = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    if stand_in.split:
        split = pre_tokenizers.Split(Regex(stand_in.split), behavior="isolated")
        whole = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    bpe.pre_tokenizer, bpe.decoder = whole, decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(stand_in.special), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    ids = bpe.get_vocab()
    if stand_in.adds_start:
        start = stand_in.tokenizer["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, ids[start])]
        )
    bpe.save(str(folder / "tokenizer.json"))
    _json(folder / "tokenizer_config.json", stand_in.tokenizer)
    return {**ids, None: len(ids)}


def _with_ids(values: dict[str, Any], ids: dict[str | None, int]) -> dict[str, Any]:
    return {k: ids[v] if k.endswith("_token_id") and isinstance(v, str) else v for k, v in values.items()}


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
