"""What notebooks use: request samples, runs and scores; what is missing is built.

    lab = Lab("smollm2", temperature=0.8)
    lab.samples("context_free", "contextual")    # a tidy frame
    methods = lab.study("methods")               # .scores, .items, .log(), .mixes(), .tokens(...)
    lab.save(fig, data, "frontier")

What is there is read and nothing heavy is loaded: torch is imported when something must be built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from cfutils import display, paths, progress
from cfutils.analysis import bootstrap, forgetting, mixture_fit, selection
from cfutils.data import chat
from cfutils.events import say
from cfutils.pipeline import estimate
from cfutils.pipeline.pruning import in_order
from cfutils.pipeline.results import Shipped
from cfutils.pipeline.session import Session
from cfutils.pipeline.steps import Steps, groups
from cfutils.pipeline.store import Artifact, Step, Store
from cfutils.profiles import FIELDS, Profile, load
from cfutils.recipes import Plan
from cfutils.studies import BASE, beside, check_disk, planned, pruner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cfutils.training.pretraining import Made

SHOWN = ("torch", "transformers")
"""Versions that `provenance` shows; records hold more."""
MIX = ("target_tokens", "replay_tokens", "ratio_reached", "shortfall", "steps", "seconds")


@dataclass(frozen=True)
class Study:
    """A set of runs compared, the base first."""

    lab: Lab
    plans: list[Plan]
    scores: pd.DataFrame
    """Tidy scores, one row each."""
    items: pd.DataFrame
    """Item-level outcomes behind them."""

    @property
    def _tuned(self) -> list[Plan]:
        return [plan for plan in self.plans if self.lab.steps.trains(plan)]

    def log(self) -> pd.DataFrame:
        """Return the training logs of the study's runs, one row per optimiser step."""
        frames = []
        for plan in self._tuned:
            settings = {k: v for k, v in plan.settings().items() if k != "lr"}  # lr is the step's
            log = self.lab.ensure(self.lab.steps.log(plan)).table("log")
            frames.append(log.assign(**settings, peak_lr=plan.lr))
        return pd.concat(frames, ignore_index=True)

    def mixes(self) -> pd.DataFrame:
        """Return what each run was tuned on: tokens of target and replay, ratio reached, shortfall."""
        rows = []
        for plan in self._tuned:
            notes = self.lab.ensure(self.lab.steps.log(plan)).notes
            rows.append({**plan.settings(), **{name: notes[name] for name in MIX}})
        return pd.DataFrame(rows)

    def tokens(self, *, recipes: Iterable[str]) -> pd.DataFrame:
        """Return NLL and KL at every token of fresh context-free samples, by recipe, beside the base's NLL.

        Of each recipe the first run is taken (first seed, first setting).
        """

        def read(plan: Plan | None) -> pd.DataFrame:
            return self.lab.ensure(self.lab.steps.scores(plan, "probe")).table("tokens")

        base = read(None)["nll"]
        frames = [
            read(next(p for p in self.plans if p.recipe == name)).assign(recipe=name, nll_base=base)
            for name in recipes
        ]
        return pd.concat(frames, ignore_index=True)


