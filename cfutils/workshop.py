"""What builds the steps of a profile: tokenizer, sequences, the engine and the models that are loaded.

Each method named like a step writes that artifact's files into a work folder. Models are kept while they
are of use: the base, and the last other one. The engine is started once for all samples that are drawn
one after the other, and closed before anything else is computed.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfutils import engines, models, pretraining, replay, sampling, score, tasks, tokens, tune
from cfutils.profiles import Profile
from cfutils.recipes import Plan, get
from cfutils.replay import Sequence
from cfutils.splits import is_heldout
from cfutils.store import Artifact
from cfutils.tasks import Example

warnings.filterwarnings("ignore", message="IProgress not found")  # no widgets, on purpose

Needs = dict[str, Artifact]
PROSE = {"prose": "wikipedia", "stories": "stories"}
"""Probes of real prose, and where their documents come from."""


class Workshop:
    """Builders of one profile's artifacts."""

    def __init__(self, profile: Profile, base_folder: Path) -> None:
        self.profile, self.base_folder = profile, base_folder
        self.tokenizer = models.load_tokenizer(
            base_folder, trust_remote_code=profile.trust_remote_code
        )
        self.start = models.start_token(self.tokenizer, profile.start_token)
        self._models: dict[Path, Any] = {}
        self._states: dict[Sequence, Any] = {}
        self._engine: engines.Engine | None = None

    # ---- builders, by the name of their step

    def samples(
        self, work: Path, needs: Needs, *, source: str, n: int, temperature: float
    ) -> dict[str, Any]:
        """Draw samples of the base."""
        p = self.profile
        if self._engine is None:
            self._engine = engines.open_engine(
                p, self.base_folder, max_length=p.max_length + p.max_tokens
            )
        heads = [(self.start,)] * n if source != "contextual" else self._prompts(n)
        stop = models.end_tokens(self.tokenizer, self.start)
        tokens = sampling.draw(
            work, engine=self._engine, tokenizer=self.tokenizer, heads=heads, stream=source,
            temperature=temperature, max_tokens=p.max_tokens, stop=stop, chunk=p.chunk,
        )  # fmt: skip
        return {
            "start_token": self.tokenizer.convert_ids_to_tokens(self.start),
            "start_id": self.start,
            "end_ids": list(stop),
            "tokens": tokens,
            "base": needs["base"].notes["about"],
        }

    def entropy(self, work: Path, needs: Needs) -> dict[str, Any]:
        """Measure the base's entropy along its samples."""
        base, samples = self._load(self.base_folder), sampling.read(needs["samples"])
        return score.entropy(work, base, samples, limit=self.profile.pass_tokens)

    def run(self, work: Path, needs: Needs, *, plan: Plan) -> dict[str, Any]:
        """Tune the base."""
        self.close_engine()
        self._models.clear()  # tuning wants the memory
        target = [self._encode(example) for example in self._split[0]]
        pool: list[Sequence] = []
        if "samples" in needs:
            pool = replay.from_samples(sampling.read(needs["samples"]))
        elif get(plan.recipe).replay == "text":
            pool = self._texts("wikipedia", heldout=False, n=self.profile.n_samples)
        elif get(plan.recipe).replay == "pretraining":
            pool = self._documents(self.profile.n_samples)
        notes = tune.tune(work, self.base_folder, target, pool, profile=self.profile, plan=plan)
        return {**notes, "too_long": self._split[2], "base": needs["base"].notes["about"]}

    def estimate(self, work: Path, needs: Needs, *, source: str, n: int) -> dict[str, Any]:
        """Measure log-ratio and KL of each of the first n sequences of a source."""
        if source == "text":
            sequences = self._texts("wikipedia", heldout=True, n=n)
        elif source == "pretraining":
            sequences = self._documents(n)
        else:
            sequences = replay.from_samples(sampling.read(needs["samples"])[:n])
        base, model = self._load(self.base_folder), self._load(models.folder(needs["model"]))
        return score.estimate(work, base, model, sequences, limit=self.profile.pass_tokens)

    def average(self, work: Path, needs: Needs, *, plan: Plan) -> dict[str, Any]:
        """Average the weights of the base and a tuned model."""
        folder = models.folder(needs["tuned"])
        tune.average(work, self.base_folder, folder, profile=self.profile, alpha=plan.alpha)
        return {"base": needs["base"].notes["about"]}

    def retained(self, work: Path, needs: Needs) -> None:
        """Score the retained tasks."""
        folder = models.folder(needs["model"])
        score.retained(work, functools.partial(self._load, folder), folder, profile=self.profile)

    def target(self, work: Path, needs: Needs) -> None:
        """Score the target on held-out items."""
        folder, examples = models.folder(needs["model"]), self.heldout()
        sequences = [self._encode(example) for example in examples]
        score.target(work, self._load(folder), folder, examples, sequences, profile=self.profile)

    def probe(self, work: Path, needs: Needs) -> None:
        """Measure NLL and KL(base || tuned) on the probes."""
        folder, n = models.folder(needs["model"]), self.profile.n_probe
        sequences = {
            "context_free": replay.from_samples(sampling.read(needs["probe"])),
            **{name: self._texts(kind, heldout=True, n=n) for name, kind in PROSE.items()},
            "target_inputs": [replace(self._encode(e), first=1) for e in self.heldout()[:n]],
        }
        base = None
        if folder != self.base_folder:
            base = tokens.Remembered(self._load(self.base_folder), self._states)
        score.probe(
            work, self._load(folder), base, self.tokenizer, sequences, limit=self.profile.pass_tokens
        )

    # ---- what they share

    def heldout(self) -> list[Example]:
        """The target items that are scored and never trained on."""
        return self._split[1]

    def rest(self) -> None:
        """Free the engine and the models."""
        self.close_engine()
        self._models.clear()

    def close_engine(self) -> None:
        """End the sampling engine, if one runs, and free its memory."""
        if self._engine is not None:
            self._engine.__exit__()
            self._engine = None

    def _load(self, folder: Path) -> Any:
        """Load a model, keeping the base and the last other one."""
        self.close_engine()
        if folder not in self._models:
            kept = {k: v for k, v in self._models.items() if k == self.base_folder}
            self._models = {**kept, folder: models.load(folder, self.profile)}
        return self._models[folder]

    @functools.cached_property
    def _split(self) -> tuple[list[Example], list[Example], int]:
        p = self.profile
        return tasks.split(
            p.target, lambda example: len(self._encode(example).ids), max_length=p.max_length,
            n_train=p.n_train, n_heldout=p.n_heldout,
        )  # fmt: skip

    def _encode(self, example: Example) -> Sequence:
        return replay.from_example(
            self.tokenizer, example, chat_template=self.profile.chat_template
        )

    def _prompts(self, n: int) -> list[tuple[int, ...]]:
        """The prompts of the train items, again from the first where n is larger."""
        train, template = self._split[0], self.profile.chat_template
        return [
            tuple(replay.prompt_ids(self.tokenizer, e.prompt, chat_template=template))
            for e in (train[i % len(train)] for i in range(n))
        ]

    def _documents(self, n: int) -> list[Sequence]:
        """The first documents of the base's own pretraining."""
        found = pretraining.documents(n, seed=pretraining.Pretraining().seed)
        texts = [one.text for one in found]
        return replay.from_text(
            self.tokenizer, texts, start=self.start, max_tokens=self.profile.max_tokens,
            end=self.tokenizer.eos_token_id,
        )  # fmt: skip

    def _texts(self, kind: str, *, heldout: bool, n: int) -> list[Sequence]:
        texts = [t for t in tasks.prose(kind) if is_heldout(t) == heldout][:n]
        return replay.from_text(
            self.tokenizer, texts, start=self.start, max_tokens=self.profile.max_tokens
        )
