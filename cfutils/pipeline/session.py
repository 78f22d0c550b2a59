"""What stays loaded between builds: tokenizers, models, the base's hidden states, a running engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cfutils.profiles import Execution

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cfutils.models.base_states import BaseStates
    from cfutils.models.generation.types import Engine

T = TypeVar("T")
MODELS = 2
"""Models kept in memory: a base and the last tuned one."""
SPLITS = 4
"""Splits of targets kept in memory: of a study's runs and of its scores, for two targets."""


class Session:
    """A context manager; leaving it frees engine and models. What it holds is loaded at first use."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self._tokenizers: dict[Path, PreTrainedTokenizerBase] = {}
        self._models: dict[tuple[Path, str], PreTrainedModel] = {}
        self._base_states: dict[tuple[Path, str], BaseStates] = {}
        self._splits: dict[str, Any] = {}
        self._engine: Engine | None = None
        self._engine_settings: dict[str, Any] = {}

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Return the tokenizer of a model folder."""
        from cfutils.models import tokenizers

        if folder not in self._tokenizers:
            self._tokenizers[folder] = tokenizers.load_tokenizer(
                folder, trust_remote_code=self.execution.trust_remote_code
            )
        return self._tokenizers[folder]

    def split(self, key: str, compute: Callable[[], T]) -> T:
        """Return a target's split, computed once: every run and score of a study needs it."""
        if key not in self._splits:
            if len(self._splits) == SPLITS:
                self._splits.clear()
            self._splits[key] = compute()
        return self._splits[key]

    def model(self, folder: Path, dtype: str, *, answers: bool = False) -> PreTrainedModel:
        """Return a model; the least recently used one leaves where there are more than `MODELS`.

        answers: it is going to answer, on a GPU in vLLM, which needs the memory of all others: they leave first.
        """
        import torch

        from cfutils.models import loading

        self._close_engine()
        model = self._models.pop((folder, dtype), None)
        if answers and self.execution.engine == "vllm" and torch.cuda.is_available():
            self.release()
        if model is None:
            while len(self._models) >= MODELS:
                self._models.pop(next(iter(self._models)))
            model = loading.load(
                folder, dtype=dtype, trust_remote_code=self.execution.trust_remote_code
            )
        self._models[folder, dtype] = model
        return model

    def base_states(self, folder: Path, dtype: str) -> BaseStates:
        """Return a base with its hidden states: all tuned models are compared with the same base."""
        from cfutils.models.base_states import BaseStates

        states = self._base_states.get((folder, dtype))
        if states is None:
            states = BaseStates(self.model(folder, dtype), limit=self.execution.pass_tokens)
            self._base_states[folder, dtype] = states
        states.model = self.model(folder, dtype)
        return states

    def engine(self, **settings: Any) -> Engine:
        """Return a running engine (arguments of `sampling.open_engine`); one runs at a time."""
        from cfutils.models.generation import sampling

        if self._engine is None or settings != self._engine_settings:
            self.release()
            self._engine, self._engine_settings = sampling.open_engine(**settings).__enter__(), settings
        return self._engine

    def release(self) -> None:
        """Free engine and models; hidden states that are known stay."""
        self._close_engine()
        self._models.clear()
        for states in self._base_states.values():
            states.model = None

    def _close_engine(self) -> None:
        if self._engine is not None:
            self._engine.__exit__(None, None, None)
            self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
