"""What adapt leaves behind: the model as a folder that any tool loads, its adapters, its card, and the numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from cfutils import atomic
from cfutils.analysis import forgetting, plots, recommend
from cfutils.analysis.claims import BITS, KL
from cfutils.errors import UserError
from cfutils.lab import Lab
from cfutils.models import bases
from cfutils.profiles import Profile
from cfutils.recipes import Plan
from cfutils.units import size

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

STATE, RESULTS, MODEL, ADAPTER = "adapt.json", "results.json", "model", "adapter"
STUDIES = ("methods", "ratio")
"""What is run: plain fine-tuning and its averages, replay at several shares."""
UNITS = {BITS.metric: BITS.unit, KL.metric: KL.unit}


def begin(folder: Path, profile: Profile, asked: dict[str, Any], notes: list[str]) -> None:
    """Write down the study that was fitted: a run that is cut off goes on with the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {k: _plain(v) for k, v in dataclasses.asdict(profile).items()}
    stated = {k: v for k, v in values.items() if k != "name" and v != _default(k)}
    atomic.write_text(folder / "profile.yaml", yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))
    atomic.write_text(folder / STATE, json.dumps({"asked": asked, "profile": values, "notes": notes}, indent=1))


def _default(name: str) -> Any:
    field = next(f for f in dataclasses.fields(Profile) if f.name == name)
    made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return _plain(made)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def check_disk(folder: Path, *, parameters: int) -> None:
    """Raise `UserError` if the disk of a folder, which need not be there, cannot hold a model of that size in fp32."""
    need = 4 * parameters
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    if (free := shutil.disk_usage(there).free) < need:
        raise UserError(
            f"disk too full: about {size(need)} are needed for the model in {folder}, {size(free)} are free. Free some "
            "space, or give --out on a larger disk."
        )


def plan_of(lab: Lab, table: pd.DataFrame) -> Plan:
    """Return the recommended run; of several seeds the first."""
    row = table[table["recommended"]].iloc[0]
    for name in STUDIES:
        for plan in lab.steps.plans(name):
            same = (pd.isna(row[k]) if v is None else v == row[k] for k, v in plan.settings().items() if k in table)
            if plan.seed == lab.profile.seeds[0] and all(same):
                return plan
    raise AssertionError("the recommended row is none of the study's runs")


