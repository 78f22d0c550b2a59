"""Write figures/compatibility.md: what happens to each data format under each architecture, measured on this machine.

    .venv/bin/python scripts/compatibility.py

Every cell is a pass through what a user runs, on tiny random weights and a tokenizer of the family: read the file,
encode its items, one optimiser step of plain fine-tuning and one of context-free KL, per-token NLL and greedy answers
of the tuned folder against transformers' own forward pass and `generate`. tests/test_compatibility.py makes the table
anew.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers.utils.logging
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, PreTrainedModel

from cfutils import atomic, paths
from cfutils.data import sequences, targets
from cfutils.data.example import Example
from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.evaluation import token_scores
from cfutils.models import loading, tokenizers
from cfutils.models.generation.transformers_engine import TransformersEngine
from cfutils.models.generation.types import Request
from cfutils.training import trainer

sys.path.insert(0, str(paths.root() / "tests"))

import data_formats
import tokenizer_families
from architectures import ARCHITECTURES, EXECUTION, TUNING, UNSAMPLED, UNSCORED, made
from data_formats import FORMATS, SAID, Format

ALL = ARCHITECTURES | UNSCORED | UNSAMPLED
FILE = paths.root() / "figures" / "compatibility.md"
PACKAGES = ("transformers", "peft", "torch")
NEW = 4
"""Tokens of a greedy answer."""
CLOSE = 1e-3
"""Largest difference of NLLs that counts as rounding, in nats."""
FT = replace(TUNING, batch_size=16)
CF_KL = replace(FT, ratio=0.3, replay_weight=3 / 7, replay_loss="kl")


@dataclass(frozen=True)
class Row:
    """An architecture as people meet it: its tokenizer's family, and its chat template if it has one."""

    architecture: str
    family: str
    template: str | None = None


ROWS = {
    "GPT-2": Row("gpt2", "gpt2"),
    "OPT": Row("opt", "opt"),
    "GPT-NeoX": Row("gpt-neox", "neox"),
    "BLOOM": Row("bloom", "bloom"),
    "Llama": Row("llama", "llama 3", "llama 3"),
    "Qwen2": Row("qwen2", "qwen", "qwen2"),
    "Qwen3": Row("qwen3", "qwen", "qwen3"),
    "Phi3": Row("phi3, window", "llama 2", "phi3"),
    "Gemma2": Row("gemma2", "gemma", "gemma2"),
    "Gemma3 (text)": Row("gemma3", "gemma", "gemma3"),
    "Mistral, sliding window": Row("mistral, window", "llama 2", "mistral"),
    "OLMo": Row("olmo", "neox"),
    "OLMo2": Row("olmo2", "olmo2", "olmo2"),
    "Granite": Row("granite", "granite", "granite"),
    "Cohere": Row("cohere", "cohere", "cohere"),
    "Mixtral": Row("mixtral, window", "llama 2", "mistral"),
    "Mamba": Row("mamba", "neox"),
    "Mamba2": Row("mamba2", "neox"),
    "Jamba (hybrid)": Row("jamba", "llama 2"),
    "Bamba (hybrid)": Row("bamba", "llama 3", "llama 3"),
    "RecurrentGemma": Row("recurrent gemma", "gemma", "gemma2"),
    "RWKV": Row("rwkv", "neox"),
}

# ---- bases


class Base:
    """A row's base in a folder, as the hub would give it."""

    def __init__(self, row: Row, folder: Path) -> None:
        about, texts = ALL[row.architecture], [f"{p}{gap}{r}" for p, r in SAID for gap in ("", " ")] * 4
        tokenizer = tokenizer_families.made(row.family, texts, template=row.template)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        made(about.kind, {**about.config, **ids, "vocab_size": len(tokenizer)}).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.folder = folder
        self.tokenizer = tokenizers.load_tokenizer(folder)
        self.start = tokenizers.start_token(self.tokenizer, None)
        self.end = tokenizers.end_tokens(self.tokenizer, self.start)

    @functools.cached_property
    def own(self) -> PreTrainedModel:
        """The base as transformers loads it."""
        return AutoModelForCausalLM.from_pretrained(self.folder).eval()

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        """The base as the suite loads it; raises `UserError` for one that cannot be scored."""
        return loading.load(self.folder, dtype="float32")

    @functools.cached_property
    def samples(self) -> list[Sequence] | UserError:
        """Context-free samples, or why there are none."""
        engine = TransformersEngine.from_model(self.model, self.tokenizer, chunk=16, pass_tokens=256)
        requests = [Request((self.start,), seed) for seed in range(12)]
        try:
            found = engine.draw(requests, temperature=1.0, max_tokens=6, stop=self.end)
        except UserError as error:
            return error
        return sequences.from_samples(
            pd.DataFrame({"prompt_ids": [[self.start]] * len(found), "token_ids": [one.token_ids for one in found]})
        )


