"""Builder of the base: fetched, copied, or pointed to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session


def base(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Make the base available as a Hugging Face folder."""
    from cfutils.models import bases

    path = params.pop("path", None)
    return bases.prepare(work, params, path)


BASE = Builder("base", version=1, build=base)
