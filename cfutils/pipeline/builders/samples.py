"""Builders of samples of the base, and of its entropy along them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session


def samples(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Draw samples of the base, given its start token alone or prompts of the target."""
    from cfutils.models import tokenizers
    from cfutils.models.generation import sampling
    from cfutils.pipeline.builders.inputs import Inputs

    folder, n = needs["base"].model_folder, params["n"]
    inputs = Inputs(folder, session, params)
    contextual = params["source"] == "contextual"
    prompts = inputs.prompts(n) if contextual else [(inputs.start,)] * n
    stop = tokenizers.end_tokens(inputs.tokenizer, inputs.start)
    execution = session.execution
    engine = session.engine(
        name=params["engine"], folder=folder, dtype=params["dtype"], max_length=params["max_length"],
        chunk=params["chunk"], pass_tokens=execution.pass_tokens,
        trust_remote_code=execution.trust_remote_code,
    )  # fmt: skip
    tokens = sampling.draw(
        work, engine=engine, tokenizer=inputs.tokenizer, prompts=prompts,
        first_seed=sampling.SETS["contextual" if contextual else params["purpose"]] * sampling.SEED_BLOCK,
        temperature=params["temperature"], max_tokens=params["max_tokens"], stop=stop,
        chunk=params["chunk"],
    )  # fmt: skip
    return {
        "start_token": inputs.tokenizer.convert_ids_to_tokens(inputs.start),
        "start_id": inputs.start,
        "end_ids": list(stop),
        "tokens": tokens,
        "base": needs["base"].notes["about"],
        "precision": params["dtype"],
    }


def entropy(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Measure the base's entropy along its samples."""
    from cfutils.evaluation import scores

    base = session.model(needs["base"].model_folder, params["dtype"])
    drawn = needs["samples"].table("samples")
    notes = scores.entropy(work, base, drawn, limit=session.execution.pass_tokens)
    return {**notes, "precision": params["dtype"]}


SAMPLES = Builder("samples", version=1, build=samples)
ENTROPY = Builder("entropy", version=1, build=entropy)
