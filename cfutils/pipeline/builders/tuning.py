"""Builders of tuned weights, and of a run's log apart from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session


def tuned(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Tune the base on the target and a replay pool."""
    from cfutils.data import sequences
    from cfutils.pipeline.builders.inputs import Inputs
    from cfutils.training import trainer

    folder = needs["base"].model_folder
    inputs = Inputs(folder, session, params)
    session.release()  # training takes the memory
    train, _, too_long = inputs.split()
    match params["replay"]:
        case {"source": "text", "n": n}:
            pool = inputs.prose("wikipedia", heldout=False, n=n)
        case {"source": "pretraining", "n": n}:
            pool = inputs.documents(n)
        case {"source": _}:
            pool = sequences.from_samples(needs["samples"].table("samples"))
        case None:
            pool = []
    notes = trainer.tune(
        work, folder, [inputs.encode(example) for example in train], pool,
        tuning=trainer.Tuning(**params["tuning"]), execution=session.execution, label=params["label"],
    )  # fmt: skip
    return {**notes, "too_long": too_long, "base": needs["base"].notes["about"]}


def averaged(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Average the weights of the base and of a tuned model (WiSE-FT)."""
    from cfutils.training import trainer

    trainer.average(
        work, needs["base"].model_folder, needs["tuned"].model_folder, alpha=params["alpha"],
        dtype=params["dtype"], trust_remote_code=session.execution.trust_remote_code,
    )  # fmt: skip
    return {"base": needs["base"].notes["about"], "precision": params["dtype"]}


def log(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Copy a run's log and notes: they outlive the weights, and ship."""
    run = needs["run"]
    shutil.copy(run.path / "log.parquet", work)
    return {**run.notes, "seconds": run.record["seconds"]}


TUNED = Builder("tuned", version=1, build=tuned)
AVERAGED = Builder("averaged", version=1, build=averaged)
LOG = Builder("log", version=1, build=log)
