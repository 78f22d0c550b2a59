"""Steps on a Ray cluster: two machines of one core, one of which is lost; a driver that dies; shares of samples."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from cfutils import __main__, paths, profiles
from cfutils.errors import UserError
from cfutils.pipeline import parallel, provenance, ray_cluster
from cfutils.pipeline.builder import Builder
from cfutils.pipeline.store import Step

pytest.importorskip("ray")  # an optional dependency
EXECUTION = profiles.load("tiny").execution
SMALL = {
    "n_train": 48, "n_heldout": 8, "n_generate": 4, "n_probe": 4, "n_samples": 48, "n_contextual": 4, "chunk": 12,
    "max_tokens": 24, "limit": 4, "epochs": 4, "retained": ["job", "category"], "seeds": [0],
    "recipes": ["ft", "cfs", "l2"],
}  # fmt: skip
DRIVER = """
import json, sys
from cfutils.lab import Lab
study = Lab("tiny", **json.loads(sys.argv[1])).study("methods")
study.items.to_parquet(sys.argv[2])
"""
BUILT = re.compile(r"built (\w+): (.*) in \d+ s(?: on (\w+))?")
SECONDS = 300


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("token")
    return path


def test_a_machine_is_refused_unless_it_is_as_this_one(token, tmp_path):
    with FileLock(f"{token}.lock"):
        good = ray_cluster._look(token)
    ray_cluster._compare("n1", good, tmp_path)
    assert good["versions"]["python"] == provenance.versions()["python"]
    for change, words in (
        ({"seen": False}, "n1 of the cluster does not see .*CFUTILS_RUNS"),
        ({"free": True}, "locks in .* do not hold on machine n1.*NFS 4"),
        ({"code": "0"}, "n1 of the cluster has other code"),
        ({"versions": {**good["versions"], "torch": "1.0"}}, r"n1 of the cluster has other libraries: torch 1\.0 for "),
    ):
        with pytest.raises(UserError, match=words):
            ray_cluster._compare("n1", {**good, **change}, tmp_path)


def test_a_machine_looks_at_the_token_and_its_lock(token, tmp_path):
    assert ray_cluster._look(token)["free"], "nobody holds it"
    assert not ray_cluster._look(tmp_path / "absent")["seen"]
    token.write_text("a token of that name, in another folder")
    assert not ray_cluster._look(token)["seen"]


def test_tasks_get_our_variables_and_no_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CFUTILS_RAY", "auto")
    monkeypatch.setenv("CFUTILS_PROGRESS", str(tmp_path))
    monkeypatch.setenv("CFUTILS_RUNS", "relative")
    found = ray_cluster._variables()
    assert found["HF_HUB_OFFLINE"] == "1" and found["CFUTILS_RUNS"] == str(Path.cwd() / "relative")
    assert not {"HF_TOKEN", "CFUTILS_RAY", "CFUTILS_PROGRESS"} & set(found)


def test_the_examples_give_commands_that_are_understood(tmp_path):
    folder = paths.root() / "examples" / "cluster"
    sky = yaml.safe_load((folder / "skypilot.yaml").read_text(encoding="utf-8"))
    (tmp_path / "run.sh").write_text(sky["run"], encoding="utf-8")
    for path in (folder / "slurm.sbatch", tmp_path / "run.sh"):
        subprocess.run(["bash", "-n", path], check=True)
        lines = path.read_text(encoding="utf-8").splitlines()
        command = next(line for line in lines if line.strip().startswith("cfutils run"))
        assert __main__.parser().parse_args(shlex.split(command)[1:5]).ray in ("auto", "$address")
    assert sky["envs"]["PROFILE"] in profiles.names()


def test_a_dry_run_needs_no_cluster(capsys):
    assert __main__.main(["run", "--dry-run", "--ray", "auto"]) == 2
    assert "leave out --rebuild and --ray" in capsys.readouterr().err


@pytest.fixture(scope="module")
def head():
    """A head without cores; machines of its cluster by name."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster, {}
    cluster.shutdown()


@pytest.fixture
def cluster(head):
    """A cluster whose machines n1 and n2 build, on one core each."""
    cluster, cluster.machines = head
    for name in {"n1", "n2"} - set(cluster.machines):
        cluster.machines[name] = cluster.add_node(num_cpus=1, node_name=name)
    return cluster


