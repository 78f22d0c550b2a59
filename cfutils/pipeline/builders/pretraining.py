"""Builder of the bases that ship, pretrained from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session


def pretrain(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Pretrain a base on the documents of its world."""
    from cfutils.training import pretraining

    settings = pretraining.Pretraining(**params["settings"])
    return pretraining.pretrain(work, settings, world=params.get("base", "tiny"))


def params(name: str) -> dict[str, Any]:
    """Return what decides a base that ships: settings, world, prose, and its name where it is not the tiny base."""
    from cfutils.data import packaged, skills
    from cfutils.training import pretraining

    found = {
        "settings": pretraining.get(name).settings.stated(),
        "world": skills.world_digest(name),
        "prose": packaged.digest(),
    }
    return found if name == "tiny" else {**found, "base": name}


PRETRAIN = Builder("pretrain", version=1, build=pretrain)
