"""Steps as tasks of a Ray cluster, over the store on a path that all of its machines share.

Ray places tasks and repeats those whose machine is lost; a builder goes on in the work folder that it finds. All state
is in the store, so that whoever starts the work may die too: the same command goes on. Steps are submitted as soon as
their needs are there, without a limit on their number. Nothing passes through Ray but steps and their times.

A machine that joins the cluster later is not checked. What it needs: the same checkout and library versions, and the
store at the same path, on a file system whose locks hold between machines (`locks`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cfutils import display, paths
from cfutils.errors import UserError, invalid_value
from cfutils.pipeline import provenance, worker
from cfutils.pipeline.store import Step
from cfutils.profiles import Execution

VARIABLE = "CFUTILS_RAY"
"""The address of the cluster, for kernels of notebooks too."""
LOCAL = "local"
"""The address that stands for a cluster of this machine alone, which ends with the command."""
RETRIES = 3
"""Times that a step is begun again whose process or machine died."""
STORE_BYTES = 100_000_000
"""Ray's own memory for objects, on a cluster that is started here: there are no large ones."""
CODE = "cfutils.__main__"
"""The module whose code, with all that it imports, is that of a step."""


def wanted() -> bool:
    """Whether a cluster was named."""
    return VARIABLE in os.environ


@contextlib.contextmanager
def use(address: str | None) -> Iterator[None]:
    """Let everything in this block, kernels that it starts included, be built on the cluster of an address.

    "auto" is the one that this machine is part of, "local" a new one of this machine. None changes nothing. Raises
    `UserError` where there is no cluster.
    """
    if address is None:
        yield
        return
    ray = _ray(address)
    try:
        _init(address)
        if address == LOCAL:
            address = ray.get_runtime_context().gcs_address
        os.environ[VARIABLE] = address
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        _check.cache_clear()
        ray.shutdown()


