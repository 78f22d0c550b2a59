"""What there is to build for a profile: every step with its key, none of them built, nothing heavy loaded.

    base <- samples <- tuned <- (averaged, reduced) <- retained, target, validation, probe, log
            samples, base <- entropy          tuned, samples <- estimate          pretrain (the tiny base itself)
    base, tuned <- samples of the tuned model <- tuned (recovery)                 base <- rewritten <- tuned

One parameter on its way: `temperature` is in the parameters of `samples`, hence in its key, hence in the keys of
the runs that replay those samples and of their scores, and nowhere else.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cfutils import recipes
from cfutils.data import benchmarks, hub_access, own_tasks, packaged
from cfutils.models import bases
from cfutils.pipeline.builders import pretraining
from cfutils.pipeline.builders.base import BASE, HEALED
from cfutils.pipeline.builders.pretraining import PRETRAIN
from cfutils.pipeline.builders.samples import ENTROPY, SAMPLES
from cfutils.pipeline.builders.scoring import ESTIMATE, PROBE, RETAINED, TARGET, VALIDATION
from cfutils.pipeline.builders.tuning import AVERAGED, LOG, REDUCED, TUNED
from cfutils.pipeline.parameters import Parameters
from cfutils.pipeline.store import Step, Store
from cfutils.profiles import Profile
from cfutils.recipes import Plan
from cfutils.training.healing import Healing
from cfutils.training.settings import check_devices

GROUPS = ("target", "retained", "probe")
DOCUMENTS = ("text", "pretraining")
"""Sources of replay that are not sampled."""
REWRITE_TEMPERATURE = 0.7
"""Temperature at which the base rewrites responses: below 1, for one good answer is wanted and not its law."""
REWRITE_TOKENS = 100
"""Most tokens that a request to rewrite a response adds to prompt and response."""


class Steps:
    """The steps of one profile."""

    def __init__(self, profile: Profile, store: Store, *, rates: Mapping[str, float] | None = None) -> None:
        """`rates`: the learning rates of recipes that the selection chose, for the study of the frontier."""
        self.profile, self.store, self.rates = profile, store, rates or {}
        self._given = Parameters(profile)
        self._runs: dict[Plan, Step] = {}

    @functools.cached_property
    def base(self) -> Step:
        """The base of the profile."""
        return self._base(self.profile.base)

    def _base(self, name: str) -> Step:
        p, found = self.profile, bases.resolve(name, self.profile.revision)
        local = {"path": found.path} if found.path else {}
        if found.of is None:
            return Step(BASE, found.params, label=found.label, local=local, weight_bytes=found.weight_bytes)
        params = {"healing": asdict(Healing()), "dtype": p.dtype, "autocast": p.autocast,
                  "prose": self._given.package, **self._given.cut, **self._trained_in}  # fmt: skip
        return Step(HEALED, params, {"base": self._base(found.of)}, found.label, weight_bytes=found.weight_bytes)

    @property
    def _trained_in(self) -> dict[str, str]:
        """Runs before this parameter were trained in 16 bits where the profile's weights have them."""
        return {} if self.profile.dtype == "float32" else {"trained_in": "float32"}

    @property
    def _base_folder(self) -> Path | None:
        """Where the base's files are; None as long as it has not been prepared."""
        base, path = self.store.find_here(self.base), self.base.local.get("path")
        return base.model_folder if base else Path(path) if path else None

    @functools.cached_property
    def _model_bytes(self) -> int:
        return bases.weight_bytes(folder) if (folder := self._base_folder) else self.base.weight_bytes

    @property
    def _n_other(self) -> int:
        """Sequences of each distribution other than the base's own whose estimates are compared with it."""
        return max(2, self.profile.n_estimate // 16)

    def samples(
        self, source: str, *, purpose: str = "replay", temperature: float | None = None, n: int | None = None,
        of: Step | None = None,
    ) -> Step:  # fmt: skip
        """Samples of a source, context_free, contextual, template_prefix or rewritten, for a purpose.

        Context-free samples for other purposes than replay are never trained on: `probe`, at T = 1, and what
        the KL is estimated with, `estimate` and `reference`. Those `of` a tuned model are for its `recovery`.
        """
        p = self.profile
        t = 1.0 if purpose == "probe" else p.change(temperature=temperature).temperature
        prompted = source in ("contextual", "rewritten")
        sizes = {
            "contextual": p.n_contextual, "rewritten": p.n_train, "probe": p.n_probe, "reference": p.n_estimate,
            "estimate": p.n_estimate if t == 1 else self._n_other,
        }  # fmt: skip
        n = n or sizes.get(source) or sizes.get(purpose) or p.n_samples
        params = {
            "source": source, "purpose": purpose, "n": n, "temperature": t, **self._given.cut,
            "engine": p.engine, "dtype": p.dtype, "chunk": p.chunk,
            "target": self._given.target if prompted else None,
        }  # fmt: skip
        longest = p.max_length + p.max_tokens
        if source == "rewritten":
            params["max_tokens"] = p.max_new_tokens
            longest = 2 * p.max_length + REWRITE_TOKENS + p.max_new_tokens
        elif source == "template_prefix":
            longest += p.max_tokens
        name = source if purpose == "replay" else purpose
        label = f"{n} {name} samples at T={t:g}" + (f" of {of.label}" if of else "")
        needs = {"base": self.base, **({"model": of} if of else {})}
        return Step(
            SAMPLES, params, needs, label, local={**self._given.target_name, "max_length": longest}
        )

    def entropy(self, source: str, *, temperature: float | None = None) -> Step:
        """The base's entropy along a set of its own samples."""
        samples = self.samples(source, temperature=temperature)
        needs = {"base": self.base, "samples": samples}
        return Step(ENTROPY, {"dtype": self.profile.dtype}, needs, f"entropy of {samples.label}")

    def run(self, plan: Plan) -> Step:
        """The weights that one run ends with."""
        if plan not in self._runs:
            self._runs[plan] = self._run(plan)
        return self._runs[plan]

    def _run(self, plan: Plan) -> Step:
        p, recipe = self.profile, recipes.get(plan.recipe)
        needs: dict[str, Step] = {"base": self.base}
        if recipe.after:
            needs["tuned"] = self.run(recipes.before(p, plan))
        if recipe.after == "average":
            params: dict[str, Any] = {"alpha": plan.alpha, "dtype": p.dtype}
            return Step(AVERAGED, params, needs, plan.label, weight_bytes=self._model_bytes)
        if recipe.after == "reduce_intruders":
            rank = needs["tuned"].params["tuning"]["lora_rank"]
            params = {"kept": plan.strength, "rank": rank, "dtype": p.dtype}
            return Step(REDUCED, params, needs, plan.label, weight_bytes=self._model_bytes)
        tuning = recipes.tuning(p, plan)
        check_devices(tuning["train"], devices=p.devices, offload=p.offload)
        params = {"target": self._given.target, "replay": self._replay(plan), "tuning": tuning, **self._trained_in}
        for source in recipe.replay:
            if source not in DOCUMENTS:
                role = "samples" if len(recipe.replay) == 1 else source
                needs[role] = self._replayed(source, plan, needs.get("tuned"))
        if recipe.penalty == "ewc":  # the Fisher is that of the base's own distribution, T = 1
            needs["samples"] = self.samples("context_free", temperature=1.0)
        if recipe.rewritten:
            needs["rewritten"] = self.samples("rewritten", temperature=REWRITE_TEMPERATURE)
        return Step(
            TUNED, params, needs, plan.label,
            local={**self._given.target_name, **self._given.cut, "label": plan.label},
            weight_bytes=self._model_bytes, work_bytes=self._state_bytes(params["tuning"]),
        )  # fmt: skip

    def _state_bytes(self, tuning: Mapping[str, Any]) -> int:
        """At most so many bytes take the base's hidden states that a KL is measured from (`models.base_states`).

        Tokens times width, and the last matrix: target items at their largest length, and replay by its share.
        """
        p, tokens = self.profile, 0.0
        most = p.n_train * p.max_length
        if tuning.get("target_kl") is not None:
            tokens += most
        if tuning["replay_loss"] == "kl" and tuning["ratio"]:
            tokens += most * tuning["ratio"] / (1 - tuning["ratio"]) * (p.epochs if tuning.get("fresh") else 1)
        if not tokens or not (folder := self._base_folder):
            return 0
        width, vocabulary = bases.sizes(folder)
        return int((tokens + vocabulary) * width * (4 if tuning["dtype"] == "float32" else 2))

    def _replay(self, plan: Plan) -> dict[str, Any] | None:
        """What decides the pool of a run's replay, beside samples."""
        sources = recipes.get(plan.recipe).replay
        if len(sources) > 1:
            return {"sources": list(sources)}
        if not sources:
            return None
        make = {"text": self._given.prose, "pretraining": self._given.documents}.get(sources[0])
        return {**make(self.profile.n_samples), **self._given.cut} if make else {"source": sources[0]}

    def _replayed(self, source: str, plan: Plan, tuned: Step | None) -> Step:
        """The samples that a run replays; with fresh ones for each epoch the pool is as many times as large."""
        if source == "tuned":
            return self.samples("context_free", purpose="recovery", temperature=plan.temperature, of=tuned)
        p, fresh = self.profile, recipes.get(plan.recipe).fresh
        n = p.epochs * p.n_samples if fresh else None
        return self.samples(source, temperature=plan.temperature, n=n)

    def trains(self, plan: Plan) -> bool:
        """Whether a run trains, and has a log: averages and reductions do not."""
        return self.run(plan).kind == TUNED.kind

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
            params |= {**self._given.prose(n), **self._given.cut}
        elif source == "pretraining":
            params |= {**self._given.documents(n), **self._given.cut}
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
            rows += [("pretraining", "", None, self._n_other)] if bases.world(p.base) else []
            for source, purpose, t, size in rows:
                step = self.estimate(plan, source, n=size, purpose=purpose, temperature=t)
                columns = {"recipe": plan.recipe, "source": source, "purpose": purpose, "temperature": t}
                found.append((columns, step))
        return found

    def pretrain(self) -> Step:
        """The base that ships, made again from nothing; the tiny base where the profile has none of them."""
        name = bases.world(self.profile.base) or "tiny"
        label = bases.SHIPPED[f"shipped:{name}"]
        return Step(PRETRAIN, pretraining.params(name), label=label, weight_bytes=10_000_000)

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
        heldout = {"dtype": p.dtype, "target": self._given.target, "n_heldout": p.n_heldout}
        if group == "retained":
            tasks = {
                "tasks": [own_tasks.label(name) for name in p.retained], "limit": p.limit,
                "num_fewshot": benchmarks.fewshot_of_retained(p.num_fewshot, p.target, p.retained),
                "benchmarks": p.benchmarks, "max_new_tokens": p.max_new_tokens,
                "chat_template": p.chat_template, **self._given.answers,
            }  # fmt: skip
            params = {"dtype": p.dtype, "tasks": tasks, "items": self._given.retained_items}
            return Step(RETAINED, params, needs, label, local={"retained": list(p.retained)})
        if group == "validation":
            params = {
                "dtype": p.dtype, "target": self._given.target, "n_validation": p.n_validation,
                "n_generate": min(p.n_generate, p.n_validation), "max_new_tokens": p.max_new_tokens,
                **self._given.answers,
            }  # fmt: skip
            return Step(VALIDATION, params, needs, label, local=self._given.local_target)
        if group == "target":
            params = {**heldout, "n_generate": p.n_generate, "max_new_tokens": p.max_new_tokens, **self._given.answers}
            if shots := benchmarks.fewshot_of_target(p.num_fewshot, p.target):
                params["num_fewshot"] = shots
            return Step(TARGET, params, needs, label, local=self._given.local_target)
        needs["probe"] = self.samples("context_free", purpose="probe")
        params = {**heldout, **self._given.cut, "n_probe": p.n_probe, "prose": self._given.package}
        return Step(PROBE, params, needs, label, local=self._given.target_name)

    def assets(self) -> list[str]:
        """The data packages that the profile builds on."""
        kind, _, name = self.profile.base.removeprefix(f"{bases.HEALED}:").partition(":")
        base = [bases.PACKAGED[name].asset] if kind == "asset" else []
        return [*base, packaged.PACKAGE]  # prose and packaged benchmarks

    def on_hub(self) -> list[hub_access.Repository]:
        """What the profile fetches from the hub: base, data sets of target and tasks."""
        p = self.profile
        base = bases.hub_id(p.base.removeprefix(f"{bases.HEALED}:"))
        found = [hub_access.Repository("model", base, p.revision)] if base else []
        data = (name for name, _ in hub_access.data_sets(p.target, p.retained, p.benchmarks))
        return [*found, *(hub_access.Repository("dataset", name) for name in dict.fromkeys(data))]

    def check(self) -> None:
        """Raise `UserError` for a retained task that cannot be scored; fetches no data."""
        p = self.profile
        benchmarks.check(
            p.retained, benchmarks=p.benchmarks, num_fewshot=p.num_fewshot, target=p.target, columns=p.columns
        )

    def plans(self, name: str) -> list[Plan]:
        """The runs of a study; the frontier's are at the learning rates chosen, as far as these are known."""
        p = self.profile
        return recipes.study(recipes.with_rates(p, self.rates) if name == "frontier" else p, name)

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
            plans: list[Plan | None] = [None, *self.plans(name)]
            tops = [self.scores(p, g) for p, g in itertools.product(plans, groups(name))]
            if name not in recipes.GRIDS:
                tops += [self.log(plan) for plan in plans if plan and self.trains(plan)]
            if name == "frontier":  # whose learning rates the selection chooses
                tops = [*self.study("selection"), *tops]
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


