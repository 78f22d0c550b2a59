"""Pretrain a base through the store and put it where it ships from: data/tiny or data/tiny-think.

    python scripts/ship_tiny.py [tiny | tiny-think]

`cfutils run tiny -n 00 -p pretrain=true` makes and compares; this replaces what is there. A run that was killed goes on
where its last checkpoint is.
"""

from __future__ import annotations

import shutil
import sys

import yaml

from cfutils import paths, profiles
from cfutils.data import skills
from cfutils.errors import invalid_value
from cfutils.pipeline.builders.pretraining import PRETRAIN, params
from cfutils.pipeline.session import Session
from cfutils.pipeline.store import Step, Store
from cfutils.training import pretraining

NOT_SHIPPED = ("record.json", "world.yaml")


def main(name: str = "tiny") -> None:
    """Build, or find, the artifact; copy it and write its record."""
    if name not in skills.WORLDS:
        raise invalid_value("name", name, "one of " + ", ".join(skills.WORLDS))
    folder = paths.data() / name
    step = Step(PRETRAIN, params(name), label=pretraining.get(name).about, weight_bytes=10_000_000)
    with Session(profiles.load("tiny").execution) as session:
        artifact = Store().ensure_here(step, session)
    for file in sorted(artifact.path.iterdir()):
        if file.name not in NOT_SHIPPED:
            shutil.copy(file, folder)
    made = pretraining.made(artifact.record, artifact.path / "loss.csv")
    (folder / "pretraining.yaml").write_text(
        yaml.safe_dump(made.record, sort_keys=False), encoding="utf-8"
    )
    print(
        f"{folder}: {artifact.notes['minutes']} minutes of pretraining, weights of {artifact.key}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
