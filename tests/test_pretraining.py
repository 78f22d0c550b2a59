"""The tiny base's pretraining: its documents, its tokenizer, and a loop that a kill does not change."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from cfutils import checkpoints, paths, pretraining, skills, tasks
from cfutils.pretraining import END, START, Pretraining
from cfutils.splits import is_heldout

VOCABULARY = 600
MICRO = Pretraining(
    documents=256, vocabulary=VOCABULARY, width=32, heads=1, layers=1, mlp=32, batch=32, warmup=4
)
TEXTS = tuple(f"The tale of fox{i} begins. It ran far from fox{i}! Did fox{i} rest?" for i in range(80))


@pytest.fixture(scope="module", autouse=True)
def prose():
    """Prose in memory, eighty short tales of either kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "prose", lambda kind: tuple(f"In {kind}: {text}" for text in TEXTS))
        pretraining._passages.cache_clear()
        yield
    pretraining._passages.cache_clear()


@pytest.fixture(scope="module")
def stream(prose):
    """Documents 0 to 2999 of a stream."""
    return list(pretraining.documents(3000, seed=7))


@pytest.fixture(scope="module")
def tokenizer(prose):
    return pretraining.make_tokenizer(VOCABULARY)


@pytest.fixture
def pretrain(tokenizer, tmp_path, monkeypatch):
    """Pretrain a base of one layer into a folder; the tokenizer is made once."""
    monkeypatch.setattr(pretraining, "make_tokenizer", lambda size: tokenizer)

    def run(name, how=MICRO):
        (tmp_path / name).mkdir(exist_ok=True)
        notes = pretraining.pretrain(tmp_path / name, how)
        return tmp_path / name, notes

    return run


# ---- documents


def test_a_document_hangs_on_seed_and_index_alone(stream):
    assert pretraining.document(1234, seed=7) == stream[1234]
    assert list(pretraining.documents(3, seed=7, first=500)) == stream[500:503]
    assert pretraining.document(1234, seed=8) != stream[1234]
    assert len({one.text for one in stream}) > 1500  # not one over and over


def test_kinds_occur_as_declared(stream):
    """Of 3000 each kind within four standard errors of its share."""
    found, n = Counter(one.kind for one in stream), len(stream)
    mixture = skills.world()["mixture"]
    assert set(found) == set(mixture)
    for kind, share in mixture.items():
        assert abs(found[kind] / n - share) < 4 * math.sqrt(share * (1 - share) / n), kind


def test_what_is_scored_is_never_trained_on(stream):
    """No skill's prompt, and no document of prose, of the held-out side."""
    tales = {kind: 0 for kind in pretraining.PROSE}
    for one in stream:
        if one.kind in pretraining.PROSE:
            tales[one.kind] += 1
            (fox,) = set(re.findall(r"fox\d+", one.text))
            (whole,) = (text for text in TEXTS if f"{fox} begins" in text)
            assert not is_heldout(f"In {one.kind}: {whole}")
        else:
            prompt = re.match(skills.skill(one.kind).prompt, one.text)[0]
            assert not is_heldout(prompt), one.text
    assert min(tales.values()) > 100
    assert sum(is_heldout(f"In stories: {text}") for text in TEXTS) > 5


def test_every_document_is_a_whole_and_right_text_of_its_kind(stream):
    for one in stream:
        kind = None if one.kind in pretraining.PROSE else one.kind
        assert skills.recognise(one.text) == (kind, kind is not None), one.text
    assert not {"rotate", "descend"} & {one.kind for one in stream}


def test_a_passage_is_whole_sentences_in_a_row(monkeypatch):
    """A, B, C of 100 characters and one too long: two fit (201), three do not (302)."""
    a, b, c = (letter * 99 + "." for letter in "abc")
    text = f"{a}\n\n{b}  {'x' * 300}. {c}"
    side = next(f"{text} {i}." for i in range(50) if not is_heldout(f"{text} {i}."))
    monkeypatch.setattr(tasks, "prose", lambda kind: (side,))
    pretraining._passages.cache_clear()
    (sentences,) = pretraining._passages("stories")
    assert sentences[:3] == (a, b, c) and len(sentences) == 4
    tail = sentences[3]
    docs = pretraining.documents(2000, seed=1)
    found = {one.text for one in docs if one.kind == "stories"}
    pretraining._passages.cache_clear()
    assert found == {f"{a} {b}", f"{b} {c} {tail}", f"{c} {tail}", tail}
    assert max(map(len, found)) <= pretraining.PASSAGE


def test_the_digest_is_of_texts_in_order(stream):
    raw = b"".join(one.text.encode() + b"\0" for one in stream[:3])
    assert pretraining.data_digest(3, seed=7) == hashlib.sha256(raw).hexdigest()
    assert pretraining.data_digest(4, seed=7) != pretraining.data_digest(3, seed=7)


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
    assert notes["data_digest"] == pretraining.data_digest(256, seed=0)
    log = pd.read_csv(one / "loss.csv")
    assert log["step"].tolist() == list(range(8))
    texts = [one.text for one in pretraining.documents(256, seed=0)]
    # all tokens but the start token carry loss, the end token among them
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert log["tokens"].tolist() == np.reshape(lengths, (8, 32)).sum(1).tolist()
    assert notes["tokens"] == sum(lengths)
    assert log["loss"][0] == pytest.approx(math.log(VOCABULARY), abs=0.1)  # it knows nothing yet


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
    (tmp_path / "work" / "checkpoint.tmp").write_bytes(b"half")
    folder, _ = pretrain("work")
    assert not list(folder.glob("checkpoint*"))


def test_the_loss_falls(pretrain):
    """40 steps: from ln 600 = 6.4 by more than a nat."""
    folder, _ = pretrain("work", replace(MICRO, documents=40 * 32))
    loss = pd.read_csv(folder / "loss.csv")["loss"]
    assert len(loss) == 40
    assert loss[-5:].mean() < loss[:5].mean() - 1
    assert np.isfinite(loss).all()


def test_what_was_made_is_read_from_its_artifact(pretrain):
    folder, notes = pretrain("work")
    settings = asdict(MICRO)
    record = {
        "inputs": {"params": {**settings, "world": "w", "prose": "p"}},
        "files": {"model.safetensors": {"sha256": "5ha"}},
        "versions": {"torch": "1"},
        "machine": {"cores": 2},
    }
    artifact = SimpleNamespace(record=record, notes=notes, path=folder)
    made = pretraining.made(artifact)
    assert made.weights == "5ha" and made.record["settings"] == settings
    assert made.record["tokens"] == made.log["tokens"].sum()


# ---- what ships


def test_the_record_that_ships_is_that_of_the_weights():
    made = pretraining.shipped()
    folder = paths.data() / "tiny"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert made.weights == digest
    assert made.record["settings"] == asdict(Pretraining())
    assert made.record["documents"] == 400_000 and made.record["parameters"] == 1_540_096
    assert len(made.log) == 400_000 // 64
    assert made.record["tokens"] == made.log["tokens"].sum()
    loss = made.log["loss"]
    assert loss[:10].mean() > 5 and loss[-200:].mean() < 2.5


@pytest.fixture
def real_prose():
    """The packaged prose in place of the tales."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "prose", REAL)
        pretraining._passages.cache_clear()
        yield
    pretraining._passages.cache_clear()


REAL = tasks.prose


@pytest.mark.slow
def test_the_stream_is_the_one_that_ships(real_prose):
    assert pretraining.data_digest(400_000, seed=0) == pretraining.shipped().record["data_digest"]
