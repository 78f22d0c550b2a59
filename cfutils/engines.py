"""What draws tokens from a model: vLLM in a process of its own, or transformers in this one.

Both take the same requests and return the same completions. Each request has its own seed, so samples
do not depend on what is drawn beside them (up to floating-point rounding); stop and length are recorded
and nothing is masked, so a completion is a draw from the model's own law at the temperature.
vLLM's process is started on first use, serves any number of calls, and is gone after `close`, with all
of its memory (deleting an engine in place frees it unreliably: vllm-project/vllm#1908).
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from cfutils import models
from cfutils.errors import UserError
from cfutils.profiles import Profile
from cfutils.store import emit, say

CPU_CACHE_GIB = 2  # of keys and values; unset, vLLM takes 92 % of the machine's memory


@dataclass(frozen=True)
class Request:
    """One sequence to draw: continue these token ids, with this seed."""

    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Completion:
    """What was drawn: tokens (end token included), log p of each at temperature 1, why it ended."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class Engine(Protocol):
    """Draws completions; a context manager."""

    def draw(
        self, requests: list[Request], *, temperature: float, max_tokens: int, stop: tuple[int, ...]
    ) -> list[Completion]:
        """Draw one completion a request, in order."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def open_engine(profile: Profile, folder: Path, *, max_length: int) -> Engine:
    """Return the profile's engine for a model folder; `max_length` counts prompt and completion."""
    if profile.engine == "vllm":
        return VllmEngine(folder, profile, max_length=max_length)
    return TransformersEngine(folder, profile)


class VllmEngine:
    """vLLM in a spawned process, spoken to through a pipe; ends by itself if this process is killed."""

    def __init__(self, folder: Path, profile: Profile, *, max_length: int) -> None:
        self._settings = {
            "model": str(folder),
            "dtype": profile.dtype,
            "max_model_len": max_length,
            "max_num_seqs": max(profile.chunk, 1),
            "trust_remote_code": profile.trust_remote_code,
        }
        self._process: multiprocessing.process.BaseProcess | None = None

    def _start(self) -> None:
        say(f"start vLLM ({self._settings['dtype']})")
        emit("model", path=self._settings["model"])
        context = multiprocessing.get_context("spawn")
        self._log = tempfile.NamedTemporaryFile("w+", prefix="vllm-", suffix=".log")  # noqa: SIM115
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._settings, self._log.name), daemon=True
        )
        self._process.start()
        theirs.close()
        self._receive()

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join(10)
            kind, value = "error", f"its process ended with code {self._process.exitcode}"
        if kind == "error":
            tail = Path(self._log.name).read_text(errors="replace")[-1500:]
            self.__exit__()
            raise UserError(
                f"vLLM failed: {value}\n{tail}\nRun `cfutils doctor`, or set engine: transformers in "
                "the profile, which is slower and needs nothing more."
            )
        return value

    def draw(
        self, requests: list[Request], *, temperature: float, max_tokens: int, stop: tuple[int, ...],
        texts: tuple[str, ...] = (),
    ) -> list[Completion]:  # fmt: skip
        """Draw one completion a request, in order; one of `texts` ends it too, and stands in it."""
        if self._process is None:
            self._start()
        self._pipe.send((requests, temperature, max_tokens, list(stop), list(texts)))
        return self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is None:
            return
        self._pipe.close()  # the process reads the end of the pipe and leaves
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None
        self._log.close()


def _cpu_environment() -> dict[str, str]:
    """Let vLLM use every core that this process may use: by default it reserves one and binds one."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return {
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB),
    }


def _serve(pipe: Any, settings: dict[str, Any], log: str) -> None:
    """Run vLLM in its own process until the other end of the pipe closes."""
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # reproducible: no scheduler in a second process
        "VLLM_NO_USAGE_STATS": "1",
        **_cpu_environment(),
    }
    try:
        import torch
        from vllm import LLM, SamplingParams
        from vllm.inputs import TokensPrompt

        llm = LLM(
            **settings,
            seed=0,
            generation_config="vllm",  # never the model's own top-k or temperature
            enable_prefix_caching=False,
            enforce_eager=not torch.cuda.is_available(),  # compiling takes a minute on a CPU
        )
        pipe.send(("ready", None))
        while True:
            requests, temperature, max_tokens, stop, texts = pipe.recv()
            params = [
                SamplingParams(
                    temperature=temperature, max_tokens=max_tokens, seed=r.seed, logprobs=0,
                    stop_token_ids=stop, stop=texts, detokenize=bool(texts),
                )
                for r in requests
            ]  # fmt: skip
            prompts = [TokensPrompt(prompt_token_ids=list(r.prompt)) for r in requests]
            outputs = [o.outputs[0] for o in llm.generate(prompts, params, use_tqdm=False)]
            pipe.send(("drawn", [
                Completion(
                    list(o.token_ids),
                    [step[token].logprob for token, step in zip(o.token_ids, o.logprobs, strict=True)],
                    o.finish_reason,
                )
                for o in outputs
            ]))  # fmt: skip
    except EOFError:
        os._exit(0)  # the work is done; vLLM's own shutdown has nothing left to save
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        raise


class TransformersEngine:
    """The same law by a loop over transformers' forward pass (`decoding`); no start-up, any model."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        self._folder, self._profile, self._model = folder, profile, None

    def draw(
        self, requests: list[Request], *, temperature: float, max_tokens: int, stop: tuple[int, ...]
    ) -> list[Completion]:
        """Draw one completion a request, in order."""
        from cfutils import decoding

        if self._model is None:
            self._model = models.load(self._folder, self._profile)
        return decoding.continue_all(
            self._model, requests, temperature=temperature, max_tokens=max_tokens, stop=stop,
            limit=self._profile.pass_tokens,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._model = None
