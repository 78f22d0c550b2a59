"""Healing keeps the weights of the lowest held-out NLL, and stops when looks stop improving."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cfutils import paths
from cfutils.data.sequences import Sequence
from cfutils.models import loading
from cfutils.profiles import load
from cfutils.training.healing import Healing, heal

BASE = paths.data() / "tiny"


def prose(n: int) -> list[Sequence]:
    return [Sequence(ids=(0, 5 + i, 7, 9, 11), first=1) for i in range(n)]


@pytest.mark.parametrize(
    ("seen", "kept", "looks"),
    [
        ([3.0, 2.0, 1.0, 1.5, 1.2], 4, 5),  # two looks behind the best one: stopped there, its weights kept
        ([3.0, 3.0, 3.1], 0, 3),  # never better: the base itself
        ([3.0, 2.0, 2.5, 1.0, 0.9, 0.8], 10, 6),  # one worse look is forgiven; the documents end
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_the_best_look_are_kept(tmp_path, seen, kept, looks, dtype):
    given, weights = iter(seen), []

    def look(model):
        weights.append(model.get_input_embeddings().weight.detach().clone())
        return next(given)

    healing = Healing(batch=1, interval=2, patience=2, lr=1e-3)
    notes = heal(
        tmp_path, BASE, prose(10), healing=healing, look=look, dtype=dtype, autocast=False,
        execution=load("smoke").execution,
    )  # fmt: skip
    assert len(weights) == looks
    assert notes == {"steps": kept, "nll_before": seen[0], "nll_after": min(seen)}
    written = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    assert weights[0].dtype == torch.float32, "trained in fp32"
    assert torch.equal(written, weights[kept // 2].to(getattr(torch, dtype)))
    log = pd.read_parquet(tmp_path / "log.parquet").dropna(subset="heldout_nll")
    assert log["heldout_nll"].tolist() == seen
    assert log["steps"].tolist() == [2 * i for i in range(looks)]
    assert not list(tmp_path.glob("checkpoint*"))


def test_a_healed_base_is_a_step_behind_its_base():
    from cfutils.lab import Lab

    plain, healed = (Lab("tiny", base=base).steps for base in ("shipped:tiny", "healed:shipped:tiny"))
    assert healed.base.needs["base"].key == plain.base.key
    assert healed.base.key != plain.base.key
    assert healed.samples("context_free").needs["base"].key == healed.base.key


def test_rounded_weights_are_healed(tmp_path, monkeypatch):
    """Through the store: a base whose matrices are rounded to 3 bits a weight is nearer to its minimum afterwards."""
    from transformers import AutoTokenizer

    from cfutils.lab import Lab
    from cfutils.pipeline import steps
    from cfutils.pipeline.store import Store

    model = loading.load(BASE, dtype="float32")
    with torch.no_grad():
        for weight in model.parameters():
            step = weight.abs().amax(-1, keepdim=True) / 4
            weight.copy_((weight / step).round() * step)
    model.save_pretrained(tmp_path / "rounded")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path / "rounded")
    monkeypatch.setattr(steps, "Healing", lambda: Healing(documents=64, heldout=8, interval=2, batch=8, lr=1e-3))
    lab = Lab("tiny", base=f"healed:{tmp_path / 'rounded'}", store=Store(tmp_path / "runs"))
    notes = lab.ensure(lab.steps.base).notes
    assert notes["nll_after"] < notes["nll_before"] - 0.03
    assert "healed" in notes["about"]