# ---- one cell


class Wrong(Exception):
    """A result that differs from what transformers, or the data, say."""


def require(right: bool, what: str) -> None:
    """Raise `Wrong` unless it is right."""
    if not right:
        raise Wrong(what)


@dataclass(frozen=True)
class Cell:
    """What happened: ok, or not with the reason; and what a user should know."""

    ok: bool
    notes: tuple[str, ...] = ()


def measure(base: Base, form: Format, data: Path, work: Path) -> Cell:
    """Take a file through the whole path under one base; faults of the program are raised."""
    try:
        model = base.model
        examples = targets.own(str(data / form.file)).examples
        require(tuple(e.response for e in examples) == form.responses, "other responses than in the file")
        chat = bool(base.tokenizer.chat_template) and any(e.prompt for e in examples)  # as `cfutils adapt` chooses
        encoded = [encode(base, example, chat) for example in examples]
        for example in examples:  # the same base with chat_template: false
            encode(base, example, False)
        mean = check_scores(base.own, model, encoded)
        ft = tune(base, encoded, [], work / "ft", FT)
        require(abs(ft["target_loss"] - mean) < CLOSE, f"the step's loss {ft['target_loss']} is not {mean}")
        why = base.samples if isinstance(base.samples, UserError) else None
        if not why:
            kl = tune(base, encoded, base.samples, work / "cf_kl", CF_KL)
            require(abs(kl["target_loss"] - mean) < CLOSE, f"the step's loss {kl['target_loss']} is not {mean}")
            require(abs(kl["replay_loss"]) < CLOSE, f"KL of the base from itself is {kl['replay_loss']}")
            require(kl["replay_tokens"] > 0, "no replay in the step")
        tuned = work / ("ft" if why else "cf_kl")
        own, model = AutoModelForCausalLM.from_pretrained(tuned).eval(), loading.load(tuned, dtype="float32")
        require(check_scores(own, model, encoded) < mean, "the step did not lower the target's NLL")
        if why:
            return Cell(False, (f"Fine-tuning and scores are right; no samples: {why}",))
        check_answers(base, own, model, [one.ids[: one.first] for one in encoded])
    except UserError as error:
        return Cell(False, (str(error),))
    return Cell(True, tuple(dict.fromkeys(note for e in examples if (note := _note(base, e, chat)))))


def encode(base: Base, example: Example, chat: bool) -> Sequence:
    """Encode an item, and check start token, end token and what carries loss."""
    one = sequences.from_example(base.tokenizer, example, chat_template=chat, start=base.start)
    head, said = list(one.ids[: one.first]), list(one.ids[one.first :])
    bos, eos = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    require(said[-1] == eos and said.count(eos) == 1, "the response does not end in one end token")
    adds = base.tokenizer("a")["input_ids"][0] == bos
    writes = chat and base.tokenizer.chat_template.startswith("{{ bos_token }}")
    if not example.prompt:
        require(head == [base.start], "a text does not stand behind the start token")
    elif bos is not None:
        n = int(writes if chat else adds)
        leading = next((place for place, token in enumerate(head) if token != bos), len(head))
        require(leading == n, f"{leading} BOS in front of the prompt, not {n}")
        require(bos == eos or head.count(bos) == n, "a BOS inside the prompt")
    whole, before = base.tokenizer.decode(one.ids[:-1]), base.tokenizer.decode(head)
    if not example.prompt:  # decoded alone: SentencePiece's tokenizers begin a text with a space of their own
        whole, before = base.tokenizer.decode(said[:-1]), ""
    require(whole == before + example.response, f"{whole!r} is not {before!r} and {example.response!r}")
    return one


@torch.no_grad()
def nll(model: PreTrainedModel, one: Sequence) -> np.ndarray:
    """Return NLLs of the tokens that carry loss, by transformers' own forward pass on this sequence alone."""
    log_p = model(input_ids=torch.tensor([one.ids])).logits[0, one.first - 1 : -1].log_softmax(-1)
    return -log_p.gather(1, torch.tensor(one.ids[one.first :])[:, None])[:, 0].numpy()


