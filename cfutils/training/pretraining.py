"""Pretraining of the bases that ship: a tokenizer of their own, and the loop.

For these bases the distribution that they were trained on is known (`data.corpus`), which no downloaded model offers.
Each document is a row of its own, start token first and end token last, so that no document attends to another
and the base learns p(text | start token).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cfutils import paths, progress
from cfutils.data import chat, corpus
from cfutils.errors import invalid_value
from cfutils.events import say

if TYPE_CHECKING:
    import pandas as pd
    from transformers import OlmoForCausalLM, PreTrainedTokenizerFast

START, END = "<|start|>", "<|end|>"
BETAS = (0.9, 0.95)
"""Decay rates of AdamW's moments."""
CLIP = 1.0
"""Largest norm of the gradient."""
PASS_DOCUMENTS = 16
"""Documents in one forward pass."""
TOKENIZER_DOCUMENTS = 20_000
"""Documents that the tokenizer is trained on."""
TOKENIZER_SEED = 1
"""Their seed; the base is trained on others."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How a base is pretrained; the defaults gave the tiny base that ships."""

    seed: int = 0
    documents: int = 400_000
    vocabulary: int = 2048
    width: int = 128
    layers: int = 6
    heads: int = 4
    """Head size 32, the smallest that vLLM supports on a processor."""
    mlp: int = 384
    context: int = 256
    batch: int = 64
    """Documents in one optimiser step."""
    lr: float = 3e-3
    warmup: int = 200
    weight_decay: float = 0.1
    init: float = 0.02
    """Standard deviation of the weights that training begins with."""

    def stated(self) -> dict[str, Any]:
        """The values, without a deviation that is the default: it was no setting when the tiny base was made."""
        values = asdict(self)
        if self.init == type(self).init:
            del values["init"]
        return values


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A base that ships in data/NAME: what it is, and how it is pretrained."""

    about: str
    settings: Pretraining
    thinks: bool = False
    """Whether its documents are partly chat-shaped, with thoughts; its world says how."""
    dtype: str = "float32"
    """Type of the weights that are kept; they are trained in float32."""
    temperature: float | None = None
    """Temperature that its generation configuration asks for; None leaves it out."""


SHIPPED = {
    "tiny": Shipped(about="the tiny base", settings=Pretraining()),
    "tiny-think": Shipped(
        about="the tiny base that thinks", thinks=True, dtype="bfloat16", temperature=0.6,
        settings=Pretraining(documents=320_000, vocabulary=1024, layers=4, batch=32, init=0.06),
    ),
}  # fmt: skip
"""The bases that ship, by the name of their world and folder."""


def get(name: str) -> Shipped:
    """Return a base that ships by name, or raise."""
    if name not in SHIPPED:
        raise invalid_value(
            "base", f"shipped:{name}", ", ".join(f"shipped:{one}" for one in SHIPPED)
        )
    return SHIPPED[name]


@dataclass(frozen=True)
class Made:
    """How a base that ships came to be."""

    record: dict[str, Any]
    """Settings, facts (tokens, minutes, digests), versions and machine."""
    log: pd.DataFrame
    """One row per optimiser step: step, tokens, loss (nats per token), seconds."""

    @property
    def weights(self) -> str:
        """SHA-256 of the weights file."""
        return self.record["weights"]


def shipped(name: str = "tiny") -> Made:
    """Read how the base that ships in data/NAME was made; `scripts/ship_tiny.py` wrote it."""
    import pandas as pd

    folder = paths.data() / name
    record = yaml.safe_load((folder / "pretraining.yaml").read_text(encoding="utf-8"))
    return Made(record, pd.read_csv(folder / "loss.csv"))


def made(record: Mapping[str, Any], log: Path) -> Made:
    """Describe a pretraining from the record of its artifact and the path of its loss.csv."""
    import pandas as pd

    facts = {
        "settings": record["inputs"]["params"]["settings"],
        **record["notes"],
        "weights": record["files"]["model.safetensors"]["sha256"],
        "versions": record["versions"],
        "machine": record["machine"],
    }
    return Made(facts, pd.read_csv(log))


def make_tokenizer(size: int, world: str = "tiny") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the mixture; every digit is a token, and START is put in front.

    That of a base that thinks has a chat template, and tokens for turns and thoughts, which are part of a text as in
    R1's: no decoding leaves them out.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
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
    thinks = get(world).thinks
    marks = [chat.USER, chat.ASSISTANT, chat.OPEN, chat.CLOSE] if thinks else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[START, END, *marks], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    documents = corpus.documents(TOKENIZER_DOCUMENTS, seed=TOKENIZER_SEED, world=world)
    raw.train_from_iterator(
        (
            piece
            for one in documents
            for piece in (chat.without_marks(one.text) if thinks else [one.text])
        ),
        trainer=trainer,
    )
    raw.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    raw.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, raw.token_to_id(START))]
    )
    template = {"chat_template": chat.TEMPLATE} if thinks else {}
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=START, eos_token=END, **template)


def make_model(p: Pretraining, tokenizer: PreTrainedTokenizerFast) -> OlmoForCausalLM:
    """Build the untrained base: OLMo's architecture, weights drawn from the seed."""
    import torch
    from transformers import OlmoConfig, OlmoForCausalLM

    torch.manual_seed(p.seed)
    return OlmoForCausalLM(
        OlmoConfig(
            vocab_size=p.vocabulary, hidden_size=p.width, intermediate_size=p.mlp,
            num_hidden_layers=p.layers, num_attention_heads=p.heads,
            max_position_embeddings=p.context, tie_word_embeddings=True, initializer_range=p.init,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )
    )  # fmt: skip


