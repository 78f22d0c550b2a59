"""The face that notebooks use: ask for samples, runs and scores; what is missing is built.

    lab = Lab("smollm2", temperature=0.8)
    lab.samples("context_free", "contextual")    # a tidy frame
    methods = lab.study("methods")               # .scores, .items, .log(), .mixes(), .tokens(...)
    lab.save(fig, data, "frontier")

What is there is read and nothing heavy is loaded: torch comes in when something must be built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cfutils import forgetting, models, paths, pretraining, recipes, sampling, shares
from cfutils.profiles import Profile, load
from cfutils.recipes import Plan
from cfutils.steps import Steps, groups
from cfutils.store import Artifact, Step, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = {"recipe": "base", "seed": -1, "lr": None, "temperature": None, "ratio": None,
        "replay_weight": None, "alpha": None}  # fmt: skip
NUMBERS = ["lr", "temperature", "ratio", "replay_weight", "alpha"]
MIX = ("target_tokens", "replay_tokens", "ratio_reached", "shortfall", "steps")


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
        return [plan for plan in self.plans if plan.alpha is None]

    def log(self) -> pd.DataFrame:
        """Return the training logs of the study's runs, one row an optimiser step."""
        frames = []
        for plan in self._tuned:
            path = self.lab.ensure(self.lab.steps.run(plan)).path / "log.csv"
            settings = {k: v for k, v in plan.settings().items() if k != "lr"}  # lr is the step's
            frames.append(pd.read_csv(path).assign(**settings, peak_lr=plan.lr))
        return pd.concat(frames, ignore_index=True)

    def mixes(self) -> pd.DataFrame:
        """Return what each run was tuned on: tokens of target and replay, ratio reached, shortfall."""
        rows = []
        for plan in self._tuned:
            artifact = self.lab.ensure(self.lab.steps.run(plan))
            facts = {name: artifact.notes[name] for name in MIX}
            rows.append({**plan.settings(), **facts, "seconds": artifact.record["seconds"]})
        return pd.DataFrame(rows)

    def tokens(self, task: str, *, recipes: Iterable[str]) -> pd.DataFrame:
        """Return NLL and KL at every token of a probe, by recipe, with the base's NLL beside them.

        Of each recipe the first run counts (first seed, first setting).
        """

        def read(plan: Plan | None) -> pd.DataFrame:
            step = self.lab.steps.scores(plan, "probe")
            return pd.read_parquet(self.lab.ensure(step).path / "tokens.parquet")

        base = read(None)["nll"]
        frames = [
            read(next(p for p in self.plans if p.recipe == name)).assign(recipe=name, nll_base=base)
            for name in recipes
        ]
        tokens = pd.concat(frames, ignore_index=True)
        return tokens[tokens["task"] == task].reset_index(drop=True)


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
        self.store = store or Store()
        self.steps = Steps(self.profile, self.store)

    def ensure(self, step: Step) -> Artifact:
        """Return a step's artifact, building what is missing."""
        return self.store.ensure(step)

    def samples(self, *sources: str, temperatures: Iterable[float] | None = None) -> pd.DataFrame:
        """Return samples of the base, one row each: context_free, contextual or probe.

        Sources and temperatures (the profile's, unless given) that are missing are drawn by one
        engine, whose start costs more than a few samples.
        """
        with self._building():
            frames = [
                sampling.read(self.ensure(self.steps.samples(source, temperature=t))).assign(
                    source=source
                )
                for source in sources
                for t in temperatures or [self.profile.temperature]
            ]
        return pd.concat(frames, ignore_index=True)

    def samples_record(self, source: str) -> dict[str, Any]:
        """Return how a set of samples was drawn: start and end tokens, base, versions, seconds."""
        with self._building():
            return self.ensure(self.steps.samples(source)).record

    def entropy(self, *sources: str, temperatures: Iterable[float] | None = None) -> pd.DataFrame:
        """Return the base's entropy and log-probability at every token of its samples, in nats.

        Columns: sample, position, entropy, logprob (of a forward pass at T = 1), source, temperature.
        """
        frames = []
        with self._building():
            for source in sources:
                for t in temperatures or [self.profile.temperature]:
                    path = self.ensure(self.steps.entropy(source, temperature=t)).path
                    frame = pd.read_parquet(path / "entropy.parquet")
                    frames.append(frame.assign(source=source, temperature=t))
        return pd.concat(frames, ignore_index=True)

    def study(self, name: str) -> Study:
        """Run a study of recipes.STUDIES, building what is missing, and return its scores.

        Raises `UserError` before any work if the disk cannot hold what is missing.
        """
        steps = self.steps.study(name)
        plans = recipes.study(self.profile, name)
        self.store.check_disk(steps)
        items, scores = [], []
        with self._building():
            self._draw(name, [step for step in steps if step.kind == "samples"])
            tops = [
                [self.steps.scores(plan, group) for group in groups(name)]
                for plan in (None, *plans)
            ]
            self._share_out(name, tops)
            for plan in (None, *plans):
                run = self.steps.run(plan).key if plan else self.steps.base.key
                settings = plan.settings() if plan else BASE
                columns = {"profile": self.profile.name, **settings, "run": run}
                for group in groups(name):
                    artifact = self.ensure(self.steps.scores(plan, group))
                    frame = pd.read_parquet(artifact.path / "items.parquet")
                    items.append(_beside(columns, frame))
                    scores.append(_beside(columns, forgetting.aggregate(frame)))
        return Study(
            self, plans, pd.concat(scores, ignore_index=True), pd.concat(items, ignore_index=True)
        )

    def shares(self) -> pd.DataFrame:
        """Return the share of each kind of document: declared, and among samples (`shares.table`).

        Only for the tiny base, whose mixture is known.
        """
        with self._building():
            steps, frames = self.steps.shares(), []
            self._draw("shares", steps)
            for step in steps:
                source = "contextual" if step.params["source"] == "contextual" else "context_free"
                frames.append(sampling.read(self.ensure(step)).assign(source=source))
            tokenizer = models.load_tokenizer(models.folder(self.ensure(self.steps.base)))
        for frame in frames:
            whole = [
                [*p[1:], *t] for p, t in zip(frame["prompt_ids"], frame["token_ids"], strict=True)
            ]
            frame["text"] = tokenizer.batch_decode(whole, skip_special_tokens=True)
        return shares.table(pd.concat(frames, ignore_index=True))

    def estimates(self) -> pd.DataFrame:
        """Return log-ratio and KL of every sequence that notebook 06 estimates the KL with.

        Sources: context_free, reference (context-free too, at T = 1), contextual, text, pretraining.
        Columns: recipe, source, temperature, index, tokens, log_ratio, kl (nats a sequence), and the
        seconds that each took for 1,000 sequences (seconds_log_ratio, seconds_kl).
        """
        frames = []
        with self._building():
            rows = self.steps.estimates()
            drawn = {s.key: s for *_, step in rows if (s := step.needs.get("samples"))}
            self._draw("estimates", drawn.values())
            self._share_out("estimates", [[step] for *_, step in rows])
            for plan, source, temperature, step in rows:
                artifact = self.ensure(step)
                frame = pd.read_parquet(artifact.path / "estimate.parquet").reset_index()
                name = "context_free" if source == "estimate" else source
                notes = artifact.notes
                cost = {
                    f"seconds_{k}": 1000 * v / notes["timed"] for k, v in notes["seconds"].items()
                }
                frames.append(
                    frame.assign(recipe=plan.recipe, source=name, temperature=temperature, **cost)
                )
        return pd.concat(frames, ignore_index=True).astype({"temperature": float})

    def pretrain(self) -> pretraining.Made:
        """Pretrain the tiny base again, from nothing; takes most of an hour, and is kept."""
        return pretraining.made(self.ensure(self.steps.pretrain()))

    def heldout(self) -> pd.DataFrame:
        """Return the target items that are scored and never trained on: id, prompt, response."""
        examples = self.steps.workshop.heldout()
        return pd.DataFrame(
            [{"id": e.id, "prompt": e.prompt, "response": e.response} for e in examples]
        )

    def save(self, fig: Figure, data: pd.DataFrame, name: str) -> None:
        """Write a figure as NAME.png and NAME.pdf beside the NAME.csv it was drawn from.

        A lab with changed parameters has a folder of its own, so that the profile's figures stay.
        """
        from cfutils import plots

        plots.save(fig, name, data, paths.figures(self.name))

    def _draw(self, study: str, steps: Iterable[Step]) -> None:
        """Draw a study's samples before anything else is built: one engine serves them all."""
        steps = list(steps)
        self._share_out(study, [[step] for step in steps])
        for step in steps:
            self.ensure(step)

    def _share_out(self, study: str, units: list[list[Step]]) -> None:
        """Let several processes build what is missing, where the profile has several."""
        missing = [
            keys for unit in units if (keys := [s.key for s in unit if not self.store.find(s)])
        ]
        if self.profile.workers > 1 and missing:
            from cfutils import crew

            if "workshop" in vars(self.steps):
                self.steps.workshop.rest()
            crew.build(self.profile, study, missing)

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """Free engine and models when the block is left, if anything was built."""
        try:
            yield
        finally:
            if "workshop" in vars(self.steps):
                self.steps.workshop.rest()


def plan(profile: Profile, studies: Iterable[str]) -> list[dict[str, Any]]:
    """Return what these studies need, one row a step, deepest first: built or missing, and how long.

    Nothing is built and nothing is loaded.
    """
    steps = Steps(profile, Store())
    found = {step.key: step for name in studies for step in steps.study(name)}
    rows = []
    for step in found.values():
        artifact = steps.store.find(step)
        row = {"kind": step.kind, "label": step.label, "key": step.key}
        seconds = artifact.record["seconds"] if artifact else None
        rows.append({**row, "built": artifact is not None, "seconds": seconds})
    return rows


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else Path(str(value)).name


def _beside(settings: dict[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """Put a run's settings in columns before a frame's own."""
    columns = pd.DataFrame({k: [v] * len(frame) for k, v in settings.items()}, index=frame.index)
    return pd.concat([columns.astype(dict.fromkeys(NUMBERS, float)), frame], axis=1)