def tune(
    base: Base, items: list[Sequence], pool: list[Sequence], work: Path, tuning: trainer.Tuning
) -> dict[str, float]:  # fmt: skip
    """Tune for one step; return its row of the log."""
    work.mkdir()
    trainer.tune(work, base.folder, items, pool, tuning=tuning, execution=EXECUTION, label="compatibility")
    (row,) = pd.read_parquet(work / "log.parquet").to_dict("records")
    return row


def check_scores(own: PreTrainedModel, model: PreTrainedModel, items: list[Sequence]) -> float:
    """Hold NLLs against those of transformers, whose mean over tokens is returned."""
    scored = token_scores.score(model, None, items, limit=256)
    wanted = [nll(own, one) for one in items]
    gap = max(np.abs(found.nll - right).max() for found, right in zip(scored, wanted, strict=True))
    require(gap < CLOSE, f"NLLs differ by {gap:.2g}")
    return np.concatenate(wanted).mean()


def check_answers(base: Base, own: PreTrainedModel, model: PreTrainedModel, prompts: list[tuple[int, ...]]) -> None:
    """Hold greedy answers against transformers' `generate`."""
    engine = TransformersEngine.from_model(model, base.tokenizer, chunk=16, pass_tokens=256)
    requests = [Request(prompt, 0) for prompt in prompts]
    answers = engine.draw(requests, temperature=0.0, max_tokens=NEW, stop=base.end)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        out = own.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=base.end[0],
            eos_token_id=list(base.end),
        )  # fmt: skip
        require(answer.token_ids == out[0, len(prompt) :].tolist(), "a greedy answer differs from generate's")


def _note(base: Base, example: Example, chat: bool) -> str | None:
    """Say what became of a conversation that the base has no form for."""
    if example.turns and not chat:
        try:
            sequences.from_example(base.tokenizer, example, chat_template=True, start=base.start)
        except UserError as error:
            return f"Turns stand as paragraphs; with chat_template: true, {error}."
    if any(role == "system" for role, _ in example.turns):
        messages = [{"role": role, "content": content} for role, content in example.turns]
        try:
            base.tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            return f"The template refuses a system role ({error}); its words stand in front of the first user turn."
    return None


# ---- the table


def cells(name: str, formats: list[str], data: Path) -> Iterator[Cell]:
    """Yield the cells of a row; data: the folder that `data_formats.write` filled."""
    with tempfile.TemporaryDirectory() as folder:
        base = Base(ROWS[name], Path(folder) / "base")
        for number, form in enumerate(formats):
            work = Path(folder) / str(number)
            work.mkdir()
            with contextlib.redirect_stdout(io.StringIO()):
                try:
                    found = measure(base, FORMATS[form], data, work)
                except Exception as error:  # a fault, which the table shows in its place
                    found = Cell(False, (f"FAULT in {name}, {form}: {type(error).__name__}: {error}",))
            yield found


def table(data: Path) -> dict[str, list[Cell]]:
    """Return all cells, by row."""
    data_formats.write(data)
    return {name: list(cells(name, list(FORMATS), data)) for name in ROWS}


def markdown(found: dict[str, list[Cell]]) -> str:
    """Return the table and its notes, without versions."""
    notes = list(dict.fromkeys(note for row in found.values() for cell in row for note in cell.notes))

    def shown(cell: Cell) -> str:
        numbers = ", ".join(f"({notes.index(note) + 1})" for note in cell.notes)
        return " ".join(filter(None, ["ok" if cell.ok else "", numbers]))

    lines = ["| architecture | " + " | ".join(FORMATS) + " |", "|---" * (len(FORMATS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(map(shown, row)) + " |" for name, row in found.items()]
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]) + "\n"


HEAD = """# Architectures and data formats

**ok**: one step of plain fine-tuning and one of context-free KL; NLLs and greedy answers of the tuned model are those
of transformers' own forward pass and `generate`; the tokens that carry loss are the response and one end token, behind
at most one start token. Weights are tiny and random; tokenizers and chat templates are of the family's kind. A number
alone is what is refused, in the words that a user reads; a number beside ok is what to know.
`scripts/compatibility.py` writes this file; a test makes it anew.

"""


def main() -> None:
    """Write the file."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        text = markdown(table(Path(folder)))
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    with atomic.replacing(FILE) as part:
        part.write_text(f"{HEAD}{text}\nMeasured with {versions}.\n", encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
