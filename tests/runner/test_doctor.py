"""Each check reports what it found and how to fix it; hermetic: no network, no trial import."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from urllib.error import URLError

import pytest
from huggingface_hub import constants

from cfutils.data import assets
from cfutils.runner import doctor
from cfutils.runner.doctor import Check


@pytest.fixture
def offline(monkeypatch):
    """No address is reached."""

    def refuse(request, timeout):
        raise URLError("no network")

    monkeypatch.setattr(doctor.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def installed(monkeypatch, **versions: str) -> None:
    monkeypatch.setattr(doctor, "_version", versions.get)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A root with two direct dependencies and a lock of three packages."""
    monkeypatch.setenv("CFUTILS_ROOT", str(tmp_path))
    dependencies = '[project]\ndependencies = ["torch==2.0", "lm_eval==1.0"]\n'
    (tmp_path / "pyproject.toml").write_text(dependencies)
    (tmp_path / "requirements.lock").write_text("# made\ntorch==2.0+cpu\nlm-eval==1.0\nsix==1.0\n")


def test_table_marks_wraps_and_gives_the_fix():
    checks = [
        Check("Python", True, "3.11.7"),
        Check("disk", False, "1.0 GB free", "free some space"),
        Check("hub", None, "word " * 40),
    ]
    text = doctor.table(checks)
    assert text.startswith("ok    Python  3.11.7\nFIX   disk    1.0 GB free\n")
    assert "\n              -> free some space\nnote  hub     word" in text
    assert max(map(len, text.splitlines())) <= 100


def test_python(monkeypatch):
    monkeypatch.setattr(doctor, "PYTHON", sys.version_info[:2])
    assert doctor.python().ok
    monkeypatch.setattr(doctor, "PYTHON", (2, 7))
    check = doctor.python()
    assert check.ok is False and check.fix == "use Python 2.7: `make PYTHON=python2.7 test`"


def test_packages_as_locked(checkout, monkeypatch):
    installed(monkeypatch, **{"torch": "2.0+cpu", "lm-eval": "1.0", "six": "1.0"})
    direct, lock = doctor.packages()
    assert direct.ok and direct.found == "2 of 2 at the pinned version"
    assert lock.ok and lock.found == "3 of 3 at the pinned version"


def test_a_direct_package_at_another_version_must_be_fixed(checkout, monkeypatch):
    installed(monkeypatch, **{"torch": "2.0+cpu", "lm-eval": "1.1"})
    direct, lock = doctor.packages()
    assert direct.ok is False and "lm-eval 1.1 (wanted 1.0)" in direct.found and direct.fix
    assert lock.ok is None and "six missing (wanted 1.0)" in lock.found


def test_a_gpu_build_of_torch_only_departs_from_the_lock(checkout, monkeypatch):
    installed(monkeypatch, **{"torch": "2.0", "lm-eval": "1.0", "six": "1.0"})
    direct, lock = doctor.packages()
    assert direct.ok and lock.ok is None and "torch 2.0 (wanted 2.0+cpu)" in lock.found


def test_many_differences_are_cut_short(monkeypatch):
    found = doctor._summary(dict.fromkeys("abcdef", "1"), list("abcdef"))
    assert found == "0 of 6 at the pinned version: a, b, c, d and 2 more"


def test_left_out(monkeypatch):
    installed(monkeypatch, torch="2.0+cpu")
    assert doctor.left_out().ok
    installed(monkeypatch, torch="2.0+cpu", torchvision="1.0")
    check = doctor.left_out()
    assert check.ok is False and "pip uninstall --yes torchvision`" in check.fix
    installed(monkeypatch, torch="2.0", torchvision="1.0")
    assert doctor.left_out().ok is None


def test_cores_memory_and_disk(monkeypatch, tmp_path):
    assert int(doctor.cores().found) >= 1
    state = SimpleNamespace(available=2e9, total=4e9)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: state)
    assert doctor.memory().ok is False and doctor.memory().found == "2.0 GB free of 4.0 GB"
    monkeypatch.setenv("CFUTILS_RUNS", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=50e9))
    assert doctor.disk() == Check("disk", True, "50.0 GB free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    assert "CFUTILS_RUNS" in doctor.disk().fix


@pytest.mark.parametrize(
    ("flags", "speedup", "ok", "words"),
    [
        ("sse avx2 amx_bf16", 3.0, None, "avx2, amx_bf16; bfloat16 runs at 3 times"),
        ("sse avx2", 0.4, None, "float32 is faster"),
        ("sse", 0.4, False, "no relevant instruction"),
    ],
)
def test_number_formats(monkeypatch, flags, speedup, ok, words):
    text = f"model name : x\nflags\t\t: {flags}\nbugs : none\n"
    monkeypatch.setattr(doctor.Path, "read_text", lambda path, encoding: text)
    check = doctor.number_formats({"speedup": speedup})
    assert check.ok is ok and words in check.found


def test_engine_and_gpu():
    assert doctor.engine({"vllm": "0.32.0"}) == Check("vLLM", True, "0.32.0")
    missing = doctor.engine({"vllm": None, "why": "ModuleNotFoundError: No module named 'vllm'"})
    assert missing.ok is False and "ModuleNotFoundError" in missing.found
    assert "engine: transformers" in missing.fix
    assert doctor.gpu({}).found.startswith("none")
    assert doctor.gpu({"gpu": "H, 80 GB"}).found == "H, 80 GB"


def test_hub_unreached_switched_off_and_reached(offline, monkeypatch):
    assert doctor.hub().ok is None and "not reached" in doctor.hub().found

    class Reply:
        status = 200

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

    monkeypatch.setattr(doctor.urllib.request, "urlopen", lambda request, timeout: Reply())
    assert doctor.hub() == Check("model hub", True, "reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "switched off" in doctor.hub().found


def test_data(monkeypatch):
    row = {"package": "tiny", "version": "1.0", "files": 0, "bytes": 0}
    rows = [
        row | {"state": "sound", "wrong": "", "fix": ""},
        row | {"state": "damaged", "wrong": "a; b", "fix": "delete it"},
        row | {"state": "absent", "wrong": "", "fix": "fetched later"},
    ]
    monkeypatch.setattr(assets, "verify", lambda: rows)
    assert [check.ok for check in doctor.data()] == [True, False, None]
    assert doctor.data()[1] == Check("tiny", False, "1.0, damaged: a; b", "delete it")


def test_probe_survives_a_crash_a_hang_and_noise(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE", "import os; os._exit(7)")
    assert doctor._probe() == {"why": "the trial import ended with code 7: no message"}
    monkeypatch.setattr(doctor, "PROBE", "print('noise'); print('{\"vllm\": \"1\"}'); print('bye')")
    assert doctor._probe() == {"vllm": "1"}

    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired("python", 180)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert "within 180 s" in doctor._probe()["why"]


def test_examine_looks_at_everything(offline, monkeypatch):
    monkeypatch.setattr(doctor, "_probe", lambda: {"speedup": 1.0, "vllm": "0", "gpu": None})
    monkeypatch.setattr(assets, "verify", list)
    named = [check.name for check in doctor.examine()]
    assert named == [
        *("Python", "packages", "lock", "left out", "cores", "memory", "disk"),
        *("processor", "vLLM", "GPU", "model hub"),
    ]
