"""Builder of the tiny base, pretrained from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session


def pretrain(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Pretrain the tiny base."""
    from cfutils.training import pretraining

    return pretraining.pretrain(work, pretraining.Pretraining(**params["settings"]))


PRETRAIN = Builder("pretrain", version=1, build=pretrain)
