"""Tokenizers and chat templates of the families that people fine-tune: their own classes, trained on a few lines.

They differ in what breaks fine-tuning: a BOS of their own or none, a space in front of every text, byte fallback, white
space inside tokens, templates that write the BOS, add a system prompt, or refuse a system role.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CohereTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

MERGED = 150
"""Tokens beyond bytes and special ones."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATES = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
GEMMA_TURNS = (
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + FIRST + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
TEMPLATES = {
    "qwen2": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.' "
             "+ '<|im_end|>\\n' }}{% endif %}" + CHATML,
    "qwen3": CHATML,
    "llama 3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' "
               "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
               "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "phi3": "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
    "gemma2": "{{ bos_token }}" + REFUSES + "{% for m in messages %}" + ALTERNATES + GEMMA_TURNS.replace("FIRST", "''"),
    "gemma3": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
              "{% set first = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}"
              "{% else %}{% set first = '' %}{% endif %}{% for m in messages %}"
              + ALTERNATES + GEMMA_TURNS.replace("FIRST", "(first if loop.first else '')"),
    "mistral": "{{ bos_token }}{% for m in messages %}" + ALTERNATES + "{% if m['role'] == 'user' %}"
               "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}"
               "{% endfor %}",
    "olmo2": "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] }}"
             "{{ eos_token if m['role'] == 'assistant' else '' }}{{ '\\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    "granite": "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] "
               "+ '<|end_of_text|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
               "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
    "cohere": "{{ bos_token }}{% for m in messages %}{% set role = {'system': 'SYSTEM', 'user': 'USER', "
              "'assistant': 'CHATBOT'}[m['role']] %}{{ '<|START_OF_TURN_TOKEN|><|' + role + '_TOKEN|>' "
              "+ m['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}{% if add_generation_prompt %}"
              "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
}  # fmt: skip
"""Chat templates as published, shortened to roles and turns (no tools, no dates)."""
MARKS = {
    "qwen2": ["<|im_start|>", "<|im_end|>"], "qwen3": ["<|im_start|>", "<|im_end|>"],
    "llama 3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "gemma2": ["<start_of_turn>", "<end_of_turn>"], "gemma3": ["<start_of_turn>", "<end_of_turn>"],
    "mistral": ["[INST]", "[/INST]"], "olmo2": [],  # OLMo2's roles are words
    "granite": ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
    "cohere": ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>",
               "<|CHATBOT_TOKEN|>"],
}  # fmt: skip
"""Tokens with a role that the templates write."""


def _bytes_trained(texts: Sequence[str], special: list[str]) -> hf.Tokenizer:
    """Byte-level BPE, as GPT-2's and all that followed it."""
    bpe = hf.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    _train(bpe, texts, special, letters)
    return bpe


def _pieces_trained(texts: Sequence[str], special: list[str]) -> hf.Tokenizer:
    """BPE on letters with a token for each byte, as SentencePiece's: tokens may reach over words' ends."""
    bpe = hf.Tokenizer(models.BPE(byte_fallback=True))
    spaced = [text.replace(" ", "▁") for text in texts]
    letters = sorted({letter for text in spaced for letter in text if letter.isascii() or letter == "▁"} - {"\n"})
    _train(bpe, spaced, [*special, *(f"<0x{i:02X}>" for i in range(256))], letters)
    return bpe


def _train(bpe: hf.Tokenizer, texts: Sequence[str], special: list[str], letters: list[str]) -> None:
    size = len(special) + len(letters) + MERGED
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=letters, limit_alphabet=len(letters),
        show_progress=False,
    ))  # fmt: skip


def _plain(*, vocab: dict[str, int], merges: list, start: bool, **names: Any) -> PreTrainedTokenizerBase:
    """A tokenizer.json without a class of its own. start: whether its post-processor puts the BOS in front."""
    bpe = hf.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    if start:
        bos = names["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocab[bos])])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


@dataclass(frozen=True)
class Family:
    """How a tokenizer is trained, and the class that it is loaded as."""

    train: Callable[[Sequence[str], list[str]], hf.Tokenizer]
    make: Callable[..., PreTrainedTokenizerBase]
    special: tuple[str, ...]
    given: dict[str, Any] = field(default_factory=dict)


TEXT_END = "<|endoftext|>"
FAMILIES = {
    "gpt2": Family(_bytes_trained, GPT2Tokenizer, (TEXT_END,)),
    "opt": Family(_bytes_trained, GPT2Tokenizer, ("<pad>", "</s>"), dict(
        bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True)),
    "neox": Family(_bytes_trained, GPTNeoXTokenizer, (TEXT_END, "<|padding|>")),
    "bloom": Family(_bytes_trained, _plain, ("<unk>", "<s>", "</s>", "<pad>"), dict(
        start=False, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")),
    "llama 2": Family(_pieces_trained, LlamaTokenizer, ("<unk>", "<s>", "</s>"), dict(add_bos_token=True)),
    "llama 3": Family(_bytes_trained, _plain, ("<|begin_of_text|>", "<|eot_id|>"), dict(
        start=True, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")),
    "qwen": Family(_bytes_trained, Qwen2Tokenizer, (TEXT_END, "<|im_start|>", "<|im_end|>"), dict(
        eos_token="<|im_end|>")),
    "gemma": Family(_pieces_trained, GemmaTokenizer, ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), dict(
        add_bos_token=True)),
    "olmo2": Family(_bytes_trained, _plain, (TEXT_END, "<|pad|>"), dict(
        start=False, bos_token=TEXT_END, eos_token=TEXT_END, unk_token=TEXT_END, pad_token="<|pad|>")),
    "granite": Family(_bytes_trained, _plain, ("<|end_of_text|>",), dict(
        start=False, bos_token="<|end_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")),
    "cohere": Family(_bytes_trained, CohereTokenizer, (
        "<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
        dict(add_bos_token=True)),
}  # fmt: skip


def made(family: str, texts: Sequence[str], *, template: str | None = None) -> PreTrainedTokenizerBase:
    """Return a tokenizer of a family, with a chat template of `TEMPLATES` or none."""
    about = FAMILIES[family]
    special = list(dict.fromkeys([*about.special, *MARKS.get(template, ())]))
    model = json.loads(about.train(texts, special).to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = about.make(vocab=model["vocab"], merges=merges, **about.given)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = TEMPLATES.get(template)
    return tokenizer
