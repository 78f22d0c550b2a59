"""Bases that cannot be used are refused at once; the start token has one rule."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from cfutils import models, paths, profiles
from cfutils.errors import UserError


@pytest.fixture
def tokenizer(tiny_base):
    return models.load_tokenizer(tiny_base)


@pytest.fixture
def copy(tiny_base, tmp_path):
    """A copy of the tiny base, to change."""
    return shutil.copytree(tiny_base, tmp_path / "copy")


# ---- start and end tokens


def test_the_start_token_is_the_explicit_one_then_bos_then_eos(tokenizer):
    eos, a, b = (tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "a", "b"))
    assert tokenizer.bos_token is None
    assert models.start_token(tokenizer, None) == eos
    tokenizer.bos_token = "b"
    assert models.start_token(tokenizer, None) == b
    assert models.start_token(tokenizer, "a") == a
    tokenizer.eos_token = None
    assert models.start_token(tokenizer, None) == b


def test_no_start_token_at_all_is_refused_with_the_way_out(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="set start_token in the profile"):
        models.start_token(tokenizer, None)


@pytest.mark.parametrize("text", ["<|nothing|>", "no one token", ""])
def test_a_start_token_outside_the_vocabulary_is_refused(tokenizer, text):
    with pytest.raises(
        UserError, match=r"start_token = .*special tokens are \['<\|endoftext\|>'\]"
    ):
        models.start_token(tokenizer, text)


def test_a_start_token_that_falls_to_unk_is_refused(tokenizer):
    tokenizer.unk_token = "!"
    unk = tokenizer.convert_tokens_to_ids("!")
    with pytest.raises(UserError, match="start_token"):
        models.start_token(tokenizer, "<|nothing|>")
    assert models.start_token(tokenizer, "!") == unk


def test_end_tokens_are_eos_and_the_start_of_the_next_document(tokenizer):
    eos = tokenizer.eos_token_id
    assert models.end_tokens(tokenizer, eos) == (eos,)
    assert models.end_tokens(tokenizer, 7) == tuple(sorted((eos, 7)))
    tokenizer.eos_token = None
    assert models.end_tokens(tokenizer, 7) == (7,)


# ---- bases


@pytest.mark.parametrize(
    "pattern, says", [("*.safetensors", "safetensors weights"), ("config.json", "config.json")]
)
def test_a_folder_that_lacks_something_is_refused(copy, tiny_profile, pattern, says):
    for path in copy.glob(pattern):
        path.unlink()
    with pytest.raises(UserError, match=rf"base = .* without .*{says}.*pickled weights"):
        models.base_step(tiny_profile.change(base=str(copy)))


@pytest.mark.parametrize(
    "base, says",
    [
        ("asset:nothing", "base = 'asset:nothing' .*asset:smollm2"),
        ("/nowhere/model", "base = '/nowhere/model' .*a folder that exists"),
        ("./nowhere", "a folder that exists"),
        ("~/nowhere/model", "a folder that exists"),
    ],
)
def test_an_unknown_base_is_refused(tiny_profile, base, says):
    with pytest.raises(UserError, match=says):
        models.base_step(tiny_profile.change(base=base))


def test_a_hub_id_is_keyed_by_its_revision_and_fetches_nothing(tiny_profile):
    profile = tiny_profile.change(base="org/model")
    one, two = (models.base_step(profile.change(revision=r)) for r in ("a" * 40, "b" * 40))
    assert one.key != two.key and one.label == "org/model"


def test_a_local_folder_is_pointed_to_not_copied(tiny_profile, tiny_base, store, events):
    artifact = store.ensure(models.base_step(tiny_profile))
    assert models.folder(artifact) == tiny_base
    assert artifact.record["files"] == {}
    assert models.model_bytes(tiny_base) == (tiny_base / "model.safetensors").stat().st_size
    events()
    model = models.load(tiny_base, tiny_profile)
    assert not model.training and model.dtype == torch.float32
    assert events() == [{"event": "model", "path": str(tiny_base)}]
    assert models.load(tiny_base, tiny_profile.change(dtype="bfloat16")).dtype == torch.bfloat16


def test_the_key_follows_weights_and_configuration(tiny_profile, tiny_base, tmp_path):
    keys = {models.base_step(tiny_profile).key}
    other = shutil.copytree(tiny_base, tmp_path / "config")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    keys.add(models.base_step(tiny_profile.change(base=str(other))).key)
    other = shutil.copytree(tiny_base, tmp_path / "weights")
    with open(other / "model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    keys.add(models.base_step(tiny_profile.change(base=str(other))).key)
    assert len(keys) == 3


def test_the_key_follows_the_tokenizer(copy, tiny_profile):
    """The same weights with another tokenizer are another base: other sequences, other end token."""
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "!"}))
    changed = models.base_step(tiny_profile.change(base=str(copy)))
    assert changed.key != models.base_step(tiny_profile).key


def test_a_folder_that_moved_is_found_at_its_new_place(copy, tiny_profile, store, tmp_path):
    """The record points to a folder: it must be that of the profile, not of an equal one now gone."""
    store.ensure(models.base_step(tiny_profile.change(base=str(copy))))
    moved = copy.rename(tmp_path / "moved")
    artifact = store.ensure(models.base_step(tiny_profile.change(base=str(moved))))
    assert models.folder(artifact) == moved


# ---- the base that ships


def test_the_tiny_base_is_copied_into_the_store_and_loads(store, events):
    """Weights, configuration and tokenizer; the loss curve and the world stay where they are."""
    profile = profiles.load("tiny")
    artifact = store.ensure(models.base_step(profile))
    folder = models.folder(artifact)
    assert folder == artifact.path
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "record.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    shipped = paths.data() / "tiny" / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == shipped.read_bytes()
    tokenizer = models.load_tokenizer(folder)
    start = models.start_token(tokenizer, profile.start_token)
    assert tokenizer.convert_ids_to_tokens(start) == "<|start|>"
    assert tokenizer.convert_ids_to_tokens(models.end_tokens(tokenizer, start)) == [
        "<|start|>", "<|end|>"
    ]  # fmt: skip
    model = models.load(folder, profile)
    assert type(model).__name__ == "OlmoForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == 1_540_096
    assert model.config.hidden_size // model.config.num_attention_heads == 32
    assert [e["event"] for e in events()] == ["built", "model"]


def test_the_tiny_bases_key_follows_its_files_and_not_its_place(tmp_path, monkeypatch):
    profile = profiles.load("tiny")
    keys = [models.base_step(profile).key]
    source = paths.data() / "tiny"
    for name in ("same", "other"):
        folder = tmp_path / name / "data" / "tiny"
        folder.mkdir(parents=True)
        for path in source.iterdir():
            shutil.copyfile(path, folder / path.name)
        if name == "other":
            with open(folder / "model.safetensors", "r+b") as file:
                file.seek(-4, 2)
                file.write(b"\0\0\0\0")
        monkeypatch.setenv("CFUTILS_ROOT", str(tmp_path / name))
        keys.append(models.base_step(profile).key)
    assert keys[0] == keys[1] != keys[2]
    (tmp_path / "other" / "data" / "tiny" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"without \*\.safetensors weights"):
        models.base_step(profile)
