"""Builders of the base: fetched, copied, or pointed to; or healed by prose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    import torch

    from cfutils.pipeline.session import Session


def base(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Make the base available as a Hugging Face folder."""
    from cfutils.models import bases

    path = params.pop("path", None)
    return bases.prepare(work, params, path)


def healed(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Train a base on prose until held-out prose stops improving."""
    import numpy as np

    from cfutils.evaluation import token_scores
    from cfutils.pipeline.builders.inputs import Inputs
    from cfutils.training.healing import Healing, heal

    folder, healing, execution = needs["base"].model_folder, Healing(**params["healing"]), session.execution
    inputs = Inputs(folder, session, params)
    session.release()  # training takes the memory
    heldout = inputs.prose("wikipedia", heldout=True, n=healing.heldout)

    def look(model: torch.nn.Module) -> float:
        scored = token_scores.score(model, None, heldout, limit=execution.pass_tokens)
        return float(np.concatenate([one.nll for one in scored]).mean())

    notes = heal(
        work, folder, inputs.prose("wikipedia", heldout=False, n=healing.documents), healing=healing, look=look,
        dtype=params["dtype"], autocast=params["autocast"], execution=execution,
    )  # fmt: skip
    about = f"then healed: trained on prose for {notes['steps']} steps, until held-out prose stopped improving"
    return {**notes, "about": f"{needs['base'].notes['about']}; {about}"}


BASE = Builder("base", version=1, build=base, gpus="none")
HEALED = Builder("healed", version=1, build=healed)