def tasks(table: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Return the recommended run's scores and drops, task by task (`forgetting.pooled`).

    table: of `recommend.compare`; items: what it was made of.
    """
    own = table[table["recommended"]].iloc[0]
    mine = items["recipe"].eq(own["recipe"])
    for setting in forgetting.SETTINGS:
        mine &= items[setting].isna() if pd.isna(own[setting]) else items[setting].eq(own[setting])
    return forgetting.pooled(items[mine | items["recipe"].eq("base")])


def model(folder: Path, lab: Lab, plan: Plan) -> Path:
    """Write weights, tokenizer, template and generation configuration, those of the base but for the weights.

    Returns the model's folder, in `folder`.
    """
    base = lab.store.ensure_here(lab.steps.base, lab.session).model_folder
    run = lab.store.ensure_here(lab.steps.run(plan), lab.session).model_folder
    with atomic.replacing_folder(folder / MODEL) as work:
        for file in sorted(run.iterdir()):
            if file.suffix == ".safetensors" or file.name in ("config.json", "model.safetensors.index.json"):
                shutil.copy(file, work)
        weights = {file.name for file in work.iterdir()}
        for file in sorted(base.iterdir()):  # tokenizer, template, generation configuration, licence
            other = file.suffix in (".json", ".jinja", ".model", ".txt") or file.name.upper().startswith("LICENSE")
            if file.is_file() and other and file.name not in {*weights, "record.json"} and "index" not in file.name:
                shutil.copy(file, work)
    return folder / MODEL


def adapter(folder: Path, lab: Lab, plan: Plan) -> Path:
    """Write the adapters that the model has merged, in peft's format, for the base as other tools load it.

    Of a profile that trains adapters. Returns their folder, in `folder`.
    """
    from cfutils.training import adapters

    base = lab.store.ensure_here(lab.steps.base, lab.session)
    run = lab.store.ensure_here(lab.steps.run(plan), lab.session).model_folder / adapters.FOLDER
    config = json.loads((run / adapters.CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = bases.reference(lab.profile.base, base.model_folder)
    config["revision"] = base.notes.get("commit")
    config["target_modules"] = sorted(config["target_modules"])  # a set, in an order that changes
    with atomic.replacing_folder(folder / ADAPTER) as work:
        shutil.copy(run / adapters.WEIGHTS, work)
        (work / adapters.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder / ADAPTER


def results(
    folder: Path, profile: Profile, table: pd.DataFrame, items: pd.DataFrame, command: str, notes: list[str]
) -> None:
    """Write results.json (all runs, recommendation), the cards of model and adapters, and the command."""
    runs = json.loads(table.to_json(orient="records"))
    unit = UNITS[table["metric"].iloc[0]]
    content = {"unit": unit, "recommendation": recommend.reasons(table), "runs": runs}
    for name, library in ((MODEL, "transformers"), (ADAPTER, "peft")):
        if (folder / name).is_dir():
            atomic.write_text(folder / name / "README.md", card(profile, table, items, notes, folder, library=library))
    atomic.write_text(folder / "commands.sh", f"#!/bin/sh\n# Makes this folder again.\n{command}\n")
    atomic.write_text(folder / RESULTS, json.dumps(content, indent=1))


def card(
    profile: Profile, table: pd.DataFrame, items: pd.DataFrame, notes: list[str], folder: Path, *, library: str
) -> str:
    """Return a card for the hub: metadata with scores, recommendation, forgetting table, data and samples.

    library: what loads it, "transformers" (the model) or "peft" (its adapters).
    """
    from huggingface_hub import ModelCard, ModelCardData

    own, unit = table[table["recommended"]].iloc[0], UNITS[table["metric"].iloc[0]]
    licence = bases.licence(profile.base, profile.revision)
    data = ModelCardData(
        model_name=folder.name, base_model=bases.hub_id(profile.base),  # the hub takes no card with anything else
        license=licence, library_name=library,
        tags=["context-free-samples", *(["lora"] if profile.train == "lora" else [])],
        eval_results=_scores(table, items), pipeline_tag="text-generation",
    )  # fmt: skip
    lines = [
        f"# {folder.name}", "", *recommend.reasons(table), "", "## What was forgotten", "",
        f"Drop from the base in {unit}; above 0 is worse. {own['items']} retained items, {own['seeds']:.0f} seed(s). "
        f"Target: {own['target_metric']}.", "",
        f"| {' | '.join(recommend.HEADER)} |", "|---|---|---|---|---|",
        *(f"| {' | '.join(recommend.cells(row))} |" for _, row in table.iterrows()), "",
        "## Base, data, samples and licence", "", f"- tuned from {profile.base}", *(f"- {note}" for note in notes),
        f"- replay: {profile.n_samples} samples that the base drew from its start token alone at T = "
        f"{profile.temperature:g}, at most {profile.max_tokens} tokens each (arXiv 2505.13811)",
        f"- licence of the base: {licence or 'see the base; what it allows holds for this model too'}",
    ]  # fmt: skip
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))


def _scores(table: pd.DataFrame, items: pd.DataFrame) -> list[EvalResult]:
    """Return scores of target and retained tasks, and the drop over all of these, as a card's model-index has them.

    The hub's `.eval_results/` is for leaderboards: it takes the official score of a data set that is registered as a
    benchmark there, which neither a file of one's own is nor some items of the data package are.
    """
    from huggingface_hub import EvalResult

    own, unit = table[table["recommended"]].iloc[0], UNITS[table["metric"].iloc[0]]
    found = tasks(table, items)
    kept = found["group"].eq("retained") & found["metric"].isin(["acc", "bpb_gold"])
    names = {"mean": "mean of retained tasks"}
    rows = [
        ("held-out target" if row["group"] == "target" else names.get(row["task"], row["task"]), row["n"],
         row["metric"], row["tuned"], plots.label(row["metric"]))
        for row in found[kept | found["group"].eq("target")].to_dict("records")
    ]  # fmt: skip
    rows.append((names["mean"], own["items"], "drop", own["drop"], f"drop from the base ({unit})"))
    return [
        EvalResult(
            task_type="text-generation", dataset_type="custom", dataset_name=f"{name}, {n:.0f} items",
            dataset_config=name,  # which scores of one data set are told by
            metric_type=metric, metric_value=round(float(value), 6), metric_name=words,
        )
        for name, n, metric, value, words in rows
    ]  # fmt: skip
