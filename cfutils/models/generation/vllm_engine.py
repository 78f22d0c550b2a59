"""Generation with vLLM, which runs in a process of its own.

The process starts with the first call, serves any number of calls, and ends with the context manager;
all of its memory is free then (deleting an engine in place frees it unreliably: vllm-project/vllm#1908).
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any, Self

from cfutils import progress
from cfutils.errors import UserError
from cfutils.events import emit, say
from cfutils.models.generation.types import Completion, Request
from cfutils.progress import Advance

CPU_CACHE_BYTES = 2 * 2**30
"""Default size of the key-value cache on a CPU; left unset, vLLM takes 92 % of the machine's memory."""


class VllmEngine:
    """Samples with vLLM in a spawned process, which also ends when this process is killed.

    Reproducibility: one call of `draw` uses ONE seed, that of its first request. The call returns the same
    samples whenever it is repeated with the same requests in the same order, the same sampling settings,
    the same constructor arguments, versions, kind of processor or GPU and number of threads: whatever was
    drawn before it, and in a new process too. On a GPU give `cache_bytes` for this: by default vLLM sizes
    the cache by the memory that is free, and the size of the cache decides which requests are preempted.
    A sample is NOT the same beside other requests, so the caller must fix how requests are divided into
    calls. There is no seed per request because vLLM 0.32 cannot rewind a CPU generator: a seeded request
    whose prompt is prefilled in pieces ends with "CPU Generator does not use offset". It also costs speed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        max_length: int,
        chunk: int,
        trust_remote_code: bool = False,
        cache_bytes: int | None = None,
    ) -> None:
        """Set up an engine for the model in a Hugging Face folder; nothing is loaded before `draw`.

        dtype: of weights and computation, "float32" or "bfloat16".
        max_length: most tokens of a prompt and its completion together.
        chunk: most sequences decoded at the same time; further requests wait.
        cache_bytes: size of the key-value cache, which must hold one sequence of `max_length`; by default
            2 GiB on a CPU and what vLLM chooses on a GPU. Requests that do not fit are preempted, computed
            again later.
        """
        self._settings = {
            "model": str(folder),
            "dtype": dtype,
            "max_model_len": max_length,
            "max_num_seqs": chunk,
            "trust_remote_code": trust_remote_code,
            "kv_cache_memory_bytes": cache_bytes,
        }
        self._process: multiprocessing.process.BaseProcess | None = None

    def draw(
        self,
        requests: list[Request],
        *,
        temperature: float,
        max_tokens: int,
        stop: tuple[int, ...],
        top_p: float = 1.0,
        stop_texts: tuple[str, ...] = (),
        advance: Advance = progress.ignore,
    ) -> list[Completion]:
        """Sample one completion per request, in order, with the seed of the first request.

        Raises `UserError`, with the end of vLLM's own log, if vLLM does not start or fails.
        """
        if not requests:
            return []
        if self._process is None:
            self._start()
        self._pipe.send((
            [list(request.prompt) for request in requests],
            requests[0].seed,
            {
                "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop_token_ids": list(stop),
                "stop": list(stop_texts), "detokenize": bool(stop_texts),
            },
        ))  # fmt: skip
        return [Completion(*values) for values in self._receive(advance)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is None:
            return
        self._pipe.close()  # the process reads the end of the pipe and exits
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None
        self._log.close()

    def _start(self) -> None:
        say(f"start vLLM ({self._settings['dtype']})")
        emit("model", path=self._settings["model"])
        context = multiprocessing.get_context("spawn")
        self._log = tempfile.NamedTemporaryFile("w+", prefix="vllm-", suffix=".log")  # noqa: SIM115
        self._pipe, child_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(child_end, self._settings, self._log.name), daemon=True
        )
        self._process.start()
        child_end.close()
        with progress.task("starting vLLM"):
            self._receive()

    def _receive(self, advance: Advance = progress.ignore) -> Any:
        done = 0
        try:
            while (found := self._pipe.recv())[0] == "done":
                advance(found[1] - done)
                done = found[1]
            kind, value = found
        except EOFError:
            self._process.join(10)
            kind, value = "error", f"its process ended with code {self._process.exitcode}"
        if kind == "error":
            tail = Path(self._log.name).read_text(errors="replace")[-1500:]
            self.__exit__()
            raise UserError(
                f"vLLM failed: {value}\n{tail}\nRun `cfutils doctor`, or set engine: transformers in "
                "the profile, which is slower and has no further requirements."
            )
        return value


def _environment() -> dict[str, str]:
    """Return vLLM's environment: one process, and every core that this process may use.

    By default vLLM on a CPU reserves one core and binds its threads to one other.
    """
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return {
        # scheduler, worker and their random numbers all in the process that seeds them
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    }


def _serve(pipe: Any, settings: dict[str, Any], log: str) -> None:
    """Run vLLM in the current process until the other end of the pipe closes."""
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= _environment()
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_memory_bytes
    try:
        import torch
        from tqdm import tqdm
        from vllm import LLM, SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.utils.torch_utils import set_random_seed

        class Told(tqdm):
            """vLLM's bar, which tells the other end how many requests have ended."""

            def display(self, *_: Any, **__: Any) -> None:
                pipe.send(("done", self.n))

        on_gpu = torch.cuda.is_available()
        if settings["kv_cache_memory_bytes"] is None and not on_gpu:
            settings = {**settings, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
        llm = LLM(
            **settings,
            seed=0,
            generation_config="vllm",  # never the model's own top-k or temperature
            enable_prefix_caching=False,  # else what was drawn before changes how prompts are computed
            enforce_eager=not on_gpu,  # compiling takes a minute on a CPU
        )
        pipe.send(("ready", None))
        while True:
            prompts, seed, sampling = pipe.recv()
            params = SamplingParams(**sampling, logprobs=0)  # 0: of the sampled token alone
            # Unseeded requests draw from the default generators: torch's own on a CPU and in vLLM's first
            # model runner, NumPy's in its second. vLLM seeds its workers with this function too.
            set_random_seed(seed)
            llm.enqueue([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False)
            outputs = llm.wait_for_completion(use_tqdm=functools.partial(Told, mininterval=0.5, disable=False))
            pipe.send(("completions", [_values(output.outputs[0]) for output in outputs]))
    except EOFError:
        os._exit(0)  # nothing is left to save, and vLLM's own shutdown is slow
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        raise


def _values(output: Any) -> tuple[list[int], list[float], str]:
    """Return a completion's tokens, their log-probabilities, and why it ended."""
    ids = list(output.token_ids)
    logprobs = [step[token].logprob for token, step in zip(ids, output.logprobs, strict=True)]
    return ids, logprobs, output.finish_reason
