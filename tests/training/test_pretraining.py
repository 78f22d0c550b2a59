"""The tiny base's pretraining: its tokenizer, and a loop whose result a kill does not change."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from cfutils import paths
from cfutils.data import chat, corpus, prose
from cfutils.training import checkpoints, pretraining
from cfutils.training.pretraining import END, START, Pretraining

VOCABULARY = 600
MICRO = Pretraining(
    documents=256, vocabulary=VOCABULARY, width=32, heads=1, layers=1, mlp=32, batch=32, warmup=4
)
TEXTS = tuple(
    f"The tale of fox{i} begins. It ran far from fox{i}! Did fox{i} rest?" for i in range(80)
)


@pytest.fixture(scope="module", autouse=True)
def tales():
    """Prose in memory, eighty short tales of either kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            prose, "documents", lambda kind: tuple(f"In {kind}: {text}" for text in TEXTS)
        )
        corpus._passages.cache_clear()
        yield
    corpus._passages.cache_clear()


@pytest.fixture(scope="module")
def tokenizer(tales):
    return pretraining.make_tokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def thinks(tales):
    return pretraining.make_tokenizer(VOCABULARY, "tiny-think")


@pytest.fixture
def pretrain(tokenizer, thinks, tmp_path, monkeypatch):
    """Pretrain a base of one layer into a folder; the tokenizers are made once."""
    made = {"tiny": tokenizer, "tiny-think": thinks}
    monkeypatch.setattr(pretraining, "make_tokenizer", lambda size, world: made[world])

    def run(name, how=MICRO, world="tiny"):
        (tmp_path / name).mkdir(exist_ok=True)
        notes = pretraining.pretrain(tmp_path / name, how, world=world)
        return tmp_path / name, notes

    return run


# ---- tokenizer and model


def test_the_tokenizer_begins_with_start_and_adds_no_end(tokenizer):
    ids = tokenizer("sort: cat dog ->")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids(START)
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(END)
    assert tokenizer.bos_token_id != tokenizer.eos_token_id and tokenizer.eos_token_id not in ids
    assert tokenizer("cat", add_special_tokens=False)["input_ids"][0] != ids[0]
    assert len(tokenizer) == VOCABULARY


def test_every_digit_is_a_token(tokenizer):
    """With or without the space before it."""
    ids = tokenizer("sum: 12 345 ->", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([i]) for i in ids][-6:] == [" 1", "2", " 3", "4", "5", " ->"]
    many = [t for t in tokenizer.get_vocab() if sum(c.isdigit() for c in t) > 1]
    assert many == []