def pretrain(work: Path, p: Pretraining, *, world: str = "tiny") -> dict[str, Any]:
    """Pretrain a base on the documents of a world into `work` (weights, tokenizer, loss.csv); return notes.

    AdamW, linear warm-up and a cosine to zero; each step takes the next `batch` documents. Resumes from the
    checkpoint that it finds in `work`.
    """
    import torch
    from torch.nn.utils import clip_grad_norm_
    from torch.nn.utils.rnn import pad_sequence
    from transformers import GenerationConfig

    from cfutils.training import checkpoints, distributed, losses, schedule

    base = get(world)
    tokenizer = make_tokenizer(p.vocabulary, world)
    model = make_model(p, tokenizer).train()
    steps, end = p.documents // p.batch, tokenizer.eos_token_id
    decayed = [w for w in model.parameters() if w.ndim == 2]
    optimizer = torch.optim.AdamW(
        decayed, lr=p.lr, betas=BETAS, weight_decay=p.weight_decay, fused=True
    )
    checkpoint = work / "checkpoint.safetensors"
    done, log = checkpoints.restore(checkpoint, decayed, optimizer, distributed.alone())
    if done:
        say(f"  resume at step {done}")
    clock = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
    saved = time.monotonic()
    with progress.task("pretraining", total=steps, done=done) as advance:
        for step in range(done, steps):
            texts = [
                d.text
                for d in corpus.documents(p.batch, seed=p.seed, first=step * p.batch, world=world)
            ]
            rows = sorted(([*ids, end] for ids in tokenizer(texts)["input_ids"]), key=len)
            tokens = sum(len(row) - 1 for row in rows)
            lr = p.lr * schedule.learning_rate(step, peak=1.0, warm=p.warmup, total=steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            total = 0.0
            for begin in range(0, len(rows), PASS_DOCUMENTS):
                some = [torch.tensor(row) for row in rows[begin : begin + PASS_DOCUMENTS]]
                ids = pad_sequence(some, batch_first=True, padding_value=-1)
                real = ids[:, 1:] >= 0  # no padding
                logits = model(
                    input_ids=ids.clamp(min=0)
                ).logits  # causal, padded right: no mask needed
                loss = losses.token_nll(logits[:, :-1][real], ids[:, 1:][real]).sum()
                (loss / tokens).backward()
                total += loss.item()
            clip_grad_norm_(decayed, CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            now = time.monotonic()
            log.append({"step": step, "tokens": tokens, "loss": total / tokens, "seconds": now - clock})
            advance(note=f"loss {total / tokens:.3f}")
            if now - saved > 120 and step + 1 < steps:
                saved = now
                checkpoints.save(checkpoint, decayed, optimizer, distributed.alone(), step=step + 1, log=log)
    own = {} if base.temperature is None else {"do_sample": True, "temperature": base.temperature}
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, **own
    )
    model.to(getattr(torch, base.dtype)).save_pretrained(work)
    tokenizer.save_pretrained(work)
    _write_log(work / "loss.csv", log)
    for left in work.glob("checkpoint.*"):  # a kill may have left half a checkpoint
        left.unlink()
    return {
        "parameters": sum(w.numel() for w in decayed),
        "documents": steps * p.batch,
        "tokens": sum(row["tokens"] for row in log),
        "minutes": round(log[-1]["seconds"] / 60, 1),
        "data_digest": corpus.data_digest(steps * p.batch, seed=p.seed, world=world),
        "about": f"{base.about}, pretrained here on a declared mixture",
    }


def _write_log(path: Path, log: list[dict]) -> None:
    import pandas as pd

    pd.DataFrame(log).round({"loss": 5, "seconds": 1}).to_csv(path, index=False)