class Cluster:
    """The executor (`parallel.Executor`) of one store on the cluster that CFUTILS_RAY names."""

    slots = float("inf")

    def __init__(self, folder: Path, execution: Execution, workers: int) -> None:
        """Connect, and check machines and profile.

        workers: steps side by side on one machine without GPUs. Raises `UserError` where steps cannot be built.
        """
        address = os.environ[VARIABLE]
        if not _ray(address).is_initialized():
            _init(address)
        self._folder, self._execution = folder.absolute(), execution
        self._refs: dict[Future, list[Any]] = {}
        nodes = _check(self._folder)
        hosts = [n for n in nodes if n.get("GPU")]
        self._has_gpus = bool(hosts)
        if self._has_gpus:
            if (most := max(n["GPU"] for n in hosts)) < execution.devices:
                raise invalid_value("devices", execution.devices, f"no machine of the cluster has more than {most:.0f} "
                                    "GPUs, and a tuning run stays on one")  # fmt: skip
            self._threads = max(1, int(min((n["CPU"] - 1) // n["GPU"] for n in hosts)))  # a core for other steps stays
            self.at_once = int(sum(n["GPU"] for n in hosts))
        else:
            hosts = nodes
            self._threads = max(1, int(min(n["CPU"] for n in hosts)) // workers)
            self.at_once = int(sum(n["CPU"] // self._threads for n in hosts))
        self._cores = int(min(n["CPU"] for n in hosts))

    def submit(self, step: Step) -> Future[worker.Built]:
        """Begin to build a step, and shares of it before where it has several."""
        devices = {"none": 0, "one": 1, "devices": self._execution.devices}[step.builder.gpus]
        gpus = devices if self._has_gpus else 0
        task = _task(fresh=gpus > 0).options(
            num_cpus=min(max(1, devices) * self._threads, self._cores), num_gpus=gpus, max_retries=RETRIES,
            name=step.label or step.kind, runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._threads)}},
        )  # fmt: skip
        n = min(step.builder.shares(step.params), self.at_once)
        shares = [
            task.remote(step, self._folder, self._execution, (i, n)) for i in range(n) if n > 1
        ]
        ref = task.remote(step, self._folder, self._execution, None, *shares)
        future = ref.future()
        self._refs[future] = [ref, *shares]
        return future

    def error(self, step: Step, error: BaseException) -> BaseException:
        """Return the builder's own error; for one of Ray's own, what to do."""
        from ray import exceptions

        while isinstance(error, exceptions.RayTaskError):
            error = error.cause
        if isinstance(error, exceptions.RayError):
            return UserError(
                f"{step.label or step.kind}: Ray gave it up: {type(error).__name__} ({_line(error)}). A lost process "
                f"or machine is replaced {RETRIES} times. What was built stays: the same command goes on."
            )
        return error

    def cancel(self, futures: Iterable[Future]) -> None:
        """End tasks, those under way too."""
        import ray

        for future in futures:
            for ref in self._refs[future]:
                ray.cancel(ref, force=True)

    def kill(self) -> None:
        """End whatever is under way."""
        self.cancel([future for future in self._refs if not future.done()])


def _ray(address: str) -> Any:
    """Import Ray, once its own variables are set: it reads them then."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--ray needs Ray on every machine of the cluster: python -m pip install -e '.[ray]'")
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # how it will be, and no warning
    }
    if address == LOCAL:  # the network reaches its ports: whoever has no token is turned away
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        settings["RAY_NUM_REDIS_GET_RETRIES"] = "2"  # attempts at an address, of 40 s each
    os.environ |= settings | os.environ
    import ray

    return ray


def _init(address: str) -> None:
    """Connect to a cluster, or start one of this machine alone; tasks get this process's variables (`_variables`)."""
    ray = _ray(address)
    own = {"num_cpus": os.cpu_count(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
    where = own if address == LOCAL else {"address": address}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(**where, **quiet, runtime_env={"env_vars": _variables()})
    except Exception as error:  # of many types: no cluster there, another version of Python or of Ray
        raise UserError(
            f"--ray {address}: no connection ({_line(error)}). Start a cluster with `ray start --head`, and `ray start "
            "--address=HOST:PORT` on further machines, or use --ray local."
        ) from error


def _line(error: BaseException, number: int = 0) -> str:
    """Return one line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[number].strip().rstrip(".")


def _variables() -> dict[str, str]:
    """Return what tasks need of this process's environment; no token, for Ray shows variables to whoever asks."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("CFUTILS_", "HF_", "TRANSFORMERS_", "OMP_WAIT_", "PYTHONPATH")) and "TOKEN" not in name
    }
    for name in (VARIABLE, display.VARIABLE):
        ours.pop(name, None)
    folders = {"CFUTILS_ROOT": paths.root(), "CFUTILS_RUNS": paths.runs()}
    return {**ours, **{name: str(path.absolute()) for name, path in folders.items()}}


@functools.cache
def _task(*, fresh: bool) -> Any:
    """Return the remote function; fresh: each call has a process of its own, whose end frees the GPU."""
    import ray

    return ray.remote(max_calls=1 if fresh else 0)(_run)


def _run(
    step: Step, folder: Path, execution: Execution, share: tuple[int, int] | None, *_shares: None
) -> worker.Built | None:
    """Build a step, or a share of it, in a process of the cluster. `_shares` only makes Ray wait for them."""
    import ray

    try:
        if share:
            worker.build_share(step, folder, execution, share)
            return None
        built = worker.build(step, folder, execution)
    finally:
        if ray.get_gpu_ids():
            worker.release()
    own = ray.get_runtime_context().get_node_id()
    names = (node["NodeName"] for node in ray.nodes() if node["NodeID"] == own)
    return built._replace(node=next(names, ""))


@functools.cache
def _check(folder: Path) -> list[dict[str, float]]:
    """Return the resources of each machine that builds, once it is known that each can.

    Raises `UserError` unless each has this code and these versions, and sees this very folder, with locks that hold.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder.mkdir(parents=True, exist_ok=True)
    nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1}
    if not nodes:
        raise UserError("the Ray cluster has no machine with a core for steps")
    token = Path(tempfile.mkstemp(prefix=".cluster-", dir=folder)[1])
    token.write_text(token.name, encoding="utf-8")
    try:
        with FileLock(f"{token}.lock", fallback_to_soft=False):
            found = {
                nodes[key]["NodeName"]: ray.remote(num_cpus=0, max_retries=0)(_look)
                .options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False))
                .remote(token)
                for key in nodes
            }
            for name, ref in found.items():
                _compare(name, ray.get(ref), folder)
    except OSError as error:
        raise UserError(f"{folder}: its file system has no locks ({error}). {FIX}") from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a machine of the cluster cannot run the suite ({_line(error, -1)}): start Ray on each in the same "
            "environment, with the same checkout at the same path"
        ) from error
    finally:
        for path in (token, Path(f"{token}.lock")):
            path.unlink(missing_ok=True)
    return [node["Resources"] for node in nodes.values()]


FIX = (
    "Set CFUTILS_RUNS to a folder that all machines mount at the same path, with locks between machines: NFS 4, GPFS, "
    "or Lustre mounted with `flock`."
)


def _look(token: Path) -> dict[str, Any]:
    """Return what one machine has, and what it sees of a file whose lock is held elsewhere."""
    try:
        seen = token.read_text(encoding="utf-8")
    except OSError:
        seen = ""
    free = False
    if seen:
        with contextlib.suppress(Timeout), FileLock(f"{token}.lock", timeout=0, fallback_to_soft=False):
            free = True
    return {"seen": seen == token.name, "free": free, "code": provenance.code_digest(CODE),
            "versions": provenance.versions()}  # fmt: skip


def _compare(name: str, found: dict[str, Any], folder: Path) -> None:
    """Raise `UserError` unless a machine is as this one."""
    if not found["seen"]:
        raise UserError(f"machine {name} of the cluster does not see {folder} as this one does. {FIX}")
    if found["free"]:
        raise UserError(f"locks in {folder} that are held here do not hold on machine {name}. {FIX}")
    if found["code"] != provenance.code_digest(CODE):
        raise UserError(
            f"machine {name} of the cluster has other code of the suite than this process: use one checkout on a "
            "shared path, and start again what was started before an edit"
        )
    if found["versions"] != provenance.versions():
        here, there = provenance.versions(), found["versions"]
        other = [f"{k} {there.get(k, 'none')} for {here.get(k, 'none')}" for k in sorted({*here, *there})
                 if here.get(k) != there.get(k)]  # fmt: skip
        raise UserError(f"machine {name} of the cluster has other libraries: {', '.join(other)}")
