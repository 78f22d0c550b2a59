"""The shape of a decoder, from its config.json, and its number of parameters by formula; no weights are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cfutils import paths
from cfutils.errors import UserError
from cfutils.models import bases


@dataclass(frozen=True)
class Family:
    """What an architecture's layers have beside the matrices of attention and gated MLP."""

    norms: int = 2
    """Norms with weights in a layer, each as wide as the model; one more follows the last layer where there are any."""
    qkv_bias: bool = False
    """Whether query, key and value have biases whatever the configuration says of biases."""
    qk_norms: str = ""
    """Norms of queries and keys: "head" (a weight for each place in a head) or "all" (for each place in all heads)."""


FAMILIES = {
    "llama": Family(), "mistral": Family(), "olmo": Family(norms=0), "olmo2": Family(qk_norms="all"),
    "qwen2": Family(qkv_bias=True), "qwen3": Family(qk_norms="head"),
}  # fmt: skip
"""By the configuration's model_type; others are counted as llama, and the plan says so."""
SOURCE = "data/architectures.yaml"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a decoder. All sizes are numbers of elements."""

    hidden: int
    """Width of the residual stream."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the gated MLP."""
    vocabulary: int
    tied: bool
    """Whether the last matrix is the embedding."""
    family: Family = FAMILIES["llama"]
    attention_bias: bool = False
    source: str = ""
    """Where it was read, and what was assumed."""

    @property
    def queries(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys, or of all values."""
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> int:
        """Parameters of a layer's matrices: query, key, value, output; gate, up, down."""
        attention = 2 * self.hidden * self.queries + 2 * self.hidden * self.keys
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head(self) -> int:
        """Parameters of the last matrix, and of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, as `sum(p.numel() for p in model.parameters())` counts them."""
        family, more = self.family, self.family.norms * self.hidden
        if family.qkv_bias or self.attention_bias:
            more += self.queries + 2 * self.keys
        if self.attention_bias:
            more += self.hidden
        more += {"": 0, "head": 2 * self.head_dim, "all": self.queries + self.keys}[family.qk_norms]
        last = self.hidden if family.norms else 0
        return (1 if self.tied else 2) * self.head + self.layers * (self.linear + more) + last

    def adapters(self, rank: int) -> int:
        """Parameters of low-rank adapters on all matrices of the layers: rank x (width in + width out) of each."""
        h, q, k, i = self.hidden, self.queries, self.keys, self.intermediate
        return self.layers * rank * (2 * (h + q) + 2 * (h + k) + 3 * (h + i))


def from_config(config: Mapping[str, Any], source: str = "") -> Architecture:
    """Return the shape that a config.json states.

    Raises `UserError` for a configuration that lacks what the formulas need (no decoder with attention and a gated
    MLP, or under other names), and for mixtures of experts.
    """
    config = {**config, **(config.get("text_config") or {})}
    kind = config.get("model_type", "")
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    lacks = [name for name in needed if not isinstance(config.get(name), int)]
    if lacks or any(config.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        why = f"has no {', '.join(lacks)}" if lacks else "is a mixture of experts"
        raise UserError(
            f"the base cannot be planned: its config.json (model_type {kind!r}) {why}. `cfutils run PROFILE --dry-run` "
            "predicts from like steps that were measured."
        )
    if kind not in FAMILIES:
        source += f"; parameters of {kind} counted as llama's (assumed)"
    heads = config["num_attention_heads"]
    return Architecture(
        hidden=config["hidden_size"], layers=config["num_hidden_layers"], heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"], vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        family=FAMILIES.get(kind, FAMILIES["llama"]), attention_bias=bool(config.get("attention_bias")), source=source,
    )  # fmt: skip


def read(base: str, revision: str | None = None) -> Architecture:
    """Return the shape of a profile's base; of a hub id config.json alone is fetched.

    Bases of data/architectures.yaml need no network. Raises `UserError` for one that is neither there nor reached.
    """
    kind, _, name = base.partition(":")
    if kind == bases.HEALED:
        return read(name, revision)
    if kind == "shipped":
        return _file(paths.data() / name / "config.json")
    if kind != "asset" and (folder := bases.local_folder(base)) is not None:
        return _file(folder / "config.json")
    known = yaml.safe_load((paths.data() / "architectures.yaml").read_text(encoding="utf-8"))
    if base in known:
        return from_config(known[base], f"{SOURCE}: published sizes")
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(base, "config.json", revision=revision))
    except (OSError, ValueError) as error:
        raise UserError(
            f"base = {base!r}: its config.json cannot be fetched from the hub ({type(error).__name__}), and "
            f"{SOURCE} does not have it. Check name and network, give a local folder, or add its sizes there."
        ) from error
    return _file(path, f"config.json of {base}")


def _file(path: Path, source: str = "") -> Architecture:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return from_config(config, source or f"config.json of {path.parent.name}")
