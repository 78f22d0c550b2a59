"""Builders of scores: retained tasks, target, probes, and what the KL is estimated with."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.errors import UserError
from cfutils.pipeline.builder import Builder, Needs

if TYPE_CHECKING:
    from cfutils.pipeline.session import Session

PROSE = {"prose": "wikipedia", "stories": "stories"}
"""Probes of real prose, and where their documents come from."""


def retained(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Score the retained tasks; raises `UserError` if a file of one's own has changed since it was keyed."""
    from cfutils.data import benchmarks
    from cfutils.evaluation import scores

    folder, names = needs["model"].model_folder, params["retained"]
    if benchmarks.items_digest(names, params["tasks"]["benchmarks"]) != params["items"]:
        raise UserError("a file of retained items was changed while the work went on: give the same command again")
    load = functools.partial(session.model, folder, params["dtype"], answers=True)
    settings = scores.Retained(**{**params["tasks"], "tasks": names})
    scores.retained(work, load, folder, settings, session.execution)
    return {"precision": params["dtype"]}


def target(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Score the target on held-out items."""
    from cfutils.evaluation import scores
    from cfutils.pipeline.builders.inputs import Inputs

    folder = needs["model"].model_folder
    inputs = Inputs(needs["base"].model_folder, session, params)
    examples = inputs.split(n_heldout=params["n_heldout"])[1]
    scores.target(
        work, session.model(folder, params["dtype"], answers=True), folder, params["target_name"], examples,
        [inputs.encode(example) for example in examples], n_generate=params["n_generate"],
        max_new_tokens=params["max_new_tokens"], chat_template=params["target"]["chat_template"],
        execution=session.execution, answers=params.get("answers"), num_fewshot=params.get("num_fewshot"),
    )  # fmt: skip
    return {"precision": params["dtype"]}


def validation(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Score the target on items that are neither trained on nor scored otherwise: those after the train items.

    A target whose task has items of its own is scored by NLL alone: those items are the ones that are scored.
    """
    from cfutils.data import targets
    from cfutils.evaluation import scores
    from cfutils.pipeline.builders.inputs import Inputs

    folder, name = needs["model"].model_folder, params["target_name"]
    inputs = Inputs(needs["base"].model_folder, session, params)
    examples = inputs.split(n_validation=params["n_validation"])[0][params["target"]["n_train"] :]
    scores.target(
        work, session.model(folder, params["dtype"], answers=True), folder, name, examples,
        [inputs.encode(example) for example in examples], n_generate=params["n_generate"],
        max_new_tokens=params["max_new_tokens"], chat_template=params["target"]["chat_template"],
        execution=session.execution, group="validation", own_tasks=targets.target(name).local,
        answers=params.get("answers"),
    )  # fmt: skip
    return {"precision": params["dtype"]}


def probe(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Measure NLL and KL(base || tuned) on the probes."""
    from cfutils.data import sequences
    from cfutils.evaluation import probes
    from cfutils.pipeline.builders.inputs import Inputs

    base, folder, n = needs["base"].model_folder, needs["model"].model_folder, params["n_probe"]
    inputs = Inputs(base, session, params)
    examples = inputs.split(n_heldout=params["n_heldout"])[1]
    chosen = {
        "context_free": sequences.from_samples(needs["probe"].table("samples")),
        **{name: inputs.prose(kind, heldout=True, n=n) for name, kind in PROSE.items()},
        "target_inputs": [replace(inputs.encode(e), first=1) for e in examples[:n]],
    }
    states = None if folder == base else session.base_states(base, params["dtype"])
    model = session.model(folder, params["dtype"])
    probes.probe(
        work, model, states, inputs.tokenizer, chosen, limit=session.execution.pass_tokens
    )
    return {"precision": params["dtype"]}


def estimate(work: Path, needs: Needs, params: dict[str, Any], session: Session) -> dict[str, Any]:
    """Measure log-ratio and KL of each of the first n sequences of a source."""
    from cfutils.data import sequences
    from cfutils.evaluation import probes
    from cfutils.models.base_states import BaseStates
    from cfutils.pipeline.builders.inputs import Inputs

    base, n, limit = needs["base"].model_folder, params["n"], session.execution.pass_tokens
    if params["source"] == "text":
        batch = Inputs(base, session, params).prose("wikipedia", heldout=True, n=n)
    elif params["source"] == "pretraining":
        batch = Inputs(base, session, params).documents(n, params.get("world_name", "tiny"))
    else:
        batch = sequences.from_samples(needs["samples"].table("samples")[:n])
    states = BaseStates(session.model(base, params["dtype"]), limit=limit)  # not kept: used once
    model = session.model(needs["model"].model_folder, params["dtype"])
    notes = probes.estimate(work, states, model, batch, limit=limit)
    return {**notes, "precision": params["dtype"]}


RETAINED = Builder("retained", version=1, build=retained)
TARGET = Builder("target", version=1, build=target)
VALIDATION = Builder("validation", version=1, build=validation)
PROBE = Builder("probe", version=1, build=probe)
ESTIMATE = Builder("estimate", version=1, build=estimate)
