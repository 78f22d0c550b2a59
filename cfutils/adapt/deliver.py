"""What adapt leaves behind: the model as a folder that any tool loads, its card, and the numbers behind it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cfutils.analysis import recommend
from cfutils.analysis.claims import BITS, KL
from cfutils.lab import Lab
from cfutils.profiles import Profile
from cfutils.recipes import Plan

STATE, RESULTS, MODEL = "adapt.json", "results.json", "model"
STUDIES = ("methods", "ratio")
"""What is run: plain fine-tuning and its averages, replay at several shares."""
UNITS = {BITS.metric: BITS.unit, KL.metric: KL.unit}


def begin(folder: Path, profile: Profile, asked: dict[str, Any], notes: list[str]) -> None:
    """Write down the study that was fitted: a run that is cut off goes on with the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {k: _plain(v) for k, v in dataclasses.asdict(profile).items()}
    _write(folder / STATE, json.dumps({"asked": asked, "profile": values, "notes": notes}, indent=1))
    stated = {k: v for k, v in values.items() if k != "name" and v != _default(k)}
    _write(folder / "profile.yaml", yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))


def _default(name: str) -> Any:
    field = next(f for f in dataclasses.fields(Profile) if f.name == name)
    made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return _plain(made)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def together(*items: pd.DataFrame) -> pd.DataFrame:
    """Return the items of several studies, of a run that occurs in two of them once."""
    return pd.concat(items).drop_duplicates(["run", "group", "task", "metric", "item"], ignore_index=True)


def plan_of(lab: Lab, table: pd.DataFrame) -> Plan:
    """Return the recommended run; of several seeds the first."""
    row = table[table["recommended"]].iloc[0]
    for name in STUDIES:
        for plan in lab.steps.plans(name):
            same = (pd.isna(row[k]) if v is None else v == row[k] for k, v in plan.settings().items() if k in table)
            if plan.seed == lab.profile.seeds[0] and all(same):
                return plan
    raise AssertionError("the recommended row is none of the study's runs")


def model(folder: Path, lab: Lab, plan: Plan) -> Path:
    """Write weights, tokenizer, template and generation configuration, those of the base but for the weights.

    Returns the model's folder, in `folder`.
    """
    base = lab.store.ensure_here(lab.steps.base, lab.session).model_folder
    run = lab.store.ensure_here(lab.steps.run(plan), lab.session).model_folder
    work = folder / f".{MODEL}.work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for file in sorted(run.iterdir()):
        if file.suffix == ".safetensors" or file.name in ("config.json", "model.safetensors.index.json"):
            shutil.copy(file, work)
    weights = {file.name for file in work.iterdir()}
    for file in sorted(base.iterdir()):  # tokenizer, template, generation configuration, licence
        other = file.suffix in (".json", ".jinja", ".model", ".txt") or file.name.upper().startswith("LICENSE")
        if file.is_file() and other and file.name not in {*weights, "record.json"} and "index" not in file.name:
            shutil.copy(file, work)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    os.replace(work, folder / MODEL)
    return folder / MODEL


def results(folder: Path, profile: Profile, table: pd.DataFrame, command: str, notes: list[str]) -> None:
    """Write results.json (all runs, recommendation), the model's card with its scores, and the commands."""
    runs = json.loads(table.to_json(orient="records"))
    unit = UNITS[table["metric"].iloc[0]]
    content = {"unit": unit, "recommendation": recommend.reasons(table), "runs": runs}
    _write(folder / RESULTS, json.dumps(content, indent=1))
    _write(folder / MODEL / "README.md", card(profile, table, notes, folder))
    _write(folder / "commands.sh", f"#!/bin/sh\n# Makes this folder again.\n{command}\n")


def card(profile: Profile, table: pd.DataFrame, notes: list[str], folder: Path) -> str:
    """Return the model card: metadata for the hub, recommendation, forgetting table, data and samples."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    own, unit = table[table["recommended"]].iloc[0], UNITS[table["metric"].iloc[0]]
    found = [
        EvalResult(
            task_type="text-generation", dataset_type="custom", dataset_name=kind, metric_type=metric,
            metric_value=round(float(value), 6), metric_name=name,
        )
        for kind, metric, value, name in (
            ("target", own["target_metric"], own["target"], f"target {own['target_metric']}"),
            ("retained", "drop", own["drop"], f"drop from the base ({unit})"),
        )
    ]  # fmt: skip
    data = ModelCardData(
        model_name=folder.name, base_model=profile.base, license=licence(profile.base), library_name="transformers",
        tags=["context-free-samples"], eval_results=found, pipeline_tag="text-generation",
    )  # fmt: skip
    lines = [
        f"# {folder.name}", "", *recommend.reasons(table), "", "## What was forgotten", "",
        f"Drop from the base in {unit}; above 0 is worse. {own['items']} retained items, {own['seeds']:.0f} seed(s). "
        f"Target: {own['target_metric']}.", "",
        f"| {' | '.join(recommend.HEADER)} |", "|---|---|---|---|---|",
        *(f"| {' | '.join(recommend.cells(row))} |" for _, row in table.iterrows()), "",
        "## Data, samples and licence", "", *(f"- {note}" for note in notes),
        f"- replay: {profile.n_samples} samples that the base drew from its start token alone at T = "
        f"{profile.temperature:g}, at most {profile.max_tokens} tokens each (arXiv 2505.13811)",
        f"- licence of the base: {licence(profile.base) or 'see the base; what it allows holds for this model too'}",
    ]  # fmt: skip
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))


def licence(base: str) -> str | None:
    """Return the licence that a base states in its own card, None where it states none."""
    from huggingface_hub import ModelCard

    if base.startswith("asset:"):
        from cfutils.data import assets
        from cfutils.models import bases

        return assets.pin(bases.PACKAGED[base.partition(":")[2]].asset)["licence"].lower()
    path = Path(base).expanduser() / "README.md"
    return ModelCard.load(path).data.license if path.is_file() else None


def _write(path: Path, text: str) -> None:
    half = path.with_name(f".{path.name}.work")
    half.write_text(text, encoding="utf-8")
    half.replace(path)
