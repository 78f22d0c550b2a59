"""The figures of a folder, by notebook, each with the caption that its data give."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from cfutils.gallery.captions import caption

if TYPE_CHECKING:
    from cfutils.runner.notebook import Notebook

THUMBNAIL = (760, 460)
"""Pixels that a thumbnail fits into: twice the size at which a card shows it."""


@dataclass(frozen=True)
class Figure:
    """One figure of the gallery."""

    name: str
    title: str
    text: str
    width: int
    """Pixels of the PNG."""
    height: int
    thumbnail: str
    """A small picture of it as a data URI: JupyterLab's view of a page loads no files beside it."""
    files: tuple[str, ...]
    """Files beside the PNG: NAME.pdf, NAME.csv."""


def gathered(folder: Path, notebooks: Iterable[Notebook]) -> list[tuple[str, list[Figure]]]:
    """Return the figures of a folder under the title of the notebook that draws each; others come last."""
    names = {path.stem for path in folder.glob("*.png")}
    found = []
    for notebook in notebooks:
        own = [name for name in notebook.figures if name in names]
        names -= set(own)
        found.append((f"{notebook.number} · {notebook.title}", own))
    found.append(("Others", sorted(names)))
    return [(title, [_figure(folder, name) for name in own]) for title, own in found if own]


def table(folder: Path, name: str) -> pd.DataFrame | None:
    """Return the data behind a figure; None where they are not there or are no table."""
    try:
        return pd.read_csv(folder / f"{name}.csv")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None


def _figure(folder: Path, name: str) -> Figure:
    data = table(folder, name)
    title, text = caption(name, data if data is not None else pd.DataFrame())
    with Image.open(folder / f"{name}.png") as picture:
        width, height = picture.size
        thumbnail = _thumbnail(picture)
    files = tuple(f"{name}.{kind}" for kind in ("pdf", "csv") if (folder / f"{name}.{kind}").is_file())
    return Figure(name, title, text, width, height, thumbnail, files)


def _thumbnail(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
