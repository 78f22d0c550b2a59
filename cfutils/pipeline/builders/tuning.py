"""Builders of tuned weights, and of a run's log apart from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session


def tuned(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Tune the base, or a run of another recipe, on the target and a replay pool."""
    from cfutils.data import mixing, sequences
    from cfutils.pipeline.builders.inputs import Inputs
    from cfutils.training import trainer

    folder = needs["base"].model_folder
    inputs = Inputs(folder, session, params)
    session.release()  # training takes the memory
    train, _, too_long = inputs.split()
    notes: dict[str, Any] = {"too_long": too_long, "base": needs["base"].notes["about"]}
    if "rewritten" in needs:
        found = inputs.rewritten(train, needs["rewritten"].table("samples"))
        notes["rewritten"] = sum(new is not old for new, old in zip(found, train, strict=True))
        train = found
    match params["replay"]:
        case {"source": "text", "n": n}:
            pool = inputs.prose("wikipedia", heldout=False, n=n)
        case {"source": "pretraining", "n": n}:
            pool = inputs.documents(n, params["replay"].get("world_name", "tiny"))
        case {"sources": names}:
            pool = mixing.even([sequences.from_samples(needs[name].table("samples")) for name in names])
        case _:
            pool = sequences.from_samples(needs["samples"].table("samples")) if "samples" in needs else []
    made = trainer.tune(
        work, folder, [inputs.encode(example) for example in train], pool,
        tuning=trainer.Tuning(**params["tuning"]), execution=session.execution, label=params["label"],
        start_folder=needs["tuned"].model_folder if "tuned" in needs else None,
    )  # fmt: skip
    return {**made, **notes}


def averaged(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Average the weights of the base and of a tuned model (WiSE-FT)."""
    from cfutils.training import afterwards

    afterwards.average(
        work, needs["base"].model_folder, needs["tuned"].model_folder, alpha=params["alpha"],
        dtype=params["dtype"], trust_remote_code=session.execution.trust_remote_code,
    )  # fmt: skip
    return {"base": needs["base"].notes["about"], "precision": params["dtype"]}


def reduced(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Reduce the intruder dimensions of a run whose adapters were merged."""
    from cfutils.training import afterwards

    notes = afterwards.reduce_intruders(
        work, needs["base"].model_folder, needs["tuned"].model_folder, rank=params["rank"], kept=params["kept"],
        dtype=params["dtype"], trust_remote_code=session.execution.trust_remote_code,
    )  # fmt: skip
    return {**notes, "base": needs["base"].notes["about"], "precision": params["dtype"]}


def log(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Copy a run's log and notes: they outlive the weights, and ship."""
    run = needs["run"]
    shutil.copy(run.path / "log.parquet", work)
    return {**run.notes, "seconds": run.record["seconds"]}


TUNED = Builder("tuned", version=1, build=tuned, gpus="devices")
AVERAGED = Builder("averaged", version=1, build=averaged)
REDUCED = Builder("reduced", version=1, build=reduced)
LOG = Builder("log", version=1, build=log, gpus="none")
