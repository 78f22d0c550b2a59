"""Pretrain the tiny base through the store and put it where it ships from: data/tiny.

`cfutils run tiny -n 00 -p pretrain=true` makes and compares; this replaces what is there.
"""

from __future__ import annotations

import shutil

import yaml

from cfutils import paths
from cfutils.lab import Lab

FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
         "tokenizer_config.json", "loss.csv")  # fmt: skip


def main() -> None:
    """Build, or find, the artifact; copy it and write its record."""
    lab, folder = Lab("tiny"), paths.data() / "tiny"
    artifact = lab.ensure(lab.steps.pretrain())
    for name in FILES:
        shutil.copy(artifact.path / name, folder)
    text = yaml.safe_dump(lab.pretrain().record, sort_keys=False)
    (folder / "pretraining.yaml").write_text(text, encoding="utf-8")
    print(f"{folder}: {artifact.notes['minutes']} minutes of pretraining, weights of {artifact.key}")


if __name__ == "__main__":
    main()
