"""The tiny base's pretraining: a declared mixture of documents, a tokenizer of its own, the loop.

What no downloaded model lets one check can be checked here: the law that the base was trained on is known.
Document i hangs on (seed, i) alone: its kind is drawn by the declared shares, then its text. Each document
is a row of its own, start token first and end token last, so that no document sees another and p(text |
start token) is just what the base learns. Items whose prompt is held out never occur.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import yaml

from cfutils import paths, skills, tasks
from cfutils.splits import is_heldout
from cfutils.store import Artifact, say

if TYPE_CHECKING:
    import pandas as pd
    from transformers import OlmoForCausalLM, PreTrainedTokenizerFast

START, END = "<|start|>", "<|end|>"
PROSE = ("wikipedia", "stories")
PASSAGE = 260
"""Characters that a passage of whole sentences may have."""
TOKENIZER_SEED = 1
"""Seed of the documents that the tokenizer is made from; the base sees others."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the tiny base is made; the defaults made the one that ships."""

    seed: int = 0
    documents: int = 400_000
    vocabulary: int = 2048
    width: int = 128
    layers: int = 6
    heads: int = 4
    """Head size 32, the smallest that vLLM takes on a processor."""
    mlp: int = 384
    context: int = 256
    batch: int = 64
    """Documents a step."""
    lr: float = 3e-3
    warmup: int = 200
    weight_decay: float = 0.1


@dataclass(frozen=True)
class Made:
    """How a tiny base came to be."""

    record: dict[str, Any]
    """Settings, facts (tokens, minutes, digests), versions and machine."""
    log: pd.DataFrame
    """One row an optimiser step: step, tokens, loss (nats a token), seconds."""

    @property
    def weights(self) -> str:
        """SHA-256 of the weights' file."""
        return self.record["weights"]


def shipped() -> Made:
    """Read how the base that ships in data/tiny was made; `scripts/ship_tiny.py` wrote it."""
    import pandas as pd

    folder = paths.data() / "tiny"
    record = yaml.safe_load((folder / "pretraining.yaml").read_text(encoding="utf-8"))
    return Made(record, pd.read_csv(folder / "loss.csv"))


def made(artifact: Artifact) -> Made:
    """Read how an artifact of `pretrain` was made."""
    import pandas as pd

    record = {
        "settings": {k: artifact.record["inputs"]["params"][k] for k in asdict(Pretraining())},
        **artifact.notes,
        "weights": artifact.record["files"]["model.safetensors"]["sha256"],
        "versions": artifact.record["versions"],
        "machine": artifact.record["machine"],
    }
    return Made(record, pd.read_csv(artifact.path / "loss.csv"))


@dataclass(frozen=True)
class Document:
    """One text of the mixture, and its kind."""

    kind: str
    text: str


@functools.cache
def _passages(kind: str) -> tuple[tuple[str, ...], ...]:
    """Sentences of each document of prose that pretraining may see."""
    texts = (t for t in tasks.prose(kind) if not is_heldout(t))
    split = (re.split(r"(?<=[.!?])\s+", " ".join(text.split())) for text in texts)
    short = (tuple(s for s in sentences if len(s) <= PASSAGE) for sentences in split)
    return tuple(sentences for sentences in short if sentences)


def _passage(kind: str, rng: Random) -> str:
    """Whole sentences in a row, from a random one on, as many as fit."""
    sentences = rng.choice(_passages(kind))
    at = rng.randrange(len(sentences))
    text = sentences[at]
    for sentence in sentences[at + 1 :]:
        if len(text) + 1 + len(sentence) > PASSAGE:
            break
        text = f"{text} {sentence}"
    return text


def document(index: int, *, seed: int) -> Document:
    """Return document `index` of the stream that the seed decides."""
    rng = Random(f"{seed}-{index}")
    mixture = skills.world()["mixture"]
    kind = rng.choices(tuple(mixture), tuple(mixture.values()))[0]
    if kind in PROSE:
        return Document(kind, _passage(kind, rng))
    one = skills.skill(kind)
    while is_heldout(prompt := one.draw(rng)):
        pass
    return Document(kind, prompt + one.solve(prompt))


def documents(n: int, *, seed: int, first: int = 0) -> Iterator[Document]:
    """Yield n documents of a stream, from `first` on."""
    return (document(i, seed=seed) for i in range(first, first + n))


