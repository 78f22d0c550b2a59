"""Builders of samples of the base, and of its entropy along them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session


def samples(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Draw samples of the base, or of a model tuned from it, given prompts of a source."""
    from cfutils.models import tokenizers
    from cfutils.models.generation import sampling
    from cfutils.pipeline.builders.inputs import Inputs

    folder, n, source = needs["base"].model_folder, params["n"], params["source"]
    inputs = Inputs(folder, session, params)
    continued = False
    if source == "template_prefix":
        header, continued = inputs.user_header()
        prompts = [header] * n
    elif source == "rewritten":
        prompts = inputs.rewrite_prompts()
    else:
        prompts = inputs.prompts(n) if source == "contextual" else [(inputs.start,)] * n
    stop = tokenizers.end_tokens(inputs.tokenizer, inputs.start)
    execution = session.execution
    engine = functools.partial(
        session.engine, name=params["engine"], folder=needs.get("model", needs["base"]).model_folder,
        dtype=params["dtype"], max_length=params["max_length"], chunk=params["chunk"],
        pass_tokens=execution.pass_tokens, trust_remote_code=execution.trust_remote_code,
    )  # fmt: skip
    draw = functools.partial(
        sampling.draw, engine=engine, tokenizer=inputs.tokenizer, temperature=params["temperature"],
        max_tokens=params["max_tokens"], stop=stop, chunk=params["chunk"], share=params.get("share"),
    )  # fmt: skip
    seed = sampling.SETS[params["purpose"] if source == "context_free" else source] * sampling.SEED_BLOCK
    if continued:
        tokens = _two_turns(work, draw, prompts, seed, params["max_tokens"], inputs.tokenizer)
    else:
        tokens = draw(work, prompts=prompts, first_seed=seed)
    return {
        "start_token": inputs.tokenizer.convert_ids_to_tokens(inputs.start),
        "start_id": inputs.start,
        "end_ids": list(stop),
        "tokens": tokens,
        "base": needs["base"].notes["about"],
        "precision": params["dtype"],
    }


def _two_turns(
    work: Path, draw: Callable[..., int], prompts: list[tuple[int, ...]], seed: int, longest: int, tokenizer: Any
) -> int:
    """Draw samples that go on behind the token that ends the first turn; return their number of tokens.

    Where a chat template ends every turn with the token that ends a document, sampling stops behind the user's
    turn. Those samples are continued by the same model, which writes what the template has between the turns too,
    and cut at `longest` tokens: a draw of the first tokens of what it writes behind the header.
    """
    import pandas as pd

    from cfutils.models.generation import sampling

    first = work / "first"
    first.mkdir(exist_ok=True)
    if not (first / "samples.parquet").exists():
        draw(first, prompts=prompts, first_seed=seed)
    turns = pd.read_parquet(first / "samples.parquet")
    ids, logprobs = ([[*one] for one in turns[name]] for name in ("token_ids", "logprobs"))
    reasons = turns["finish_reason"].tolist()
    rows = [i for i, one in enumerate(ids) if one[-1] == tokenizer.eos_token_id]
    if rows:
        begun = [(*prompts[i], *map(int, ids[i])) for i in rows]
        draw(work, prompts=begun, first_seed=seed + sampling.SEED_BLOCK // 2)
        more = pd.read_parquet(work / "samples.parquet")
        for i, drawn in zip(rows, more.itertuples(), strict=True):
            ids[i] += drawn.token_ids.tolist()
            logprobs[i] += drawn.logprobs.tolist()
            reasons[i] = drawn.finish_reason if len(ids[i]) <= longest else "length"
    turns = turns.assign(
        token_ids=[one[:longest] for one in ids], logprobs=[one[:longest] for one in logprobs],
        finish_reason=reasons,
        text=tokenizer.batch_decode([one[:longest] for one in ids], skip_special_tokens=True),
    )  # fmt: skip
    turns.to_parquet(work / "samples.parquet", index=False)
    shutil.rmtree(first)
    return int(turns["token_ids"].map(len).sum())


def entropy(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Measure the base's entropy along its samples."""
    from cfutils.evaluation import probes

    base = session.model(needs["base"].model_folder, params["dtype"])
    drawn = needs["samples"].table("samples")
    notes = probes.entropy(work, base, drawn, limit=session.execution.pass_tokens)
    return {**notes, "precision": params["dtype"]}


def _chunks(params: Mapping[str, Any]) -> int:
    """Return how many chunks may be drawn side by side: one where a second draw goes on from the first."""
    return 1 if params["source"] == "template_prefix" else -(-params["n"] // params["chunk"])


SAMPLES = Builder("samples", version=1, build=samples, shares=_chunks)
ENTROPY = Builder("entropy", version=1, build=entropy)
