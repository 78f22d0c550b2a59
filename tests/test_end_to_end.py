"""Every notebook through papermill on the real base; kills; the stock lm-eval command."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cfutils import paths, profiles
from cfutils.data import benchmarks, packaged
from cfutils.lab import Lab
from cfutils.runner.notebook import Notebook, notebooks, select

pytestmark = pytest.mark.slow

SMALL = {
    "recipes": ["ft", "cfs", "cf_kl", "l2"], "seeds": [0, 1], "ablation_seeds": [0, 1], "temperatures": [1.0, 1.6],
    "ratios": [0.2, 0.6], "lr_factors": [1.0], "epochs": 1, "n_train": 24, "n_heldout": 8, "n_validation": 8,
    "n_samples": 40, "n_contextual": 20, "limit": 4, "n_generate": 4, "n_probe": 4, "n_estimate": 64,
}  # fmt: skip
"""What makes the profile of the verdicts small; its numbers then mean nothing."""


def cfutils(*args, home: Path, **kwargs):
    """Run the command line with artifacts and figures below `home`."""
    env = {**os.environ, "CFUTILS_RUNS": str(home / "runs"), "CFUTILS_FIGURES": str(home / "figures")}
    return subprocess.run(
        [sys.executable, "-m", "cfutils", *args], env=env, capture_output=True, text=True, **kwargs
    )


def summary(home: Path, profile: str = "smoke") -> list[dict]:
    text = (home / "runs" / "notebooks" / profile / "summary.json").read_text()
    return json.loads(text)["notebooks"]


def drawn(folder: Path, notebook: Notebook) -> None:
    """Check that every figure of a notebook is there, as a picture, as print, and as data."""
    for name in notebook.figures:
        path = folder / name
        assert len(pd.read_csv(path.with_suffix(".csv"))) >= 1, name
        for kind in (".png", ".pdf"):
            assert path.with_suffix(kind).stat().st_size > 5000, name


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the whole suite has run once on the smoke profile."""
    home = tmp_path_factory.mktemp("home")
    done = cfutils("run", "smoke", home=home)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home


def test_every_notebook_runs_and_every_figure_is_there(home):
    """Those of the profile but notebook 00, which is about another base."""
    suite = [one for one in notebooks() if not one.base and one.number in profiles.load("smoke").notebooks]
    assert [row["notebook"] for row in summary(home)] == [notebook.name for notebook in suite]
    assert {row["status"] for row in summary(home)} == {"good"}
    for notebook in suite:
        drawn(home / "figures" / "smoke", notebook)


