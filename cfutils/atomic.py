"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file; once written it takes the place of `path`, which a failure leaves as it is.

    Only a process that is killed leaves NAME.part behind, which the next write of the same file replaces.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which then takes the place of `path`, as `replacing` does with a file."""
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a kill
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