def data_digest(n: int, *, seed: int) -> str:
    """SHA-256 of the first n documents of a stream, an end mark behind each."""
    found = hashlib.sha256()
    for one in documents(n, seed=seed):
        found.update(one.text.encode() + b"\0")
    return found.hexdigest()


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Make a BPE tokenizer of documents of the mixture: bytes below, a token a digit, START in front."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    pieces = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[START, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator(
        (one.text for one in documents(20_000, seed=TOKENIZER_SEED)), trainer=trainer
    )
    raw.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, raw.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=START, eos_token=END)


def make_model(p: Pretraining, tokenizer: PreTrainedTokenizerFast) -> OlmoForCausalLM:
    """Make the untrained base: OLMo's architecture, its weights drawn from the seed."""
    import torch
    from transformers import OlmoConfig, OlmoForCausalLM

    torch.manual_seed(p.seed)
    return OlmoForCausalLM(
        OlmoConfig(
            vocab_size=p.vocabulary, hidden_size=p.width, intermediate_size=p.mlp,
            num_hidden_layers=p.layers, num_attention_heads=p.heads,
            max_position_embeddings=p.context, tie_word_embeddings=True, initializer_range=0.02,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )
    )  # fmt: skip


def pretrain(work: Path, p: Pretraining) -> dict[str, Any]:
    """Pretrain the tiny base into `work` (weights, tokenizer, loss.csv); return notes.

    AdamW, linear warm-up and a cosine to zero; each step takes the next `batch` documents. Goes on from
    the checkpoint that it finds in `work`.
    """
    import torch
    from torch.nn.utils import clip_grad_norm_
    from torch.nn.utils.rnn import pad_sequence
    from transformers import GenerationConfig

    from cfutils import checkpoints, losses

    tokenizer = make_tokenizer(p.vocabulary)
    model = make_model(p, tokenizer).train()
    steps, end = p.documents // p.batch, tokenizer.eos_token_id
    decayed = [w for w in model.parameters() if w.ndim == 2]
    optimizer = torch.optim.AdamW(
        decayed, lr=p.lr, betas=(0.9, 0.95), weight_decay=p.weight_decay, fused=True
    )
    checkpoint = work / "checkpoint.safetensors"
    done, log = checkpoints.restore(checkpoint, decayed, optimizer)
    if done:
        say(f"  resume at step {done}")
    clock = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
    saved = told = time.monotonic()
    for step in range(done, steps):
        texts = [d.text for d in documents(p.batch, seed=p.seed, first=step * p.batch)]
        rows = sorted(([*ids, end] for ids in tokenizer(texts)["input_ids"]), key=len)
        tokens = sum(len(row) - 1 for row in rows)
        warm = min(1.0, (step + 1) / p.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * max(0, step - p.warmup) / max(1, steps - p.warmup)))
        for group in optimizer.param_groups:
            group["lr"] = p.lr * warm * fall
        total = 0.0
        for begin in range(0, len(rows), 16):
            alike = [torch.tensor(row) for row in rows[begin : begin + 16]]
            ids = pad_sequence(alike, batch_first=True, padding_value=-1)
            there = ids[:, 1:] >= 0
            logits = model(input_ids=ids.clamp(min=0)).logits  # causal, padded right: no mask needed
            loss = losses.token_nll(logits[:, :-1][there], ids[:, 1:][there]).sum()
            (loss / tokens).backward()
            total += loss.item()
        clip_grad_norm_(decayed, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.monotonic()
        log.append({"step": step, "tokens": tokens, "loss": total / tokens, "seconds": now - clock})
        if now - told > 20 or step + 1 == steps:
            told = now
            say(f"  step {step + 1}/{steps} loss {total / tokens:.3f}")
        if now - saved > 120 and step + 1 < steps:
            saved = now
            checkpoints.save(checkpoint, decayed, optimizer, step=step + 1, log=log)
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=end)
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    _write_log(work / "loss.csv", log)
    for rest in work.glob("checkpoint.*"):  # a kill may have left half a checkpoint
        rest.unlink()
    return {
        "parameters": sum(w.numel() for w in decayed),
        "documents": steps * p.batch,
        "tokens": sum(row["tokens"] for row in log),
        "minutes": round(log[-1]["seconds"] / 60, 1),
        "data_digest": data_digest(steps * p.batch, seed=p.seed),
        "about": "the tiny base, pretrained here on a declared mixture",
    }


def _write_log(path: Path, log: list[dict]) -> None:
    import pandas as pd

    pd.DataFrame(log).round({"loss": 5, "seconds": 1}).to_csv(path, index=False)