def test_the_base_and_the_estimates_of_the_default_profile(tmp_path):
    """Notebooks 00 and 06 on the base that ships, with few samples; the second time nothing is built."""
    command = ("run", "tiny", "-n", "00", "06", "-p", "n_estimate=16")
    done = cfutils(*command, home=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [row["status"] for row in summary(tmp_path, "tiny")] == ["good"] * 2
    for notebook in select(["00", "06"]):
        drawn(tmp_path / "figures" / "tiny+n_estimate=16", notebook)
    assert cfutils(*command, home=tmp_path).returncode == 0
    rows = summary(tmp_path, "tiny")
    assert {(r["status"], r["built"], r["models"]) for r in rows} == {("unchanged", 0, 0)}


def test_the_verdicts_on_a_small_version_of_their_profile(tmp_path):
    """Notebook 07 with four methods, two seeds and few items; the second time nothing is built."""
    values = yaml.safe_load((paths.profiles() / "tiny-claims.yaml").read_text()) | SMALL
    profile = tmp_path / "small-claims.yaml"
    profile.write_text(yaml.safe_dump(values))
    done = cfutils("run", str(profile), home=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " steps are missing: about " in done.stdout
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    (notebook,) = select(["07"])
    drawn(tmp_path / "figures" / "small-claims", notebook)
    verdicts = pd.read_csv(tmp_path / "figures" / "small-claims" / "claims.csv")
    assert set(verdicts["claim"]) == {f"C{number}" for number in range(1, 10)}
    assert cfutils("run", str(profile), home=tmp_path).returncode == 0
    (row,) = summary(tmp_path, "small-claims")
    assert (row["status"], row["built"], row["models"]) == ("unchanged", 0, 0)


def test_a_base_and_a_file_of_ones_own(tmp_path):
    """Notebook 09 on its example, with two kept skills; the second time nothing is built."""
    command = ("run", "own", "-p", "retained=[sum, job]")
    done = cfutils(*command, home=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (notebook,) = select(["09"])
    (folder,) = (tmp_path / "figures").iterdir()
    drawn(folder, notebook)
    assert cfutils(*command, home=tmp_path).returncode == 0
    (row,) = summary(tmp_path, "own")
    assert (row["status"], row["built"], row["models"]) == ("unchanged", 0, 0)


def test_second_run_has_nothing_to_do(home):
    assert cfutils("run", "smoke", home=home).returncode == 0
    assert {(r["status"], r["built"], r["models"]) for r in summary(home)} == {("unchanged", 0, 0)}


def test_a_lost_figure_is_drawn_again_with_the_same_bytes_and_no_model(home):
    figures = home / "figures" / "smoke"
    before = {p.name: p.read_bytes() for p in figures.iterdir() if p.is_file()}
    for name in before:
        (figures / name).unlink()
    assert cfutils("run", "smoke", home=home).returncode == 0
    assert {(r["status"], r["built"], r["models"]) for r in summary(home)} == {("good", 0, 0)}
    assert {p.name: p.read_bytes() for p in figures.iterdir() if p.is_file()} == before


def test_a_new_temperature_builds_only_what_depends_on_it(home):
    done = cfutils("run", "smoke", "-n", "04", "-p", "temperatures=[0.9, 1.0]", home=home)
    assert done.returncode == 0, done.stdout[-3000:]
    rows = {row["label"] for row in built(home, since="04")}
    assert rows and all("T=0.9" in label for label in rows), rows


def built(home: Path, *, since: str) -> list[dict]:
    events = next((home / "runs" / "notebooks" / "smoke").glob(f"{since}_*.events.jsonl"))
    lines = map(json.loads, events.read_text().splitlines())
    return [row for row in lines if row["event"] == "built"]


STUDY = """
from cfutils.lab import Lab
if __name__ == "__main__":
    lab = Lab("smoke", recipes=["cf_kl"], checkpoint_minutes=1e-6, n_train=8, n_samples=9)
    lab.study("methods").items.to_csv("items.csv", index=False)
"""


def test_killed_while_sampling_tuning_and_scoring_it_resumes_to_the_same_scores(tmp_path):
    """SIGKILL in each phase; the scores at the end are those of an undisturbed run."""
    base = Lab("smoke").steps.base
    found = Lab("smoke").ensure(base)  # the base is the same in both: spare its dequantisation
    frames = {}
    marks = ["samples/.work-*/part-*-000006.parquet", "tuned/.work-*/checkpoint.safetensors", "retained/.work-*"]
    for name, kills in (("plain", []), ("killed", marks)):
        home = tmp_path / name
        (home / "runs" / "base").mkdir(parents=True)
        (home / "runs" / "base" / base.key).symlink_to(found.path)
        (home / "study.py").write_text(STUDY)
        for mark in [*kills, None]:
            run_until(home, mark)
        frames[name] = pd.read_csv(home / "items.csv")
    pd.testing.assert_frame_equal(frames["plain"], frames["killed"], check_exact=True)


def run_until(home: Path, mark: str | None) -> None:
    """Run study.py; SIGKILL its whole group when a file or folder with the mark's pattern is in the store."""
    env = {**os.environ, "CFUTILS_RUNS": str(home / "runs"), "CFUTILS_ROOT": str(paths.root())}
    with open(home / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "study.py"], cwd=home, env=env, stdout=log, stderr=log, start_new_session=True
        )
    while process.poll() is None:
        if mark and any((home / "runs").glob(mark)):
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    code = process.wait()
    assert code == (-signal.SIGKILL if mark else 0), (home / "log.txt").read_text()[-3000:]
    time.sleep(0.5)


def test_scores_equal_those_of_the_stock_lm_eval_command(tmp_path):
    """Same model, same items, lm-eval's own command line: item by item the same answers."""
    lab = Lab("smoke", retained=["winogrande", "sciq", "boolq", "lambada_openai"], limit=6)
    folder = lab.ensure(lab.steps.base).model_folder
    step = lab.steps.scores(None, "retained")
    ours = pd.read_parquet(lab.ensure(step).path / "items.parquet")
    indices = {}
    for name in lab.profile.retained:
        packaged.TASKS[name].dataset().to_json(items := tmp_path / f"{name}.jsonl")
        config = {
            "include": str(packaged.TASKS[name].own), "task": f"{name}_here", "dataset_path": "json",
            "dataset_name": None, "training_split": None, "validation_split": "validation", "test_split": None,
            "dataset_kwargs": {"data_files": {"validation": str(items)}},
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        total = len(benchmarks.lm_eval_task(name).eval_docs)
        indices[f"{name}_here"] = benchmarks.evenly(total, lab.profile.limit)
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf",
        "--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu",
        "--tasks", ",".join(indices), "--include_path", str(tmp_path), "--samples", json.dumps(indices),
        "--batch_size", "8", "--log_samples",
        "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    for name in lab.profile.retained:
        (file,) = (tmp_path / "out").rglob(f"samples_{name}_here_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        task = benchmarks.lm_eval_task(name)
        for row in rows:
            mine = ours[(ours["task"] == name) & (ours["item"] == str(row["doc_id"]))]
            mine = mine.set_index("metric")["value"]
            assert mine["acc"] == float(row["acc"])
            logliks = [float(answer[0][0]) for answer in row["resps"]]
            if name == "lambada_openai":
                bits = -logliks[0] / math.log(2) / len(task.doc_to_target(row["doc"]).encode())
                assert mine["bpb_gold"] == pytest.approx(bits, abs=1e-4)
                continue
            doc = row["doc"]
            gold = task.doc_to_text(doc) if task.multiple_input else int(task.doc_to_target(doc))
            right = logliks.pop(gold)
            assert mine["margin"] == pytest.approx(right - max(logliks), abs=1e-4)
