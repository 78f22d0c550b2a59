"""Tokenizers, and the tokens that begin and end a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cfutils.errors import UserError, invalid_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES = "ByteLevel"
"""Name of the pre-tokenizer that turns texts into bytes."""


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    transformers 5 puts Llama 2's pre-tokenizer into whatever names the class LlamaTokenizer, which takes white space
    out of texts of byte-level tokenizers such as R1-Distill-Llama's; it knows those by hub id, which a folder lacks
    (huggingface/transformers#45488, #47017). They are loaded as their tokenizer.json has them.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend and BYTES not in str(backend.pre_tokenizer) and _splits_bytes(Path(path) / "tokenizer.json"):
        return PreTrainedTokenizerFast.from_pretrained(path)
    return tokenizer


def _splits_bytes(file: Path) -> bool:
    """Whether a tokenizer.json states a byte-level pre-tokenizer."""
    stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return BYTES in json.dumps(stated.get("pre_tokenizer"))


def start_token(tokenizer: PreTrainedTokenizerBase, explicit: str | None) -> int:
    """Return the id of the one token that a document begins with.

    The explicit token of the profile, else the tokenizer's BOS, else its EOS (which separates documents
    where there is no BOS, as in OLMo); never model.config, whose ids are wrong in released models.
    Raises `UserError` if the explicit text is not one token, or none of the three is there.
    """
    if explicit is not None:
        found = tokenizer.convert_tokens_to_ids(explicit)
        if found is None or (found == tokenizer.unk_token_id and explicit != tokenizer.unk_token):
            raise invalid_value(
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