class Driver:
    """The same study in a process of its own, on a cluster or alone."""

    def __init__(self, folder: Path, cluster=None) -> None:
        self.out = folder / f"items-{time.monotonic_ns()}.parquet"
        env = {"CFUTILS_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        env |= {"CFUTILS_RAY": cluster.address} if cluster else {}
        workers = {} if cluster else {"workers": 1}
        self._log = open(folder / "log", "a+", encoding="utf-8")  # noqa: SIM115
        self._begin = self._log.tell()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", DRIVER, json.dumps(SMALL | workers), str(self.out)],
            env={**os.environ, **env}, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def text(self) -> str:
        self._log.seek(self._begin)
        return self._log.read()

    def built(self) -> list[tuple[str, str, str]]:
        """Kind, label and machine of what it has reported."""
        return [match.groups() for match in BUILT.finditer(self.text())]

    def until(self, condition) -> None:
        begun = time.monotonic()
        while not condition(self.built()):
            assert self.process.poll() is None, f"it has ended:\n{self.text()}"
            assert time.monotonic() - begun < SECONDS, f"that never came:\n{self.text()}"
            time.sleep(0.05)

    def items(self) -> pd.DataFrame:
        assert self.process.wait(timeout=SECONDS) == 0, self.text()
        return pd.read_parquet(self.out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The study built by one process, and its store."""
    folder = tmp_path_factory.mktemp("alone")
    return Driver(folder).items(), folder / "runs"


def same_samples(one: Path, other: Path) -> None:
    """Compare every set of samples of two stores, token by token."""
    files = sorted(path.relative_to(one) for path in one.glob("samples/*/samples.parquet"))
    assert len(files) > 1
    for file in files:
        pd.testing.assert_frame_equal(pd.read_parquet(one / file), pd.read_parquet(other / file))


@pytest.mark.slow
def test_a_study_whose_machine_is_lost_ends_with_the_numbers_of_one_process(cluster, alone, tmp_path):
    driver = Driver(tmp_path, cluster)
    runs = tmp_path / "runs"
    driver.until(  # both build something, one of them a model, which takes longest
        lambda built: built and len(list(runs.glob("*/.work-*"))) == 2 and list(runs.glob("tuned/.work-*"))
    )
    _, _, lost = driver.built()[0]
    cluster.remove_node(cluster.machines.pop(lost), allow_graceful=False)
    before = len(driver.built())
    items = driver.items()
    after = driver.built()[before:]
    assert len(after) > 3 and {node for _, _, node in after[1:]} == {"n1", "n2"} - {lost}
    assert "retries remaining" in driver.text(), "Ray's own word: a task was under way there"
    pd.testing.assert_frame_equal(items, alone[0])
    same_samples(alone[1], tmp_path / "runs")


@pytest.mark.slow
def test_a_driver_that_was_killed_goes_on_by_the_same_command(cluster, alone, tmp_path):
    driver = Driver(tmp_path, cluster)
    driver.until(lambda built: len(built) > 5)
    driver.process.kill()
    driver.process.wait()
    first = {one[:2] for one in driver.built()}
    again = Driver(tmp_path, cluster)
    pd.testing.assert_frame_equal(again.items(), alone[0])
    second = {one[:2] for one in again.built()}
    assert second and not first & second


def _write(work: Path, needs: dict, params: dict, session: object) -> dict:
    share = params.get("share")
    if params.get("die") and not (work / "died").exists():
        (work / "died").touch()
        os._exit(1)
    if params.get("fail") or (share and params.get("fail_share")):
        raise UserError("it cannot be done")
    if share:
        (work / f"share-{share[0]}").touch()
        return {}
    return {"shares": sorted(path.name for path in work.glob("share-*")), "pid": os.getpid(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}  # fmt: skip


TEXT = Builder("text", 1, _write, shares=lambda params: params.get("shares", 1))
ON_ALL = Builder("on_all", 1, _write, gpus="devices")
NO_MODEL = Builder("no_model", 1, _write, gpus="none")


@pytest.fixture
def importable(monkeypatch):
    """This module's builders can be imported by tasks."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def step(name: str, *needs: Step, **params) -> Step:
    return Step(TEXT, {"name": name, **params}, {s.params["name"]: s for s in needs}, name)


@pytest.mark.slow
def test_failures_end_what_depends_on_them_and_lost_processes_are_replaced(cluster, importable, store):
    bad, lost, shared = step("bad", fail=True), step("lost", die=True), step("shared", shares=5)
    steps = [bad, step("after", bad), lost, shared, step("part", shares=2, fail_share=True)]
    ended = {}

    def go_on(one, error):
        ended[one.params["name"]] = error
        return True

    with ray_cluster.use(cluster.address):
        parallel.build(steps, store, EXECUTION, workers=1, go_on=go_on)
        with pytest.raises(UserError, match="it cannot be done"):
            parallel.build([bad], store, EXECUTION, workers=1)
    assert {name: type(error) for name, error in ended.items()} == {
        "bad": UserError, "lost": type(None), "shared": type(None), "part": UserError
    }  # fmt: skip
    assert store.find_here(shared).notes["shares"] == ["share-0", "share-1"]  # as many as run at a time
    assert not ray_cluster.wanted()


@pytest.mark.slow
def test_a_step_has_the_gpus_that_it_asks_for_and_a_process_of_its_own(cluster, importable, store):
    """Ray's GPUs are numbers that it hands out: none need be there."""
    cluster.machines["gpus"] = cluster.add_node(num_cpus=5, num_gpus=2, node_name="gpus")
    steps = {
        f"{builder.kind} {n}": Step(builder, {"n": n}, label=builder.kind)
        for builder in (TEXT, ON_ALL, NO_MODEL) for n in range(2)
    }  # fmt: skip
    execution = dataclasses.replace(EXECUTION, devices=2)
    try:
        with ray_cluster.use(cluster.address):
            where = parallel.executor(store.folder, execution, workers=1)
            assert where.at_once == 2
            parallel.build(steps.values(), store, execution, workers=1)
            with pytest.raises(UserError, match=r"devices = 3 .*no machine of the cluster has more than 2 GPUs"):
                parallel.executor(store.folder, dataclasses.replace(execution, devices=3), workers=1)
    finally:
        cluster.remove_node(cluster.machines.pop("gpus"))
    notes = {name: store.find_here(one).notes for name, one in steps.items()}
    assert notes["on_all 0"]["gpus"] == "0,1" and notes["text 0"]["gpus"] in ("0", "1")
    on_gpus = [note["pid"] for name, note in notes.items() if not name.startswith("no_model")]
    assert len(set(on_gpus)) == 4