class Lab:
    """One profile, its steps, and the store they are kept in."""

    def __init__(
        self, profile: str | Profile, *, store: Store | None = None, **changes: Any
    ) -> None:
        """Load a profile and replace some of its values (None leaves a value as it is)."""
        original = load(profile) if isinstance(profile, str) else profile
        self.profile = original.change(**changes)
        self.name = original.name + "".join(
            f"+{k}={_short(getattr(self.profile, k))}"
            for k in changes
            if getattr(self.profile, k) != getattr(original, k)
        )
        self.store = store or Store(shipped=Shipped.of(original.name))
        self.session = Session(self.profile.execution)
        self.steps = Steps(self.profile, self.store)
        self._used: dict[str, tuple[Step, Artifact]] = {}

    @classmethod
    def from_parameters(cls, namespace: Mapping[str, Any]) -> Self:
        """Make the lab of a notebook from its parameters cell.

        `namespace` is the notebook's globals(): of the names annotated there (`n_train: int = 64`), those
        that are fields of the profile replace its values.
        """
        stated = set(FIELDS) & set(namespace.get("__annotations__", ()))
        return cls(namespace["profile"], **{n: namespace[n] for n in sorted(stated)})

    def ensure(self, step: Step) -> Artifact:
        """Return a step's artifact, building what is missing."""
        artifact = self.store.ensure(step, self.session)
        self._used[step.key] = step, artifact
        return artifact

    def samples(self, *sources: str, temperatures: Iterable[float] | None = None) -> pd.DataFrame:
        """Return samples of the base, one row each: context_free, contextual, probe, estimate or reference.

        Sources and temperatures (the profile's, unless given) that are missing are drawn by one engine,
        whose start costs more than a few samples.
        """
        steps = [
            (source, self._samples(source, t))
            for source in sources
            for t in temperatures or [self.profile.temperature]
        ]
        self._build([step for _, step in steps])
        frames = [self.ensure(step).table("samples").assign(source=name) for name, step in steps]
        return pd.concat(frames, ignore_index=True)

    def _samples(self, source: str, temperature: float | None = None) -> Step:
        if source in ("probe", "estimate", "reference"):  # context-free ones that are never trained on
            return self.steps.samples("context_free", purpose=source, temperature=temperature)
        return self.steps.samples(source, temperature=temperature)

    def samples_record(self, source: str) -> Mapping[str, Any]:
        """Return how a set of samples was drawn: start and end tokens, base, versions, seconds."""
        self._build([self._samples(source)])
        return self.ensure(self._samples(source)).record

    def entropy(self, *sources: str, temperatures: Iterable[float] | None = None) -> pd.DataFrame:
        """Return the base's entropy and log-probability at every token of its samples, in nats.

        Columns: sample, position, entropy, logprob (of a forward pass at T = 1), source, temperature.
        """
        steps = {
            (source, t): self.steps.entropy(source, temperature=t)
            for source in sources
            for t in temperatures or [self.profile.temperature]
        }
        self._build(steps.values())
        frames = [
            self.ensure(step).table("entropy").assign(source=source, temperature=t)
            for (source, t), step in steps.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def study(self, name: str) -> Study:
        """Run a study of recipes.STUDIES, building what is missing, and return its scores.

        Raises `UserError` before any work if a task cannot be scored, or the disk cannot hold what is missing.
        """
        if name == "frontier":
            self.choice()  # decides its learning rates
        needed, plans = planned(self.profile, self.store, name)
        self._build(needed)
        items, scores = [], []
        for plan in (None, *plans):
            run = self.steps.run(plan).key if plan else self.steps.base.key
            settings = plan.settings() if plan else BASE
            columns = {"profile": self.profile.name, **settings, "run": run}
            for group in groups(name):
                frame = self.ensure(self.steps.scores(plan, group)).table("items")
                items.append(beside(columns, frame))
                scores.append(beside(columns, forgetting.aggregate(frame)))
        return Study(
            self, plans, pd.concat(scores, ignore_index=True), pd.concat(items, ignore_index=True)
        )

    def choice(self) -> pd.DataFrame:
        """Return each recipe's learning rate, chosen on validation items alone (`selection.choose_lr`).

        Runs the study "selection" where it is missing. The study "frontier" is at these rates.
        """
        return selection.choose_lr(self.study("selection").items)

    def mixture_counts(self) -> pd.DataFrame:
        """Return the share of each kind of document: declared, and among samples (`mixture_fit.table`).

        Only for the bases that ship, whose mixtures are known.
        """
        from cfutils.models import bases, tokenizers

        steps, frames = self.steps.mixture_samples(), []
        self._build(steps)
        folder = self.ensure(self.steps.base).model_folder
        tokenizer = tokenizers.load_tokenizer(folder)
        for step in steps:
            artifact = self.store.ensure_here(step, self.session)  # with prompts, which do not ship
            frame = artifact.table("samples").assign(source=step.params["source"])
            pairs = zip(frame["prompt_ids"], frame["token_ids"], strict=True)
            whole = [[*prompt[1:], *drawn] for prompt, drawn in pairs]
            text = tokenizer.batch_decode(whole, skip_special_tokens=True)
            frames.append(frame.assign(text=text))
        world = bases.world(self.profile.base) or "tiny"
        return mixture_fit.table(pd.concat(frames, ignore_index=True), world=world)

    def shapes(self, *sources: str, temperatures: Iterable[float] | None = None) -> pd.DataFrame:
        """Return the share of each shape among samples of a base that thinks (`data.chat.shape`), with its interval.

        One row per (source, temperature, shape): count, n, share, low, high (Wilson).
        """
        from cfutils.evaluation import thinking
        from cfutils.models import tokenizers

        steps = [(s, self._samples(s, t)) for s in sources for t in temperatures or [self.profile.temperature]]
        self._build([step for _, step in steps])
        tokenizer = tokenizers.load_tokenizer(self.store.ensure_here(self.steps.base, self.session).model_folder)
        rows = []
        for source, step in steps:
            samples = self.store.ensure_here(step, self.session).table("samples")  # with prompts, which do not ship
            found, n = thinking.shapes(samples, tokenizer).value_counts(), len(samples)
            for shape in chat.SHAPES:
                count = int(found.get(shape, 0))
                low, high = bootstrap.wilson(count, n)
                rows.append(
                    {"source": source, "temperature": step.params["temperature"], "shape": shape, "count": count,
                     "n": n, "share": count / n, "low": low, "high": high}
                )  # fmt: skip
        return pd.DataFrame(rows)

    def answers(self, plan: Plan | None, group: str = "retained") -> pd.DataFrame:
        """Return what a run, or (without a plan) the base, answered: thoughts and answers (`thinking.ANSWER`)."""
        artifact = self.store.ensure_here(self.steps.scores(plan, group), self.session)
        return pd.read_parquet(artifact.path / "answers.parquet")

    def estimates(self) -> pd.DataFrame:
        """Return log-ratio and KL of every sequence that notebook 06 estimates the KL with.

        Sources: context_free (purpose `estimate`, or `reference` at T = 1), contextual, text, pretraining.
        Columns: recipe, source, purpose, temperature, index, tokens, log_ratio, kl (nats per sequence), and
        the seconds that each took for 1,000 sequences (seconds_log_ratio, seconds_kl).
        """
        frames, rows = [], self.steps.estimates()
        self._build([step.needs["samples"] for _, step in rows if "samples" in step.needs])  # by one engine
        self._build([step for _, step in rows])
        for columns, step in rows:
            artifact = self.ensure(step)
            cost = {f"seconds_{k}": 1000 * v / artifact.notes["timed"] for k, v in artifact.notes["seconds"].items()}
            frames.append(artifact.table("estimate").reset_index().assign(**columns, **cost))
        return pd.concat(frames, ignore_index=True).astype({"temperature": float})

    def pretrain(self) -> Made:
        """Pretrain the base that ships again, from nothing; takes most of an hour, and is kept."""
        from cfutils.training import pretraining

        artifact = self.ensure(self.steps.pretrain())
        return pretraining.made(artifact.record, artifact.path / "loss.csv")

    def heldout(self) -> pd.DataFrame:
        """Return the target items that are scored and never trained on: id, prompt, response."""
        from cfutils.pipeline.builders.inputs import Inputs

        step = self.steps.scores(None, "target")
        base = self.store.ensure_here(self.steps.base, self.session).model_folder
        inputs = Inputs(base, self.session, {**step.params, **step.local})
        examples = inputs.split(n_heldout=self.profile.n_heldout)[1]
        return pd.DataFrame(
            [{"id": e.id, "prompt": e.prompt, "response": e.response} for e in examples]
        )

    def provenance(self) -> pd.DataFrame:
        """Return what the artifacts used so far were made with, one row per way of making them.

        Columns: kind, artifacts, origin ("built here" or "shipped"), made (first and last day), machine,
        precision, versions, changed since (code, versions, or nothing).
        """
        rows = []
        for step, artifact in self._used.values():
            record = artifact.record
            rows.append(
                {
                    "kind": step.kind,
                    "origin": "built here" if artifact.path else "shipped",
                    "machine": record["machine"].get("gpu") or record["machine"]["cpu"],
                    "precision": record["notes"].get("precision", ""),
                    "versions": " ".join(
                        f"{k} {record['versions'][k]}" for k in SHOWN if k in record["versions"]
                    ),
                    "changed since": ", ".join(sorted(self.store.changes(step, record))),
                    "made": record["started"][:10],
                }
            )
        frame = pd.DataFrame(rows)
        keys = [c for c in frame if c != "made"]
        made = frame.groupby(keys, sort=False)["made"]
        span = made.min().where(made.min() == made.max(), made.min() + " to " + made.max())
        return pd.DataFrame({"artifacts": made.size(), "made": span}).reset_index()

    def save(self, fig: Figure, data: pd.DataFrame, name: str) -> None:
        """Write a figure as NAME.png and NAME.pdf beside the NAME.csv it was drawn from.

        A lab with changed parameters has a folder of its own, so that the profile's figures stay.
        """
        from cfutils.analysis import plots

        plots.save(fig, name, data, paths.figures(self.name))

    def _build(self, steps: Iterable[Step]) -> None:
        """Build what is missing, by several processes where the profile has several, or on a cluster."""
        steps = list(steps)
        if not (missing := self.store.missing(steps)):
            return
        from cfutils.pipeline import parallel

        self.steps.check()
        check_disk(self.profile, self.store, steps)
        if display.in_notebook():
            found = estimate.expected(missing, self.store)
            say(estimate.sentence(found, workers=self.profile.workers))
        with self.session:
            prune = pruner(self.profile, self.store, steps)
            if parallel.wanted(self.profile.workers, len(missing)):
                parallel.build(missing, self.store, self.profile.execution, workers=self.profile.workers, pruner=prune)
            missing = in_order(self.store.missing(steps))
            with progress.task("step", total=len(missing), alike=False) as advance:
                for step in missing:
                    self.store.ensure_here(step, self.session)
                    prune.after(step)
                    advance()


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else Path(str(value)).name
