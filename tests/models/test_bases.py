"""Bases that cannot be used are refused at once; what decides a base's content is known before it is fetched."""

from __future__ import annotations

import json
import shutil

import pytest

from cfutils import paths
from cfutils.errors import UserError
from cfutils.models import bases, loading, tokenizers


@pytest.fixture
def copy(tiny_base, tmp_path):
    """A copy of the tiny base, to change."""
    return shutil.copytree(tiny_base, tmp_path / "copy")


@pytest.mark.parametrize(
    "pattern, says", [("*.safetensors", "safetensors weights"), ("config.json", "config.json")]
)
def test_a_folder_that_lacks_something_is_refused(copy, pattern, says):
    for path in copy.glob(pattern):
        path.unlink()
    with pytest.raises(UserError, match=rf"base = .* without .*{says}.*pickled weights"):
        bases.resolve(str(copy))


@pytest.mark.parametrize(
    "base, says",
    [
        ("asset:nothing", "base = 'asset:nothing' .*asset:smollm2"),
        ("shipped:nothing", "base = 'shipped:nothing' .*shipped:tiny"),
        ("/nowhere/model", "base = '/nowhere/model' .*a folder that exists"),
        ("./nowhere", "a folder that exists"),
        ("~/nowhere/model", "a folder that exists"),
        ("~nobody/model/x", "a folder that exists"),
        ("a\0b", "a folder that exists"),
        ("x" * 300, "a folder that exists"),
    ],
)
def test_an_unknown_base_is_refused(base, says):
    with pytest.raises(UserError, match=says):
        bases.resolve(base)


def test_a_hub_id_is_keyed_by_its_revision_and_fetches_nothing():
    one, two = (bases.resolve("org/model", revision) for revision in ("a" * 40, "b" * 40))
    assert one.params == {"hub": "org/model", "revision": "a" * 40} != two.params
    assert one.label == "org/model" and one.path is None


def test_a_packaged_base_is_keyed_by_its_pin():
    found = bases.resolve("asset:smollm2")
    assert found.params.keys() == {"asset", "version", "wheel"} and found.params["asset"] == "smollm2"
    assert found.weight_bytes > 500e6  # 135M parameters in fp32


def test_a_local_folder_is_pointed_to_and_not_copied(tiny_base, tmp_path):
    found = bases.resolve(str(tiny_base))
    notes = bases.prepare(tmp_path, found.params, found.path)
    assert notes["path"] == found.path == str(tiny_base) and found.label == tiny_base.name
    assert list(tmp_path.iterdir()) == []


def test_the_content_of_a_folder_decides_and_not_its_place(tiny_base, tmp_path):
    """Weights, configuration and tokenizer: another of any of them is another base."""
    changes = {
        "same": lambda folder: None,
        "config": lambda folder: edit(folder / "config.json", rms_norm_eps=1e-3),
        "tokenizer": lambda folder: edit(folder / "tokenizer_config.json", bos_token="!"),
        "weights": lambda folder: flip(folder / "model.safetensors"),
    }
    found = {}
    for name, change in changes.items():
        folder = shutil.copytree(tiny_base, tmp_path / name)
        change(folder)
        found[name] = bases.resolve(str(folder)).params
    assert found["same"] == bases.resolve(str(tiny_base)).params
    distinct = [json.dumps(params, sort_keys=True) for params in found.values()]
    assert len(set(distinct)) == 4


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip(path):
    """Replace the last weights."""
    with open(path, "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")


@pytest.mark.parametrize("base", [bases.TINY, "asset:smollm2", "healed:asset:smollm2"])
def test_licences_of_bases_that_need_no_card(base):
    assert bases.licence(base) == "apache-2.0"


def test_a_licence_is_what_the_card_states(tmp_path, monkeypatch):
    assert bases.licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert bases.licence(str(tmp_path)) == "mit"

    def download(repo, name, *, revision):
        assert (repo, name, revision) == ("owner/name", "README.md", "c0ffee")
        return tmp_path / name

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert bases.licence("owner/name", "c0ffee") == "mit"


def test_what_other_tools_load_a_base_by(tiny_base, tmp_path, monkeypatch):
    assert bases.reference("owner/name", tmp_path) == "owner/name"
    assert bases.reference(bases.TINY, tmp_path) == str(paths.data() / "tiny")
    assert bases.reference("asset:smollm2", tmp_path) == str(tmp_path)
    assert bases.reference(str(tiny_base), tmp_path) == str(tiny_base)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # a folder that is called like a hub id is meant
    assert bases.reference("owner/name", tmp_path) == str(tmp_path / "owner" / "name")
    assert bases.hub_id("owner/name") is None and bases.hub_id("owner/other") == "owner/other"


def test_a_card_that_cannot_be_read_leaves_the_licence_open(capsys):
    assert bases.licence("owner/no-such-model", "c0ffee") is None
    assert "its licence is left open" in capsys.readouterr().out


def test_the_size_of_the_weights(copy):
    assert bases.weight_bytes(copy) == (copy / "model.safetensors").stat().st_size
    shutil.copy(copy / "model.safetensors", copy / "more.safetensors")
    assert bases.weight_bytes(copy) == 2 * (copy / "model.safetensors").stat().st_size


# ---- the base that ships


def test_the_tiny_base_is_copied_and_loads(tmp_path):
    """Weights, configuration and tokenizer; the loss curve and the world stay where they are."""
    bases.prepare(tmp_path, bases.resolve(bases.TINY).params)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    shipped = paths.data() / "tiny" / "model.safetensors"
    assert (tmp_path / "model.safetensors").read_bytes() == shipped.read_bytes()
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    start = tokenizers.start_token(tokenizer, None)
    assert tokenizer.convert_ids_to_tokens(start) == "<|start|>"
    assert tokenizer.convert_ids_to_tokens(tokenizers.end_tokens(tokenizer, start)) == [
        "<|start|>", "<|end|>"
    ]  # fmt: skip
    model = loading.load(tmp_path, dtype="float32")
    assert type(model).__name__ == "OlmoForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == 1_540_096
    assert model.config.hidden_size // model.config.num_attention_heads == 32


def test_the_tiny_base_is_keyed_by_its_files(tmp_path, monkeypatch):
    here = bases.resolve(bases.TINY).params
    for name, same in (("same", True), ("other", False)):
        folder = shutil.copytree(paths.data() / "tiny", tmp_path / name / "data" / "tiny")
        if not same:
            flip(folder / "model.safetensors")
        monkeypatch.setenv("CFUTILS_ROOT", str(tmp_path / name))
        assert (bases.resolve(bases.TINY).params == here) is same