@pytest.mark.parametrize("text", [
    "sum: 3 9 4 -> 3+9=12 12+4=16 = 16", "The river, it ran.  Two spaces\nand a line.",
    "naïve café, 東京, 😀", " a space before", "don't",
])  # fmt: skip
def test_texts_come_back_as_they_were(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_tokenizer_that_thinks_has_tokens_for_turns_and_thoughts(thinks, tmp_path):
    """They are part of the text, also where special tokens are left out, and no pretraining text merges into them."""
    text = chat.document("add: 478+269 ->", " 8+9=17", " 747")
    ids = thinks(text)["input_ids"]
    marks = thinks.convert_tokens_to_ids(
        [START, END, chat.USER, chat.ASSISTANT, chat.OPEN, chat.CLOSE]
    )
    assert marks == [0, 1, 2, 3, 4, 5] and [i for i in ids if i < 6] == [0, 2, 3, 4, 5]
    assert thinks.decode(ids, skip_special_tokens=True) == text and len(thinks) == VOCABULARY
    assert not [t for t in thinks.get_vocab() if "think" in t and t not in (chat.OPEN, chat.CLOSE)]
    thinks.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    turn = [{"role": "user", "content": "cat"}]
    shown = again.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert shown == f"{START}<|user|>cat<|assistant|><think>" and again(text)["input_ids"] == ids
    given = again.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert given == [0, 2, *again("cat", add_special_tokens=False)["input_ids"], 3, 4]


def test_the_model_has_the_stated_size(tokenizer):
    """Embeddings 2048 * 128, tied; six layers of 4 * 128^2 + 3 * 128 * 384; norms have no weights."""
    how = Pretraining()
    state = torch.random.get_rng_state()
    model = pretraining.make_model(how, tokenizer)
    again = pretraining.make_model(how, tokenizer)
    other = pretraining.make_model(Pretraining(seed=1), tokenizer)
    torch.random.set_rng_state(state)
    n = sum(p.numel() for p in model.parameters())
    assert n == 2048 * 128 + 6 * (4 * 128**2 + 3 * 128 * 384) == 1_540_096
    assert how.width // how.heads == 32
    assert all(p.ndim == 2 for p in model.parameters())  # all of them are trained
    pairs = list(zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in pairs)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    config = model.config
    assert (config.bos_token_id, config.eos_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )


# ---- the loop


def test_pretraining_again_gives_the_same_bytes(pretrain, tokenizer):
    """256 documents in batches of 32: 8 steps; what stands in the notes and in the log is true."""
    (one, notes), (two, _) = pretrain("one"), pretrain("two")
    name = "model.safetensors"
    assert (one / name).read_bytes() == (two / name).read_bytes()
    assert sorted(p.name for p in one.iterdir()) == [
        "config.json", "generation_config.json", "loss.csv", name, "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert notes["documents"] == 256 and notes["parameters"] == 600 * 32 + 4 * 32**2 + 3 * 32 * 32
    assert notes["data_digest"] == corpus.data_digest(256, seed=0)
    log = pd.read_csv(one / "loss.csv")
    assert log["step"].tolist() == list(range(8))
    texts = [one.text for one in corpus.documents(256, seed=0)]
    # all tokens but the start token carry loss, the end token among them
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert log["tokens"].tolist() == np.reshape(lengths, (8, 32)).sum(1).tolist()
    assert notes["tokens"] == sum(lengths)
    assert log["loss"][0] == pytest.approx(math.log(VOCABULARY), abs=0.1)  # it knows nothing yet


def test_the_base_that_thinks_is_kept_in_bf16_and_asks_for_its_temperature(pretrain, thinks):
    """Pretrained twice on documents of its world: the same bytes, which round the float32 weights."""
    (one, notes), (two, _) = (pretrain(name, world="tiny-think") for name in ("one", "two"))
    name = "model.safetensors"
    assert (one / name).read_bytes() == (two / name).read_bytes()
    assert {w.dtype for w in load_file(one / name).values()} == {torch.bfloat16}
    assert notes["data_digest"] == corpus.data_digest(256, seed=0, world="tiny-think")
    assert notes["about"] == "the tiny base that thinks, pretrained here on a declared mixture"
    config = json.loads((one / "generation_config.json").read_text())
    assert config["do_sample"] and config["temperature"] == 0.6
    texts = [d.text for d in corpus.documents(256, seed=0, world="tiny-think")]
    assert notes["tokens"] == sum(len(ids) for ids in thinks(texts)["input_ids"])
    assert AutoTokenizer.from_pretrained(one).chat_template == chat.TEMPLATE
    other, _ = pretrain("other")
    assert {w.dtype for w in load_file(other / name).values()} == {torch.float32}


def test_another_seed_gives_other_weights(pretrain):
    (one, _), (two, _) = pretrain("one"), pretrain("two", replace(MICRO, seed=1))
    assert (one / "model.safetensors").read_bytes() != (two / "model.safetensors").read_bytes()


def test_a_killed_pretraining_goes_on_to_the_same_weights(pretrain, monkeypatch, capsys):
    """A clock that jumps makes it write a checkpoint each step; killed behind the fifth."""
    whole, _ = pretrain("whole")
    minutes = iter(range(0, 10**9, 200))
    monkeypatch.setattr(pretraining, "time", SimpleNamespace(monotonic=lambda: next(minutes)))
    write = checkpoints.save

    def kill(*state, step, log):
        write(*state, step=step, log=log)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", kill)
    with pytest.raises(KeyboardInterrupt):
        pretrain("killed")
    capsys.readouterr()
    folder, notes = pretrain("killed")
    assert "resume at step 5" in capsys.readouterr().out
    name = "model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    logs = [pd.read_csv(path / "loss.csv") for path in (folder, whole)]
    columns = ["step", "tokens", "loss"]
    pd.testing.assert_frame_equal(logs[0][columns], logs[1][columns])
    assert notes["tokens"] == logs[0]["tokens"].sum()
    assert not list(folder.glob("checkpoint*"))


def test_half_a_checkpoint_is_not_left_behind(pretrain, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "checkpoint.safetensors.part").write_bytes(b"half")
    folder, _ = pretrain("work")
    assert not list(folder.glob("checkpoint*"))


def test_a_deviation_is_stated_where_it_is_not_the_tiny_bases(thinks):
    assert "init" not in Pretraining().stated() and len(Pretraining().stated()) == 12
    assert replace(MICRO, init=0.06).stated() == MICRO.stated() | {"init": 0.06}
    wide = pretraining.make_model(replace(MICRO, init=0.06, vocabulary=1024), thinks)
    assert wide.lm_head.weight.std().item() == pytest.approx(0.06, rel=0.02)


def test_the_loss_falls(pretrain):
    """40 steps: from ln 600 = 6.4 by more than a nat."""
    folder, _ = pretrain("work", replace(MICRO, documents=40 * 32))
    loss = pd.read_csv(folder / "loss.csv")["loss"]
    assert len(loss) == 40
    assert loss[-5:].mean() < loss[:5].mean() - 1
    assert np.isfinite(loss).all()


def test_what_was_made_is_read_from_its_record_and_log(pretrain):
    folder, notes = pretrain("work")
    record = {
        "inputs": {"params": {"settings": MICRO.stated(), "world": "w", "prose": "p"}},
        "notes": notes,
        "files": {"model.safetensors": {"sha256": "5ha"}},
        "versions": {"torch": "1"},
        "machine": {"cores": 2},
    }
    made = pretraining.made(record, folder / "loss.csv")
    assert made.weights == "5ha" and made.record["settings"] == MICRO.stated()
    assert made.record["tokens"] == made.log["tokens"].sum()


# ---- what ships

SIZES = {"tiny": 1_540_096, "tiny-think": 1024 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384)}
"""Parameters: embeddings, which are tied, and layers."""


@pytest.mark.parametrize("name", pretraining.SHIPPED)
def test_the_record_that_ships_is_that_of_the_weights(name):
    made, how = pretraining.shipped(name), pretraining.get(name)
    folder = paths.data() / name
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert made.weights == digest
    assert made.record["settings"] == how.settings.stated()
    assert (
        made.record["documents"] == how.settings.documents
        and made.record["parameters"] == SIZES[name]
    )
    assert len(made.log) == how.settings.documents // how.settings.batch
    assert made.record["tokens"] == made.log["tokens"].sum()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10 * 2**20
    loss = made.log["loss"]
    assert loss[:10].mean() > 5 and loss[-200:].mean() < 2.5
